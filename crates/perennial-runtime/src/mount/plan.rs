//! What is to be stacked.

use rustix::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One read-only layer.
#[derive(Debug, Clone)]
pub enum Lower {
    /// A directory, by its path.
    Dir(PathBuf),
    /// An open directory without a path, such as the root of a mount that is attached nowhere.
    Fd(Arc<OwnedFd>),
}

impl Lower {
    /// Takes an open directory.
    #[must_use]
    pub fn of_fd(fd: OwnedFd) -> Self {
        Self::Fd(Arc::new(fd))
    }

    /// Returns the path, where it has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Dir(path) => Some(path),
            Self::Fd(_) => None,
        }
    }

    /// Returns how errors name it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Dir(path) => path.display().to_string(),
            Self::Fd(fd) => format!("the open directory {}", fd.as_raw_fd()),
        }
    }
}

impl From<PathBuf> for Lower {
    fn from(path: PathBuf) -> Self {
        Self::Dir(path)
    }
}

/// What to stack.
#[derive(Debug, Clone)]
pub struct OverlayPlan {
    /// Read-only layers, newest first; at least one.
    pub lowers: Vec<Lower>,
    /// Directory below all layers that lends files their content and shows nothing itself. With it, and only with it,
    /// redirects in layers are followed and the upper may get metadata-only files and redirects.
    pub data: Option<PathBuf>,
    /// Where changes go; without it the mount cannot be written.
    pub upper: Option<Upper>,
    /// Whether writing is forbidden although there is an upper directory.
    pub read_only: bool,
}

/// The writable part of a union.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upper {
    /// Directory that receives the changes.
    pub upper: PathBuf,
    /// Empty directory on the same file system, for the kernel alone.
    pub work: PathBuf,
}

impl OverlayPlan {
    /// Returns a plan that shows `lowers`, newest first, for reading only.
    #[must_use]
    pub fn read_only(lowers: Vec<Lower>, data: Option<PathBuf>) -> Self {
        Self { lowers, data, upper: None, read_only: true }
    }
}
