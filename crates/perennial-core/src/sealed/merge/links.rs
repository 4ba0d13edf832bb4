//! Groups of hard links of several trees: how many names of each are left, and their numbers in the result.

use super::walk::{Problem, TreesError, Walk, Won};
use crate::sealed::entry::{DirectorySource, Inode, Item};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// How many names of each group of hard links are left when trees are merged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// For each tree, by the number of the group.
    left: Vec<Vec<u32>>,
}

impl Census {
    /// Reads trees, newest first, and counts.
    ///
    /// # Errors
    /// If one cannot be read or is malformed.
    pub fn take<S: DirectorySource>(trees: Vec<S>) -> Result<Self, TreesError<S::Error>> {
        let mut census = Self { left: trees.iter().map(|_| Vec::new()).collect() };
        let mut walk = Walk::new(trees);
        while let Some(merged) = walk.next(&mut |tree, item| census.count(tree, &item, 0))? {
            for name in &merged.names {
                let won = match &name.won {
                    Won::NonDir { tree, item } => Some((*tree, item, 1)),
                    Won::Directory | Won::Whiteout => None,
                };
                for (tree, item, names) in won.into_iter().chain(name.lost.iter().map(|(tree, item)| (*tree, item, 0)))
                {
                    let counted = census.count(tree, item, names);
                    counted.map_err(|problem| TreesError::malformed(tree, &merged.path, problem))?;
                }
            }
        }
        Ok(census)
    }

    fn count(&mut self, tree: usize, item: &Item, names: u32) -> Result<(), Problem> {
        let Some(left) = self.left.get_mut(tree) else { return Err(Problem::Changed) };
        match item {
            Item::Directory | Item::Whiteout | Item::Inode(Inode { links: None, .. }) => Ok(()),
            Item::Inode(Inode { links: Some(group), .. }) => {
                if left.len() != index(*group) {
                    return Err(Problem::Links);
                }
                left.push(names);
                Ok(())
            }
            Item::Link(group) => {
                let left = left.get_mut(index(*group)).ok_or(Problem::Links)?;
                *left = left.saturating_add(names);
                Ok(())
            }
        }
    }

    fn left(&self, tree: usize, group: u32) -> u32 {
        self.left.get(tree).and_then(|left| left.get(index(group))).copied().unwrap_or(0)
    }
}

/// Position of a group; a number too large for this machine's memory is past the end of any list.
fn index(group: u32) -> usize {
    usize::try_from(group).unwrap_or(usize::MAX)
}

/// A group of which names are still to come.
#[derive(Debug)]
enum Group {
    /// No name of it has been shown; this is its inode.
    Waiting(Inode),
    /// It has got this number.
    Numbered(u32),
}

/// Groups as they are numbered in the result.
#[derive(Debug)]
pub(super) struct Renumbered {
    census: Census,
    groups: BTreeMap<(usize, u32), Group>,
    next: u32,
}

impl Renumbered {
    pub(super) const fn new(census: Census) -> Self {
        Self { census, groups: BTreeMap::new(), next: 0 }
    }

    /// Notes an entry that does not show.
    pub(super) fn hidden(&mut self, tree: usize, item: Item) {
        match item {
            Item::Directory | Item::Whiteout | Item::Link(_) => {}
            Item::Inode(inode) => {
                if let Some(group) = inode.links.filter(|group| self.census.left(tree, *group) > 0) {
                    self.groups.insert((tree, group), Group::Waiting(inode));
                }
            }
        }
    }

    /// Returns what a non-directory that shows is in the result.
    pub(super) fn shown(&mut self, tree: usize, item: Item) -> Result<Item, Problem> {
        match item {
            Item::Directory | Item::Whiteout | Item::Inode(Inode { links: None, .. }) => Ok(item),
            Item::Inode(inode) => match inode.links {
                Some(group) => self.first_name(tree, group, inode),
                None => Ok(Item::Inode(inode)),
            },
            Item::Link(group) => match self.groups.remove(&(tree, group)) {
                None => Err(Problem::Links),
                Some(Group::Waiting(inode)) => self.first_name(tree, group, inode),
                Some(Group::Numbered(number)) => {
                    self.number(tree, group, number);
                    Ok(Item::Link(number))
                }
            },
        }
    }

    fn first_name(&mut self, tree: usize, group: u32, inode: Inode) -> Result<Item, Problem> {
        let links = match self.census.left(tree, group) {
            0 => return Err(Problem::Changed),
            1 => None,
            _ => {
                let number = self.next;
                self.next = self.next.checked_add(1).ok_or(Problem::Links)?;
                self.number(tree, group, number);
                Some(number)
            }
        };
        Ok(Item::Inode(Inode { links, ..inode }))
    }

    /// Counts a name as shown, and remembers the group's number as long as another one is to come.
    fn number(&mut self, tree: usize, group: u32, number: u32) {
        let left = self.census.left.get_mut(tree).and_then(|left| left.get_mut(index(group)));
        if let Some(left) = left {
            *left = left.saturating_sub(1);
            if *left > 0 {
                self.groups.insert((tree, group), Group::Numbered(number));
            }
        }
    }
}
