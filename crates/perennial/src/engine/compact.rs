//! Several sealed layers made one, so that stacks stay shallow and contents go that no generation shows.
//!
//! A new layer is written beside the old ones, metadata only, and takes their place in the generations that have them
//! all. What then names them no more is freed as any layer is.

use super::records::Doc;
use super::settle::Step;
use super::trees::borrow_all;
use super::{Engine, random};
use crate::failure::{Failure, Result};
use perennial_core::container::Container;
use perennial_core::generations::Queue;
use perennial_core::id::{ContainerId, LayerId};
use perennial_core::layers::compact::{Compact, Demand, pairs_together, plan_compact, replace};
use perennial_core::layers::{DEPTH_MAX, Form, Hides, LayerKind, LayerRecord, ManifestRef};
use perennial_core::sealed::manifest::Summary;
use perennial_store::objects::Objects;
use perennial_store::records::{RecordError, RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::sealed::{self, CompactOutcome, CompactRequest};
use std::os::fd::AsFd as _;

impl Engine {
    /// Merges sealed layers of a container where that is due. The caller holds the container's lock.
    ///
    /// # Errors
    /// Where the records or the disk fail; everything is then as before.
    pub fn compact_step(&self, doc: &Doc<Container>, demand: Demand) -> Result<Step> {
        let Some(plan) = self.next_compaction(&doc.value, demand)? else { return Ok(Step::Nothing) };
        let Some(below) = self.below_all(&plan.of)? else { return Ok(Step::Nothing) };
        let stack: Vec<LayerId> = plan.of.iter().chain(&below).cloned().collect();
        let Some(_locks) = self.share_without_waiting(&stack)? else { return Ok(Step::GaveWay) };
        // Keeps `gc` from taking the new layer, which nothing names yet, for a leftover.
        let Some(_images) = self.root.lock_images(LockMode::Shared, Wait::Never)? else { return Ok(Step::GaveWay) };
        if self.next_compaction(&doc.value, demand)?.as_ref() != Some(&plan) {
            return Ok(Step::GaveWay);
        }
        let id = LayerId::from_random(random()?);
        let below = self.open_layers(&below)?;
        let request =
            CompactRequest { root: &self.root, of: &plan.of, layer: &id, below: &borrow_all(&below), now: self.now() };
        let done = sealed::compact(&request, &mut || self.root.must_yield());
        let outcome = match done {
            Ok(CompactOutcome::GaveWay) => return Ok(Step::GaveWay),
            Ok(CompactOutcome::Done(made)) => self
                .record_of(&id, &made.manifest, made.image_bytes)
                .and_then(|record| Ok(LayerRecord { cold: record.cold && self.is_any_cold(&plan.of)?, ..record }))
                .and_then(|record| self.commit_compaction(&doc.value.id, &plan, &record)),
            Err(error) => Err(Failure::from(error).while_doing("cannot put sealed layers together")),
        };
        match outcome {
            Ok(true) => {
                // Before the old layers go: a rebuild from an older copy would look for them.
                self.keep_container_copies();
                Ok(Step::Did)
            }
            Ok(false) => {
                self.discard_layer(&id)?;
                Ok(Step::GaveWay)
            }
            Err(failure) => {
                // Only what is known not to be recorded goes; `gc` finds what is left.
                if self.layer(&id).is_ok_and(|record| record.is_none()) {
                    self.discard_layer(&id).ok();
                }
                Err(failure)
            }
        }
    }

    /// Whether what these layers have may be in packs only. The caller holds them with shared locks.
    fn is_any_cold(&self, layers: &[LayerId]) -> Result<bool> {
        for id in layers {
            if self.layer(id)?.is_some_and(|doc| doc.value.cold) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn next_compaction(&self, container: &Container, demand: Demand) -> Result<Option<Compact>> {
        let own = container.queue.as_ref().map(Queue::layers).unwrap_or_default();
        let touching = self.generations_with(&own)?;
        let stacks: Vec<&[LayerId]> = touching.iter().map(|generation| generation.layers.as_slice()).collect();
        let mut sealed = self.mergeable(&own, &touching)?;
        for (top, bottom) in pairs_together(&stacks, &sealed) {
            let hides = self.hidden_by(top, bottom)?;
            if let Some(facts) = sealed.get_mut(top) {
                facts.hides = hides;
            }
        }
        Ok(plan_compact(&stacks, &sealed, demand, DEPTH_MAX))
    }

    /// Bytes of contents that a sealed layer hides of the sealed layer below it: looked up once, then recorded. 0 where that
    /// cannot be told now.
    fn hidden_by(&self, top: &LayerId, bottom: &LayerId) -> Result<u64> {
        let Some(doc) = self.layer(top)? else { return Ok(0) };
        if let Some(hides) = doc.value.hides.as_ref().filter(|hides| hides.below == *bottom) {
            return Ok(hides.bytes);
        }
        let pair = [top.clone(), bottom.clone()];
        let Some(_locks) = self.share_without_waiting(&pair)? else { return Ok(0) };
        // One that is damaged or cannot be mounted here is left as it is.
        let Ok(trees) = self.open_layers(&pair) else { return Ok(0) };
        let [tree, below] = trees.as_slice() else { return Ok(0) };
        let found = sealed::hidden(&self.root, top, (tree.as_fd(), below.as_fd()), &mut || self.must_yield());
        let Ok(Some(found)) = found else { return Ok(0) };
        let hides = Some(Hides { below: bottom.clone(), bytes: found.bytes });
        let (key, record) = (keys::layer(top), LayerRecord { hides, ..doc.value });
        match self.records.commit(&Transaction::new().expect(&key, doc.revision).put(&key, record.encode())) {
            // Where it has changed meanwhile, it is found out again.
            Ok(_) | Err(RecordError::Conflict { .. }) => Ok(found.bytes),
            Err(error) => Err(error.into()),
        }
    }

    /// The record of a layer that is made of others, with what its contents take on disk; cold where some are not there.
    fn record_of(&self, id: &LayerId, manifest: &Summary, image_bytes: u64) -> Result<LayerRecord> {
        let objects = Objects::open(&self.root)?;
        let mut named = Vec::new();
        self.sized_objects_of(&self.root.layer_dir(id), &mut |object, size| named.push((object, size)))?;
        let mut bytes = manifest.bytes.saturating_add(image_bytes);
        let mut cold = false;
        for (object, size) in named {
            let stat = objects.stat(&object)?;
            cold |= stat.is_none();
            bytes = bytes.saturating_add(stat.map_or(size, |stat| stat.allocated));
        }
        let size = (bytes, manifest.counts.entries);
        let record = LayerRecord::of_tree(id.clone(), LayerKind::Delta, size, self.now());
        let manifest = Some(ManifestRef { id: manifest.id, bytes: manifest.bytes });
        Ok(LayerRecord { form: Form::Sealed, manifest, cold, ..record })
    }

    /// Puts the new layer in the place of the old ones in every generation that has them all; returns whether it could.
    /// Containers that others are at are not changed behind their backs. The caller holds `own`'s lock.
    fn commit_compaction(&self, own: &ContainerId, plan: &Compact, record: &LayerRecord) -> Result<bool> {
        let _graph = self.root.lock_graph()?;
        let transaction = Transaction::new().put(keys::layer(&record.id), record.encode());
        self.commit_stacks(own, transaction, &|stack| replace(stack, &plan.of, &record.id))
    }
}
