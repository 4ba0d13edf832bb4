//! The record of an upload that is not finished: `uploads/<id>.json` beside its bytes.

use crate::time::Time;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// What an upload is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// The repository.
    pub repository: String,
    /// The algorithm its sum is made with as long as nothing else is said.
    pub algorithm: String,
    /// When it began.
    pub started_at: Time,
}

/// A blob that is being sent to an object store in parts: `parts/<algorithm>-<hex>.json`. The parts take space until they
/// are put together or given up, even where the process that sent them is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsRecord {
    /// The store's name for them.
    pub upload: String,
}

/// What a directory of a registry is: `registry.json` at its top.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageRecord {
    /// When it was made.
    pub created_at: Time,
    /// Where blobs are: `directory`, or `s3` with the bucket's name and prefix.
    pub blobs: String,
    /// Its name, which its record and its object store have too; directories of before have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}
