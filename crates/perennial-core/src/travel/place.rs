//! Where in a registry something is kept: a container in a repository of its name, an image in one of its digest.

use crate::id::{ContainerName, Digest};
use crate::sealed::object::ObjectId;
use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;

/// Tag under which a container's parcel is found.
pub const CONTAINER_TAG: &str = "generations";
/// Tag under which an image's parcel is found.
pub const IMAGE_TAG: &str = "image";
/// Longest name of a repository, in bytes (distribution-spec, "Pulling manifests").
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// What a component begins with whose rest is the name in base 32.
const ENCODED: &str = "x--";
/// Component under which images are kept.
const IMAGES: &str = "perennial-images";
const BASE32: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Returns the component of a repository that stands for a container: its name where that can be one, else the name in
/// base 32 (RFC 4648, extended hex, lower case, without padding).
#[must_use]
pub fn component(name: &ContainerName) -> String {
    let text = name.as_str();
    if is_component(text) && !text.starts_with(ENCODED) && text != IMAGES {
        return text.to_owned();
    }
    let mut encoded = ENCODED.to_owned();
    let (mut bits, mut count) = (0_u32, 0_u32);
    let mut push = |five: u32| {
        let digit = usize::try_from(five & 31).ok().and_then(|index| BASE32.get(index)).copied().unwrap_or(b'0');
        encoded.push(char::from(digit));
    };
    for byte in text.bytes() {
        bits = (bits << 8) | u32::from(byte);
        count = count.saturating_add(8);
        while count >= 5 {
            count = count.saturating_sub(5);
            push(bits >> count);
        }
        bits &= 31;
    }
    if count > 0 {
        push(bits << (5_u32.saturating_sub(count)));
    }
    encoded
}

/// Returns whether a text can be a component of a repository (distribution-spec).
fn is_component(text: &str) -> bool {
    let mut rest = text.as_bytes();
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    loop {
        let word = rest.iter().take_while(|byte| is_word(byte)).count();
        if word == 0 {
            return false;
        }
        rest = rest.get(word..).unwrap_or_default();
        let between = rest.iter().take_while(|byte| !is_word(byte)).count();
        let Some((separator, after)) = rest.split_at_checked(between) else { return false };
        let is_separator = matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-');
        match (separator.is_empty(), is_separator) {
            (true, _) => return true,
            (false, true) => rest = after,
            (false, false) => return false,
        }
    }
}

/// Returns the repository of a container below `prefix`, which may be empty.
#[must_use]
pub fn of_container(prefix: &str, name: &ContainerName) -> String {
    below(prefix, &component(name))
}

/// Returns the repository of an image below `prefix`.
#[must_use]
pub fn of_image(prefix: &str, image: &Digest) -> String {
    below(prefix, &format!("{IMAGES}/{}", image.hex()))
}

/// Returns the repository of an encrypted image below `prefix`.
#[must_use]
pub fn of_hidden_image(prefix: &str, place: &ObjectId) -> String {
    below(prefix, &format!("{IMAGES}/{place}"))
}

/// Returns what the repository of an encrypted image is called: always the same for one owner, and nobody without the
/// owner's secret can tell of which image it is.
#[must_use]
pub fn hidden(secret: &str, image: &Digest) -> ObjectId {
    let key = blake3::derive_key("perennial 2026-11-29 repository of an encrypted image", secret.as_bytes());
    ObjectId::new(*blake3::keyed_hash(&key, image.as_str().as_bytes()).as_bytes())
}

fn below(prefix: &str, rest: &str) -> String {
    if prefix.is_empty() { rest.to_owned() } else { format!("{prefix}/{rest}") }
}

/// Why a text is not the address of a remote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No host.
    #[error("{text:?} names no registry; write it as HOST[:PORT][/PATH]")]
    NoHost {
        /// The text as given.
        text: String,
    },
    /// The path cannot be part of a repository.
    #[error(
        "{text:?} cannot be part of a repository: use lower-case letters, digits, '.', '_' and '-', with '/' between"
    )]
    Path {
        /// The text as given.
        text: String,
    },
}

/// Splits `HOST[:PORT][/PATH]`, with `https://` or `http://` before it or not, into host and path.
///
/// # Errors
/// [`AddressError`].
pub fn parse_address(text: &str) -> Result<(String, String), AddressError> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_end_matches('/');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
    if host.is_empty() || !host.bytes().all(is_plain) || host.starts_with(['-', ':']) {
        return Err(AddressError::NoHost { text: text.to_owned() });
    }
    // What stands below it needs room: the longest name of a container in base 32, or an image's digest.
    if !path.is_empty() && (path.len() > 40 || !path.split('/').all(is_component)) {
        return Err(AddressError::Path { text: text.to_owned() });
    }
    Ok((host.to_owned(), path.to_owned()))
}
