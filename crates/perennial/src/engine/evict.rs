//! Eviction by hand, and what it frees, to the byte, before it is done.
//!
//! A generation's own layer goes with it unless newer ones lie on it. Then it becomes one with the layer above, and what
//! that hides of it goes. Both are known from the manifests alone.

use super::Engine;
use super::records::Note;
use super::settle::{Step, on_different_grounds};
use super::trees::borrow_all;
use crate::clock;
use crate::failure::{Code, Failure, Result};
use perennial_core::generations::{Generation, Queue};
use perennial_core::id::{ContainerName, LayerId, Seq};
use perennial_core::layers::compact::{Demand, SealedFacts, plan_compact};
use perennial_core::layers::{DEPTH_MAX, Form, LayerKind};
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::sealed;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
        let left: Vec<&Generation> = docs
            .iter()
            .flat_map(|doc| doc.value.queue.iter().map(move |queue| (&doc.value.id, queue)))
            .flat_map(|(id, queue)| queue.generations.iter().map(move |other| (id, other)))
            .filter(|(id, other)| **id != container.id || other.seq != seq)
            .map(|(_, other)| other)
            .collect();
        let in_use = self.layers_in_use()?;
        let mut named: BTreeSet<LayerId> = left.iter().flat_map(|other| other.layers.iter().cloned()).collect();
        named.extend(self.images()?.into_iter().flat_map(|image| image.value.layers));
        named.extend(in_use.iter().cloned());
        let mut frees = Frees {
            layers: generation.layers.iter().filter(|id| !named.contains(*id)).cloned().collect(),
            merged: self.would_merge(&generation, &left, &in_use)?,
            ..Frees::default()
        };
        self.add_up(&mut frees)?;
        Ok(frees)
    }

    /// Layers that would become one because a generation does not end on its own layer any more.
    fn would_merge(
        &self,
        generation: &Generation,
        left: &[&Generation],
        in_use: &BTreeSet<LayerId>,
    ) -> Result<Vec<LayerId>> {
        let Some(own) = generation.layers.first() else { return Ok(Vec::new()) };
        let mut torn = on_different_grounds(left);
        torn.extend(self.above_unresolved(left)?);
        let stacks: Vec<&[LayerId]> = left.iter().map(|other| other.layers.as_slice()).collect();
        let mut sealed = BTreeMap::new();
        for id in stacks.iter().flat_map(|stack| stack.iter()).filter(|id| !in_use.contains(*id) && !torn.contains(*id))
        {
            if let Some(record) = self.layer(id)?.map(|doc| doc.value)
                && record.form == Form::Sealed
                && record.kind == LayerKind::Delta
            {
                sealed.insert(id.clone(), SealedFacts { entries: record.entries, hides: 0 });
            }
        }
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
        Ok(())
    }

    /// Evicts a generation, and frees what only it showed.
    ///
    /// # Errors
    /// As [`Engine::frees`]; the generation is then where it was.
    pub fn evict(&self, name: &ContainerName, seq: Seq) -> Result<Frees> {
        let frees = self.frees(name, seq)?;
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
