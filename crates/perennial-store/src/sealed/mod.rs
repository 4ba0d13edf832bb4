//! Sealed layers: a frozen tree becomes objects, a manifest and an EROFS image of its metadata.

mod mount;

pub use mount::{IMAGE, MountImageError, open_tree};
