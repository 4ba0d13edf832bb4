//! BLAKE3 of an open file, holes included but not read.

use crate::tree::cursor::EntryStat;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::BorrowedFd;
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};

/// Bytes read and hashed at once: what BLAKE3 takes at full width, and small enough to stay in a core's cache.
const CHUNK_BYTES: usize = 256 * 1024;
/// What holes read as.
static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// Why a file could not be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// A system call failed.
    #[error("the file cannot be read")]
    System(#[from] Errno),
    /// The file was changed meanwhile.
    #[error("the file was changed while it was read")]
    Changed,
    /// The caller asked to stop.
    #[error("reading was stopped")]
    Stopped,
}

/// Returns the name of a file's content, and its length in bytes. `stop` is asked after every piece.
///
/// # Errors
/// [`HashError`].
pub fn hash_file(file: BorrowedFd<'_>, stop: &dyn Fn() -> bool) -> Result<(ObjectId, u64), HashError> {
    let before = EntryStat::of_open(file)?;
    let mut hasher = Hasher { file, stop, inner: blake3::Hasher::new(), buffer: Vec::new() };
    if before.allocated < before.size {
        hasher.sparse(before.size)?;
    } else {
        hasher.data(0, before.size)?;
    }
    let after = EntryStat::of_open(file)?;
    if (after.size, after.mtime) != (before.size, before.mtime) {
        return Err(HashError::Changed);
    }
    Ok((ObjectId::new(*hasher.inner.finalize().as_bytes()), before.size))
}

struct Hasher<'a> {
    file: BorrowedFd<'a>,
    stop: &'a dyn Fn() -> bool,
    inner: blake3::Hasher,
    buffer: Vec<u8>,
}

impl Hasher<'_> {
    fn sparse(&mut self, size: u64) -> Result<(), HashError> {
        let mut offset = 0;
        while offset < size {
            let data = match seek(self.file, SeekFrom::Data(offset)) {
                Ok(data) => data.min(size),
                Err(Errno::NXIO) => size,
                // A file system that does not tell holes.
                Err(Errno::INVAL) => return self.data(offset, size),
                Err(errno) => return Err(errno.into()),
            };
            self.hole(data.saturating_sub(offset))?;
            if data == size {
                break;
            }
            let hole = seek(self.file, SeekFrom::Hole(data))?.min(size);
            if hole <= data {
                return Err(HashError::Changed);
            }
            self.data(data, hole)?;
            offset = hole;
        }
        Ok(())
    }

    fn hole(&mut self, mut left: u64) -> Result<(), HashError> {
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            self.inner.update(ZEROS.get(..piece).unwrap_or_default());
            left = left.saturating_sub(u64::try_from(piece).unwrap_or(left));
            self.may_go_on()?;
        }
        Ok(())
    }

    fn data(&mut self, from: u64, until: u64) -> Result<(), HashError> {
        let mut offset = from;
        let largest = usize::try_from(until.saturating_sub(from)).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        if self.buffer.len() < largest {
            self.buffer.resize(largest, 0);
        }
        while offset < until {
            let wanted = usize::try_from(until.saturating_sub(offset)).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let buffer = self.buffer.get_mut(..wanted).unwrap_or_default();
            match pread(self.file, buffer, offset) {
                Ok(0) => return Err(HashError::Changed),
                Ok(length) => {
                    self.inner.update(self.buffer.get(..length).unwrap_or_default());
                    offset = offset.saturating_add(u64::try_from(length).unwrap_or(0));
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.may_go_on()?;
        }
        Ok(())
    }

    fn may_go_on(&self) -> Result<(), HashError> {
        if (self.stop)() { Err(HashError::Stopped) } else { Ok(()) }
    }
}
