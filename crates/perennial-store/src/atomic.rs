//! Files that appear whole: written under a temporary name, synced, renamed, and their directory synced.

use rustix::fs::{AtFlags, Mode, OFlags};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

/// Writes `bytes` as `directory/name`, replacing a present file at once and durably.
///
/// # Errors
/// The I/O error of the step that failed; the present file is then as it was.
pub fn write(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    put(directory, name, bytes, std::fs::File::sync_all)?;
    rustix::fs::fsync(directory)?;
    Ok(())
}

/// Writes `bytes` as `directory/name` at once, but not yet durably: the caller syncs the whole file system.
///
/// # Errors
/// The I/O error of the step that failed; the present file is then as it was.
pub fn write_unsynced(directory: BorrowedFd<'_>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    put(directory, name, bytes, |_| Ok(()))
}

fn put(
    directory: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    sync: fn(&std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let temporary = format!(".{name}.new");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, &temporary, flags, Mode::from_raw_mode(0o600))?;
    let mut file = std::fs::File::from(fd);
    let written = file.write_all(bytes).and_then(|()| sync(&file));
    if let Err(error) = written {
        // The half-written temporary is of no use; that it may be left behind does no harm.
        rustix::fs::unlinkat(directory, &temporary, AtFlags::empty()).ok();
        return Err(error);
    }
    rustix::fs::renameat(directory, &temporary, directory, name)?;
    Ok(())
}

/// Syncs a directory, so that the names in it are durable.
///
/// # Errors
/// The I/O error of opening or syncing it.
pub fn sync_directory(path: &Path) -> std::io::Result<()> {
    let fd = open_directory(path)?;
    rustix::fs::fsync(fd.as_fd())?;
    Ok(())
}

/// Opens a directory without following a link at its end.
///
/// # Errors
/// The I/O error of opening it.
pub fn open_directory(path: &Path) -> std::io::Result<rustix::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
