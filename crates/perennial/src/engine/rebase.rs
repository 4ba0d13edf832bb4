//! Puts a container's state on another image, as a new generation (row A30).
//!
//! The layers are shared with the generation they come from, unless one of them holds a whiteout that hides nothing in
//! the new image: overlayfs would show such a name as one that cannot be opened, so the layers are flattened then.

use super::records::{Doc, Note};
use super::trees::borrow_all;
use super::views::{Held, Opened};
use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::generations::choose::ChooseError;
use perennial_core::generations::{Generation, Health, Kind, Queue};
use perennial_core::id::{ContainerName, Digest, LayerId, Seq};
use perennial_core::image::Image;
use perennial_core::layers::{LayerKind, LayerRecord};
use perennial_core::rebase::{Conflict, Difference, RebaseFacts, conflicts};
use perennial_core::tree::Below;
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::tree::attrs::{AttrIo, Target};
use perennial_store::tree::below::{BelowView, Cut};
use perennial_store::tree::diff::{Change, ChangeKind};
use perennial_store::tree::error::PathTrail;
use perennial_store::tree::walk::{Order, Visit, walk};
use perennial_store::tree::{self, Measure, TreeError};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd};

/// What a rebase does to the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayersPlan {
    /// The container has none yet.
    Nothing,
    /// Both generations use the same layers.
    Share,
    /// The new generation gets one layer of its own, with copies.
    Flatten,
}

/// What a rebase would do.
#[derive(Debug, Clone)]
pub struct RebasePlan {
    /// Generation whose layers are put on the new image; absent where the container has none.
    pub from: Option<Seq>,
    /// Image it lies on.
    pub old: Digest,
    /// Image it is to lie on.
    pub new: Digest,
    /// What becomes of the layers.
    pub layers: LayersPlan,
    /// Paths both sides have changed; the container's version shows.
    pub conflicts: Vec<Conflict>,
}

/// What a rebase has done.
#[derive(Debug, Clone)]
pub struct Rebased {
    /// What was planned.
    pub plan: RebasePlan,
    /// The new generation; absent where the container had none.
    pub seq: Option<Seq>,
    /// Generations that left the queue for it.
    pub evicted: Vec<Seq>,
}

/// Whether to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carry {
    /// Only plan it.
    Plan,
    /// Plan it and carry it out.
    Out,
}

/// What the layers of a generation do to what is below them.
#[derive(Debug, Default)]
struct Traits {
    /// Directories that hide what is below.
    opaque: BTreeSet<Vec<u8>>,
    /// Whether a whiteout hides nothing.
    has_idle_whiteout: bool,
}

impl Engine {
    /// Puts a container that does not run on another image.
    ///
    /// # Errors
    /// Where it runs, lies on that image already, or something of it is not whole; nothing has changed then.
    pub fn rebase(&self, name: &ContainerName, image_name: &str, carry: Carry) -> Result<Rebased> {
        let (_lock, mut doc) = self.locked(name)?;
        if let Some(run) = doc.value.phase.run() {
            let message = format!("container {name} is {} (run {})", doc.value.phase.name(), run.id);
            return Err(Failure::new(Code::Conflict, message).hint(format!("`perennial stop {name}` ends it")));
        }
        let new = self.image(&self.resolve_image_to_use(image_name)?)?.value;
        let origin = origin_of(&doc.value)?;
        let old = origin.as_ref().map_or(&doc.value.image, |generation| &generation.image).clone();
        if old == new.digest {
            let message = format!("container {name} lies on image {image_name} already");
            return Err(Failure::new(Code::Conflict, message).hint("`perennial image ls` lists the others"));
        }
        let Some(origin) = origin else {
            let plan =
                RebasePlan { from: None, old, new: new.digest, layers: LayersPlan::Nothing, conflicts: Vec::new() };
            return self.rebase_unborn(&mut doc, image_name, plan, carry);
        };
        // Held until the new generation names them.
        let generation = self.open_view(self.hold_layers(name, origin.seq)?)?;
        let below = self.hold_image(new)?;
        let plan = self.plan_rebase(&generation, &origin, &below.image)?;
        if carry == Carry::Plan {
            return Ok(Rebased { plan, seq: None, evicted: Vec::new() });
        }
        let made = match plan.layers {
            LayersPlan::Nothing | LayersPlan::Share => None,
            LayersPlan::Flatten => Some(self.flatten(&origin.layers, &below)?),
        };
        self.commit_rebase(&mut doc, (image_name, &origin, made), plan)
    }

