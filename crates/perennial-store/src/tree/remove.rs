//! Deletion of trees: of any depth, with closed directories, with immutable files; and the trash before it.

use super::attrs::unlock;
use super::cursor::{Cursor, EntryStat, Name, read_names};
use super::error::{EntryPath, PathTrail, TreeError};
use super::{DIR_FLAGS, copy};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The directory of a path the caller names may be a symbolic link; what is in the tree is never followed.
const PARENT_FLAGS: OFlags = DIR_FLAGS.difference(OFlags::NOFOLLOW);
/// Names tried in the trash before giving up; more than entries of one inode number can be there.
const TRASH_TRIES_MAX: u32 = 10_000;

/// Removes a file or a tree; there being none is fine.
///
/// # Errors
/// If something cannot be removed. What was removed stays removed; the call can be repeated.
pub fn remove_tree(path: &Path) -> Result<(), TreeError> {
    let (parent, name) = split(path)?;
    match openat(CWD, &parent, PARENT_FLAGS, Mode::empty()) {
        Ok(dir) => remove_at(dir.as_fd(), &name),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(TreeError::system("open", EntryPath::from(parent.as_path()), errno)),
    }
}

/// Removes an entry of an open directory with everything in it; there being none is fine.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), TreeError> {
    let mut path = PathTrail::default();
    match unlink(dir, name, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(TreeError::system("remove", path.join(name), errno)),
    }
    let mut cursor = Cursor::new(dir).map_err(|error| error.at(path.here()))?;
    let mut frames = vec![vec![Name { name: name.to_owned(), is_dir: Some(true) }]];
    let mut way: Vec<CString> = Vec::new();
    while let Some(names) = frames.last_mut() {
        let Some(entry) = names.pop() else {
            frames.pop();
            let Some(own) = way.pop() else { break };
            cursor.leave().map_err(|error| error.at(path.here()))?;
            path.pop();
            unlink(cursor.fd(), &own, AtFlags::REMOVEDIR)
                .map_err(|errno| TreeError::system("remove", path.join(&own), errno))?;
            continue;
        };
        if entry.is_dir != Some(true) {
            match unlink(cursor.fd(), &entry.name, AtFlags::empty()) {
                Ok(()) => continue,
                Err(Errno::ISDIR) => {}
                Err(errno) => return Err(TreeError::system("remove", path.join(&entry.name), errno)),
            }
        }
        cursor.enter(&entry.name).map_err(|error| error.at(path.join(&entry.name)))?;
        path.push(&entry.name);
        frames.push(read_names(cursor.fd()).map_err(|errno| TreeError::system("list", path.here(), errno))?);
        way.push(entry.name);
    }
    Ok(())
}

/// Unlinks, after clearing the flags that forbid it where there are any; a missing entry is fine.
fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
    match unlinkat(dir, name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::PERM) => {
            unlock(dir)?;
            unlock_entry(dir, name)?;
            match unlinkat(dir, name, flags) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno),
            }
        }
        Err(errno) => Err(errno),
    }
}

fn unlock_entry(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let stat = EntryStat::of(dir, name)?;
    if stat.is_dir() {
        unlock(openat(dir, name, DIR_FLAGS, Mode::empty())?.as_fd())
    } else if stat.file_type() == rustix::fs::FileType::RegularFile {
        unlock(copy::open_file(copy::Place { dir, name })?.as_fd())
    } else {
        Ok(())
    }
}

/// Moves a file or a tree into the trash under a name of its own, and returns where it is; `None` if it was not there.
///
/// # Errors
/// If it cannot be renamed; it is where it was then.
pub fn move_to_trash(path: &Path, trash_dir: &Path) -> Result<Option<PathBuf>, TreeError> {
    let (parent, name) = split(path)?;
    let dir = match openat(CWD, &parent, PARENT_FLAGS, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(TreeError::system("open", EntryPath::from(parent.as_path()), errno)),
    };
    let trash = super::open_tree(trash_dir)?;
    let whole = || EntryPath::from(path);
    match trash_at(dir.as_fd(), &name, trash.as_fd()) {
        Ok(trashed) => Ok(Some(trash_dir.join(std::ffi::OsStr::from_bytes(trashed.to_bytes())))),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(TreeError::system("move to the trash", whole(), errno)),
    }
}

/// Renames an entry into the trash; returns its name there.
pub(crate) fn trash_at(dir: BorrowedFd<'_>, name: &CStr, trash: BorrowedFd<'_>) -> Result<CString, Errno> {
    let stat = EntryStat::of(dir, name)?;
    for attempt in 0..TRASH_TRIES_MAX {
        let trashed = CString::new(format!("{:x}-{attempt}", stat.ino)).unwrap_or_default();
        match renameat_with(dir, name, trash, &trashed, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(trashed),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

/// Renames an entry over whatever has its name in another directory, other than a directory.
///
/// Two names of one file are left alone by `rename`, so the old name is unlinked then.
pub(crate) fn rename_over(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let (old, new) = (EntryStat::of(from, name)?, EntryStat::find(to, name)?);
    renameat(from, name, to, name)?;
    match new {
        Some(new) if (new.dev, new.ino) == (old.dev, old.ino) => unlinkat(from, name, AtFlags::empty()),
        Some(_) | None => Ok(()),
    }
}

fn split(path: &Path) -> Result<(PathBuf, CString), TreeError> {
    let fail = || TreeError::system("find", EntryPath::from(path), Errno::INVAL);
    let name = path.file_name().ok_or_else(fail)?;
    let name = CString::new(name.as_bytes()).map_err(|_| fail())?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        Some(_) | None => PathBuf::from("."),
    };
    Ok((parent, name))
}
