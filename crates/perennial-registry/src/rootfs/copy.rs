//! Copies a directory tree with all attributes, and sums its listing on the way.

use super::at;
use super::walk::{Pair, Stack, shown};
use crate::apply::{Applied, Limits};
use crate::attributes::Attributes;
use crate::beneath::split;
use crate::contents;
use crate::digest::finish;
use crate::lowers::is_whiteout;
use crate::progress::{Event, Phase, Progress};
use perennial_core::id::Digest;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

/// Why a directory tree cannot be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// One entry cannot be read or written.
    #[error("entry {entry:?} cannot be copied")]
    Entry {
        /// Its path below the root.
        entry: String,
        /// What the system said.
        source: io::Error,
    },
    /// A character device 0:0: the tree is the upper directory of a union mount, not a root file system.
    #[error("entry {entry:?} is a whiteout; a merged tree is expected, not an upper directory")]
    Whiteout {
        /// Its path below the root.
        entry: String,
    },
    /// More entries than allowed.
    #[error("tree has more than {entries_max} entries, the limit")]
    TooManyEntries {
        /// The limit.
        entries_max: u64,
    },
    /// More bytes than allowed, or than there is space.
    #[error("tree has more than {bytes_max} bytes, the limit or the free space of the store")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The store's directory is inside the tree.
    #[error("the store lies inside the tree, which would be copied into itself")]
    Inside,
}

struct Copy<'a> {
    /// The directory being written.
    root: OwnedFd,
    limits: Limits,
    progress: &'a dyn Progress,
    device: u64,
    /// The directory being written; never entered.
    own: (u64, u64),
    sum: Sha256,
    /// First name of every file that has several.
    names: BTreeMap<(u64, u64), Vec<u8>>,
    applied: Applied,
}

/// A directory whose entries are being copied.
struct Level {
    path: Vec<u8>,
    attributes: Attributes,
    /// Names still to do, the next one last.
    names: Vec<Vec<u8>>,
}

