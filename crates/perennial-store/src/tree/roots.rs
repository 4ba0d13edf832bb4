//! The root directory of a tree: its attributes count as part of the tree, unlike in most tools.

use super::DIR_FLAGS;
use super::attrs::{AttrIo, Attrs, Target};
use super::cursor::{EntryStat, read_names};
use super::error::{EntryPath, TreeError};
use super::overlay::{Rule, rule};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, openat};

/// Opens a tree's root for reading; a tree may be given by a descriptor that only refers to it.
pub(crate) fn open_root(tree: BorrowedFd<'_>) -> Result<OwnedFd, TreeError> {
    let opened = openat(tree, c".", DIR_FLAGS, Mode::empty());
    opened.map_err(|errno| TreeError::system("open", EntryPath::from_bytes(Vec::new()), errno))
}

/// Returns the attributes of a tree's root without overlayfs' private ones.
///
/// # Errors
/// If something cannot be read.
pub fn root_attrs(tree: BorrowedFd<'_>) -> Result<Attrs, TreeError> {
    let path = || EntryPath::from_bytes(Vec::new());
    let root = open_root(tree)?;
    let stat = EntryStat::of_open(root.as_fd()).map_err(|errno| TreeError::system("look at", path(), errno))?;
    let mut attrs = AttrIo::default().read(Target::Open(root.as_fd()), &stat, &path)?;
    attrs.xattrs.retain(|name, _| rule(name) == Rule::Keep);
    Ok(attrs)
}

/// Returns whether a tree has no entry.
///
/// # Errors
/// If it cannot be read.
pub fn is_empty(tree: BorrowedFd<'_>) -> Result<bool, TreeError> {
    let names = read_names(open_root(tree)?.as_fd());
    let names = names.map_err(|errno| TreeError::system("read", EntryPath::from_bytes(Vec::new()), errno))?;
    Ok(names.is_empty())
}
