//! Sealed layers: a frozen tree becomes objects, a manifest, and an EROFS image of its metadata.
//!
//! ```text
//!   tree ──survey──▶ files with several names, files that are objects already
//!        ──build───▶ directories in canonical order ──▶ .manifest.new ──▶ .meta.erofs.new
//!            └─ workers: hash, link into objects/
//!        ──publish─▶ sync, rename to manifest, rename to meta.erofs
//! ```
//!
//! The tree is not changed, apart from the further names its files get, and stays a layer as long as somebody needs it.
//! Sealing can be cut off at any instant and done again: what is an object by then is not read again, and what is
//! half written is written anew. An upper directory that was written over sealed layers holds references to the layers
//! below it; the sealed layer holds none, they are resolved.
//!
//! What this module does not know: records, and when a tree is no longer needed.

mod build;
mod compact;
mod error;
mod files;
mod freed;
mod hidden;
mod mount;
mod pool;
mod resolve;
mod source;
mod stream;
mod survey;
mod unpack;

pub use compact::{CompactOutcome, CompactRequest, Compacted, compact};
pub use error::{ReferenceFault, SealError, Unsealable};
pub use files::{DiskFile, LayerFiles, MANIFEST, TEMPORARY};
pub use freed::{freed, objects_of_merge};
pub use hidden::{Hidden, hidden};
pub use mount::{IMAGE, MountImageError, open_tree, probe};
pub use pool::Kept;
pub use resolve::{ResolveRequest, resolve};
pub use unpack::{UnpackRequest, unpack};

use crate::objects::Objects;
use crate::root::{LockMode, Root, Wait};
use crate::tree::protect;
use build::Builder;
use perennial_core::id::LayerId;
use perennial_core::sealed::manifest::{Summary, Writer};
use rustix::fd::BorrowedFd;
use source::TreeSource;
use survey::Survey;

/// A layer to seal.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The root it is in.
    pub root: &'a Root,
    /// The root's objects.
    pub objects: &'a Objects,
    /// The layer. Its directory has to exist; the caller holds the layer's lock, so that nobody folds it.
    pub layer: &'a LayerId,
    /// Its tree.
    pub tree: BorrowedFd<'a>,
    /// The layers below it, newest first: trees that hold no references themselves, or mounts of sealed layers.
    pub below: &'a [BorrowedFd<'a>],
    /// Threads that hash; 1 to the number of cores.
    pub workers: usize,
}

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The layer is sealed, durably.
    Sealed(Sealed),
    /// Something asked to go first, or another process seals the same layer or removes objects. What is done is kept.
    GaveWay,
}

/// A sealed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// What its manifest adds up to.
    pub manifest: Summary,
    /// Length of the metadata image, in bytes.
    pub image_bytes: u64,
    /// What this attempt added to the objects.
    pub kept: Kept,
}

/// Seals a layer. `give_way` is asked between directories and while contents are awaited; where it says yes, the
/// attempt ends. It should cost little.
///
/// # Errors
/// [`SealError`]; the layer is in dir form as before. [`SealError::Unsealable`] says that it has to stay so.
pub fn seal(request: &Request<'_>, give_way: &mut dyn FnMut() -> bool) -> Result<Outcome, SealError> {
    let Some(_alone) = request.root.lock_seal(request.layer)? else { return Ok(Outcome::GaveWay) };
    let Some(_objects) = request.root.lock_objects(LockMode::Shared, Wait::Never)? else {
        return Ok(Outcome::GaveWay);
    };
    let files = LayerFiles::open(&request.root.layer_dir(request.layer))?;
    if files.is_sealed()?
        && let Some(manifest) = files.summary()?
    {
        let image_bytes = files.image_bytes()?;
        return Ok(Outcome::Sealed(Sealed { manifest, image_bytes, kept: Kept::default() }));
    }
    match attempt(request, &files, give_way) {
        Ok(sealed) => Ok(Outcome::Sealed(sealed)),
        Err(SealError::GaveWay) => {
            files.discard();
            Ok(Outcome::GaveWay)
        }
        Err(error) => {
            files.discard();
            Err(error)
        }
    }
}

fn attempt(request: &Request<'_>, files: &LayerFiles, give_way: &mut dyn FnMut() -> bool) -> Result<Sealed, SealError> {
    if protect::is_marked(request.tree)? {
        let path = crate::tree::EntryPath::from_bytes(Vec::new());
        return Err(SealError::Unsealable { path, why: Unsealable::Protected });
    }
    let (manifest, kept) = write_manifest(request, files, give_way)?;
    let image_bytes = files.write_image(manifest.id, request.root.secret())?;
    files.publish()?;
    Ok(Sealed { manifest, image_bytes, kept })
}

/// Keeps the contents and writes the manifest under its temporary name.
fn write_manifest(
    request: &Request<'_>,
    files: &LayerFiles,
    give_way: &mut dyn FnMut() -> bool,
) -> Result<(Summary, Kept), SealError> {
    let survey = Survey::new(request.tree, request.below, request.objects, give_way)?;
    let mut writer = Writer::new(files.create(TEMPORARY[0])?).map_err(|error| files.unwritable(error))?;
    let mut source = TreeSource::new(request.tree, request.below)?;
    let mut builder = Builder::new(request.objects, &survey);
    let kept = pool::run(
        (request.objects, request.workers),
        give_way,
        &mut |directory| writer.push(directory).map_err(|error| files.unwritable(error)),
        &mut |pool| {
            while let Some(listed) = source.next()? {
                pool.add(builder.directory(&mut source, listed)?)?;
            }
            Ok(())
        },
    )?;
    let (manifest, _) = writer.finish().map_err(|error| files.unwritable(error))?;
    Ok((manifest, kept))
}
