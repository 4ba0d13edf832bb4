//! Eviction by hand and for a bound on bytes, and what it frees, to the byte, before it is done.
//!
//! A generation's own layer goes with it unless newer ones lie on it. Then it becomes one with the layer above, and what
//! that hides of it goes. Both are known from the manifests alone.

use super::Engine;
use super::records::{Doc, Note};
use super::settle::Step;
use super::stacks::on_different_grounds;
use super::trees::borrow_all;
use crate::clock;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{ConditionKind, Container};
use perennial_core::generations::{Generation, Queue, SealPolicy};
use perennial_core::id::{ContainerName, LayerId, Seq};
use perennial_core::layers::compact::{Demand, is_pending, plan_compact};
use perennial_core::layers::{DEPTH_MAX, Form, LayerKind};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::repack::pack_loss;
use perennial_store::cold::{Cold, Packer};
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::root::{LockMode, Wait};
use perennial_store::sealed::{self, IMAGE, MANIFEST};
use serde::Serialize;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

/// Unit of `st_blocks`, in bytes.
const BLOCK_BYTES: u64 = 512;
/// How often an eviction that gave way to somebody tries again to put layers together, and how long it waits.
const TRIES_MAX: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// What the eviction of a generation frees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Frees {
    /// Contents that nothing shows any more.
    pub objects: u64,
    /// Bytes they take on disk.
    pub bytes: u64,
    /// Layers that go at once.
    pub layers: Vec<LayerId>,
    /// Layers that become one, newest first.
    pub merged: Vec<LayerId>,
    /// Layers among them that are not sealed: what they free is in `directory_bytes` instead, as far as it is known.
    pub directories: Vec<LayerId>,
    /// Bytes of directories that go.
    pub directory_bytes: u64,
    /// What goes of packs; not part of `bytes`.
    pub packs: PackFrees,
}

/// What an eviction frees in packs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PackFrees {
    /// Contents among `objects` that are in packs only.
    pub objects: u64,
    /// Packs that go at once, since nothing in them is needed any more.
    pub removed: u64,
    /// Bytes they take on disk.
    pub bytes: u64,
    /// Bytes in packs that stay because others need the rest of them: freed when `gc` writes those anew, which it does when
    /// a third is not needed.
    pub waiting_bytes: u64,
}

impl Engine {
    /// Says what evicting a generation would free.
    ///
    /// # Errors
    /// Where it is unknown or protected, or manifests cannot be read.
    pub fn frees(&self, name: &ContainerName, seq: Seq) -> Result<Frees> {
        let container = self.seen(name)?.value;
        let generation = evictable(name, container.queue.as_ref(), seq)?.clone();
        let docs = self.containers()?;
        let mut left: Vec<Generation> = Vec::new();
        for doc in docs {
            let generations = doc.value.queue.into_iter().flat_map(|queue| queue.generations);
            left.extend(generations.filter(|other| doc.value.id != container.id || other.seq != seq));
        }
        let mut named: BTreeSet<LayerId> = left.iter().flat_map(|other| other.layers.iter().cloned()).collect();
        named.extend(self.images()?.into_iter().flat_map(|image| image.value.layers));
        named.extend(self.layers_in_use()?);
        let mut frees = Frees {
            layers: generation.layers.iter().filter(|id| !named.contains(*id)).cloned().collect(),
            merged: self.would_merge(&generation, &left)?,
            ..Frees::default()
        };
        self.add_up(&mut frees)?;
        Ok(frees)
    }

    /// Layers that would become one because a generation does not end on its own layer any more.
    fn would_merge(&self, generation: &Generation, left: &[Generation]) -> Result<Vec<LayerId>> {
        let Some(own) = generation.layers.first() else { return Ok(Vec::new()) };
        let stacks: Vec<&[LayerId]> = left.iter().map(|other| other.layers.as_slice()).collect();
        let mut sealed = self.mergeable(&stacks.iter().flat_map(|stack| stack.iter()).cloned().collect(), left)?;
        while let Some(plan) = plan_compact(&stacks, &sealed, Demand::Bytes, DEPTH_MAX) {
            if plan.of.contains(own) {
                return Ok(plan.of);
            }
            // One that waits already: it frees nothing of this generation's.
            sealed.retain(|id, _| !plan.of.contains(id));
        }
        Ok(Vec::new())
    }

