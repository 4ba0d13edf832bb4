//! Size of a tree, and removal of overlayfs' private notes, in one pass.

use super::attrs::{AttrIo, Target, attribute_error, read_error, refused};
use super::cursor::EntryStat;
use super::error::{EntryPath, TreeError};
use super::overlay::{self, Rule};
use super::walk::{Order, Visit, walk};
use rustix::fd::BorrowedFd;
use std::collections::HashSet;

/// Size of a tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measure {
    /// Allocated bytes with those of directories, hard links counted once.
    pub bytes: u64,
    /// Entries without the root.
    pub entries: u64,
    /// Whiteouts among the entries.
    pub whiteouts: u64,
    /// Private attributes of overlayfs that were removed.
    pub stripped: u64,
    /// Entries that nobody may change, or only append to; see [`super::protect`].
    pub protected: u64,
    /// Entries that mean something only over the layers below: metadata-only files and redirected directories.
    pub unresolved: u64,
}

/// What an upper directory was mounted over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeOver {
    /// Layers in dir form only: neither metadata-only files nor redirects are possible.
    Directories,
    /// Sealed layers among them: both are.
    Sealed,
}

impl Measure {
    /// Returns whether the tree has no entry; the attributes of its root may still differ from those it began with.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

/// Adds up entries.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    measure: Measure,
    seen: HashSet<(u64, u64)>,
}

impl Counter {
    pub(crate) fn add(&mut self, stat: &EntryStat) {
        self.measure.entries = self.measure.entries.saturating_add(1);
        self.add_bytes(stat);
        if stat.is_whiteout() {
            self.measure.whiteouts = self.measure.whiteouts.saturating_add(1);
        }
    }

    pub(crate) fn add_bytes(&mut self, stat: &EntryStat) {
        if stat.link_group().is_none_or(|group| self.seen.insert(group)) {
            self.measure.bytes = self.measure.bytes.saturating_add(stat.allocated);
        }
    }

    pub(crate) const fn measure(&self) -> Measure {
        self.measure
    }
}

/// Measures a tree.
///
/// # Errors
/// If it cannot be read.
pub fn measure(tree: BorrowedFd<'_>) -> Result<Measure, TreeError> {
    let mut counter = Counter::default();
    walk(tree, Order::Listed, &mut |visit| {
        match visit {
            Visit::NonDir(entry) => counter.add(entry.stat),
            Visit::Enter { stat, path, .. } if path.as_bytes().is_empty() => counter.add_bytes(stat),
            Visit::Enter { stat, .. } => counter.add(stat),
            Visit::Leave { .. } => {}
        }
        Ok(())
    })?;
    Ok(counter.measure())
}

/// Measures an upper directory that is no longer mounted, and makes it a layer: removes the notes about the mount it
/// was written in and refuses what the store's mount options cannot have produced.
///
/// # Errors
/// If something cannot be read or removed, or is refused; the tree may be stripped in part then.
pub fn measure_and_strip(tree: BorrowedFd<'_>) -> Result<Measure, TreeError> {
    measure_and_strip_over(tree, MadeOver::Directories)
}

/// As [`measure_and_strip`], for an upper directory that may have been written over sealed layers: what refers to them
/// stays and is counted.
///
/// # Errors
/// As [`measure_and_strip`].
pub fn measure_and_strip_over(tree: BorrowedFd<'_>, over: MadeOver) -> Result<Measure, TreeError> {
    let mut counter = Counter::default();
    let mut total = Measure::default();
    let mut io = AttrIo::default();
    walk(tree, Order::Listed, &mut |visit| {
        let found = match visit {
            Visit::NonDir(entry) => {
                counter.add(entry.stat);
                strip(&mut io, Target::Named(entry.dir, entry.name), over, &|| entry.path.join(entry.name))?
            }
            Visit::Enter { own, stat, path } => {
                if path.as_bytes().is_empty() {
                    counter.add_bytes(stat);
                } else {
                    counter.add(stat);
                }
                strip(&mut io, Target::Open(own), over, &|| path.here())?
            }
            Visit::Leave { .. } => Measure::default(),
        };
        total.stripped = total.stripped.saturating_add(found.stripped);
        total.protected = total.protected.saturating_add(found.protected);
        total.unresolved = total.unresolved.saturating_add(found.unresolved);
        Ok(())
    })?;
    let Measure { stripped, protected, unresolved, .. } = total;
    Ok(Measure { stripped, protected, unresolved, ..counter.measure() })
}

fn strip(
    io: &mut AttrIo,
    target: Target<'_>,
    over: MadeOver,
    path: &dyn Fn() -> EntryPath,
) -> Result<Measure, TreeError> {
    let names = io.xattr_names(target).map_err(|errno| TreeError::system("list the attributes of", path(), errno))?;
    let mut found = Measure::default();
    for name in names {
        found.protected = found.protected.saturating_add(u64::from(name.as_c_str() == overlay::PROTATTR));
        match overlay::rule(&name) {
            Rule::Keep => {}
            // A redirected file has both attributes.
            Rule::Unresolved if over == MadeOver::Sealed => found.unresolved = 1,
            Rule::Strip => {
                io.remove_xattr(target, &name)
                    .map_err(|errno| attribute_error("remove", &name.to_string_lossy(), path(), errno))?;
                found.stripped = found.stripped.saturating_add(1);
            }
            rule @ (Rule::OnlyOpaqueYes | Rule::Unresolved | Rule::Refuse) => {
                let value = io.xattr(target, &name).map_err(|errno| read_error(&name, path(), errno))?;
                if rule != Rule::OnlyOpaqueYes || value != Some(overlay::OPAQUE_YES) {
                    return Err(refused(&name, value.unwrap_or_default(), path()));
                }
            }
        }
    }
    Ok(found)
}
