//! Several layers written as one: the flattened difference to the layers below them.
//!
//! Used to unpack a generation into an upper directory, and to merge layers where stacks get deep. The result shows the
//! same tree over `below` as the layers did, with everything of [`super::attrs`], hard links within a layer, holes,
//! whiteouts that still hide something, and opaque marks.

use super::attrs::{AttrIo, Kind, Target};
use super::below::{BelowView, Cut, open_roots};
use super::copy::{Copier, Filling, Place};
use super::cursor::{Cursor, EntryStat, MoveError, read_names};
use super::error::{EntryPath, PathTrail, TreeError};
use super::links::Links;
use super::measure::{Counter, Measure};
use super::overlay;
use super::roots::open_root;
use crate::crew::Crew;
use crate::objects::Objects;
use perennial_core::tree::{Below, EntryKind, Resolved, resolve};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{Mode, mkdirat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::atomic::AtomicBool;

/// How file content gets into the flattened tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Cloned where the file system can, copied otherwise; the result may be written to.
    Copy,
    /// As further names of the layers' own files; no data is copied, and the result must never be written to.
    Link,
}

/// Writes `layers` (newest first) as one tree into the empty directory `dst`, for use over `below` (newest first).
///
/// The root gets the attributes of the newest layer's root, or of the newest in `below` where there are no layers.
/// `progress` is called after each entry with what is written so far.
///
/// # Errors
/// If anything cannot be read or set exactly; `dst` is incomplete then and to be removed.
pub fn materialize(
    layers: &[BorrowedFd<'_>],
    below: &[BorrowedFd<'_>],
    dst: BorrowedFd<'_>,
    data: Data,
    progress: &mut dyn FnMut(&Measure),
) -> Result<Measure, TreeError> {
    flatten(layers, below, Output { dst, data }, Copier::default(), progress)
}

/// As [`materialize`] with [`Data::Copy`], where some of the layers may be sealed.
///
/// # Errors
/// As [`materialize`]; [`TreeError::Content`] where an object is missing.
pub fn materialize_sealed(
    layers: &[BorrowedFd<'_>],
    below: &[BorrowedFd<'_>],
    dst: BorrowedFd<'_>,
    objects: &Objects,
    progress: &mut dyn FnMut(&Measure),
) -> Result<Measure, TreeError> {
    flatten(layers, below, Output { dst, data: Data::Copy }, Copier::with_objects(objects), progress)
}

/// Where a flattened tree goes, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output<'a> {
    pub(crate) dst: BorrowedFd<'a>,
    pub(crate) data: Data,
}

pub(crate) fn flatten(
    layers: &[BorrowedFd<'_>],
    below: &[BorrowedFd<'_>],
    output: Output<'_>,
    copier: Copier<'_>,
    progress: &mut dyn FnMut(&Measure),
) -> Result<Measure, TreeError> {
    if layers.is_empty() {
        return copy_root_attributes(below, output.dst);
    }
    if output.data == Data::Link {
        return write(layers, below, output, copier, progress);
    }
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let others = copier.others();
    let worker = || {
        let mut helper = others();
        move |filling: Filling, _: &AtomicBool| helper.fill(&filling)
    };
    Crew::run(workers, worker, |crew| {
        let measure = write(layers, below, output, copier.helped_by(crew), progress)?;
        crew.wait()?;
        Ok(measure)
    })
}

fn write(
    layers: &[BorrowedFd<'_>],
    below: &[BorrowedFd<'_>],
    Output { dst, data }: Output<'_>,
    mut copier: Copier<'_>,
    progress: &mut dyn FnMut(&Measure),
) -> Result<Measure, TreeError> {
    let (cursors, members) = open_roots(layers, &mut copier.io)?;
    let opaque = match members.last().and_then(|layer| cursors.get(*layer)) {
        Some(cursor) => copier.io.is_opaque(Target::Open(cursor.fd()), &root_path)?,
        None => false,
    };
    let mut writer = Writer {
        below: BelowView::new(below, Cut::of_opaque(opaque))?,
        dst: Cursor::new(dst).map_err(|error| error.at(root_path()))?,
        links: Links::new(dst, data, copier),
        path: PathTrail::default(),
        counter: Counter::default(),
        cursors,
    };
    writer.run(Frame::new(members, opaque), progress)?;
    Ok(writer.counter.measure())
}

fn root_path() -> EntryPath {
    EntryPath::from_bytes(Vec::new())
}

fn copy_root_attributes(below: &[BorrowedFd<'_>], dst: BorrowedFd<'_>) -> Result<Measure, TreeError> {
    if let Some(source) = below.first() {
        let mut io = AttrIo::default();
        let source = open_root(*source)?;
        let look = EntryStat::of_open(source.as_fd());
        let stat = look.map_err(|errno| TreeError::system("look at", root_path(), errno))?;
        let mut attrs = io.read(Target::Open(source.as_fd()), &stat, &root_path)?;
        attrs.xattrs.remove(overlay::OPAQUE);
        io.apply(Target::Open(dst), &attrs, Kind::Other, &root_path)?;
    }
    Ok(Measure::default())
}

/// A directory being written.
#[derive(Debug)]
struct Frame {
    /// Names that are left, with the layers that hold them, newest first.
    names: std::collections::btree_map::IntoIter<CString, Vec<usize>>,
    /// Layers that take part, newest first.
    members: Vec<usize>,
    opaque: bool,
}

impl Frame {
    fn new(members: Vec<usize>, opaque: bool) -> Self {
        Self { names: BTreeMap::new().into_iter(), members, opaque }
    }
}

struct Writer<'a> {
    cursors: Vec<Cursor>,
    below: BelowView,
    dst: Cursor,
    path: PathTrail,
    links: Links<'a>,
    counter: Counter,
}

impl Writer<'_> {
    fn run(&mut self, mut root: Frame, progress: &mut dyn FnMut(&Measure)) -> Result<(), TreeError> {
        let names = self.names_of(&root)?;
        self.links.avoid(&|name| names.contains_key(name));
        root.names = names.into_iter();
        let mut frames = vec![root];
        while let Some(frame) = frames.last_mut() {
            if let Some((name, holders)) = frame.names.next() {
                if let Some(mut child) = self.write(&name, &holders)? {
                    child.names = self.names_of(&child)?.into_iter();
                    frames.push(child);
                } else {
                    progress(&self.counter.measure());
                }
            } else if let Some(done) = frames.pop() {
                if frames.is_empty() {
                    self.links.finish()?;
                    self.finish_dir(&done)?;
                    break;
                }
                self.finish_dir(&done)?;
                self.leave(&done).map_err(|error| error.at(self.path.here()))?;
                self.below.leave()?;
                self.path.pop();
                progress(&self.counter.measure());
            }
        }
        Ok(())
    }

    fn names_of(&self, frame: &Frame) -> Result<BTreeMap<CString, Vec<usize>>, TreeError> {
        let mut names: BTreeMap<CString, Vec<usize>> = BTreeMap::new();
        for layer in &frame.members {
            let Some(cursor) = self.cursors.get(*layer) else { continue };
            let listed = read_names(cursor.fd()).map_err(|errno| TreeError::system("list", self.path.here(), errno))?;
            for found in listed {
                names.entry(found.name).or_default().push(*layer);
            }
        }
        Ok(names)
    }

    /// Writes one name; returns the frame of a directory, into which everything has gone then.
    fn write(&mut self, name: &CStr, holders: &[usize]) -> Result<Option<Frame>, TreeError> {
        let (kinds, stat) = self.kinds_of(name, holders)?;
        let below = match kinds.first() {
            Some(EntryKind::Whiteout) => self.below.shows(name)?,
            Some(EntryKind::Dir | EntryKind::OpaqueDir | EntryKind::NonDir) | None => Below::Absent,
        };
        match resolve(&kinds, below) {
            Resolved::Nothing => Ok(None),
            Resolved::Whiteout | Resolved::NonDir => {
                if let (Some(stat), Some(cursor)) = (stat, holders.first().and_then(|layer| self.cursors.get(*layer))) {
                    let from = Place { dir: cursor.fd(), name };
                    let to = Place { dir: self.dst.fd(), name };
                    self.links.write(from, to, &stat, &|| self.path.join(name))?;
                    self.counter.add(&stat);
                }
                Ok(None)
            }
            Resolved::Dir { merged, opaque } => {
                let members: Vec<usize> = holders.iter().take(merged).copied().collect();
                let frame = Frame::new(members, opaque);
                self.enter(name, &frame).map_err(|error| error.at(self.path.join(name)))?;
                self.below.enter(name, Cut::of_opaque(opaque));
                self.path.push(name);
                Ok(Some(frame))
            }
        }
    }

    /// Looks at a name in the layers that hold it, as far down as matters; returns also the newest layer's `stat`.
    fn kinds_of(&mut self, name: &CStr, holders: &[usize]) -> Result<(Vec<EntryKind>, Option<EntryStat>), TreeError> {
        let mut kinds = Vec::with_capacity(holders.len());
        let mut newest = None;
        for layer in holders {
            let Some(cursor) = self.cursors.get(*layer) else { continue };
            let path = || self.path.join(name);
            let stat = EntryStat::of(cursor.fd(), name).map_err(|errno| TreeError::system("look at", path(), errno))?;
            newest.get_or_insert(stat);
            let kind = kind_of(&mut self.links.copier.io, Target::Named(cursor.fd(), name), &stat, &path)?;
            kinds.push(kind);
            if kind.stops() {
                break;
            }
        }
        Ok((kinds, newest))
    }

    fn enter(&mut self, name: &CStr, frame: &Frame) -> Result<(), MoveError> {
        mkdirat(self.dst.fd(), name, Mode::RWXU).map_err(MoveError::System)?;
        self.dst.enter(name)?;
        for layer in &frame.members {
            self.cursors.get_mut(*layer).ok_or(Errno::NOENT)?.enter(name)?;
        }
        Ok(())
    }

    fn leave(&mut self, frame: &Frame) -> Result<(), MoveError> {
        self.dst.leave()?;
        for layer in &frame.members {
            self.cursors.get_mut(*layer).ok_or(Errno::NOENT)?.leave()?;
        }
        Ok(())
    }

    /// Gives a directory whose content is complete the attributes of its newest layer.
    fn finish_dir(&mut self, frame: &Frame) -> Result<(), TreeError> {
        let Some(source) = frame.members.first().and_then(|layer| self.cursors.get(*layer)) else { return Ok(()) };
        let path = || self.path.here();
        let look = |fd| EntryStat::of_open(fd).map_err(|errno| TreeError::system("look at", path(), errno));
        let mut attrs = self.links.copier.io.read(Target::Open(source.fd()), &look(source.fd())?, &path)?;
        if frame.opaque {
            attrs.xattrs.insert(overlay::OPAQUE.to_owned(), overlay::OPAQUE_YES.to_vec());
        } else {
            attrs.xattrs.remove(overlay::OPAQUE);
        }
        let made = look(self.dst.fd())?;
        self.links.copier.io.apply(Target::Open(self.dst.fd()), &attrs, Kind::Other, &path)?;
        if self.path.as_bytes().is_empty() {
            self.counter.add_bytes(&made);
        } else {
            self.counter.add(&made);
        }
        Ok(())
    }
}

/// Says what an entry of a layer is to overlayfs.
pub(crate) fn kind_of(
    io: &mut AttrIo,
    target: Target<'_>,
    stat: &EntryStat,
    path: &dyn Fn() -> EntryPath,
) -> Result<EntryKind, TreeError> {
    if stat.is_whiteout() {
        Ok(EntryKind::Whiteout)
    } else if !stat.is_dir() {
        Ok(EntryKind::NonDir)
    } else if io.is_opaque(target, path)? || io.is_redirected(target, path)? {
        // What a redirected directory shows is not what is below its own name.
        Ok(EntryKind::OpaqueDir)
    } else {
        Ok(EntryKind::Dir)
    }
}
