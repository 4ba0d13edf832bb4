//! Reads an image that was written elsewhere as a generation: what [`super::export`] wrote, or what was built on it.
//!
//! ```text
//! image   [1][2][3][4]      begins with the layers of the base image: 3 and 4 become the generation's own layers
//! base    [1][2]            (as they were imported, or as an export writes them: then compared by their digests)
//!
//! image   [    all    ]     says that it shows a state over the base image: its whole tree is compared with the base's,
//! base    [1][2]            and one layer is made that shows it over the base
//! ```
//!
//! Everything is read and checked below `staging/`; the transaction that appends the generation is the commit point.
//! What an interrupted import leaves is freed by `gc`.

mod layers;

use super::records::{Doc, Note};
use super::views::Held;
use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use layers::{Staged, make_one};
use perennial_core::container::{Container, Phase};
use perennial_core::export::{ExportReport, begins_with, exported_config, imported_spec, settings_not_taken};
use perennial_core::generations::{Generation, Health, Kind, Queue};
use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId, Seq};
use perennial_core::image::Image;
use perennial_core::layers::{LayerKind, LayerRecord};
use perennial_core::time::Time;
use perennial_registry::{ImportOptions, Outline, Platform, Progress, Source};
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::Lock;
use perennial_store::tree;
use serde::Serialize;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::str::FromStr;

/// What to read, and for whom.
#[derive(Debug, Clone)]
pub struct ImportRequest<'a> {
    /// The container; made where there is none of that name.
    pub name: &'a ContainerName,
    /// Where the image is.
    pub source: &'a Source,
    /// The image to put it on, where its owner says so.
    pub base: Option<&'a str>,
}

/// How the image was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Taken {
    /// Its layers above those of the base image, each.
    Layers,
    /// What its tree shows otherwise than the base image's.
    Difference,
}

/// What was read.
#[derive(Debug, Clone)]
pub struct ImportedState {
    /// The container after it.
    pub container: Container,
    /// The new generation.
    pub seq: Seq,
    /// How it was read.
    pub taken: Taken,
    /// Layers it has of its own, newest first.
    pub layers: Vec<LayerId>,
    /// The image it lies on, by name or digest.
    pub base: String,
    /// Whether the container is new.
    pub is_new: bool,
    /// What the image says otherwise about running it, and is not taken over.
    pub settings_not_taken: Vec<&'static str>,
    /// Generations that left the queue for it.
    pub evicted: Vec<Seq>,
}

/// The container that gets the generation.
struct Receiver {
    doc: Doc<Container>,
    /// Where the container is there already.
    lock: Option<Lock>,
}

impl Engine {
    /// Reads an image as a generation of a container that does not run, or of a new one.
    ///
    /// # Errors
    /// Where the container runs, the image is damaged, hostile, for another machine, or lies on another image; nothing
    /// has changed then.
    pub fn import_generation(&self, request: &ImportRequest<'_>, progress: &dyn Progress) -> Result<ImportedState> {
        let options = ImportOptions::new(&self.root.staging_dir());
        let existing = self.receiver(request.name)?;
        let outline = perennial_registry::outline(request.source, &options)?;
        let (base, base_name) = self.base_of(request, existing.as_ref(), &outline)?;
        refuse_other_machine(&outline, &base)?;
        let held = self.hold_image(base)?;
        let says_so = request.base.is_some() || claimed(&outline).is_some_and(|digest| digest == held.image.digest);
        let taken = match self.begins_with(&outline, &held)? {
            Some(taken) => taken,
            None if says_so => Taken::Difference,
            None => return Err(lies_elsewhere(&base_name)),
        };
        let receiver = match existing {
            Some(receiver) => receiver,
            None => self.new_receiver(request.name, (&held.image, &base_name), &outline)?,
        };
        let mut staged = Staged::new(self, &held, taken)?;
        let read = perennial_registry::import(request.source, &options, &mut staged, progress)?;
        // What was decided is about the documents that were read first.
        if !read.layers.iter().rev().map(|layer| &layer.key.diff_id).eq(&outline.diff_ids) {
            let message = format!("{} changed while it was read", request.source);
            return Err(Failure::new(Code::Conflict, message).hint("nothing has changed here; try again"));
        }
        let own = match taken {
            Taken::Layers => staged.into_own(),
            Taken::Difference => make_one(self, staged, &held)?,
        };
        let mut made = Vec::new();
        let done = self
            .publish(&own, &receiver.doc.value, &held.image, &mut made)
            .and_then(|()| self.commit_import(request, receiver, (made.clone(), taken), (&held, base_name, &outline)));
        done.inspect_err(|_| {
            // What cannot be removed now is freed by `gc`.
            own.iter().for_each(|directory| tree::remove_tree(directory).unwrap_or_default());
            for record in &made {
                layer::discard(&self.root, &self.root.layer_dir(&record.id), &format!("layer-{}", record.id)).ok();
            }
            self.empty_trash();
        })
    }

