//! Work after an exit that nobody waits for: fold and merge layers, keep to the byte bound, free space.
//!
//! Everything here can be interrupted at any instant and gives way to a command that wants the container: the one who
//! waits for a lock that background work holds asks for it (`Root::ask_to_yield`), and the work looks for that.
//!
//! Who changes a container's record holds its lock; a fold, which takes a layer out of the generations of several
//! containers, takes the locks of all of them without waiting, or leaves its commit for later.

use super::records::Doc;
use super::seal::Sealing;
use super::trees::{LayerState, borrow_all};
use super::{Engine, random};
use crate::clock;
use crate::failure::Result;
use perennial_core::container::Container;
use perennial_core::generations::{Generation, Queue, SealPolicy};
use perennial_core::id::{ContainerId, LayerId};
use perennial_core::layers::{DEPTH_MAX, Form, LayerKind, LayerRecord, plan_merge, unused};
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::tree::{self, Data, Measure, TreeError};
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

/// How often background work that gave way tries again, and how long it waits before it does.
const YIELDS_MAX: u32 = 200;
pub(super) const YIELD_PAUSE: Duration = Duration::from_millis(50);

/// Protects what is protected in any of the layers that a new one was made from.
pub fn protect_like(layers: &[BorrowedFd<'_>], made: BorrowedFd<'_>) -> std::result::Result<(), TreeError> {
    for layer in layers {
        if tree::protect::is_marked(*layer)? {
            return tree::protect::protect(made);
        }
    }
    Ok(())
}

/// What became of one step of background work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something was done; there may be more.
    Did,
    /// There is nothing to do.
    Nothing,
    /// Somebody else is at the container or its layers, or waits for them.
    GaveWay,
}

impl Engine {
    pub(super) fn must_yield(&self) -> bool {
        self.root.must_yield()
    }

    /// Settles a container: keeps its stack shallow, its bytes within bounds, and frees what nothing names.
    ///
    /// # Errors
    /// Where a step fails; everything is then still as valid as before it.
    pub fn settle(&self, id: &ContainerId) -> Result<()> {
        self.keep_container_copies();
        let settled = self.settle_all(id);
        // Whatever stood in the way of a step, what is in the trash is only space.
        let dropped = self.drop_sealed_trees();
        self.keep_container_copies();
        // A command that removed a container meanwhile left alone the layers that were being worked at here.
        let freed = self.free_unused().and_then(|_| self.free_left_over());
        self.empty_trash();
        settled?;
        freed?;
        self.finish_objects(&dropped?)?;
        self.pack_by_policy(id)?;
        match self.container(id) {
            Ok(doc) => self.wake_sender(&doc.value),
            Err(_) => Ok(()),
        }
    }

    fn settle_all(&self, id: &ContainerId) -> Result<()> {
        // Space when the last generation was evicted for its bytes: where that freed nothing, more would not either.
        let mut bytes_before = u64::MAX;
        let mut yields = 0;
        while yields < YIELDS_MAX {
            let step = if self.must_yield() { Step::GaveWay } else { self.settle_step(id, &mut bytes_before)? };
            let step = if step == Step::Nothing { self.seal_next(id)? } else { step };
            match step {
                Step::Did => {}
                Step::Nothing => break,
                Step::GaveWay => {
                    yields += 1;
                    clock::wait(YIELD_PAUSE);
                }
            }
        }
        Ok(())
    }

    /// Seals one layer, without the container's lock: a start goes on beside it.
    fn seal_next(&self, id: &ContainerId) -> Result<Step> {
        let Ok(doc) = self.container(id) else { return Ok(Step::Nothing) };
        Ok(match self.seal_step(&doc.value)? {
            Sealing::Done => Step::Did,
            Sealing::GaveWay | Sealing::Outdated => Step::GaveWay,
            Sealing::Nothing | Sealing::StaysDirectory(_) => Step::Nothing,
        })
    }

    /// One step, under the container's lock.
    fn settle_step(&self, id: &ContainerId, bytes_before: &mut u64) -> Result<Step> {
        let Some(_lock) = self.root.lock_container(id, Wait::Never)? else { return Ok(Step::GaveWay) };
        let Ok(doc) = self.container(id) else { return Ok(Step::Nothing) };
        self.free_unused()?;
        if let Some(fold) = self.next_fold(&doc.value)? {
            return self.fold(&doc.value, &fold);
        }
        match self.compact_step(&doc, self.demand_of(&doc.value)?)? {
            Step::Nothing => {}
            step @ (Step::Did | Step::GaveWay) => return Ok(step),
        }
        match self.merge_deep(doc.clone())? {
            Step::Nothing => {}
            step @ (Step::Did | Step::GaveWay) => return Ok(step),
        }
        Ok(if self.evict_by_bytes(doc, bytes_before)? { Step::Did } else { Step::Nothing })
    }

