//! Why a layer could not be sealed.

use crate::objects::ObjectError;
use crate::root::RootError;
use crate::tree::{EntryPath, TreeError};
use std::path::PathBuf;

/// Why a layer could not be sealed; it is in dir form as before.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The tree, or a layer below it, cannot be read or holds what it may not.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The content of a file could not be kept.
    #[error("cannot keep the content of {path}")]
    Content {
        /// The file.
        path: EntryPath,
        /// Why.
        source: Box<ObjectError>,
    },
    /// Objects could not be listed or synced.
    #[error(transparent)]
    Objects(#[from] ObjectError),
    /// The tree holds something that only the dir form can: it stays in dir form.
    #[error("{path} {why}, so the layer stays in dir form")]
    Unsealable {
        /// The entry.
        path: EntryPath,
        /// What it is.
        why: Unsealable,
    },
    /// An entry refers to something in the layers below that it cannot mean.
    #[error("{path} refers to \"{}\" in the layers below: {fault}", value.escape_ascii())]
    Reference {
        /// The entry.
        path: EntryPath,
        /// Where it refers to.
        value: Vec<u8>,
        /// What is wrong with that.
        fault: ReferenceFault,
    },
    /// The root of the tree has an entry by the secret name of the directory of objects: it could pass for objects.
    #[error("{path} bears the name of the directory of objects")]
    Hijack {
        /// The entry.
        path: EntryPath,
    },
    /// A file of the layer's directory could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A manifest on disk is damaged or of a newer release.
    #[error("the manifest {} cannot be used: {reason}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The metadata image cannot be mounted on this host.
    #[error("cannot mount an image in {}", path.display())]
    Mount {
        /// Where it lies.
        path: PathBuf,
        /// Why.
        source: super::MountImageError,
    },
    /// A lock could not be taken.
    #[error(transparent)]
    Lock(#[from] RootError),
    /// Something else asked to go first; what was done is kept.
    #[error("sealing gave way")]
    GaveWay,
}

/// What keeps a layer from being sealed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsealable {
    /// `chattr +i` or `+a` inside a container.
    #[error("was made immutable or append-only")]
    Protected,
    /// Other inode flags, which a sealed layer has no place for.
    #[error("has the inode flags {0:#x}")]
    Flags(u32),
    /// The manifest or the metadata image cannot hold it.
    #[error("cannot be held by a sealed layer ({0})")]
    Limit(String),
}

/// What is wrong with a reference to the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceFault {
    /// It is no path as overlayfs writes one: empty names, `.` or `..`, too long, or on the root.
    #[error("this is no path that overlayfs writes")]
    Malformed,
    /// Nothing is there, or something of another type.
    #[error("there is nothing of that kind")]
    Nowhere,
    /// The directory is shown at two places.
    #[error("the directory, or one in it, was moved to two places")]
    Twice,
    /// The file there has another length.
    #[error("the file there has another length")]
    Size,
    /// Redirected directories lie in each other too deeply.
    #[error("redirected directories lie in each other too deeply")]
    Depth,
}
