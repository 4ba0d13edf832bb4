//! What differs between two stacks of layers, at a cost of what they do not share.
//!
//! Only paths that a layer of one stack and not of the other holds are looked at, and compared through mounted views of
//! both. Where such a layer hides what is below it (opaque directory, whiteout, other type), the whole subtree is
//! compared.

use super::Attrs;
use super::attrs::{AttrIo, Reading, Target};
use super::copy::{Place, open_file};
use super::cursor::{Cursor, EntryStat, MoveError, read_names};
use super::error::{EntryPath, PathTrail, TreeError};
use super::stack::kind_of;
use perennial_core::id::LayerId;
use perennial_core::sealed::object::ObjectId;
use perennial_core::tree::EntryKind;
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{FileType, readlinkat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};

/// Bytes compared at once.
const COMPARED_BYTES: usize = 128 * 1024;

/// One of the two stacks.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its layers above the image, newest first.
    pub layers: &'a [(LayerId, BorrowedFd<'a>)],
    /// A mounted view of the whole stack, image included.
    pub root: BorrowedFd<'a>,
}

/// How an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is only in the second stack.
    Added,
    /// It is only in the first stack.
    Removed,
    /// It is in both, of the same type.
    Modified {
        /// Bytes of a file, target of a link, or number of a device.
        content: bool,
        /// Mode, owner, modification time, extended attributes or flags.
        metadata: bool,
    },
    /// It is in both, of different types.
    TypeChanged,
}

/// An entry that differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Its path as bytes, relative to the root, which itself is empty.
    pub path: Vec<u8>,
    /// How it differs.
    pub kind: ChangeKind,
}

/// Returns what differs from stack `a` to stack `b`, sorted by path.
///
/// A directory whose only difference is its modification time is left out where something in it differs.
///
/// # Errors
/// If a layer or a view cannot be read.
pub fn diff(a: &Side<'_>, b: &Side<'_>) -> Result<Vec<Change>, TreeError> {
    let root = || EntryPath::from_bytes(Vec::new());
    let shared = a.layers.iter().rev().zip(b.layers.iter().rev()).take_while(|(a, b)| a.0 == b.0).count();
    let unshared = |side: &Side<'_>| side.layers.len().saturating_sub(shared);
    let layers = a.layers.iter().take(unshared(a)).chain(b.layers.iter().take(unshared(b)));
    let mut io = AttrIo::default();
    let mut cursors = Vec::new();
    let mut extent = Extent::Touched((0..unshared(a).saturating_add(unshared(b))).collect());
    for (_, layer) in layers {
        let cursor = Cursor::with_open_max(*layer, 1).map_err(|error| error.at(root()))?;
        if io.is_opaque(Target::Open(cursor.fd()), &root)? {
            extent = Extent::Everything;
        }
        cursors.push(cursor);
    }
    if cursors.is_empty() {
        return Ok(Vec::new());
    }
    let cursor = |fd| Cursor::new(fd).map_err(|error| error.at(root()));
    let mut differ = Differ {
        a: cursor(a.root)?,
        b: cursor(b.root)?,
        layers: cursors,
        of_a: unshared(a),
        path: PathTrail::default(),
        changes: Vec::new(),
        views: AttrIo::new(Reading::Views),
        io,
    };
    differ.run(extent)?;
    differ.changes.sort_unstable();
    Ok(differ.changes)
}

/// Which entries of a directory are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Extent {
    /// Those that one of these layers holds.
    Touched(Vec<usize>),
    /// All.
    Everything,
}

/// In which views a directory is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Both,
    OnlyA,
    OnlyB,
}

impl Seen {
    const fn in_a(self) -> bool {
        matches!(self, Self::Both | Self::OnlyA)
    }
    const fn in_b(self) -> bool {
        matches!(self, Self::Both | Self::OnlyB)
    }
}

