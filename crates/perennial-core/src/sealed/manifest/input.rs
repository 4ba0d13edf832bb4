//! Bytes of a manifest as they are read: buffered, counted and hashed. No number read makes it allocate more than was
//! there to be read.

use super::super::io::Source;
use super::{Malformed, ReadError};
use alloc::vec;
use alloc::vec::Vec;

const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Input<S> {
    source: S,
    buffer: Vec<u8>,
    /// What of the buffer is hashed, used, filled.
    hashed: usize,
    used: usize,
    filled: usize,
    /// Offset of the buffer in the manifest.
    start: u64,
    hasher: blake3::Hasher,
}

impl<S: Source> Input<S> {
    pub(super) fn new(source: S) -> Self {
        let buffer = vec![0; BUFFER_BYTES];
        Self { source, buffer, hashed: 0, used: 0, filled: 0, start: 0, hasher: blake3::Hasher::new() }
    }

    /// Returns how many bytes were used.
    pub(super) fn offset(&self) -> u64 {
        self.start.saturating_add(self.used as u64)
    }

    /// Returns the hash of the bytes that were used.
    pub(super) fn hash(&mut self) -> [u8; 32] {
        self.hasher.update(self.buffer.get(self.hashed..self.used).unwrap_or_default());
        self.hashed = self.used;
        *self.hasher.finalize().as_bytes()
    }

    /// Returns whether nothing is left.
    pub(super) fn at_end(&mut self) -> Result<bool, ReadError<S::Error>> {
        if self.used == self.filled {
            self.refill()?;
        }
        Ok(self.used == self.filled)
    }

    fn refill(&mut self) -> Result<(), ReadError<S::Error>> {
        self.hasher.update(self.buffer.get(self.hashed..self.used).unwrap_or_default());
        self.start = self.offset();
        let filled = self.source.read(&mut self.buffer).map_err(ReadError::Source)?;
        (self.hashed, self.used, self.filled) = (0, 0, filled.min(self.buffer.len()));
        Ok(())
    }

    /// Returns some of the next bytes, at most `count` and at least one.
    fn some(&mut self, count: usize) -> Result<&[u8], ReadError<S::Error>> {
        if self.at_end()? {
            return Err(Malformed::Truncated.into());
        }
        let from = self.used;
        self.used = self.filled.min(from.saturating_add(count));
        Ok(self.buffer.get(from..self.used).unwrap_or_default())
    }

    pub(super) fn byte(&mut self) -> Result<u8, ReadError<S::Error>> {
        self.some(1)?.first().copied().ok_or_else(|| Malformed::Truncated.into())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError<S::Error>> {
        let mut array = [0; N];
        for byte in &mut array {
            *byte = self.byte()?;
        }
        Ok(array)
    }

    /// Reads so many bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<Vec<u8>, ReadError<S::Error>> {
        let mut bytes = Vec::with_capacity(count.min(BUFFER_BYTES));
        while bytes.len() < count {
            let rest = count.saturating_sub(bytes.len());
            bytes.extend_from_slice(self.some(rest)?);
        }
        Ok(bytes)
    }

    /// Reads a number in its shortest form.
    pub(super) fn number(&mut self) -> Result<u64, ReadError<S::Error>> {
        let mut number = 0_u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            let part = bits << shift;
            if part >> shift != bits || (byte == 0 && shift > 0) {
                break;
            }
            number |= part;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed::NotCanonical.into())
    }

    /// Reads a number of at most 32 bits.
    pub(super) fn short(&mut self) -> Result<u32, ReadError<S::Error>> {
        u32::try_from(self.number()?).map_err(|_| Malformed::NotCanonical.into())
    }

    /// Reads bytes with their count, which is at most `most`.
    pub(super) fn counted(&mut self, most: usize) -> Result<Vec<u8>, ReadError<S::Error>> {
        match usize::try_from(self.number()?) {
            Ok(count) if count <= most => self.bytes(count),
            Ok(_) | Err(_) => Err(Malformed::NotCanonical.into()),
        }
    }
}
