//! Work after an exit that nobody waits for: fold and merge layers, keep to the byte bound, free space.
//!
//! Everything here can be interrupted at any instant and gives way to a command that wants the container: the one who
//! waits for a lock that background work holds leaves a mark ([`Engine::ask_to_yield`]), and the work looks for it.

use super::records::{Doc, Note};
use super::{Engine, random};
use crate::failure::Result;
use perennial_core::container::Container;
use perennial_core::format::{self, Format};
use perennial_core::generations::Queue;
use perennial_core::id::{ContainerId, LayerId};
use perennial_core::layers::{DEPTH_MAX, Fold, Form, LayerKind, LayerRecord, plan_fold, plan_merge, unused};
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::tree::{self, Data, FoldOutcome, FoldReport, Measure, TreeError};
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Opens the roots of trees.
pub fn open_all(paths: &[PathBuf]) -> std::result::Result<Vec<OwnedFd>, TreeError> {
    paths.iter().map(|path| tree::open_tree(path)).collect()
}

/// Borrows what [`open_all`] opened.
pub fn borrow_all(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(OwnedFd::as_fd).collect()
}

/// Protects what is protected in any of the layers that a new one was made from.
pub fn protect_like(layers: &[BorrowedFd<'_>], made: BorrowedFd<'_>) -> std::result::Result<(), TreeError> {
    for layer in layers {
        if tree::protect::is_marked(*layer)? {
            return tree::protect::protect(made);
        }
    }
    Ok(())
}

/// Removes the mark when the lock has been had.
#[derive(Debug)]
pub struct Yielding(PathBuf);

impl Drop for Yielding {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

impl Engine {
    fn yield_mark(&self) -> PathBuf {
        self.root.path().join("locks").join("yield")
    }

    /// Asks background work to give way, until the result is dropped.
    pub fn ask_to_yield(&self) -> Yielding {
        let mark = self.yield_mark();
        std::fs::File::create(&mark).ok();
        Yielding(mark)
    }

    fn must_yield(&self) -> bool {
        self.yield_mark().symlink_metadata().is_ok()
    }

    /// Settles a container: keeps its stack shallow, its bytes within bounds, and frees what nothing names.
    ///
    /// # Errors
    /// Where a step fails; everything is then still as valid as before it.
    pub fn settle(&self, id: &ContainerId) -> Result<()> {
        // Space when the last generation was evicted for its bytes: where that freed nothing, more would not either.
        let mut bytes_before = u64::MAX;
        while !self.must_yield() && self.settle_step(id, &mut bytes_before)? {}
        self.empty_trash();
        Ok(())
    }

    /// One step, under the container's lock; returns whether another may follow.
    fn settle_step(&self, id: &ContainerId, bytes_before: &mut u64) -> Result<bool> {
        let Some(_lock) = self.root.lock_container(id, Wait::Never)? else { return Ok(false) };
        let Ok(doc) = self.container(id) else { return Ok(false) };
        self.free_unused()?;
        if let Some(fold) = self.next_fold(&doc.value)? {
            return self.fold(&fold);
        }
        if self.merge_deep(doc.clone())? {
            return Ok(true);
        }
        self.evict_by_bytes(doc, bytes_before)
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
        for (id, lock) in freed.iter().zip(locks) {
            layer::discard(&self.root, &self.root.layer_dir(id), &format!("layer-{id}"))?;
            lock.remove_file();
        }
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
        let Ok(entries) = std::fs::read_dir(self.root.trash_dir()) else { return };
        for entry in entries.flatten() {
            tree::remove_tree(&entry.path()).ok();
        }
    }

    /// The layers that runs and views have mounted.
    fn layers_in_use(&self) -> Result<BTreeSet<LayerId>> {
        let mut in_use = BTreeSet::new();
        for doc in self.containers()? {
            if let Some(run) = doc.value.phase.run() {
                in_use.extend(run.layers.iter().cloned());
            }
        }
        for (_, view) in self.views()? {
            in_use.extend(view.value.layers);
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
        let touching: Vec<&[LayerId]> = containers
            .iter()
            .flat_map(|doc| doc.value.queue.iter().flat_map(|queue| &queue.generations))
            .map(|generation| generation.layers.as_slice())
            .filter(|layers| layers.iter().any(|layer| own.contains(layer)))
            .collect();
        let images = self.images()?.into_iter().flat_map(|image| image.value.layers).collect();
        Ok(plan_fold(&touching, &self.layers_in_use()?, &images))
    }

    /// Folds the newer of two layers into the older and takes it out of every generation.
    fn fold(&self, fold: &Fold) -> Result<bool> {
        let lock = |id| self.root.lock_layer(id, LockMode::Exclusive, Wait::Never);
        let (Some(_top), Some(_bottom)) = (lock(&fold.top)?, lock(&fold.bottom)?) else { return Ok(false) };
        // Looked up again now that nobody can begin to hold them: a view may have been mounted since the fold was planned.
        let viewed = self.viewed_layers()?;
        if viewed.contains(&fold.top) || viewed.contains(&fold.bottom) {
            return Ok(false);
        }
        let Some(below) = self.below(&fold.bottom)? else { return Ok(false) };
        let (top, bottom) = (self.root.layer_tree(&fold.top), self.root.layer_tree(&fold.bottom));
        let trash = self.root.trash_dir().join(format!("fold-{}", LayerId::from_random(random()?)));
        std::fs::create_dir(&trash)?;
        let (top_root, bottom_root) = (tree::open_tree(&top)?, tree::open_tree(&bottom)?);
        let (trash, below) = (tree::open_tree(&trash)?, open_all(&below)?);
        let below = borrow_all(&below);
        let layers = tree::fold::FoldLayers { top: top_root.as_fd(), bottom: bottom_root.as_fd(), below: &below };
        let report = match tree::fold(layers, trash.as_fd(), &mut || self.must_yield())? {
            FoldOutcome::Done(report) => report,
            FoldOutcome::Yielded(_) => return Ok(false),
        };
        perennial_runtime::mount::syncfs(&bottom)?;
        let measure = self.measure_after(fold, report, bottom_root.as_fd())?;
        self.commit_fold(fold, measure)?;
        self.discard_layer(&fold.top)?;
        Ok(true)
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

    /// Finishes a fold that a crash cut off, before its layers are mounted: until then times of directories are off.
    ///
    /// # Errors
    /// Where the layers cannot be read or changed.
    pub fn settle_interrupted_fold(&self, layers: &[LayerId], image_layers: &[LayerId]) -> Result<()> {
        let trees: Vec<PathBuf> = layers.iter().chain(image_layers).map(|id| self.root.layer_tree(id)).collect();
        for (position, pair) in trees.windows(2).enumerate().take(layers.len().saturating_sub(1)) {
            let [top, bottom] = pair else { continue };
            let top = tree::open_tree(top)?;
            if !tree::fold::is_interrupted(top.as_fd())? {
                continue;
            }
            let bottom = tree::open_tree(bottom)?;
            let below = open_all(trees.get(position.saturating_add(2)..).unwrap_or_default())?;
            let trash = tree::open_tree(&self.root.trash_dir())?;
            let below = borrow_all(&below);
            let layers = tree::fold::FoldLayers { top: top.as_fd(), bottom: bottom.as_fd(), below: &below };
            tree::fold(layers, trash.as_fd(), &mut || false)?;
        }
        Ok(())
    }

    fn commit_fold(&self, fold: &Fold, measure: Measure) -> Result<()> {
        let _graph = self.root.lock_graph()?;
        let mut transaction = Transaction::new().delete(keys::layer(&fold.top));
        for mut doc in self.containers()? {
            let Some(queue) = &mut doc.value.queue else { continue };
            if !queue.layers().contains(&fold.top) {
                continue;
            }
            for generation in &mut queue.generations {
                generation.layers.retain(|layer| *layer != fold.top);
            }
            transaction = self.put_container(transaction, &mut doc, None);
        }
        if let Some(mut record) = self.layer(&fold.bottom)? {
            record.value.bytes = measure.bytes;
            record.value.entries = measure.entries;
            transaction = transaction.put(keys::layer(&fold.bottom), format::encode(Format::Layer, &record.value));
        }
        self.records.commit(&transaction)?;
        Ok(())
    }

    /// The trees below a layer, newest first, as any generation that names it has them.
    fn below(&self, bottom: &LayerId) -> Result<Option<Vec<PathBuf>>> {
        for doc in self.containers()? {
            for generation in doc.value.queue.iter().flat_map(|queue| &queue.generations) {
                let mut layers = generation.layers.iter();
                if layers.any(|layer| layer == bottom) {
                    let image = self.image(&generation.image)?.value;
                    return Ok(Some(layers.chain(&image.layers).map(|id| self.root.layer_tree(id)).collect()));
                }
            }
        }
        Ok(None)
    }

    /// Merges the newest layers of the current generation where its stack is too deep and the layers cannot be folded
    /// because other generations need them one by one. File data is shared by hard links, not copied.
    fn merge_deep(&self, mut doc: Doc<Container>) -> Result<bool> {
        let Some(current) = doc.value.queue.as_ref().and_then(Queue::current).cloned() else { return Ok(false) };
        if doc.value.phase.run().is_some() {
            return Ok(false);
        }
        let mut sizes = Vec::new();
        for id in &current.layers {
            sizes.push((id.clone(), self.layer(id)?.map_or(0, |record| record.value.entries)));
        }
        let Some(count) = plan_merge(&sizes, DEPTH_MAX) else { return Ok(false) };
        // Keeps `gc` from taking the new layer, which nothing names yet, for a leftover.
        let Some(_images) = self.root.lock_images(LockMode::Shared, Wait::Never)? else { return Ok(false) };
        let (merged, rest) = current.layers.split_at(count.min(current.layers.len()));
        let image = self.image(&current.image)?.value;
        let paths = |ids: &[LayerId]| ids.iter().map(|id| self.root.layer_tree(id)).collect::<Vec<_>>();
        let below: Vec<PathBuf> = paths(rest).into_iter().chain(paths(&image.layers)).collect();
        let id = LayerId::from_random(random()?);
        let staging = self.root.staging_dir().join(id.as_str());
        std::fs::create_dir(&staging)?;
        let (layers, below) = (open_all(&paths(merged))?, open_all(&below)?);
        let target = tree::open_tree(&staging)?;
        let measure =
            tree::materialize(&borrow_all(&layers), &borrow_all(&below), target.as_fd(), Data::Link, &mut |_| {})?;
        protect_like(&borrow_all(&layers), target.as_fd())?;
        let origin = LayerOrigin::Merged { of: merged.to_vec() };
        let (bytes, entries) = (measure.bytes, measure.entries);
        layer::prepare(&self.root, &LayerFile { id: id.clone(), created_at: self.now(), origin, bytes, entries })?;
        perennial_runtime::mount::syncfs(&staging)?;
        layer::adopt_tree(&self.root, &id, &staging)?;
        let record = LayerRecord {
            id: id.clone(),
            kind: LayerKind::Delta,
            diff_id: None,
            bytes,
            entries,
            created_at: self.now(),
            form: Form::Dir,
        };
        let _graph = self.root.lock_graph()?;
        let mut layers = vec![id.clone()];
        layers.extend_from_slice(rest);
        if let Some(generation) = doc.value.queue.as_mut().and_then(|queue| queue.get_mut(current.seq)) {
            generation.layers = layers;
        }
        let transaction = Transaction::new().put(keys::layer(&id), format::encode(Format::Layer, &record));
        let transaction = self.put_container(transaction, &mut doc, None);
        self.records.commit(&transaction)?;
        Ok(true)
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

    /// Bytes on disk of the distinct layers of a container's generations.
    pub fn bytes_of(&self, container: &Container) -> Result<u64> {
        let mut bytes = 0_u64;
        for id in container.queue.as_ref().map(Queue::layers).unwrap_or_default() {
            bytes = bytes.saturating_add(self.layer(&id)?.map_or(0, |record| record.value.bytes));
        }
        Ok(bytes)
    }
}