#[derive(Debug)]
struct Frame {
    names: std::collections::btree_set::IntoIter<CString>,
    extent: Extent,
    seen: Seen,
    /// Changes found before this directory.
    before: usize,
    /// Its own metadata differs; `Times` if it is only the time.
    own: Metadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metadata {
    Same,
    Times,
    Differs,
}

struct Differ {
    a: Cursor,
    b: Cursor,
    layers: Vec<Cursor>,
    /// How many of the layers, the first ones, are of stack `a`.
    of_a: usize,
    path: PathTrail,
    changes: Vec<Change>,
    /// Reads layers.
    io: AttrIo,
    /// Reads the views.
    views: AttrIo,
}

impl Differ {
    fn run(&mut self, extent: Extent) -> Result<(), TreeError> {
        let mut frames = vec![self.open(extent, Seen::Both)?];
        while let Some(frame) = frames.last_mut() {
            if let Some(name) = frame.names.next() {
                let (extent, seen) = (frame.extent.clone(), frame.seen);
                if let Some(child) = self.compare(&name, &extent, seen)? {
                    frames.push(child);
                }
                continue;
            }
            let Some(done) = frames.pop() else { break };
            let quiet = done.own == Metadata::Times && self.changes.len() > done.before;
            if done.own != Metadata::Same && !quiet {
                self.note(self.path.here(), ChangeKind::Modified { content: false, metadata: true });
            }
            if !frames.is_empty() {
                self.leave(&done).map_err(|error| error.at(self.path.here()))?;
            }
        }
        Ok(())
    }

    fn note(&mut self, path: EntryPath, kind: ChangeKind) {
        self.changes.push(Change { path: path.as_bytes().to_vec(), kind });
    }

    /// Begins a directory into which the cursors have gone.
    fn open(&mut self, extent: Extent, seen: Seen) -> Result<Frame, TreeError> {
        let mut fds = Vec::new();
        match &extent {
            Extent::Touched(layers) => fds.extend(layers.iter().filter_map(|at| self.layers.get(*at)).map(Cursor::fd)),
            Extent::Everything => {
                fds.extend(seen.in_a().then(|| self.a.fd()));
                fds.extend(seen.in_b().then(|| self.b.fd()));
            }
        }
        let mut names = BTreeSet::new();
        for fd in fds {
            let listed = read_names(fd).map_err(|errno| TreeError::system("list", self.path.here(), errno))?;
            names.extend(listed.into_iter().map(|found| found.name));
        }
        let before = self.changes.len();
        let own = match seen {
            Seen::Both => {
                let path = || self.path.here();
                let (a, b) =
                    (read_open(&mut self.views, self.a.fd(), &path)?, read_open(&mut self.views, self.b.fd(), &path)?);
                metadata(a, &b)
            }
            Seen::OnlyA | Seen::OnlyB => Metadata::Same,
        };
        Ok(Frame { names: names.into_iter(), extent, seen, before, own })
    }

    /// Compares one name; returns the frame of a directory, into which the cursors have gone then.
    fn compare(&mut self, name: &CStr, extent: &Extent, seen: Seen) -> Result<Option<Frame>, TreeError> {
        let find = |cursor: &Cursor| {
            EntryStat::find(cursor.fd(), name)
                .map_err(|errno| TreeError::system("look at", self.path.join(name), errno))
        };
        let a = if seen.in_a() { find(&self.a)? } else { None };
        let b = if seen.in_b() { find(&self.b)? } else { None };
        let (dir_a, dir_b) = (a.is_some_and(|a| a.is_dir()), b.is_some_and(|b| b.is_dir()));
        match (&a, &b) {
            (None, None) => return Ok(None),
            (Some(_), None) => self.note(self.path.join(name), ChangeKind::Removed),
            (None, Some(_)) => self.note(self.path.join(name), ChangeKind::Added),
            (Some(a), Some(b)) if a.file_type() != b.file_type() => {
                self.note(self.path.join(name), ChangeKind::TypeChanged);
            }
            (Some(_), Some(_)) if dir_a => {}
            (Some(a), Some(b)) => self.compare_non_dirs(name, extent, a, b)?,
        }
        let seen = match (dir_a, dir_b) {
            (true, true) => Seen::Both,
            (true, false) => Seen::OnlyA,
            (false, true) => Seen::OnlyB,
            (false, false) => return Ok(None),
        };
        let extent = match seen {
            Seen::Both => self.extent_of(name, extent)?,
            Seen::OnlyA | Seen::OnlyB => Extent::Everything,
        };
        self.enter(name, &extent, seen).map_err(|error| error.at(self.path.join(name)))?;
        self.path.push(name);
        self.open(extent, seen).map(Some)
    }