    fn add_up(&self, frees: &mut Frees) -> Result<()> {
        let mut gone = Vec::new();
        for id in frees.layers.iter().chain(&frees.merged) {
            match self.layer(id)?.map(|doc| doc.value) {
                Some(record) if record.form == Form::Sealed => gone.push(id.clone()),
                Some(record) => {
                    frees.directories.push(id.clone());
                    frees.directory_bytes = frees.directory_bytes.saturating_add(record.bytes);
                }
                None => {}
            }
        }
        let mut kept = Vec::new();
        for id in layer::list(&self.root)?.into_iter().filter(|id| !gone.contains(id)) {
            if self.layer(&id)?.is_some_and(|doc| doc.value.form == Form::Sealed) {
                kept.push(id);
            }
        }
        let merged = match frees.merged.last() {
            None => BTreeSet::new(),
            Some(bottom) => {
                let below = self.open_layers(&self.below(bottom)?.unwrap_or_default())?;
                sealed::objects_of_merge(&self.root, &frees.merged, &borrow_all(&below))?
            }
        };
        let objects = Objects::open(&self.root)?;
        let freed = sealed::freed(&self.root, &objects, (&gone, &kept), &merged)?;
        (frees.objects, frees.bytes) = (freed.objects, freed.bytes);
        if self.has_packs()? && !gone.is_empty() {
            frees.packs = self.packs_free(&objects, &gone, &merged)?;
        }
        Ok(())
    }

    /// Says what packs lose when layers go, and objects of those that are made of them stay.
    fn packs_free(&self, objects: &Objects, gone: &[LayerId], merged: &BTreeSet<ObjectId>) -> Result<PackFrees> {
        let before = self.named_objects()?;
        let mut after = merged.clone();
        for id in layer::list(&self.root)?.into_iter().filter(|id| !gone.contains(id)) {
            self.objects_of(&self.root.layer_dir(&id), &mut |object| {
                after.insert(object);
            })?;
        }
        let mut cold = Cold::open(&self.root)?;
        let loss = pack_loss(
            &cold.pack_uses(&mut |object| before.contains(object))?,
            &cold.pack_uses(&mut |object| after.contains(object))?,
        );
        let mut frees = PackFrees { waiting_bytes: loss.waiting_bytes, ..PackFrees::default() };
        for object in before.difference(&after) {
            if !objects.exists(object)? && cold.contains(object)? {
                frees.objects = frees.objects.saturating_add(1);
            }
        }
        self.add_packs(&mut frees, &loss.removed);
        Ok(frees)
    }

    fn add_packs(&self, frees: &mut PackFrees, packs: &[ObjectId]) {
        for pack in packs {
            let path = self.root.path().join("packs").join(format!("{pack}.pack"));
            let blocks = path.symlink_metadata().map_or(0, |metadata| metadata.blocks());
            frees.removed = frees.removed.saturating_add(1);
            frees.bytes = frees.bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
        }
    }

    /// Removes packs of which nothing is needed any more; `false` where somebody packs or stores objects.
    fn remove_unneeded_packs(&self) -> Result<bool> {
        if !self.has_packs()? {
            return Ok(true);
        }
        let Some(mut packer) = Packer::open(&self.root, Wait::Never)? else { return Ok(false) };
        // A layer that is made of others while manifests are read would be missed, and they be gone.
        let Some(lock) = self.root.lock_objects(LockMode::Exclusive, Wait::Never)? else { return Ok(false) };
        let named = self.named_objects()?;
        drop(lock);
        packer.remove_unneeded(&self.root, &mut |object| named.contains(object))?;
        Ok(true)
    }

    /// How urgent space is for a container.
    ///
    /// # Errors
    /// Where its layers cannot be read.
    pub fn demand_of(&self, container: &Container) -> Result<Demand> {
        Ok(match container.policy.keep_bytes {
            Some(bound) if self.bytes_of(container)? > bound => Demand::Bytes,
            Some(_) | None => Demand::Usual,
        })
    }

    /// Evicts one generation where the container is over its byte bound; folding then frees what only it needed.
    pub(super) fn evict_by_bytes(&self, mut doc: Doc<Container>, bytes_before: &mut u64) -> Result<bool> {
        let Some(bound) = doc.value.policy.keep_bytes else { return Ok(false) };
        let used = self.bytes_of(&doc.value)?;
        // What was evicted before, by whomever, may not have been freed yet: more would go than has to.
        if used <= bound || self.is_merge_pending(&doc.value)? {
            return Ok(false);
        }
        let now = self.now();
        let Some(queue) = &mut doc.value.queue else { return Ok(false) };
        let frees_something = used < *bytes_before;
        let Some(seq) = queue.head_for_eviction().filter(|_| frees_something) else {
            if !doc.value.has(ConditionKind::RetentionBlocked) {
                doc.value.note_bytes_blocked(bound, now);
                self.save(&mut doc, None)?;
            }
            return Ok(false);
        };
        *bytes_before = used;
        queue.remove(seq);
        let detail = format!("evicted {seq}: {used} bytes are more than keep-bytes {bound}");
        self.save(&mut doc, Some(Note { from: Some(seq), ..Note::new("evict", detail) }))?;
        Ok(true)
    }

