//! The host name inside a container.

use crate::id::ContainerName;
use crate::spec::ContainerSpec;
use alloc::borrow::ToOwned as _;
use alloc::string::{String, ToString as _};

/// Most bytes of a host name: what the kernel takes (`__NEW_UTS_LEN`).
pub const HOSTNAME_BYTES_MAX: usize = 64;
/// Most bytes of one part of it, between dots (RFC 1123).
const LABEL_BYTES_MAX: usize = 63;

/// Why a text is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseHostnameError {
    /// Nothing at all, or more than the kernel takes.
    #[error("host name {text:?} has {bytes} bytes: give 1 to {HOSTNAME_BYTES_MAX}")]
    Length {
        /// The text as given.
        text: String,
        /// Its length.
        bytes: usize,
    },
    /// Not of the form of a host name.
    #[error(
        "{text:?} is not a host name: use letters, digits, '-', '_' and '.', with something between dots and no '-' \
         beside them"
    )]
    Malformed {
        /// The text as given.
        text: String,
    },
}

/// Returns a host name as given, after checking it against hostname(7) and RFC 1123. Underscores are tolerated, as
/// container names have them.
///
/// # Errors
/// If it has no or more than [`HOSTNAME_BYTES_MAX`] bytes, or another form.
pub fn parse_hostname(text: &str) -> Result<String, ParseHostnameError> {
    if text.is_empty() || text.len() > HOSTNAME_BYTES_MAX {
        return Err(ParseHostnameError::Length { text: text.to_owned(), bytes: text.len() });
    }
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    match text.split('.').all(is_label) {
        true => Ok(text.to_owned()),
        false => Err(ParseHostnameError::Malformed { text: text.to_owned() }),
    }
}

/// Returns the host name inside a container: the settings' own, else as much of the container's name as the kernel takes.
#[must_use]
pub fn hostname_of(spec: &ContainerSpec, name: &ContainerName) -> String {
    match spec.hostname.as_deref() {
        // Releases before this rule let an empty one into the records; the runtime would show the host's own name.
        None | Some("") => {
            let name = name.as_str();
            // A container's name is ASCII, so that every place in it is a boundary.
            name.get(..HOSTNAME_BYTES_MAX).unwrap_or(name).to_string()
        }
        Some(hostname) => hostname.to_owned(),
    }
}