    /// A container without generations only changes its image.
    fn rebase_unborn(
        &self,
        doc: &mut Doc<Container>,
        image_name: &str,
        plan: RebasePlan,
        carry: Carry,
    ) -> Result<Rebased> {
        if carry == Carry::Out {
            let _graph = self.root.lock_graph()?;
            self.image(&plan.new)?;
            doc.value.image = plan.new.clone();
            image_name.clone_into(&mut doc.value.image_name);
            self.save(doc, Some(Note::new("rebase", format!("to image {image_name}"))))?;
        }
        Ok(Rebased { plan, seq: None, evicted: Vec::new() })
    }

    fn plan_rebase(&self, generation: &Opened, origin: &Generation, new: &Image) -> Result<RebasePlan> {
        let old = self.open_view(self.hold_image(self.image(&origin.image)?.value)?)?;
        let new_view = self.open_view(self.hold_image(new.clone())?)?;
        let own = self.open_layers(&origin.layers)?;
        let below = self.open_layers(&new.layers)?;
        let traits = traits_of(&borrow_all(&own), &borrow_all(&below))?;
        let facts = RebaseFacts {
            ours: by_path(self.differences(&old, generation)?),
            opaque: traits.opaque,
            theirs: by_path(self.differences(&old, &new_view)?),
        };
        let layers = match (origin.layers.is_empty(), traits.has_idle_whiteout) {
            (true, _) => LayersPlan::Nothing,
            (false, false) => LayersPlan::Share,
            (false, true) => LayersPlan::Flatten,
        };
        let (from, old, new) = (Some(origin.seq), origin.image.clone(), new.digest.clone());
        Ok(RebasePlan { from, old, new, layers, conflicts: conflicts(&facts) })
    }

    /// Writes layers as one, for use over an image that is held, and publishes it; nothing names it yet.
    fn flatten(&self, layers: &[LayerId], below: &Held) -> Result<LayerRecord> {
        let id = LayerId::from_random(random()?);
        let staging = self.root.staging_dir().join(id.as_str());
        std::fs::create_dir(&staging)?;
        let made = (|| -> Result<Measure> {
            let own = self.open_layers(layers)?;
            let target = tree::open_tree(&staging)?;
            let measure = self.write_out(layers, &below.image.layers, target.as_fd())?;
            super::settle::protect_like(&borrow_all(&own), target.as_fd())?;
            let origin = LayerOrigin::Merged { of: layers.to_vec() };
            let (bytes, entries) = (measure.bytes, measure.entries);
            let (created_at, unresolved) = (self.now(), false);
            let file = LayerFile { id: id.clone(), created_at, origin, bytes, entries, unresolved };
            layer::prepare(&self.root, &file)?;
            perennial_runtime::mount::syncfs(&staging)?;
            layer::adopt_tree(&self.root, &id, &staging)?;
            Ok(measure)
        })();
        let measure = match made {
            Ok(measure) => measure,
            Err(failure) => {
                // What cannot be removed now is freed by `gc`.
                layer::discard(&self.root, &staging, &format!("staging-{id}")).ok();
                layer::discard(&self.root, &self.root.layer_dir(&id), &format!("layer-{id}")).ok();
                self.empty_trash();
                return Err(failure.while_doing("cannot put the layers together for the new image"));
            }
        };
        Ok(LayerRecord::of_tree(id, LayerKind::Delta, (measure.bytes, measure.entries), self.now()))
    }

