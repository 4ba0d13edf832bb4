//! From a described image to layers in the store.

use super::{Described, DescribedLayer, ImportError, ImportOptions, Imported, ImportedLayer, Place};
use crate::apply::{self, Applied, ApplyError};
use crate::blobs::{Blob, BlobName};
use crate::compression::unpacked;
use crate::digest::{HashReader, chain_id};
use crate::lowers::Lowers;
use crate::progress::{Event, Phase, Progress};
use crate::tarball::TarError;
use perennial_core::id::Digest;
use std::error::Error;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a store refuses; this crate does not know stores.
pub type TargetError = Box<dyn Error + Send + Sync>;

/// What names a layer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayerKey {
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Digest of the layer with all layers below it; the layer's identity in a store.
    pub chain_id: Digest,
}

/// The tree of a layer in a store, for reading.
#[derive(Debug, Clone)]
pub enum LayerTree {
    /// A directory.
    Dir(PathBuf),
    /// An open directory, such as the root of a mount without a place. Its regular files may have their content in the
    /// directory of data, [`LayerTarget::data`].
    Open(Arc<OwnedFd>),
}

/// A store that takes layers.
pub trait LayerTarget {
    /// Returns the tree of a layer the store has, found by its chain id.
    fn find(&self, key: &LayerKey) -> Option<LayerTree>;

    /// Returns the directory in which files have their content that have the attribute `trusted.overlay.redirect`.
    fn data(&self) -> Option<PathBuf> {
        None
    }

    /// Makes an empty directory on the store's file system for a layer.
    ///
    /// # Errors
    /// When it cannot be made.
    fn begin(&mut self) -> Result<PathBuf, TargetError>;

    /// Takes a finished tree from a directory made by [`LayerTarget::begin`], makes it durable, and returns where its
    /// tree lies now.
    ///
    /// # Errors
    /// When the store cannot take it. The directory is then the store's to remove.
    fn commit(&mut self, directory: PathBuf, layer: &ImportedLayer) -> Result<LayerTree, TargetError>;

    /// Removes a directory made by [`LayerTarget::begin`], with whatever is in it.
    fn abort(&mut self, directory: PathBuf);
}

/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 1 << 20;

/// Returns the keys of layers given by their diff ids, oldest first.
pub(crate) fn chain(diff_ids: impl IntoIterator<Item = Digest>) -> Vec<LayerKey> {
    let mut keys: Vec<LayerKey> = Vec::new();
    for diff_id in diff_ids {
        let chain_id = chain_id(keys.last().map(|key| &key.chain_id), &diff_id);
        keys.push(LayerKey { diff_id, chain_id });
    }
    keys
}

/// Writes the layers of an image that the store lacks.
pub(super) fn write(
    place: &Place<'_>,
    described: Described,
    options: &ImportOptions,
    target: &mut dyn LayerTarget,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let (layers, layers_max) = (described.layers.len(), options.limits.layers_max);
    if layers > layers_max {
        return Err(ImportError::TooManyLayers { layers, layers_max });
    }
    progress.event(Event::Image { digest: &described.digest, layers });
    let mut done: Vec<ImportedLayer> = Vec::new();
    let mut trees: Vec<LayerTree> = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    let keys = chain(described.layers.iter().map(|layer| layer.diff_id.clone()));
    for (number, (key, layer)) in keys.into_iter().zip(&described.layers).enumerate() {
        if let Some(tree) = target.find(&key) {
            progress.event(Event::Known { layer: number, diff_id: &key.diff_id });
            done.insert(0, ImportedLayer { key, was_known: true, entries: 0, bytes: 0 });
            trees.insert(0, tree);
            continue;
        }
        let open = || open(place, layer, number, progress);
        let data = target.data();
        let write = |directory: &Path| {
            let lowers = Lowers::open(&trees, data.as_deref()).map_err(|source| failed(layer, source))?;
            let applied = apply_blob(open()?, layer, directory, &lowers, options)?;
            Ok((key, applied))
        };
        let (written, tree, applied_notes) = write_tree(target, write)?;
        progress.event(Event::Finished { layer: number, phase: Phase::Apply });
        applied_notes.iter().for_each(|note| progress.event(Event::Note(note)));
        notes.extend(applied_notes);
        done.insert(0, written);
        trees.insert(0, tree);
    }
    let bytes = done.iter().map(|layer| layer.bytes).sum();
    let Described { digest, config, .. } = described;
    Ok(Imported { digest, config, layers: done, bytes, source: place.source.to_owned(), notes })
}

