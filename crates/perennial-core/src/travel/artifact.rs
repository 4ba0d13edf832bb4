//! The OCI manifest around a parcel: any registry can hold it, and keeps the blobs it names.

use super::cipher::Secrecy;
use crate::id::Digest;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Media type of OCI image manifests.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What kind of artifact it is.
pub const ARTIFACT: &str = "application/vnd.perennial.parcel.v1";
/// The same, encrypted.
pub const ARTIFACT_ENCRYPTED: &str = "application/vnd.perennial.parcel.encrypted.v1";
/// Media type of whatever of it is encrypted: age files.
pub const AGE: &str = "application/vnd.perennial.encrypted.v1";
/// Media type of a parcel.
pub const PARCEL: &str = "application/vnd.perennial.parcel.v1+json";
/// Media type of a pack.
pub const PACK: &str = "application/vnd.perennial.pack.v1";
/// Longest manifest, in bytes: what registries take.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// A blob that a manifest names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length, in bytes.
    pub size: u64,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    schema_version: u32,
    media_type: String,
    artifact_type: String,
    /// The parcel.
    pub config: Descriptor,
    /// The packs.
    pub layers: Vec<Descriptor>,
    /// For people.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Why a manifest is not one of a parcel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// Longer than registries take.
    #[error("the manifest has {bytes} bytes, at most {MANIFEST_BYTES_MAX} are possible")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON, or fields missing.
    #[error("the manifest is damaged: {reason}")]
    Damaged {
        /// What the parser said.
        reason: String,
    },
    /// An image, or something else.
    #[error("what is there is no container or image of Perennial's, but {found:?}")]
    Foreign {
        /// What it says it is.
        found: String,
    },
}

impl Artifact {
    /// Makes the manifest of a parcel and its packs.
    #[must_use]
    pub fn new(
        secrecy: Secrecy,
        parcel: (Digest, u64),
        packs: &[(Digest, u64)],
        annotations: BTreeMap<String, String>,
    ) -> Self {
        let (kind, parcel_type, pack_type) = match secrecy {
            Secrecy::Plain => (ARTIFACT, PARCEL, PACK),
            Secrecy::Encrypted => (ARTIFACT_ENCRYPTED, AGE, AGE),
        };
        let blob = |media_type: &str, (digest, size): (Digest, u64)| Descriptor {
            media_type: media_type.to_string(),
            digest,
            size,
        };
        Self {
            schema_version: 2,
            media_type: MANIFEST.to_string(),
            artifact_type: kind.to_string(),
            config: blob(parcel_type, parcel),
            layers: packs.iter().cloned().map(|pack| blob(pack_type, pack)).collect(),
            annotations,
        }
    }

    /// Returns whether it says that it is encrypted.
    #[must_use]
    pub fn secrecy(&self) -> Secrecy {
        if self.artifact_type == ARTIFACT_ENCRYPTED { Secrecy::Encrypted } else { Secrecy::Plain }
    }

    /// Returns its bytes.
    ///
    /// # Panics
    /// Never: it has string keys only.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has string keys and no floats, so encoding cannot fail")
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ArtifactError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            #[serde(default)]
            artifact_type: String,
            #[serde(default)]
            media_type: String,
        }
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ArtifactError::TooLong { bytes: bytes.len() });
        }
        let damaged = |error: serde_json::Error| ArtifactError::Damaged { reason: error.to_string() };
        let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
        if ![ARTIFACT, ARTIFACT_ENCRYPTED].contains(&head.artifact_type.as_str()) {
            let found = if head.artifact_type.is_empty() { head.media_type } else { head.artifact_type };
            return Err(ArtifactError::Foreign { found });
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }
}
