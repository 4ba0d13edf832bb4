//! Stacks of layers as the generations of all containers have them: what lies on what, and their change.

use super::Engine;
use crate::failure::Result;
use perennial_core::generations::Generation;
use perennial_core::id::{ContainerId, LayerId};
use perennial_core::layers::compact::SealedFacts;
use perennial_core::layers::{Form, LayerKind};
use perennial_store::records::{RecordStore as _, Transaction};
use perennial_store::root::Wait;
use std::collections::{BTreeMap, BTreeSet};

/// Layers that lie on different layers in different generations, as after a rebase. Whether a whiteout above them hides
/// something has then no single answer, so they are left as they are.
pub fn on_different_grounds(generations: &[Generation]) -> BTreeSet<LayerId> {
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
    /// The generations of all containers that have any of these layers.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn generations_with(&self, layers: &BTreeSet<LayerId>) -> Result<Vec<Generation>> {
        let containers = self.containers()?;
        let generations = containers.into_iter().flat_map(|doc| doc.value.queue).flat_map(|queue| queue.generations);
        Ok(generations.filter(|generation| generation.layers.iter().any(|layer| layers.contains(layer))).collect())
    }

    /// Those among some layers of generations that may become one with others, with what planning needs of them: sealed,
    /// of no image, the same in every stack, and mounted nowhere, since a mount would keep what they hide twice.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn mergeable(
        &self,
        layers: &BTreeSet<LayerId>,
        generations: &[Generation],
    ) -> Result<BTreeMap<LayerId, SealedFacts>> {
        let (in_use, mut torn) = (self.layers_in_use()?, on_different_grounds(generations));
        torn.extend(self.above_unresolved(generations)?);
        let mut sealed = BTreeMap::new();
        for id in layers.iter().filter(|id| !in_use.contains(*id) && !torn.contains(*id)) {
            let Some(record) = self.layer(id)?.map(|doc| doc.value) else { continue };
            if record.form == Form::Sealed && record.kind == LayerKind::Delta {
                sealed.insert(id.clone(), SealedFacts { entries: record.entries, hides: 0 });
            }
        }
        Ok(sealed)
    }

    /// Commits a transaction together with new stacks for the generations for which there are some; returns whether it
    /// could. Containers that others are at are not changed behind their backs. The caller holds the graph's lock and
    /// `own`'s.
    ///
    /// # Errors
    /// Where the records cannot be read or written; nothing has changed then.
    pub fn commit_stacks(
        &self,
        own: &ContainerId,
        mut transaction: Transaction,
        new_stack: &dyn Fn(&[LayerId]) -> Option<Vec<LayerId>>,
    ) -> Result<bool> {
        let mut locks = Vec::new();
        for doc in self.containers()? {
            let mut generations = doc.value.queue.iter().flat_map(|queue| &queue.generations);
            if !generations.any(|generation| new_stack(&generation.layers).is_some()) {
                continue;
            }
            if doc.value.id != *own {
                let Some(lock) = self.root.lock_container(&doc.value.id, Wait::Never)? else { return Ok(false) };
                locks.push(lock);
            }
            let mut doc = self.container(&doc.value.id)?;
            for generation in doc.value.queue.iter_mut().flat_map(|queue| &mut queue.generations) {
                if let Some(layers) = new_stack(&generation.layers) {
                    generation.layers = layers;
                }
            }
            transaction = self.put_container(transaction, &mut doc, None);
        }
        self.records.commit(&transaction)?;
        Ok(true)
    }

    /// Layers above one that means something only over those below it: what lies under them cannot be told from the
    /// layers one by one, so they are left as they are until it is resolved.
    ///
    /// # Errors
    /// Where a record cannot be read.
    pub fn above_unresolved(&self, generations: &[Generation]) -> Result<BTreeSet<LayerId>> {
        let mut above = BTreeSet::new();
        for generation in generations {
            let states = self.states(&generation.layers)?;
            let Some(deepest) = states.iter().rposition(|layer| layer.unresolved) else { continue };
            above.extend(states.into_iter().take(deepest).map(|layer| layer.id));
        }
        Ok(above)
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

    /// The layers below adjacent layers, newest first, as every generation that has them has them.
    pub fn below_all(&self, of: &[LayerId]) -> Result<Option<Vec<LayerId>>> {
        match of.last() {
            Some(bottom) => self.below(bottom),
            None => Ok(None),
        }
    }
}
