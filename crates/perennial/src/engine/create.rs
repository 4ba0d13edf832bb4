//! Containers that do not run: make, set, fork, remove.

use super::records::{Doc, Note};
use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Phase};
use perennial_core::generations::choose::{Selector, choose};
use perennial_core::generations::{Generation, Health, Kind, Policy, Queue};
use perennial_core::id::{ContainerId, ContainerName, Seq};
use perennial_core::image::Image;
use perennial_core::spec::ContainerSpec;
use perennial_store::layer;
use perennial_store::records::{RecordError, RecordStore as _, Transaction, keys};
use std::collections::BTreeMap;

impl Engine {
    /// Makes a container that does not run yet.
    ///
    /// # Errors
    /// Where the name is taken, the image is unknown or the policy is not possible.
    pub fn create(
        &self,
        name: &ContainerName,
        image_name: &str,
        spec: ContainerSpec,
        policy: Policy,
    ) -> Result<Doc<Container>> {
        policy.check()?;
        if let Some(remote) = &policy.push {
            self.remote(Some(remote))?;
        }
        let image = self.resolve_image_to_use(image_name)?;
        let id = ContainerId::from_random(random()?);
        let mut container = Container::new(id, name.clone(), (image, image_name.to_owned()), self.now());
        container.spec = spec;
        container.policy = policy;
        let note = Note::new("create", format!("image {image_name}"));
        self.insert(container, note)
    }

    fn insert(&self, container: Container, note: Note) -> Result<Doc<Container>> {
        self.insert_with(Transaction::new(), container, note)
    }

