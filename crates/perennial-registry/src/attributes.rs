//! Owner, mode, times and extended attributes of one file: read from one file, given to another.
//!
//! Everything is relative to an open directory and a single name in it, so no path an archive made is ever followed.
//! Order matters: the owner first (it clears capabilities and setuid bits), then attributes, mode and times.

use crate::tarball::Stamp;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

/// Longest list of attribute names, and longest value, of a file on Linux (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// What a file has besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Stamp,
    pub(crate) atime: Stamp,
    /// Sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Returns whether an attribute steers the union mount or belongs to this project, so that no archive may bring it.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    is_steering(name) || name.starts_with(b"user.overlay.")
}

/// Returns whether an attribute would be obeyed by the union mounts of this project.
pub(crate) fn is_steering(name: &[u8]) -> bool {
    [b"trusted.overlay.".as_slice(), b"trusted.perennial."].iter().any(|own| name.starts_with(own))
}

/// Returns whether Linux has the namespace of an attribute; others come from archives of other systems.
pub(crate) fn is_linux(name: &[u8]) -> bool {
    [b"user.".as_slice(), b"trusted.", b"security.", b"system."].iter().any(|space| name.starts_with(space))
}

/// Path of a name in an open directory, for the calls that have no `*at` form. The name itself is not followed by the
/// `l…xattr` calls, and the directory is reached through its descriptor.
fn proc_path(parent: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

impl Attributes {
    /// Reads those of `name` in `parent` (`.` for the directory itself), leaving out reserved extended attributes.
    pub(crate) fn read(parent: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> io::Result<Self> {
        let (mtime, atime) = (stamp(stat.st_mtime, stat.st_mtime_nsec), stamp(stat.st_atime, stat.st_atime_nsec));
        let mut xattrs = Vec::new();
        let path = proc_path(parent, name);
        for attribute in list(&path)? {
            if is_reserved(&attribute) {
                continue;
            }
            let mut value = Vec::with_capacity(XATTR_BYTES_MAX);
            match fs::lgetxattr(&path, attribute.as_slice(), rustix::buffer::spare_capacity(&mut value)) {
                Ok(_) => {
                    value.shrink_to_fit();
                    xattrs.push((attribute, value));
                }
                // Gone since it was listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error.into()),
            }
        }
        xattrs.sort();
        Ok(Self { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime, atime, xattrs })
    }

    /// Gives all but the times to `name` in `parent`, which is of type `kind` and has just been made or is a directory.
    pub(crate) fn apply(&self, parent: BorrowedFd<'_>, name: &[u8], kind: FileType) -> io::Result<()> {
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
        let path = proc_path(parent, name);
        if kind == FileType::Directory {
            // A directory named twice has the attributes of the last entry only.
            for old in list(&path)? {
                // The kernel gives labels by itself where a policy is loaded, and does not let them go.
                let is_kept = is_reserved(&old) || old == b"security.selinux";
                if !is_kept && !self.xattrs.iter().any(|(name, _)| *name == old) {
                    fs::lremovexattr(&path, old.as_slice())?;
                }
            }
        }
        for (attribute, value) in &self.xattrs {
            fs::lsetxattr(&path, attribute.as_slice(), value, XattrFlags::empty()).map_err(|error| {
                let attribute = OsStr::from_bytes(attribute);
                io::Error::new(io::Error::from(error).kind(), format!("extended attribute {attribute:?}: {error}"))
            })?;
        }
        if kind != FileType::Symlink {
            fs::chmodat(parent, name, Mode::from_raw_mode(self.mode), AtFlags::empty())?;
        }
        Ok(())
    }

    /// Gives the times to `name` in `parent`.
    pub(crate) fn apply_times(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        set_times(parent, name, self.mtime, self.atime)
    }
}

/// Sets the times of `name` in `parent`, without following it.
pub(crate) fn set_times(parent: BorrowedFd<'_>, name: &[u8], mtime: Stamp, atime: Stamp) -> io::Result<()> {
    let spec = |stamp: Stamp| Timespec { tv_sec: stamp.seconds, tv_nsec: i64::from(stamp.nanos) };
    let times = Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Marks the directory `name` in `parent` as opaque: nothing of the layers below shows through it.
pub(crate) fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fs::lsetxattr(proc_path(parent, name), "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    Ok(())
}

/// Returns whether the directory behind `directory` is opaque.
pub(crate) fn is_opaque(directory: impl AsFd) -> io::Result<bool> {
    let path = proc_path(directory.as_fd(), b".");
    let mut value = [0_u8; 8];
    match fs::lgetxattr(path, "trusted.overlay.opaque", &mut value) {
        Ok(length) => Ok(value.get(..length) == Some(b"y".as_slice())),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns where the file `name` in `parent` has its content, where that is elsewhere.
pub(crate) fn redirect(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut value = [0_u8; 256];
    match fs::lgetxattr(proc_path(parent, name), "trusted.overlay.redirect", &mut value) {
        Ok(length) => Ok(value.get(..length).map(<[u8]>::to_vec)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn list(path: &PathBuf) -> io::Result<Vec<Vec<u8>>> {
    let mut names: Vec<u8> = Vec::with_capacity(XATTR_BYTES_MAX);
    match fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

fn stamp(seconds: i64, nanos: impl TryInto<u32>) -> Stamp {
    Stamp { seconds, nanos: nanos.try_into().unwrap_or(0) }
}
