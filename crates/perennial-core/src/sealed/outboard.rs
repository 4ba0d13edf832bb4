//! The bytes of an outboard: the values of a big object's groups, kept beside it.
//!
//! It is made from the object and can be made again at any time. Nothing is taken from it before it has been read to
//! its end, its checksum fits, and the name that its values make is the object's. The layout is described in
//! `docs/formats/perennial-outboard.md`.

use super::groups::{Merge, Value, count};
use super::io::{Sink, Source};
use super::object::{OBJECT_ID_BYTES, ObjectId};
use alloc::vec;
use alloc::vec::Vec;

/// The version this release writes.
pub const VERSION: u32 = 1;
/// Contents of at most so many bytes have no outboard: they are hashed in some milliseconds.
pub const CONTENT_BYTES_MAX_WITHOUT: u64 = 8 << 20;
/// An outboard takes at most one part in so many of what its content takes on disk: of a content without holes it takes
/// one in 2,048, and of one that is nearly all holes it could take more than the content.
const PARTS_MIN: u64 = 256;
/// What the name of an outboard ends in; the rest is the name of the object.
pub const SUFFIX: &str = ".outboard";

const MAGIC: &[u8; 8] = b"PRNLOUTB";
/// Flags this release understands: there is none yet.
const FLAGS: [u8; 4] = [0; 4];
/// Magic, version, flags, length of the content.
const HEADER_BYTES: usize = 8 + 4 + 4 + 8;
/// Bytes of the value of a group.
const VALUE_BYTES: u64 = 32;
/// Bytes written or read at once.
const BUFFER_BYTES: usize = 16 * 1024;

/// Why an outboard cannot be used; the content is hashed whole then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutboardError<E> {
    /// The bytes could not be read.
    #[error("the outboard cannot be read")]
    Source(#[source] E),
    /// It does not begin as an outboard of this release, or of a content of this length.
    #[error("the outboard is of another content or another release")]
    Header,
    /// It is shorter or longer than its content needs.
    #[error("the outboard has another length")]
    Length,
    /// Bytes have changed.
    #[error("the checksum does not fit the outboard")]
    Checksum,
}

/// Returns whether an object of so many bytes may have an outboard.
#[must_use]
pub const fn may_be_kept(content_bytes: u64) -> bool {
    content_bytes > CONTENT_BYTES_MAX_WITHOUT
}

/// Returns whether an outboard is made for a content of so many bytes that takes so many on disk.
#[must_use]
pub const fn is_kept(content_bytes: u64, allocated_bytes: u64) -> bool {
    let values_bytes = count(content_bytes).saturating_mul(VALUE_BYTES);
    may_be_kept(content_bytes) && values_bytes.saturating_mul(PARTS_MIN) <= allocated_bytes
}

fn header(content_bytes: u64) -> Vec<u8> {
    [MAGIC.as_slice(), &VERSION.to_le_bytes(), &FLAGS, &content_bytes.to_le_bytes()].concat()
}

/// Writes an outboard.
#[derive(Debug)]
pub struct Writer<S> {
    sink: S,
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
}

impl<S: Sink> Writer<S> {
    /// Begins the outboard of a content of so many bytes.
    pub fn new(sink: S, content_bytes: u64) -> Self {
        Self { sink, buffer: header(content_bytes), hasher: blake3::Hasher::new() }
    }

    /// Takes the value of the next group.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn push(&mut self, value: Value) -> Result<(), S::Error> {
        self.buffer.extend_from_slice(&value.0);
        if self.buffer.len() < BUFFER_BYTES { Ok(()) } else { self.flush() }
    }

    /// Ends the outboard.
    ///
    /// # Errors
    /// Those of the sink.
    pub fn finish(mut self) -> Result<S, S::Error> {
        self.flush()?;
        self.sink.write(self.hasher.finalize().as_bytes())?;
        Ok(self.sink)
    }

    fn flush(&mut self) -> Result<(), S::Error> {
        self.hasher.update(&self.buffer);
        let written = self.sink.write(&self.buffer);
        self.buffer.clear();
        written
    }
}

/// Reads an outboard. What it yields may be used only when [`Reader::finish`] returns the name of the object.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    buffer: Vec<u8>,
    used: usize,
    filled: usize,
    left: u64,
    hasher: blake3::Hasher,
    merge: Merge,
}

impl<S: Source> Reader<S> {
    /// Begins to read the outboard of a content of so many bytes.
    ///
    /// # Errors
    /// [`OutboardError`].
    pub fn new(source: S, content_bytes: u64) -> Result<Self, OutboardError<S::Error>> {
        let (hasher, merge) = (blake3::Hasher::new(), Merge::default());
        let left = count(content_bytes);
        let mut reader = Self { source, buffer: vec![0; BUFFER_BYTES], used: 0, filled: 0, left, hasher, merge };
        let mut found = [0; HEADER_BYTES];
        reader.exactly(&mut found)?;
        if found != header(content_bytes).as_slice() {
            return Err(OutboardError::Header);
        }
        reader.hasher.update(&found);
        Ok(reader)
    }

    /// Returns the value of the next group; `None` after the last.
    ///
    /// # Errors
    /// [`OutboardError`].
    pub fn next_value(&mut self) -> Result<Option<Value>, OutboardError<S::Error>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left = self.left.saturating_sub(1);
        let mut value = [0; 32];
        self.exactly(&mut value)?;
        self.hasher.update(&value);
        self.merge.push(Value(value));
        Ok(Some(Value(value)))
    }

    /// Reads what is left and returns the name that the values make; `None` where so few make none.
    ///
    /// # Errors
    /// [`OutboardError`].
    pub fn finish(mut self) -> Result<Option<ObjectId>, OutboardError<S::Error>> {
        while self.next_value()?.is_some() {}
        let mut checksum = [0; OBJECT_ID_BYTES];
        self.exactly(&mut checksum)?;
        if self.hasher.finalize() != checksum {
            return Err(OutboardError::Checksum);
        }
        if self.used < self.filled || self.source.read(&mut self.buffer).map_err(OutboardError::Source)? > 0 {
            return Err(OutboardError::Length);
        }
        Ok(self.merge.finish())
    }

    fn exactly(&mut self, mut to: &mut [u8]) -> Result<(), OutboardError<S::Error>> {
        while !to.is_empty() {
            if self.used >= self.filled {
                let filled = self.source.read(&mut self.buffer).map_err(OutboardError::Source)?;
                (self.used, self.filled) = (0, filled.min(self.buffer.len()));
                if self.filled == 0 {
                    return Err(OutboardError::Length);
                }
            }
            let from = self.buffer.get(self.used..self.filled).unwrap_or_default();
            let length = from.len().min(to.len());
            let Some((head, rest)) = to.split_at_mut_checked(length) else { break };
            head.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            self.used = self.used.saturating_add(length);
            to = rest;
        }
        Ok(())
    }
}
