//! Writes an image as an OCI image layout: a directory, or a tar archive of one.
//!
//! ```text
//!   entries ─▶ tar ─▶ sha256 (diff id) ─▶ gzip or zstd ─▶ sha256 (blob) ─▶ file
//! ```
//!
//! Promises: nothing is held in memory but what is on its way; what has no complete image in it never has the name of
//! the destination; an image added to a layout that exists leaves the others in it as they are, and is in its index only
//! when everything the index names is on disk. After an error nothing of the export is left.

mod destination;
mod documents;
mod place;
mod tar;

pub use crate::compression::Compression;
pub use destination::{Destination, DestinationError, FORMS};
pub use documents::ImageText;
pub use tar::{EntryKind, TarEntry, TarWriter, attributes_fit};

use crate::compression::Packer;
use crate::digest::HashWriter;
use documents::Blob;
use perennial_core::id::Digest;
use place::Place;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 256 * 1024;

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Something of that name is there already.
    #[error("{} exists and is {what}", path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The directory it is to be in is not there.
    #[error("{} is not a directory", path.display())]
    NoParent {
        /// The directory.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl ExportError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// A layer that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenLayer {
    /// Digest of the archive, not packed.
    pub diff_id: Digest,
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub bytes: u64,
}

/// An image that is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Digest of its manifest.
    pub digest: Digest,
    /// The name it has in the layout.
    pub tag: String,
    /// Its layers, oldest first.
    pub layers: Vec<WrittenLayer>,
    /// Bytes of all its blobs.
    pub bytes: u64,
}

/// Returns the digest that a layer of these entries has, uncompressed, and writes nothing.
///
/// # Errors
/// As `fill`.
pub fn diff_id<E: From<io::Error>>(fill: impl FnOnce(&mut TarWriter<'_>) -> Result<(), E>) -> Result<Digest, E> {
    let mut summed = HashWriter::new(io::sink());
    let mut tar = TarWriter::new(&mut summed);
    fill(&mut tar)?;
    tar.finish()?;
    let (_, digest, _) = summed.finish();
    Ok(digest)
}

/// An image that is being written. Dropped before [`ImageWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct ImageWriter {
    place: Place,
    compression: Compression,
    layers: Vec<WrittenLayer>,
}

impl ImageWriter {
    /// Begins to write to a destination; `nonce` is a name that no other export has.
    ///
    /// # Errors
    /// [`ExportError`] where the destination is something else than an image layout, or cannot be written.
    pub fn begin(destination: &Destination, compression: Compression, nonce: &str) -> Result<Self, ExportError> {
        Ok(Self { place: Place::begin(destination, nonce)?, compression, layers: Vec::new() })
    }

    /// Writes the next layer, oldest first: `fill` writes its entries.
    ///
    /// # Errors
    /// As `fill`; [`ExportError`] where the destination cannot be written.
    pub fn layer<E: From<ExportError>>(
        &mut self,
        fill: impl FnOnce(&mut TarWriter<'_>) -> Result<(), E>,
    ) -> Result<WrittenLayer, E> {
        let path = self.place.path().to_path_buf();
        let failed = |source| E::from(ExportError::io("write", &path)(source));
        let blob = self.place.begin_blob()?;
        let output = HashWriter::new(BufWriter::with_capacity(BUFFER_BYTES, blob));
        let mut packed = HashWriter::new(Packer::new(self.compression, output).map_err(failed)?);
        let mut tar = TarWriter::new(&mut packed);
        fill(&mut tar)?;
        tar.finish().map_err(failed)?;
        let (packer, diff_id, _) = packed.finish();
        let (output, digest, bytes) = packer.finish().map_err(failed)?.finish();
        let blob = output.into_inner().map_err(|error| failed(error.into_error()))?;
        self.place.end_blob(blob, &digest, bytes)?;
        let layer = WrittenLayer { diff_id, digest, bytes };
        self.layers.push(layer.clone());
        Ok(layer)
    }

    /// Writes the documents of the image, and gives the destination its name.
    ///
    /// # Errors
    /// [`ExportError`] where the destination cannot be written; nothing is left then.
    pub fn finish(mut self, text: &ImageText, tag: &str) -> Result<Written, ExportError> {
        let media_type = self.compression.media_type();
        let config = self.document(&text.config(&self.layers), documents::CONFIG)?;
        let layers: Vec<Blob> = self
            .layers
            .iter()
            .map(|layer| Blob { media_type, digest: layer.digest.clone(), bytes: layer.bytes })
            .collect();
        let manifest = self.document(&text.manifest(&config, &layers), crate::manifest::OCI_MANIFEST)?;
        let entry = text.index_entry(&manifest, tag);
        let layers_bytes: u64 = self.layers.iter().map(|layer| layer.bytes).sum();
        let bytes = layers_bytes.saturating_add(config.bytes).saturating_add(manifest.bytes);
        self.place.finish(&entry, tag)?;
        Ok(Written { digest: manifest.digest, tag: tag.to_owned(), layers: self.layers, bytes })
    }

    fn document(&mut self, text: &serde_json::Value, media_type: &'static str) -> Result<Blob, ExportError> {
        let text = text.to_string();
        let digest = crate::digest::of_bytes(text.as_bytes());
        let failed = ExportError::io("write", self.place.path());
        let mut blob = self.place.begin_blob()?;
        blob.write_all(text.as_bytes()).map_err(failed)?;
        let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.place.end_blob(blob, &digest, bytes)?;
        Ok(Blob { media_type, digest, bytes })
    }
}