    fn extent_of(&mut self, name: &CStr, extent: &Extent) -> Result<Extent, TreeError> {
        let Extent::Touched(layers) = extent else { return Ok(Extent::Everything) };
        let mut touched = Vec::new();
        for layer in layers {
            let Some(cursor) = self.layers.get(*layer) else { continue };
            let path = || self.path.join(name);
            let found = EntryStat::find(cursor.fd(), name);
            let Some(stat) = found.map_err(|errno| TreeError::system("look at", path(), errno))? else { continue };
            match kind_of(&mut self.io, Target::Named(cursor.fd(), name), &stat, &path)? {
                EntryKind::Dir => touched.push(*layer),
                EntryKind::Whiteout | EntryKind::OpaqueDir | EntryKind::NonDir => return Ok(Extent::Everything),
            }
        }
        Ok(Extent::Touched(touched))
    }

    fn enter(&mut self, name: &CStr, extent: &Extent, seen: Seen) -> Result<(), MoveError> {
        if seen.in_a() {
            self.a.enter(name)?;
        }
        if seen.in_b() {
            self.b.enter(name)?;
        }
        if let Extent::Touched(layers) = extent {
            for layer in layers {
                self.layers.get_mut(*layer).ok_or(Errno::NOENT)?.enter(name)?;
            }
        }
        Ok(())
    }

    fn leave(&mut self, frame: &Frame) -> Result<(), MoveError> {
        if frame.seen.in_a() {
            self.a.leave()?;
        }
        if frame.seen.in_b() {
            self.b.leave()?;
        }
        if let Extent::Touched(layers) = &frame.extent {
            for layer in layers {
                self.layers.get_mut(*layer).ok_or(Errno::NOENT)?.leave()?;
            }
        }
        self.path.pop();
        Ok(())
    }

    /// Returns the objects that are the content of a file in both stacks, where two sealed layers say so.
    fn objects(&mut self, name: &CStr, extent: &Extent) -> Result<Option<(ObjectId, ObjectId)>, TreeError> {
        let Extent::Touched(layers) = extent else { return Ok(None) };
        let (of_a, of_b): (Vec<usize>, Vec<usize>) = layers.iter().partition(|layer| **layer < self.of_a);
        let Some(a) = self.object(name, &of_a)? else { return Ok(None) };
        Ok(self.object(name, &of_b)?.map(|b| (a, b)))
    }

    /// Returns the object of the first of these layers that holds the name.
    fn object(&mut self, name: &CStr, layers: &[usize]) -> Result<Option<ObjectId>, TreeError> {
        for layer in layers {
            let Some(cursor) = self.layers.get(*layer) else { continue };
            let path = || self.path.join(name);
            let found = EntryStat::find(cursor.fd(), name);
            let Some(stat) = found.map_err(|errno| TreeError::system("look at", path(), errno))? else { continue };
            if stat.file_type() != FileType::RegularFile {
                return Ok(None);
            }
            return match self.io.object(Target::Named(cursor.fd(), name), &path) {
                // Its content is that of a file below.
                Err(TreeError::Refused { .. }) => Ok(None),
                object => object,
            };
        }
        Ok(None)
    }

