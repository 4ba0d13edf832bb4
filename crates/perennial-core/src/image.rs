//! What an image says about running it, and its record in a store.
//!
//! Fields follow the OCI image configuration (image-spec, `config.md`); fields we do not use are not kept.

use crate::id::{Digest, LayerId};
use crate::spec::HealthCheck;
use crate::time::Time;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The part of an image's configuration that a run honours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Default program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Default user, as in [`crate::spec::ContainerSpec::user`].
    pub user: Option<String>,
    /// Default working directory.
    pub workdir: Option<String>,
    /// Signal that asks the process to end.
    pub stop_signal: Option<String>,
    /// Paths the image expects to be volumes: the first start makes the directories, which are part of the generation
    /// (design 1).
    pub volumes: Vec<String>,
    /// Labels as `NAME=value`, sorted.
    pub labels: Vec<String>,
    /// `amd64`, `arm64`, …
    pub architecture: Option<String>,
    /// How to tell whether it is healthy; a container's own check stands over it. Absent in records of before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

/// An image in a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Digest of its manifest, or of the configuration where the source had no manifest; the image's identity (A30).
    pub digest: Digest,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its layers, newest first.
    pub layers: Vec<LayerId>,
    /// Digest of each uncompressed layer, newest first, one for each of `layers`.
    pub diff_ids: Vec<Digest>,
    /// Bytes of its layers on disk.
    pub bytes: u64,
    /// When it was imported here.
    pub imported_at: Time,
    /// Where it came from, for people.
    pub source: String,
    /// Whether its digests are only what somebody said who sent a container that lies on it: nobody has compared them
    /// with what is in it. Nothing but such containers is made from it, and no other image shares its layers by digest.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub believed: bool,
}
