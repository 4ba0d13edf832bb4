//! The tree to seal, directory by directory in canonical order, with what it borrows from the layers below.
//!
//! Most directories are listed as they are. Below a redirected directory the listing is what a mount would show: the
//! tree's own entries merged with those of the directory it was before, in the layers below. Such a directory becomes
//! an opaque one.
//!
//! ```text
//!   tree:  new/          redirect=/old, new/added         listing:  new/  (opaque)  added, kept
//!   below: old/kept
//! ```

use super::error::{ReferenceFault, SealError};
use crate::tree::attrs::{AttrIo, Attrs, Target, refused};
use crate::tree::below::{BelowView, Cut};
use crate::tree::cursor::{Cursor, EntryStat, read_names};
use crate::tree::error::{EntryPath, PathTrail, TreeError};
use crate::tree::overlay;
use perennial_core::tree::Below;
use rustix::fd::BorrowedFd;
use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString};

/// Redirected directories in each other: each has its own view of the layers below, with its own descriptors.
const VIEWS_MAX: usize = 64;
/// Longest path of a redirect (`PATH_MAX`); overlayfs itself writes up to 256 bytes.
const REDIRECT_BYTES_MAX: usize = 4096;
/// Longest name in it (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// Where an entry is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The tree itself.
    Own,
    /// This layer below, as the present view numbers them.
    Below(usize),
}

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: CString,
    pub(super) stat: EntryStat,
    pub(super) origin: Origin,
}

/// A directory.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: Vec<Vec<u8>>,
    pub(super) attrs: Attrs,
    pub(super) opaque: bool,
    /// Sorted by name; whiteouts that hide nothing are not among them.
    pub(super) entries: Vec<Found>,
}

/// A directory on the way from the root to the present one.
#[derive(Debug)]
struct Frame {
    dirs: std::vec::IntoIter<(CString, Origin)>,
    /// Whether the tree itself has the directory.
    own: bool,
    /// Whether it hides what is below, so that the listing is of all it shows.
    flat: bool,
    /// Whether it has a view of its own.
    viewed: bool,
}

/// A place in the tree to seal.
#[derive(Debug)]
pub(super) struct TreeSource<'a> {
    layers: &'a [BorrowedFd<'a>],
    own: Cursor,
    /// The layers below: the view of the present directory last.
    views: Vec<BelowView>,
    frames: Vec<Frame>,
    names: Vec<Vec<u8>>,
    trail: PathTrail,
    /// Directories of layers below that were merged into redirected ones: each may be so once.
    moved: HashSet<(u64, u64)>,
    io: AttrIo,
    begun: bool,
}

impl<'a> TreeSource<'a> {
    /// Stands before the root of `tree`, over `layers`, newest first.
    pub(super) fn new(tree: BorrowedFd<'_>, layers: &'a [BorrowedFd<'a>]) -> Result<Self, SealError> {
        let root = EntryPath::from_bytes(Vec::new());
        Ok(Self {
            layers,
            own: Cursor::new(tree).map_err(|error| error.at(root))?,
            views: Vec::new(),
            frames: Vec::new(),
            names: Vec::new(),
            trail: PathTrail::default(),
            moved: HashSet::new(),
            io: AttrIo::default(),
            begun: false,
        })
    }

    /// Returns the present path.
    pub(super) const fn trail(&self) -> &PathTrail {
        &self.trail
    }

    /// Returns the open directory that an entry of the present directory is in.
    pub(super) fn dir(&self, origin: Origin) -> Option<BorrowedFd<'_>> {
        match origin {
            Origin::Own => Some(self.own.fd()),
            Origin::Below(layer) => self.views.last().and_then(|view| view.dir(layer)),
        }
    }

