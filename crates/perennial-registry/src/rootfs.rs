//! A root file system as an image of one layer: copied from a directory, or applied from a tar archive.
//!
//! The layer of a directory has as its digest the SHA-256 of a listing of the tree, in a fixed order and with content,
//! so that identical trees give the same layer wherever they are copied from. The listing (`perennial-tree-1`) is a
//! sequence of records, one for each entry, sorted by the bytes of names within each directory, a directory before what
//! is in it:
//!
//! ```text
//! path NUL kind NUL mode uid gid seconds nanos major minor NUL
//! count of extended attributes, then for each, sorted by name: length name length value
//! then, by kind: files: length and SHA-256 of the content; links: length and target
//! ```
//!
//! Numbers are decimal with a space after each; a second name of a file is of kind `l` with the first name as target.
//! Access and change times, holes, and attributes of overlayfs are not part of it.
//!
//! The copy stays on the file system of the directory: mount points in it become empty directories. Sockets are left
//! out with a note, as they mean nothing without the process that made them.

mod copy;
mod walk;

pub use copy::CopyError;

use crate::digest;
use crate::digest::HashReader;
use crate::import::{ImportError, ImportOptions, Imported, LayerTarget, chain, write_archive, write_tree};
use crate::lowers::Lowers;
use crate::progress::{Event, Phase, Progress};
use perennial_core::id::Digest;
use perennial_core::image::ImageConfig;
use std::fs::File;
use std::io;
use std::path::Path;

/// Imports a directory or a tar archive as an image of one layer.
pub(crate) fn import(
    path: &Path,
    options: &ImportOptions,
    target: &mut dyn LayerTarget,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let read_error = |source| ImportError::Read { path: path.to_path_buf(), source };
    let metadata = path.metadata().map_err(read_error)?;
    let name = path.display().to_string();
    let bytes_total = metadata.is_file().then_some(metadata.len());
    progress.event(Event::Started { layer: 0, phase: Phase::Apply, name: &name, bytes_total });
    let (layer, _, notes) = if metadata.is_dir() {
        write_tree(target, |directory| {
            let copied = copy::copy(path, directory, &options.limits, progress);
            let (diff_id, applied) = copied.map_err(|source| ImportError::Copy { path: path.to_path_buf(), source })?;
            key(diff_id).map(|key| (key, applied))
        })?
    } else {
        let file = File::open(path).map_err(read_error)?;
        write_tree(target, |directory| {
            let lowers = Lowers::default();
            let applied = write_archive(&mut HashReader::new(file), directory, &lowers, options);
            let (applied, diff_id) = applied.map_err(|source| ImportError::Apply { layer: name.clone(), source })?;
            key(diff_id).map(|key| (key, applied))
        })?
    };
    progress.event(Event::Finished { layer: 0, phase: Phase::Apply });
    let config = ImageConfig { architecture: Some(options.platform.architecture.clone()), ..ImageConfig::default() };
    let digest = image_digest(&layer.key.diff_id, &config);
    let source = format!("rootfs:{}", path.display());
    Ok(Imported { digest, config, bytes: layer.bytes, layers: vec![layer], source, notes })
}

fn key(diff_id: Digest) -> Result<crate::import::LayerKey, ImportError> {
    let missing = || ImportError::Missing { what: "layer", name: diff_id.to_string() };
    chain([diff_id.clone()]).pop().ok_or_else(missing)
}

/// Returns the digest of the OCI configuration such an image would have.
fn image_digest(diff_id: &Digest, config: &ImageConfig) -> Digest {
    let architecture = config.architecture.as_deref().unwrap_or_default();
    let text = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    digest::of_bytes(text.as_bytes())
}

/// Returns an error that names the path below the root.
fn at(path: &[u8]) -> impl Fn(io::Error) -> CopyError + '_ {
    move |source| CopyError::Entry { entry: crate::tarball::lossy(path), source }
}
