//! Contents of files, each kept once under the name of what is in it.
//!
//! ```text
//! <root>/objects/             the data-only layer of overlay mounts
//!   <secret>/ab/cdef…         one object: raw content, named by its BLAKE3 (what `b3sum` prints)
//! ```
//!
//! An object appears whole and under its final name, and its content never changes. It is a further name of the file it
//! was made from, wherever the file system can give it one; until that file's own names are gone, it carries the file's
//! metadata, which means nothing ([`Objects::finish`]). Objects are removed by whoever holds the lock on objects
//! exclusively and knows that no manifest names them.
//!
//! What this module does not know: layers, and who needs an object.

mod changed;
mod extents;
pub mod hash;
mod outboard;
mod put;

pub use changed::Older;
pub use hash::HashError;
pub(crate) use hash::{copy_file, hash_file};
pub use put::{How, Stored};

use crate::root::{Root, Secret};
use crate::tree::DIR_FLAGS;
use crate::tree::attrs::{AttrIo, Target};
use crate::tree::cursor::{EntryStat, read_names};
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, Uid, fchmod, fchown, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Permissions of a finished object.
const FINISHED_MODE: Mode = Mode::RUSR;
/// A security module labels files by itself and may forbid removing its label.
const LABEL_OF_THE_HOST: &std::ffi::CStr = c"security.selinux";
/// What the name of a file ends in that is about to take the place of another.
const TEMPORARY: &str = ".new";
/// Objects known to be whole that are remembered: 64 bytes each. When these are too many all are forgotten, which only
/// costs that some are read again.
const REMEMBERED_MAX: usize = 1 << 16;
/// Bytes of directory entries fetched by one system call.
const ENTRIES_BYTES: usize = 32 * 1024;

/// Why something about an object could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// A system call failed.
    #[error("cannot {action} object {object}")]
    System {
        /// What was to be done, as a verb.
        action: &'static str,
        /// Name of the object, or of what holds objects.
        object: String,
        /// The kernel's answer.
        source: Errno,
    },
    /// The file to be kept could not be read.
    #[error("cannot read the content to keep")]
    Hash(#[from] HashError),
    /// What bears the name of an object is not a file of that size.
    #[error("object {id} is damaged: {found}, expected a file of {expected} bytes")]
    Damaged {
        /// The object.
        id: ObjectId,
        /// What is there.
        found: String,
        /// Length it is recorded with, in bytes.
        expected: u64,
    },
}

impl ObjectError {
    pub(crate) fn system(action: &'static str, object: impl ToString) -> impl FnOnce(Errno) -> Self {
        let object = object.to_string();
        move |source| Self::System { action, object, source }
    }

    /// Returns the kernel's answer where there is one, for callers that treat a full disk apart.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::System { source, .. } | Self::Hash(HashError::System(source)) => Some(*source),
            Self::Hash(HashError::Changed | HashError::Stopped) | Self::Damaged { .. } => None,
        }
    }

    /// Returns whether this is no fault: the caller asked to stop.
    #[must_use]
    pub const fn is_stopped(&self) -> bool {
        matches!(self, Self::Hash(HashError::Stopped))
    }
}

/// What the file system says of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectStat {
    /// Length, in bytes.
    pub size: u64,
    /// Bytes it takes on disk, with its outboard.
    pub allocated: u64,
    /// Number of its names; more than 1 while the file it was made from is there.
    pub links: u64,
    /// Device and inode number.
    pub inode: (u64, u64),
}

/// What reading an object again found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its content is what its name says.
    Intact,
    /// It is not there.
    Missing,
    /// Its content has another name.
    Damaged {
        /// That name.
        found: ObjectId,
    },
    /// It cannot be read, as with a bad sector.
    Unreadable {
        /// The kernel's answer.
        errno: Errno,
    },
}

/// The objects of a root. It may be used by several threads.
#[derive(Debug)]
pub struct Objects {
    data: OwnedFd,
    dir: OwnedFd,
    dev: u64,
    secret: Secret,
    /// Objects that were stored or read by means of this value, and were whole.
    whole: Mutex<HashSet<ObjectId>>,
}

