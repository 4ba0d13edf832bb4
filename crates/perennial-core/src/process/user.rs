//! Users and groups as settings name them, and as numbers.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// Longest name of a user or group; `useradd` allows 32 bytes, directories of companies more.
const NAME_BYTES_MAX: usize = 256;

/// A user by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserRef {
    /// By number.
    Id(u32),
    /// By name, to be looked up in the container's `/etc/passwd`.
    Name(String),
}

/// A group by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupRef {
    /// By number.
    Id(u32),
    /// By name, to be looked up in the container's `/etc/group`.
    Name(String),
}

/// `user[:group]`, not yet looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    /// The user.
    pub user: UserRef,
    /// The group; the user's own where absent.
    pub group: Option<GroupRef>,
}

/// A user and its groups as numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// Number of the user.
    pub uid: u32,
    /// Number of the main group.
    pub gid: u32,
    /// Numbers of the other groups, sorted.
    pub additional_gids: Vec<u32>,
    /// Home directory, where `/etc/passwd` knows the user.
    pub home: Option<String>,
}

/// Why a text is not `user[:group]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseUserError {
    /// The user or the group is empty.
    #[error("{text:?} is not valid: expected a user or user:group, by name or number")]
    Malformed {
        /// The text as given.
        text: String,
    },
    /// A number that no user or group can have.
    #[error("{text:?} is not valid: {number} is above the largest id 4294967294")]
    TooLarge {
        /// The text as given.
        text: String,
        /// The number in it.
        number: String,
    },
}

impl UserSpec {
    /// Returns user 0 with its own group.
    #[must_use]
    pub fn root() -> Self {
        Self { user: UserRef::Id(0), group: None }
    }
}

impl FromStr for UserSpec {
    type Err = ParseUserError;
    fn from_str(text: &str) -> Result<Self, ParseUserError> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let user = match part(text, user)? {
            Part::Id(id) => UserRef::Id(id),
            Part::Name(name) => UserRef::Name(name),
        };
        let group = match group.map(|group| part(text, group)).transpose()? {
            None => None,
            Some(Part::Id(id)) => Some(GroupRef::Id(id)),
            Some(Part::Name(name)) => Some(GroupRef::Name(name)),
        };
        Ok(Self { user, group })
    }
}

enum Part {
    Id(u32),
    Name(String),
}

fn part(text: &str, part: &str) -> Result<Part, ParseUserError> {
    let is_allowed = |c: char| !c.is_control() && !matches!(c, ':' | ',' | '/') && !c.is_whitespace();
    if part.is_empty() || part.len() > NAME_BYTES_MAX || !part.chars().all(is_allowed) {
        return Err(ParseUserError::Malformed { text: text.to_owned() });
    }
    if !part.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(Part::Name(part.to_owned()));
    }
    // The largest number means "leave as it is" to the kernel (chown(2), setresuid(2)).
    match part.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(Part::Id(id)),
        Ok(_) | Err(_) => Err(ParseUserError::TooLarge { text: text.to_owned(), number: part.to_owned() }),
    }
}

impl fmt::Display for UserRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for GroupRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}
