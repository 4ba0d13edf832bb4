//! Metadata of an entry: mode, owner, times, extended attributes, inode flags.
//!
//! Symbolic links, fifos, sockets and devices are reached by name and never opened: their extended attributes through
//! `/proc/self/fd/<directory>/<name>`, which also keeps paths short. POSIX ACLs and file capabilities are extended
//! attributes. Metadata is applied in an order in which no step undoes another: owner (clears capabilities and setuid),
//! extended attributes, mode, times, and flags last, since an immutable file takes no times.

use super::cursor::EntryStat;
use super::error::{EntryPath, TreeError};
use super::overlay;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsRawFd as _, BorrowedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown, fgetxattr,
    flistxattr, fremovexattr, fsetxattr, fstat, futimens, getxattr, ioctl_getflags, ioctl_setflags, lgetxattr,
    listxattr, llistxattr, lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::Write as _;

/// Bits of `st_mode` that `chmod` sets.
const PERMISSIONS: u32 = 0o7777;
/// Bound of the kernel for the list of names and for one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// Flags that can be set on a finished file.
const FLAGS_LATE: IFlags = IFlags::NODUMP
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC)
    .union(IFlags::APPEND)
    .union(IFlags::IMMUTABLE);
/// Flags that must be set before there is data.
const FLAGS_EARLY: IFlags = IFlags::NOCOW.union(IFlags::COMPRESSED);
/// Flags that forbid changes.
const FLAGS_LOCKED: IFlags = IFlags::APPEND.union(IFlags::IMMUTABLE);
/// A security module labels files by itself and may forbid removing its label.
const LABEL_OF_THE_HOST: &CStr = c"security.selinux";

/// Metadata of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attrs {
    /// Permissions with setuid, setgid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub atime: Timespec,
    /// Last modification.
    pub mtime: Timespec,
    /// Extended attributes, values as bytes.
    pub xattrs: BTreeMap<CString, Vec<u8>>,
    /// Inode flags; `None` where the file system or the type of the file has none.
    pub flags: Option<IFlags>,
}

impl Attrs {
    /// Returns whether both say the same, apart from the times of access.
    #[must_use]
    pub fn same_apart_from_access(&self, other: &Self) -> bool {
        let flags = |attrs: &Self| attrs.flags.unwrap_or(IFlags::empty()).intersection(FLAGS_LATE.union(FLAGS_EARLY));
        let ids = |attrs: &Self| (attrs.mode, attrs.uid, attrs.gid, attrs.mtime);
        ids(self) == ids(other) && self.xattrs == other.xattrs && flags(self) == flags(other)
    }
}

/// How an entry is reached.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A file or directory that is open (not `O_PATH`).
    Open(BorrowedFd<'a>),
    /// An entry of an open directory; it is not opened and not followed.
    Named(BorrowedFd<'a>, &'a CStr),
}

/// What the trees are whose entries are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reading {
    /// Layers, in which overlayfs' attributes are overlayfs'.
    #[default]
    Layers,
    /// Mounted views of a container, in which attributes of these names are the container's own.
    Views,
}

/// Reads and applies metadata; holds the buffers.
#[derive(Debug)]
pub struct AttrIo {
    reading: Reading,
    list: Vec<u8>,
    value: Vec<u8>,
    proc_path: Vec<u8>,
}

impl Default for AttrIo {
    fn default() -> Self {
        Self::new(Reading::Layers)
    }
}

fn proc_path<'a>(buffer: &'a mut Vec<u8>, dir: BorrowedFd<'_>, name: &CStr) -> &'a [u8] {
    buffer.clear();
    // Writing to memory does not fail.
    write!(buffer, "/proc/self/fd/{}/", dir.as_raw_fd()).unwrap_or_default();
    buffer.extend_from_slice(name.to_bytes());
    buffer
}

