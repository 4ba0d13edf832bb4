//! Layer directories: each describes itself, appears whole, and leaves through the trash.

use crate::atomic;
use crate::root::Root;
use crate::sealed::{self, MountImageError};
use crate::tree::{self, TreeError};
use perennial_core::format::{self, DecodeError, Format};
use perennial_core::id::{ContainerId, Digest, LayerId, RunId};
use perennial_core::layers::Form;
use perennial_core::time::Time;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Body of `layer.json`: enough to know, without any record, what a layer is and whose it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFile {
    /// The layer.
    pub id: LayerId,
    /// When it was made.
    pub created_at: Time,
    /// Where it comes from.
    pub origin: LayerOrigin,
    /// Bytes on disk when it was made.
    pub bytes: u64,
    /// Entries when it was made.
    pub entries: u64,
}

/// Where a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum LayerOrigin {
    /// A layer of an image.
    Image {
        /// Digest of its uncompressed content.
        diff_id: Digest,
    },
    /// What one run of a container changed.
    Run {
        /// The container.
        container: ContainerId,
        /// Its name at that time.
        name: String,
        /// The run.
        run: RunId,
        /// Layers below it at that time, newest first.
        below: Vec<LayerId>,
        /// The image below them.
        image: Digest,
        /// When the run ended.
        exited_at: Time,
    },
    /// Several layers in one.
    Merged {
        /// Those layers, newest first.
        of: Vec<LayerId>,
    },
}

/// Why a layer directory could not be published, read or discarded.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tree cannot be opened.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The metadata image of a sealed layer cannot be mounted.
    #[error("{}", path.display())]
    Image {
        /// Directory of the layer.
        path: PathBuf,
        /// Why.
        source: MountImageError,
    },
    /// `layer.json` is damaged or of a newer release.
    #[error("{}", path.display())]
    Format {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
}

impl LayerError {
    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }
}

/// Makes the directory of a layer with its `layer.json`, still without its tree. Repeating it is no error. The caller
/// syncs the file system before [`adopt_tree`]: it has to for the tree's sake, and that makes this durable too.
///
/// # Errors
/// [`LayerError::Io`].
pub fn prepare(root: &Root, file: &LayerFile) -> Result<(), LayerError> {
    let path = root.layer_dir(&file.id);
    match std::fs::create_dir(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(LayerError::io("create", &path, error)),
    }
    let directory = atomic::open_directory(&path).map_err(|error| LayerError::io("open", &path, error))?;
    atomic::write_unsynced(directory.as_fd(), "layer.json", &format::encode(Format::LayerFile, file))
        .map_err(|error| LayerError::io("write layer.json in", &path, error))
}

/// Renames `tree` into its prepared layer directory and makes the names durable on both sides. Where the tree is
/// there already and `tree` is not, the same call was made before and nothing is done.
///
/// # Errors
/// [`LayerError::Io`]; the tree is then where it was.
pub fn adopt_tree(root: &Root, layer: &LayerId, tree: &Path) -> Result<(), LayerError> {
    let target = root.layer_tree(layer);
    if tree.symlink_metadata().is_ok() {
        std::fs::rename(tree, &target).map_err(|error| LayerError::io("move a tree to", &target, error))?;
    } else if target.symlink_metadata().is_err() {
        let error = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(LayerError::io("find", tree, error));
    }
    for directory in [Some(root.layer_dir(layer).as_path()), tree.parent()] {
        let Some(directory) = directory else { continue };
        atomic::sync_directory(directory).map_err(|error| LayerError::io("sync", directory, error))?;
    }
    Ok(())
}

/// Reads a layer's `layer.json`.
///
/// # Errors
/// [`LayerError`].
pub fn describe(root: &Root, layer: &LayerId) -> Result<LayerFile, LayerError> {
    let path = root.layer_dir(layer).join("layer.json");
    let bytes = std::fs::read(&path).map_err(|error| LayerError::io("read", &path, error))?;
    format::decode(Format::LayerFile, &bytes).map_err(|source| LayerError::Format { path, source })
}

/// Returns whether a layer has its tree on disk.
#[must_use]
pub fn has_tree(root: &Root, layer: &LayerId) -> bool {
    root.layer_tree(layer).symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Opens the tree of a layer: its directory, or a mount of its metadata image, which ends with the descriptor
/// ([`sealed::open_tree`]).
///
/// # Errors
/// [`LayerError`].
pub fn open(root: &Root, layer: &LayerId, form: Form) -> Result<OwnedFd, LayerError> {
    match form {
        Form::Dir => Ok(tree::open_tree(&root.layer_tree(layer))?),
        Form::Sealed => {
            let path = root.layer_dir(layer);
            let directory = atomic::open_directory(&path).map_err(|error| LayerError::io("open", &path, error))?;
            sealed::open_tree(directory.as_fd()).map_err(|source| LayerError::Image { path, source })
        }
    }
}

/// Names tried in the trash: the same thing can be there again only after a crash and a repetition.
const TRASH_TRIES_MAX: u32 = 1000;

/// Moves a file or directory into the trash at once; its space is freed later. One that is not there is no error.
///
/// # Errors
/// [`LayerError::Io`].
pub fn discard(root: &Root, path: &Path, name: &str) -> Result<(), LayerError> {
    for attempt in 0..TRASH_TRIES_MAX {
        let target = root.trash_dir().join(if attempt == 0 { name.to_owned() } else { format!("{name}-{attempt}") });
        let (from, to) = (rustix::fs::CWD, rustix::fs::CWD);
        match rustix::fs::renameat_with(from, path, to, &target, rustix::fs::RenameFlags::NOREPLACE) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(LayerError::io("move to the trash", path, errno.into())),
        }
    }
    Err(LayerError::io("move to the trash", path, std::io::ErrorKind::AlreadyExists.into()))
}

/// Returns the ids of the layer directories there are.
///
/// # Errors
/// [`LayerError::Io`].
pub fn list(root: &Root) -> Result<Vec<LayerId>, LayerError> {
    let path = root.path().join("layers");
    let entries = std::fs::read_dir(&path).map_err(|error| LayerError::io("read", &path, error))?;
    let mut layers: Vec<LayerId> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect();
    layers.sort();
    Ok(layers)
}
