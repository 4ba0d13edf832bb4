//! Several sealed layers made one: metadata is read and written, objects stay where they are.
//!
//! ```text
//!   layers/<a>/manifest ┐             staging/<new>/layer.json
//!   layers/<b>/manifest ┼──merge────▶ staging/<new>/manifest       ──sync, rename──▶ layers/<new>/
//!   what is below       ┘             staging/<new>/meta.erofs
//! ```
//!
//! Cut off at any instant, it can be done again: what is in `staging/` by then is overwritten, and a layer that is
//! there already is complete. The layers that were merged are not touched; whoever asks replaces them in the stacks.

use super::error::SealError;
use super::files::{LayerFiles, TEMPORARY};
use super::stream::Layers;
use crate::atomic;
use crate::layer::{LayerFile, LayerOrigin};
use crate::root::{LockMode, Root, Wait};
use perennial_core::format::{self, Format};
use perennial_core::id::LayerId;
use perennial_core::sealed::entry::DirectorySource as _;
use perennial_core::sealed::manifest::{Summary, Writer};
use perennial_core::time::Time;
use rustix::fd::BorrowedFd;
use std::path::Path;

/// Layers to become one.
#[derive(Debug, Clone, Copy)]
pub struct CompactRequest<'a> {
    /// The root they are in.
    pub root: &'a Root,
    /// The sealed layers, newest first. The caller holds their locks (shared), so that they stay, and the lock of
    /// images (shared), so that nobody collects what is in `staging/`.
    pub of: &'a [LayerId],
    /// Name of the layer to be made: the same one when an attempt is repeated.
    pub layer: &'a LayerId,
    /// The layers below them, newest first: directories or mounts of sealed layers.
    pub below: &'a [BorrowedFd<'a>],
    /// When it is made.
    pub now: Time,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompactOutcome {
    /// The layer is there, durably.
    Done(Compacted),
    /// Something asked to go first, or another process removes objects or makes the same layer.
    GaveWay,
}

/// A layer made of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// What its manifest adds up to.
    pub manifest: Summary,
    /// Length of the metadata image, in bytes.
    pub image_bytes: u64,
}

/// Makes one layer of several. `give_way` is asked between directories.
///
/// # Errors
/// [`SealError`]; the stack is as before. [`SealError::Unsealable`] says that the result would be too large for one
/// layer.
pub fn compact(request: &CompactRequest<'_>, give_way: &mut dyn FnMut() -> bool) -> Result<CompactOutcome, SealError> {
    let root = request.root;
    let Some(_alone) = root.lock_seal(request.layer)? else { return Ok(CompactOutcome::GaveWay) };
    let Some(_objects) = root.lock_objects(LockMode::Shared, Wait::Never)? else { return Ok(CompactOutcome::GaveWay) };
    let target = root.layer_dir(request.layer);
    if target.symlink_metadata().is_ok() {
        let files = LayerFiles::open(&target)?;
        if files.is_sealed()?
            && let Some(manifest) = files.summary()?
        {
            return Ok(CompactOutcome::Done(Compacted { manifest, image_bytes: files.image_bytes()? }));
        }
    }
    let staged = root.staging_dir().join(request.layer.to_string());
    match std::fs::create_dir(&staged) {
        Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(SealError::Io { action: "create", path: staged, source });
        }
        Ok(()) | Err(_) => {}
    }
    let files = LayerFiles::open(&staged)?;
    match attempt(request, &files, give_way) {
        Ok(done) => {
            publish(&staged, &target)?;
            Ok(CompactOutcome::Done(done))
        }
        Err(SealError::GaveWay) => {
            discard(&staged);
            Ok(CompactOutcome::GaveWay)
        }
        Err(error) => {
            discard(&staged);
            Err(error)
        }
    }
}

/// Removes what was staged; what stays is overwritten or collected.
fn discard(staged: &Path) {
    std::fs::remove_dir_all(staged).ok();
}

fn attempt(
    request: &CompactRequest<'_>,
    files: &LayerFiles,
    give_way: &mut dyn FnMut() -> bool,
) -> Result<Compacted, SealError> {
    let layers = Layers::open(request.root, request.of)?;
    let mut merged = layers.merge(request.below)?;
    let mut writer = Writer::new(files.create(TEMPORARY[0])?).map_err(|error| files.unwritable(error))?;
    while let Some(directory) = merged.next_directory().map_err(|error| layers.error(error))? {
        writer.push(&directory).map_err(|error| files.unwritable(error))?;
        if give_way() {
            return Err(SealError::GaveWay);
        }
    }
    let (manifest, _) = writer.finish().map_err(|error| files.unwritable(error))?;
    let image_bytes = files.write_image(manifest.id, request.root.secret())?;
    let described = LayerFile {
        id: request.layer.clone(),
        created_at: request.now,
        origin: LayerOrigin::Merged { of: request.of.to_vec() },
        bytes: manifest.bytes.saturating_add(image_bytes).saturating_add(manifest.counts.object_bytes),
        entries: manifest.counts.entries,
        unresolved: false,
    };
    atomic::write_unsynced(files.fd(), "layer.json", &format::encode(Format::LayerFile, &described))
        .map_err(|error| files.io("write", "layer.json", error))?;
    files.publish()?;
    Ok(Compacted { manifest, image_bytes })
}

/// Gives the complete layer its place.
fn publish(staged: &Path, target: &Path) -> Result<(), SealError> {
    let fail = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| SealError::Io { action, path, source }
    };
    std::fs::rename(staged, target).map_err(fail("make a layer of", staged))?;
    for directory in [target.parent(), staged.parent()].into_iter().flatten() {
        atomic::sync_directory(directory).map_err(fail("sync", directory))?;
    }
    Ok(())
}