/// Names a descriptor that only refers to a directory (`O_PATH`), as mounts are held by.
fn proc_fd<'a>(buffer: &'a mut Vec<u8>, fd: BorrowedFd<'_>) -> &'a [u8] {
    buffer.clear();
    // Writing to memory does not fail.
    write!(buffer, "/proc/self/fd/{}", fd.as_raw_fd()).unwrap_or_default();
    buffer
}

/// Whether the inode flags of an open file are known already.
#[derive(Debug, Clone, Copy)]
pub enum Flags {
    /// They are these, or it has none.
    Known(Option<IFlags>),
    /// They are not.
    ToRead,
}

impl AttrIo {
    /// Makes one for entries of layers or of views.
    #[must_use]
    pub fn new(reading: Reading) -> Self {
        let (list, value) = (vec![0; XATTR_BYTES_MAX], vec![0; XATTR_BYTES_MAX]);
        Self { reading, list, value, proc_path: Vec::new() }
    }

    /// Returns what its entries are of.
    #[must_use]
    pub const fn reading(&self) -> Reading {
        self.reading
    }

    /// Lists the names of the extended attributes.
    ///
    /// # Errors
    /// As `listxattr`; a file system without any has none.
    pub fn xattr_names(&mut self, target: Target<'_>) -> Result<Vec<CString>, Errno> {
        let list = self.list.as_mut_slice();
        let listed = match target {
            Target::Open(fd) => match flistxattr(fd, &mut *list) {
                Err(Errno::BADF) => listxattr(proc_fd(&mut self.proc_path, fd), list),
                listed => listed,
            },
            Target::Named(dir, name) => llistxattr(proc_path(&mut self.proc_path, dir, name), list),
        };
        let length = match listed {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(errno) => return Err(errno),
        };
        let bytes = self.list.get(..length).unwrap_or_default();
        Ok(bytes
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|name| CString::from_vec_with_nul(name.into()).ok())
            .collect())
    }

    /// Reads an extended attribute; `None` where it is not set.
    ///
    /// # Errors
    /// As `getxattr`.
    pub fn xattr(&mut self, target: Target<'_>, xattr: &CStr) -> Result<Option<&[u8]>, Errno> {
        let value = self.value.as_mut_slice();
        let length = match target {
            Target::Open(fd) => match fgetxattr(fd, xattr, &mut *value) {
                Err(Errno::BADF) => getxattr(proc_fd(&mut self.proc_path, fd), xattr, value),
                length => length,
            },
            Target::Named(dir, name) => lgetxattr(proc_path(&mut self.proc_path, dir, name), xattr, value),
        };
        match length {
            Ok(length) => Ok(self.value.get(..length)),
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As `setxattr`.
    pub fn set_xattr(&mut self, target: Target<'_>, xattr: &CStr, value: &[u8]) -> Result<(), Errno> {
        match target {
            Target::Open(fd) => fsetxattr(fd, xattr, value, XattrFlags::empty()),
            Target::Named(dir, name) => {
                lsetxattr(proc_path(&mut self.proc_path, dir, name), xattr, value, XattrFlags::empty())
            }
        }
    }

    /// Removes an extended attribute, if it is set.
    ///
    /// # Errors
    /// As `removexattr`.
    pub fn remove_xattr(&mut self, target: Target<'_>, xattr: &CStr) -> Result<(), Errno> {
        let removed = match target {
            Target::Open(fd) => fremovexattr(fd, xattr),
            Target::Named(dir, name) => lremovexattr(proc_path(&mut self.proc_path, dir, name), xattr),
        };
        match removed {
            Err(Errno::NODATA) => Ok(()),
            Ok(()) | Err(_) => removed,
        }
    }

    /// Returns whether a directory of a layer hides what is below it.
    ///
    /// # Errors
    /// If the mark cannot be read, or has a value the store does not know.
    pub fn is_opaque(&mut self, target: Target<'_>, path: &dyn Fn() -> EntryPath) -> Result<bool, TreeError> {
        let value = self.xattr(target, overlay::OPAQUE).map_err(|errno| read_error(overlay::OPAQUE, path(), errno))?;
        match value {
            None => Ok(false),
            Some(overlay::OPAQUE_YES) => Ok(true),
            Some(other) => Err(refused(overlay::OPAQUE, other, path())),
        }
    }

    /// Returns whether a directory of a layer merges with another than the one of its own name.
    ///
    /// # Errors
    /// If the mark cannot be read.
    pub fn is_redirected(&mut self, target: Target<'_>, path: &dyn Fn() -> EntryPath) -> Result<bool, TreeError> {
        let value = self.xattr(target, overlay::REDIRECT).map(|value| value.is_some());
        value.map_err(|errno| read_error(overlay::REDIRECT, path(), errno))
    }

    /// Reads the metadata of an entry.
    ///
    /// A directory that is in the middle of a fold has the times it had before. That the content of a file is an object
    /// is not among its attributes ([`AttrIo::object`]).
    ///
    /// # Errors
    /// If something cannot be read, or the entry means something only over the layers below.
    pub fn read(
        &mut self,
        target: Target<'_>,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<Attrs, TreeError> {
        self.read_with(target, stat, Flags::ToRead, path)
    }

    /// The same where the inode flags may be known.
    ///
    /// # Errors
    /// As [`AttrIo::read`].
    pub fn read_with(
        &mut self,
        target: Target<'_>,
        stat: &EntryStat,
        flags: Flags,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<Attrs, TreeError> {
        let mut attrs = self.read_all(target, stat, flags, path)?;
        if self.reading == Reading::Layers {
            let (metacopy, redirect) = (attrs.xattrs.remove(overlay::METACOPY), attrs.xattrs.remove(overlay::REDIRECT));
            object_named(metacopy.as_deref(), redirect.as_deref(), path)?;
        }
        Ok(attrs)
    }

    /// Returns the object that is the content of a file of a sealed layer.
    ///
    /// # Errors
    /// If something cannot be read, or the file's content is that of a file in the layers below.
    pub fn object(&mut self, target: Target<'_>, path: &dyn Fn() -> EntryPath) -> Result<Option<ObjectId>, TreeError> {
        if self.reading == Reading::Views {
            return Ok(None);
        }
        let mut get = |name: &CStr| {
            let value = self.xattr(target, name).map(|value| value.map(<[u8]>::to_vec));
            value.map_err(|errno| read_error(name, path(), errno))
        };
        let Some(metacopy) = get(overlay::METACOPY)? else { return Ok(None) };
        let redirect = get(overlay::REDIRECT)?;
        object_named(Some(&metacopy), redirect.as_deref(), path)
    }

    /// Refuses an entry of a layer that means something only over the layers below: a metadata-only file or a redirected
    /// directory.
    ///
    /// # Errors
    /// [`TreeError::Refused`]; or if its attributes cannot be read.
    pub fn refuse_reference(
        &mut self,
        target: Target<'_>,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        let name = match stat.file_type() {
            FileType::RegularFile => overlay::METACOPY,
            FileType::Directory => overlay::REDIRECT,
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => return Ok(()),
        };
        match self.xattr(target, name).map_err(|errno| read_error(name, path(), errno))? {
            None => Ok(()),
            Some(value) => Err(refused(name, value, path())),
        }
    }

    /// Reads the metadata of an entry, with references to the layers below and to objects.
    ///
    /// # Errors
    /// If something cannot be read.
    pub fn read_as_is(
        &mut self,
        target: Target<'_>,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<Attrs, TreeError> {
        self.read_all(target, stat, Flags::ToRead, path)
    }

    fn read_all(
        &mut self,
        target: Target<'_>,
        stat: &EntryStat,
        flags: Flags,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<Attrs, TreeError> {
        let list =
            self.xattr_names(target).map_err(|errno| TreeError::system("list the attributes of", path(), errno))?;
        let mut xattrs = BTreeMap::new();
        for name in list {
            let value = self.xattr(target, &name).map_err(|errno| read_error(&name, path(), errno))?;
            if let Some(value) = value {
                let value = value.to_vec();
                xattrs.insert(name, value);
            }
        }
        xattrs.remove(overlay::PROTECTED);
        let times = xattrs.remove(overlay::TIMES).and_then(|value| overlay::decode_times(&value));
        let (atime, mtime) = times.unwrap_or((stat.atime, stat.mtime));
        let mut flags = match (flags, target) {
            (Flags::Known(flags), _) => flags,
            (Flags::ToRead, Target::Open(fd)) => flags_of(fd, path)?,
            (Flags::ToRead, Target::Named(..)) => None,
        };
        if xattrs.contains_key(overlay::PROTATTR) {
            // In a layer the note and the flags say the same, and a copy begins with the note alone.
            flags = flags.map(|flags| flags - FLAGS_LOCKED);
        }
        Ok(Attrs { mode: stat.mode & PERMISSIONS, uid: stat.uid, gid: stat.gid, atime, mtime, xattrs, flags })
    }

    /// Gives an entry exactly this metadata; extended attributes it has besides are removed.
    ///
    /// # Errors
    /// If something cannot be set: the first attribute is named, those after it are not set.
    pub fn apply(
        &mut self,
        target: Target<'_>,
        attrs: &Attrs,
        kind: Kind,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        let fail = |attribute: &str, errno| attribute_error("set", attribute, path(), errno);
        let (uid, gid) = (Some(Uid::from_raw(attrs.uid)), Some(Gid::from_raw(attrs.gid)));
        let owned = match target {
            // A new file is mostly its owner's already, and to look costs much less than to set.
            Target::Open(fd) => fstat(fd).and_then(|stat| {
                if (stat.st_uid, stat.st_gid) == (attrs.uid, attrs.gid) { Ok(()) } else { fchown(fd, uid, gid) }
            }),
            Target::Named(dir, name) => chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        };
        owned.map_err(|errno| fail("the owner", errno))?;
        self.apply_xattrs(target, &attrs.xattrs, path)?;
        let mode = Mode::from_raw_mode(attrs.mode);
        let moded = match (kind, target) {
            (Kind::Symlink, _) => Ok(()),
            (Kind::Other, Target::Open(fd)) => fchmod(fd, mode),
            (Kind::Other, Target::Named(dir, name)) => chmodat(dir, name, mode, AtFlags::empty()),
        };
        moded.map_err(|errno| fail("the mode", errno))?;
        set_times(target, attrs.atime, attrs.mtime).map_err(|errno| fail("the times", errno))?;
        match (target, attrs.flags) {
            (Target::Open(fd), Some(flags)) => {
                write_flags(fd, flags, FLAGS_LATE).map_err(|errno| flag_error("set", path(), errno))
            }
            (Target::Open(_) | Target::Named(..), _) => Ok(()),
        }
    }

    fn apply_xattrs(
        &mut self,
        target: Target<'_>,
        xattrs: &BTreeMap<CString, Vec<u8>>,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        let present =
            self.xattr_names(target).map_err(|errno| TreeError::system("list the attributes of", path(), errno))?;
        for name in present {
            let stays = [LABEL_OF_THE_HOST, overlay::PROTECTED].contains(&name.as_c_str());
            if !xattrs.contains_key(&name) && !stays {
                self.remove_xattr(target, &name)
                    .map_err(|errno| attribute_error("remove", &name.to_string_lossy(), path(), errno))?;
            }
        }
        for (name, value) in xattrs {
            self.set_xattr(target, name, value)
                .map_err(|errno| attribute_error("set", &name.to_string_lossy(), path(), errno))?;
        }
        Ok(())
    }
}

/// Returns the object that a file of a sealed layer names; refuses references to anything else.
fn object_named(
    metacopy: Option<&[u8]>,
    redirect: Option<&[u8]>,
    path: &dyn Fn() -> EntryPath,
) -> Result<Option<ObjectId>, TreeError> {
    match (metacopy, redirect) {
        (None, None) => Ok(None),
        (Some(value), None) => Err(refused(overlay::METACOPY, value, path())),
        (None, Some(value)) => Err(refused(overlay::REDIRECT, value, path())),
        (Some(_), Some(value)) => match overlay::decode_object(value) {
            Some((_, id)) => Ok(Some(id)),
            None => Err(refused(overlay::REDIRECT, value, path())),
        },
    }
}

/// Whether an entry has permissions of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A symbolic link; it has none.
    Symlink,
    /// Everything else.
    Other,
}

/// Sets the times of an entry, not through a symbolic link.
///
/// # Errors
/// As `utimensat`.
pub fn set_times(target: Target<'_>, atime: Timespec, mtime: Timespec) -> Result<(), Errno> {
    let times = Timestamps { last_access: atime, last_modification: mtime };
    match target {
        Target::Open(fd) => futimens(fd, &times),
        Target::Named(dir, name) => utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
    }
}

/// Reads the inode flags of an open file or directory, if its file system has any.
///
/// # Errors
/// As `FS_IOC_GETFLAGS`.
pub fn read_flags(fd: BorrowedFd<'_>) -> Result<Option<IFlags>, Errno> {
    match ioctl_getflags(fd) {
        Ok(flags) => Ok(Some(flags)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Sets those flags of a new, empty file that cannot be set later.
///
/// # Errors
/// As `FS_IOC_SETFLAGS`.
pub fn apply_early_flags(fd: BorrowedFd<'_>, flags: Option<IFlags>) -> Result<(), Errno> {
    match flags {
        Some(flags) if flags.intersects(FLAGS_EARLY) => write_flags(fd, flags, FLAGS_EARLY),
        Some(_) | None => Ok(()),
    }
}

/// Allows an immutable or append-only file or directory to be changed and removed.
///
/// # Errors
/// As `FS_IOC_SETFLAGS`.
pub fn unlock(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    match read_flags(fd)? {
        Some(flags) if flags.intersects(FLAGS_LOCKED) => write_flags(fd, IFlags::empty(), FLAGS_LOCKED),
        Some(_) | None => Ok(()),
    }
}

/// Makes a file or directory immutable or append-only, or neither, as these flags say.
///
/// # Errors
/// As `FS_IOC_SETFLAGS`.
pub fn set_locks(fd: BorrowedFd<'_>, flags: IFlags) -> Result<(), Errno> {
    write_flags(fd, flags, FLAGS_LOCKED)
}

fn flags_of(fd: BorrowedFd<'_>, path: &dyn Fn() -> EntryPath) -> Result<Option<IFlags>, TreeError> {
    read_flags(fd).map_err(|errno| flag_error("read", path(), errno))
}

fn write_flags(fd: BorrowedFd<'_>, flags: IFlags, which: IFlags) -> Result<(), Errno> {
    let present = read_flags(fd)?.unwrap_or(IFlags::empty());
    let wanted = present.difference(which).union(flags.intersection(which));
    if wanted == present { Ok(()) } else { ioctl_setflags(fd, wanted) }
}

pub(crate) fn refused(attribute: &CStr, value: &[u8], path: EntryPath) -> TreeError {
    let attribute = format!("{}=\"{}\"", attribute.to_string_lossy(), value.escape_ascii());
    TreeError::Refused { attribute, path }
}

pub(crate) fn read_error(attribute: &CStr, path: EntryPath, errno: Errno) -> TreeError {
    attribute_error("read", &attribute.to_string_lossy(), path, errno)
}

pub(crate) fn attribute_error(action: &'static str, attribute: &str, path: EntryPath, source: Errno) -> TreeError {
    TreeError::Attribute { action, attribute: attribute.into(), path, source }
}

fn flag_error(action: &'static str, path: EntryPath, errno: Errno) -> TreeError {
    attribute_error(action, "the inode flags", path, errno)
}
