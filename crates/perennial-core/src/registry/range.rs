//! Parts of a blob that are asked for, and where a chunk of an upload may go.

use super::fault::{Code, Fault};
use alloc::format;

/// What of a blob is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The bytes from `first` to `last`, both included.
    Some {
        /// The first byte.
        first: u64,
        /// The last byte.
        last: u64,
    },
    /// None: the range lies beyond the end.
    Beyond,
}

/// Returns what a `Range` header asks of a blob of `bytes` bytes (RFC 9110, section 14).
///
/// A header that is malformed, of another unit, or with several ranges is ignored, as the RFC allows.
#[must_use]
pub fn requested(header: Option<&str>, bytes: u64) -> Part {
    let Some((first, last)) =
        header.and_then(|text| text.trim().strip_prefix("bytes=")).and_then(|r| r.split_once('-'))
    else {
        return Part::Whole;
    };
    let end = bytes.saturating_sub(1);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => Part::Whole,
        (Some(first), Some(_) | None) if first >= bytes && (last.trim().is_empty() || number(last).is_some()) => {
            Part::Beyond
        }
        (Some(first), Some(last)) => Part::Some { first, last: last.min(end) },
        (Some(first), None) if last.trim().is_empty() => Part::Some { first, last: end },
        (None, Some(suffix)) if first.trim().is_empty() => {
            if suffix == 0 || bytes == 0 {
                return Part::Beyond;
            }
            Part::Some { first: bytes.saturating_sub(suffix), last: end }
        }
        (Some(_) | None, Some(_) | None) => Part::Whole,
    }
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// The `Content-Range` of a chunk: `^[0-9]+-[0-9]+$`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRange {
    /// The chunk's first byte within the blob.
    pub first: u64,
    /// Its last byte.
    pub last: u64,
}

impl ChunkRange {
    /// Parses the header.
    ///
    /// # Errors
    /// `BLOB_UPLOAD_INVALID`.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let invalid = || Fault::new(Code::BlobUploadInvalid, format!("Content-Range {text:?} is not FIRST-LAST"));
        let (first, last) = text.split_once('-').ok_or_else(invalid)?;
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(first) || !is_number(last) {
            return Err(invalid());
        }
        let range = Self { first: first.parse().map_err(|_| invalid())?, last: last.parse().map_err(|_| invalid())? };
        if range.first > range.last || range.last == u64::MAX {
            return Err(invalid());
        }
        Ok(range)
    }

    /// Returns the number of its bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }
}

/// Returns how many bytes a chunk shall have, where that is announced.
///
/// # Errors
/// 416 where the chunk does not begin where the upload stands, `SIZE_INVALID` where the two announcements differ.
pub fn chunk_bytes(stored: u64, range: Option<ChunkRange>, length: Option<u64>) -> Result<Option<u64>, Fault> {
    let Some(range) = range else { return Ok(length) };
    if range.first != stored {
        let message = format!("the chunk begins at byte {}, the upload stands at byte {stored}", range.first);
        return Err(Fault::new(Code::BlobUploadInvalid, message).with_status(416));
    }
    if length.is_some_and(|length| length != range.bytes()) {
        let message = format!("Content-Range says {} bytes, Content-Length another number", range.bytes());
        return Err(Fault::new(Code::SizeInvalid, message));
    }
    Ok(Some(range.bytes()))
}

/// Returns the `Range` header of an upload that has this many bytes.
#[must_use]
pub fn upload_range(bytes: u64) -> alloc::string::String {
    // An empty upload has no last byte; clients expect this.
    format!("0-{}", bytes.saturating_sub(1))
}
