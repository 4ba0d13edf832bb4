//! Layer directories: each describes itself, appears whole, and leaves through the trash.

use crate::atomic;
use crate::root::Root;
use crate::sealed::{self, MountImageError};
use crate::tree::{self, TreeError};
use perennial_core::format::{self, DecodeError, Format};
use perennial_core::id::LayerId;
use perennial_core::layers::Form;
pub use perennial_core::layers::{LayerFile, LayerOrigin};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

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
        /// The image.
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
    atomic::write_unsynced(directory.as_fd(), "layer.json", &file.encode())
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

/// Name of a tree that is to replace the one a layer has, or that was replaced, until it is in the trash.
const OTHER_TREE: &str = ".tree.new";

/// Puts another tree in the place of a layer's, at once, and moves the one that was there to the trash. The caller has
/// synced the file system and holds the layer exclusively.
///
/// # Errors
/// [`LayerError::Io`]; the layer has one of the two trees then, and the call can be repeated with another.
pub fn replace_tree(root: &Root, layer: &LayerId, tree: &Path) -> Result<(), LayerError> {
    let (directory, target) = (root.layer_dir(layer), root.layer_tree(layer));
    let (other, trash) = (directory.join(OTHER_TREE), format!("tree-{layer}"));
    // What a call has left that was cut off.
    discard(root, &other, &trash)?;
    std::fs::rename(tree, &other).map_err(|error| LayerError::io("move a tree to", &other, error))?;
    // Both in one directory: XFS gives directories that are exchanged between two a new time of modification.
    let (here, flags) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
    let exchanged = rustix::fs::renameat_with(here, &other, here, &target, flags);
    exchanged.map_err(|errno| LayerError::io("put another tree at", &target, errno.into()))?;
    atomic::sync_directory(&directory).map_err(|error| LayerError::io("sync", &directory, error))?;
    discard(root, &other, &trash)
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
            sealed::open_tree(directory.as_fd())
                .map_err(|source| LayerError::Image { path: path.join(sealed::IMAGE), source })
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
    let mut layers: Vec<LayerId> = entries
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| LayerError::io("read", &path, error))?
        .into_iter()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
        .collect();
    layers.sort();
    Ok(layers)
}
