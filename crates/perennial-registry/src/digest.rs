//! SHA-256 sums of what passes by: readers and writers that count and sum, so that nothing is read twice to be checked.

use perennial_core::id::Digest;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};

/// Returns the digest of bytes in memory.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> Digest {
    finish(Sha256::new_with_prefix(bytes))
}

/// Returns the digest of everything given to `hasher`.
pub(crate) fn finish(hasher: Sha256) -> Digest {
    Digest::from_sha256(&hasher.finalize().into())
}

/// Returns the OCI ChainID of a layer on top of `below`, which identifies a layer together with all the layers under
/// it (image-spec, `config.md`, "Layer ChainID").
#[must_use]
pub fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => of_bytes(format!("{below} {diff_id}").as_bytes()),
    }
}

/// Passes bytes on, counting and summing them.
pub(crate) struct HashReader<R> {
    input: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R: Read> HashReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, hasher: Sha256::new(), bytes: 0 }
    }

    /// Returns how many bytes have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.bytes
    }

    /// Reads to the end, at most `bytes_max` more bytes; returns whether the end was reached.
    pub(crate) fn drain(&mut self, bytes_max: u64) -> io::Result<bool> {
        let mut left = bytes_max;
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let count = self.read(&mut buffer)?;
            if count == 0 {
                return Ok(true);
            }
            let count = u64::try_from(count).unwrap_or(u64::MAX);
            if count > left {
                return Ok(false);
            }
            left -= count;
        }
    }

    /// Returns the digest and the length of what has passed so far.
    pub(crate) fn take_digest(&self) -> (Digest, u64) {
        (finish(self.hasher.clone()), self.bytes)
    }

    /// Returns the digest and the length of what has passed.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (finish(self.hasher), self.bytes)
    }
}

impl<R: Read> Read for HashReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}

/// Passes bytes on to a writer, counting and summing them.
pub(crate) struct HashWriter<W> {
    output: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> HashWriter<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, hasher: Sha256::new(), bytes: 0 }
    }

    /// Returns the writer, and the digest and the length of what has passed.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (self.output, finish(self.hasher), self.bytes)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.output.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