    /// Returns the layers that any generation, run, image or view names, or that are held; without those of one container.
    pub fn referenced_layers(&self, except: Option<&ContainerId>) -> Result<BTreeSet<LayerId>> {
        let mut referenced = BTreeSet::new();
        for doc in self.containers()? {
            if Some(&doc.value.id) == except {
                continue;
            }
            referenced.extend(doc.value.queue.iter().flat_map(Queue::layers));
            if let Some(run) = doc.value.phase.run() {
                referenced.extend(run.layers.iter().chain(&run.image_layers).cloned());
                referenced.insert(run.layer.clone());
            }
        }
        for image in self.images()? {
            referenced.extend(image.value.layers);
        }
        for (_, view) in self.views()? {
            referenced.extend(view.value.layers);
        }
        referenced.extend(self.held_layers()?);
        Ok(referenced)
    }

    /// Forgets layers that nothing names and moves them to the trash. Returns which.
    pub fn free_unused(&self) -> Result<Vec<LayerId>> {
        let graph = self.root.lock_graph()?;
        let deltas: Vec<LayerId> =
            self.layers()?.into_iter().filter(|l| l.value.kind == LayerKind::Delta).map(|l| l.value.id).collect();
        let mut freed = Vec::new();
        let mut locks = Vec::new();
        for id in unused(&deltas, &self.referenced_layers(None)?) {
            // A command may still be reading it; then it goes with the next collection.
            if let Some(lock) = self.root.lock_layer(&id, LockMode::Exclusive, Wait::Never)? {
                locks.push(lock);
                freed.push(id);
            }
        }
        if freed.is_empty() {
            return Ok(freed);
        }
        let transaction = freed.iter().fold(Transaction::new(), |t, id| t.delete(keys::layer(id)));
        self.records.commit(&transaction)?;
        drop(graph);
        let mut objects = Vec::new();
        for (id, lock) in freed.iter().zip(locks) {
            // A manifest that cannot be read keeps its objects, not its layer.
            self.objects_of(&self.root.layer_dir(id), &mut |object| objects.push(object)).ok();
            layer::discard(&self.root, &self.root.layer_dir(id), &format!("layer-{id}"))?;
            lock.remove_file();
        }
        self.free_objects_among(objects)?;
        Ok(freed)
    }

    /// Moves a layer's directory to the trash.
    pub fn discard_layer(&self, id: &LayerId) -> Result<()> {
        layer::discard(&self.root, &self.root.layer_dir(id), &format!("layer-{id}"))?;
        if let Some(lock) = self.root.lock_layer(id, LockMode::Exclusive, Wait::Never)? {
            lock.remove_file();
        }
        Ok(())
    }

    /// Unlinks what is in the trash; what cannot be unlinked now will be later.
    pub fn empty_trash(&self) {
        // Whoever finds the lock taken leaves what it brought to the holder, so the holder looks again after letting go.
        loop {
            let Ok(Some(_lock)) = self.root.lock_trash() else { return };
            let Ok(entries) = std::fs::read_dir(self.root.trash_dir()) else { return };
            let removed = entries.flatten().filter(|entry| tree::remove_tree(&entry.path()).is_ok()).count();
            if removed == 0 {
                return;
            }
        }
    }

    /// The layers that runs and views have mounted.
    pub fn layers_in_use(&self) -> Result<BTreeSet<LayerId>> {
        let mut in_use = BTreeSet::new();
        for doc in self.containers()? {
            if let Some(run) = doc.value.phase.run() {
                in_use.extend(run.layers.iter().chain(&run.image_layers).cloned());
            }
        }
        for (_, view) in self.views()? {
            in_use.extend(view.value.layers);
            in_use.extend(self.image(&view.value.image)?.value.layers);
        }
        Ok(in_use)
    }

