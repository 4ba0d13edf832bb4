//! The record store: named records, changed together or not at all.
//!
//! One trait and, so far, one implementation, [`sqlite`]; the operations are those that etcd offers too (compare
//! revisions, then put and delete in one transaction), so that a cluster can put its own store behind the same trait.
//! [`memory`] is the same contract without a disk, for tests.

pub mod keys;
pub mod memory;
pub mod sqlite;

use perennial_core::format::DecodeError;

/// A record with the revision at which it was last written; revisions rise with every transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The record's bytes.
    pub bytes: Vec<u8>,
    /// Revision of its last change, from 1.
    pub revision: u64,
}

/// Changes that happen together, provided that every expectation holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    expect: Vec<(String, u64)>,
    put: Vec<(String, Vec<u8>)>,
    delete: Vec<String>,
}

impl Transaction {
    /// Makes an empty transaction.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Demands that `key` still has this revision; 0 means that it does not exist.
    #[must_use]
    pub fn expect(mut self, key: impl Into<String>, revision: u64) -> Self {
        self.expect.push((key.into(), revision));
        self
    }

    /// Writes a record.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, bytes: Vec<u8>) -> Self {
        self.put.push((key.into(), bytes));
        self
    }

    /// Deletes a record; one that is not there is no error.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.delete.push(key.into());
        self
    }

    /// Returns the expectations.
    #[must_use]
    pub fn expectations(&self) -> &[(String, u64)] {
        &self.expect
    }

    /// Returns the records to write.
    #[must_use]
    pub fn puts(&self) -> &[(String, Vec<u8>)] {
        &self.put
    }

    /// Returns the records to delete.
    #[must_use]
    pub fn deletes(&self) -> &[String] {
        &self.delete
    }
}

/// Why a record could not be read or a transaction not be committed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Another writer was first; nothing has changed.
    #[error("record {key} was changed by somebody else meanwhile")]
    Conflict {
        /// The record whose revision differs.
        key: String,
    },
    /// The store itself is damaged.
    #[error("record store {path} is damaged: {reason}")]
    Damaged {
        /// Path of the store.
        path: String,
        /// What the library said.
        reason: String,
    },
    /// The store was written by a newer release.
    #[error("record store {path} has version {found}, this release knows {known}: use a newer release")]
    NewerVersion {
        /// Path of the store.
        path: String,
        /// Its version.
        found: i64,
        /// The known one.
        known: i64,
    },
    /// One record is damaged.
    #[error("record {key}")]
    Record {
        /// The record.
        key: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The disk is full.
    #[error("record store {path}: no space left on its file system")]
    NoSpace {
        /// Path of the store.
        path: String,
    },
    /// The library failed otherwise.
    #[error("record store {path}: {reason}")]
    Failed {
        /// Path of the store.
        path: String,
        /// What the library said.
        reason: String,
    },
}

/// A store of records. Implementations are durable when [`RecordStore::commit`] returns.
pub trait RecordStore: std::fmt::Debug {
    /// Returns a record, if it exists.
    ///
    /// # Errors
    /// [`RecordError`].
    fn get(&self, key: &str) -> Result<Option<Versioned>, RecordError>;

    /// Returns the records whose keys begin with `prefix`, in order of their keys.
    ///
    /// # Errors
    /// [`RecordError`].
    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, RecordError>;

    /// Commits a transaction durably and returns its revision.
    ///
    /// # Errors
    /// [`RecordError::Conflict`] where an expectation does not hold; then nothing has changed.
    fn commit(&self, transaction: &Transaction) -> Result<u64, RecordError>;
}

/// Demands the contract of [`RecordStore`] of an implementation; every implementation's tests call it on an empty store.
///
/// # Panics
/// Where the contract is broken.
#[expect(clippy::panic, reason = "a conformance suite reports by panicking, as every test does")]
pub fn conformance(store: &dyn RecordStore) {
    let fail = |what: &str| -> ! { panic!("record store contract broken: {what}") };
    let must = |condition: bool, what: &str| {
        if !condition {
            fail(what);
        }
    };
    let get = |key: &str| store.get(key).unwrap_or_else(|error| fail(&error.to_string()));
    must(get("a/1").is_none(), "an absent record is None");
    let create = Transaction::new().expect("a/1", 0).put("a/1", b"one".to_vec()).put("b/1", b"other".to_vec());
    let first = store.commit(&create).unwrap_or_else(|error| fail(&error.to_string()));
    must(get("a/1").is_some_and(|r| r.bytes == b"one" && r.revision == first), "a written record reads back");
    must(matches!(store.commit(&create), Err(RecordError::Conflict { key }) if key == "a/1"), "create is once");
    let update = Transaction::new().expect("a/1", first).put("a/1", b"two".to_vec()).delete("b/1");
    let second = store.commit(&update).unwrap_or_else(|error| fail(&error.to_string()));
    must(second > first, "revisions rise");
    must(get("b/1").is_none(), "deleted in the same transaction");
    let stale = Transaction::new().expect("a/1", first).put("a/1", b"stale".to_vec()).put("c/1", b"stale".to_vec());
    must(matches!(store.commit(&stale), Err(RecordError::Conflict { .. })), "a stale writer is refused");
    must(get("c/1").is_none(), "a refused transaction changes nothing");
    let more = Transaction::new().put("a/10", vec![]).put("a/2", vec![0, 255]).put("aa", vec![1]);
    store.commit(&more).unwrap_or_else(|error| fail(&error.to_string()));
    let listed = store.list("a/").unwrap_or_else(|error| fail(&error.to_string()));
    let keys: Vec<&str> = listed.iter().map(|(key, _)| key.as_str()).collect();
    must(keys == ["a/1", "a/10", "a/2"], "a list is by prefix and in order");
    must(store.commit(&Transaction::new().delete("nothing")).is_ok(), "deleting what is not there is no error");
}
