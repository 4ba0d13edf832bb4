//! Brings an image into a store: finds its description, checks everything it names, and writes its layers.
//!
//! Promises: every byte is checked against the digest that names it while it is read; a layer appears in the store
//! whole or not at all; layers the store has are not read again.
//!
//! A layer is identified by its chain id (its own digest together with those below it), as a layer's tree depends on
//! the layers below: directories it does not describe take their attributes from there. The chain id of a lowest layer
//! is its diff id.

mod documents;
mod layers;

pub use layers::{LayerKey, LayerTarget, LayerTree, TargetError};

use crate::apply::{ApplyError, Limits};
use crate::blobs::{ArchiveBlobs, BlobName, Blobs, DirectoryBlobs};
use crate::manifest::{ManifestError, Platform};
use crate::progress::Progress;
use crate::rootfs;
use crate::source::Source;
use crate::tarball::TarError;
use perennial_core::id::Digest;
use perennial_core::image::ImageConfig;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The platform whose image is taken where there are several.
    pub platform: Platform,
    /// Bounds.
    pub limits: Limits,
    /// A directory on the store's file system for temporary files; the store's `staging/`.
    pub scratch: PathBuf,
}

impl ImportOptions {
    /// Returns options with the host's platform and the default bounds.
    #[must_use]
    pub fn new(scratch: &Path) -> Self {
        Self { platform: Platform::host(), limits: Limits::default(), scratch: scratch.to_path_buf() }
    }
}

/// An image whose layers are all in the store.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Digest of its manifest, or of the configuration where the source had no manifest; the image's identity.
    pub digest: Digest,
    /// What it says about running it.
    pub config: ImageConfig,
    /// Its layers, newest first.
    pub layers: Vec<ImportedLayer>,
    /// Bytes of data in the files of all its layers written now; layers that were known count 0.
    pub bytes: u64,
    /// Where it came from, for people.
    pub source: String,
    /// What people should know, such as attributes that could not be kept.
    pub notes: Vec<String>,
}

/// An image as its documents describe it; nothing of its layers has been read.
#[derive(Debug, Clone)]
pub struct Outline {
    /// What it says about running it.
    pub config: ImageConfig,
    /// Digests of its uncompressed layers, oldest first.
    pub diff_ids: Vec<Digest>,
    /// What its manifest says besides; empty where the source had none.
    pub annotations: BTreeMap<String, String>,
}

/// One layer of an imported image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedLayer {
    /// Digests that name it.
    pub key: LayerKey,
    /// Whether the store had it already.
    pub was_known: bool,
    /// Entries written; 0 where it was known.
    pub entries: u64,
    /// Bytes of data written to its files; 0 where it was known.
    pub bytes: u64,
}