    /// Returns the container of that name, locked, where there is one.
    fn receiver(&self, name: &ContainerName) -> Result<Option<Receiver>> {
        let (lock, doc) = match self.locked(name) {
            Ok(locked) => locked,
            Err(failure) if failure.code == Code::NotFound => return Ok(None),
            Err(failure) => return Err(failure),
        };
        if let Some(run) = doc.value.phase.run() {
            let message = format!("container {name} is {} (run {})", doc.value.phase.name(), run.id);
            return Err(Failure::new(Code::Conflict, message).hint(format!("`perennial stop {name}` ends it")));
        }
        // An empty queue in its place would hide that it was lost (A5).
        if doc.value.queue.is_none() && doc.value.phase != Phase::Created {
            let message = format!("container {name} is {} and has no queue", doc.value.phase.name());
            return Err(Failure::new(Code::Damaged, message).hint("`perennial doctor` says what can be done"));
        }
        Ok(Some(Receiver { doc, lock: Some(lock) }))
    }

    /// Returns a container that is not recorded yet, set as the image says.
    fn new_receiver(&self, name: &ContainerName, base: (&Image, &str), outline: &Outline) -> Result<Receiver> {
        let id = ContainerId::from_random(random()?);
        let (image, image_name) = base;
        let mut container = Container::new(id, name.clone(), (image.digest.clone(), image_name.to_owned()), self.now());
        container.spec = imported_spec(&outline.config, &image.config);
        Ok(Receiver { doc: Doc { value: container, revision: 0 }, lock: None })
    }

    /// Returns the image that the generation is to lie on, with its name.
    fn base_of(
        &self,
        request: &ImportRequest<'_>,
        receiver: Option<&Receiver>,
        outline: &Outline,
    ) -> Result<(Image, String)> {
        if let Some(name) = request.base {
            return Ok((self.image(&self.resolve_image_to_use(name)?)?.value, name.to_owned()));
        }
        if let Some(Receiver { doc, .. }) = receiver {
            let container = &doc.value;
            let current = container.queue.as_ref().and_then(Queue::current);
            let digest = current.map_or(&container.image, |generation| &generation.image);
            let name = match *digest == container.image {
                true => container.image_name.clone(),
                false => self.name_of_image(digest)?,
            };
            return Ok((self.image(digest)?.value, name));
        }
        let images: Vec<Image> = self.images()?.into_iter().map(|doc| doc.value).filter(|i| !i.believed).collect();
        let claimed = claimed(outline).and_then(|digest| images.iter().find(|image| image.digest == digest));
        let found = claimed.or_else(|| {
            let over = images.iter().filter(|image| begins_with(&outline.diff_ids, &oldest_first(image)));
            over.max_by_key(|image| image.layers.len())
        });
        match found {
            Some(image) => Ok((image.clone(), self.name_of_image(&image.digest)?)),
            None => Err(Failure::new(Code::NotFound, "the image that it lies on is not in the store").hint(format!(
                "give --image IMAGE where it is there under another digest; else `perennial image import {} NAME` \
                 brings the whole as an image, on which `perennial create` makes containers",
                request.source
            ))),
        }
    }

    /// Returns how an image is read that begins with the layers of the base image, as they were imported or as an export
    /// of them writes them; nothing where it begins with others.
    fn begins_with(&self, outline: &Outline, held: &Held) -> Result<Option<Taken>> {
        let base = oldest_first(&held.image);
        if begins_with(&outline.diff_ids, &base) {
            return Ok(Some(Taken::Layers));
        }
        if base.is_empty() || outline.diff_ids.len() < base.len() {
            return Ok(None);
        }
        let stack = self.open_stack(held.stack())?;
        let mut report = ExportReport::default();
        for (position, stated) in (0..base.len()).rev().zip(&outline.diff_ids) {
            if stack.diff_id(position, &mut report)? != *stated {
                return Ok(None);
            }
        }
        // What the generation removed of names that no layer can say must not be back because the base image has them.
        Ok(Some(if report.leaves_out_names() { Taken::Difference } else { Taken::Layers }))
    }

    /// Puts finished trees, newest first, into the store as layers that nothing names yet.
    fn publish(&self, own: &[PathBuf], container: &Container, base: &Image, made: &mut Vec<LayerRecord>) -> Result<()> {
        // From the lowest up, so that each can say what is below it.
        for directory in own.iter().rev() {
            self.refuse_secret(directory)?;
            let measure = tree::measure(tree::open_tree(directory)?.as_fd())?;
            let (id, created_at, unresolved) = (LayerId::from_random(random()?), self.now(), false);
            let (bytes, entries) = (measure.bytes, measure.entries);
            let origin = LayerOrigin::Import {
                container: container.id.clone(),
                name: container.name.to_string(),
                image: base.digest.clone(),
                below: Some(made.iter().map(|record| record.id.clone()).collect()),
            };
            made.insert(0, LayerRecord::of_tree(id.clone(), LayerKind::Delta, (bytes, entries), created_at));
            layer::prepare(&self.root, &LayerFile { id, created_at, origin, bytes, entries, unresolved })?;
        }
        if !made.is_empty() {
            perennial_runtime::mount::syncfs(&self.root.staging_dir())?;
        }
        for (directory, record) in own.iter().zip(made.iter()) {
            layer::adopt_tree(&self.root, &record.id, directory)?;
        }
        Ok(())
    }

