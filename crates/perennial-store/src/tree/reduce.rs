//! A whole tree made the layer that shows it over other layers: what is there already goes, what is not any more is hidden.
//!
//! ```text
//! tree, alone                  what differs from the view        tree, over the layers of the view
//! etc/passwd   as in the view                                    (gone: shows through)
//! etc/hosts    other           etc/hosts: modified               etc/hosts
//!                              etc/old: removed                  etc/old: whiteout
//! ```
//!
//! A file with several names goes with all of them or with none: the view must have it under just the same names.
//! Directories stay where something in them does, with their own attributes and times.

use super::attrs::{AttrIo, Target, attribute_error, set_times};
use super::cursor::EntryStat;
use super::diff::{Change, ChangeKind};
use super::error::{EntryPath, TreeError};
use super::overlay;
use super::walk::{Order, Visit, walk};
use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, FileType, Mode, mknodat, unlinkat};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};

/// Names of the files that have several, by file.
type Names = BTreeMap<(u64, u64), BTreeSet<Vec<u8>>>;

/// Makes `tree`, which hides nothing and is not in use, the layer that shows it over the layers of `view`. `changes` are
/// what differs from the view to the tree, sorted by path.
///
/// # Errors
/// If something cannot be read or changed; the tree is neither then and to be removed.
pub fn reduce(tree: BorrowedFd<'_>, view: BorrowedFd<'_>, changes: &[Change]) -> Result<(), TreeError> {
    let mut kept: BTreeSet<Vec<u8>> =
        changes.iter().filter(|change| change.kind != ChangeKind::Removed).map(|change| change.path.clone()).collect();
    keep_links_whole(&names_of(tree)?, &names_of(view)?, &mut kept);
    let removed: Vec<&[u8]> = changes
        .iter()
        .filter(|change| change.kind == ChangeKind::Removed)
        .map(|change| change.path.as_slice())
        // What is below a removed directory goes with it.
        .filter(|path| !has_above(path, &|above| is_removed(changes, above)))
        .collect();
    let mut hidden = Hidden::new(&removed);
    let mut reducer = Reducer { kept, io: AttrIo::default(), emptied: Vec::new() };
    walk(tree, Order::Listed, &mut |visit| reducer.visit(visit, &mut hidden))
}

fn is_removed(changes: &[Change], path: &[u8]) -> bool {
    let found = changes.binary_search_by(|change| change.path.as_slice().cmp(path));
    found.ok().and_then(|at| changes.get(at)).is_some_and(|change| change.kind == ChangeKind::Removed)
}

fn has_above(path: &[u8], holds: &dyn Fn(&[u8]) -> bool) -> bool {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    slashes.filter_map(|(at, _)| path.get(..at)).any(holds)
}

/// What is to be hidden, by directory.
struct Hidden {
    names: BTreeMap<Vec<u8>, Vec<CString>>,
}

impl Hidden {
    fn new(removed: &[&[u8]]) -> Self {
        let mut names: BTreeMap<Vec<u8>, Vec<CString>> = BTreeMap::new();
        for path in removed {
            let at = path.iter().rposition(|byte| *byte == b'/');
            let (above, name) = at.and_then(|at| path.split_at_checked(at)).unwrap_or((&[], path));
            let name = name.strip_prefix(b"/").unwrap_or(name);
            // Names that came from a directory have no NUL.
            names.entry(above.to_vec()).or_default().push(CString::new(name).unwrap_or_default());
        }
        Self { names }
    }
}

fn names_of(tree: BorrowedFd<'_>) -> Result<Names, TreeError> {
    let mut names = Names::new();
    walk(tree, Order::Listed, &mut |visit| {
        if let Visit::NonDir(entry) = visit
            && entry.stat.nlink > 1
        {
            let path = entry.path.join(entry.name).as_bytes().to_vec();
            names.entry((entry.stat.dev, entry.stat.ino)).or_default().insert(path);
        }
        Ok(())
    })?;
    Ok(names)
}