    /// Goes on to the next directory; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Listed>, SealError> {
        if !self.begun {
            self.begun = true;
            return self.begin().map(Some);
        }
        while let Some(frame) = self.frames.last_mut() {
            if let Some((name, origin)) = frame.dirs.next() {
                return self.enter(&name, origin).map(Some);
            }
            self.leave()?;
        }
        Ok(None)
    }

    fn begin(&mut self) -> Result<Listed, SealError> {
        let attrs = self.own_attrs()?;
        if let Some(value) = attrs.xattrs.get(overlay::REDIRECT) {
            return Err(self.reference(None, value, ReferenceFault::Malformed));
        }
        let opaque = is_opaque(&attrs, &self.trail)?;
        self.views.push(BelowView::new(self.layers, Cut::of_opaque(opaque))?);
        self.frames.push(Frame { dirs: Vec::new().into_iter(), own: true, flat: opaque, viewed: true });
        self.list(attrs, opaque)
    }

    fn enter(&mut self, name: &CStr, origin: Origin) -> Result<Listed, SealError> {
        let path = self.trail.join(name);
        let was_flat = self.frames.last().is_some_and(|frame| frame.flat);
        let own = origin == Origin::Own;
        let (mut opaque, mut viewed, mut own_attrs) = (false, false, None);
        if own {
            self.own.enter(name).map_err(|error| error.at(path))?;
            // From here on the path is the directory's own, whatever goes wrong.
            self.trail.push(name);
            let attrs = self.own_attrs()?;
            opaque = is_opaque(&attrs, &self.trail)?;
            // Where both are set, overlayfs does not look at the redirect.
            if let Some(redirect) = attrs.xattrs.get(overlay::REDIRECT).filter(|_| !opaque) {
                let view = self.redirected(redirect)?;
                self.views.push(view);
                viewed = true;
            }
            own_attrs = Some(attrs);
        } else {
            self.trail.push(name);
        }
        if !viewed && let Some(view) = self.views.last_mut() {
            view.enter(name, Cut::of_opaque(opaque));
        }
        self.names.push(name.to_bytes().to_vec());
        let hides = opaque || viewed;
        self.frames.push(Frame { dirs: Vec::new().into_iter(), own, flat: was_flat || hides, viewed });
        let attrs = match own_attrs {
            Some(attrs) => attrs,
            None => self.attrs_below()?,
        };
        // In a directory that hides everything there is nothing left to hide.
        self.list(attrs, hides && !was_flat)
    }

    fn leave(&mut self) -> Result<(), SealError> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        if frame.viewed {
            self.views.pop();
        } else if let Some(view) = self.views.last_mut() {
            view.leave()?;
        }
        if frame.own {
            self.own.leave().map_err(|error| error.at(self.trail.here()))?;
        }
        self.trail.pop();
        self.names.pop();
        Ok(())
    }

    fn own_attrs(&mut self) -> Result<Attrs, SealError> {
        let path = || self.trail.here();
        let look = EntryStat::of_open(self.own.fd());
        let stat = look.map_err(|errno| TreeError::system("look at", path(), errno))?;
        Ok(self.io.read_as_is(Target::Open(self.own.fd()), &stat, &path)?)
    }

    /// Reads the attributes of a directory that only layers below have: those of the newest of them.
    fn attrs_below(&mut self) -> Result<Attrs, SealError> {
        let path = || self.trail.here();
        let gone = || TreeError::Moved { path: path() };
        let view = self.views.last_mut().ok_or_else(gone)?;
        let newest = view.members()?.first().copied().ok_or_else(gone)?;
        let dir = view.dir(newest).ok_or_else(gone)?;
        let stat = EntryStat::of_open(dir).map_err(|errno| TreeError::system("look at", path(), errno))?;
        let mut attrs = self.io.read(Target::Open(dir), &stat, &path)?;
        attrs.xattrs.remove(overlay::OPAQUE);
        Ok(attrs)
    }

    fn list(&mut self, mut attrs: Attrs, opaque: bool) -> Result<Listed, SealError> {
        attrs.xattrs.remove(overlay::OPAQUE);
        attrs.xattrs.remove(overlay::REDIRECT);
        let flat = self.frames.last().is_some_and(|frame| frame.flat);
        let entries = if flat { self.merged()? } else { self.plain()? };
        let dirs: Vec<(CString, Origin)> =
            entries.iter().filter(|entry| entry.stat.is_dir()).map(|e| (e.name.clone(), e.origin)).collect();
        if let Some(frame) = self.frames.last_mut() {
            frame.dirs = dirs.into_iter();
        }
        Ok(Listed { path: self.names.clone(), attrs, opaque, entries })
    }

    /// Lists a directory of the tree, without whiteouts that hide nothing.
    fn plain(&mut self) -> Result<Vec<Found>, SealError> {
        let mut entries = list_dir(self.own.fd(), Origin::Own, &self.trail)?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let Some(view) = self.views.last_mut() else { return Ok(entries) };
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            if !entry.stat.is_whiteout() || view.shows(&entry.name)? == Below::Visible {
                kept.push(entry);
            }
        }
        Ok(kept)
    }

    /// Lists what a directory shows that hides what is below it.
    fn merged(&mut self) -> Result<Vec<Found>, SealError> {
        let mut entries: BTreeMap<CString, Found> = BTreeMap::new();
        if self.frames.last().is_some_and(|frame| frame.own) {
            let own = list_dir(self.own.fd(), Origin::Own, &self.trail)?;
            entries.extend(own.into_iter().map(|found| (found.name.clone(), found)));
        }
        let members = match self.views.last_mut() {
            Some(view) => view.members()?,
            None => Vec::new(),
        };
        for layer in members {
            let Some(dir) = self.views.last().and_then(|view| view.dir(layer)) else { continue };
            let look = EntryStat::of_open(dir);
            let stat = look.map_err(|errno| TreeError::system("look at", self.trail.here(), errno))?;
            if !self.moved.insert((stat.dev, stat.ino)) {
                return Err(self.reference(None, self.trail.as_bytes(), ReferenceFault::Twice));
            }
            for found in list_dir(dir, Origin::Below(layer), &self.trail)? {
                entries.entry(found.name.clone()).or_insert(found);
            }
        }
        Ok(entries.into_values().filter(|entry| !entry.stat.is_whiteout()).collect())
    }

    /// Opens a view of what a redirected directory was before; the view of the directory around it is the present one.
    fn redirected(&mut self, redirect: &[u8]) -> Result<BelowView, SealError> {
        let wrong = |fault| self.reference(None, redirect, fault);
        if self.views.len() >= VIEWS_MAX {
            return Err(wrong(ReferenceFault::Depth));
        }
        let parsed = parse(redirect).ok_or_else(|| wrong(ReferenceFault::Malformed))?;
        let mut view = self.look_from(parsed.absolute)?;
        for name in &parsed.names {
            view.enter(name, Cut::Through);
        }
        let members = view.members()?;
        if members.is_empty() {
            return Err(self.reference(None, redirect, ReferenceFault::Nowhere));
        }
        let dirs: Vec<BorrowedFd<'_>> = members.into_iter().filter_map(|layer| view.dir(layer)).collect();
        Ok(BelowView::new(&dirs, Cut::Through)?)
    }

    /// Opens a view of the roots of the layers below, or of their parts of the directory that the view is at.
    fn look_from(&mut self, absolute: bool) -> Result<BelowView, SealError> {
        if absolute {
            return Ok(BelowView::new(self.layers, Cut::Through)?);
        }
        let Some(present) = self.views.last_mut() else { return Ok(BelowView::new(&[], Cut::Through)?) };
        let members = present.members()?;
        let dirs: Vec<BorrowedFd<'_>> = members.into_iter().filter_map(|layer| present.dir(layer)).collect();
        Ok(BelowView::new(&dirs, Cut::Through)?)
    }

    /// Finds the file below that a file of the tree is a copy of: the one that holds the content of a metadata-only file,
    /// or what another was before it was changed. Hands its place on.
    pub(super) fn content_below<T>(
        &mut self,
        name: &CStr,
        redirect: Option<&[u8]>,
        read: &mut dyn FnMut(BorrowedFd<'_>, &CStr, &EntryStat) -> Result<T, SealError>,
    ) -> Result<T, SealError> {
        let value = redirect.unwrap_or_else(|| name.to_bytes()).to_vec();
        let parsed = match redirect {
            None => Some(Redirect { absolute: false, names: vec![name.to_owned()] }),
            Some(redirect) => parse(redirect),
        };
        let Some(Redirect { absolute, names }) = parsed else {
            return Err(self.reference(Some(name), &value, ReferenceFault::Malformed));
        };
        let mut view = self.look_from(absolute)?;
        let nowhere = |this: &Self| this.reference(Some(name), &value, ReferenceFault::Nowhere);
        let Some((last, parents)) = names.split_last() else { return Err(nowhere(self)) };
        for name in parents {
            view.enter(name, Cut::Through);
        }
        let Some((layer, stat)) = view.find(last)? else { return Err(nowhere(self)) };
        match view.dir(layer) {
            Some(dir) if stat.file_type() == rustix::fs::FileType::RegularFile => read(dir, last, &stat),
            Some(_) | None => Err(nowhere(self)),
        }
    }

    /// Makes an error of a reference of the present directory, or of an entry in it.
    pub(super) fn reference(&self, name: Option<&CStr>, value: &[u8], fault: ReferenceFault) -> SealError {
        let path = name.map_or_else(|| self.trail.here(), |name| self.trail.join(name));
        SealError::Reference { path, value: value.to_vec(), fault }
    }
}

