//! Configuration, manifest and index entry of an exported image (image-spec 1.1).

use super::WrittenLayer;
use crate::manifest::{OCI_MANIFEST, Platform};
use perennial_core::id::Digest;
use perennial_core::image::ImageConfig;
use perennial_core::time::Time;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The name of an image in a layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What an image says besides its layers.
#[derive(Debug, Clone)]
pub struct ImageText {
    /// How to run it.
    pub config: ImageConfig,
    /// When the state it holds was left.
    pub created: Time,
    /// How each layer came to be, oldest first.
    pub history: Vec<String>,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// A blob that is written.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) media_type: &'static str,
    pub(super) digest: Digest,
    pub(super) bytes: u64,
}

impl Blob {
    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes })
    }
}

impl ImageText {
    /// Returns the configuration of an image of these layers.
    pub(super) fn config(&self, layers: &[WrittenLayer]) -> Value {
        let diff_ids: Vec<&Digest> = layers.iter().map(|layer| &layer.diff_id).collect();
        let history: Vec<Value> =
            self.history.iter().map(|by| json!({ "created": self.created, "created_by": by })).collect();
        json!({
            "created": self.created,
            "architecture": self.architecture(),
            "os": "linux",
            "config": self.process(),
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        })
    }

    fn architecture(&self) -> String {
        self.config.architecture.clone().unwrap_or_else(|| Platform::host().architecture)
    }

    /// Empty fields are left out: engines tell an empty list from none.
    fn process(&self) -> Value {
        // What tells whether a container is healthy is not part of the OCI image configuration.
        let ImageConfig {
            entrypoint,
            cmd,
            env,
            user,
            workdir,
            stop_signal,
            volumes,
            labels,
            architecture: _,
            health: _,
        } = &self.config;
        let mut fields = Map::new();
        for (name, list) in [("Entrypoint", entrypoint), ("Cmd", cmd), ("Env", env)] {
            if !list.is_empty() {
                fields.insert(name.to_owned(), json!(list));
            }
        }
        for (name, text) in [("User", user), ("WorkingDir", workdir), ("StopSignal", stop_signal)] {
            if let Some(text) = text {
                fields.insert(name.to_owned(), json!(text));
            }
        }
        if !volumes.is_empty() {
            let set: Map<String, Value> = volumes.iter().map(|volume| (volume.clone(), json!({}))).collect();
            fields.insert("Volumes".to_owned(), Value::Object(set));
        }
        if !labels.is_empty() {
            let pairs = labels.iter().map(|label| label.split_once('=').unwrap_or((label.as_str(), "")));
            let map: Map<String, Value> = pairs.map(|(name, value)| (name.to_owned(), json!(value))).collect();
            fields.insert("Labels".to_owned(), Value::Object(map));
        }
        Value::Object(fields)
    }

    pub(super) fn manifest(&self, config: &Blob, layers: &[Blob]) -> Value {
        let layers: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": layers,
            "annotations": self.annotations,
        })
    }

    pub(super) fn index_entry(&self, manifest: &Blob, tag: &str) -> Value {
        let mut entry = manifest.descriptor();
        if let Some(fields) = entry.as_object_mut() {
            let platform = json!({ "os": "linux", "architecture": self.architecture() });
            fields.insert("platform".to_owned(), platform);
            fields.insert("annotations".to_owned(), json!({ REF_NAME: tag }));
        }
        entry
    }
}
