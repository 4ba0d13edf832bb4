//! What is to be sent, sealed and held: its layers stay as they are meanwhile.

use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Phase};
use perennial_core::generations::{Generation, Health, Queue};
use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId, Seq};
use perennial_core::image::Image;
use perennial_core::layers::{Form, LayerRecord};
use perennial_core::travel::clean;
use perennial_store::root::{Lock, LockMode, Wait};
use std::collections::{BTreeMap, BTreeSet};

/// How often what is to be sent is looked at again, because it was changed while it was locked.
const LOOKS_MAX: u32 = 16;

/// What is to be sent, and held meanwhile.
pub(super) struct Load {
    pub(super) container: Container,
    pub(super) layers: BTreeMap<LayerId, LayerRecord>,
    pub(super) images: Vec<Image>,
    pub(super) left_out: Vec<Seq>,
    pub(super) is_running: bool,
    _locks: Vec<Lock>,
}

impl Load {
    pub(super) fn records(&self, ids: impl Iterator<Item = LayerId>) -> Vec<LayerRecord> {
        let ids: BTreeSet<LayerId> = ids.collect();
        ids.iter().filter_map(|id| self.layers.get(id).cloned()).collect()
    }

    /// Records of the layers that generations add to their images.
    pub(super) fn own(&self) -> Vec<LayerRecord> {
        self.records(self.container.queue.iter().flat_map(Queue::layers))
    }
}

impl Engine {
    /// Seals what is to be sent, and holds it: its layers stay as they are meanwhile.
    pub(super) fn load(&self, id: &ContainerId, until: Option<Seq>) -> Result<Load> {
        for _ in 0..LOOKS_MAX {
            let (container, left_out) = self.pruned(id, until)?;
            let stacks = self.stacks_of(&container)?;
            self.seal_for_travel(&container.name, &|| self.stacks_of(&self.pruned(id, until)?.0))?;
            let ids: BTreeSet<LayerId> = stacks.into_iter().flatten().collect();
            let mut locks = Vec::new();
            for id in &ids {
                locks.extend(self.root.lock_layer(id, LockMode::Shared, Wait::Forever)?);
            }
            let (again, _) = self.pruned(id, until)?;
            let mut layers = BTreeMap::new();
            for id in &ids {
                layers.extend(self.layer(id)?.map(|doc| (id.clone(), LayerRecord { cold: false, ..doc.value })));
            }
            let is_sealed = layers.len() == ids.len() && layers.values().all(|layer| layer.form == Form::Sealed);
            if is_sealed && again.queue == container.queue && again.image == container.image {
                let images = self.images_under(&container)?;
                let is_running = self.container(&container.id)?.value.phase.run().is_some();
                return Ok(Load { container, layers, images, left_out, is_running, _locks: locks });
            }
        }
        Err(Failure::new(Code::Conflict, "what is to be sent changes all the time").hint("try again in a moment"))
    }

    fn images_under(&self, container: &Container) -> Result<Vec<Image>> {
        let generations = container.queue.iter().flat_map(|queue| &queue.generations);
        let mut digests: BTreeSet<Digest> = generations.map(|generation| generation.image.clone()).collect();
        digests.insert(container.image.clone());
        digests.iter().map(|digest| Ok(self.image(digest)?.value)).collect()
    }

    fn seal_for_travel(&self, name: &ContainerName, stacks: &dyn Fn() -> Result<Vec<Vec<LayerId>>>) -> Result<()> {
        let mut is_open = false;
        for layer in stacks()?.iter().flatten() {
            is_open |= self.layer(layer)?.is_none_or(|doc| doc.value.form != Form::Sealed);
        }
        if !is_open {
            return Ok(());
        }
        let report = self.seal_stacks(stacks)?;
        match report.kept.first() {
            None => Ok(()),
            Some((layer, why)) => {
                let message = format!("{name} cannot travel: layer {layer} stays a directory: {why}");
                Err(Failure::new(Code::Host, message).hint(
                    "`perennial export --flatten` writes what it shows as an image; clear what stands in the way inside \
                     the container, and let that generation age out",
                ))
            }
        }
    }

    /// Returns a container as it goes: without its run, what belongs to this machine, and damaged generations.
    fn pruned(&self, id: &ContainerId, until: Option<Seq>) -> Result<(Container, Vec<Seq>)> {
        let mut container = self.container(id)?.value;
        let mut left_out = Vec::new();
        if let Some(queue) = &mut container.queue {
            let is_meant = |generation: &Generation| until.is_none_or(|until| generation.seq <= until);
            if let Some(until) = until.filter(|until| queue.get(*until).is_none()) {
                let name = &container.name;
                return Err(Failure::new(Code::NotFound, format!("there is no generation {name}@{until}"))
                    .hint(format!("`perennial generations {name}` lists them")));
            }
            queue.generations.retain(is_meant);
            let is_damaged = |generation: &Generation| generation.health == Health::Damaged;
            left_out = queue.generations.iter().filter(|g| is_damaged(g)).map(|g| g.seq).collect();
            queue.generations.retain(|generation| !is_damaged(generation));
            for generation in &mut queue.generations {
                generation.cold = false;
                generation.note = generation.note.as_deref().map(clean);
                generation.by = clean(&generation.by);
            }
            (queue.undo, queue.held) = (None, None);
            if queue.current.is_some_and(|current| queue.get(current).is_none()) {
                queue.current = queue.generations.iter().rev().find(|g| !g.quarantined).map(|g| g.seq);
            }
            if let Some(until) = until {
                queue.next_seq = until.next();
            }
        }
        let has_run = container.queue.as_ref().is_some_and(|queue| !queue.generations.is_empty());
        container.phase = if has_run { Phase::Dormant } else { Phase::Created };
        if !has_run {
            container.queue = None;
        }
        container.image_name = clean(&container.image_name);
        container.conditions.clear();
        container.policy.push = None;
        container.next_event = 1;
        Ok((container, left_out))
    }
}
