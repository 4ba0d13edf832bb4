//! Keeping the content of an open file as an object: linked where possible, cloned or copied where not.

use super::changed::{self, Named, Older};
use super::{ObjectError, Objects, TEMPORARY, Verdict, hash};
use crate::tree::copy::Copier;
use crate::tree::cursor::EntryStat;
use crate::tree::error::{EntryPath, TreeError};
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fsync, linkat, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg as _;
use std::ffi::CString;
use std::os::fd::AsRawFd as _;

/// Tries to give an object its name: what is in the way is looked at, mended and tried again.
const NAME_TRIES_MAX: u32 = 5;

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
    /// Bytes that were read for it: of the file, and of an object that was there already.
    pub read: u64,
}

/// What bears the name of an object that is to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Present {
    /// The object: the file is not needed for it.
    Whole,
    /// Something else.
    Wrong,
    /// Nothing any more.
    Gone,
}

impl Objects {
    /// Keeps the content of an open regular file; `stop` ends it early. The caller calls [`Objects::sync`] before it
    /// records the object.
    ///
    /// # Errors
    /// [`ObjectError`]; what was there before is there then, too.
    pub fn put(&self, file: BorrowedFd<'_>, stop: &dyn Fn() -> bool) -> Result<Stored, ObjectError> {
        self.put_over(file, None, stop)
    }

    /// The same for a file that may be a changed version of an object: what both share is not read, where the file
    /// system can tell.
    ///
    /// # Errors
    /// As [`Objects::put`].
    pub fn put_over(
        &self,
        file: BorrowedFd<'_>,
        older: Option<&Older>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Stored, ObjectError> {
        let named = changed::name(self, file, older, stop)?;
        let mut read = named.read;
        let Some(how) = self.place(file, &named, &mut read, stop)? else {
            let again = self.put(file, stop)?;
            return Ok(Stored { read: read.saturating_add(again.read), ..again });
        };
        let Named { id, size, outboard, is_shared, .. } = named;
        if let Some(outboard) = outboard.filter(|_| !is_shared) {
            // Without it the next version of the file is hashed whole.
            self.keep_outboard(&outboard, &id).ok();
        }
        Ok(Stored { id, size, how, read })
    }

    /// Keeps a file whose content is known to have this name, because it was hashed just now.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn put_as(&self, file: BorrowedFd<'_>, id: &ObjectId, size: u64) -> Result<How, ObjectError> {
        let placed = self.place(file, &Named::of_all_bytes(*id, size, 0, None), &mut 0, &|| false)?;
        placed.ok_or(ObjectError::Hash(hash::HashError::Changed))
    }

    /// Gives a file, or a copy of it, the name of an object, unless the object is there. `None` where something else is
    /// there and the file was not read wholly: such a file may share the damage, and mends nothing.
    fn place(
        &self,
        file: BorrowedFd<'_>,
        named: &Named,
        read: &mut u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<How>, ObjectError> {
        let Named { id, size, .. } = named;
        let fail = |errno| ObjectError::system("store", id)(errno);
        let path = id.relative_path();
        let mut copy: Option<OwnedFd> = None;
        for _ in 0..NAME_TRIES_MAX {
            let how = if copy.is_some() { How::Copied } else { How::Linked };
            let from = copy.as_ref().map_or(file, |copy| copy.as_fd());
            let mut linked = self.link(from, &path);
            if linked == Err(Errno::EXIST) {
                match self.look_at_present(file, named, read, stop)? {
                    Present::Whole => return Ok(Some(How::Present)),
                    Present::Wrong if !named.is_whole_read => return Ok(None),
                    // A loss of power must not leave less than is there.
                    Present::Wrong => linked = fsync(from).and_then(|()| self.replace(from, &path)),
                    Present::Gone => continue,
                }
            }
            match linked {
                Ok(()) => {
                    if named.is_whole_read {
                        self.remember(*id);
                    }
                    return Ok(Some(how));
                }
                Err(Errno::NOENT) => {
                    let fan_out = path.split('/').next().unwrap_or_default();
                    match mkdirat(&self.dir, fan_out, Mode::RWXU) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(fail(errno)),
                    }
                }
                // Too many names, another file system, or a file that takes no further name.
                Err(Errno::MLINK | Errno::XDEV | Errno::PERM) if copy.is_none() => {
                    copy = Some(self.copy(file, id, *size)?);
                }
                Err(errno) => return Err(fail(errno)),
            }
        }
        Err(fail(Errno::BUSY))
    }

    /// Looks at what bears the name of an object whose content a file has, as was found just now. That file is dropped
    /// where this is the object, so it is read unless it is known to be whole: damage must not cost the good copy. Nor is
    /// it read where both share all blocks, as these are as good under the one name as under the other.
    fn look_at_present(
        &self,
        file: BorrowedFd<'_>,
        Named { id, size, is_shared, .. }: &Named,
        read: &mut u64,
        stop: &dyn Fn() -> bool,
    ) -> Result<Present, ObjectError> {
        let fail = |errno| ObjectError::system("look at", id)(errno);
        let path = CString::new(id.relative_path()).unwrap_or_default();
        let Some(stat) = EntryStat::find(self.dir.as_fd(), &path).map_err(fail)? else { return Ok(Present::Gone) };
        if stat.file_type() != FileType::RegularFile || stat.size != *size {
            return Ok(Present::Wrong);
        }
        let own = EntryStat::of_open(file).map_err(fail)?;
        if *is_shared || (own.dev, own.ino) == (stat.dev, stat.ino) || self.is_remembered(id) {
            return Ok(Present::Whole);
        }
        *read = read.saturating_add(stat.size.min(stat.allocated));
        match self.verify(id, stop)? {
            Verdict::Intact => {
                self.remember(*id);
                Ok(Present::Whole)
            }
            Verdict::Missing => Ok(Present::Gone),
            Verdict::Damaged { .. } | Verdict::Unreadable { .. } => Ok(Present::Wrong),
        }
    }

    /// Gives a file a name that something else has: whoever looks finds the one or the other.
    pub(super) fn replace(&self, file: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
        let temporary = format!("{path}.{}{TEMPORARY}", EntryStat::of_open(file)?.ino);
        match self.link(file, &temporary) {
            Err(Errno::EXIST) => {
                // A rest of an attempt that was cut off. In a root that was copied since, it is another file.
                unlinkat(&self.dir, temporary.as_str(), AtFlags::empty())?;
                self.link(file, &temporary)?;
            }
            linked => linked?,
        }
        renameat(&self.dir, temporary.as_str(), &self.dir, path)
    }

    pub(super) fn link(&self, file: BorrowedFd<'_>, path: &str) -> Result<(), Errno> {
        match linkat(file, c"", &self.dir, path, AtFlags::EMPTY_PATH) {
            // Without the capability that this needs, or for a file without a name (`O_TMPFILE`), by way of /proc.
            Err(Errno::NOENT) => {
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, from.as_str().as_cow_c_str()?, &self.dir, path, AtFlags::SYMLINK_FOLLOW)
            }
            done => done,
        }
    }

    /// Makes a file without a name beside the objects.
    pub(super) fn nameless(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        openat(&self.dir, c".", flags, Mode::RUSR | Mode::WUSR)
    }

    /// Copies a file to one without a name, synced: a name must never stand for less than the content.
    fn copy(&self, file: BorrowedFd<'_>, id: &ObjectId, size: u64) -> Result<OwnedFd, ObjectError> {
        let fail = |errno| ObjectError::system("copy", id)(errno);
        let copy = self.nameless().map_err(fail)?;
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
