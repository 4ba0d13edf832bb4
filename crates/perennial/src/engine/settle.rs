//! Work after an exit that nobody waits for: fold and merge layers, keep to the byte bound, free space.
//!
//! Everything here can be interrupted at any instant and gives way to a command that wants the container: the one who
//! waits for a lock that background work holds asks for it (`Root::ask_to_yield`), and the work looks for that.
//!
//! Who changes a container's record holds its lock; a fold, which takes a layer out of the generations of several
//! containers, takes the locks of all of them without waiting, or leaves its commit for later.

use super::records::{Doc, Note};
use super::seal::Sealing;
use super::trees::{LayerState, borrow_all};
use super::{Engine, random};
use crate::clock;
use crate::failure::Result;
use perennial_core::container::Container;
use perennial_core::generations::{Generation, Queue, SealPolicy};
use perennial_core::id::{ContainerId, LayerId};
use perennial_core::layers::{DEPTH_MAX, Fold, Form, LayerKind, LayerRecord, plan_fold, plan_merge, unused};
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::objects::Objects;
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::sealed::{IMAGE, MANIFEST};
use perennial_store::tree::{self, Data, FoldOutcome, FoldReport, Measure, TreeError};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

/// Unit of `st_blocks`, in bytes.
const BLOCK_BYTES: u64 = 512;
/// How often background work that gave way tries again, and how long it waits before it does.
const YIELDS_MAX: u32 = 200;
const YIELD_PAUSE: Duration = Duration::from_millis(50);

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

/// Layers that lie on different layers in different generations, as after a rebase. Whether a whiteout above them hides
/// something has then no single answer, so they are left as they are.
pub fn on_different_grounds(generations: &[&Generation]) -> BTreeSet<LayerId> {
    let mut grounds = BTreeMap::new();
    let mut different = BTreeSet::new();
    for generation in generations {
        for (position, layer) in generation.layers.iter().enumerate() {
            let ground = (generation.layers.get(position.saturating_add(1)..), &generation.image);
            if *grounds.entry(layer).or_insert(ground) != ground {
                different.insert(layer.clone());
            }
        }
    }
    different
}

