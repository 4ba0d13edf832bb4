//! The generations of a container: roll back, undo, pin, mark.

use super::Engine;
use super::records::{Doc, Note};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::generations::choose::{Selector, choose};
use perennial_core::generations::rollback::{RollbackPlan, apply, mark, plan, plan_undo};
use perennial_core::generations::{Health, Queue};
use perennial_core::id::{ContainerName, Seq};

/// What a rollback goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To a chosen generation.
    To(Selector),
    /// Back to where the last rollback came from.
    Undo,
}

impl Engine {
    /// Plans a rollback without changing anything.
    ///
    /// # Errors
    /// Where the target means no generation, or one that is not whole.
    pub fn plan_rollback(&self, container: &Container, target: &Target) -> Result<RollbackPlan> {
        let empty = Queue::default();
        let queue = container.queue.as_ref().unwrap_or(&empty);
        let planned = match target {
            Target::To(selector) => plan(queue, selector)?,
            Target::Undo => plan_undo(queue).ok_or_else(|| {
                Failure::new(Code::NotFound, format!("container {} has no rollback to undo", container.name))
                    .hint(format!("`perennial events {}` shows what was done with it", container.name))
            })?,
        };
        if let Some(generation) = queue.get(planned.target) {
            self.check_intact(&container.name, generation)?;
        }
        Ok(planned)
    }

    /// Holds a rollback's target against eviction, so that the exit of the present run cannot push it out (A19).
    ///
    /// # Errors
    /// As [`Engine::plan_rollback`].
    pub fn hold(&self, name: &ContainerName, target: &Target) -> Result<Seq> {
        let (_lock, mut doc) = self.locked(name)?;
        let planned = self.plan_rollback(&doc.value, target)?;
        doc.value.queue.get_or_insert_with(Queue::default).held = Some(planned.target);
        self.save(&mut doc, None)?;
        Ok(planned.target)
    }

    /// Rolls a container back that does not run. Nothing is deleted: newer generations are quarantined (A32).
    ///
    /// # Errors
    /// As [`Engine::plan_rollback`], and where the container still has a run.
    pub fn rollback(&self, name: &ContainerName, target: &Target) -> Result<(RollbackPlan, Doc<Container>)> {
        let (_lock, mut doc) = self.locked(name)?;
        if let Some(run) = doc.value.phase.run() {
            let message = format!("container {name} is {} (run {})", doc.value.phase.name(), run.id);
            return Err(Failure::new(Code::Conflict, message).hint("stop it first"));
        }
        let planned = self.plan_rollback(&doc.value, target)?;
        let queue = doc.value.queue.get_or_insert_with(Queue::default);
        apply(queue, &planned)?;
        let image = queue.current().map(|generation| generation.image.clone());
        if let Some(image) = image {
            if image != doc.value.image {
                doc.value.image_name = self.name_of_image(&image)?;
            }
            doc.value.image = image;
        }
        let note = Note {
            action: if *target == Target::Undo { "undo-rollback" } else { "rollback" },
            detail: format!("quarantined {:?}, released {:?}", numbers(&planned.quarantine), numbers(&planned.release)),
            from: planned.from,
            to: Some(planned.target),
        };
        self.save(&mut doc, Some(note))?;
        Ok((planned, doc))
    }

    /// Protects a generation against eviction, or ends that.
    ///
    /// # Errors
    /// Where container or generation are unknown.
    pub fn pin(&self, name: &ContainerName, selector: &Selector, pinned: Pinned) -> Result<Seq> {
        self.change_generation(name, selector, |queue, seq| {
            if let Some(generation) = queue.get_mut(seq) {
                generation.pinned = pinned == Pinned::Yes;
            }
            Ok(Note::new(if pinned == Pinned::Yes { "pin" } else { "unpin" }, String::new()))
        })
    }

    /// Marks what is known about a generation's health.
    ///
    /// # Errors
    /// Where container or generation are unknown.
    pub fn mark(&self, name: &ContainerName, selector: &Selector, health: Health) -> Result<Seq> {
        self.change_generation(name, selector, |queue, seq| {
            mark(queue, seq, health)?;
            Ok(Note::new("mark", format!("{health:?}").to_lowercase()))
        })
    }

    fn change_generation(
        &self,
        name: &ContainerName,
        selector: &Selector,
        change: impl FnOnce(&mut Queue, Seq) -> Result<Note>,
    ) -> Result<Seq> {
        let (_lock, mut doc) = self.locked(name)?;
        let queue = doc.value.queue.get_or_insert_with(Queue::default);
        let seq = match selector {
            // A damaged generation can be pinned and marked, so only its number has to exist.
            Selector::Seq(seq) if queue.get(*seq).is_some() => *seq,
            Selector::Seq(_) | Selector::At { .. } | Selector::LatestGood => choose(queue, selector)?,
        };
        let note = Note { to: Some(seq), ..change(queue, seq)? };
        self.save(&mut doc, Some(note))?;
        Ok(seq)
    }
}

/// Whether a generation is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    /// Eviction passes it over.
    Yes,
    /// It ages out as others do.
    No,
}

fn numbers(seqs: &[Seq]) -> Vec<u64> {
    seqs.iter().map(|seq| seq.0).collect()
}
