//! `verify` and `scrub`: layers and contents are compared with what their names and manifests say.
//!
//! What is found is marked: a generation with a damaged layer is not started from, and the nearest intact one is named.
//! Layers that are not sealed have no checksums; only their being there can be seen.

use super::Engine;
use crate::clock::{self, Stopwatch};
use crate::failure::{Failure, Result};
use perennial_core::container::Container;
use perennial_core::generations::Generation;
use perennial_core::id::{ContainerName, Digest, LayerId};
use perennial_core::layers::{Form, LayerRecord};
use perennial_core::sealed::manifest::ObjectTable;
use perennial_core::sealed::object::ObjectId;
use perennial_core::verify::{Checked, DamagedGeneration, Depth, Fault, Part, judge};
use perennial_runtime::background::Background;
use perennial_store::cold::{Cold, ColdError};
use perennial_store::layer;
use perennial_store::objects::{Objects, Verdict};
use perennial_store::records::{RecordStore as _, Transaction};
use perennial_store::root::Lock;
use perennial_store::sealed::LayerFiles;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Record of where the last scrub stopped.
const CURSOR: &str = "scrub/cursor";

/// How fast and how long contents are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Bytes a second; as fast as possible where there is none.
    pub bytes_per_s: Option<u64>,
    /// Longest time; to the end where there is none.
    pub at_most: Option<Duration>,
}

/// What was verified, and what was found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Layers that were looked at.
    pub layers: BTreeSet<LayerId>,
    /// Those of them that are not sealed, so that only their being there could be seen.
    pub unsealed: BTreeSet<LayerId>,
    /// Contents that were looked at.
    pub objects: usize,
    /// Bytes that were read again.
    pub bytes: u64,
    /// Whether the end was reached.
    pub is_complete: bool,
    /// What is wrong.
    pub faults: BTreeMap<LayerId, Vec<Fault>>,
    /// Damaged generations by container.
    pub damaged: Vec<(ContainerName, Vec<DamagedGeneration>)>,
}

/// An object with the layers that need it.
struct Wanted {
    id: ObjectId,
    size: u64,
    layers: Vec<LayerId>,
}

impl Engine {
    /// Verifies the layers of some generations of a container, of all of one, or of everything there is.
    ///
    /// # Errors
    /// Where records or directories cannot be read at all; damage is no error but a finding.
    pub fn verify(&self, of: Option<(&Container, Vec<Generation>)>, depth: Depth, pace: Pace) -> Result<Verified> {
        let images = self.image_stacks()?;
        let layers: BTreeSet<LayerId> = match &of {
            Some((_, generations)) => {
                let below = |generation: &Generation| images.get(&generation.image).cloned().unwrap_or_default();
                generations
                    .iter()
                    .flat_map(|generation| [generation.layers.clone(), below(generation)].concat())
                    .collect()
            }
            None => self.recorded_layers()?,
        };
        let (locks, mut found, wanted) = self.look_at_layers(layers)?;
        self.verify_objects(&wanted, depth, pace, &mut found)?;
        // Who holds a container's lock may be waiting for a layer's.
        drop(locks);
        let depth = if found.is_complete { depth } else { Depth::Existence };
        self.mark_damage(depth, &images, &mut found)?;
        Ok(found)
    }

    /// Reads contents again where the last scrub stopped, for a while, and remembers where it stops.
    ///
    /// # Errors
    /// As [`Engine::verify`].
    pub fn scrub(&self, pace: Pace) -> Result<Verified> {
        let _background = Background::enter();
        let images = self.image_stacks()?;
        let (locks, mut found, mut wanted) = self.look_at_layers(self.recorded_layers()?)?;
        let cursor = self
            .records
            .get(CURSOR)?
            .and_then(|record| String::from_utf8_lossy(&record.bytes).parse::<ObjectId>().ok());
        wanted.retain(|object| cursor.is_none_or(|cursor| object.id > cursor));
        let last = self.verify_objects(&wanted, Depth::Full, pace, &mut found)?;
        drop(locks);
        let transaction = match last.filter(|_| !found.is_complete) {
            Some(id) => Transaction::new().put(CURSOR, id.to_string().into_bytes()),
            None => Transaction::new().delete(CURSOR),
        };
        self.records.commit(&transaction)?;
        self.mark_damage(Depth::Existence, &images, &mut found)?;
        Ok(found)
    }

