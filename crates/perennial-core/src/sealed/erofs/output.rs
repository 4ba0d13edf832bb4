//! Bytes of an image in order of their offsets, with zeros between.

use super::super::io::Sink;
use super::crc::crc32c;
use super::{BLOCK, SUPERBLOCK};
use alloc::vec::Vec;

/// Bytes collected before they are handed to the sink; the first block is held whole, to be summed up.
const BUFFER_BYTES: usize = 64 * 1024;
/// Offset of the checksum in the superblock.
const CHECKSUM_AT: usize = 4;

#[derive(Debug)]
pub(super) struct Output<K> {
    sink: K,
    buffer: Vec<u8>,
    offset: u64,
    first: bool,
}

impl<K: Sink> Output<K> {
    pub(super) const fn new(sink: K) -> Self {
        Self { sink, buffer: Vec::new(), offset: 0, first: true }
    }

    /// Returns the offset of what comes next.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn into_sink(self) -> K {
        self.sink
    }

    /// Goes on to an offset; there is nothing to do if it was passed.
    pub(super) fn skip_to(&mut self, offset: u64) -> Result<(), K::Error> {
        while self.offset < offset {
            let zeros = offset.saturating_sub(self.offset).min(BLOCK);
            self.put(ZEROS.get(..usize::try_from(zeros).unwrap_or(ZEROS.len())).unwrap_or(&ZEROS))?;
        }
        Ok(())
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), K::Error> {
        self.buffer.extend_from_slice(bytes);
        self.offset = self.offset.saturating_add(bytes.len() as u64);
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> Result<(), K::Error> {
        if self.first {
            self.first = false;
            self.sign();
        }
        self.sink.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the checksum of the first block into the superblock.
    fn sign(&mut self) {
        let (from, to) = (usize::try_from(SUPERBLOCK).unwrap_or_default(), usize::try_from(BLOCK).unwrap_or_default());
        let Some(block) = self.buffer.get_mut(from..to) else { return };
        let checksum = crc32c(block).to_le_bytes();
        for (to, from) in block.iter_mut().skip(CHECKSUM_AT).zip(checksum) {
            *to = from;
        }
    }
}

static ZEROS: [u8; 4096] = [0; 4096];
