//! Instants, as nanoseconds since 1970 in UTC; they always come from the caller.
//!
//! Times are for display and for choosing a generation by hand. They never decide an order: that is [`crate::id::Seq`].

use alloc::string::{String, ToString as _};
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// An instant in UTC with nanoseconds, from September 1677 to April 2262 (the range of a signed 64-bit count).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Time(i64);

/// Why a text is not an instant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time {text:?} is not valid: {reason}; expected RFC 3339, such as 2026-11-22T18:00:00Z")]
pub struct ParseTimeError {
    text: String,
    reason: String,
}

impl Time {
    /// Makes an instant from nanoseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn from_unix_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Returns nanoseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn unix_nanos(self) -> i64 {
        self.0
    }

    /// Parses RFC 3339 and returns the first and the last instant that the digits given can mean: without a fraction
    /// a whole second, with `d` digits of it 10^-d seconds.
    ///
    /// # Errors
    /// [`ParseTimeError`] where the text is not RFC 3339, which includes one without seconds.
    pub fn parse_span(text: &str) -> Result<(Self, Self), ParseTimeError> {
        let from: Self = text.parse()?;
        let clock = text.split_once(['T', 't', ' ', '_']).map_or("", |(_, clock)| clock);
        let colons = clock.split(['Z', 'z', '+', '-', '[']).next().map_or(0, |clock| clock.matches(':').count());
        if colons != 2 {
            return Err(ParseTimeError { text: text.to_string(), reason: "the seconds are missing".to_string() });
        }
        let digits = clock
            .split_once(['.', ','])
            .map_or(0, |(_, fraction)| fraction.bytes().take_while(u8::is_ascii_digit).count());
        let unit = u32::try_from(digits).ok().and_then(|digits| 9_u32.checked_sub(digits)).map_or(1, |n| 10_i64.pow(n));
        Ok((from, Self(from.0.saturating_add(unit.saturating_sub(1)))))
    }

    /// Returns how long `earlier` lies before this instant in nanoseconds; 0 where the clock went back between them.
    #[must_use]
    pub fn nanos_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(timestamp) => write!(f, "{timestamp}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl FromStr for Time {
    type Err = ParseTimeError;
    fn from_str(text: &str) -> Result<Self, ParseTimeError> {
        let fail = |reason: String| ParseTimeError { text: text.to_string(), reason };
        let timestamp: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| fail(error.to_string()))?;
        i64::try_from(timestamp.as_nanosecond())
            .map(Self)
            .map_err(|_| fail("outside the years 1677 to 2262".to_string()))
    }
}

impl TryFrom<String> for Time {
    type Error = ParseTimeError;
    fn try_from(text: String) -> Result<Self, ParseTimeError> {
        text.parse()
    }
}

impl From<Time> for String {
    fn from(time: Time) -> Self {
        time.to_string()
    }
}
