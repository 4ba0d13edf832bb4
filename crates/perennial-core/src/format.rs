//! The bytes of records that outlive a process: encode and decode, nothing else.
//!
//! Every record is a JSON object `{"format", "version", "must_understand", …}`. A reader refuses a version or a flag
//! it does not know by name; fields it does not know at all are kept where the record says so. Pages:
//! `docs/formats/`; frozen files: `testdata/formats/`.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest record, in bytes: far above any honest one, and small enough to read whole.
pub const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Flag of a layer's record: it is kept in sealed form.
pub const FLAG_SEALED: &str = "sealed";
/// Flag of a layer's record and of its `layer.json`: it holds metadata-only files or directory redirects.
pub const FLAG_UNRESOLVED: &str = "unresolved";
/// Flag of a layer's record: some of its objects may be in packs only.
pub const FLAG_COLD: &str = "cold";
/// Flag of a parcel and of a remote: what lies in the registry is encrypted.
pub const FLAG_ENCRYPTED: &str = "encrypted";

/// The formats there are; each has a page in `docs/formats/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// `format.json` of a root.
    Root,
    /// Record of a container.
    Container,
    /// Record of an image.
    Image,
    /// Record of a layer.
    Layer,
    /// `layer.json` beside a layer's tree: what the layer is and whose, known without any record.
    LayerFile,
    /// One entry of a container's event log.
    Event,
    /// A read-only view mounted by `browse`.
    View,
    /// Copy of a container's or image's record beside a layer, for a rebuild.
    RecordCopy,
    /// `registry.json` of a registry's directory.
    Registry,
    /// An upload to a registry that is not finished.
    RegistryUpload,
    /// A blob that is on its way from a registry to its object store in parts.
    RegistryParts,
    /// Everything about a container or an image in a registry but the contents.
    Parcel,
    /// A place in a registry to send containers to.
    Remote,
    /// What is known of a container at such a place.
    Tracking,
}

impl Format {
    /// All of them, for the test that counts pages and frozen files.
    pub const ALL: [Self; 14] = [
        Self::Root,
        Self::Container,
        Self::Image,
        Self::Layer,
        Self::LayerFile,
        Self::Event,
        Self::View,
        Self::RecordCopy,
        Self::Registry,
        Self::RegistryUpload,
        Self::RegistryParts,
        Self::Parcel,
        Self::Remote,
        Self::Tracking,
    ];

    /// Returns the name that stands in the record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "perennial-root",
            Self::Container => "perennial-container",
            Self::Image => "perennial-image",
            Self::Layer => "perennial-layer",
            Self::LayerFile => "perennial-layer-file",
            Self::Event => "perennial-event",
            Self::View => "perennial-view",
            Self::RecordCopy => "perennial-record-copy",
            Self::Registry => "perennial-registry",
            Self::RegistryUpload => "perennial-registry-upload",
            Self::RegistryParts => "perennial-registry-parts",
            Self::Parcel => "perennial-parcel",
            Self::Remote => "perennial-remote",
            Self::Tracking => "perennial-tracking",
        }
    }

    /// Returns the flags this release understands.
    const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Layer | Self::RecordCopy => &[FLAG_SEALED, FLAG_UNRESOLVED, FLAG_COLD],
            Self::LayerFile => &[FLAG_UNRESOLVED],
            Self::Parcel => &[FLAG_SEALED, FLAG_ENCRYPTED],
            Self::Remote => &[FLAG_ENCRYPTED],
            Self::Root
            | Self::Container
            | Self::Image
            | Self::Event
            | Self::View
            | Self::Registry
            | Self::RegistryUpload
            | Self::RegistryParts
            | Self::Tracking => &[],
        }
    }

    /// Returns the version this release writes.
    #[must_use]
    pub fn version(self) -> u32 {
        match self {
            Self::Root
            | Self::Container
            | Self::Image
            | Self::Layer
            | Self::LayerFile
            | Self::Event
            | Self::View
            | Self::RecordCopy
            | Self::Registry
            | Self::RegistryUpload
            | Self::RegistryParts
            | Self::Parcel
            | Self::Remote
            | Self::Tracking => 1,
        }
    }
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too large to be one.
    #[error("{format} record has {bytes} bytes, at most {RECORD_BYTES_MAX} are possible: it is damaged")]
    TooLarge {
        /// Expected format.
        format: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// Not JSON, or fields missing or malformed.
    #[error("{format} record is damaged: {reason}")]
    Damaged {
        /// Expected format.
        format: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A record of another kind.
    #[error("expected a {format} record, found {found:?}")]
    OtherFormat {
        /// Expected format.
        format: &'static str,
        /// What it says it is.
        found: String,
    },
    /// Written by a newer release.
    #[error("{format} record has version {found}, this release knows up to {known}: use a newer release")]
    NewerVersion {
        /// Expected format.
        format: &'static str,
        /// Its version.
        found: u32,
        /// Newest known version.
        known: u32,
    },
    /// Needs a feature this release does not have.
    #[error("{format} record needs the feature {flag:?}, which this release does not know: use a newer release")]
    UnknownFlag {
        /// Expected format.
        format: &'static str,
        /// The feature.
        flag: String,
    },
}

#[derive(Serialize)]
struct EnvelopeOut<'a, T> {
    format: &'static str,
    version: u32,
    must_understand: &'a [&'static str],
    body: &'a T,
}

#[derive(Deserialize)]
struct EnvelopeHead {
    format: String,
    version: u32,
    #[serde(default)]
    must_understand: Vec<String>,
}

#[derive(Deserialize)]
struct EnvelopeIn<T> {
    body: T,
}

/// Returns the bytes of a record.
///
/// # Panics
/// Never: the records of this crate have string keys and finite numbers only.
#[must_use]
pub fn encode<T: Serialize>(format: Format, body: &T) -> Vec<u8> {
    encode_flagged(format, &[], body)
}

/// Returns the bytes of a record that only a reader may use who understands `flags`.
///
/// # Panics
/// As [`encode`].
#[must_use]
pub fn encode_flagged<T: Serialize>(format: Format, flags: &[&'static str], body: &T) -> Vec<u8> {
    let (name, version) = (format.name(), format.version());
    let envelope = EnvelopeOut { format: name, version, must_understand: flags, body };
    serde_json::to_vec(&envelope).expect("records have string keys and no floats, so encoding cannot fail")
}

/// Reads a record.
///
/// # Errors
/// [`DecodeError`]; never panics, whatever the bytes are.
pub fn decode<T: DeserializeOwned>(format: Format, bytes: &[u8]) -> Result<T, DecodeError> {
    let name = format.name();
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(DecodeError::TooLarge { format: name, bytes: bytes.len() });
    }
    let damaged = |error: serde_json::Error| DecodeError::Damaged { format: name, reason: error.to_string() };
    let head: EnvelopeHead = serde_json::from_slice(bytes).map_err(damaged)?;
    if head.format != name {
        return Err(DecodeError::OtherFormat { format: name, found: head.format });
    }
    if head.version == 0 {
        return Err(DecodeError::Damaged { format: name, reason: String::from("versions count from 1, found 0") });
    }
    if head.version > format.version() {
        return Err(DecodeError::NewerVersion { format: name, found: head.version, known: format.version() });
    }
    let mut unknown = head.must_understand.into_iter().filter(|flag| !format.flags().contains(&flag.as_str()));
    if let Some(flag) = unknown.next() {
        return Err(DecodeError::UnknownFlag { format: name, flag });
    }
    let envelope: EnvelopeIn<T> = serde_json::from_slice(bytes).map_err(damaged)?;
    Ok(envelope.body)
}
