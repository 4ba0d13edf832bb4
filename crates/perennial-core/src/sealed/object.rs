//! Names of objects: a content is named by its BLAKE3, so that `b3sum` checks it.

use crate::id::ParseIdError;
use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// The version of how objects are named and kept.
pub const VERSION: u32 = 1;
/// Length of an object's name, in bytes.
pub const OBJECT_ID_BYTES: usize = 32;
/// Hexadecimal digits of an object's name that make its directory.
const FAN_OUT_DIGITS: usize = 2;

/// BLAKE3 of a content: 32 bytes, as text 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectId([u8; OBJECT_ID_BYTES]);

impl ObjectId {
    /// Makes a name of a hash.
    #[must_use]
    pub const fn new(hash: [u8; OBJECT_ID_BYTES]) -> Self {
        Self(hash)
    }

    /// Returns the name of a content.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// Returns the hash.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; OBJECT_ID_BYTES] {
        &self.0
    }

    /// Returns the path below the secret directory, `ab/cdef…`.
    #[must_use]
    pub fn relative_path(&self) -> String {
        let mut text = format!("{self}");
        text.insert(FAN_OUT_DIGITS, '/');
        text
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

impl FromStr for ObjectId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let malformed = || ParseIdError::Malformed {
            what: "object id",
            text: text.to_owned(),
            rule: "use 64 lower-case hexadecimal digits",
        };
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
            b'a'..=b'f' => Some(digit.wrapping_sub(b'a').wrapping_add(10)),
            _ => None,
        };
        let digits = text.as_bytes();
        if digits.len() != OBJECT_ID_BYTES * 2 {
            return Err(malformed());
        }
        let mut hash = [0_u8; OBJECT_ID_BYTES];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = *pair else { return Err(malformed()) };
            let (high, low) = digit(high).zip(digit(low)).ok_or_else(malformed)?;
            *byte = (high << 4) | low;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for ObjectId {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<ObjectId> for String {
    fn from(id: ObjectId) -> Self {
        format!("{id}")
    }
}
