//! BLAKE3 of an open file, holes included but not read; and copies that are hashed on the way. The whole file is
//! hashed, always: what takes a short way is in `changed`.

use crate::tree::cursor::EntryStat;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::BorrowedFd;
use rustix::fs::{SeekFrom, ftruncate, seek};
use rustix::io::{Errno, pread, pwrite};

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
    hash(Reading::new(file, stop)).map(|hashed| (hashed.id, hashed.size))
}

/// Copies a file's content into an empty file, holes as holes, and returns the name of what was copied, and its length
/// in bytes. `stop` is asked after every piece.
///
/// # Errors
/// [`HashError`]; the copy is incomplete.
pub fn copy_file(
    file: BorrowedFd<'_>,
    copy: BorrowedFd<'_>,
    stop: &dyn Fn() -> bool,
) -> Result<(ObjectId, u64), HashError> {
    let stat = EntryStat::of_open(file)?;
    if stat.allocated < stat.size {
        // The last of it may be a hole.
        ftruncate(copy, stat.size)?;
    }
    hash(Reading { copy: Some(copy), ..Reading::new(file, stop) }).map(|hashed| (hashed.id, hashed.size))
}

/// A content that was hashed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hashed {
    pub(super) id: ObjectId,
    pub(super) size: u64,
    /// Bytes that were read for it: what is not in holes.
    pub(super) read: u64,
}

/// Hashes a whole file.
pub(super) fn hash(mut reading: Reading<'_>) -> Result<Hashed, HashError> {
    let mut hasher = blake3::Hasher::new();
    let before = reading.begin()?;
    reading.stretch(0, before.size, &mut |piece| {
        hasher.update(piece);
    })?;
    reading.end(&before)?;
    Ok(Hashed { id: ObjectId::new(*hasher.finalize().as_bytes()), size: before.size, read: reading.read })
}

/// A file that is read in stretches; holes are not read.
pub(super) struct Reading<'a> {
    file: BorrowedFd<'a>,
    /// Gets what is read, at the same place.
    copy: Option<BorrowedFd<'a>>,
    stop: &'a dyn Fn() -> bool,
    /// Whether there are holes to look for.
    sparse: bool,
    buffer: Vec<u8>,
    /// Bytes read so far.
    pub(super) read: u64,
}

impl<'a> Reading<'a> {
    pub(super) const fn new(file: BorrowedFd<'a>, stop: &'a dyn Fn() -> bool) -> Self {
        Self { file, copy: None, stop, sparse: false, buffer: Vec::new(), read: 0 }
    }

    /// Looks at the file before anything is read.
    pub(super) fn begin(&mut self) -> Result<EntryStat, HashError> {
        let stat = EntryStat::of_open(self.file)?;
        self.sparse = stat.allocated < stat.size;
        Ok(stat)
    }

    /// Makes sure that the file is as it was when reading began.
    pub(super) fn end(&self, before: &EntryStat) -> Result<(), HashError> {
        let after = EntryStat::of_open(self.file)?;
        if (after.size, after.mtime) == (before.size, before.mtime) { Ok(()) } else { Err(HashError::Changed) }
    }

    /// Hands on all bytes of a stretch, in pieces.
    pub(super) fn stretch(&mut self, from: u64, until: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), HashError> {
        if !self.sparse {
            return self.data(from, until, take);
        }
        let mut offset = from;
        while offset < until {
            let data = match seek(self.file, SeekFrom::Data(offset)) {
                Ok(data) => data.min(until),
                Err(Errno::NXIO) => until,
                // A file system that does not tell holes.
                Err(Errno::INVAL) => return self.data(offset, until, take),
                Err(errno) => return Err(errno.into()),
            };
            self.hole(data.saturating_sub(offset), take)?;
            if data == until {
                break;
            }
            let hole = seek(self.file, SeekFrom::Hole(data))?.min(until);
            if hole <= data {
                return Err(HashError::Changed);
            }
            self.data(data, hole, take)?;
            offset = hole;
        }
        Ok(())
    }

    fn hole(&self, mut left: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), HashError> {
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            take(ZEROS.get(..piece).unwrap_or_default());
            left = left.saturating_sub(u64::try_from(piece).unwrap_or(left));
            self.may_go_on()?;
        }
        Ok(())
    }

    fn data(&mut self, from: u64, until: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), HashError> {
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
                    let piece = self.buffer.get(..length).unwrap_or_default();
                    take(piece);
                    if let Some(copy) = self.copy {
                        write_at(copy, piece, offset)?;
                    }
                    let length = u64::try_from(length).unwrap_or(0);
                    self.read = self.read.saturating_add(length);
                    offset = offset.saturating_add(length);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.may_go_on()?;
        }
        Ok(())
    }

    /// Fails where the caller asks to stop.
    pub(super) fn may_go_on(&self) -> Result<(), HashError> {
        if (self.stop)() { Err(HashError::Stopped) } else { Ok(()) }
    }
}

fn write_at(file: BorrowedFd<'_>, mut piece: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !piece.is_empty() {
        match pwrite(file, piece, offset) {
            Ok(0) => return Err(Errno::IO),
            Ok(length) => {
                piece = piece.get(length..).unwrap_or_default();
                offset = offset.saturating_add(u64::try_from(length).unwrap_or(0));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