    /// The commit point: appends the generation, evicts, and moves the container to the image in one transaction.
    fn commit_rebase(
        &self,
        doc: &mut Doc<Container>,
        (image_name, origin, made): (&str, &Generation, Option<LayerRecord>),
        plan: RebasePlan,
    ) -> Result<Rebased> {
        let note = format!("generation {} rebased on image {image_name}", origin.seq);
        let mut generation = self.derived(origin, Kind::Rebase, Some(origin.seq), note);
        generation.image = plan.new.clone();
        // Nothing has run in this state yet, so nothing speaks for it.
        (generation.health, generation.clean) = (Health::Unknown, false);
        let _graph = self.root.lock_graph()?;
        // The image must still be there when the record that needs it is committed.
        self.image(&plan.new)?;
        let mut transaction = Transaction::new();
        if let Some(record) = made {
            generation.layers = vec![record.id.clone()];
            (generation.bytes, generation.entries) = (record.bytes, record.entries);
            transaction = transaction.put(keys::layer(&record.id), record.encode());
        }
        let policy = doc.value.policy.clone();
        let appended = doc.value.queue.get_or_insert_with(Queue::default).append(generation, &policy);
        doc.value.note_retention(appended.is_blocked, self.now());
        doc.value.image = plan.new.clone();
        image_name.clone_into(&mut doc.value.image_name);
        let detail = format!("to image {image_name}, {} conflicts", plan.conflicts.len());
        let note = Note { from: Some(origin.seq), to: Some(appended.seq), ..Note::new("rebase", detail) };
        let transaction = self.put_container(transaction, doc, Some(note));
        doc.revision = self.records.commit(&transaction)?;
        Ok(Rebased { plan, seq: Some(appended.seq), evicted: appended.evicted })
    }
}

/// Returns the current generation, or nothing where the container has none at all.
fn origin_of(container: &Container) -> Result<Option<Generation>> {
    let Some(queue) = container.queue.as_ref().filter(|queue| !queue.generations.is_empty()) else { return Ok(None) };
    match queue.current() {
        Some(generation) => Ok(Some(generation.clone())),
        None => Err(Failure::from(ChooseError::Empty)
            .hint(format!("choose a generation with `perennial rollback {}`", container.name))),
    }
}

fn by_path(changes: Vec<Change>) -> BTreeMap<Vec<u8>, Difference> {
    changes.into_iter().map(|change| (change.path, difference(change.kind))).collect()
}

/// Says how a path differs in the core's words.
pub fn difference(kind: ChangeKind) -> Difference {
    match kind {
        ChangeKind::Added => Difference::Added,
        ChangeKind::Removed => Difference::Removed,
        ChangeKind::Modified { content: true, .. } => Difference::Content,
        ChangeKind::Modified { content: false, .. } => Difference::Metadata,
        ChangeKind::TypeChanged => Difference::Type,
    }
}

/// Looks through layers, newest first, for what matters over another image.
fn traits_of(layers: &[BorrowedFd<'_>], image: &[BorrowedFd<'_>]) -> std::result::Result<Traits, TreeError> {
    let mut traits = Traits::default();
    let mut io = AttrIo::default();
    for (position, layer) in layers.iter().enumerate() {
        let under = layers.get(position.saturating_add(1)..).unwrap_or_default();
        let under: Vec<BorrowedFd<'_>> = under.iter().chain(image).copied().collect();
        let mut below: Option<BelowView> = None;
        walk(*layer, Order::Listed, &mut |visit| {
            match visit {
                Visit::Enter { own, path, .. } => {
                    let is_opaque = io.is_opaque(Target::Open(own), &|| path.here())?;
                    if is_opaque {
                        traits.opaque.insert(path.as_bytes().to_vec());
                    }
                    match &mut below {
                        None => below = Some(BelowView::new(&under, Cut::of_opaque(is_opaque))?),
                        Some(below) => below.enter(&name_of(path), Cut::of_opaque(is_opaque)),
                    }
                }
                Visit::NonDir(entry) if entry.stat.is_whiteout() => {
                    if let Some(below) = &mut below {
                        traits.has_idle_whiteout |= below.shows(entry.name)? == Below::Absent;
                    }
                }
                Visit::NonDir(_) => {}
                Visit::Leave { .. } => {
                    if let Some(below) = &mut below {
                        below.leave()?;
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(traits)
}

fn name_of(path: &PathTrail) -> CString {
    let name = path.as_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    // A name that came from a directory has no NUL.
    CString::new(name).unwrap_or_default()
}
