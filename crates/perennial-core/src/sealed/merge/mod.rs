//! Several trees as one: what a stack of layers says, as a single layer.
//!
//! ```text
//!   newest   a (whiteout)   d (dir: x)            what the stack hides or shows
//!            a (file)       d (opaque: y)    ──▶   d (opaque: x, y)
//!   oldest   a (file)       d (dir: z)            whiteout of a, if something below shows a
//! ```
//!
//! The trees are read side by side, twice: [`Census`] counts the names that are left of each group of hard links, then
//! [`Merge`] yields the result, itself in canonical order. Held in memory are the directories on the way from the root
//! (names only), the present directory of each tree, four bytes for each group of links, and the inodes whose first
//! name is hidden while another one is still to come.
//!
//! - The rules are those of [`crate::tree::resolve`]; a directory has the attributes of the newest tree that has it.
//! - Whiteouts that hide nothing are dropped: overlayfs lists such a name, though it cannot be opened.
//! - Opaque marks stay wherever a tree has one or a directory covers something else, also if they hide nothing now. They
//!   are never seen, spare overlayfs the layers below, and keep a directory made anew apart from one that a newer image
//!   brings.
//! - A result over nothing ([`Merge::complete`]) has neither.
//! - Groups of links are numbered anew. A group of which one name is left is no group; the first name that is left is
//!   the one that carries the inode.
//!
//! Merging is associative but for opaque marks that hide nothing.

mod links;
mod walk;

pub use links::Census;
pub use walk::{Problem, TreesError};

use super::entry::{Directory, DirectorySource, Entry, Item};
use crate::tree::Below;
use alloc::vec::Vec;
use core::convert::Infallible;
use links::Renumbered;
use walk::{Merged, Name, Walk, Won};

/// What the layers under a merge show.
pub trait Underneath {
    /// Why it cannot be told.
    type Error;

    /// Returns whether they show `name` in `directory` (names from the root). Asked for whiteouts of the result only,
    /// in canonical order of directories and by sorted names in each.
    ///
    /// # Errors
    /// If the layers cannot be read.
    fn shows(&mut self, directory: &[Vec<u8>], name: &[u8]) -> Result<Below, Self::Error>;
}

/// No layers at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nothing;

impl Underneath for Nothing {
    type Error = Infallible;
    fn shows(&mut self, _directory: &[Vec<u8>], _name: &[u8]) -> Result<Below, Infallible> {
        Ok(Below::Absent)
    }
}

/// Why trees could not be merged: `S` is why one could not be read, `B` why what is below could not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError<S, B> {
    /// One of the trees.
    #[error(transparent)]
    Trees(TreesError<S>),
    /// What is below them.
    #[error("cannot look below the merged layers")]
    Below(#[source] B),
}

impl<S, B> From<TreesError<S>> for MergeError<S, B> {
    fn from(error: TreesError<S>) -> Self {
        Self::Trees(error)
    }
}

/// What becomes of marks that speak about layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// There may be something below.
    Kept,
    /// Nothing is below.
    Dropped,
}

/// Several trees as one; see the [module](self).
#[derive(Debug)]
pub struct Merge<S, U> {
    walk: Walk<S>,
    links: Renumbered,
    below: U,
    marks: Marks,
}

impl<S: DirectorySource, U: Underneath> Merge<S, U> {
    /// Merges trees, newest first, over what is below them. `census` was taken of the same trees. Without any tree the
    /// result has no directory, not even a root.
    #[must_use]
    pub fn over(trees: Vec<S>, census: Census, below: U) -> Self {
        Self { walk: Walk::new(trees), links: Renumbered::new(census), below, marks: Marks::Kept }
    }
}

impl<S: DirectorySource> Merge<S, Nothing> {
    /// Merges trees, newest first, with nothing below: the result is what they show.
    #[must_use]
    pub fn complete(trees: Vec<S>, census: Census) -> Self {
        Self { walk: Walk::new(trees), links: Renumbered::new(census), below: Nothing, marks: Marks::Dropped }
    }
}

impl<S: DirectorySource, U: Underneath> Merge<S, U> {
    fn item(&mut self, directory: &Merged, name: &[u8], won: Won) -> Result<Option<Item>, ErrorOf<S, U>> {
        match won {
            Won::Directory => Ok(Some(Item::Directory)),
            Won::NonDir { tree, item } => {
                let item = self.links.shown(tree, item);
                item.map(Some).map_err(|problem| TreesError::malformed(tree, &directory.path, problem).into())
            }
            Won::Whiteout if directory.hides_below || self.marks == Marks::Dropped => Ok(None),
            Won::Whiteout => match self.below.shows(&directory.path, name).map_err(MergeError::Below)? {
                Below::Visible => Ok(Some(Item::Whiteout)),
                Below::Absent => Ok(None),
            },
        }
    }
}

type ErrorOf<S, U> = MergeError<<S as DirectorySource>::Error, <U as Underneath>::Error>;

impl<S: DirectorySource, U: Underneath> DirectorySource for Merge<S, U> {
    type Error = ErrorOf<S, U>;

    fn next_directory(&mut self) -> Result<Option<Directory>, Self::Error> {
        let links = &mut self.links;
        let hidden = &mut |tree, item| {
            links.hidden(tree, item);
            Ok(())
        };
        let Some(mut merged) = self.walk.next(hidden)? else { return Ok(None) };
        let names = core::mem::take(&mut merged.names);
        let mut entries = Vec::with_capacity(names.len());
        for Name { name, won, lost } in names {
            if let Some(item) = self.item(&merged, &name, won)? {
                entries.push(Entry { name, item });
            }
            lost.into_iter().for_each(|(tree, item)| self.links.hidden(tree, item));
        }
        let opaque = merged.opaque && self.marks == Marks::Kept;
        Ok(Some(Directory { path: merged.path, attributes: merged.attributes, opaque, entries }))
    }
}
