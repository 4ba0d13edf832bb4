//! Sealing: layers become objects, a manifest and a metadata image, in the background or by `perennial seal`.
//!
//! ```text
//! tree ──seal (shared locks)──▶ manifest, meta.erofs beside it ──one transaction──▶ record says sealed
//!                                            tree ──exclusive lock, no mount uses it──▶ trash
//! ```
//!
//! Nothing waits for it: it holds the layers it reads with shared locks, as a run does, no container's lock, and stops
//! between two entries where a command asks background work to give way. What is cut off is taken up again where it
//! was: contents that are stored stay stored.

use super::trees::borrow_all;
use super::{Engine, random};
use crate::clock;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::generations::SealPolicy;
use perennial_core::id::{LayerId, RunId};
use perennial_core::image::Image;
use perennial_core::layers::{Form, LayerRecord, ManifestRef};
use perennial_core::sealed::manifest::Summary;
use perennial_core::sealed::order::{SealStep, plan_seal};
use perennial_runtime::background::Background;
use perennial_runtime::mount::Handing;
use perennial_runtime::probe;
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::records::{RecordError, RecordStore as _, Transaction, keys};
use perennial_store::root::{Lock, LockMode, Wait};
use perennial_store::sealed::{self, IMAGE, LayerFiles, MANIFEST, Outcome, Request, SealError};
use perennial_store::tree;
use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::time::Duration;

/// How often, and at what distance, a command tries to seal a layer that somebody else is at.
const TURNS_MAX: u32 = 600;
const TURN_PAUSE: Duration = Duration::from_millis(20);
/// How often the staging directory is asked for before a trial in it goes without: a second's worth.
const STAGING_TURNS_MAX: u32 = 50;

/// What became of a layer that was to be sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sealing {
    /// It is sealed now.
    Done,
    /// It was sealed already, or is gone.
    Nothing,
    /// Somebody else is at it, or asked to give way; what was done is kept.
    GaveWay,
    /// The layers below it have become others since it was planned: it has to be planned anew.
    Outdated,
    /// It stays a directory, because of this.
    StaysDirectory(String),
}

/// What one order to seal has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealReport {
    /// Layers that were sealed.
    pub sealed: Vec<LayerId>,
    /// Layers that stay directories, and why.
    pub kept: Vec<(LayerId, String)>,
    /// Layers that somebody else was at.
    pub busy: Vec<LayerId>,
}

/// Who seals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Diligence {
    /// Gives way to everybody and does not try again what cannot be sealed.
    Background,
    /// A command waits for it.
    Asked,
}

impl Engine {
    /// Returns whether layers can be sealed and used sealed on this host, and in which way; in the words of whoever
    /// refused, if not.
    pub fn can_seal(&self) -> std::result::Result<Handing, String> {
        let layer = || Ok(sealed::probe(&self.root)?);
        let tried = random().and_then(|bytes| {
            let _staging = self.keep_staging()?;
            let trial = self.root.staging_dir().join(format!("probe-{}", RunId::from_random(bytes)));
            probe::sealed::<Failure>(layer, &self.root.objects_dir(), &trial)
        });
        tried.map_err(|failure| failure.one_line())
    }

    /// Keeps `gc` from taking a trial in the staging directory for a leftover. Whoever has that directory for itself for
    /// long, as packing may, takes nothing out of it: then there is nothing to wait for, and it may be this very process.
    ///
    /// # Errors
    /// Where the lock cannot be looked at.
    pub fn keep_staging(&self) -> Result<Option<Lock>> {
        for _ in 0..STAGING_TURNS_MAX {
            if let Some(lock) = self.root.lock_images(LockMode::Shared, Wait::Never)? {
                return Ok(Some(lock));
            }
            clock::wait(TURN_PAUSE);
        }
        Ok(None)
    }

    /// Seals the next layer of a container that is due, the lowest first.
    ///
    /// # Errors
    /// Where the records or the disk fail; everything is then as valid as before.
    pub fn seal_step(&self, container: &Container) -> Result<Sealing> {
        if container.policy.seal == SealPolicy::Never || container.queue.is_none() {
            return Ok(Sealing::Nothing);
        }
        let stacks = self.stacks_of(container)?;
        let steps = self.seal_plan(&stacks, Diligence::Background)?;
        if steps.is_empty() || self.can_seal().is_err() {
            return Ok(Sealing::Nothing);
        }
        self.finish_folds_in(&stacks)?;
        for step in steps {
            self.finish_folds_of(&step)?;
            match self.seal_nicely(&step)? {
                // Gone meanwhile, or known not to be sealable now: the next one.
                Sealing::Nothing | Sealing::StaysDirectory(_) => {}
                // The next call plans anew.
                Sealing::Outdated => return Ok(Sealing::GaveWay),
                outcome @ (Sealing::Done | Sealing::GaveWay) => return Ok(outcome),
            }
        }
        Ok(Sealing::Nothing)
    }

