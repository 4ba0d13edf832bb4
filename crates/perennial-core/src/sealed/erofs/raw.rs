//! Numbers of the format, and the inode.

use super::super::entry::{Attributes, Content, Node};
use alloc::vec::Vec;

pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum; inodes have times of their own.
pub(super) const COMPATIBLE: u32 = 0x1 | 0x2;
/// There are files in chunks.
pub(super) const INCOMPATIBLE: u32 = 0x4;
pub(super) const BLOCK_BITS: u8 = 12;
/// The chunk of a file without data, and how long chunks are: 2³¹ blocks.
pub(super) const NO_BLOCK: u32 = u32::MAX;
pub(super) const CHUNK_FORMAT: u32 = 31;

/// Layouts of data, as they stand in an inode of 64 bytes.
pub(super) mod format {
    pub(in super::super) const PLAIN: u16 = 1;
    pub(in super::super) const INLINE: u16 = 1 | (2 << 1);
    pub(in super::super) const CHUNKS: u16 = 1 | (4 << 1);
}

/// Types of inodes in `st_mode`.
pub(super) mod mode {
    pub(in super::super) const TYPE: u16 = 0o170_000;
    pub(in super::super) const FIFO: u16 = 0o010_000;
    pub(in super::super) const CHAR: u16 = 0o020_000;
    pub(in super::super) const DIRECTORY: u16 = 0o040_000;
    pub(in super::super) const BLOCK: u16 = 0o060_000;
    pub(in super::super) const FILE: u16 = 0o100_000;
    pub(in super::super) const SYMLINK: u16 = 0o120_000;
    pub(in super::super) const SOCKET: u16 = 0o140_000;
}

/// Types of entries of directories.
pub(super) mod kind {
    pub(in super::super) const FILE: u8 = 1;
    pub(in super::super) const DIRECTORY: u8 = 2;
    pub(in super::super) const CHAR: u8 = 3;
    pub(in super::super) const BLOCK: u8 = 4;
    pub(in super::super) const FIFO: u8 = 5;
    pub(in super::super) const SOCKET: u8 = 6;
    pub(in super::super) const SYMLINK: u8 = 7;
}

/// Returns the type of a node: in its mode, and in the entries that name it.
pub(super) const fn types(node: &Node) -> (u16, u8) {
    match node {
        Node::File(Content::Inline(_) | Content::Object { .. }) => (mode::FILE, kind::FILE),
        Node::Symlink(_) => (mode::SYMLINK, kind::SYMLINK),
        Node::CharDevice { .. } => (mode::CHAR, kind::CHAR),
        Node::BlockDevice { .. } => (mode::BLOCK, kind::BLOCK),
        Node::Fifo => (mode::FIFO, kind::FIFO),
        Node::Socket => (mode::SOCKET, kind::SOCKET),
    }
}

/// Packs the numbers of a device as Linux does: 12 bits of major, 20 bits of minor.
pub(super) fn pack_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The opposite of [`pack_device`].
pub(super) const fn unpack_device(packed: u32) -> (u32, u32) {
    ((packed >> 8) & 0xfff, (packed & 0xff) | ((packed >> 12) & 0xfff00))
}

/// An inode's fixed part.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'tree> {
    pub(super) format: u16,
    pub(super) xattr_count: u16,
    pub(super) kind: u16,
    pub(super) attributes: &'tree Attributes,
    pub(super) size: u64,
    /// First block, device or chunk format.
    pub(super) place: u32,
    pub(super) nid: u64,
    pub(super) links: u32,
}

impl Head<'_> {
    /// Appends the 64 bytes.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let permissions = u16::try_from(self.attributes.mode & 0o7777).unwrap_or_default();
        out.extend_from_slice(&self.format.to_le_bytes());
        out.extend_from_slice(&self.xattr_count.to_le_bytes());
        out.extend_from_slice(&(self.kind | permissions).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&self.place.to_le_bytes());
        // Only for `stat` of programs with 32 bits.
        let [a, b, c, d, ..] = self.nid.to_le_bytes();
        out.extend_from_slice(&[a, b, c, d]);
        out.extend_from_slice(&self.attributes.uid.to_le_bytes());
        out.extend_from_slice(&self.attributes.gid.to_le_bytes());
        out.extend_from_slice(&self.attributes.mtime.seconds.to_le_bytes());
        out.extend_from_slice(&self.attributes.mtime.nanoseconds.to_le_bytes());
        out.extend_from_slice(&self.links.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
    }
}
