//! The bytes of a tree: canonical, versioned, checksummed. Equal trees have equal bytes.
//!
//! ```text
//!   header    magic, version, flags a reader must understand
//!   blocks    one for each directory, in canonical order (so that no path is needed), then an end mark
//!   table     objects the tree names: sorted, each once, 40 bytes each
//!   trailer   counts, offset of the table, BLAKE3 of everything before it
//! ```
//!
//! Memory of writer and reader: one directory, the names of directories to come, and in the [`Writer`] the table
//! (40 bytes for each object). [`ObjectTable`] reads nothing but trailer and table. The layout is described in
//! `docs/formats/perennial-manifest.md`.

mod code;
mod input;
mod objects;
mod read;
mod write;

pub use objects::{ObjectTable, Objects};
pub use read::{ReadError, Reader};
pub use write::{WriteError, Writer};

use super::object::{OBJECT_ID_BYTES, ObjectId};

/// The version this release writes.
pub const VERSION: u32 = 1;
/// First bytes of a manifest.
pub(super) const MAGIC: &[u8; 8] = b"PRNLTREE";
/// First bytes of the trailer.
const TRAILER_MAGIC: &[u8; 8] = b"PRNLTEND";
/// Magic, version and flags.
const HEADER_BYTES: usize = 16;
/// Magic, seven numbers of 8 bytes, checksum.
const TRAILER_BYTES: usize = 8 + 7 * 8 + OBJECT_ID_BYTES;
/// Object and its size.
const ROW_BYTES: usize = OBJECT_ID_BYTES + 8;
/// Flags this release understands: there is none yet.
const FLAGS_KNOWN: u32 = 0;

/// What a tree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Directories, with the root.
    pub directories: u64,
    /// Names in them.
    pub entries: u64,
    /// Names that are whiteouts.
    pub whiteouts: u64,
    /// Objects, each once.
    pub objects: u64,
    /// Sizes of these objects, in bytes, summed up.
    pub object_bytes: u64,
    /// Contents kept in the manifest, in bytes.
    pub inline_bytes: u64,
}

/// What is known of a whole manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// BLAKE3 of the manifest, as `b3sum` prints it.
    pub id: ObjectId,
    /// Its length, in bytes.
    pub bytes: u64,
    /// What the tree holds.
    pub counts: Counts,
}

/// What is wrong with bytes that should be a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It does not begin as one.
    #[error("this is not a manifest")]
    Magic,
    /// Another release wrote it.
    #[error("the manifest has version {0}, this release knows {VERSION}")]
    Version(u32),
    /// It says something that a reader must not pass over.
    #[error("the manifest must be read with flag {0:#x}, which this release does not know")]
    Flag(u32),
    /// It ends too early.
    #[error("the manifest ends in the middle")]
    Truncated,
    /// A number is longer than needed or too large, or something is not said in the shortest way.
    #[error("the manifest is not canonical")]
    NotCanonical,
    /// An entry or block of an unknown kind.
    #[error("the manifest holds an entry of the unknown kind {0}")]
    Kind(u8),
    /// The table of objects is not what the entries name, or is not sorted.
    #[error("the table of objects does not fit the entries")]
    Table,
    /// Counts or offsets are not those of the blocks.
    #[error("the trailer does not fit the manifest")]
    Trailer,
    /// Bytes have changed.
    #[error("the checksum does not fit the manifest")]
    Checksum,
}

/// Kinds of entries, and of blocks; 10 to 14 are not used.
mod kind {
    pub(super) const MASK: u8 = 0x0f;
    pub(super) const DIRECTORY: u8 = 0;
    pub(super) const INLINE: u8 = 1;
    pub(super) const OBJECT: u8 = 2;
    pub(super) const SYMLINK: u8 = 3;
    pub(super) const CHAR_DEVICE: u8 = 4;
    pub(super) const BLOCK_DEVICE: u8 = 5;
    pub(super) const FIFO: u8 = 6;
    pub(super) const SOCKET: u8 = 7;
    pub(super) const LINK: u8 = 8;
    pub(super) const WHITEOUT: u8 = 9;
    pub(super) const END: u8 = 15;
    /// Mode, owner and group, extended attributes: those of the metadata written before.
    pub(super) const SAME_MODE: u8 = 0x10;
    pub(super) const SAME_OWNER: u8 = 0x20;
    pub(super) const SAME_XATTRS: u8 = 0x40;
    /// A directory is opaque; another inode begins a group of hard links.
    pub(super) const SPECIAL: u8 = 0x80;
}

/// Numbers of the trailer, in their order.
fn numbers(counts: &Counts, table: u64) -> [u64; 7] {
    [
        counts.directories,
        counts.entries,
        counts.whiteouts,
        counts.objects,
        counts.object_bytes,
        counts.inline_bytes,
        table,
    ]
}

/// The opposite of [`numbers`].
fn counts_of(numbers: [u64; 7]) -> (Counts, u64) {
    let [directories, entries, whiteouts, objects, object_bytes, inline_bytes, table] = numbers;
    (Counts { directories, entries, whiteouts, objects, object_bytes, inline_bytes }, table)
}