/// Copies the tree at `from` into the empty directory `to`; returns the digest of its listing.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<(Digest, Applied), CopyError> {
    let open = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(CWD, path, flags, Mode::empty()).map_err(|error| at(b".")(error.into()))
    };
    let (from, to) = (open(from)?, open(to)?);
    let stat = fs::fstat(&from).map_err(|error| at(b".")(error.into()))?;
    let own = fs::fstat(&to).map_err(|error| at(b".")(error.into()))?;
    let space = fs::fstatvfs(&to).map_err(|error| at(b".")(error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let mut copy = Copy {
        root: to.try_clone().map_err(at(b"."))?,
        limits: Limits { bytes_max: limits.bytes_max.min(free), ..*limits },
        progress,
        device: stat.st_dev,
        own: (own.st_dev, own.st_ino),
        sum: Sha256::new_with_prefix(b"perennial-tree-1\n"),
        names: BTreeMap::new(),
        applied: Applied::default(),
    };
    copy.tree(Pair::new(from, to).map_err(at(b"."))?, &stat)?;
    Ok((finish(copy.sum), copy.applied))
}

impl Copy<'_> {
    fn tree(&mut self, root: Pair, stat: &Stat) -> Result<(), CopyError> {
        let attributes = Attributes::read(root.from.as_fd(), b".", stat).map_err(at(b"."))?;
        attributes.apply(root.to.as_fd(), b".", FileType::Directory).map_err(at(b"."))?;
        self.record(b"", b'd', &attributes, stat);
        let names = root.names().map_err(at(b"."))?;
        let mut stack = Stack::new(root);
        let mut levels = vec![Level { path: Vec::new(), attributes, names }];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                // Everything in it is written: its times stay now.
                let to = &stack.top().map_err(at(&level.path))?.to;
                level.attributes.apply_times(to.as_fd(), b".").map_err(at(&level.path))?;
                stack.leave().map_err(at(&level.path))?;
                levels.pop();
                continue;
            };
            let path =
                if level.path.is_empty() { name.clone() } else { [&level.path, b"/".as_slice(), &name].concat() };
            let pair = stack.top().map_err(at(&path))?;
            let Some((attributes, is_entered)) = self.entry(pair, &name, &path)? else {
                continue;
            };
            stack.enter(&name).map_err(at(&path))?;
            let names = if is_entered { stack.top().and_then(Pair::names).map_err(at(&path))? } else { Vec::new() };
            levels.push(Level { path, attributes, names });
        }
        Ok(())
    }

    /// Copies one entry. Returns the attributes of a directory, and whether its entries are to be copied.
    fn entry(&mut self, pair: &Pair, name: &[u8], path: &[u8]) -> Result<Option<(Attributes, bool)>, CopyError> {
        let stat = match fs::statat(&pair.from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since it was listed: the tree is in use.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(at(path)(error.into())),
        };
        self.applied.entries += 1;
        if self.applied.entries > self.limits.entries_max {
            return Err(CopyError::TooManyEntries { entries_max: self.limits.entries_max });
        }
        if (stat.st_dev, stat.st_ino) == self.own {
            return Err(CopyError::Inside);
        }
        if is_whiteout(&stat) {
            return Err(CopyError::Whiteout { entry: shown(path) });
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            self.note(format!("{:?}: a socket is left out", shown(path)));
            return Ok(None);
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let identity = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.names.get(&identity).cloned() {
                return self.link(pair, name, path, &first).map(|()| None).map_err(at(path));
            }
            self.names.insert(identity, path.to_vec());
        }
        let attributes = Attributes::read(pair.from.as_fd(), name, &stat).map_err(at(path))?;
        if kind == FileType::Directory {
            fs::mkdirat(&pair.to, name, Mode::RWXU).map_err(|error| at(path)(error.into()))?;
            attributes.apply(pair.to.as_fd(), name, kind).map_err(at(path))?;
            self.record(path, b'd', &attributes, &stat);
            let is_entered = stat.st_dev == self.device;
            if !is_entered {
                self.note(format!("{:?}: a mount point, whose content is left out", shown(path)));
            }
            return Ok(Some((attributes, is_entered)));
        }
        self.file(pair, name, path, (&stat, &attributes))?;
        attributes.apply(pair.to.as_fd(), name, kind).map_err(at(path))?;
        attributes.apply_times(pair.to.as_fd(), name).map_err(at(path))?;
        Ok(None)
    }

    /// Makes a file that is not a directory, with its content.
    fn file(
        &mut self,
        pair: &Pair,
        name: &[u8],
        path: &[u8],
        (stat, attributes): (&Stat, &Attributes),
    ) -> Result<(), CopyError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let letter = match kind {
            FileType::RegularFile => return self.regular(pair, name, path, (stat, attributes)),
            FileType::Symlink => {
                let target = fs::readlinkat(&pair.from, name, Vec::new()).map_err(|error| at(path)(error.into()))?;
                fs::symlinkat(&*target, &pair.to, name).map_err(|error| at(path)(error.into()))?;
                self.record(path, b's', attributes, stat);
                self.field(target.to_bytes());
                return Ok(());
            }
            FileType::CharacterDevice => b'c',
            FileType::BlockDevice => b'b',
            FileType::Fifo => b'p',
            FileType::Directory | FileType::Socket | FileType::Unknown => {
                return Err(at(path)(io::Error::new(io::ErrorKind::Unsupported, "it is of an unknown kind")));
            }
        };
        fs::mknodat(&pair.to, name, kind, Mode::RUSR, stat.st_rdev).map_err(|error| at(path)(error.into()))?;
        self.record(path, letter, attributes, stat);
        Ok(())
    }

    fn regular(
        &mut self,
        pair: &Pair,
        name: &[u8],
        path: &[u8],
        (stat, attributes): (&Stat, &Attributes),
    ) -> Result<(), CopyError> {
        let error = |error: Errno| at(path)(error.into());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let from: OwnedFd = fs::openat(&pair.from, name, flags, Mode::empty()).map_err(error)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = fs::openat(&pair.to, name, flags, Mode::RUSR | Mode::WUSR).map_err(error)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut content = Sha256::new();
        let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512).min(size);
        if self.applied.bytes.saturating_add(stored) > self.limits.bytes_max {
            return Err(CopyError::TooLarge { bytes_max: self.limits.bytes_max });
        }
        let copied = contents::copy(&from, &to, size, Some(&mut content)).map_err(at(path))?;
        self.applied.bytes = self.applied.bytes.saturating_add(copied);
        self.progress.event(Event::Advanced { layer: 0, phase: Phase::Apply, bytes: self.applied.bytes });
        self.record(path, b'f', attributes, stat);
        self.sum.update(format!("{size} "));
        self.sum.update(content.finalize());
        Ok(())
    }

    /// Makes another name of a file that is copied already.
    fn link(&mut self, pair: &Pair, name: &[u8], path: &[u8], first: &[u8]) -> io::Result<()> {
        let (directory, first_name) = split(first);
        // Step by step: a path may be longer than the kernel takes at once.
        let mut here = fs::openat(&self.root, ".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for part in directory.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            here = fs::openat(&here, part, flags, Mode::empty())?;
        }
        fs::linkat(&here, first_name, &pair.to, name, AtFlags::empty())?;
        self.sum.update(path);
        self.sum.update([0, b'l', 0]);
        self.field(first);
        Ok(())
    }

    /// Adds one record to the listing.
    fn record(&mut self, path: &[u8], kind: u8, attributes: &Attributes, stat: &Stat) {
        self.sum.update(path);
        self.sum.update([0, kind, 0]);
        let Attributes { mode, uid, gid, mtime, .. } = attributes;
        let (major, minor) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::CharacterDevice | FileType::BlockDevice => (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)),
            FileType::RegularFile
            | FileType::Directory
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::Unknown => (0, 0),
        };
        let numbers = format!("{mode} {uid} {gid} {} {} {major} {minor} ", mtime.seconds, mtime.nanos);
        self.sum.update(numbers);
        self.sum.update([0]);
        self.sum.update(format!("{} ", attributes.xattrs.len()));
        for (name, value) in &attributes.xattrs {
            self.field(name);
            self.field(value);
        }
    }

    /// Adds a length and bytes to the listing.
    fn field(&mut self, bytes: &[u8]) {
        self.sum.update(format!("{} ", bytes.len()));
        self.sum.update(bytes);
    }

    fn note(&mut self, text: String) {
        const NOTES_MAX: usize = 100;
        if self.applied.notes.len() < NOTES_MAX {
            self.applied.notes.push(text);
        }
    }
}
