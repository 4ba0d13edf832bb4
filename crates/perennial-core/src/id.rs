//! Names of things: containers, runs, layers, digests and sequence numbers.
//!
//! A value of one of these types has been checked; parsing is the only way to make one from text.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// Longest container or image name, in bytes; the same bound as DNS labels doubled, and far below `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 128;

/// Why a text is not a name, id, digest or sequence number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// What was being parsed.
        what: &'static str,
    },
    /// The text is longer than allowed.
    #[error("{what} is {bytes} bytes long, at most {bytes_max} are allowed")]
    TooLong {
        /// What was being parsed.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// A character that is not allowed at its place.
    #[error("{what} {text:?} is not valid: {rule}")]
    Malformed {
        /// What was being parsed.
        what: &'static str,
        /// The text as given.
        text: String,
        /// What is allowed.
        rule: &'static str,
    },
}

/// Name of a container as its owner gave it: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most [`NAME_BYTES_MAX`] bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

const NAME_RULE: &str = "use letters, digits, '_', '.' and '-', beginning with a letter or a digit";

impl ContainerName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerName {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        const WHAT: &str = "container name";
        if text.is_empty() {
            return Err(ParseIdError::Empty { what: WHAT });
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(ParseIdError::TooLong { what: WHAT, bytes: text.len(), bytes_max: NAME_BYTES_MAX });
        }
        let first_is_alphanumeric = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest_is_allowed = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if !first_is_alphanumeric || !rest_is_allowed {
            return Err(ParseIdError::Malformed { what: WHAT, text: text.to_owned(), rule: NAME_RULE });
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for ContainerName {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<ContainerName> for String {
    fn from(name: ContainerName) -> Self {
        name.0
    }
}

impl fmt::Display for ContainerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes an id from 8 random bytes, which the caller supplies.
            #[must_use]
            pub fn from_random(bytes: [u8; 8]) -> Self {
                Self(format!("{:016x}", u64::from_be_bytes(bytes)))
            }

            /// Returns the 16 lower-case hexadecimal digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let is_hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if text.len() != 16 || !is_hex {
                    return Err(ParseIdError::Malformed {
                        what: $what,
                        text: text.to_owned(),
                        rule: "16 lower-case hexadecimal digits are expected",
                    });
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id!(
    /// Identity of a container; stays when the container is renamed, and is never used again.
    ContainerId, "container id"
);
hex_id!(
    /// Identity of one run of a container, from start to exit.
    RunId, "run id"
);
hex_id!(
    /// Identity of a layer in one store, and the name of its directory under `layers/`.
    LayerId, "layer id"
);

/// Digest of content: `sha256:` and 64 lower-case hexadecimal digits (OCI image specification, "Digests").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// Makes a digest from the 32 bytes of a SHA-256 sum.
    #[must_use]
    pub fn from_sha256(sum: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in sum {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// Returns `sha256:…`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the 64 hexadecimal digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.strip_prefix("sha256:").unwrap_or(&self.0)
    }
}

impl FromStr for Digest {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let is_valid = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if !is_valid {
            return Err(ParseIdError::Malformed {
                what: "digest",
                text: text.to_owned(),
                rule: "sha256: and 64 lower-case hexadecimal digits are expected",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Place of a generation in its container's history; the identity of the generation (row A38). Counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// Returns the number that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Seq {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match text.parse::<u64>() {
            Ok(number) if number > 0 => Ok(Self(number)),
            Ok(_) | Err(_) => Err(ParseIdError::Malformed {
                what: "generation number",
                text: text.to_string(),
                rule: "a whole number from 1 is expected, as `generations` lists them",
            }),
        }
    }
}