/// Why an image cannot be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The source cannot be opened or read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The source is an archive that cannot be read.
    #[error("archive {} cannot be read", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TarError,
    },
    /// A directory or archive that is not what the source says.
    #[error("{} is not {expected}: it has no {missing}", path.display())]
    NotThat {
        /// The file or directory.
        path: PathBuf,
        /// What was expected.
        expected: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// A document is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No image of that name.
    #[error("there is no image {wanted:?} in the source; there are: {available}")]
    NoSuchTag {
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Several images and no name given.
    #[error("the source holds several images; add one of these names: {available}")]
    SeveralImages {
        /// What there is.
        available: String,
    },
    /// A digest of a kind we do not check.
    #[error("digest {digest:?} is not supported: only sha256 is")]
    DigestKind {
        /// The digest.
        digest: String,
    },
    /// A document or blob that is named but not there.
    #[error("{what} {name} is missing")]
    Missing {
        /// What it is.
        what: &'static str,
        /// Its digest or path.
        name: String,
    },
    /// A document or blob cannot be read.
    #[error("{what} {name} cannot be read")]
    ReadBlob {
        /// What it is.
        what: &'static str,
        /// Its digest or path.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A document longer than allowed.
    #[error("{what} {name} is {bytes} bytes long, at most {bytes_max} are allowed")]
    DocumentTooLong {
        /// What it is.
        what: &'static str,
        /// Its digest or path.
        name: String,
        /// Its length.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// A blob whose length is not the one stated.
    #[error("{what} {name} is {found} bytes long instead of {stated}")]
    Size {
        /// What it is.
        what: &'static str,
        /// Its digest or path.
        name: String,
        /// Its length.
        found: u64,
        /// The length stated.
        stated: u64,
    },
    /// Content that does not have the digest that names it.
    #[error("{what} {name} is damaged: its digest is {found} instead of {stated}")]
    Digest {
        /// What it is.
        what: &'static str,
        /// Its digest or path.
        name: String,
        /// Its digest.
        found: Digest,
        /// The digest stated.
        stated: Digest,
    },
    /// An index inside an index inside an index …
    #[error("indexes are nested more than {depth_max} deep")]
    IndexDepth {
        /// The limit.
        depth_max: u32,
    },
    /// More layers than allowed.
    #[error("image has {layers} layers, at most {layers_max} are allowed")]
    TooManyLayers {
        /// Its layers.
        layers: usize,
        /// The limit.
        layers_max: usize,
    },
    /// A layer cannot be written.
    #[error("layer {layer} cannot be applied")]
    Apply {
        /// Its digest or path.
        layer: String,
        /// Why.
        source: ApplyError,
    },
    /// A directory tree cannot be copied.
    #[error("root file system {} cannot be copied", path.display())]
    Copy {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: rootfs::CopyError,
    },
    /// The store refuses.
    #[error("store cannot take layer {layer}")]
    Target {
        /// Its digest.
        layer: String,
        /// Why.
        source: TargetError,
    },
}

/// An image described, with its layers still to be read.
pub(crate) struct Described {
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfig,
    /// Oldest first.
    pub(crate) layers: Vec<DescribedLayer>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A layer to be read.
#[derive(Debug, Clone)]
pub(crate) struct DescribedLayer {
    pub(crate) blob: BlobName,
    /// Length of the blob, where it is stated.
    pub(crate) size: Option<u64>,
    pub(crate) diff_id: Digest,
}

/// Imports an image from this machine into a store.
///
/// # Errors
/// When the source is not there, damaged, hostile or not for this platform, or the store refuses. The store then has
/// nothing new but whole layers, which a later import will find.
pub fn import(
    source: &Source,
    options: &ImportOptions,
    target: &mut dyn LayerTarget,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let text = source.to_string();
    match source {
        Source::Oci { path, tag } => {
            let blobs = DirectoryBlobs { root: path.clone() };
            let described = documents::layout(&blobs, path, tag.as_deref(), options)?;
            layers::write(&Place { blobs: &blobs, source: &text }, described, options, target, progress)
        }
        Source::OciArchive { path, tag } => {
            let blobs = open_archive(path, options)?;
            let described = documents::layout(&blobs, path, tag.as_deref(), options)?;
            layers::write(&Place { blobs: &blobs, source: &text }, described, options, target, progress)
        }
        Source::DockerArchive { path, reference } => {
            let blobs = open_archive(path, options)?;
            let described = documents::docker(&blobs, path, reference.as_deref())?;
            layers::write(&Place { blobs: &blobs, source: &text }, described, options, target, progress)
        }
        Source::Rootfs { path } => rootfs::import(path, options, target, progress),
    }
}

/// Returns what an image's documents say, checked as for [`import`]; a root file system has none.
///
/// # Errors
/// When the source is not there, is not an image, or its documents are damaged or not for this platform.
pub fn outline(source: &Source, options: &ImportOptions) -> Result<Outline, ImportError> {
    let described = match source {
        Source::Oci { path, tag } => {
            documents::layout(&DirectoryBlobs { root: path.clone() }, path, tag.as_deref(), options)?
        }
        Source::OciArchive { path, tag } => {
            documents::layout(&open_archive(path, options)?, path, tag.as_deref(), options)?
        }
        Source::DockerArchive { path, reference } => {
            documents::docker(&open_archive(path, options)?, path, reference.as_deref())?
        }
        Source::Rootfs { path } => {
            let (path, expected, missing) = (path.clone(), "an image", "description of layers");
            return Err(ImportError::NotThat { path, expected, missing });
        }
    };
    let Described { config, layers, annotations, .. } = described;
    Ok(Outline { config, diff_ids: layers.into_iter().map(|layer| layer.diff_id).collect(), annotations })
}

pub(crate) use documents::{describe, digest_of};
pub(crate) use layers::{chain, write_archive, write_tree};

/// Imports an image described already, whose blobs are in `place`.
pub(crate) fn import_described(
    place: &Place<'_>,
    described: Described,
    options: &ImportOptions,
    target: &mut dyn LayerTarget,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    layers::write(place, described, options, target, progress)
}

/// Blobs and what people call the place they are in.
pub(crate) struct Place<'a> {
    pub(crate) blobs: &'a dyn Blobs,
    pub(crate) source: &'a str,
}

fn open_archive(path: &Path, options: &ImportOptions) -> Result<ArchiveBlobs, ImportError> {
    let path_buf = path.to_path_buf();
    ArchiveBlobs::open(path, &options.scratch, options.limits.bytes_max).map_err(|error| {
        if let TarError::Io(source) = error {
            return ImportError::Read { path: path_buf, source };
        }
        ImportError::Archive { path: path_buf, source: error }
    })
}
