//! A file or a tree copied out of a view of a container, with all its metadata.

use super::DIR_FLAGS;
use super::copy::{Copier, Place};
use super::cursor::EntryStat;
use super::error::{EntryPath, TreeError};
use super::measure::Measure;
use super::remove::remove_at;
use super::stack::{Data, Output, flatten};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The directory of a path the caller names may be reached through symbolic links.
const FOLLOWING: OFlags = DIR_FLAGS.difference(OFlags::NOFOLLOW);

/// Copies what a container sees at `path` to `dst`, which must not exist yet.
///
/// Symbolic links on the way are followed as the container would, and never lead out of `root`; if the last component
/// is one, the link itself is copied.
///
/// # Errors
/// If it is not there, or anything cannot be read or set at the destination; nothing is left there then.
pub fn copy_out(root: BorrowedFd<'_>, path: &Path, dst: &Path) -> Result<Measure, TreeError> {
    let fail = |action, errno| TreeError::system(action, EntryPath::from(path), errno);
    let at_dst = |action, errno| TreeError::system(action, EntryPath::from(dst), errno);
    let (dst_dir, dst_name) = parent_of(dst).map_err(|errno| at_dst("find", errno))?;
    let beneath = |path: &Path, flags: OFlags| {
        openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    };
    let to = Place { dir: dst_dir.as_fd(), name: &dst_name };
    let Some(name) = path.file_name().and_then(|name| CString::new(name.as_bytes()).ok()) else {
        let dir = beneath(path, FOLLOWING).map_err(|errno| fail("open", errno))?;
        return copy_dir(&dir, to, dst);
    };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("/"));
    let parent = beneath(parent, FOLLOWING).map_err(|errno| fail("find", errno))?;
    let stat = EntryStat::of(parent.as_fd(), &name).map_err(|errno| fail("find", errno))?;
    if stat.is_dir() {
        let dir = openat(&parent, &name, DIR_FLAGS, Mode::empty()).map_err(|errno| fail("open", errno))?;
        return copy_dir(&dir, to, dst);
    }
    if EntryStat::find(to.dir, to.name).map_err(|errno| at_dst("look at", errno))?.is_some() {
        return Err(at_dst("create", Errno::EXIST));
    }
    let from = Place { dir: parent.as_fd(), name: &name };
    let copied = Copier::of_views().copy(from, to, &stat, &|| EntryPath::from(path));
    or_clean_up(copied, to)?;
    Ok(Measure { bytes: stat.allocated, entries: 1, ..Measure::default() })
}

fn copy_dir(from: &OwnedFd, to: Place<'_>, dst: &Path) -> Result<Measure, TreeError> {
    let fail = |errno| TreeError::system("create", EntryPath::from(dst), errno);
    mkdirat(to.dir, to.name, Mode::RWXU).map_err(fail)?;
    let made = openat(to.dir, to.name, DIR_FLAGS, Mode::empty()).map_err(fail)?;
    or_clean_up(
        flatten(&[from.as_fd()], &[], Output { dst: made.as_fd(), data: Data::Copy }, Copier::of_views(), &mut |_| {}),
        to,
    )
}

fn or_clean_up<T>(copied: Result<T, TreeError>, to: Place<'_>) -> Result<T, TreeError> {
    if copied.is_err() {
        // The first error is the one that tells; a rest that cannot be removed either is in plain sight.
        remove_at(to.dir, to.name).unwrap_or_default();
    }
    copied
}

fn parent_of(path: &Path) -> Result<(OwnedFd, CString), Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => openat(CWD, parent, FOLLOWING, Mode::empty())?,
        Some(_) | None => openat(CWD, c".", FOLLOWING, Mode::empty())?,
    };
    Ok((dir, name))
}