/// A redirect, as overlayfs writes it.
#[derive(Debug)]
struct Redirect {
    absolute: bool,
    names: Vec<CString>,
}

fn parse(value: &[u8]) -> Option<Redirect> {
    let (absolute, rest) = match value.strip_prefix(b"/") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let is_name = |name: &[u8]| (1..=NAME_BYTES_MAX).contains(&name.len()) && !matches!(name, b"." | b"..");
    let names: Vec<&[u8]> = rest.split(|byte| *byte == b'/').collect();
    let fits = value.len() < REDIRECT_BYTES_MAX && names.iter().all(|name| is_name(name));
    if !fits || (!absolute && names.len() != 1) {
        return None;
    }
    let names: Result<Vec<CString>, _> = names.into_iter().map(CString::new).collect();
    names.ok().map(|names| Redirect { absolute, names })
}

fn is_opaque(attrs: &Attrs, trail: &PathTrail) -> Result<bool, SealError> {
    match attrs.xattrs.get(overlay::OPAQUE).map(Vec::as_slice) {
        None => Ok(false),
        Some(overlay::OPAQUE_YES) => Ok(true),
        Some(other) => Err(refused(overlay::OPAQUE, other, trail.here()).into()),
    }
}

fn list_dir(dir: BorrowedFd<'_>, origin: Origin, trail: &PathTrail) -> Result<Vec<Found>, SealError> {
    let names = read_names(dir).map_err(|errno| TreeError::system("list", trail.here(), errno))?;
    let mut entries = Vec::with_capacity(names.len());
    for name in names {
        let stat = EntryStat::of(dir, &name.name);
        let stat = stat.map_err(|errno| TreeError::system("look at", trail.join(&name.name), errno))?;
        entries.push(Found { name: name.name, stat, origin });
    }
    Ok(entries)
}