    /// The layers that anything names and that have a record: one that is being made has none yet.
    fn recorded_layers(&self) -> Result<BTreeSet<LayerId>> {
        let is_recorded = |id: &LayerId| self.layer(id).is_ok_and(|record| record.is_some());
        Ok(self.referenced_layers(None)?.into_iter().filter(is_recorded).collect())
    }

    /// Holds layers and verifies what lies in their own directories; returns the contents they name, sorted.
    fn look_at_layers(&self, layers: BTreeSet<LayerId>) -> Result<(Vec<Lock>, Verified, Vec<Wanted>)> {
        let locks = self.share_layers(&layers.iter().cloned().collect::<Vec<_>>())?;
        let mut found = Verified { layers, is_complete: true, ..Verified::default() };
        let wanted = self.verify_layers(&mut found)?;
        Ok((locks, found, wanted))
    }

    fn image_stacks(&self) -> Result<BTreeMap<Digest, Vec<LayerId>>> {
        Ok(self.images()?.into_iter().map(|doc| (doc.value.digest, doc.value.layers)).collect())
    }

    /// Verifies what lies in the layers' own directories; returns the contents they name, sorted.
    fn verify_layers(&self, found: &mut Verified) -> Result<Vec<Wanted>> {
        let mut wanted: BTreeMap<ObjectId, (u64, Vec<LayerId>)> = BTreeMap::new();
        for id in found.layers.clone() {
            let Some(record) = self.layer(&id)? else { continue };
            let mut fault = |part, problem: String| {
                found.faults.entry(id.clone()).or_default().push(Fault { layer: id.clone(), part, problem });
            };
            if let Err(error) = layer::describe(&self.root, &id) {
                fault(Part::Description, Failure::from(error).one_line());
            }
            match record.value.form {
                Form::Dir => {
                    if !layer::has_tree(&self.root, &id) {
                        fault(Part::Tree, "is not there".to_owned());
                    }
                    found.unsealed.insert(id.clone());
                }
                Form::Sealed => {
                    for (object, size) in self.verify_sealed(&record.value, &mut fault) {
                        wanted.entry(object).or_insert((size, Vec::new())).1.push(id.clone());
                    }
                }
            }
        }
        Ok(wanted.into_iter().map(|(id, (size, layers))| Wanted { id, size, layers }).collect())
    }

    /// Verifies manifest and image of a layer, and returns the objects the manifest names as far as it can be read.
    fn verify_sealed(&self, record: &LayerRecord, fault: &mut dyn FnMut(Part, String)) -> Vec<(ObjectId, u64)> {
        let files = match LayerFiles::open(&self.root.layer_dir(&record.id)) {
            Ok(files) => files,
            Err(error) => {
                fault(Part::Manifest, Failure::from(error).one_line());
                return Vec::new();
            }
        };
        let summary = match files.summary() {
            Ok(Some(summary)) => summary,
            Ok(None) => {
                fault(Part::Manifest, "is not there".to_owned());
                return Vec::new();
            }
            Err(error) => {
                fault(Part::Manifest, Failure::from(error).one_line());
                return Vec::new();
            }
        };
        if record.manifest.as_ref().is_some_and(|manifest| manifest.id != summary.id) {
            fault(Part::Manifest, format!("is {} and not the one that was recorded", summary.id));
        }
        match files.image_matches(summary.id, self.root.secret()) {
            Ok(true) => {}
            Ok(false) => fault(Part::Image, "is not what the manifest makes".to_owned()),
            Err(error) => fault(Part::Image, Failure::from(error).one_line()),
        }
        let table = files.manifest().ok().flatten().and_then(|file| ObjectTable::open(file).ok());
        table.iter().flatten().flatten().collect()
    }