impl Objects {
    /// Opens the objects of a root, making their directory where it is missing.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn open(root: &Root) -> Result<Self, ObjectError> {
        Self::open_at(&root.objects_dir(), *root.secret())
    }

    /// Opens the objects in the data-only layer `data`.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn open_at(data: &Path, secret: Secret) -> Result<Self, ObjectError> {
        let fail = |errno| ObjectError::system("open the directory of", data.display())(errno);
        let data = openat(CWD, data, DIR_FLAGS, Mode::empty()).map_err(fail)?;
        let name = secret.to_string();
        match mkdirat(&data, &name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(ObjectError::system("create the directory of", &name)(errno)),
        }
        let dir = openat(&data, &name, DIR_FLAGS, Mode::empty()).map_err(fail)?;
        let dev = EntryStat::of_open(dir.as_fd()).map_err(fail)?.dev;
        Ok(Self { data, dir, dev, secret, whole: Mutex::default() })
    }

    /// Returns the secret name.
    #[must_use]
    pub const fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Returns the device of their file system.
    #[must_use]
    pub const fn dev(&self) -> u64 {
        self.dev
    }

    /// Returns the directory under the secret name.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// [`ObjectError::System`], with `NOENT` where it is missing.
    pub fn open_object(&self, id: &ObjectId) -> Result<OwnedFd, ObjectError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        openat(&self.dir, id.relative_path(), flags, Mode::empty()).map_err(ObjectError::system("open", id))
    }

    /// Opens an object that is recorded with this length.
    ///
    /// # Errors
    /// [`ObjectError::System`]; [`ObjectError::Damaged`] where it has another length.
    pub fn open_sized(&self, id: &ObjectId, size: u64) -> Result<OwnedFd, ObjectError> {
        let file = self.open_object(id)?;
        let stat = EntryStat::of_open(file.as_fd()).map_err(ObjectError::system("look at", id))?;
        if stat.file_type() == FileType::RegularFile && stat.size == size {
            return Ok(file);
        }
        Err(ObjectError::Damaged { id: *id, found: described(&stat), expected: size })
    }

    /// Opens an object whose whole content was compared with its name.
    ///
    /// # Errors
    /// As [`Objects::open_sized`]; [`ObjectError::Damaged`] where the content is another one, [`ObjectError::Hash`].
    pub fn open_intact(&self, id: &ObjectId, size: u64) -> Result<OwnedFd, ObjectError> {
        let file = self.open_sized(id, size)?;
        let (found, _) = hash::hash_file(file.as_fd(), &|| false)?;
        if found == *id {
            return Ok(file);
        }
        Err(ObjectError::Damaged { id: *id, found: format!("its content is that of {found}"), expected: size })
    }

    /// Looks at an object; `None` where it is missing.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn stat(&self, id: &ObjectId) -> Result<Option<ObjectStat>, ObjectError> {
        let name = std::ffi::CString::new(id.relative_path()).unwrap_or_default();
        match EntryStat::find(self.dir.as_fd(), &name) {
            Ok(stat) => Ok(stat.map(|stat| self.with_outboard(id, &stat))),
            Err(errno) => Err(ObjectError::system("look at", id)(errno)),
        }
    }

    /// Returns whether an object is there.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn exists(&self, id: &ObjectId) -> Result<bool, ObjectError> {
        Ok(self.stat(id)?.is_some())
    }

    /// Reads an object again and compares it with its name; `stop` ends it early.
    ///
    /// # Errors
    /// [`ObjectError::System`], or [`HashError::Stopped`].
    pub fn verify(&self, id: &ObjectId, stop: &dyn Fn() -> bool) -> Result<Verdict, ObjectError> {
        let file = match self.open_object(id) {
            Ok(file) => file,
            Err(ObjectError::System { source: Errno::NOENT, .. }) => return Ok(Verdict::Missing),
            Err(error) => return Err(error),
        };
        match hash::hash_file(file.as_fd(), stop) {
            Ok((found, _)) if found == *id => Ok(Verdict::Intact),
            Ok((found, _)) => Ok(Verdict::Damaged { found }),
            Err(HashError::System(errno)) => Ok(Verdict::Unreadable { errno }),
            Err(error @ (HashError::Changed | HashError::Stopped)) => Err(error.into()),
        }
    }

    fn remember(&self, id: ObjectId) {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if whole.len() >= REMEMBERED_MAX {
            whole.clear();
        }
        whole.insert(id);
    }

    fn is_remembered(&self, id: &ObjectId) -> bool {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Removes an object and its outboard; one that is not there is no error.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn remove(&self, id: &ObjectId) -> Result<(), ObjectError> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        match unlinkat(&self.dir, id.relative_path(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {
                self.remove_outboard(id);
                Ok(())
            }
            Err(errno) => Err(ObjectError::system("remove", id)(errno)),
        }
    }

    /// Gives an object that has no other name the metadata of an object: owner root, read only, no attributes. Returns
    /// whether it is finished now.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn finish(&self, id: &ObjectId) -> Result<bool, ObjectError> {
        let fail = |errno| ObjectError::system("finish", id)(errno);
        let file = self.open_object(id)?;
        let stat = EntryStat::of_open(file.as_fd()).map_err(fail)?;
        if stat.nlink != 1 {
            return Ok(false);
        }
        if (stat.uid, stat.gid) != (0, 0) {
            fchown(&file, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(fail)?;
        }
        let mut io = AttrIo::default();
        for name in io.xattr_names(Target::Open(file.as_fd())).map_err(fail)? {
            if name.as_c_str() != LABEL_OF_THE_HOST {
                io.remove_xattr(Target::Open(file.as_fd()), &name).map_err(fail)?;
            }
        }
        if Mode::from_raw_mode(stat.mode) != FINISHED_MODE {
            fchmod(&file, FINISHED_MODE).map_err(fail)?;
        }
        Ok(true)
    }

    /// Visits every object, by the first digits of their names in order.
    ///
    /// # Errors
    /// [`ObjectError::System`], or the first error of `visit`.
    pub fn list(
        &self,
        visit: &mut dyn FnMut(ObjectId, ObjectStat) -> Result<(), ObjectError>,
    ) -> Result<(), ObjectError> {
        self.each_directory(&mut |prefix, dir| {
            let names = read_names(dir.as_fd()).map_err(ObjectError::system("list", prefix))?;
            for name in names {
                let Some(id) = id_of(prefix, name.name.to_bytes()) else { continue };
                let found = EntryStat::find(dir.as_fd(), &name.name).map_err(ObjectError::system("look at", id))?;
                if let Some(stat) = found {
                    visit(id, self.with_outboard(&id, &stat))?;
                }
            }
            Ok(())
        })
    }

    /// Visits the inode number and the name of every object, without looking at the objects themselves.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn each_inode(&self, visit: &mut dyn FnMut(u64, ObjectId)) -> Result<(), ObjectError> {
        self.each_directory(&mut |prefix, dir| {
            let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
            let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry.map_err(ObjectError::system("list", prefix))?;
                if let Some(id) = id_of(prefix, entry.file_name().to_bytes()) {
                    visit(entry.ino(), id);
                }
            }
            Ok(())
        })
    }

    fn each_directory(
        &self,
        visit: &mut dyn FnMut(&str, OwnedFd) -> Result<(), ObjectError>,
    ) -> Result<(), ObjectError> {
        for number in 0..=u8::MAX {
            let prefix = format!("{number:02x}");
            match openat(&self.dir, &prefix, DIR_FLAGS, Mode::empty()) {
                Ok(dir) => visit(&prefix, dir)?,
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(ObjectError::system("list", prefix)(errno)),
            }
        }
        Ok(())
    }

    /// Writes everything that was stored to the disk: the whole file system.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn sync(&self) -> Result<(), ObjectError> {
        rustix::fs::syncfs(&self.data).map_err(ObjectError::system("sync", self.secret))
    }
}

fn id_of(prefix: &str, name: &[u8]) -> Option<ObjectId> {
    let name = std::str::from_utf8(name).ok()?;
    format!("{prefix}{name}").parse().ok()
}

fn described(stat: &EntryStat) -> String {
    if stat.file_type() == FileType::RegularFile {
        format!("{} bytes long", stat.size)
    } else {
        "not a file".to_owned()
    }
}
