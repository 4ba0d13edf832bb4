//! Folds: the newer of two directories is merged into the older by renames, at the cost of the newer one.
//!
//! A fold may be cut off at any instant: the two layers together show the same at each, and the next one who uses them
//! finishes it.

use super::Engine;
use super::settle::{Step, YIELD_PAUSE};
use super::stacks::on_different_grounds;
use super::trees::borrow_all;
use crate::clock;
use crate::failure::Result;
use perennial_core::container::Container;
use perennial_core::generations::Queue;
use perennial_core::id::{ContainerId, LayerId};
use perennial_core::layers::{Fold, Form, plan_fold};
use perennial_store::records::{Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::tree::{self, FoldOutcome, FoldReport, Measure};
use rustix::io::Errno;
use std::os::fd::{AsFd as _, BorrowedFd};

impl Engine {
    /// The next fold among the layers of this container.
    pub(super) fn next_fold(&self, container: &Container) -> Result<Option<Fold>> {
        let own = container.queue.as_ref().map(Queue::layers).unwrap_or_default();
        if own.len() < 2 {
            return Ok(None);
        }
        let touching = self.generations_with(&own)?;
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

    /// Folds the newer of two layers into the older and takes it out of every generation.
    pub(super) fn fold(&self, container: &Container, fold: &Fold) -> Result<Step> {
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

    /// Finishes a fold unless somebody else is at its layers or at those below; returns whether there was nobody.
    ///
    /// Those below say whether what a whiteout hides is still there: one that hides nothing goes. Whoever is at them with
    /// a shared lock only reads. An exclusive one is held while a tree goes because its layer is sealed now, while a layer
    /// is freed, resolved, or folded. Only a fold would be harmless to read beside, since names are looked for newest
    /// first and it moves them downwards; of a tree that is being unlinked names are missing, and a whiteout would go that
    /// hides what the sealed layer shows. So they are locked as for any fold, without waiting, and looked at after that.
    /// Objects matter to none of this, whether they are packed, thawed or pushed: only names and types are read.
    pub(super) fn finish_fold(&self, top: &LayerId, bottom: &LayerId, below: &[LayerId]) -> Result<bool> {
        let _yielding = self.root.ask_to_yield()?;
        let lock = |id| self.root.lock_layer(id, LockMode::Exclusive, Wait::Never);
        let (Some(_top), Some(_bottom)) = (lock(top)?, lock(bottom)?) else { return Ok(false) };
        if !self.is_fold_interrupted(top)? {
            return Ok(true);
        }
        let Some(_below) = self.share_without_waiting(below)? else { return Ok(false) };
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
        if let Some(mut record) = self.layer(&fold.bottom)? {
            record.value.bytes = measure.bytes;
            record.value.entries = measure.entries;
            transaction = transaction.put(keys::layer(&fold.bottom), record.value.encode());
        }
        self.commit_stacks(own, transaction, &|stack| {
            let has_top = stack.contains(&fold.top);
            has_top.then(|| stack.iter().filter(|layer| **layer != fold.top).cloned().collect())
        })
    }
}
