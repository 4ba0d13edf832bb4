//! The name of the directory all objects are in: random, so that no path of an image or a container can name an object.

use crate::id::ParseIdError;
use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use super::super::object::ObjectId;

/// 128 random bits, as text 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// Makes a secret of random bits.
    #[must_use]
    pub const fn from_random(bits: [u8; 16]) -> Self {
        Self(bits)
    }

    /// Returns where an object is below the directory of all objects: `/<secret>/ab/cdef…`.
    pub(super) fn redirect(&self, id: &ObjectId) -> Vec<u8> {
        format!("/{self}/{}", id.relative_path()).into_bytes()
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl FromStr for Secret {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        // Every digit is checked: `from_str_radix` alone would take a sign.
        let digits = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match u128::from_str_radix(text, 16) {
            Ok(number) if digits => Ok(Self(number.to_be_bytes())),
            Ok(_) | Err(_) => Err(ParseIdError::Malformed {
                what: "secret of the objects",
                text: text.to_owned(),
                rule: "use 32 lower-case hexadecimal digits",
            }),
        }
    }
}