/// Adds the names of files that the view does not have under just the same names.
fn keep_links_whole(of_tree: &Names, of_view: &Names, kept: &mut BTreeSet<Vec<u8>>) {
    let by_name = |names: &Names| -> BTreeMap<Vec<u8>, (u64, u64)> {
        let each = names.iter().flat_map(|(file, names)| names.iter().map(|name| (name.clone(), *file)));
        each.collect()
    };
    let (in_tree, in_view) = (by_name(of_tree), by_name(of_view));
    let mut alone = BTreeSet::new();
    for names in of_tree.values() {
        let same = names.first().and_then(|name| in_view.get(name)).and_then(|file| of_view.get(file)) == Some(names);
        let is_alone = names.len() == 1 && names.first().is_some_and(|name| !in_view.contains_key(name));
        if !(same || is_alone) || names.iter().any(|name| kept.contains(name)) {
            alone.extend(names.iter().cloned());
        }
    }
    for (name, file) in &in_view {
        // Linked in the view, and not so in the tree.
        if !in_tree.contains_key(name) && of_view.get(file).is_some_and(|names| names.len() > 1) {
            alone.insert(name.clone());
        }
    }
    kept.extend(alone);
}

/// A directory on the way back up.
struct Level {
    /// Whether it stays whatever is in it.
    stays: bool,
    /// Directories in it that nothing keeps.
    empty: Vec<CString>,
}

struct Reducer {
    kept: BTreeSet<Vec<u8>>,
    io: AttrIo,
    emptied: Vec<Level>,
}

impl Reducer {
    fn visit(&mut self, visit: Visit<'_>, hidden: &mut Hidden) -> Result<(), TreeError> {
        match visit {
            Visit::NonDir(entry) => {
                let path = entry.path.join(entry.name);
                if self.kept.contains(path.as_bytes()) {
                    self.keep_level();
                    return Ok(());
                }
                let gone = unlinkat(entry.dir, entry.name, AtFlags::empty());
                gone.map_err(|errno| TreeError::system("remove", path, errno))
            }
            Visit::Enter { own, path, .. } => {
                let removed = self.io.remove_xattr(Target::Open(own), overlay::OPAQUE);
                let opaque = || overlay::OPAQUE.to_string_lossy().into_owned();
                removed.map_err(|errno| attribute_error("remove", &opaque(), path.here(), errno))?;
                let stays = path.as_bytes().is_empty() || self.kept.contains(path.as_bytes());
                self.emptied.push(Level { stays, empty: Vec::new() });
                Ok(())
            }
            Visit::Leave { own, stat, path } => {
                let Some(mut level) = self.emptied.pop() else { return Ok(()) };
                for name in hidden.names.remove(path.as_bytes()).unwrap_or_default() {
                    level.stays = true;
                    hide(own, &name).map_err(|errno| TreeError::system("hide", path.join(&name), errno))?;
                }
                for name in &level.empty {
                    let gone = unlinkat(own, name.as_c_str(), AtFlags::REMOVEDIR);
                    gone.map_err(|errno| TreeError::system("remove", path.join(name), errno))?;
                }
                self.finish(&level, own, stat, &|| path.here())?;
                match (level.stays, CString::new(path.last())) {
                    (true, _) | (_, Err(_)) => self.keep_level(),
                    (false, Ok(name)) => {
                        if let Some(above) = self.emptied.last_mut() {
                            above.empty.push(name);
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn keep_level(&mut self) {
        if let Some(level) = self.emptied.last_mut() {
            level.stays = true;
        }
    }

    /// Gives a directory that stays the times it had.
    fn finish(
        &self,
        level: &Level,
        own: BorrowedFd<'_>,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        if !level.stays {
            return Ok(());
        }
        let set = set_times(Target::Open(own), stat.atime, stat.mtime);
        set.map_err(|errno| TreeError::system("set the times of", path(), errno))
    }
}

/// Makes a whiteout.
fn hide(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), rustix::io::Errno> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}
