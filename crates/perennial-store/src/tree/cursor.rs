//! A place in a tree: the descriptor of one directory and the way back to the root.
//!
//! However deep the place, few descriptors are open: parents farther up are closed, and reopened through `..` on the
//! way back. The inode number found there must be the one that was left, so nobody can lead the walk out of the tree by
//! moving directories about.

use super::{DIR_FLAGS, EntryPath, TreeError};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, RawDir, SeekFrom, fstat, openat, seek, statat};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::ffi::{CStr, CString};

/// Most directories one cursor keeps open; deep trees reopen the others.
pub const OPEN_MAX: usize = 16;

/// Bytes of directory entries fetched by one system call.
const ENTRIES_BYTES: usize = 32 * 1024;

/// What `stat` says of an entry, in types that do not depend on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryStat {
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Number of names.
    pub nlink: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, of device files.
    pub rdev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Allocated bytes.
    pub allocated: u64,
    /// Last access.
    pub atime: Timespec,
    /// Last modification of content.
    pub mtime: Timespec,
    /// Last change of anything.
    pub ctime: Timespec,
}

#[expect(clippy::useless_conversion, reason = "the kernel's structure has other integer types on other architectures")]
impl From<rustix::fs::Stat> for EntryStat {
    fn from(stat: rustix::fs::Stat) -> Self {
        const BLOCK_BYTES: u64 = 512;
        let time = |tv_sec, nanos: u64| Timespec { tv_sec, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
        Self {
            dev: stat.st_dev.into(),
            ino: stat.st_ino.into(),
            nlink: stat.st_nlink.into(),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev.into(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            allocated: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES),
            atime: time(stat.st_atime.into(), stat.st_atime_nsec.into()),
            mtime: time(stat.st_mtime.into(), stat.st_mtime_nsec.into()),
            ctime: time(stat.st_ctime.into(), stat.st_ctime_nsec.into()),
        }
    }
}

impl EntryStat {
    /// Looks at an entry of a directory, not through symbolic links.
    ///
    /// # Errors
    /// As `fstatat`.
    pub fn of(dir: BorrowedFd<'_>, name: &CStr) -> Result<Self, Errno> {
        statat(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT).map(Self::from)
    }

    /// Looks at an entry that may be missing.
    ///
    /// # Errors
    /// As `fstatat`, except for a missing entry.
    pub fn find(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Self>, Errno> {
        match Self::of(dir, name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Looks at an open file or directory.
    ///
    /// # Errors
    /// As `fstat`.
    pub fn of_open(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        fstat(fd).map(Self::from)
    }

    /// Returns the type.
    #[must_use]
    pub const fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Returns whether it is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    /// Returns whether it is overlayfs' marker for a removed name: a character device 0:0.
    #[must_use]
    pub fn is_whiteout(&self) -> bool {
        self.file_type() == FileType::CharacterDevice && self.rdev == 0
    }

    /// Returns what identifies a file with several names, and nothing for directories and files with one name.
    #[must_use]
    pub fn link_group(&self) -> Option<(u64, u64)> {
        (self.nlink > 1 && !self.is_dir()).then_some((self.dev, self.ino))
    }
}

/// A name found in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The name.
    pub name: CString,
    /// Whether the directory says that it is a directory; `None` where the file system does not tell.
    pub is_dir: Option<bool>,
}

/// Reads all names of an open directory, in the order of the file system.
///
/// # Errors
/// As `getdents64`.
pub fn read_names(fd: BorrowedFd<'_>) -> Result<Vec<Name>, Errno> {
    seek(fd, SeekFrom::Start(0))?;
    let mut buffer = Vec::with_capacity(ENTRIES_BYTES);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_dir = match entry.file_type() {
            FileType::Directory => Some(true),
            FileType::Unknown => None,
            FileType::RegularFile
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => Some(false),
        };
        names.push(Name { name: name.to_owned(), is_dir });
    }
    Ok(names)
}

/// A directory farther up.
#[derive(Debug)]
struct Parent {
    ino: u64,
    fd: Option<OwnedFd>,
}

/// A place in a tree.
#[derive(Debug)]
pub struct Cursor {
    here: OwnedFd,
    ino: u64,
    dev: u64,
    parents: Vec<Parent>,
    /// Position in `parents` from which on descriptors are open.
    open_from: usize,
    open_max: usize,
}

/// Why a cursor could not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoveError {
    /// A system call failed.
    System(Errno),
    /// The directory is on another file system.
    OtherFilesystem,
    /// The parent is no longer the directory that was left.
    Moved,
}

impl MoveError {
    /// Adds the path.
    #[must_use]
    pub fn at(self, path: EntryPath) -> TreeError {
        match self {
            Self::System(errno) => TreeError::system("open", path, errno),
            Self::OtherFilesystem => TreeError::OtherFilesystem { path },
            Self::Moved => TreeError::Moved { path },
        }
    }
}

impl From<Errno> for MoveError {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

impl Cursor {
    /// Stands at the root of a tree.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub fn new(root: BorrowedFd<'_>) -> Result<Self, MoveError> {
        Self::with_open_max(root, OPEN_MAX)
    }

    /// Stands at the root of a tree and keeps at most `open_max` directories open besides the present one.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub fn with_open_max(root: BorrowedFd<'_>, open_max: usize) -> Result<Self, MoveError> {
        let here = openat(root, c".", DIR_FLAGS, Mode::empty())?;
        let stat = EntryStat::of_open(here.as_fd())?;
        Ok(Self { here, ino: stat.ino, dev: stat.dev, parents: Vec::new(), open_from: 0, open_max })
    }

    /// Returns the present directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.here.as_fd()
    }

    /// Returns how many directories the place is below the root.
    #[must_use]
    pub const fn depth(&self) -> usize {
        self.parents.len()
    }

    /// Goes into a directory.
    ///
    /// # Errors
    /// If it cannot be opened or something else is mounted there; the cursor has not moved then.
    pub fn enter(&mut self, name: &CStr) -> Result<(), MoveError> {
        let child = openat(&self.here, name, DIR_FLAGS, Mode::empty())?;
        let stat = EntryStat::of_open(child.as_fd())?;
        if stat.dev != self.dev {
            return Err(MoveError::OtherFilesystem);
        }
        let parent = std::mem::replace(&mut self.here, child);
        self.parents.push(Parent { ino: self.ino, fd: Some(parent) });
        self.ino = stat.ino;
        if self.parents.len().saturating_sub(self.open_from) > self.open_max {
            if let Some(oldest) = self.parents.get_mut(self.open_from) {
                oldest.fd = None;
            }
            self.open_from = self.open_from.saturating_add(1);
        }
        Ok(())
    }

    /// Goes back to the parent; stays where it is at the root.
    ///
    /// # Errors
    /// If the parent is no longer the directory that was left; the cursor is of no further use then.
    pub fn leave(&mut self) -> Result<(), MoveError> {
        let Some(parent) = self.parents.pop() else { return Ok(()) };
        let fd = match parent.fd {
            Some(fd) => fd,
            None => self.reopen_parent(parent.ino)?,
        };
        self.open_from = self.open_from.min(self.parents.len());
        self.here = fd;
        self.ino = parent.ino;
        Ok(())
    }

    fn reopen_parent(&self, ino: u64) -> Result<OwnedFd, MoveError> {
        let fd = openat(&self.here, c"..", DIR_FLAGS, Mode::empty())?;
        let stat = EntryStat::of_open(fd.as_fd())?;
        if (stat.dev, stat.ino) == (self.dev, ino) { Ok(fd) } else { Err(MoveError::Moved) }
    }
}
