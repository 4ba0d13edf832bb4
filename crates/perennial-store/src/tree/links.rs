//! Files with several names, written once and linked.
//!
//! The first copy of such a file gets a second name in a directory of our own at the root of the tree being written, so
//! that later names can be linked to it however far away and deep they are. It is gone when the tree is complete.

use super::DIR_FLAGS;
use super::attrs::Target;
use super::copy::{Copier, Place};
use super::cursor::{EntryStat, read_names};
use super::error::{EntryPath, TreeError};
use super::stack::Data;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, linkat, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString};

/// A file with more names is copied even by [`Data::Link`]: its names might not fit the inode twice (ext4: 65,000).
const LINKS_MAX: u64 = 30_000;

#[derive(Debug, Clone, Copy)]
enum Group {
    /// Each name is linked to its own file in the layer.
    Linked,
    /// The file was copied; this many names may still come.
    Copied { left: u64 },
}

/// The files with several names that were met so far.
#[derive(Debug)]
pub(crate) struct Links<'a> {
    /// Copies what is not linked.
    pub(crate) copier: Copier<'a>,
    root: BorrowedFd<'a>,
    data: Data,
    name: CString,
    dir: Option<OwnedFd>,
    groups: HashMap<(u64, u64), Group>,
}

impl<'a> Links<'a> {
    /// Begins a tree at `root`.
    pub(crate) fn new(root: BorrowedFd<'a>, data: Data, copier: Copier<'a>) -> Self {
        Self { copier, root, data, name: c".perennial-links".to_owned(), dir: None, groups: HashMap::new() }
    }

    /// Chooses a name for our directory that no entry of the root has.
    pub(crate) fn avoid(&mut self, taken: &dyn Fn(&CStr) -> bool) {
        while taken(&self.name) {
            let mut longer = self.name.to_bytes().to_vec();
            longer.push(b'_');
            self.name = CString::new(longer).unwrap_or_default();
        }
    }

    /// Writes an entry that is not a directory.
    pub(crate) fn write(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        let fail = |errno| TreeError::system("link", path(), errno);
        let try_link = || linkat(from.dir, from.name, to.dir, to.name, AtFlags::empty());
        if self.data == Data::Link {
            self.copier.io.refuse_reference(Target::Named(from.dir, from.name), stat, path)?;
        }
        let Some(key) = stat.link_group() else {
            return match self.data {
                Data::Copy => self.copier.copy(from, to, stat, path),
                Data::Link => match try_link() {
                    // A protected file takes no further name.
                    Err(Errno::PERM) => self.copier.copy(from, to, stat, path),
                    linked => linked.map_err(fail),
                },
            };
        };
        match (self.groups.get(&key).copied(), self.data) {
            (Some(Group::Linked), _) => try_link().map_err(fail),
            (None, Data::Link | Data::Copy) => {
                if self.data == Data::Link && stat.nlink <= LINKS_MAX {
                    match try_link() {
                        Err(Errno::PERM) => {}
                        linked => {
                            self.groups.insert(key, Group::Linked);
                            return linked.map_err(fail);
                        }
                    }
                }
                self.copier.copy(from, to, stat, path)?;
                self.keep_first(key, to, stat).map_err(fail)
            }
            (Some(Group::Copied { left }), _) => self.link_next(key, left, to).map_err(fail),
        }
    }

    /// Writes an entry that is not a directory; `copy` writes one of which no name was met before.
    pub(crate) fn write_by<E: From<TreeError>>(
        &mut self,
        to: Place<'_>,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
        copy: &mut dyn FnMut(&mut Copier<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let fail = |errno| TreeError::system("link", path(), errno);
        let Some(key) = stat.link_group() else { return copy(&mut self.copier) };
        match self.groups.get(&key).copied() {
            Some(Group::Copied { left }) => self.link_next(key, left, to).map_err(fail)?,
            Some(Group::Linked) | None => {
                copy(&mut self.copier)?;
                self.keep_first(key, to, stat).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Keeps a name of a file that was copied, for its other names.
    fn keep_first(&mut self, key: (u64, u64), to: Place<'_>, stat: &EntryStat) -> Result<(), Errno> {
        let staging = self.staging()?;
        linkat(to.dir, to.name, staging, staged(key), AtFlags::empty())?;
        self.groups.insert(key, Group::Copied { left: stat.nlink.saturating_sub(1) });
        Ok(())
    }

    /// Gives a file that was copied its next name.
    fn link_next(&mut self, key: (u64, u64), left: u64, to: Place<'_>) -> Result<(), Errno> {
        let staging = self.staging()?;
        if left > 1 {
            linkat(staging, staged(key), to.dir, to.name, AtFlags::empty())?;
        } else {
            // The last name: ours is not counted against the limit of the file system.
            renameat(staging, staged(key), to.dir, to.name)?;
        }
        self.groups.insert(key, Group::Copied { left: left.saturating_sub(1) });
        Ok(())
    }

    /// Removes our directory.
    pub(crate) fn finish(&mut self) -> Result<(), TreeError> {
        let Some(dir) = self.dir.take() else { return Ok(()) };
        let fail = |errno| TreeError::system("remove", EntryPath::from_bytes(self.name.to_bytes().to_vec()), errno);
        for left in read_names(dir.as_fd()).map_err(fail)? {
            unlinkat(&dir, &left.name, AtFlags::empty()).map_err(fail)?;
        }
        unlinkat(self.root, &self.name, AtFlags::REMOVEDIR).map_err(fail)
    }

    fn staging(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        if self.dir.is_none() {
            mkdirat(self.root, &self.name, Mode::RWXU)?;
            self.dir = Some(openat(self.root, &self.name, DIR_FLAGS, Mode::empty())?);
        }
        self.dir.as_ref().map(OwnedFd::as_fd).ok_or(Errno::BADF)
    }
}

fn staged((dev, ino): (u64, u64)) -> CString {
    CString::new(format!("{dev:x}-{ino:x}")).unwrap_or_default()
}
