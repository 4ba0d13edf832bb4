//! Moves the content of files: whole, or only its runs of data with the holes kept.

use crate::tarball::Extent;
use rustix::fs::{self, SeekFrom};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd as _, OwnedFd};

/// Size of one read: large enough that system calls do not count.
const CHUNK_BYTES: usize = 256 * 1024;

/// Writes exactly `length` bytes of `input` to `file`, at its position.
pub(crate) fn write_exact(input: &mut impl Read, file: &OwnedFd, length: u64) -> io::Result<()> {
    let mut left = length;
    let mut buffer = vec![0_u8; CHUNK_BYTES.min(usize::try_from(length).unwrap_or(CHUNK_BYTES))];
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..wanted).unwrap_or_default();
        let count = match input.read(part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        FdWriter(file).write_all(part.get(..count).unwrap_or_default())?;
        left = left.saturating_sub(u64::try_from(count).unwrap_or(0));
    }
    Ok(())
}

/// Writes the stored runs of a sparse file of `size` bytes to their places in `file`, which is empty.
pub(crate) fn write_extents(input: &mut impl Read, file: &OwnedFd, extents: &[Extent], size: u64) -> io::Result<()> {
    for extent in extents {
        fs::seek(file, SeekFrom::Start(extent.offset))?;
        write_exact(input, file, extent.length)?;
    }
    Ok(fs::ftruncate(file, size)?)
}

/// Copies `from` of `size` bytes to `to`, which is empty, keeping holes. Returns the bytes of data copied.
/// Where `sum` is given, the whole content (holes as zeros) is added to it.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd, size: u64, mut sum: Option<&mut Sha256>) -> io::Result<u64> {
    let mut at = 0;
    let mut copied: u64 = 0;
    while at < size {
        let start = match fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            // Only a hole is left.
            Err(Errno::NXIO) => size,
            // Some file systems cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        if let Some(sum) = sum.as_deref_mut() {
            add_zeros(sum, start - at);
        }
        if start >= size {
            break;
        }
        let end = match fs::seek(from, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => size,
            Err(error) => return Err(error.into()),
        };
        fs::seek(from, SeekFrom::Start(start))?;
        fs::seek(to, SeekFrom::Start(start))?;
        match sum.as_deref_mut() {
            Some(sum) => write_exact(&mut Summed { file: FdReader(from), sum }, to, end - start)?,
            None => write_exact(&mut FdReader(from), to, end - start)?,
        }
        copied = copied.saturating_add(end - start);
        at = end;
    }
    fs::ftruncate(to, size)?;
    Ok(copied)
}

fn add_zeros(sum: &mut Sha256, count: u64) {
    let zeros = [0_u8; 64 * 1024];
    let mut left = count;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
        sum.update(zeros.get(..part).unwrap_or_default());
        left = left.saturating_sub(u64::try_from(part).unwrap_or(left));
    }
}

struct Summed<'a> {
    file: FdReader<'a>,
    sum: &'a mut Sha256,
}

impl Read for Summed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.sum.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}

struct FdReader<'a>(&'a OwnedFd);

impl Read for FdReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0.as_fd(), buffer)?)
    }
}

struct FdWriter<'a>(&'a OwnedFd);

impl Write for FdWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0.as_fd(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
