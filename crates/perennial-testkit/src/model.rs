//! Random scripts of file system operations, which can be applied inside a container and to a plain directory, so
//! that the two can be compared after every exit.
//!
//! On a plain directory and on an overlay the same operations must lead to equal trees. Two things would prevent it,
//! and are evened out here, on both sides alike:
//!
//! - Overlayfs breaks hard links of lower layers when it copies one name up (`index=off`). So whoever changes an
//!   inode that had several names at the beginning of the stage first gives this name an inode of its own, as editors
//!   do. (What overlayfs does by itself is a case of [`crate::traps`].)
//! - Overlayfs refuses to rename directories of lower layers. So directories that are older than the stage are moved
//!   by copying.
//!
//! After each operation, what it has changed gets an mtime that depends on the script alone.
//!
//! No operation follows a symlink or leaves the root, whatever the script has built.

use crate::bytes::Bytes;
use crate::copy;
use crate::tree::TreeListing;
use anyhow::{Context as _, Result};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// One operation; paths are relative to the script's root.
#[expect(missing_docs, reason = "the fields are the operands that each variant's text names")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Makes a file if there is none, and writes `length` bytes `fill` at `offset`.
    Write { path: Bytes, offset: u32, length: u32, fill: u8 },
    /// Sets a file's size.
    Truncate { path: Bytes, size: u32 },
    /// Renames anything.
    Rename { from: Bytes, to: Bytes },
    /// Removes anything but a directory.
    Unlink { path: Bytes },
    /// Makes a directory.
    Mkdir { path: Bytes },
    /// Removes an empty directory.
    Rmdir { path: Bytes },
    /// Removes anything, with all that is in it.
    RemoveTree { path: Bytes },
    /// Removes anything and makes a directory with a file in it instead.
    ReplaceByDir { path: Bytes },
    /// Removes anything and makes a file instead.
    ReplaceByFile { path: Bytes },
    /// Gives an inode one more name.
    Link { from: Bytes, to: Bytes },
    /// Makes a symlink.
    Symlink { path: Bytes, target: Bytes },
    /// Makes a named pipe.
    Mkfifo { path: Bytes },
    /// Sets the permission bits of anything but a symlink.
    Chmod { path: Bytes, mode: u32 },
    /// Sets owner and group.
    Chown { path: Bytes, uid: u32, gid: u32 },
    /// Sets an xattr `user.NAME`.
    SetXattr { path: Bytes, name: Bytes, value: Bytes },
    /// Removes an xattr `user.NAME`.
    RemoveXattr { path: Bytes, name: Bytes },
    /// Sets the mtime.
    Utimens { path: Bytes, seconds: i64, nanos: u32 },
}

/// The operations of one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stage {
    /// Which run it is, from 1; its mtimes depend on it.
    pub number: u32,
    /// What is done, in this order.
    pub ops: Vec<Op>,
}

/// How one operation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// It changed the tree.
    Done,
    /// It was refused, with this error number.
    Refused(i32),
}

impl Applied {
    /// Tells whether it was done; error numbers may differ between file systems.
    #[must_use]
    pub fn done(self) -> bool {
        self == Self::Done
    }
}

/// Applies one stage below `root`, which must exist. Refusals are results; anything unexpected is an error.
pub fn apply(root: &Path, stage: &Stage) -> Result<Vec<Applied>> {
    let dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("root {}", root.display()))?;
    let listing = TreeListing::of(root)?;
    let shared = listing.entries.into_iter().filter(|(_, entry)| !entry.links.is_empty()).map(|(path, _)| path);
    let mut world = World { root: dir, shared: shared.collect(), fresh: BTreeSet::new() };
    let mut applied = Vec::with_capacity(stage.ops.len());
    for (number, op) in stage.ops.iter().enumerate() {
        let outcome = world.apply(op).with_context(|| format!("operation {number}, {op:?}"))?;
        if let Ok(touched) = &outcome {
            let seconds = 1_000_000_000 + i64::from(stage.number) * 1_000_000 + i64::try_from(number)?;
            touched.iter().try_for_each(|path| world.set_time(path, (seconds, 42)).or_else(gone))?;
        }
        applied.push(outcome.map_or_else(|error| Applied::Refused(error.raw_os_error()), |_| Applied::Done));
    }
    Ok(applied)
}