    /// Whether layers of a container wait to be put together: until they are sealed, or nothing has them mounted.
    fn is_merge_pending(&self, container: &Container) -> Result<bool> {
        let own = container.queue.as_ref().map(Queue::layers).unwrap_or_default();
        let touching = self.generations_with(&own)?;
        let stacks: Vec<&[LayerId]> = touching.iter().map(|generation| generation.layers.as_slice()).collect();
        let torn = on_different_grounds(&touching);
        let (mut sealable, mut directories) = (BTreeSet::new(), BTreeSet::new());
        for id in own.into_iter().filter(|id| !torn.contains(id)) {
            let Some(record) = self.layer(&id)?.map(|doc| doc.value) else { continue };
            if record.kind != LayerKind::Delta {
                continue;
            }
            let is_sealed = record.form == Form::Sealed;
            if !is_sealed {
                directories.insert(id.clone());
            }
            if is_sealed || container.policy.seal == SealPolicy::Auto && record.unsealable.is_none() {
                sealable.insert(id);
            }
        }
        Ok(is_pending(&stacks, &sealable, &directories))
    }

    /// Bytes on disk of the distinct layers of a container's generations: contents of sealed ones once, with what their
    /// manifests and images take.
    pub fn bytes_of(&self, container: &Container) -> Result<u64> {
        let mut bytes = 0_u64;
        let mut contents = BTreeSet::new();
        for id in container.queue.as_ref().map(Queue::layers).unwrap_or_default() {
            let Some(record) = self.layer(&id)?.map(|doc| doc.value) else { continue };
            match record.form {
                Form::Dir => bytes = bytes.saturating_add(record.bytes),
                Form::Sealed => {
                    let directory = self.root.layer_dir(&id);
                    for name in [MANIFEST, IMAGE] {
                        let metadata = directory.join(name).symlink_metadata();
                        let blocks = metadata.map_or(0, |metadata| metadata.blocks());
                        bytes = bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
                    }
                    let read = self.objects_of(&directory, &mut |object| {
                        contents.insert(object);
                    });
                    if read.is_err() {
                        // It is damaged: what was recorded is the best there is.
                        bytes = bytes.saturating_add(record.bytes);
                    }
                }
            }
        }
        if !contents.is_empty() {
            let objects = Objects::open(&self.root)?;
            for object in contents {
                bytes = bytes.saturating_add(objects.stat(&object)?.map_or(0, |stat| stat.allocated));
            }
        }
        Ok(bytes)
    }

    /// Evicts a generation, and frees what only it showed.
    ///
    /// # Errors
    /// As [`Engine::frees`]; the generation is then where it was.
    pub fn evict(&self, name: &ContainerName, seq: Seq) -> Result<Frees> {
        let mut frees = self.frees(name, seq)?;
        let id = {
            let (_lock, mut doc) = self.locked(name)?;
            evictable(name, doc.value.queue.as_ref(), seq)?;
            if let Some(queue) = &mut doc.value.queue {
                queue.remove(seq);
            }
            let note = Note::new("evict", format!("evicted [{seq}] by hand"));
            self.save(&mut doc, Some(Note { from: Some(seq), ..note }))?;
            doc.value.id.clone()
        };
        for _ in 0..TRIES_MAX {
            let doc = self.container(&id)?;
            let lock = self.lock_container_politely(&id)?;
            self.free_unused()?;
            let step = self.compact_step(&doc, Demand::Bytes)?;
            drop(lock);
            match step {
                Step::Did => {}
                Step::Nothing => break,
                Step::GaveWay => clock::wait(PAUSE),
            }
        }
        self.free_unused()?;
        self.keep_container_copies();
        if frees.packs.removed > 0 && !self.remove_unneeded_packs()? {
            // They wait, too.
            let PackFrees { objects, bytes, waiting_bytes, .. } = frees.packs;
            let waiting_bytes = waiting_bytes.saturating_add(bytes);
            frees.packs = PackFrees { objects, waiting_bytes, ..PackFrees::default() };
        }
        self.empty_trash();
        Ok(frees)
    }
}

/// Returns a generation if eviction may take it.
fn evictable<'a>(name: &ContainerName, queue: Option<&'a Queue>, seq: Seq) -> Result<&'a Generation> {
    let unknown = || {
        Failure::new(Code::NotFound, format!("container {name} has no generation {seq}"))
            .hint(format!("`perennial generations {name}` lists them"))
    };
    let queue = queue.ok_or_else(unknown)?;
    let generation = queue.get(seq).ok_or_else(unknown)?;
    if queue.protected().contains(&seq) {
        let message = format!("generation {name}@{seq} is protected: it is current, pinned, or the last good one");
        return Err(Failure::new(Code::Conflict, message)
            .hint(format!("`perennial unpin {name}@{seq}`, or `perennial rollback` to another one, first")));
    }
    Ok(generation)
}