impl Engine {
    fn must_yield(&self) -> bool {
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
        let freed = self.free_left_over();
        self.empty_trash();
        settled?;
        freed?;
        self.finish_objects(&dropped?)?;
        self.pack_by_policy(id)
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
            Sealing::GaveWay => Step::GaveWay,
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

    /// Returns the layers that any generation, run, image or view names; without those of one container.
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

    /// The next fold among the layers of this container.
    fn next_fold(&self, container: &Container) -> Result<Option<Fold>> {
        let own = container.queue.as_ref().map(Queue::layers).unwrap_or_default();
        if own.len() < 2 {
            return Ok(None);
        }
        let containers = self.containers()?;
        let touching: Vec<&Generation> = containers
            .iter()
            .flat_map(|doc| doc.value.queue.iter().flat_map(|queue| &queue.generations))
            .filter(|generation| generation.layers.iter().any(|layer| own.contains(layer)))
            .collect();
        let stacks: Vec<&[LayerId]> = touching.iter().map(|generation| generation.layers.as_slice()).collect();
        let images = self.images()?.into_iter().flat_map(|image| image.value.layers).collect();
        let mut in_use = self.layers_in_use()?;
        in_use.extend(on_different_grounds(&touching));
        in_use.extend(self.above_unresolved(&touching)?);
        // Renames can only put together directories that stand for themselves.
        for layer in self.states(&own.iter().cloned().collect::<Vec<_>>())? {
            if layer.form != Form::Dir || layer.unresolved {
                in_use.insert(layer.id);
            }
        }
        Ok(plan_fold(&stacks, &in_use, &images))
    }

    /// Layers above one that means something only over those below it: what lies under them cannot be told from the
    /// layers one by one, so they are left as they are until it is resolved.
    ///
    /// # Errors
    /// Where a record cannot be read.
    pub fn above_unresolved(&self, generations: &[&Generation]) -> Result<BTreeSet<LayerId>> {
        let mut above = BTreeSet::new();
        for generation in generations {
            let states = self.states(&generation.layers)?;
            let Some(deepest) = states.iter().rposition(|layer| layer.unresolved) else { continue };
            above.extend(states.into_iter().take(deepest).map(|layer| layer.id));
        }
        Ok(above)
    }

    /// Folds the newer of two layers into the older and takes it out of every generation.
    fn fold(&self, container: &Container, fold: &Fold) -> Result<Step> {
        let lock = |id, mode| self.root.lock_layer(id, mode, Wait::Never);
        let exclusive = (lock(&fold.top, LockMode::Exclusive)?, lock(&fold.bottom, LockMode::Exclusive)?);
        let (Some(_top), Some(_bottom)) = exclusive else { return Ok(Step::GaveWay) };
        // What was planned without the locks may not hold any more; with them nobody can change it.
        if self.next_fold(container)?.as_ref() != Some(fold) {
            return Ok(Step::GaveWay);
        }
        for layer in [&fold.top, &fold.bottom] {
            self.forget_unrecorded_seal(layer)?;
        }
        let Some(below) = self.below(&fold.bottom)? else { return Ok(Step::Nothing) };
        let mut locks = Vec::new();
        for id in &below {
            let Some(lock) = lock(id, LockMode::Shared)? else { return Ok(Step::GaveWay) };
            locks.push(lock);
        }
        let (top, bottom) = (self.root.layer_tree(&fold.top), self.root.layer_tree(&fold.bottom));
        let (top_root, bottom_root) = (tree::open_tree(&top)?, tree::open_tree(&bottom)?);
        let (trash, below) = (tree::open_tree(&self.root.trash_dir())?, self.open_layers(&below)?);
        let below = borrow_all(&below);
        let layers = tree::fold::FoldLayers { top: top_root.as_fd(), bottom: bottom_root.as_fd(), below: &below };
        let report = match tree::fold(layers, trash.as_fd(), &mut || self.must_yield())? {
            FoldOutcome::Done(report) => report,
            FoldOutcome::Yielded(_) => return Ok(Step::GaveWay),
        };
        perennial_runtime::mount::syncfs(&bottom)?;
        let measure = self.measure_after(fold, report, bottom_root.as_fd())?;
        if !self.commit_fold(&container.id, fold, measure)? {
            return Ok(Step::GaveWay);
        }
        // Before the layer goes: a rebuild from an older copy would look for it.
        self.keep_container_copies();
        self.discard_layer(&fold.top)?;
        Ok(Step::Did)
    }

    /// Size of the older layer after a fold: counted from what went, measured anew where the fold was resumed.
    fn measure_after(&self, fold: &Fold, report: FoldReport, bottom: BorrowedFd<'_>) -> Result<Measure> {
        let (Some(top), Some(below)) = (self.layer(&fold.top)?, self.layer(&fold.bottom)?) else {
            return Ok(tree::measure(bottom)?);
        };
        if report.resumed {
            return Ok(tree::measure(bottom)?);
        }
        let left = |a: u64, b: u64, gone: u64| a.saturating_add(b).saturating_sub(gone);
        Ok(Measure {
            bytes: left(top.value.bytes, below.value.bytes, report.bytes_gone),
            entries: left(top.value.entries, below.value.entries, report.entries_gone),
            ..Measure::default()
        })
    }

    /// Finishes folds that a crash cut off, before their layers are mounted: until then times of directories are off.
    /// The caller holds no lock of a layer yet.
    ///
    /// # Errors
    /// Where the layers cannot be read or changed.
    pub fn finish_interrupted_folds(&self, layers: &[LayerId], image_layers: &[LayerId]) -> Result<()> {
        for (position, pair) in layers.windows(2).enumerate() {
            let [top, bottom] = pair else { continue };
            let below: Vec<LayerId> =
                layers.iter().skip(position.saturating_add(2)).chain(image_layers).cloned().collect();
            while self.is_fold_interrupted(top)? && !self.finish_fold(top, bottom, &below)? {
                clock::wait(YIELD_PAUSE);
            }
        }
        Ok(())
    }

    fn is_fold_interrupted(&self, top: &LayerId) -> Result<bool> {
        match tree::open_tree(&self.root.layer_tree(top)) {
            Ok(tree) => Ok(tree::fold::is_interrupted(tree.as_fd())?),
            // It is sealed, or a fold that was at work has ended meanwhile and taken it out of every generation.
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Finishes a fold unless somebody else is at its layers; returns whether there was nobody.
    fn finish_fold(&self, top: &LayerId, bottom: &LayerId, below: &[LayerId]) -> Result<bool> {
        let _yielding = self.root.ask_to_yield()?;
        let lock = |id| self.root.lock_layer(id, LockMode::Exclusive, Wait::Never);
        let (Some(_top), Some(_bottom)) = (lock(top)?, lock(bottom)?) else { return Ok(false) };
        if !self.is_fold_interrupted(top)? {
            return Ok(true);
        }
        let states = self.states(&[top.clone(), bottom.clone()])?;
        if states.iter().any(|layer| layer.form != Form::Dir) {
            // One of them was sealed as it is, which is right: together they show the same at every instant of a fold.
            return Ok(true);
        }
        // A seal of either that nobody recorded is of a tree that changes now.
        self.forget_unrecorded_seal(top)?;
        self.forget_unrecorded_seal(bottom)?;
        let tree_of = |id: &LayerId| self.root.layer_tree(id);
        let (top, bottom) = (tree::open_tree(&tree_of(top))?, tree::open_tree(&tree_of(bottom))?);
        let below = self.open_layers(below)?;
        let trash = tree::open_tree(&self.root.trash_dir())?;
        let below = borrow_all(&below);
        let layers = tree::fold::FoldLayers { top: top.as_fd(), bottom: bottom.as_fd(), below: &below };
        tree::fold(layers, trash.as_fd(), &mut || false)?;
        Ok(true)
    }

    /// Takes the newer layer of a fold out of every generation; returns whether it could. Containers that others are at
    /// are not changed behind their backs: then the fold is committed another time. The caller holds `own`'s lock.
    fn commit_fold(&self, own: &ContainerId, fold: &Fold, measure: Measure) -> Result<bool> {
        let _graph = self.root.lock_graph()?;
        let mut transaction = Transaction::new().delete(keys::layer(&fold.top));
        let mut locks = Vec::new();
        for doc in self.containers()? {
            if !doc.value.queue.as_ref().is_some_and(|queue| queue.layers().contains(&fold.top)) {
                continue;
            }
            if doc.value.id != *own {
                let Some(lock) = self.root.lock_container(&doc.value.id, Wait::Never)? else { return Ok(false) };
                locks.push(lock);
            }
            let mut doc = self.container(&doc.value.id)?;
            for generation in doc.value.queue.iter_mut().flat_map(|queue| &mut queue.generations) {
                generation.layers.retain(|layer| *layer != fold.top);
            }
            transaction = self.put_container(transaction, &mut doc, None);
        }
        if let Some(mut record) = self.layer(&fold.bottom)? {
            record.value.bytes = measure.bytes;
            record.value.entries = measure.entries;
            transaction = transaction.put(keys::layer(&fold.bottom), record.value.encode());
        }
        self.records.commit(&transaction)?;
        Ok(true)
    }

    /// The layers below a layer, newest first, as every generation that names it has them.
    pub fn below(&self, bottom: &LayerId) -> Result<Option<Vec<LayerId>>> {
        for doc in self.containers()? {
            for generation in doc.value.queue.iter().flat_map(|queue| &queue.generations) {
                let mut layers = generation.layers.iter();
                if layers.any(|layer| layer == bottom) {
                    let image = self.image(&generation.image)?.value;
                    return Ok(Some(layers.chain(&image.layers).cloned().collect()));
                }
            }
        }
        Ok(None)
    }

    /// Merges the newest layers of the current generation where its stack is too deep and the layers cannot be folded
    /// because other generations need them one by one. File data is shared by hard links, not copied.
    fn merge_deep(&self, mut doc: Doc<Container>) -> Result<Step> {
        let Some(current) = doc.value.queue.as_ref().and_then(Queue::current).cloned() else {
            return Ok(Step::Nothing);
        };
        // What is in packs is not taken out of them for this.
        if doc.value.phase.run().is_some() || current.cold {
            return Ok(Step::Nothing);
        }
        let mut sizes = Vec::new();
        let mut locks = Vec::new();
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
        for id in &current.layers {
            let Some(lock) = self.root.lock_layer(id, LockMode::Shared, Wait::Never)? else {
                return Ok(Step::GaveWay);
            };
            locks.push(lock);
        }
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

    /// Evicts one generation where the container is over its byte bound; folding then frees what only it needed.
    fn evict_by_bytes(&self, mut doc: Doc<Container>, bytes_before: &mut u64) -> Result<bool> {
        let Some(bound) = doc.value.policy.keep_bytes else { return Ok(false) };
        let used = self.bytes_of(&doc.value)?;
        if used <= bound {
            return Ok(false);
        }
        let now = self.now();
        let Some(queue) = &mut doc.value.queue else { return Ok(false) };
        let frees_something = used < *bytes_before;
        let Some(seq) = queue.head_for_eviction().filter(|_| frees_something) else {
            if !doc.value.has(perennial_core::container::ConditionKind::RetentionBlocked) {
                doc.value.note_retention(true, now);
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
}
