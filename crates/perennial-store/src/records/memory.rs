//! The record store without a disk, for tests.

use super::{RecordError, RecordStore, Transaction, Versioned};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Records in memory; nothing is durable.
#[derive(Debug, Default)]
pub struct MemoryRecords {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    records: BTreeMap<String, Versioned>,
}

impl MemoryRecords {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordStore for MemoryRecords {
    fn get(&self, key: &str) -> Result<Option<Versioned>, RecordError> {
        Ok(self.state().records.get(key).cloned())
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, RecordError> {
        let state = self.state();
        let from = state.records.range(prefix.to_owned()..);
        Ok(from.take_while(|(key, _)| key.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn commit(&self, transaction: &Transaction) -> Result<u64, RecordError> {
        let mut state = self.state();
        for (key, revision) in transaction.expectations() {
            let present = state.records.get(key).map_or(0, |record| record.revision);
            if present != *revision {
                return Err(RecordError::Conflict { key: key.clone() });
            }
        }
        state.revision += 1;
        let revision = state.revision;
        for (key, bytes) in transaction.puts() {
            state.records.insert(key.clone(), Versioned { bytes: bytes.clone(), revision });
        }
        for key in transaction.deletes() {
            state.records.remove(key);
        }
        Ok(revision)
    }
}
