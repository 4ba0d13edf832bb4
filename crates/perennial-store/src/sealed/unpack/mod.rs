//! Sealed layers written as one directory, from their manifests and objects alone: nothing is mounted.
//!
//! ```text
//!   manifests ──merge──▶ directories, names, links, metadata     one thread
//!   objects   ──copy───▶ contents, each compared with its name   workers
//! ```
//!
//! The result is what [`crate::tree::materialize`] makes of the same layers: an upper directory over what is below. A
//! content that is not what its object's name says is an error with path and object, found before the call returns.

mod files;

use super::error::SealError;
use super::stream::{Layers, Merged, terminated};
use crate::objects::Objects;
use crate::root::Root;
use crate::tree::attrs::{AttrIo, Attrs, Kind, Target};
use crate::tree::cursor::{Cursor, EntryStat, read_names};
use crate::tree::error::{EntryPath, PathTrail, TreeError};
use crate::tree::{DIR_FLAGS, Measure, overlay};
use files::{Job, Pool};
use perennial_core::id::LayerId;
use perennial_core::sealed::entry::{Attributes, Directory, DirectorySource as _, Entry, Inode, Item, Node};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, symlinkat, unlinkat};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::ffi::{CStr, CString};

/// Layers to unpack.
#[derive(Debug, Clone, Copy)]
pub struct UnpackRequest<'a> {
    /// The root they are in.
    pub root: &'a Root,
    /// The root's objects.
    pub objects: &'a Objects,
    /// The sealed layers, newest first, at least one.
    pub layers: &'a [LayerId],
    /// The layers below them, newest first.
    pub below: &'a [BorrowedFd<'a>],
    /// The empty directory to fill.
    pub dst: BorrowedFd<'a>,
    /// Threads that copy contents, at least 1.
    pub workers: usize,
}

/// Writes sealed layers as one tree. `progress` is called after each directory with what is written so far.
///
/// # Errors
/// [`SealError::Tree`] where something cannot be written, or the object of a file is missing or damaged
/// ([`TreeError::Content`]); [`SealError::Manifest`]. The directory is incomplete then and to be removed.
pub fn unpack(request: &UnpackRequest<'_>, progress: &mut dyn FnMut(&Measure)) -> Result<Measure, SealError> {
    let layers = Layers::open(request.root, request.layers)?;
    let merged = layers.merge(request.below)?;
    Pool::run(request.objects, request.workers, |pool| {
        let io = AttrIo::default();
        let dst = Cursor::new(request.dst).map_err(|error| error.at(EntryPath::from_bytes(Vec::new())))?;
        let (open, links) = (Vec::new(), Links { root: request.dst, name: c".perennial-links".to_owned(), dir: None });
        let mut writer =
            Writer { dst, open, links, io, trail: PathTrail::default(), measure: Measure::default(), pool };
        writer.run(&layers, merged, progress)?;
        Ok(writer.measure)
    })
}

/// A directory that is being filled.
#[derive(Debug)]
struct Open {
    name: Vec<u8>,
    attributes: Attributes,
    opaque: bool,
}

struct Writer<'a, 'pool> {
    dst: Cursor,
    /// The directories on the way to the present one, with the root; their metadata is set when they are complete.
    open: Vec<Open>,
    links: Links<'a>,
    io: AttrIo,
    trail: PathTrail,
    measure: Measure,
    pool: &'pool Pool<'a>,
}

impl Writer<'_, '_> {
    fn run(
        &mut self,
        layers: &Layers,
        mut merged: Merged,
        progress: &mut dyn FnMut(&Measure),
    ) -> Result<(), SealError> {
        while let Some(directory) = merged.next_directory().map_err(|error| layers.error(error))? {
            self.go_to(&directory.path)?;
            self.directory(directory)?;
            self.measure.bytes = self.pool.bytes();
            progress(&self.measure);
        }
        while self.open.len() > 1 {
            self.leave()?;
        }
        self.links.remove()?;
        if let Some(root) = self.open.pop() {
            self.finish(root)?;
        }
        self.pool.wait()?;
        self.measure.bytes = self.pool.bytes();
        Ok(())
    }

    /// Completes the directories that are left, and enters the next one.
    fn go_to(&mut self, path: &[Vec<u8>]) -> Result<(), TreeError> {
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        while self.open.len() > parents.len().saturating_add(1) {
            self.leave()?;
        }
        let name = terminated(name);
        self.dst.enter(&name).map_err(|error| error.at(self.trail.join(&name)))?;
        self.trail.push(&name);
        Ok(())
    }

    fn leave(&mut self) -> Result<(), TreeError> {
        let Some(done) = self.open.pop() else { return Ok(()) };
        self.finish(done)?;
        self.dst.leave().map_err(|error| error.at(self.trail.here()))?;
        self.trail.pop();
        Ok(())
    }

    fn finish(&mut self, done: Open) -> Result<(), TreeError> {
        let path = || self.trail.here();
        let mut attrs = convert(done.attributes);
        if done.opaque {
            attrs.xattrs.insert(overlay::OPAQUE.to_owned(), overlay::OPAQUE_YES.to_vec());
        }
        self.io.apply(Target::Open(self.dst.fd()), &attrs, Kind::Other, &path)?;
        let stat = EntryStat::of_open(self.dst.fd()).map_err(|errno| TreeError::system("look at", path(), errno))?;
        self.pool.add_bytes(&stat);
        debug_assert_eq!(self.trail.last(), done.name);
        Ok(())
    }

