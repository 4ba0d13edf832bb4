//! What makes a sequence of directories a tree in canonical order, checked while it passes by.
//!
//! Memory: the names of directories that were announced and have not come yet, and one bit for each group of hard links.

use super::entry::{
    Attributes, Content, Directory, Entry, INLINE_BYTES_MAX, Inode, Item, NAME_BYTES_MAX, Node, TARGET_BYTES_MAX,
    XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX,
};
use alloc::vec::Vec;
use core::fmt;

/// Deepest directory, in names from the root: the path of each directory is handed on whole, so that the work grows
/// with depth times directories.
pub const DEPTH_MAX: usize = 16384;
/// Longest list of names of extended attributes of one entry, in bytes with a NUL each (`XATTR_LIST_MAX`).
pub const XATTR_LIST_BYTES_MAX: usize = 65536;
/// Largest size of a file, in bytes (`loff_t`).
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Permissions with setuid, setgid and sticky bits.
const MODE_MAX: u32 = 0o7777;
/// Nanoseconds in a second.
const NANOSECONDS: u32 = 1_000_000_000;
/// Attributes that overlayfs keeps for itself; what follows the second prefix was escaped by it, and is anybody's.
const PRIVATE: &[u8] = b"trusted.overlay.";
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
/// Groups of hard links in one word of the bit set.
const WORD_BITS: usize = u64::BITS as usize;

/// What is wrong with a tree, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", Shown(path))]
pub struct Fault {
    /// Names on the way from the root, joined by `/`; empty for the root.
    pub path: Vec<u8>,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Another directory should have come.
    #[error("this directory does not follow in canonical order, or was not announced by the one it is in")]
    Unexpected,
    /// It was announced and did not come.
    #[error("this directory was announced and is missing")]
    Missing,
    /// More than [`DEPTH_MAX`] names lead to it.
    #[error("this directory is more than {DEPTH_MAX} directories deep")]
    Depth,
    /// It is empty, too long, holds NUL or `/`, or is `.` or `..`.
    #[error("this is not the name of an entry")]
    Name,
    /// Names are not sorted by their bytes, each once.
    #[error("this name does not follow the one before it")]
    NameOrder,
    /// Bits outside of `0o7777`.
    #[error("the mode has bits that are not permissions")]
    Mode,
    /// A second has 10⁹ nanoseconds.
    #[error("the nanoseconds of its time are more than a second")]
    Time,
    /// The name of an extended attribute is empty, too long, holds NUL or is overlayfs' own.
    #[error("the name of an extended attribute is not one to keep")]
    XattrName,
    /// Names of extended attributes are not sorted by their bytes, each once.
    #[error("extended attributes are not sorted")]
    XattrOrder,
    /// The value of an extended attribute, or the list of their names, is longer than Linux can hold.
    #[error("extended attributes are too long")]
    XattrLength,
    /// The kept content is longer than [`INLINE_BYTES_MAX`] or that of an object is not.
    #[error("the length of the content does not go with where it is kept")]
    ContentLength,
    /// The same object with two sizes.
    #[error("another entry gives the object another size")]
    ObjectSize,
    /// The target of a symbolic link is empty, too long or holds NUL.
    #[error("this is not the target of a symbolic link")]
    Target,
    /// Device 0:0.
    #[error("a character device 0:0 would be a whiteout")]
    Device,
    /// Groups of hard links are not numbered in the order in which they appear.
    #[error("the number of its group of hard links is not the next one, or names none")]
    LinkNumber,
    /// A group of hard links of one name.
    #[error("a group of hard links has only one name")]
    LinkAlone,
}

