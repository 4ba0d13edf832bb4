//! Keeping the content of an open file as an object: linked where possible, cloned or copied where not.

use super::{ObjectError, Objects, hash};
use crate::tree::copy::Copier;
use crate::tree::cursor::EntryStat;
use crate::tree::error::{EntryPath, TreeError};
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fsync, linkat, mkdirat, openat};
use rustix::io::Errno;
use rustix::path::Arg as _;
use std::ffi::CString;
use std::os::fd::AsRawFd as _;

/// Tries to give an object its name: what is in the way is looked at, mended and tried again.
const NAME_TRIES_MAX: u32 = 4;

/// How an object came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was there already.
    Present,
    /// It is a further name of the file.
    Linked,
    /// It is a copy of the file, or a clone where the file system shares blocks.
    Copied,
}

/// A content that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub id: ObjectId,
    /// Its length, in bytes.
    pub size: u64,
    /// How it came to be there.
    pub how: How,
}

impl Objects {
    /// Keeps the content of an open regular file; `stop` ends it early. The caller calls [`Objects::sync`] before it
    /// records the object.
    ///
    /// # Errors
    /// [`ObjectError`]; what was there before is there then, too.
    pub fn put(&self, file: BorrowedFd<'_>, stop: &dyn Fn() -> bool) -> Result<Stored, ObjectError> {
        let (id, size) = hash::hash_file(file, stop)?;
        let how = self.put_as(file, &id, size)?;
        Ok(Stored { id, size, how })
    }

    /// Keeps a file whose content is known to have this name, because it was hashed just now.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn put_as(&self, file: BorrowedFd<'_>, id: &ObjectId, size: u64) -> Result<How, ObjectError> {
        let fail = |errno| ObjectError::system("store", id)(errno);
        match self.name(file, id, size) {
            Ok(true) => return Ok(How::Linked),
            Ok(false) => return Ok(How::Present),
            // Too many names, another file system, or a file that takes no further name.
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM) => {}
            Err(errno) => return Err(fail(errno)),
        }
        if self.stat(id)?.is_some_and(|present| present.size == size) {
            return Ok(How::Present);
        }
        let copy = self.copy(file, id, size)?;
        let named = self.name(copy.as_fd(), id, size).map_err(fail)?;
        Ok(if named { How::Copied } else { How::Present })
    }

    /// Gives an open file the name of an object; returns whether the name was free. What bears the name already counts
    /// as the object if it has its length, and makes way otherwise: it was cut short.
    fn name(&self, file: BorrowedFd<'_>, id: &ObjectId, size: u64) -> Result<bool, Errno> {
        let path = id.relative_path();
        for _ in 0..NAME_TRIES_MAX {
            match self.link(file, &path) {
                Ok(()) => return Ok(true),
                Err(Errno::NOENT) => {
                    let fan_out = path.split('/').next().unwrap_or_default();
                    match mkdirat(&self.dir, fan_out, Mode::RWXU) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(Errno::EXIST) => {
                    let name = CString::new(path.as_str()).unwrap_or_default();
                    match EntryStat::find(self.dir.as_fd(), &name)? {
                        Some(stat) if stat.file_type() == FileType::RegularFile && stat.size == size => {
                            return Ok(false);
                        }
                        Some(_) => rustix::fs::unlinkat(&self.dir, &path, AtFlags::empty())?,
                        None => {}
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::BUSY)
    }

    fn link(&self, file: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
        match linkat(file, c"", &self.dir, path, AtFlags::EMPTY_PATH) {
            // Without the capability that this needs, or for a file without a name (`O_TMPFILE`), by way of /proc.
            Err(Errno::NOENT) => {
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, from.as_str().as_cow_c_str()?, &self.dir, path, AtFlags::SYMLINK_FOLLOW)
            }
            done => done,
        }
    }

    /// Copies a file to one without a name, synced: a name must never stand for less than the content.
    fn copy(&self, file: BorrowedFd<'_>, id: &ObjectId, size: u64) -> Result<OwnedFd, ObjectError> {
        let fail = |errno| ObjectError::system("copy", id)(errno);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let copy = openat(&self.dir, c".", flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
        let path = || EntryPath::from_bytes(id.relative_path().into_bytes());
        Copier::default().copy_data(file, copy.as_fd(), size, &path).map_err(|error| {
            match (&error, error.errno()) {
                (TreeError::Shortened { .. }, _) => ObjectError::Hash(hash::HashError::Changed),
                (_, errno) => fail(errno.unwrap_or(Errno::IO)),
            }
        })?;
        fsync(&copy).map_err(fail)?;
        Ok(copy)
    }
}
