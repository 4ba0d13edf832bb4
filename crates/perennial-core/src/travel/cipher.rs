//! Encryption of what lies in a registry: for whom, and where in an encrypted pack something of the pack is.
//!
//! An encrypted blob is an age file (`age-encryption.org/v1`): a head, then the content in chunks of 64 KiB, each with
//! 16 bytes that show whether it is whole and at its place. So a stretch of a pack can be read without the rest.
//!
//! ```text
//! parcel, encrypted for the owner's keys ─┬─ key of a pack ─▶ head │ chunk 0 │ chunk 1 │ … │ last chunk
//!                                         └─ key of a pack ─▶ …
//! ```

use crate::id::ParseIdError;
use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// Version of the layout: that of age files.
pub const VERSION: u32 = 1;
/// Content of one chunk, in bytes (age's specification, "Payload").
pub const CHUNK_BYTES: u64 = 64 << 10;
/// What a chunk has beside its content, in bytes.
pub const TAG_BYTES: u64 = 16;
/// Longest head of an encrypted pack, in bytes: it has one recipient and what age adds at random, below 1 KiB.
pub const HEAD_BYTES_MAX: u64 = 4096;
/// Keys that one remote is encrypted for.
pub const RECIPIENTS_MAX: usize = 64;
/// Longest key as text, in bytes: those of age have 62 and 74.
const KEY_BYTES_MAX: usize = 128;

/// Whether what lies in a registry can be read by whoever can read the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// It can.
    Plain,
    /// It cannot.
    Encrypted,
}

/// A key that something is encrypted for, as `age1…`. It is no secret, but who knows it can make what its owner can read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Recipient(String);

impl Recipient {
    /// Returns it as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if text.len() <= KEY_BYTES_MAX && text.starts_with("age1") && text.bytes().all(is_allowed) {
            return Ok(Self(text.to_owned()));
        }
        let rule = "it begins with age1, as `age-keygen -y` prints it";
        Err(ParseIdError::Malformed { what: "recipient", text: text.to_owned(), rule })
    }
}

impl TryFrom<String> for Recipient {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> Self {
        recipient.0
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The secret key of packs, as `AGE-SECRET-KEY-1…`; it is never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PackKey(String);

impl PackKey {
    /// Returns it as text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for PackKey {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let is_allowed = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'-';
        if text.len() <= KEY_BYTES_MAX && text.starts_with("AGE-SECRET-KEY-1") && text.bytes().all(is_allowed) {
            return Ok(Self(text.to_owned()));
        }
        let rule = "it begins with AGE-SECRET-KEY-1";
        Err(ParseIdError::Malformed { what: "key of a pack", text: String::new(), rule })
    }
}

impl TryFrom<String> for PackKey {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<PackKey> for String {
    fn from(key: PackKey) -> Self {
        key.0
    }
}

impl fmt::Debug for PackKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PackKey")
    }
}

/// How a pack is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackCipher {
    /// The key it is encrypted for.
    pub key: PackKey,
    /// Length of the age file's head, in bytes: everything before the first chunk.
    pub head_bytes: u64,
}

/// Where something of an encrypted file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Length of the head, in bytes.
    pub head_bytes: u64,
    /// Length of the content, in bytes.
    pub bytes: u64,
}

impl Layout {
    /// Returns what can be told from the lengths of a file and its content; `None` where they do not fit.
    #[must_use]
    pub fn of(file_bytes: u64, bytes: u64) -> Option<Self> {
        let chunks = count(bytes).checked_mul(TAG_BYTES)?.checked_add(bytes)?;
        let head_bytes = file_bytes.checked_sub(chunks).filter(|head| *head > 0)?;
        Some(Self { head_bytes, bytes })
    }

    /// Returns the length of the file, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let tags = count(self.bytes).saturating_mul(TAG_BYTES);
        self.head_bytes.saturating_add(self.bytes).saturating_add(tags)
    }

    /// Returns the numbers of the chunks that have a stretch of the content.
    #[must_use]
    pub fn chunks(&self, content: &Range<u64>) -> Range<u64> {
        if content.start >= content.end {
            return 0..0;
        }
        content.start.checked_div(CHUNK_BYTES).unwrap_or(0)..content.end.min(self.bytes).div_ceil(CHUNK_BYTES)
    }

    /// Returns which stretch of the content a chunk has.
    #[must_use]
    pub fn content(&self, chunk: u64) -> Range<u64> {
        let start = chunk.saturating_mul(CHUNK_BYTES).min(self.bytes);
        start..start.saturating_add(CHUNK_BYTES).min(self.bytes)
    }

    /// Returns which bytes of the file chunks are.
    #[must_use]
    pub fn stretch(&self, chunks: &Range<u64>) -> Range<u64> {
        let at = |chunk: u64| {
            let before = chunk.saturating_mul(CHUNK_BYTES.saturating_add(TAG_BYTES));
            self.head_bytes.saturating_add(before).min(self.file_bytes())
        };
        at(chunks.start)..at(chunks.end)
    }
}

/// Chunks of a content; one that is empty has an empty one.
fn count(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK_BYTES).max(1)
}

/// Returns the runs of chunks that are not here.
#[must_use]
pub fn missing(chunks: Range<u64>, is_here: &dyn Fn(u64) -> bool) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for chunk in chunks.filter(|chunk| !is_here(*chunk)) {
        match runs.last_mut() {
            Some(last) if last.end == chunk => last.end = chunk.saturating_add(1),
            Some(_) | None => runs.push(chunk..chunk.saturating_add(1)),
        }
    }
    runs
}

/// Whether somebody who can read what is there may be left out of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropping {
    /// Nobody: they would find themselves locked out.
    Refused,
    /// It was asked for.
    Asked,
}

/// What a push does about those who can read what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readers {
    /// The same will read what is sent.
    Same,
    /// Others will: the parcel is written anew, the packs stay.
    Other,
    /// These would be locked out.
    LockedOut(Vec<Recipient>),
}

/// Decides that. Nobody is added because what is there names him: whoever can write there could name himself.
#[must_use]
pub fn readers(there: &[Recipient], ours: &[Recipient], dropping: Dropping) -> Readers {
    let lost: Vec<Recipient> = there.iter().filter(|recipient| !ours.contains(recipient)).cloned().collect();
    match (lost.is_empty(), dropping) {
        (false, Dropping::Refused) => Readers::LockedOut(lost),
        (true, _) if ours.iter().all(|recipient| there.contains(recipient)) => Readers::Same,
        (true, _) | (false, Dropping::Asked) => Readers::Other,
    }
}
