//! Names of a directory as blocks: entries of 12 bytes, then the names, each block by itself.

use super::super::entry::{Directory, Entry};
use super::BLOCK;
use alloc::vec::Vec;

/// Bytes of an entry without its name.
pub(super) const DIRENT_BYTES: usize = 12;

/// What a name in a directory block stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'tree> {
    /// `.`
    Itself,
    /// `..`
    Parent,
    /// The entry, and which one it is.
    Entry(&'tree Entry),
}

impl<'tree> Target<'tree> {
    pub(super) fn name(self) -> &'tree [u8] {
        match self {
            Self::Itself => b".",
            Self::Parent => b"..",
            Self::Entry(entry) => &entry.name,
        }
    }
}

/// Returns all names of a directory, with `.` and `..`, sorted by their bytes.
pub(super) fn targets(directory: &Directory) -> impl Iterator<Item = Target<'_>> {
    let before = |name: &[u8]| directory.entries.partition_point(|entry| entry.name.as_slice() < name);
    let (dot, dots) = (before(b"."), before(b".."));
    let (head, rest) = directory.entries.split_at_checked(dot).unwrap_or_default();
    let (middle, tail) = rest.split_at_checked(dots.saturating_sub(dot)).unwrap_or_default();
    let (head, middle, tail) = (head.iter(), middle.iter(), tail.iter());
    head.map(Target::Entry)
        .chain([Target::Itself])
        .chain(middle.map(Target::Entry))
        .chain([Target::Parent])
        .chain(tail.map(Target::Entry))
}

/// How the names of a directory fill blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fill {
    /// Blocks before the last one.
    pub(super) full: u64,
    /// Bytes of the last one: at least 1.
    pub(super) last_bytes: u64,
}

impl Fill {
    pub(super) fn of(directory: &Directory) -> Self {
        let mut fill = Self { full: 0, last_bytes: 0 };
        for target in targets(directory) {
            let bytes = DIRENT_BYTES.saturating_add(target.name().len()) as u64;
            if fill.last_bytes.saturating_add(bytes) > BLOCK {
                fill = Self { full: fill.full.saturating_add(1), last_bytes: 0 };
            }
            fill.last_bytes = fill.last_bytes.saturating_add(bytes);
        }
        fill
    }

    /// Returns the length of the directory, in bytes.
    pub(super) const fn bytes(self) -> u64 {
        self.full.saturating_mul(BLOCK).saturating_add(self.last_bytes)
    }
}

/// One entry: the inode's number and type.
pub(super) type Pointer = (u64, u8);

/// Returns the blocks of a directory one after the other, each as long as it is filled.
pub(super) fn blocks(names: &[(&[u8], Pointer)]) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        let mut bytes = 0_usize;
        let fits = |(name, _): &&(&[u8], Pointer)| {
            bytes = bytes.saturating_add(DIRENT_BYTES).saturating_add(name.len());
            bytes as u64 <= BLOCK
        };
        // A name always fits: the longest has 255 bytes.
        let count = rest.iter().take_while(fits).count().max(1);
        let (block, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        blocks.push(one_block(block));
        rest = after;
    }
    blocks
}

fn one_block(names: &[(&[u8], Pointer)]) -> Vec<u8> {
    let mut block = Vec::new();
    let mut at = names.len().saturating_mul(DIRENT_BYTES);
    for (name, (nid, kind)) in names {
        block.extend_from_slice(&nid.to_le_bytes());
        // A block has 4096 bytes.
        block.extend_from_slice(&u16::try_from(at).unwrap_or(u16::MAX).to_le_bytes());
        block.extend_from_slice(&[*kind, 0]);
        at = at.saturating_add(name.len());
    }
    for (name, _) in names {
        block.extend_from_slice(name);
    }
    block
}