    fn compare_non_dirs(
        &mut self,
        name: &CStr,
        extent: &Extent,
        a: &EntryStat,
        b: &EntryStat,
    ) -> Result<(), TreeError> {
        let objects = self.objects(name, extent)?;
        let path = || self.path.join(name);
        let places = (Place { dir: self.a.fd(), name }, Place { dir: self.b.fd(), name });
        let content = match objects {
            Some((a, b)) => a != b,
            None => differs(places, a, b).map_err(|errno| TreeError::system("compare", path(), errno))?,
        };
        let of_a = read_named(&mut self.views, places.0, a, &path)?;
        let of_b = read_named(&mut self.views, places.1, b, &path)?;
        let metadata = metadata(of_a, &of_b) != Metadata::Same;
        if content || metadata {
            self.note(self.path.join(name), ChangeKind::Modified { content, metadata });
        }
        Ok(())
    }
}

fn metadata(mut a: Attrs, b: &Attrs) -> Metadata {
    if a.same_apart_from_access(b) {
        return Metadata::Same;
    }
    a.mtime = b.mtime;
    if a.same_apart_from_access(b) { Metadata::Times } else { Metadata::Differs }
}

fn read_open(io: &mut AttrIo, fd: BorrowedFd<'_>, path: &dyn Fn() -> EntryPath) -> Result<Attrs, TreeError> {
    let stat = EntryStat::of_open(fd).map_err(|errno| TreeError::system("look at", path(), errno))?;
    io.read(Target::Open(fd), &stat, path)
}

fn read_named(
    io: &mut AttrIo,
    place: Place<'_>,
    stat: &EntryStat,
    path: &dyn Fn() -> EntryPath,
) -> Result<Attrs, TreeError> {
    if stat.file_type() != FileType::RegularFile {
        return io.read(Target::Named(place.dir, place.name), stat, path);
    }
    let file = open_file(place).map_err(|errno| TreeError::system("open", path(), errno))?;
    io.read(Target::Open(file.as_fd()), stat, path)
}

/// Compares what is in two entries of the same type.
fn differs((in_a, in_b): (Place<'_>, Place<'_>), a: &EntryStat, b: &EntryStat) -> Result<bool, Errno> {
    match a.file_type() {
        FileType::RegularFile => {
            // The views are different mounts, so device numbers say nothing.
            let identity = |stat: &EntryStat| (stat.ino, stat.mtime, stat.ctime);
            if a.size != b.size || identity(a) == identity(b) {
                return Ok(a.size != b.size);
            }
            bytes_differ(in_a, in_b, a.size)
        }
        FileType::Symlink => {
            let target = |place: Place<'_>| readlinkat(place.dir, place.name, Vec::new());
            Ok(target(in_a)? != target(in_b)?)
        }
        FileType::CharacterDevice | FileType::BlockDevice => Ok(a.rdev != b.rdev),
        FileType::Fifo | FileType::Socket | FileType::Directory | FileType::Unknown => Ok(false),
    }
}

fn bytes_differ(in_a: Place<'_>, in_b: Place<'_>, size: u64) -> Result<bool, Errno> {
    let (a, b) = (open_file(in_a)?, open_file(in_b)?);
    let (mut bytes_a, mut bytes_b) = (vec![0_u8; COMPARED_BYTES], vec![0_u8; COMPARED_BYTES]);
    let mut offset = 0_u64;
    while offset < size {
        let length = rustix::io::pread(&a, bytes_a.as_mut_slice(), offset)?;
        let mut filled = 0;
        while filled < length {
            let rest = bytes_b.get_mut(filled..length).unwrap_or_default();
            let at = offset.saturating_add(u64::try_from(filled).unwrap_or(0));
            match rustix::io::pread(&b, rest, at)? {
                0 => return Ok(true),
                more => filled = filled.saturating_add(more),
            }
        }
        if length == 0 || bytes_a.get(..length) != bytes_b.get(..length) {
            return Ok(true);
        }
        offset = offset.saturating_add(u64::try_from(length).unwrap_or(0));
    }
    Ok(false)
}