    /// Verifies contents; returns the last one that was looked at.
    fn verify_objects(
        &self,
        wanted: &[Wanted],
        depth: Depth,
        pace: Pace,
        found: &mut Verified,
    ) -> Result<Option<ObjectId>> {
        let objects = Objects::open(&self.root)?;
        let watch = Stopwatch::start();
        let verdicts = Mutex::new(Vec::new());
        let next = AtomicUsize::new(0);
        let workers = match (depth, pace.bytes_per_s) {
            (Depth::Full, None) => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            (Depth::Full, Some(_)) | (Depth::Existence, _) => 1,
        };
        let is_late = || pace.at_most.is_some_and(|at_most| watch.elapsed() >= at_most);
        let work = || {
            let mut read = 0_u64;
            while !is_late()
                && let Some(object) = wanted.get(next.fetch_add(1, Ordering::Relaxed))
            {
                let problem = look(&objects, object, depth);
                if let Ok(mut verdicts) = verdicts.lock() {
                    verdicts.push((object, problem));
                }
                if depth == Depth::Full {
                    read = read.saturating_add(object.size);
                    keep_pace(read, pace, watch);
                }
            }
        };
        std::thread::scope(|scope| (1..workers).for_each(|_| drop(scope.spawn(work))));
        work();
        let mut last = None;
        let verdicts = verdicts.into_inner().unwrap_or_default();
        let is_missing = |problem: &Option<String>| problem.as_deref() == Some(MISSING);
        let missing = verdicts.iter().filter(|(_, problem)| is_missing(problem)).map(|(object, _)| object.id).collect();
        let mut packed = self.look_in_packs(missing, depth)?;
        found.is_complete = verdicts.len() == wanted.len();
        for (object, problem) in verdicts {
            last = last.max(Some(object.id));
            found.objects = found.objects.saturating_add(1);
            if depth == Depth::Full {
                found.bytes = found.bytes.saturating_add(object.size);
            }
            let Some(mut problem) = problem else { continue };
            // What lies in a pack instead is whole if it comes out of it whole.
            if problem == MISSING {
                match packed.remove(&object.id).flatten() {
                    None => continue,
                    Some(what) => problem = what,
                }
            }
            for layer in &object.layers {
                let fault = Fault { layer: layer.clone(), part: Part::Object(object.id), problem: problem.clone() };
                found.faults.entry(layer.clone()).or_default().push(fault);
            }
        }
        Ok(last)
    }

    /// Looks for objects in packs, in the order in which they lie there; says what is wrong with each.
    fn look_in_packs(&self, mut missing: Vec<ObjectId>, depth: Depth) -> Result<BTreeMap<ObjectId, Option<String>>> {
        if missing.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut cold = Cold::open(&self.root)?;
        cold.sort(&mut missing);
        Ok(missing.into_iter().map(|id| (id, look_in(&mut cold, &id, depth))).collect())
    }

