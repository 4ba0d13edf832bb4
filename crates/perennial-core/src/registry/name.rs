//! Names as the specification spells them: repositories, tags, digests and upload sessions.
//!
//! Parsing is the only way to make one from text, so none of them can lead out of a directory it is joined to.

use super::fault::{Code, Fault};
use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::fmt::Write as _;

/// Longest repository name in bytes; clients allow 255 with the registry's host in front.
pub const REPOSITORY_BYTES_MAX: usize = 255;
/// Longest tag in bytes, by the specification.
pub const TAG_BYTES_MAX: usize = 128;

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Name of a repository: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository(String);

text_type!(Repository);

impl Repository {
    /// Parses a name.
    ///
    /// # Errors
    /// `NAME_INVALID`.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > REPOSITORY_BYTES_MAX {
            let message = format!("the repository's name has {} bytes, at most 255 are allowed", text.len());
            return Err(Fault::new(Code::NameInvalid, message));
        }
        if !text.split('/').all(is_component) {
            return Err(Fault::new(Code::NameInvalid, format!("{text:?} is no name of a repository")));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Returns whether a text is `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = text;
    loop {
        let word = rest.bytes().take_while(|byte| is_word(*byte)).count();
        rest = rest.get(word..).unwrap_or_default();
        if word == 0 {
            return false;
        }
        if rest.is_empty() {
            return true;
        }
        let dashes = rest.bytes().take_while(|byte| *byte == b'-').count();
        let separator = if dashes > 0 {
            dashes
        } else if rest.starts_with("__") {
            2
        } else if rest.starts_with(['.', '_']) {
            1
        } else {
            return false;
        };
        rest = rest.get(separator..).unwrap_or_default();
    }
}

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

text_type!(Tag);

impl Tag {
    /// Parses a tag; nothing where the text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let first = text.bytes().next()?;
        let is_tag = (first.is_ascii_alphanumeric() || first == b'_')
            && text.len() <= TAG_BYTES_MAX
            && text.bytes().all(is_rest);
        is_tag.then(|| Self(text.to_owned()))
    }
}

/// A hash function by which blobs may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Parses the part of a digest before the colon.
    ///
    /// # Errors
    /// `DIGEST_INVALID`.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == text).ok_or_else(|| {
            Fault::new(Code::DigestInvalid, format!("the algorithm {text:?} is not known; sha256 and sha512 are"))
        })
    }

    /// Returns its name in a digest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Returns the number of hexadecimal digits of a digest.
    #[must_use]
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// Digest of a blob or a manifest: the algorithm, a colon, and lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobDigest {
    text: String,
    algorithm: Algorithm,
}

impl BlobDigest {
    /// Parses a digest.
    ///
    /// # Errors
    /// `DIGEST_INVALID`.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let invalid = || Fault::new(Code::DigestInvalid, format!("{text:?} is no digest"));
        let (algorithm, hex) = text.split_once(':').ok_or_else(invalid)?;
        let algorithm = Algorithm::parse(algorithm)?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(is_hex) {
            return Err(invalid());
        }
        Ok(Self { text: text.to_owned(), algorithm })
    }

    /// Makes a digest from the sum's bytes; nothing where it has another length than the algorithm's.
    #[must_use]
    pub fn from_sum(algorithm: Algorithm, sum: &[u8]) -> Option<Self> {
        let mut text = format!("{}:", algorithm.as_str());
        for byte in sum {
            write!(text, "{byte:02x}").ok()?;
        }
        (sum.len().checked_mul(2) == Some(algorithm.hex_len())).then_some(Self { text, algorithm })
    }

    /// Returns the whole digest.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the algorithm.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// Returns where the blob is kept below a store: `sha256/ab/abcd…`.
    #[must_use]
    pub fn path(&self) -> String {
        let hex = self.hex();
        format!("{}/{}/{hex}", self.algorithm.as_str(), hex.get(..2).unwrap_or_default())
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A tag.
    Tag(Tag),
    /// Its digest.
    Digest(BlobDigest),
}

impl Reference {
    /// Parses what stands after `manifests/`.
    ///
    /// # Errors
    /// `DIGEST_INVALID` for something with a colon, else `MANIFEST_UNKNOWN`: nothing can have that tag.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.contains(':') {
            return BlobDigest::parse(text).map(Self::Digest);
        }
        let unknown = || Fault::new(Code::ManifestUnknown, format!("{text:?} is neither a tag nor a digest"));
        Tag::parse(text).map(Self::Tag).ok_or_else(unknown)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// Name of an upload session: a UUID in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(String);

text_type!(UploadId);

impl UploadId {
    /// Makes a random one (RFC 9562, version 4) from bytes that the caller supplies.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        let number = (u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62)) | (4 << 76) | (2 << 62);
        let hex = format!("{number:032x}");
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        Self(format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)))
    }

    /// Parses the name of a session; nothing where the text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_uuid = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => is_hex(byte),
            });
        is_uuid.then(|| Self(text.to_owned()))
    }
}
