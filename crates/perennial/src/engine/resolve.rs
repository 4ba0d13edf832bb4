//! Layers that refer to those below them and cannot be sealed, which would resolve that: they are written once more as
//! directories that stand for themselves.
//!
//! ```text
//! tree ──resolve──▶ staging/<id> ──rename, exchange──▶ tree     the old one: trash
//!                                                       └──▶ layer.json, record: not unresolved any more
//! ```
//!
//! A tree that stands for itself is right where the record still says that it may not, so what is cut off between two
//! of these steps is done again without harm.

use super::trees::borrow_all;
use super::{Engine, random};
use crate::failure::Result;
use perennial_core::id::LayerId;
use perennial_core::layers::{Form, LayerRecord};
use perennial_core::sealed::order::SealStep;
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::sealed::{self, ResolveRequest};
use perennial_store::tree::{self, Measure};
use std::os::fd::AsFd as _;
use std::path::Path;

impl Engine {
    /// Resolves the layers of a stack that are known to stay directories, as far as nobody uses them: for a command
    /// that reads layer by layer, before it takes their locks.
    ///
    /// # Errors
    /// Where the records or the disk fail.
    pub fn resolve_directories(&self, stack: &[LayerId]) -> Result<()> {
        for (position, id) in stack.iter().enumerate().rev() {
            let record = self.layer(id)?.map(|doc| doc.value);
            if record.is_some_and(|record| record.unresolved && record.unsealable.is_some()) {
                let below = stack.get(position.saturating_add(1)..).unwrap_or_default().to_vec();
                self.resolve_in_place(&SealStep { layer: id.clone(), below })?;
            }
        }
        Ok(())
    }

    /// Resolves a layer that stays a directory, unless somebody uses it; returns whether it stands for itself now.
    ///
    /// # Errors
    /// Where something cannot be read or written; the layer is as it was.
    pub fn resolve_in_place(&self, step: &SealStep) -> Result<bool> {
        let Some(_own) = self.root.lock_layer(&step.layer, LockMode::Exclusive, Wait::Never)? else {
            return Ok(false);
        };
        let Some(_below) = self.share_without_waiting(&step.below)? else { return Ok(false) };
        // Keeps `gc` from taking what is in the staging directory for a leftover.
        let Some(_images) = self.root.lock_images(LockMode::Shared, Wait::Never)? else { return Ok(false) };
        if self.layers_in_use()?.contains(&step.layer) || self.states(&step.below)?.iter().any(|layer| layer.unresolved)
        {
            return Ok(false);
        }
        let Some(record) = self.layer(&step.layer)? else { return Ok(false) };
        if record.value.form != Form::Dir || !record.value.unresolved {
            return Ok(!record.value.unresolved);
        }
        self.forget_unrecorded_seal(&step.layer)?;
        let staging = self.root.staging_dir().join(LayerId::from_random(random()?).as_str());
        std::fs::create_dir(&staging)?;
        let measure = match self.write_resolved(step, &staging) {
            Ok(measure) => measure,
            Err(failure) => {
                layer::discard(&self.root, &staging, &format!("tree-{}", step.layer))?;
                return Err(failure);
            }
        };
        layer::replace_tree(&self.root, &step.layer, &staging)?;
        self.record_resolved(record.value, record.revision, measure)?;
        Ok(true)
    }

    fn write_resolved(&self, step: &SealStep, staging: &Path) -> Result<Measure> {
        let (tree, target) = (tree::open_tree(&self.root.layer_tree(&step.layer))?, tree::open_tree(staging)?);
        let (below, objects) = (self.open_layers(&step.below)?, Objects::open(&self.root)?);
        let below = borrow_all(&below);
        let request = ResolveRequest { objects: &objects, tree: tree.as_fd(), below: &below, target: target.as_fd() };
        let measure = sealed::resolve(&request, &mut || false)?;
        super::settle::protect_like(&[tree.as_fd()], target.as_fd())?;
        perennial_runtime::mount::syncfs(staging)?;
        Ok(measure)
    }

    fn record_resolved(&self, record: LayerRecord, revision: u64, measure: Measure) -> Result<()> {
        let (bytes, entries) = (measure.bytes, measure.entries);
        let mut file = layer::describe(&self.root, &record.id)?;
        (file.unresolved, file.bytes, file.entries) = (false, bytes, entries);
        layer::prepare(&self.root, &file)?;
        let record = LayerRecord { unresolved: false, bytes, entries, ..record };
        let _graph = self.root.lock_graph()?;
        let key = keys::layer(&record.id);
        self.records.commit(&Transaction::new().expect(&key, revision).put(&key, record.encode()))?;
        Ok(())
    }
}