    fn directory(&mut self, directory: Directory) -> Result<(), TreeError> {
        let Directory { path, attributes, opaque, entries } = directory;
        if path.is_empty() {
            self.links.avoid(&entries);
        }
        self.open.push(Open { name: path.last().cloned().unwrap_or_default(), attributes, opaque });
        for entry in entries {
            self.entry(entry)?;
            self.measure.entries = self.measure.entries.saturating_add(1);
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), TreeError> {
        let name = terminated(&entry.name);
        let fail = |trail: &PathTrail, action| {
            let path = trail.join(&name);
            move |errno| TreeError::system(action, path, errno)
        };
        match entry.item {
            // The rest of its metadata follows when it is complete.
            Item::Directory => mkdirat(self.dst.fd(), &name, Mode::RWXU).map_err(fail(&self.trail, "create")),
            Item::Whiteout => {
                self.measure.whiteouts = self.measure.whiteouts.saturating_add(1);
                let made = mknodat(self.dst.fd(), &name, FileType::CharacterDevice, Mode::empty(), 0);
                made.map_err(fail(&self.trail, "create"))
            }
            Item::Link(group) => self.links.link(group, self.dst.fd(), &name).map_err(fail(&self.trail, "link")),
            Item::Inode(inode) => {
                let group = inode.links;
                self.inode(inode, &name)?;
                match group {
                    None => Ok(()),
                    Some(group) => self.links.keep(group, self.dst.fd(), &name).map_err(fail(&self.trail, "link")),
                }
            }
        }
    }

    fn inode(&mut self, inode: Inode, name: &CStr) -> Result<(), TreeError> {
        let path = self.trail.join(name);
        let fail = |errno| TreeError::system("create", path.clone(), errno);
        let dir = self.dst.fd();
        let special = |kind, device| mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device);
        let attrs = convert(inode.attributes);
        let made = match inode.node {
            Node::File(content) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(fail)?;
                return self.pool.add(Job { file, content, attrs, path });
            }
            Node::Symlink(target) => symlinkat(terminated(&target), dir, name).map(|()| Kind::Symlink),
            Node::CharDevice { major, minor } => {
                special(FileType::CharacterDevice, makedev(major, minor)).map(|()| Kind::Other)
            }
            Node::BlockDevice { major, minor } => {
                special(FileType::BlockDevice, makedev(major, minor)).map(|()| Kind::Other)
            }
            Node::Fifo => special(FileType::Fifo, 0).map(|()| Kind::Other),
            Node::Socket => special(FileType::Socket, 0).map(|()| Kind::Other),
        };
        let kind = made.map_err(fail)?;
        self.io.apply(Target::Named(dir, name), &attrs, kind, &|| path.clone())?;
        let stat = EntryStat::of(dir, name).map_err(|errno| TreeError::system("look at", path.clone(), errno))?;
        self.pool.add_bytes(&stat);
        Ok(())
    }
}

/// The time of access is not kept in a sealed layer; it is that of modification, as in its metadata image.
fn convert(attributes: Attributes) -> Attrs {
    let time = Timespec { tv_sec: attributes.mtime.seconds, tv_nsec: i64::from(attributes.mtime.nanoseconds) };
    let xattrs = attributes.xattrs.into_iter().map(|(name, value)| (terminated(&name), value)).collect();
    let Attributes { mode, uid, gid, .. } = attributes;
    Attrs { mode, uid, gid, atime: time, mtime: time, xattrs, flags: None }
}

/// Names by which further names are linked to a file, however far away it is: in a directory of our own at the root,
/// gone when the tree is complete.
#[derive(Debug)]
struct Links<'a> {
    root: BorrowedFd<'a>,
    name: CString,
    dir: Option<OwnedFd>,
}

impl Links<'_> {
    /// Chooses a name for the directory that no entry of the root has.
    fn avoid(&mut self, root: &[Entry]) {
        while root.iter().any(|entry| entry.name == self.name.to_bytes()) {
            let mut longer = self.name.to_bytes().to_vec();
            longer.push(b'_');
            self.name = terminated(&longer);
        }
    }

    fn keep(&mut self, group: u32, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let staging = match self.dir.take() {
            Some(staging) => staging,
            None => {
                mkdirat(self.root, &self.name, Mode::RWXU)?;
                openat(self.root, &self.name, DIR_FLAGS, Mode::empty())?
            }
        };
        let linked = linkat(dir, name, &staging, group.to_string(), AtFlags::empty());
        self.dir = Some(staging);
        linked
    }

    fn link(&self, group: u32, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let staging = self.dir.as_ref().ok_or(Errno::NOENT)?;
        match linkat(staging, group.to_string(), dir, name, AtFlags::empty()) {
            // The last name the file system allows: ours makes room for it.
            Err(Errno::MLINK) => rustix::fs::renameat(staging, group.to_string(), dir, name),
            linked => linked,
        }
    }

    fn remove(&mut self) -> Result<(), TreeError> {
        let Some(dir) = self.dir.take() else { return Ok(()) };
        let path = EntryPath::from_bytes(self.name.to_bytes().to_vec());
        let fail = |errno| TreeError::system("remove", path.clone(), errno);
        for left in read_names(dir.as_fd()).map_err(fail)? {
            unlinkat(&dir, &left.name, AtFlags::empty()).map_err(fail)?;
        }
        unlinkat(self.root, &self.name, AtFlags::REMOVEDIR).map_err(fail)
    }
}
