//! Where a case acts, and the short words it acts with.

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{AtFlags, CWD, FileType, IFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// An operation that the kernel or the file system does not offer; not a failure of the test.
#[derive(Debug)]
pub(super) struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Turns the errors by which a kernel says "not here" into [`Refused`].
pub(super) fn may<T>(what: &str, result: rustix::io::Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Errno::PERM
        | Errno::ACCESS
        | Errno::OPNOTSUPP
        | Errno::NOSYS
        | Errno::INVAL
        | Errno::NOTTY
        | Errno::NODEV
        | Errno::NOSPC
        | Errno::TOOBIG
        | Errno::RANGE
        | Errno::NAMETOOLONG => anyhow!(Refused(format!("{what}: {error}"))),
        other => anyhow!(other).context(what.to_owned()),
    })
}

/// Refuses in words what turned out not to be kept.
pub(super) fn kept(what: &str, so: bool) -> Result<()> {
    if so { Ok(()) } else { Err(anyhow!(Refused(format!("{what}: accepted, but not kept")))) }
}

/// Returns the present time.
pub(super) fn now() -> Timespec {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime)
}

/// Where a case acts.
#[derive(Debug, Clone)]
pub struct Site {
    root: PathBuf,
    dir: PathBuf,
}

/// Names are any bytes.
type Name<'a> = &'a str;

impl Site {
    pub(super) fn new(root: &Path, dir: &Path) -> Self {
        Self { root: root.to_owned(), dir: dir.to_owned() }
    }

    /// Returns the root that the stages act on.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns where an entry of this case is; `.` for the case's directory.
    pub(super) fn at(&self, name: Name<'_>) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns where an entry with a name of any bytes is.
    pub(super) fn at_bytes(&self, name: &[u8]) -> PathBuf {
        self.dir.join(OsStr::from_bytes(name))
    }

    /// Makes a file, with the directories above it, or replaces its bytes.
    pub(super) fn file(&self, name: Name<'_>, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.parents(name)?;
        crate::host::write(self.at(name), bytes)
    }

    fn parents(&self, name: Name<'_>) -> Result<()> {
        let path = self.at(name);
        let parent = path.parent().ok_or_else(|| anyhow!("{name} has no parent"))?;
        fs::create_dir_all(parent).with_context(|| format!("above {name}"))
    }

    /// Makes a directory and those above it.
    pub(super) fn dir(&self, name: Name<'_>) -> Result<()> {
        fs::create_dir_all(self.at(name)).with_context(|| format!("directory {name}"))
    }

    /// Writes bytes at an offset of an existing file.
    pub(super) fn write_at(&self, name: Name<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = rustix::fs::open(self.at(name), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::pwrite(file, bytes, offset)?;
        Ok(())
    }

    /// Appends bytes to an existing file.
    pub(super) fn append(&self, name: Name<'_>, bytes: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(self.at(name), flags, Mode::empty()).with_context(|| format!("append to {name}"))?;
        rustix::io::write(file, bytes)?;
        Ok(())
    }

    /// Sets a file's size.
    pub(super) fn truncate(&self, name: Name<'_>, size: u64) -> Result<()> {
        let file = rustix::fs::open(self.at(name), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::fs::ftruncate(file, size)?)
    }

    /// Removes anything.
    pub(super) fn remove(&self, name: Name<'_>) -> Result<()> {
        let path = self.at(name);
        let dir = fs::symlink_metadata(&path).with_context(|| format!("remove {name}"))?.is_dir();
        if dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.with_context(|| format!("remove {name}"))
    }

    /// Renames an entry; a directory that overlayfs does not rename is moved as `mv` does: copied and removed.
    pub(super) fn rename(&self, from: Name<'_>, to: Name<'_>) -> Result<()> {
        crate::copy::rename(&self.at(from), &self.at(to)).with_context(|| format!("rename {from} to {to}"))
    }

    /// Gives an inode one more name.
    pub(super) fn link(&self, from: Name<'_>, to: Name<'_>) -> Result<()> {
        self.parents(to)?;
        rustix::fs::linkat(CWD, self.at(from), CWD, self.at(to), AtFlags::empty())
            .with_context(|| format!("link {from} as {to}"))
    }

    /// Makes a symlink.
    pub(super) fn symlink(&self, target: &str, name: Name<'_>) -> Result<()> {
        may("symlink", rustix::fs::symlinkat(target, CWD, self.at(name)))
    }

    /// Makes a device, a pipe or a socket.
    pub(super) fn node(&self, name: Name<'_>, kind: FileType, (major, minor): (u32, u32)) -> Result<()> {
        let device = rustix::fs::makedev(major, minor);
        may(name, rustix::fs::mknodat(CWD, self.at(name), kind, Mode::from_raw_mode(0o640), device))
    }

    /// Sets permission bits.
    pub(super) fn chmod(&self, name: Name<'_>, mode: u32) -> Result<()> {
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(mode)).with_context(|| format!("chmod {name}"))
    }

    /// Sets owner and group, of a symlink itself too.
    pub(super) fn chown(&self, name: Name<'_>, uid: u32, gid: u32) -> Result<()> {
        std::os::unix::fs::lchown(self.at(name), Some(uid), Some(gid)).with_context(|| format!("chown {name}"))
    }

    /// Sets an xattr, of a symlink itself too.
    pub(super) fn xattr(&self, name: Name<'_>, xattr: &[u8], value: &[u8]) -> Result<()> {
        let what = format!("xattr {} of {name}", xattr.escape_ascii());
        may(&what, rustix::fs::lsetxattr(self.at(name), xattr, value, XattrFlags::empty()))
    }

    /// Removes an xattr.
    pub(super) fn no_xattr(&self, name: Name<'_>, xattr: &[u8]) -> Result<()> {
        let what = format!("xattr {} of {name}", xattr.escape_ascii());
        rustix::fs::lremovexattr(self.at(name), xattr).context(what)
    }

    /// Sets the mtime, of a symlink itself too.
    pub(super) fn time(&self, name: Name<'_>, seconds: i64, nanos: i64) -> Result<()> {
        set_time(&self.at(name), seconds, nanos)
    }

    /// Sets or clears inode flags.
    pub(super) fn flags(&self, name: Name<'_>, set: IFlags, clear: IFlags) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.at(name), flags, Mode::empty())?;
        let old = may("get inode flags", rustix::fs::ioctl_getflags(&file))?;
        may("set inode flags", rustix::fs::ioctl_setflags(&file, (old - clear) | set))?;
        let kept_flags = may("get inode flags", rustix::fs::ioctl_getflags(&file))?;
        kept("inode flags", kept_flags.contains(set) && !kept_flags.intersects(clear))
    }
}

/// Sets the mtime of what is at a path, without following it.
pub(super) fn set_time(path: &Path, seconds: i64, nanos: i64) -> Result<()> {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("time of {}", path.display()))
}