    /// Seals whatever can be sealed among the stacks that `stacks` reads, now. It reads them again where work in the
    /// background has put layers together meanwhile.
    ///
    /// # Errors
    /// As [`Engine::seal_step`], and where this host cannot.
    pub fn seal_stacks(&self, stacks: &dyn Fn() -> Result<Vec<Vec<LayerId>>>) -> Result<SealReport> {
        let _: Handing = self.can_seal().map_err(|why| {
            Failure::new(Code::Host, format!("this host cannot use sealed layers: {why}"))
                .hint("nothing was changed; generations are kept as directories, which every host can use")
        })?;
        let mut report = SealReport::default();
        for _ in 0..TURNS_MAX {
            let stacks = stacks()?;
            self.finish_folds_in(&stacks)?;
            if self.seal_planned(&self.seal_plan(&stacks, Diligence::Asked)?, &mut report)? {
                break;
            }
            clock::wait(TURN_PAUSE);
        }
        self.drop_sealed_trees()?;
        Ok(report)
    }

    /// Seals what was planned; returns whether all of the plan still held.
    fn seal_planned(&self, steps: &[SealStep], report: &mut SealReport) -> Result<bool> {
        let mut held = true;
        (report.kept, report.busy) = (Vec::new(), Vec::new());
        for step in steps {
            self.finish_folds_of(step)?;
            let layer = step.layer.clone();
            match self.seal_in_turn(step)? {
                Sealing::Done => report.sealed.push(layer),
                Sealing::Nothing => {}
                Sealing::GaveWay => report.busy.push(layer),
                Sealing::Outdated => {
                    report.busy.push(layer);
                    held = false;
                }
                Sealing::StaysDirectory(why) => report.kept.push((layer, why)),
            }
        }
        Ok(held)
    }

