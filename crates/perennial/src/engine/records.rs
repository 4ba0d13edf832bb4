//! Typed records, changed by compare-and-swap.

use super::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::event::{ENTRIES_MAX, Entry};
use perennial_core::format::{self, Format};
use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId, ParseIdError, Seq};
use perennial_core::image::Image;
use perennial_core::layers::LayerRecord;
use perennial_core::time::Time;
use perennial_store::records::{RecordError, RecordStore as _, Transaction, Versioned, keys};
use perennial_store::root::{Lock, Wait};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A decoded record with the revision it was read at.
#[derive(Debug, Clone)]
pub struct Doc<T> {
    /// The record.
    pub value: T,
    /// Its revision, for the compare-and-swap.
    pub revision: u64,
}

/// A read-only view of a generation, mounted by `browse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Where it is mounted, absolute.
    pub target: String,
    /// Container it shows.
    pub container: ContainerName,
    /// Generation it shows.
    pub seq: Seq,
    /// Layers it uses.
    pub layers: Vec<LayerId>,
    /// Image it uses.
    pub image: Digest,
    /// When it was mounted.
    pub since: Time,
}

/// An entry for the event log before it has a number.
#[derive(Debug, Clone)]
pub struct Note {
    /// What was done.
    pub action: &'static str,
    /// Particulars.
    pub detail: String,
    /// Generation before.
    pub from: Option<Seq>,
    /// Generation after.
    pub to: Option<Seq>,
}

impl Note {
    /// Makes a note without generations.
    pub fn new(action: &'static str, detail: impl Into<String>) -> Self {
        Self { action, detail: detail.into(), from: None, to: None }
    }
}

fn decode<T: DeserializeOwned>(format: Format, key: &str, record: &Versioned) -> Result<Doc<T>> {
    let value =
        format::decode(format, &record.bytes).map_err(|source| RecordError::Record { key: key.to_owned(), source })?;
    Ok(Doc { value, revision: record.revision })
}