    /// Puts a new container and its name into the records, with what else is in a transaction.
    ///
    /// # Errors
    /// Where the name is taken.
    pub fn insert_with(&self, transaction: Transaction, container: Container, note: Note) -> Result<Doc<Container>> {
        // The image must still be there when the record that needs it is committed.
        let _graph = self.root.lock_graph()?;
        self.image(&container.image)?;
        let name_key = keys::name(&container.name);
        let mut doc = Doc { value: container, revision: 0 };
        let transaction = transaction.expect(&name_key, 0).put(&name_key, doc.value.id.as_str().as_bytes().to_vec());
        let transaction = self.put_container(transaction, &mut doc, Some(note));
        match self.records.commit(&transaction) {
            Ok(revision) => doc.revision = revision,
            Err(RecordError::Conflict { key }) if key == name_key => {
                let name = &doc.value.name;
                return Err(Failure::new(Code::Conflict, format!("container {name} exists already")).hint(format!(
                    "`perennial start {name}` starts it; `perennial rm {name}` removes it with its generations"
                )));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(doc)
    }

    /// Changes a container's retention; it takes effect at the next exit (A33).
    ///
    /// # Errors
    /// Where the container is unknown or the policy is not possible.
    pub fn set_policy(&self, name: &ContainerName, change: impl FnOnce(&mut Policy)) -> Result<Policy> {
        let (_lock, mut doc) = self.locked(name)?;
        let mut policy = doc.value.policy.clone();
        change(&mut policy);
        policy.check()?;
        if let Some(remote) = &policy.push {
            self.remote(Some(remote))?;
        }
        doc.value.policy = policy.clone();
        let bytes = policy.keep_bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
        let note = Note::new("set", format!("keep {}, keep-bytes {bytes}", policy.keep));
        self.save(&mut doc, Some(note))?;
        Ok(policy)
    }

    /// Makes a new container from a generation of another: it shares its layers, nothing is copied.
    ///
    /// # Errors
    /// Where the source, its generation or the new name do not allow it.
    pub fn fork(
        &self,
        source: &ContainerName,
        selector: Option<&Selector>,
        name: &ContainerName,
    ) -> Result<Doc<Container>> {
        let (_lock, doc) = self.locked(source)?;
        let queue = doc.value.queue.clone().unwrap_or_default();
        let seq = match (selector, queue.current) {
            (Some(selector), _) => choose(&queue, selector)?,
            (None, Some(current)) => choose(&queue, &Selector::Seq(current))?,
            (None, None) => return Err(perennial_core::generations::choose::ChooseError::Empty.into()),
        };
        let Some(origin) = queue.get(seq) else {
            return Err(Failure::new(Code::NotFound, format!("there is no generation {source}@{seq}")));
        };
        self.check_intact(source, origin)?;
        let id = ContainerId::from_random(random()?);
        let image = (origin.image.clone(), doc.value.image_name.clone());
        let mut fork = Container::new(id, name.clone(), image, self.now());
        fork.spec = doc.value.spec.clone();
        fork.policy = doc.value.policy.clone();
        let mut queue = Queue::default();
        queue.append(self.derived(origin, Kind::Fork, None, format!("fork of {source}@{seq}")), &fork.policy);
        fork.queue = Some(queue);
        fork.phase = Phase::Dormant;
        let note = Note { action: "fork", detail: format!("from {source}@{seq}"), from: None, to: Some(Seq(1)) };
        self.insert(fork, note)
    }

    /// A generation with the layers of another, made by a command.
    pub fn derived(&self, of: &Generation, kind: Kind, parent: Option<Seq>, note: String) -> Generation {
        Generation {
            seq: Seq(0),
            exited_at: self.now(),
            kind,
            health: of.health,
            exit_code: None,
            parent,
            image: of.image.clone(),
            layers: of.layers.clone(),
            mount_options: of.mount_options.clone(),
            run: None,
            bytes: 0,
            entries: 0,
            pinned: false,
            quarantined: false,
            cold: of.cold,
            verified_at: None,
            clean: of.clean,
            note: Some(note),
            by: self.actor.clone(),
            extra: BTreeMap::new(),
        }
    }

    /// Refuses a generation whose data is not all there; marks it damaged, so that the next one is offered (A29).
    pub fn check_intact(&self, name: &ContainerName, generation: &Generation) -> Result<()> {
        self.check_image_intact(&self.image(&generation.image)?.value)?;
        for id in &generation.layers {
            if let Some(wrong) = self.wrong_with(id)? {
                let seq = generation.seq;
                return Err(Failure::new(
                    Code::Damaged,
                    format!("generation {name}@{seq} is damaged: its layer {id} {wrong}"),
                )
                .hint(format!(
                    "nothing was changed; `perennial rollback {name} --to SEQ` goes to an intact generation"
                )));
            }
        }
        if generation.health == Health::Damaged {
            let message = format!("generation {name}@{} is marked damaged", generation.seq);
            return Err(Failure::new(Code::Damaged, message)
                .hint(format!("`perennial rollback {name} --to SEQ` goes to an intact generation")));
        }
        Ok(())
    }

    /// Refuses an image whose data is not all there: a run would see only a part of it.
    ///
    /// # Errors
    /// Where a layer is missing.
    pub fn check_image_intact(&self, image: &Image) -> Result<()> {
        let mut found = None;
        for id in &image.layers {
            found = self.wrong_with(id)?.map(|wrong| (id, wrong)).or(found);
        }
        let Some((layer, wrong)) = found else { return Ok(()) };
        let message = format!("image {} is damaged: its layer {layer} {wrong}", image.digest);
        Err(Failure::new(Code::Damaged, message)
            .hint("nothing was changed; import or pull the same image again, and what builds on it works again"))
    }

    /// Removes a container with its generations. Layers that only it used go to the trash.
    ///
    /// # Errors
    /// Where it is unknown or still runs.
    pub fn remove(&self, name: &ContainerName) -> Result<()> {
        let (lock, doc) = self.locked(name)?;
        if let Some(run) = doc.value.phase.run() {
            let phase = doc.value.phase.name();
            return Err(Failure::new(Code::Conflict, format!("container {name} is {phase} (run {})", run.id))
                .hint(format!("stop it first, or use `perennial rm --force {name}`")));
        }
        let graph = self.root.lock_graph()?;
        let key = keys::container(&doc.value.id);
        let mut transaction =
            Transaction::new().expect(&key, doc.revision).delete(&key).delete(keys::name(&doc.value.name));
        for entry in self.events(&doc.value.id)? {
            transaction = transaction.delete(keys::event(&doc.value.id, entry.number));
        }
        for (key, _) in self.records.list(&keys::trackings(&doc.value.id))? {
            transaction = transaction.delete(key);
        }
        self.records.commit(&transaction)?;
        drop(graph);
        // What only it used goes now; what an interruption leaves, the next collection finds.
        self.free_unused()?;
        layer::discard(&self.root, &self.log_dir(&doc.value.id), &format!("logs-{}", doc.value.id))?;
        lock.remove_file();
        self.empty_trash();
        Ok(())
    }
}
