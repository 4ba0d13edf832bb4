//! What a sealed layer hides of the one directly below it: what merging the two would let go.
//!
//! The upper layer is walked, and its names are looked up in the lower one, so the cost is that of the upper one and of
//! what it hides, however large the lower one is; and bounded ([`looks_max`]): where that is reached, what was found so
//! far is the answer, which is never too much.

use super::error::SealError;
use super::files::{LayerFiles, MANIFEST};
use crate::root::Root;
use crate::tree::attrs::{AttrIo, Target};
use crate::tree::below::{BelowView, Cut};
use crate::tree::cursor::EntryStat;
use crate::tree::error::{EntryPath, PathTrail};
use crate::tree::walk::{Order, Visit, walk};
use crate::tree::{DIR_FLAGS, TreeError};
use perennial_core::id::LayerId;
use perennial_core::layers::compact::looks_max;
use perennial_core::sealed::manifest::ObjectTable;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{FileType, Mode, openat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};

/// What is hidden.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Lengths of the contents, in bytes, each once: those of which the upper layer has none itself.
    pub bytes: u64,
    /// Entries of the lower layer that were looked at.
    pub looks: u64,
    /// Whether all were looked at.
    pub is_complete: bool,
}

/// Returns what `top` hides of the layer below it, both mounted; nothing where something asked to go first.
///
/// # Errors
/// [`SealError`] where a layer cannot be read.
pub fn hidden(
    root: &Root,
    top: &LayerId,
    (tree, below): (BorrowedFd<'_>, BorrowedFd<'_>),
    give_way: &mut dyn FnMut() -> bool,
) -> Result<Option<Hidden>, SealError> {
    let own = own_objects(root, top)?;
    let mut io = AttrIo::default();
    let opaque = io.is_opaque(Target::Open(tree), &|| EntryPath::from_bytes(Vec::new()))?;
    let below = BelowView::new(&[below], Cut::of_opaque(opaque))?;
    let counter = Counter { own, seen: BTreeSet::new(), bytes: 0, looks: 0, looks_max: looks_max(0), io };
    let mut looker = Looker { below, counter, gave_way: false };
    let walked = walk(tree, Order::Listed, &mut |visit| looker.visit(visit, give_way));
    let is_complete = match walked {
        Ok(()) => true,
        Err(error) if error.errno() == Some(Errno::CANCELED) => false,
        Err(error) => return Err(error.into()),
    };
    let Counter { bytes, looks, .. } = looker.counter;
    Ok((!looker.gave_way).then_some(Hidden { bytes, looks, is_complete }))
}

/// Returns the objects that a layer names, sorted.
fn own_objects(root: &Root, layer: &LayerId) -> Result<Vec<ObjectId>, SealError> {
    let files = LayerFiles::open(&root.layer_dir(layer))?;
    let manifest = files.manifest()?.ok_or_else(|| files.io("open", MANIFEST, Errno::NOENT))?;
    let table = ObjectTable::open(manifest).map_err(|error| files.unreadable(MANIFEST, &error))?;
    let ids = table.iter().map(|row| row.map(|(id, _)| id).map_err(|error| files.unreadable(MANIFEST, &error)));
    ids.collect()
}

/// Ends a walk that has seen enough.
fn enough() -> TreeError {
    TreeError::system("look further than", EntryPath::from_bytes(Vec::new()), Errno::CANCELED)
}

struct Looker {
    below: BelowView,
    counter: Counter,
    gave_way: bool,
}

impl Looker {
    fn visit(&mut self, visit: Visit<'_>, give_way: &mut dyn FnMut() -> bool) -> Result<(), TreeError> {
        match visit {
            Visit::Enter { path, .. } if path.as_bytes().is_empty() => Ok(()),
            Visit::Enter { own, path, .. } => {
                if give_way() {
                    self.gave_way = true;
                    return Err(enough());
                }
                let name = CString::new(path.last()).unwrap_or_default();
                let opaque = self.counter.io.is_opaque(Target::Open(own), &|| path.here())?;
                self.counter.allow();
                self.look(&name, path, if opaque { Covers::All } else { Covers::NonDirs })?;
                self.below.enter(&name, Cut::of_opaque(opaque));
                Ok(())
            }
            Visit::NonDir(entry) => {
                self.counter.allow();
                self.look(entry.name, entry.path, Covers::All)
            }
            Visit::Leave { path, .. } if path.as_bytes().is_empty() => Ok(()),
            Visit::Leave { .. } => self.below.leave(),
        }
    }

    /// Counts what has a name in the lower layer, where the upper one's entry of that name covers it.
    fn look(&mut self, name: &CStr, path: &PathTrail, covers: Covers) -> Result<(), TreeError> {
        let Some((layer, stat)) = self.below.find(name)? else { return Ok(()) };
        let Some(dir) = self.below.dir(layer) else { return Ok(()) };
        match (stat.is_dir(), covers) {
            (true, Covers::NonDirs) => Ok(()),
            (true, Covers::All) => self.counter.count_all(dir, name, path),
            (false, Covers::NonDirs | Covers::All) => self.counter.count(dir, name, &stat, &|| path.join(name)),
        }
    }
}

/// What an entry of the upper layer covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Covers {
    /// Whatever is there.
    All,
    /// A directory goes on below.
    NonDirs,
}

struct Counter {
    own: Vec<ObjectId>,
    seen: BTreeSet<ObjectId>,
    bytes: u64,
    looks: u64,
    looks_max: u64,
    io: AttrIo,
}

impl Counter {
    /// Allows for what one more entry of the upper layer may hide.
    fn allow(&mut self) {
        self.looks_max = self.looks_max.saturating_add(looks_max(1).saturating_sub(looks_max(0)));
    }

    fn count_all(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &PathTrail) -> Result<(), TreeError> {
        let opened = openat(dir, name, DIR_FLAGS, Mode::empty());
        let opened = opened.map_err(|errno| TreeError::system("open", path.join(name), errno))?;
        walk(opened.as_fd(), Order::Listed, &mut |visit| match visit {
            Visit::NonDir(entry) => self.count(entry.dir, entry.name, entry.stat, &|| entry.path.join(entry.name)),
            Visit::Enter { .. } => self.looked(),
            Visit::Leave { .. } => Ok(()),
        })
    }

    fn looked(&mut self) -> Result<(), TreeError> {
        self.looks = self.looks.saturating_add(1);
        if self.looks > self.looks_max { Err(enough()) } else { Ok(()) }
    }

    fn count(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        self.looked()?;
        if stat.file_type() != FileType::RegularFile || stat.size == 0 {
            return Ok(());
        }
        let Some(object) = self.io.object(Target::Named(dir, name), path)? else { return Ok(()) };
        if self.own.binary_search(&object).is_ok() {
            return Ok(());
        }
        if stat.nlink > 1 {
            // Shown by its other names as well, until all of them are hidden.
            self.bytes = self.bytes.saturating_add(stat.size.checked_div(stat.nlink).unwrap_or(0));
        } else if self.seen.insert(object) {
            self.bytes = self.bytes.saturating_add(stat.size);
        }
        Ok(())
    }
}
