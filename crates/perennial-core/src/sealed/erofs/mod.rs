//! The metadata image of a sealed layer: an EROFS that holds everything but the contents of larger files.
//!
//! ```text
//!   1024   superblock                       every inode has 64 bytes; its number is its offset divided by 32
//!   1152   extended attributes of many
//!   1216   the one inode of all whiteouts
//!   1280   root, then the directories in canonical order, each followed by the inodes it names first
//!    …     extended attributes that came twice
//! ```
//!
//! A file with an object has no data here: overlayfs takes it from the object, which `trusted.overlay.redirect` names.
//! The image is made in two passes over the tree: [`plan()`] finds out where everything goes, [`write()`] writes it in one
//! go. The bytes depend on the tree, the [`Secret`] and the manifest's name alone. [`Image`] reads it back.
//! The layout is described in `docs/formats/perennial-meta-erofs.md`.

mod crc;
mod image;
mod names;
mod output;
mod place;
mod plan;
mod raw;
mod secret;
mod walk;
mod write;
mod xattrs;

pub use image::{Found, Image, ImageError, Kind, Nid};
pub use plan::{Layout, PlanError, plan};
pub use secret::Secret;
pub use walk::Directories;
pub use write::{EncodeError, HEAD_BYTES, Identity, is_of, write};

use super::canonical::shown;
use alloc::vec::Vec;

/// Why a tree has no place in an EROFS: its layer stays in dir form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", shown(path))]
pub struct Unfit {
    /// Names on the way from the root, joined by `/`; empty for the root.
    pub path: Vec<u8>,
    /// What cannot be said.
    pub reason: Reason,
}

/// What an EROFS cannot say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Only names in `user.`, `trusted.` and `security.` and the two POSIX ACLs have a place.
    #[error("EROFS has no place for an extended attribute of this name")]
    XattrName,
    /// A length has 16 bits.
    #[error("EROFS has no place for an extended attribute of 64 KiB")]
    XattrValue,
    /// All attributes of an inode have 256 KiB.
    #[error("EROFS has no place for so many extended attributes")]
    Xattrs,
    /// A major number has 12 bits, a minor number 20.
    #[error("EROFS has no place for a device with these numbers")]
    Device,
    /// A link count has 32 bits.
    #[error("EROFS has no place for so many links")]
    Links,
    /// Block numbers have 32 bits, which makes 16 TiB.
    #[error("the image would be too large")]
    Size,
}

/// The version of the layout this release writes. No image says it: images are made from manifests, and can be again.
pub const VERSION: u32 = 1;
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// Inodes begin at multiples of this, in bytes.
const SLOT: u64 = 32;
/// Offset of the superblock.
const SUPERBLOCK: u64 = 1024;
/// Offset of the attribute `trusted.overlay.metacopy`, which all files with objects share.
const METACOPY_AT: u64 = 1152;
/// Offset of the attribute `trusted.overlay.opaque`.
const OPAQUE_AT: u64 = 1172;
/// Offset of the inode of whiteouts.
const WHITEOUT_AT: u64 = 1216;
/// Offset from which directories are placed.
const FIRST_AT: u64 = 1280;
/// Bytes of an inode.
const INODE_BYTES: u64 = 64;
/// Bytes of a file that one number of the chunk table stands for: 2³¹ blocks, the most there is.
const CHUNK_BYTES: u64 = 1 << 43;

/// Rounds up to a multiple.
const fn up(offset: u64, multiple: u64) -> u64 {
    offset.next_multiple_of(multiple)
}