impl Engine {
    pub(super) fn read<T: DeserializeOwned>(&self, format: Format, key: &str) -> Result<Option<Doc<T>>> {
        match self.records.get(key)? {
            Some(record) => decode(format, key, &record).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn read_all<T: DeserializeOwned>(&self, format: Format, prefix: &str) -> Result<Vec<Doc<T>>> {
        self.records.list(prefix)?.iter().map(|(key, record)| decode(format, key, record)).collect()
    }

    /// Parses a container's name.
    pub fn parse_name(text: &str) -> Result<ContainerName> {
        text.parse().map_err(|error: ParseIdError| Failure::new(Code::Usage, error))
    }

    /// Returns the id behind a name.
    pub fn id_of(&self, name: &ContainerName) -> Result<ContainerId> {
        let unknown = || {
            Failure::new(Code::NotFound, format!("there is no container {name}"))
                .hint(format!("`perennial ps --all` lists them; `perennial create {name} --image IMAGE` makes it"))
        };
        let record = self.records.get(&keys::name(name))?.ok_or_else(unknown)?;
        let id = String::from_utf8_lossy(&record.bytes).parse().map_err(|error: ParseIdError| {
            Failure::new(Code::Damaged, format!("record {}: {error}", keys::name(name)))
        })?;
        Ok(id)
    }

    /// Returns a container by its id.
    pub fn container(&self, id: &ContainerId) -> Result<Doc<Container>> {
        let gone = || Failure::new(Code::NotFound, format!("container {id} has been removed"));
        self.read(Format::Container, &keys::container(id))?.ok_or_else(gone)
    }

    /// Returns a container by its name.
    pub fn container_named(&self, name: &ContainerName) -> Result<Doc<Container>> {
        self.container(&self.id_of(name)?)
    }

    /// Locks a container by its name against other commands and puts right what a dead one left.
    pub fn locked(&self, name: &ContainerName) -> Result<(Lock, Doc<Container>)> {
        let id = self.id_of(name)?;
        let lock = self.lock_container_politely(&id)?;
        match self.container(&id) {
            Ok(doc) => Ok((lock, self.recover_locked(doc)?)),
            Err(failure) => {
                if failure.code == Code::NotFound {
                    // It was removed while we waited; our lock's file is nobody's any more.
                    lock.remove_file();
                }
                Err(failure)
            }
        }
    }

    /// Takes a container's lock; where background work holds it, asks that to give way.
    pub fn lock_container_politely(&self, id: &ContainerId) -> Result<Lock> {
        if let Some(lock) = self.root.lock_container(id, Wait::Never)? {
            return Ok(lock);
        }
        let yielding = self.root.ask_to_yield()?;
        let lock = self.root.lock_container(id, Wait::Forever)?;
        drop(yielding);
        lock.ok_or_else(|| Failure::new(Code::Conflict, format!("container {id} is locked")))
    }

    /// Returns all containers, in order of their ids.
    pub fn containers(&self) -> Result<Vec<Doc<Container>>> {
        self.read_all(Format::Container, keys::CONTAINERS)
    }

    /// Returns an image by its digest.
    pub fn image(&self, digest: &Digest) -> Result<Doc<Image>> {
        let gone = || {
            Failure::new(Code::Damaged, format!("image {digest} is not in the store"))
                .hint("import or pull the same image again: generations are bound to its digest")
        };
        self.read(Format::Image, &keys::image(digest))?.ok_or_else(gone)
    }

    /// Returns all images.
    pub fn images(&self) -> Result<Vec<Doc<Image>>> {
        self.read_all(Format::Image, keys::IMAGES)
    }

    /// Returns the digest an image's name means, where the name is known.
    pub fn tag(&self, name: &str) -> Result<Option<Digest>> {
        let Some(record) = self.records.get(&keys::tag(name))? else { return Ok(None) };
        let digest = String::from_utf8_lossy(&record.bytes).parse().map_err(|error: ParseIdError| {
            Failure::new(Code::Damaged, format!("record {}: {error}", keys::tag(name)))
        })?;
        Ok(Some(digest))
    }

    /// Returns the names of images with their digests.
    pub fn tags(&self) -> Result<Vec<(String, Digest)>> {
        let mut tags = Vec::new();
        for (key, record) in self.records.list(keys::TAGS)? {
            let name = key.strip_prefix(keys::TAGS).unwrap_or(&key).to_owned();
            if let Ok(digest) = String::from_utf8_lossy(&record.bytes).parse() {
                tags.push((name, digest));
            }
        }
        Ok(tags)
    }

    /// Returns a layer's record.
    pub fn layer(&self, id: &LayerId) -> Result<Option<Doc<LayerRecord>>> {
        self.read(Format::Layer, &keys::layer(id))
    }

    /// Returns all layers' records.
    pub fn layers(&self) -> Result<Vec<Doc<LayerRecord>>> {
        self.read_all(Format::Layer, keys::LAYERS)
    }

    /// Returns all views.
    pub fn views(&self) -> Result<Vec<(String, Doc<View>)>> {
        let records = self.records.list(keys::VIEWS)?;
        records.iter().map(|(key, record)| Ok((key.clone(), decode(Format::View, key, record)?))).collect()
    }

    /// Returns a container's event log, oldest first.
    pub fn events(&self, id: &ContainerId) -> Result<Vec<Entry>> {
        let docs = self.read_all(Format::Event, &keys::events(id))?;
        Ok(docs.into_iter().map(|doc| doc.value).collect())
    }

    /// Adds the change of a container, with a note for its event log, to a transaction.
    pub fn put_container(&self, transaction: Transaction, doc: &mut Doc<Container>, note: Option<Note>) -> Transaction {
        let id = doc.value.id.clone();
        let mut transaction = transaction.expect(keys::container(&id), doc.revision);
        if let Some(note) = note {
            let number = doc.value.next_event;
            doc.value.next_event = number.saturating_add(1);
            let entry = Entry {
                number,
                at: self.now(),
                by: self.actor.clone(),
                action: note.action.to_owned(),
                detail: note.detail,
                from: note.from,
                to: note.to,
            };
            transaction = transaction.put(keys::event(&id, number), format::encode(Format::Event, &entry));
            if number > ENTRIES_MAX {
                transaction = transaction.delete(keys::event(&id, number.saturating_sub(ENTRIES_MAX)));
            }
        }
        transaction.put(keys::container(&id), format::encode(Format::Container, &doc.value))
    }

    /// Commits the change of one container.
    pub fn save(&self, doc: &mut Doc<Container>, note: Option<Note>) -> Result<()> {
        let transaction = self.put_container(Transaction::new(), doc, note);
        doc.revision = self.records.commit(&transaction)?;
        Ok(())
    }
}