    /// Returns the stacks of a container's generations, whole, after those of their images.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn stacks_of(&self, container: &Container) -> Result<Vec<Vec<LayerId>>> {
        let mut images: Vec<Image> = vec![self.image(&container.image)?.value];
        let generations = container.queue.iter().flat_map(|queue| &queue.generations);
        let mut stacks = Vec::new();
        for generation in generations {
            if !images.iter().any(|image| image.digest == generation.image) {
                images.push(self.image(&generation.image)?.value);
            }
            if let Some(image) = images.iter().find(|image| image.digest == generation.image) {
                stacks.push(generation.layers.iter().chain(&image.layers).cloned().collect());
            }
        }
        let mut all: Vec<Vec<LayerId>> = images.into_iter().map(|image| image.layers).collect();
        all.extend(stacks);
        Ok(all)
    }

    fn seal_plan(&self, stacks: &[Vec<LayerId>], diligence: Diligence) -> Result<Vec<SealStep>> {
        let mut open = BTreeSet::new();
        for doc in self.layers()? {
            let record = doc.value;
            let is_refused = record.unsealable.is_some() && diligence == Diligence::Background;
            if record.form == Form::Dir && (!is_refused || record.unresolved) {
                open.insert(record.id);
            }
        }
        Ok(plan_seal(stacks, &|layer| open.contains(layer)))
    }

    /// Tries to make every layer of a stack stand for itself, and returns whether each does. The caller holds the layers
    /// with shared locks.
    ///
    /// # Errors
    /// Where the records or the disk fail.
    pub fn is_resolved(&self, stack: &[LayerId]) -> Result<bool> {
        match self.ensure_resolved(stack) {
            Ok(()) => Ok(!self.states(stack)?.iter().any(|layer| layer.unresolved)),
            Err(failure) if matches!(failure.code, Code::Host | Code::Conflict) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Makes sure that every layer of a stack stands for itself, for whoever reads it without those below it. The
    /// caller holds the layers with shared locks.
    ///
    /// # Errors
    /// Where one does not and cannot be sealed.
    pub fn ensure_resolved(&self, stack: &[LayerId]) -> Result<()> {
        for (position, layer) in self.states(stack)?.into_iter().enumerate().rev().filter(|(_, layer)| layer.unresolved)
        {
            let below = stack.get(position.saturating_add(1)..).unwrap_or_default().to_vec();
            let step = SealStep { layer: layer.id.clone(), below };
            match self.seal_in_turn(&step)? {
                Sealing::Done | Sealing::Nothing => {}
                Sealing::GaveWay | Sealing::Outdated => {
                    let message = format!("layer {} is being sealed by another command", layer.id);
                    return Err(Failure::new(Code::Conflict, message).hint("try again in a moment"));
                }
                Sealing::StaysDirectory(_) if !self.state_of(&step.layer)?.unresolved => {}
                Sealing::StaysDirectory(why) => {
                    let message =
                        format!("layer {} can only be used over the layers it was made over: {why}", layer.id);
                    return Err(Failure::new(Code::Host, message)
                        .hint("start the container and copy what you need out of it, or use `perennial cp`"));
                }
            }
        }
        Ok(())
    }

    /// Seals a layer that a command waits for: whoever works at it in the background is asked to give way.
    fn seal_in_turn(&self, step: &SealStep) -> Result<Sealing> {
        let mut outcome = self.seal_layer(step, Diligence::Asked)?;
        let yielding = self.root.ask_to_yield()?;
        for _ in 0..TURNS_MAX {
            if outcome != Sealing::GaveWay {
                break;
            }
            clock::wait(TURN_PAUSE);
            outcome = self.seal_layer(step, Diligence::Asked)?;
        }
        drop(yielding);
        Ok(outcome)
    }

    /// Seals with little demand on processors and disks, so that nobody notices.
    fn seal_nicely(&self, step: &SealStep) -> Result<Sealing> {
        let _background = Background::enter();
        self.seal_layer(step, Diligence::Background)
    }

    /// Seals one layer and records that; one that stays a directory is at least made to stand for itself.
    fn seal_layer(&self, step: &SealStep, diligence: Diligence) -> Result<Sealing> {
        let outcome = self.try_to_seal(step, diligence)?;
        if matches!(outcome, Sealing::StaysDirectory(_)) && self.state_of(&step.layer)?.unresolved {
            self.resolve_in_place(step)?;
        }
        Ok(outcome)
    }

    fn try_to_seal(&self, step: &SealStep, diligence: Diligence) -> Result<Sealing> {
        let stack: Vec<LayerId> = std::iter::once(&step.layer).chain(&step.below).cloned().collect();
        let Some(_locks) = self.share_without_waiting(&stack)? else { return Ok(Sealing::GaveWay) };
        let Some(record) = self.layer(&step.layer)? else { return Ok(Sealing::Nothing) };
        if record.value.form != Form::Dir || !layer::has_tree(&self.root, &step.layer) {
            return Ok(Sealing::Nothing);
        }
        if self.has_gone(&step.below)? {
            return Ok(Sealing::Outdated);
        }
        if let Some(why) = record.value.unsealable.clone().filter(|_| diligence == Diligence::Background) {
            return Ok(Sealing::StaysDirectory(why));
        }
        if let Some(lower) = self.states(&step.below)?.into_iter().find(|layer| layer.unresolved) {
            // It refers to others in its turn: first it has to stand for itself, which takes nobody using it.
            return Ok(Sealing::StaysDirectory(format!("the layer {} below it is in use", lower.id)));
        }
        let tree = self.root.layer_tree(&step.layer);
        let below = self.open_layers(&step.below)?;
        let (tree, objects) = (tree::open_tree(&tree)?, Objects::open(&self.root)?);
        let request = Request {
            root: &self.root,
            objects: &objects,
            layer: &step.layer,
            tree: tree.as_fd(),
            below: &borrow_all(&below),
            workers: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        };
        let mut give_way = || diligence == Diligence::Background && self.root.must_yield();
        match sealed::seal(&request, &mut give_way) {
            Ok(Outcome::Sealed(sealed)) => self.record_sealed(record.value, record.revision, &sealed.manifest),
            Ok(Outcome::GaveWay) => Ok(Sealing::GaveWay),
            Err(error) if is_final(&error) => {
                self.record_unsealable(record.value, record.revision, Failure::from(error).one_line())
            }
            Err(error) => Err(Failure::from(error).while_doing(format!("cannot seal layer {}", step.layer))),
        }
    }

    /// Whether one of these layers is no more: others have taken its place. The caller holds them with shared locks, so
    /// that those that are there stay.
    fn has_gone(&self, layers: &[LayerId]) -> Result<bool> {
        for layer in layers {
            if self.layer(layer)?.is_none() && !layer::has_tree(&self.root, layer) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Finishes the folds in whole stacks before any layer of them is sealed: a half-folded layer must not be sealed
    /// while the other half is still to come.
    fn finish_folds_in(&self, stacks: &[Vec<LayerId>]) -> Result<()> {
        stacks.iter().try_for_each(|stack| self.finish_interrupted_folds(stack, &[]))
    }

    /// A fold that was cut off has left times of directories that are not the tree's.
    fn finish_folds_of(&self, step: &SealStep) -> Result<()> {
        let stack: Vec<LayerId> = std::iter::once(&step.layer).chain(&step.below).cloned().collect();
        self.finish_interrupted_folds(&stack, &[])
    }

    /// Takes shared locks of layers; nothing where somebody holds one of them exclusively.
    ///
    /// # Errors
    /// Where a lock file cannot be opened.
    pub fn share_without_waiting(&self, layers: &[LayerId]) -> Result<Option<Vec<Lock>>> {
        let mut locks = Vec::with_capacity(layers.len());
        for layer in layers {
            let Some(lock) = self.root.lock_layer(layer, LockMode::Shared, Wait::Never)? else { return Ok(None) };
            locks.push(lock);
        }
        Ok(Some(locks))
    }

    /// The commit point of a seal.
    fn record_sealed(&self, record: LayerRecord, revision: u64, summary: &Summary) -> Result<Sealing> {
        let manifest = Some(ManifestRef { id: summary.id, bytes: summary.bytes });
        let sealed = LayerRecord { form: Form::Sealed, unresolved: false, manifest, unsealable: None, ..record };
        self.replace_layer(&sealed, revision, Sealing::Done)
    }

    fn record_unsealable(&self, record: LayerRecord, revision: u64, why: String) -> Result<Sealing> {
        let kept = LayerRecord { unsealable: Some(why.clone()), ..record };
        self.replace_layer(&kept, revision, Sealing::StaysDirectory(why))
    }

    /// Changes a layer's record unless it has changed since it was read, or is gone.
    fn replace_layer(&self, record: &LayerRecord, revision: u64, done: Sealing) -> Result<Sealing> {
        let _graph = self.root.lock_graph()?;
        let key = keys::layer(&record.id);
        let transaction = Transaction::new().expect(&key, revision).put(&key, record.encode());
        match self.records.commit(&transaction) {
            Ok(_) => Ok(done),
            Err(RecordError::Conflict { .. }) => Ok(Sealing::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the sealed form of a layer whose record says that it is a directory: a seal was cut off before its
    /// transaction. Whoever changes the tree does this before. The caller holds the layer exclusively.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub fn forget_unrecorded_seal(&self, id: &LayerId) -> Result<()> {
        if self.state_of(id)?.form != Form::Dir {
            return Ok(());
        }
        for name in [IMAGE, MANIFEST] {
            match std::fs::remove_file(self.root.layer_dir(id).join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Moves the trees of sealed layers to the trash, unless a mount or a reader may use them; those go later. Returns
    /// whose went.
    ///
    /// # Errors
    /// Where the records cannot be read or a tree cannot be moved.
    pub fn drop_sealed_trees(&self) -> Result<Vec<LayerId>> {
        let left = self.sealed_trees()?;
        if left.is_empty() {
            return Ok(left);
        }
        // Under this lock nobody records a run or a view.
        let _graph = self.root.lock_graph()?;
        let in_use = self.layers_in_use()?;
        let mut dropped = Vec::new();
        for id in left.into_iter().filter(|id| !in_use.contains(id)) {
            let Some(_lock) = self.root.lock_layer(&id, LockMode::Exclusive, Wait::Never)? else { continue };
            // Damage to the sealed form must not cost the tree, the only whole copy then.
            if !self.is_sealed_whole(&id)? {
                continue;
            }
            layer::discard(&self.root, &self.root.layer_tree(&id), &format!("tree-{id}"))?;
            dropped.push(id);
        }
        Ok(dropped)
    }

    /// Returns whether a layer's manifest is the recorded one and its image is there.
    fn is_sealed_whole(&self, id: &LayerId) -> Result<bool> {
        let recorded = self.layer(id)?.and_then(|doc| doc.value.manifest).map(|manifest| manifest.id);
        let Ok(files) = LayerFiles::open(&self.root.layer_dir(id)) else { return Ok(false) };
        let found = files.summary().ok().flatten().map(|summary| summary.id);
        Ok(self.is_whole(id)? && recorded.is_some() && found == recorded)
    }

    /// Returns the sealed layers whose tree is still there.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn sealed_trees(&self) -> Result<Vec<LayerId>> {
        let sealed = self.layers()?.into_iter().map(|doc| doc.value).filter(|record| record.form == Form::Sealed);
        Ok(sealed.map(|record| record.id).filter(|id| layer::has_tree(&self.root, id)).collect())
    }
}

/// Whether an error will be the same at the next try: the layer itself is the reason.
const fn is_final(error: &SealError) -> bool {
    matches!(error, SealError::Unsealable { .. } | SealError::Reference { .. } | SealError::Hijack { .. })
}
