//! The way through several trees side by side: what wins under each name, and what it hides.

use crate::sealed::entry::{Attributes, Directory, DirectorySource, Item};
use crate::tree::{Below, EntryKind, Resolved, resolve};
use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Longest end of a path shown in an error; a hostile tree has paths of megabytes.
const SHOWN_BYTES_MAX: usize = 400;

/// Why trees could not be read side by side.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreesError<S> {
    /// A tree cannot be read on.
    #[error("cannot read layer {tree} of those to be merged, counted from the newest")]
    Source {
        /// Which one, counted from 0, the newest.
        tree: usize,
        /// Why not.
        source: S,
    },
    /// A tree is not in canonical order.
    #[error("layer {tree} of those to be merged, counted from the newest, is malformed at /{path}: {problem}")]
    Malformed {
        /// Which one, counted from 0, the newest.
        tree: usize,
        /// The directory, or the end of its path.
        path: String,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A directory has a name in its parent, and that is all there is of it.
    #[error("the directory is missing")]
    MissingDirectory,
    /// A group of hard links has a number that is not its turn, or a name without an inode.
    #[error("a group of hard links is out of order")]
    Links,
    /// It is not the tree that was counted before.
    #[error("the tree has changed since its links were counted")]
    Changed,
}

impl<S> TreesError<S> {
    pub(super) fn malformed(tree: usize, path: &[Vec<u8>], problem: Problem) -> Self {
        let joined = path.join(&b'/');
        let shown = joined.get(joined.len().saturating_sub(SHOWN_BYTES_MAX)..).unwrap_or_default();
        Self::Malformed { tree, path: String::from_utf8_lossy(shown).into_owned(), problem }
    }
}

/// What is told of an entry in a directory that does not show, with the tree it is in.
pub(super) type Hidden<'a> = &'a mut dyn FnMut(usize, Item) -> Result<(), Problem>;

/// What a name stands for in the result.
#[derive(Debug)]
pub(super) enum Won {
    Directory,
    NonDir { tree: usize, item: Item },
    Whiteout,
}

/// A name in a directory of the result.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) name: Vec<u8>,
    pub(super) won: Won,
    /// What older trees hold under the name and does not show, with the trees. Directories that merge are among it.
    pub(super) lost: Vec<(usize, Item)>,
}

/// A directory of the result.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) path: Vec<Vec<u8>>,
    pub(super) attributes: Attributes,
    pub(super) opaque: bool,
    /// Whether it or a directory it is in hides what is below the trees.
    pub(super) hides_below: bool,
    pub(super) names: Vec<Name>,
}

/// A directory still to be visited.
#[derive(Debug)]
struct Pending {
    /// Its name; none for the root.
    name: Option<Vec<u8>>,
    /// Number of names above it.
    depth: usize,
    /// Trees that take part, newest first.
    members: Vec<usize>,
    /// Whether it covers something else of its name.
    opaque: bool,
    /// Whether a directory above it hides what is below.
    hides_below: bool,
}

/// A walk through trees, newest first.
#[derive(Debug)]
pub(super) struct Walk<S> {
    trees: Vec<S>,
    /// Directories to come, the next one last.
    pending: Vec<Pending>,
    /// Path of the present directory.
    path: Vec<Vec<u8>>,
}

impl<S: DirectorySource> Walk<S> {
    pub(super) fn new(trees: Vec<S>) -> Self {
        let members: Vec<usize> = (0..trees.len()).collect();
        let root = Pending { name: None, depth: 0, members, opaque: false, hides_below: false };
        let pending = if trees.is_empty() { Vec::new() } else { vec![root] };
        Self { trees, pending, path: Vec::new() }
    }