    /// The commit point: appends the generation, and makes the container where it is new, in one transaction.
    fn commit_import(
        &self,
        request: &ImportRequest<'_>,
        receiver: Receiver,
        (records, taken): (Vec<LayerRecord>, Taken),
        (held, base_name, outline): (&Held, String, &Outline),
    ) -> Result<ImportedState> {
        let Receiver { mut doc, lock } = receiver;
        let is_new = lock.is_none();
        let transaction =
            records.iter().fold(Transaction::new(), |t, record| t.put(keys::layer(&record.id), record.encode()));
        let container = &mut doc.value;
        let generation = self.generation_of(request, &records, held, outline);
        let layers = generation.layers.clone();
        let policy = container.policy.clone();
        let appended = container.queue.get_or_insert_with(Queue::default).append(generation, &policy);
        container.note_retention(appended.is_blocked, self.now());
        container.image = held.image.digest.clone();
        container.image_name.clone_from(&base_name);
        container.phase = Phase::Dormant;
        let detail = format!("{} over image {base_name}", request.source);
        let note = Note { to: Some(appended.seq), ..Note::new("import", detail) };
        let doc = match is_new {
            true => self.insert_with(transaction, doc.value, note)?,
            false => {
                let _graph = self.root.lock_graph()?;
                // The image must still be there when the record that needs it is committed.
                self.image(&held.image.digest)?;
                let transaction = self.put_container(transaction, &mut doc, Some(note));
                doc.revision = self.records.commit(&transaction)?;
                doc
            }
        };
        let (own, _) = exported_config(&held.image.config, &doc.value.spec);
        let settings_not_taken = settings_not_taken(&outline.config, &own);
        let (container, seq, base, evicted) = (doc.value, appended.seq, base_name, appended.evicted);
        Ok(ImportedState { container, seq, taken, layers, base, is_new, settings_not_taken, evicted })
    }

    fn generation_of(
        &self,
        request: &ImportRequest<'_>,
        records: &[LayerRecord],
        held: &Held,
        outline: &Outline,
    ) -> Generation {
        let sum = |of: fn(&LayerRecord) -> u64| records.iter().map(of).fold(0, u64::saturating_add);
        Generation {
            seq: Seq(0),
            exited_at: self.now(),
            kind: Kind::Import,
            // Nothing has run in this state here yet, so nothing speaks for it.
            health: Health::Unknown,
            exit_code: None,
            parent: None,
            image: held.image.digest.clone(),
            layers: records.iter().map(|record| record.id.clone()).collect(),
            mount_options: Vec::new(),
            run: None,
            bytes: sum(|record| record.bytes),
            entries: sum(|record| record.entries),
            pinned: false,
            quarantined: false,
            clean: false,
            cold: false,
            verified_at: None,
            note: Some(format!("imported from {}{}", request.source, left_as(outline))),
            by: self.actor.clone(),
            extra: BTreeMap::new(),
        }
    }
}

/// Returns what state it is, as the image says it where it says it well.
fn left_as(outline: &Outline) -> String {
    fn said<T: FromStr>(outline: &Outline, name: &str) -> Option<T> {
        outline.annotations.get(name)?.parse().ok()
    }
    let name = said::<ContainerName>(outline, super::export::CONTAINER);
    let (seq, at) = (said::<u64>(outline, super::export::SEQ), said::<Time>(outline, super::export::EXITED_AT));
    match (name, seq, at) {
        (Some(name), Some(seq), Some(at)) => format!(" ({name}@{seq}, left at {at})"),
        _ => String::new(),
    }
}

fn oldest_first(image: &Image) -> Vec<Digest> {
    image.diff_ids.iter().rev().cloned().collect()
}

/// Returns the image on which an image says that the state in it lay.
fn claimed(outline: &Outline) -> Option<Digest> {
    outline.annotations.get(super::export::IMAGE)?.parse().ok()
}

fn lies_elsewhere(base_name: &str) -> Failure {
    let message = format!("it does not lie on image {base_name}: it begins with other layers, and does not say so");
    Failure::new(Code::Conflict, message).hint(
        "give --image IMAGE to say on which image to put it: what it shows otherwise becomes one layer; or bring it as \
         an image with `perennial image import` and use `perennial rebase`",
    )
}

fn refuse_other_machine(outline: &Outline, base: &Image) -> Result<()> {
    let Some(found) = &outline.config.architecture else { return Ok(()) };
    let wanted = base.config.architecture.clone().unwrap_or_else(|| Platform::host().architecture);
    if *found == wanted {
        return Ok(());
    }
    Err(Failure::new(Code::Conflict, format!("it is for {found}, and the image below it for {wanted}"))
        .hint("export or build it for this machine"))
}
