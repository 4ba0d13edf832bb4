//! Thawing: what a cold generation shows is taken out of packs before anything mounts or reads it.
//!
//! ```text
//! packs ──rebuilt, compared with its name──▶ files without a name ──sync──▶ objects/ ──sync──▶ layers are hot again
//! ```
//!
//! It can be cut off at any instant and goes on where it was: an object appears when its content is durable. Whoever
//! asks for it holds the layers with shared locks, and objects are taken from a layer only under an exclusive one, so
//! what is thawed stays.

mod crew;

pub(super) use crew::Thawers;

use super::Engine;
use super::records::Doc;
use crate::cli::output::Style;
use crate::cli::progress::ThawBar;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::LayerId;
use perennial_core::layers::{Form, LayerRecord};
use perennial_core::sealed::object::ObjectId;
use perennial_store::cold::{Cold, ColdError};
use perennial_store::objects::Objects;
use perennial_store::records::{RecordError, RecordStore as _, Transaction, keys};
use perennial_store::sealed;
use std::collections::{BTreeMap, BTreeSet};

/// How often a thaw tells how far it is, at most: whoever listens may be busy, and what waits for it must fit in a pipe.
const TOLD_MAX: usize = 200;

/// How far a thaw is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawing {
    /// Contents that are back.
    pub done: usize,
    /// Contents that are to come back.
    pub total: usize,
}

impl Engine {
    /// Makes everything hot that a stack shows, newest layer first. The caller holds its layers with shared locks.
    ///
    /// # Errors
    /// Where something it shows cannot be read from packs, or the disk is full; what is in packs stays there.
    pub fn thaw(&self, stack: &[LayerId]) -> Result<()> {
        let mut bar = ThawBar::new(Style::Text);
        self.thaw_telling(stack, &mut |thawing| bar.show(thawing))
    }

    /// The same, telling how far it is: at the beginning where there is anything to do, and now and then.
    ///
    /// # Errors
    /// As [`Engine::thaw`].
    pub fn thaw_telling(&self, stack: &[LayerId], tell: &mut dyn FnMut(Thawing)) -> Result<()> {
        let cold = self.cold_among(stack)?;
        if cold.is_empty() {
            return Ok(());
        }
        let objects = Objects::open(&self.root)?;
        let mut sizes = BTreeMap::new();
        for id in stack {
            self.sized_objects_of(&self.root.layer_dir(id), &mut |object, size| {
                sizes.insert(object, size);
            })?;
        }
        let is_hot = |object: &ObjectId| -> Result<bool> {
            let stat = objects.stat(object)?;
            Ok(stat.is_some_and(|stat| sizes.get(object).is_none_or(|size| *size == stat.size)))
        };
        let mut missing = Vec::new();
        for object in self.shown_by(stack)? {
            if !is_hot(&object)? {
                missing.push(object);
            }
        }
        if !missing.is_empty() {
            self.thaw_objects(&objects, missing, tell)?;
        }
        objects.sync()?;
        let mut whole = Vec::new();
        for doc in cold {
            let mut all = true;
            let mut named = Vec::new();
            self.objects_of(&self.root.layer_dir(&doc.value.id), &mut |object| named.push(object))?;
            for object in named {
                all = all && is_hot(&object)?;
            }
            whole.extend(all.then_some(doc));
        }
        self.record_hot(whole)
    }

    /// Returns the objects that stacks of layers show: of each stretch of sealed layers for itself, which is never too few.
    ///
    /// # Errors
    /// Where a manifest cannot be read.
    pub fn shown_by(&self, stack: &[LayerId]) -> Result<BTreeSet<ObjectId>> {
        let states = self.states(stack)?;
        let mut shown = BTreeSet::new();
        for part in states.split(|layer| layer.form != Form::Sealed).filter(|part| !part.is_empty()) {
            let part: Vec<LayerId> = part.iter().map(|layer| layer.id.clone()).collect();
            shown.append(&mut sealed::objects_of_merge(&self.root, &part, &[])?);
        }
        Ok(shown)
    }

    fn cold_among(&self, stack: &[LayerId]) -> Result<Vec<Doc<LayerRecord>>> {
        let mut cold = Vec::new();
        for id in stack {
            cold.extend(self.layer(id)?.filter(|doc| doc.value.cold));
        }
        Ok(cold)
    }

    fn thaw_objects(&self, objects: &Objects, mut missing: Vec<ObjectId>, tell: &mut dyn FnMut(Thawing)) -> Result<()> {
        let cold = Cold::open(&self.root).map_err(unthawed)?;
        let runs = cold.runs(&mut missing);
        let total = missing.len();
        let step = total.div_ceil(TOLD_MAX);
        Thawers::run(&cold, objects, unthawed, |thawers| {
            let mut next = 0;
            for run in runs {
                let done = thawers.done();
                if done >= next {
                    tell(Thawing { done, total });
                    next = done.saturating_add(step);
                }
                thawers.add(missing.get(run).unwrap_or_default());
                if thawers.has_failed() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Records that layers are hot, unless they have changed since they were read: then it is found out again.
    fn record_hot(&self, layers: Vec<Doc<LayerRecord>>) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::new();
        for doc in layers {
            let key = keys::layer(&doc.value.id);
            let hot = LayerRecord { cold: false, ..doc.value };
            transaction = transaction.expect(&key, doc.revision).put(&key, hot.encode());
        }
        let _graph = self.root.lock_graph()?;
        match self.records.commit(&transaction) {
            Ok(_) | Err(RecordError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Says what stood in the way, and what can be done.
fn unthawed(error: ColdError) -> Failure {
    let is_full = matches!(&error, ColdError::Io { source, .. }
        if matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded));
    let is_damaged = matches!(&error, ColdError::Damaged { .. } | ColdError::Unknown { .. });
    let failure = Failure::from(error).while_doing("cannot take everything out of packs that this generation shows");
    match (is_full, is_damaged) {
        (true, _) => failure.hint(
            "nothing is lost: what is in packs stays there; free some space on that file system and try again, it goes on \
             where it was",
        ),
        (false, true) => failure
            .code(Code::Damaged)
            .hint("`perennial verify --full` names the generations that are hit; all others can still be used"),
        (false, false) => failure,
    }
}
