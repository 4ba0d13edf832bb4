//! Signals by name and number, as Linux numbers them on x86-64 and arm64.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// A signal, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Signal(u8);

/// Why a text or number is not a signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("signal {text:?} is not known: use a name such as SIGTERM or TERM, or a number from 1 to 64")]
pub struct ParseSignalError {
    text: String,
}

/// Names by number; 32 and 33 belong to the C library, the real-time signals follow from 34 (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;
const ALIASES: [(&str, u8); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

impl Signal {
    /// `SIGHUP`.
    pub const HUP: Self = Self(1);
    /// `SIGINT`.
    pub const INT: Self = Self(2);
    /// `SIGQUIT`.
    pub const QUIT: Self = Self(3);
    /// `SIGKILL`.
    pub const KILL: Self = Self(9);
    /// `SIGUSR1`.
    pub const USR1: Self = Self(10);
    /// `SIGUSR2`.
    pub const USR2: Self = Self(12);
    /// `SIGTERM`.
    pub const TERM: Self = Self(15);

    /// Returns its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Signal {
    type Error = ParseSignalError;
    fn try_from(number: u8) -> Result<Self, ParseSignalError> {
        match number {
            1..=RTMAX => Ok(Self(number)),
            _ => Err(ParseSignalError { text: alloc::format!("{number}") }),
        }
    }
}

impl From<Signal> for u8 {
    fn from(signal: Signal) -> Self {
        signal.0
    }
}

impl FromStr for Signal {
    type Err = ParseSignalError;
    fn from_str(text: &str) -> Result<Self, ParseSignalError> {
        let fail = || ParseSignalError { text: text.to_owned() };
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse::<u8>().map_err(|_| fail())?.try_into().map_err(|_| fail());
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(at) = NAMES.iter().position(|known| *known == name) {
            return u8::try_from(at.saturating_add(1)).map(Self).map_err(|_| fail());
        }
        if let Some((_, number)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
            return Ok(Self(*number));
        }
        real_time(name).map(Self).ok_or_else(fail)
    }
}

fn real_time(name: &str) -> Option<u8> {
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        match rest {
            "" => RTMIN,
            _ => RTMIN.checked_add(rest.strip_prefix('+')?.parse().ok()?)?,
        }
    } else {
        match name.strip_prefix("RTMAX")? {
            "" => RTMAX,
            rest => RTMAX.checked_sub(rest.strip_prefix('-')?.parse().ok()?)?,
        }
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0.saturating_sub(1))) {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 >= RTMIN => write!(f, "SIGRTMIN+{}", self.0.saturating_sub(RTMIN)),
            None => write!(f, "{}", self.0),
        }
    }
}