    /// Returns which of the damaged objects each stack shows that has one of them.
    fn shown_of_damaged(
        &self,
        images: &BTreeMap<Digest, Vec<LayerId>>,
        faults: &BTreeMap<LayerId, Vec<Fault>>,
    ) -> Result<BTreeMap<Vec<LayerId>, BTreeSet<ObjectId>>> {
        let objects: BTreeSet<ObjectId> = faults
            .values()
            .flatten()
            .filter_map(|fault| match fault.part {
                Part::Object(object) => Some(object),
                Part::Description | Part::Tree | Part::Manifest | Part::Image => None,
            })
            .collect();
        let mut shown = BTreeMap::new();
        if objects.is_empty() {
            return Ok(shown);
        }
        for doc in self.containers()? {
            for generation in doc.value.queue.iter().flat_map(|queue| &queue.generations) {
                let image = images.get(&generation.image).cloned().unwrap_or_default();
                let stack = [generation.layers.clone(), image].concat();
                let is_hit = stack.iter().any(|layer| faults.contains_key(layer));
                // Where a manifest is damaged too, whatever its layer names counts.
                if is_hit
                    && !shown.contains_key(&stack)
                    && let Ok(mut of_stack) = self.shown_by(&stack)
                {
                    of_stack.retain(|object| objects.contains(object));
                    shown.insert(stack, of_stack);
                }
            }
        }
        Ok(shown)
    }

    /// Marks generations of all containers, since layers are shared.
    fn mark_damage(&self, depth: Depth, images: &BTreeMap<Digest, Vec<LayerId>>, found: &mut Verified) -> Result<()> {
        let mut damaged = Vec::new();
        let shown = self.shown_of_damaged(images, &found.faults)?;
        for doc in self.containers()? {
            let _lock = self.lock_container_politely(&doc.value.id)?;
            let Ok(mut doc) = self.container(&doc.value.id) else { continue };
            let before = doc.value.clone();
            let checked =
                Checked { depth, layers: &found.layers, faults: &found.faults, images, shown: &shown, at: self.now() };
            let of_this = judge(&mut doc.value, &checked);
            if doc.value != before {
                self.save(&mut doc, None)?;
            }
            if !of_this.is_empty() {
                damaged.push((doc.value.name.clone(), of_this));
            }
        }
        found.damaged = damaged;
        Ok(())
    }
}

/// What is said of an object that is not there.
const MISSING: &str = "is not there";

fn look(objects: &Objects, object: &Wanted, depth: Depth) -> Option<String> {
    match objects.stat(&object.id) {
        Ok(None) => return Some(MISSING.to_owned()),
        Ok(Some(stat)) if stat.size != object.size => {
            return Some(format!("has {} bytes instead of {}", stat.size, object.size));
        }
        Ok(Some(_)) if depth == Depth::Existence => return None,
        Ok(Some(_)) => {}
        Err(error) => return Some(Failure::from(error).one_line()),
    }
    match objects.verify(&object.id, &|| false) {
        Ok(Verdict::Intact) => None,
        Ok(Verdict::Missing) => Some(MISSING.to_owned()),
        Ok(Verdict::Damaged { found }) => Some(format!("its content is that of {found}")),
        Ok(Verdict::Unreadable { errno }) => Some(format!("cannot be read: {errno}")),
        Err(error) => Some(Failure::from(error).one_line()),
    }
}

/// Says what is wrong with an object as packs have it.
fn look_in(cold: &mut Cold, id: &ObjectId, depth: Depth) -> Option<String> {
    match depth {
        Depth::Existence => match cold.contains(id) {
            Ok(true) => None,
            Ok(false) => Some(MISSING.to_owned()),
            Err(error) => Some(Failure::from(error).one_line()),
        },
        Depth::Full => match cold.check(id) {
            Ok(()) => None,
            Err(ColdError::Unknown { .. }) => Some(MISSING.to_owned()),
            Err(error) => Some(Failure::from(error).one_line()),
        },
    }
}

/// Waits until no more was read than the pace allows.
fn keep_pace(read: u64, pace: Pace, watch: Stopwatch) {
    let Some(bytes_per_s) = pace.bytes_per_s.filter(|rate| *rate > 0) else { return };
    let due_ms = read.saturating_mul(1000).checked_div(bytes_per_s).unwrap_or(0);
    let due = Duration::from_millis(due_ms);
    let left = pace.at_most.map_or(due, |at_most| due.min(at_most));
    clock::wait(left.saturating_sub(watch.elapsed()));
}