    /// Returns the next directory. What is in directories that do not show is told to `hidden` on the way, so that of
    /// each tree everything is heard of in its order. At the end all trees were read to theirs, where their checksums
    /// are.
    pub(super) fn next(&mut self, hidden: Hidden<'_>) -> Result<Option<Merged>, TreesError<S::Error>> {
        let Some(place) = self.pending.pop() else {
            for (tree, source) in self.trees.iter_mut().enumerate() {
                while source.next_directory().map_err(|source| TreesError::Source { tree, source })?.is_some() {}
            }
            return Ok(None);
        };
        self.path.truncate(place.depth);
        self.path.extend(place.name);
        let mut opaque = place.opaque;
        let mut attributes = None;
        let mut listed = Vec::with_capacity(place.members.len());
        for tree in place.members {
            let found = self.find(tree, hidden)?;
            attributes.get_or_insert(found.attributes);
            listed.push((tree, found.entries.into_iter().peekable()));
            if found.opaque {
                opaque = true;
                break;
            }
        }
        let hides_below = place.hides_below || opaque;
        let mut names = Vec::new();
        let mut directories = Vec::new();
        while let Some(name) = listed.iter_mut().filter_map(|(_, rest)| rest.peek()).map(|entry| &entry.name).min() {
            let name = name.to_owned();
            let held = listed
                .iter_mut()
                .filter_map(|(tree, rest)| rest.next_if(|entry| entry.name == name).map(|entry| (*tree, entry.item)));
            let held: Vec<(usize, Item)> = held.collect();
            let kinds: Vec<EntryKind> = held.iter().map(|(_, item)| kind_of(item)).collect();
            // Whether a whiteout hides anything is for the caller to find out.
            let resolved = resolve(&kinds, Below::Visible);
            if let Resolved::Dir { merged, opaque } = resolved {
                let members = held.iter().take(merged).map(|(tree, _)| *tree).collect();
                let (name, depth) = (Some(name.clone()), self.path.len());
                directories.push(Pending { name, depth, members, opaque, hides_below });
            }
            names.extend(settle(name, resolved, held));
        }
        self.pending.extend(directories.into_iter().rev());
        let attributes = attributes.unwrap_or_default();
        Ok(Some(Merged { path: self.path.clone(), attributes, opaque, hides_below, names }))
    }

    /// Reads a tree on to the present directory, which it must have.
    fn find(&mut self, tree: usize, hidden: Hidden<'_>) -> Result<Directory, TreesError<S::Error>> {
        let missing = |path: &[Vec<u8>]| TreesError::malformed(tree, path, Problem::MissingDirectory);
        let Some(source) = self.trees.get_mut(tree) else { return Err(missing(&self.path)) };
        loop {
            let read = source.next_directory().map_err(|source| TreesError::Source { tree, source })?;
            let Some(directory) = read else { return Err(missing(&self.path)) };
            match directory.path.cmp(&self.path) {
                core::cmp::Ordering::Equal => return Ok(directory),
                core::cmp::Ordering::Greater => return Err(missing(&self.path)),
                core::cmp::Ordering::Less => {
                    let path = directory.path;
                    let mut items = directory.entries.into_iter().map(|entry| entry.item);
                    let told = items.try_for_each(|item| hidden(tree, item));
                    told.map_err(|problem| TreesError::malformed(tree, &path, problem))?;
                }
            }
        }
    }
}

fn settle(name: Vec<u8>, resolved: Resolved, held: Vec<(usize, Item)>) -> Option<Name> {
    let mut held = held.into_iter();
    let (tree, item) = held.next()?;
    let won = match resolved {
        Resolved::Nothing => return None,
        Resolved::Whiteout => Won::Whiteout,
        Resolved::NonDir => Won::NonDir { tree, item },
        Resolved::Dir { .. } => Won::Directory,
    };
    Some(Name { name, won, lost: held.collect() })
}

/// Returns the kind of an item. Whether a directory is opaque is found in its own block, when the walk gets there.
const fn kind_of(item: &Item) -> EntryKind {
    match item {
        Item::Directory => EntryKind::Dir,
        Item::Inode(_) | Item::Link(_) => EntryKind::NonDir,
        Item::Whiteout => EntryKind::Whiteout,
    }
}
