//! Places in registries to send containers to, and what is known of what was sent.

use super::keys::KeyOrder;
use crate::engine::Engine;
use crate::engine::records::Doc;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::format::{self, Format};
use perennial_core::generations::Generation;
use perennial_core::id::ContainerId;
use perennial_core::travel::place::parse_address;
use perennial_core::travel::remote::{Lacking, Remote, Tracking};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use std::path::PathBuf;

/// What of a container is not at the remote it is to be sent to.
#[derive(Debug, Clone)]
pub struct Unsent {
    /// The remote.
    pub remote: String,
    /// Generations that are not there, oldest first.
    pub generations: Vec<Generation>,
    /// How many were let go and were never there.
    pub gone: u64,
    /// What is known of it there.
    pub tracking: Tracking,
}

/// A place that was added or changed.
#[derive(Debug, Clone)]
pub struct Added {
    /// The place.
    pub remote: Remote,
    /// The file of a key that was made for it.
    pub key_made: Option<PathBuf>,
}

impl Unsent {
    /// Returns the bytes these generations added on disk.
    pub fn bytes(&self) -> u64 {
        self.generations.iter().fold(0, |sum, generation| sum.saturating_add(generation.bytes))
    }
}

impl Engine {
    /// Adds a place to send to.
    ///
    /// # Errors
    /// Where name or address are not valid, or the name is taken.
    pub fn add_remote(&self, name: &str, address: &str, plain_http: bool, keys: &KeyOrder) -> Result<Added> {
        Self::parse_name(name).map_err(|failure| failure.while_doing(format!("{name:?} cannot be a remote's name")))?;
        let (registry, prefix) = parse_address(address).map_err(|error| Failure::new(Code::Usage, error))?;
        let plain_http = plain_http || address.starts_with("http://");
        let key = keys::remote(name);
        if self.records.get(&key)?.is_some() {
            return Err(Failure::new(Code::Conflict, format!("there is a remote {name} already")).hint(format!(
                "`perennial remote set {name}` changes its keys; `perennial remote rm {name}` removes it, and nothing in \
                 the registry changes by that"
            )));
        }
        let (encryption, key_made) = self.encryption(name, None, keys)?;
        let name = name.to_owned();
        let remote = Remote { name, registry, prefix, plain_http, encryption, added_at: self.now() };
        self.records.commit(&Transaction::new().expect(&key, 0).put(&key, remote.encode()))?;
        Ok(Added { remote, key_made })
    }

    /// Changes the keys of a place. What was encrypted never becomes plain by that.
    ///
    /// # Errors
    /// Where there is none of that name, or a key cannot be used.
    pub fn set_remote(&self, name: &str, keys: &KeyOrder) -> Result<Added> {
        self.remote(Some(name))?;
        let key = keys::remote(name);
        let doc: Doc<Remote> = self.read(Format::Remote, &key)?.ok_or_else(|| unknown(name))?;
        let (encryption, key_made) = self.encryption(name, doc.value.encryption.as_ref(), keys)?;
        let remote = Remote { encryption, ..doc.value };
        self.records.commit(&Transaction::new().expect(&key, doc.revision).put(&key, remote.encode()))?;
        Ok(Added { remote, key_made })
    }

    /// Returns all places to send to, by name.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn remotes(&self) -> Result<Vec<Remote>> {
        Ok(self.read_all(Format::Remote, keys::REMOTES)?.into_iter().map(|doc| doc.value).collect())
    }

    /// Forgets a place, and returns it; what is in the registry stays, and so does its key.
    ///
    /// # Errors
    /// Where there is none, or a container is sent to it by itself.
    pub fn remove_remote(&self, name: &str) -> Result<Remote> {
        let remote = self.remote(Some(name))?;
        let needing = self.containers()?.into_iter().find(|doc| doc.value.policy.push.as_deref() == Some(name));
        if let Some(doc) = needing {
            let container = doc.value.name;
            return Err(Failure::new(Code::Conflict, format!("{container} is sent to {name} by itself"))
                .hint(format!("`perennial set {container} --push none` ends that")));
        }
        let mut transaction = Transaction::new().delete(keys::remote(name));
        for doc in self.containers()? {
            transaction = transaction.delete(keys::tracking(&doc.value.id, name));
        }
        self.records.commit(&transaction)?;
        Ok(remote)
    }

    /// Returns a place by its name, or the only one there is.
    ///
    /// # Errors
    /// Where there is none, or several and none is named.
    pub fn remote(&self, name: Option<&str>) -> Result<Remote> {
        let mut remotes = self.remotes()?;
        if let Some(name) = name {
            let found = remotes.into_iter().find(|remote| remote.name == name);
            return found.ok_or_else(|| unknown(name));
        }
        match (remotes.pop(), remotes.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(_), false) => Err(Failure::new(Code::Usage, "there are several remotes, and none is named")
                .hint("`perennial push NAME REMOTE` and `perennial pull REMOTE/NAME` name one; `perennial remote ls` lists them")),
            (None, _) => Err(Failure::new(Code::NotFound, "there is no remote")
                .hint("`perennial remote add NAME HOST/PATH` adds one")),
        }
    }

    /// Returns what is known of a container at a remote.
    ///
    /// # Errors
    /// Where the record cannot be read.
    pub fn tracking(&self, id: &ContainerId, remote: &str) -> Result<Tracking> {
        let found = self.read(Format::Tracking, &keys::tracking(id, remote))?;
        Ok(found.map_or_else(Tracking::default, |doc| doc.value))
    }

    /// Records what is known of a container at a remote.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn track(&self, id: &ContainerId, remote: &str, tracking: &Tracking) -> Result<()> {
        let bytes = format::encode(Format::Tracking, tracking);
        self.records.commit(&Transaction::new().put(keys::tracking(id, remote), bytes))?;
        Ok(())
    }

    /// Returns what of a container is not where it is to be sent by itself; nothing where it is not sent by itself.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn unsent(&self, container: &Container) -> Result<Option<Unsent>> {
        let Some(remote) = container.policy.push.clone() else { return Ok(None) };
        let tracking = self.tracking(&container.id, &remote)?;
        let lacking = container.queue.as_ref().map(|queue| tracking.lacks(queue)).unwrap_or_default();
        let Lacking { generations, gone } = lacking;
        Ok(if generations.is_empty() { None } else { Some(Unsent { remote, generations, gone, tracking }) })
    }
}

fn unknown(name: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no remote {name}"))
        .hint("`perennial remote ls` lists them; `perennial remote add NAME HOST/PATH` adds one")
}