/// What a stage must know to act on every file system alike.
struct World {
    root: OwnedFd,
    /// Names that shared an inode with others when the stage began.
    shared: BTreeSet<Bytes>,
    /// Directories made in this stage.
    fresh: BTreeSet<Bytes>,
}

/// An entry whose directory is held open: the path leads through the descriptor, so nothing on it can be a symlink.
struct Held {
    path: PathBuf,
    _parent: OwnedFd,
}

/// Refused by the kernel, or paths whose mtime has changed.
type Changed = std::result::Result<Vec<Bytes>, Errno>;

fn gone(error: Errno) -> std::result::Result<(), Errno> {
    if error == Errno::NOENT { Ok(()) } else { Err(error) }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn parent(path: &Bytes) -> Bytes {
    let cut = path.iter().rposition(|&byte| byte == b'/').unwrap_or_default();
    Bytes::from(path.get(..cut).unwrap_or_default())
}

impl World {
    fn hold(&self, path: &Bytes) -> std::result::Result<Held, Errno> {
        let (above, name) = (parent(path), path.rsplit(|&byte| byte == b'/').next().unwrap_or_default());
        let above = if above.is_empty() { Bytes::from(".") } else { above };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&self.root, &*above.0, flags, Mode::empty(), resolve)?;
        let path = Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string()).join(OsStr::from_bytes(name));
        Ok(Held { path, _parent: fd })
    }

    fn set_time(&self, path: &Bytes, (seconds, nanos): (i64, i64)) -> std::result::Result<(), Errno> {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        if path.is_empty() {
            return rustix::fs::utimensat(&self.root, ".", &times, AtFlags::empty());
        }
        rustix::fs::utimensat(CWD, &self.hold(path)?.path, &times, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Gives a name an inode of its own if it shared one when the stage began.
    fn own(&mut self, path: &Bytes) -> Result<Vec<Bytes>> {
        if !self.shared.remove(path) {
            return Ok(Vec::new());
        }
        let Ok(held) = self.hold(path) else { return Ok(Vec::new()) };
        if fs::symlink_metadata(&held.path).map_or(true, |meta| meta.is_dir()) {
            return Ok(Vec::new());
        }
        let beside = held.path.with_file_name(".model-own");
        copy::copy_file(&held.path, &beside)?;
        rustix::fs::rename(&beside, &held.path)?;
        Ok(vec![parent(path)])
    }

    /// Applies one operation; returns the paths whose mtime it has changed.
    fn apply(&mut self, op: &Op) -> Result<Changed> {
        let mut touched = match op {
            Op::Write { path, .. }
            | Op::Truncate { path, .. }
            | Op::Chmod { path, .. }
            | Op::Chown { path, .. }
            | Op::SetXattr { path, .. }
            | Op::RemoveXattr { path, .. }
            | Op::Utimens { path, .. }
            | Op::Link { from: path, .. }
            | Op::Rename { from: path, .. } => self.own(path)?,
            Op::Unlink { .. }
            | Op::Mkdir { .. }
            | Op::Rmdir { .. }
            | Op::RemoveTree { .. }
            | Op::ReplaceByDir { .. }
            | Op::ReplaceByFile { .. }
            | Op::Symlink { .. }
            | Op::Mkfifo { .. } => Vec::new(),
        };
        let changed = if let Op::Rename { from, to } = op { self.rename(from, to)? } else { self.change(op) };
        if let (Err(_), false) = (&changed, touched.is_empty()) {
            // The name has got its own inode although the operation was refused: on both sides, so it counts.
            return Ok(Ok(touched));
        }
        Ok(changed.map(|more| {
            touched.extend(more);
            touched
        }))
    }

    fn change(&mut self, op: &Op) -> Changed {
        match op {
            Op::Write { path, offset, length, fill } => self.write(path, *offset, &vec![*fill; *length as usize]),
            Op::Truncate { path, size } => {
                let file = self.open(path, OFlags::WRONLY)?;
                rustix::fs::ftruncate(file, u64::from(*size))?;
                Ok(vec![path.clone()])
            }
            Op::Mkdir { path } => {
                fs::create_dir(self.hold(path)?.path).map_err(errno)?;
                self.fresh.insert(path.clone());
                Ok(vec![path.clone(), parent(path)])
            }
            Op::Unlink { path } => {
                rustix::fs::unlink(self.hold(path)?.path)?;
                Ok(vec![parent(path)])
            }
            Op::Rmdir { path } => {
                rustix::fs::rmdir(self.hold(path)?.path)?;
                self.forget(path);
                Ok(vec![parent(path)])
            }
            Op::RemoveTree { path } => {
                self.remove(path)?;
                Ok(vec![parent(path)])
            }
            Op::ReplaceByDir { path } => {
                self.remove(path)?;
                self.change(&Op::Mkdir { path: path.clone() })?;
                let child = Bytes([&path.0, &b"/inside"[..]].concat());
                let touched = self.write(&child, 0, b"replaced")?;
                Ok([touched, vec![path.clone(), parent(path)]].concat())
            }
            Op::ReplaceByFile { path } => {
                self.remove(path)?;
                self.write(path, 0, b"replaced")
            }
            Op::Link { from, to } => {
                let (from, held) = (self.hold(from)?, self.hold(to)?);
                rustix::fs::linkat(CWD, from.path, CWD, held.path, AtFlags::empty())?;
                Ok(vec![parent(to)])
            }
            Op::Symlink { path, target } => {
                rustix::fs::symlinkat(&*target.0, CWD, self.hold(path)?.path)?;
                Ok(vec![path.clone(), parent(path)])
            }
            Op::Mkfifo { path } => {
                let mode = Mode::from_raw_mode(0o644);
                rustix::fs::mknodat(CWD, self.hold(path)?.path, FileType::Fifo, mode, 0)?;
                Ok(vec![path.clone(), parent(path)])
            }
            Op::Rename { .. }
            | Op::Chmod { .. }
            | Op::Chown { .. }
            | Op::SetXattr { .. }
            | Op::RemoveXattr { .. }
            | Op::Utimens { .. } => self.change_attribute(op),
        }
    }

    fn change_attribute(&self, op: &Op) -> Changed {
        match op {
            Op::Chmod { path, mode } => {
                let held = self.hold(path)?;
                if fs::symlink_metadata(&held.path).map_err(errno)?.is_symlink() {
                    return Err(Errno::LOOP);
                }
                fs::set_permissions(held.path, fs::Permissions::from_mode(*mode)).map_err(errno)?;
            }
            Op::Chown { path, uid, gid } => {
                std::os::unix::fs::lchown(self.hold(path)?.path, Some(*uid), Some(*gid)).map_err(errno)?;
            }
            Op::SetXattr { path, name, value } => {
                let name = [b"user.", &*name.0].concat();
                rustix::fs::lsetxattr(self.hold(path)?.path, &*name, value, XattrFlags::empty())?;
            }
            Op::RemoveXattr { path, name } => {
                rustix::fs::lremovexattr(self.hold(path)?.path, &*[b"user.", &*name.0].concat())?;
            }
            Op::Utimens { path, seconds, nanos } => self.set_time(path, (*seconds, i64::from(*nanos)))?,
            Op::Write { .. }
            | Op::Truncate { .. }
            | Op::Rename { .. }
            | Op::Unlink { .. }
            | Op::Mkdir { .. }
            | Op::Rmdir { .. }
            | Op::RemoveTree { .. }
            | Op::ReplaceByDir { .. }
            | Op::ReplaceByFile { .. }
            | Op::Link { .. }
            | Op::Symlink { .. }
            | Op::Mkfifo { .. } => return Err(Errno::INVAL),
        }
        Ok(Vec::new())
    }

    fn open(&self, path: &Bytes, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(self.hold(path)?.path, flags, Mode::from_raw_mode(0o644))
    }

    fn write(&self, path: &Bytes, offset: u32, bytes: &[u8]) -> Changed {
        let new = fs::symlink_metadata(self.hold(path)?.path).is_err();
        let file = self.open(path, OFlags::WRONLY | OFlags::CREATE)?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let done = bytes.len() - rest.len();
            let written = rustix::io::pwrite(&file, rest, u64::from(offset) + done as u64)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        Ok(if new { vec![path.clone(), parent(path)] } else { vec![path.clone()] })
    }

    fn remove(&mut self, path: &Bytes) -> std::result::Result<(), Errno> {
        let held = self.hold(path)?;
        let dir = fs::symlink_metadata(&held.path).map_err(errno)?.is_dir();
        if dir { fs::remove_dir_all(held.path) } else { fs::remove_file(held.path) }.map_err(errno)?;
        self.forget(path);
        Ok(())
    }

    fn rename(&mut self, from: &Bytes, to: &Bytes) -> Result<Changed> {
        let (Ok(source), Ok(target)) = (self.hold(from), self.hold(to)) else { return Ok(Err(Errno::NOENT)) };
        let Ok(meta) = fs::symlink_metadata(&source.path) else { return Ok(Err(Errno::NOENT)) };
        if to == from || below(to, from) {
            return Ok(Err(Errno::INVAL));
        }
        let onto_dir = fs::symlink_metadata(&target.path).is_ok_and(|meta| meta.is_dir());
        if onto_dir && fs::read_dir(&target.path)?.next().is_some() {
            // The kernel need not be asked, and overlayfs has changed the directories' times before it refuses.
            return Ok(Err(Errno::NOTEMPTY));
        }
        let whole = !meta.is_dir() || self.fresh.contains(from);
        if whole {
            if let Err(error) = rustix::fs::rename(&source.path, &target.path) {
                return Ok(Err(error));
            }
        } else if fs::symlink_metadata(&target.path).is_ok() {
            return Ok(Err(Errno::EXIST));
        } else {
            copy::move_tree(&source.path, &target.path)?;
        }
        self.moved(from, to, meta.is_dir())?;
        Ok(Ok(vec![parent(from), parent(to)]))
    }

    /// Notes that a directory and all below it are in a new place, made in this stage.
    fn moved(&mut self, from: &Bytes, to: &Bytes, dir: bool) -> Result<()> {
        self.forget(to);
        self.forget(from);
        if dir {
            let held = self.hold(to)?;
            for (path, entry) in TreeListing::of(&held.path)?.entries {
                let path = if path.is_empty() { to.clone() } else { Bytes([&to.0, &b"/"[..], &path.0].concat()) };
                if entry.kind == crate::tree::Kind::Dir {
                    self.fresh.insert(path);
                }
            }
        }
        Ok(())
    }

    fn forget(&mut self, path: &Bytes) {
        let stays = |other: &Bytes| other != path && !below(other, path);
        self.fresh.retain(stays);
        self.shared.retain(stays);
    }
}

/// Tells whether a path is below another.
fn below(path: &Bytes, above: &Bytes) -> bool {
    path.strip_prefix(&*above.0).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// Names that paths are made of: few, so that operations meet, and odd, so that they may be mistaken.
fn name() -> impl Strategy<Value = &'static [u8]> {
    prop_oneof![
        6 => Just(&b"a"[..]),
        4 => Just(&b"b"[..]),
        1 => Just(&b".wh.a"[..]),
        1 => Just(&b"\xff\n"[..]),
    ]
}

/// What follows `user.` in the names of xattrs.
const XATTRS: [&[u8]; 3] = [b"one", b"two=2", b"three\xff"];

fn path() -> impl Strategy<Value = Bytes> {
    // Short paths are more frequent, since what is deeper needs a directory above it.
    let depth = prop_oneof![4 => Just(1_usize), 3 => Just(2), 1 => Just(3)];
    depth.prop_flat_map(|depth| vec(name(), depth)).prop_map(|names| Bytes(names.join(&b'/')))
}

/// Returns random operations.
pub fn op() -> impl Strategy<Value = Op> {
    let length = prop_oneof![Just(0_u32), 1..5000_u32, 60_000..140_000_u32];
    let name = select(&XATTRS[..]).prop_map(Bytes::from);
    let target = prop_oneof![Just(Bytes::from("../../../../etc/passwd")), path()];
    let seconds = prop_oneof![Just(-1_i64), Just(0), 1_000_000_000..2_000_000_000_i64];
    let id = || select(&[0_u32, 1, 1000, 4_294_967_290][..]);
    let write = (path(), 0..300_000_u32, length.clone(), any::<u8>());
    let making = prop_oneof![
        6 => write.prop_map(|(path, offset, length, fill)| Op::Write { path, offset, length, fill }),
        6 => path().prop_map(|path| Op::Mkdir { path }),
        1 => (path(), target).prop_map(|(path, target)| Op::Symlink { path, target }),
        1 => path().prop_map(|path| Op::Mkfifo { path }),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
    ];
    let unmaking = prop_oneof![
        3 => (path(), path()).prop_map(|(from, to)| Op::Rename { from, to }),
        2 => path().prop_map(|path| Op::Unlink { path }),
        1 => path().prop_map(|path| Op::Rmdir { path }),
        1 => path().prop_map(|path| Op::RemoveTree { path }),
        1 => path().prop_map(|path| Op::ReplaceByDir { path }),
        1 => path().prop_map(|path| Op::ReplaceByFile { path }),
    ];
    let attributes = prop_oneof![
        (path(), length).prop_map(|(path, size)| Op::Truncate { path, size }),
        (path(), 0..0o10000_u32).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        (path(), id(), id()).prop_map(|(path, uid, gid)| Op::Chown { path, uid, gid }),
        (path(), name.clone(), vec(any::<u8>(), 0..100)).prop_map(|(path, name, value)| Op::SetXattr {
            path,
            name,
            value: Bytes(value)
        }),
        (path(), name).prop_map(|(path, name)| Op::RemoveXattr { path, name }),
        (path(), seconds, 0..1_000_000_000_u32).prop_map(|(path, seconds, nanos)| Op::Utimens { path, seconds, nanos }),
    ];
    prop_oneof![4 => making, 2 => unmaking, 2 => attributes]
}

/// Returns what every script begins with, so that its random operations find something.
fn prelude() -> Vec<Op> {
    let dirs = ["a", "a/a", "a/b", "b"].map(|path| Op::Mkdir { path: Bytes::from(path) });
    let files = ["a/a/a", "a/a/b", "a/b/a", "b/a", "b/b"];
    let write = |path| Op::Write { path: Bytes::from(path), offset: 0, length: 5000, fill: b'p' };
    dirs.into_iter().chain(files.map(write)).collect()
}

/// Returns random scripts of so many runs with up to so many random operations each.
pub fn script(runs: usize, ops_max: usize) -> impl Strategy<Value = Vec<Stage>> {
    vec(vec(op(), 1..=ops_max), runs).prop_map(|runs| {
        let mut stages: Vec<Stage> = (1..).zip(runs).map(|(number, ops)| Stage { number, ops }).collect();
        if let Some(first) = stages.first_mut() {
            first.ops.splice(..0, prelude());
        }
        stages
    })
}
