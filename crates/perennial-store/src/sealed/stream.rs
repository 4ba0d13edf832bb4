//! Sealed layers of a root as one tree, read from their manifests.

use super::error::SealError;
use super::files::{DiskFile, LayerFiles, MANIFEST};
use crate::root::Root;
use crate::tree::TreeError;
use crate::tree::below::{BelowView, Cut};
use perennial_core::id::LayerId;
use perennial_core::sealed::manifest::{ReadError, Reader};
use perennial_core::sealed::merge::{Census, Merge, MergeError, TreesError, Underneath};
use perennial_core::tree::Below;
use rustix::fd::BorrowedFd;
use std::ffi::CString;

/// What is below the layers, as a merge asks for it.
#[derive(Debug)]
pub(super) struct Beneath {
    view: BelowView,
    /// Where the view is.
    path: Vec<Vec<u8>>,
}

impl Underneath for Beneath {
    type Error = TreeError;

    fn shows(&mut self, directory: &[Vec<u8>], name: &[u8]) -> Result<Below, TreeError> {
        while !directory.starts_with(&self.path) {
            self.view.leave()?;
            self.path.pop();
        }
        for name in directory.get(self.path.len()..).unwrap_or_default() {
            // Where a directory of the result hides what is below, nothing is asked.
            self.view.enter(&terminated(name), Cut::Through);
            self.path.push(name.clone());
        }
        self.view.shows(&terminated(name))
    }
}

/// Returns a name for a system call; those of a manifest have no NUL.
pub(super) fn terminated(name: &[u8]) -> CString {
    CString::new(name).unwrap_or_default()
}

/// The stream of a merge.
pub(super) type Merged = Merge<Reader<DiskFile>, Beneath>;
/// Why it ended.
pub(super) type MergedError = MergeError<ReadError<std::io::Error>, TreeError>;

/// Sealed layers, newest first.
#[derive(Debug)]
pub(super) struct Layers(Vec<LayerFiles>);

impl Layers {
    pub(super) fn open(root: &Root, layers: &[LayerId]) -> Result<Self, SealError> {
        layers.iter().map(|layer| LayerFiles::open(&root.layer_dir(layer))).collect::<Result<_, _>>().map(Self)
    }

    /// Merges them over what is below, newest first.
    pub(super) fn merge(&self, below: &[BorrowedFd<'_>]) -> Result<Merged, SealError> {
        let census = Census::take(self.readers()?).map_err(|error| self.trees(error))?;
        let beneath = Beneath { view: BelowView::new(below, Cut::Through)?, path: Vec::new() };
        Ok(Merge::over(self.readers()?, census, beneath))
    }

    fn readers(&self) -> Result<Vec<Reader<DiskFile>>, SealError> {
        self.0.iter().map(|files| files.directories(MANIFEST)).collect()
    }

    /// Says what is wrong, with the path of the manifest.
    pub(super) fn error(&self, error: MergedError) -> SealError {
        match error {
            MergeError::Trees(error) => self.trees(error),
            MergeError::Below(error) => error.into(),
        }
    }

    fn trees(&self, error: TreesError<ReadError<std::io::Error>>) -> SealError {
        let (TreesError::Source { tree, .. } | TreesError::Malformed { tree, .. }) = &error;
        let Some(files) = self.0.get(*tree) else {
            return SealError::Manifest { path: MANIFEST.into(), reason: error.to_string() };
        };
        match error {
            TreesError::Source { source, .. } => files.unreadable(MANIFEST, &source),
            TreesError::Malformed { .. } => files.malformed(error.to_string()),
        }
    }
}