    /// Merges the newest layers of the current generation where its stack is too deep and the layers cannot be folded
    /// because other generations need them one by one. File data is shared by hard links, not copied.
    pub(super) fn merge_deep(&self, mut doc: Doc<Container>) -> Result<Step> {
        let Some(current) = doc.value.queue.as_ref().and_then(Queue::current).cloned() else {
            return Ok(Step::Nothing);
        };
        // What is in packs is not taken out of them for this.
        if doc.value.phase.run().is_some() || current.cold {
            return Ok(Step::Nothing);
        }
        let mut sizes = Vec::new();
        for id in &current.layers {
            sizes.push((id.clone(), self.layer(id)?.map_or(0, |record| record.value.entries)));
        }
        let Some(count) = plan_merge(&sizes, DEPTH_MAX) else { return Ok(Step::Nothing) };
        let is_auto = doc.value.policy.seal == SealPolicy::Auto;
        let merged: Vec<LayerId> = current.layers.iter().take(count).cloned().collect();
        let states = self.states(&merged)?;
        let is_next = |layer: &LayerState| layer.unresolved || layer.form == Form::Sealed;
        if is_auto && states.iter().any(|layer| layer.unresolved) || states.iter().all(is_next) {
            // Sealed next, or never; and put together by metadata alone after that.
            return Ok(Step::Nothing);
        }
        // A fold for another container that shares layers must not move entries while they are read.
        // Nor must the tree of one below go, because it is sealed now: what whiteouts hide is looked for there.
        let image = self.image(&current.image)?.value;
        let whole: Vec<LayerId> = current.layers.iter().chain(&image.layers).cloned().collect();
        let Some(_locks) = self.share_without_waiting(&whole)? else { return Ok(Step::GaveWay) };
        if self.container(&doc.value.id)?.revision != doc.revision {
            return Ok(Step::GaveWay);
        }
        // Keeps `gc` from taking the new layer, which nothing names yet, for a leftover.
        let Some(_images) = self.root.lock_images(LockMode::Shared, Wait::Never)? else { return Ok(Step::GaveWay) };
        let (merged, rest) = current.layers.split_at(count.min(current.layers.len()));
        let id = LayerId::from_random(random()?);
        let made = self.make_merged(&id, merged, rest, &current);
        let made = made.and_then(|record| self.commit_merge(&mut doc, &current, rest, record));
        if let Err(failure) = made {
            // It may only have been too large for the disk: what was made of it would keep it full.
            tree::remove_tree(&self.root.staging_dir().join(id.as_str())).ok();
            // Only what is known not to be recorded goes; `gc` finds what is left.
            if self.layer(&id).is_ok_and(|record| record.is_none()) {
                self.discard_layer(&id).ok();
            }
            return Err(failure);
        }
        Ok(Step::Did)
    }

    /// Writes layers as one: by hard links where all are directories, else by copies, which are the same objects again
    /// when the result is sealed.
    fn write_merged(&self, merged: &[LayerId], below: &[LayerId], target: BorrowedFd<'_>) -> Result<Measure> {
        let stack: Vec<LayerId> = merged.iter().chain(below).cloned().collect();
        self.ensure_resolved(&stack)?;
        let layers = self.open_layers(merged)?;
        let layers = borrow_all(&layers);
        let measure = match self.states(merged)?.iter().any(|layer| layer.form != Form::Dir) {
            true => self.write_out(merged, below, target)?,
            false => {
                let below = self.open_layers(below)?;
                tree::materialize(&layers, &borrow_all(&below), target, Data::Link, &mut |_| {})?
            }
        };
        protect_like(&layers, target)?;
        Ok(measure)
    }

    /// Makes the layer that several become, without anything naming it.
    fn make_merged(
        &self,
        id: &LayerId,
        merged: &[LayerId],
        rest: &[LayerId],
        current: &Generation,
    ) -> Result<LayerRecord> {
        let image = self.image(&current.image)?.value;
        let below: Vec<LayerId> = rest.iter().chain(&image.layers).cloned().collect();
        let staging = self.root.staging_dir().join(id.as_str());
        std::fs::create_dir(&staging)?;
        let target = tree::open_tree(&staging)?;
        let measure = self.write_merged(merged, &below, target.as_fd())?;
        let origin = LayerOrigin::Merged { of: merged.to_vec() };
        let (bytes, entries) = (measure.bytes, measure.entries);
        let created_at = self.now();
        let file = LayerFile { id: id.clone(), created_at, origin, bytes, entries, unresolved: false };
        layer::prepare(&self.root, &file)?;
        perennial_runtime::mount::syncfs(&staging)?;
        layer::adopt_tree(&self.root, id, &staging)?;
        Ok(LayerRecord::of_tree(id.clone(), LayerKind::Delta, (bytes, entries), created_at))
    }

    fn commit_merge(
        &self,
        doc: &mut Doc<Container>,
        current: &Generation,
        rest: &[LayerId],
        record: LayerRecord,
    ) -> Result<()> {
        let _graph = self.root.lock_graph()?;
        let mut layers = vec![record.id.clone()];
        layers.extend_from_slice(rest);
        if let Some(generation) = doc.value.queue.as_mut().and_then(|queue| queue.get_mut(current.seq)) {
            generation.layers = layers;
        }
        let transaction = Transaction::new().put(keys::layer(&record.id), record.encode());
        let transaction = self.put_container(transaction, doc, None);
        self.records.commit(&transaction)?;
        Ok(())
    }
}