/// Makes a directory, has it filled, and gives it to the store; on any error nothing stays.
pub(crate) fn write_tree(
    target: &mut dyn LayerTarget,
    write: impl FnOnce(&Path) -> Result<(LayerKey, Applied), ImportError>,
) -> Result<(ImportedLayer, LayerTree, Vec<String>), ImportError> {
    let refused = |source| ImportError::Target { layer: "directory".to_owned(), source };
    let directory = target.begin().map_err(refused)?;
    match write(&directory) {
        Ok((key, applied)) => {
            // Only for trees whose digest is known at the end.
            if let Some(tree) = target.find(&key) {
                target.abort(directory);
                return Ok((ImportedLayer { key, was_known: true, entries: 0, bytes: 0 }, tree, Vec::new()));
            }
            let layer = ImportedLayer { key, was_known: false, entries: applied.entries, bytes: applied.bytes };
            let refused = |source| ImportError::Target { layer: layer.key.diff_id.to_string(), source };
            let tree = target.commit(directory, &layer).map_err(refused)?;
            Ok((layer, tree, applied.notes))
        }
        Err(error) => {
            target.abort(directory);
            Err(error)
        }
    }
}

fn failed(layer: &DescribedLayer, source: io::Error) -> ImportError {
    ImportError::ReadBlob { what: "layer", name: layer.blob.to_string(), source }
}

/// Opens a layer's blob and tells of the progress of reading it.
fn open<'a>(
    place: &Place<'_>,
    layer: &DescribedLayer,
    number: usize,
    progress: &'a dyn Progress,
) -> Result<Box<dyn Read + 'a>, ImportError> {
    let missing = || ImportError::Missing { what: "layer", name: layer.blob.to_string() };
    let (reader, found): Blob =
        place.blobs.open(&layer.blob).map_err(|source| failed(layer, source))?.ok_or_else(missing)?;
    if let Some(stated) = layer.size.filter(|stated| *stated != found) {
        return Err(ImportError::Size { what: "layer", name: layer.blob.to_string(), found, stated });
    }
    let name = layer.blob.to_string();
    let phase = Phase::Apply;
    progress.event(Event::Started { layer: number, phase, name: &name, bytes_total: Some(found) });
    Ok(Box::new(Reported { input: reader, layer: number, bytes: 0, reported: 0, progress }))
}

/// Applies a layer's blob and checks the digests of the blob and of what is in it.
fn apply_blob(
    blob: impl Read,
    layer: &DescribedLayer,
    directory: &Path,
    lowers: &Lowers,
    options: &ImportOptions,
) -> Result<Applied, ImportError> {
    let name = layer.blob.to_string();
    let mut packed = HashReader::new(blob);
    let (applied, diff_id) =
        write_archive(&mut packed, directory, lowers, options).map_err(|source| damage(&mut packed, layer, source))?;
    // Bytes after the end of the packed stream are part of the blob.
    let failed = |source| ImportError::ReadBlob { what: "layer", name: name.clone(), source };
    packed.drain(options.limits.bytes_max).map_err(failed)?;
    let (found, _) = packed.finish();
    if let BlobName::Digest(stated) = &layer.blob
        && *stated != found
    {
        return Err(ImportError::Digest { what: "layer", name, found, stated: stated.clone() });
    }
    if diff_id != layer.diff_id {
        let stated = layer.diff_id.clone();
        return Err(ImportError::Digest { what: "uncompressed layer", name, found: diff_id, stated });
    }
    Ok(applied)
}

/// Says that the blob is damaged where that explains why its archive cannot be read.
fn damage<R: Read>(packed: &mut HashReader<R>, layer: &DescribedLayer, source: ApplyError) -> ImportError {
    let name = layer.blob.to_string();
    if let (ApplyError::Tar(_), BlobName::Digest(stated)) = (&source, &layer.blob)
        && let Ok(true) = packed.drain(u64::MAX)
        && let (found, _) = packed.take_digest()
        && found != *stated
    {
        return ImportError::Digest { what: "layer", name, found, stated: stated.clone() };
    }
    ImportError::Apply { layer: name, source }
}

/// Unpacks and applies an archive, reading it to its end; returns the digest of the unpacked archive.
pub(crate) fn write_archive<R: Read>(
    packed: &mut HashReader<R>,
    directory: &Path,
    lowers: &Lowers,
    options: &ImportOptions,
) -> Result<(Applied, Digest), ApplyError> {
    let (plain, _) = unpacked(packed).map_err(TarError::Io)?;
    let mut plain = HashReader::new(plain);
    let applied = apply::apply(&mut plain, directory, lowers, &options.limits)?;
    // What follows the archive's end mark counts for its digest.
    if !plain.drain(options.limits.bytes_max).map_err(TarError::Io)? {
        return Err(ApplyError::TooLarge { entry: "end".to_owned(), bytes_max: options.limits.bytes_max });
    }
    Ok((applied, plain.finish().0))
}

/// Tells of bytes as they are read.
struct Reported<'a> {
    input: Box<dyn Read>,
    layer: usize,
    bytes: u64,
    reported: u64,
    progress: &'a dyn Progress,
}

impl Read for Reported<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(0));
        if self.bytes - self.reported >= REPORT_BYTES || (count == 0 && self.bytes > self.reported) {
            self.reported = self.bytes;
            self.progress.event(Event::Advanced { layer: self.layer, phase: Phase::Apply, bytes: self.bytes });
        }
        Ok(count)
    }
}