struct Shown<'path>(&'path [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

/// Joins the names of a path, and one more.
#[must_use]
pub(super) fn joined(path: &[Vec<u8>], name: Option<&[u8]>) -> Vec<u8> {
    let names: Vec<&[u8]> = path.iter().map(Vec::as_slice).chain(name).collect();
    names.join(&b'/')
}

/// Follows a sequence of directories.
#[derive(Debug, Default)]
pub struct Order {
    begun: bool,
    /// The directory that is due.
    path: Vec<Vec<u8>>,
    /// For each directory on the way to it, those in it that have not come yet, the next one last.
    pending: Vec<Vec<Vec<u8>>>,
    groups: u32,
    /// One bit for each group: whether a second name came.
    linked: Vec<u64>,
    alone: u32,
}

impl Order {
    /// Moves on to the directory that is due next and returns its path; `None` after the last.
    pub fn advance(&mut self) -> Option<&[Vec<u8>]> {
        if !self.begun {
            self.begun = true;
            return Some(&self.path);
        }
        loop {
            let depth = self.pending.len().checked_sub(1)?;
            match self.pending.last_mut()?.pop() {
                None => {
                    self.pending.pop();
                }
                Some(name) => {
                    self.path.truncate(depth);
                    self.path.push(name);
                    return Some(&self.path);
                }
            }
        }
    }

    /// Checks the directory that was due, and notes which ones it announces.
    ///
    /// # Errors
    /// [`Fault`] where it cannot be part of a tree in canonical order.
    pub fn check(&mut self, directory: &Directory) -> Result<(), Fault> {
        let at = |name: Option<&[u8]>, problem| Fault { path: joined(&directory.path, name), problem };
        if directory.path != self.path {
            return Err(at(None, Problem::Unexpected));
        }
        if self.path.len() > DEPTH_MAX {
            return Err(at(None, Problem::Depth));
        }
        check_attributes(&directory.attributes).map_err(|problem| at(None, problem))?;
        let mut announced = Vec::new();
        let mut before: &[u8] = b"";
        for entry in &directory.entries {
            self.check_entry(entry, before).map_err(|problem| at(Some(&entry.name), problem))?;
            before = &entry.name;
            match entry.item {
                Item::Directory => announced.push(entry.name.clone()),
                Item::Inode(_) | Item::Link(_) | Item::Whiteout => {}
            }
        }
        announced.reverse();
        self.pending.push(announced);
        Ok(())
    }

    /// Checks that nothing is missing.
    ///
    /// # Errors
    /// [`Fault`] where it is.
    pub fn finish(&mut self) -> Result<(), Fault> {
        if let Some(path) = self.advance() {
            return Err(Fault { path: joined(path, None), problem: Problem::Missing });
        }
        if self.alone > 0 {
            return Err(Fault { path: Vec::new(), problem: Problem::LinkAlone });
        }
        Ok(())
    }

    /// Returns how many groups of hard links came so far: the number of the next one.
    #[must_use]
    pub const fn groups(&self) -> u32 {
        self.groups
    }

    fn check_entry(&mut self, entry: &Entry, before: &[u8]) -> Result<(), Problem> {
        if !is_name(&entry.name) {
            return Err(Problem::Name);
        }
        if entry.name.as_slice() <= before {
            return Err(Problem::NameOrder);
        }
        match &entry.item {
            Item::Directory | Item::Whiteout => Ok(()),
            Item::Link(group) => self.link(*group),
            Item::Inode(inode) => {
                check_inode(inode)?;
                match inode.links {
                    None => Ok(()),
                    Some(group) => self.open_group(group),
                }
            }
        }
    }

    fn open_group(&mut self, group: u32) -> Result<(), Problem> {
        if group != self.groups {
            return Err(Problem::LinkNumber);
        }
        self.groups = self.groups.checked_add(1).ok_or(Problem::LinkNumber)?;
        self.alone = self.alone.saturating_add(1);
        if usize::try_from(group).is_ok_and(|group| group.is_multiple_of(WORD_BITS)) {
            self.linked.push(0);
        }
        Ok(())
    }

    fn link(&mut self, group: u32) -> Result<(), Problem> {
        if group >= self.groups {
            return Err(Problem::LinkNumber);
        }
        let index = usize::try_from(group).map_err(|_| Problem::LinkNumber)?;
        let word = self.linked.get_mut(index / WORD_BITS).ok_or(Problem::LinkNumber)?;
        let bit = 1_u64 << (index % WORD_BITS);
        if *word & bit == 0 {
            *word |= bit;
            self.alone = self.alone.saturating_sub(1);
        }
        Ok(())
    }
}

/// Returns whether these bytes may name an entry of a directory.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| *byte == 0 || *byte == b'/')
}

/// Returns whether an extended attribute of this name may be kept: overlayfs' own may not.
#[must_use]
pub fn is_xattr_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= XATTR_NAME_BYTES_MAX
        && !name.contains(&0)
        && (!name.starts_with(PRIVATE) || name.starts_with(ESCAPED))
}

fn check_attributes(attributes: &Attributes) -> Result<(), Problem> {
    if attributes.mode > MODE_MAX {
        return Err(Problem::Mode);
    }
    if attributes.mtime.nanoseconds >= NANOSECONDS {
        return Err(Problem::Time);
    }
    let mut list = 0_usize;
    let mut before: &[u8] = b"";
    for (name, value) in &attributes.xattrs {
        if !is_xattr_name(name) {
            return Err(Problem::XattrName);
        }
        if name.as_slice() <= before {
            return Err(Problem::XattrOrder);
        }
        list = list.saturating_add(name.len()).saturating_add(1);
        if value.len() > XATTR_VALUE_BYTES_MAX || list > XATTR_LIST_BYTES_MAX {
            return Err(Problem::XattrLength);
        }
        before = name;
    }
    Ok(())
}

fn check_inode(inode: &Inode) -> Result<(), Problem> {
    check_attributes(&inode.attributes)?;
    let inline_max = INLINE_BYTES_MAX as u64;
    match &inode.node {
        Node::File(Content::Inline(bytes)) if bytes.len() > INLINE_BYTES_MAX => Err(Problem::ContentLength),
        Node::File(Content::Object { size, .. }) if *size <= inline_max || *size > FILE_BYTES_MAX => {
            Err(Problem::ContentLength)
        }
        Node::Symlink(target) if target.is_empty() || target.len() > TARGET_BYTES_MAX || target.contains(&0) => {
            Err(Problem::Target)
        }
        Node::CharDevice { major: 0, minor: 0 } => Err(Problem::Device),
        Node::File(_)
        | Node::Symlink(_)
        | Node::CharDevice { .. }
        | Node::BlockDevice { .. }
        | Node::Fifo
        | Node::Socket => Ok(()),
    }
}

/// Returns the names of a path as text for people.
#[must_use]
pub fn shown(path: &[u8]) -> alloc::string::String {
    alloc::format!("{}", Shown(path))
}
