//! Packing: what only older generations show goes into packs, compressed together.
//!
//! ```text
//! plan ─▶ archive: durable, read back ─▶ exclusive locks, plan again ─▶ one transaction: layers and generations are cold
//!                                                                      ─▶ objects go
//! ```
//!
//! - Nothing goes that was not read back from packs that are durable.
//! - What is cold is recorded before the first object goes: cut off between the two, thawing finds everything there.
//! - Objects go only while nobody holds a layer that names them, no run or view has one mounted, and nobody stores any.
//! - The graph of references is locked from the last look at it until the record says what is cold, so what becomes hot
//!   meanwhile is seen.

use super::Engine;
use super::records::{Doc, Note};
use crate::clock;
use crate::failure::{Failure, Result};
use perennial_core::collect::ObjectCount;
use perennial_core::container::Container;
use perennial_core::generations::Queue;
use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId, Seq};
use perennial_core::layers::{Form, LayerRecord};
use perennial_core::sealed::cold::{ColdContainer, ColdFacts, ColdGeneration, ColdPlan, Hot, plan_cold};
use perennial_core::sealed::entry::{Content, DirectorySource as _, Item, Node};
use perennial_core::sealed::manifest::Reader;
use perennial_core::sealed::object::ObjectId;
use perennial_runtime::background::Background;
use perennial_store::cold::{Archived, Packer, Request};
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::records::{RecordError, RecordStore as _, Transaction, keys};
use perennial_store::root::{Lock, LockMode, Wait};
use perennial_store::sealed::{self, DiskFile, MANIFEST};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::Duration;

/// How many of the newest generations stay hot where nobody says how many.
pub const HOT_DEFAULT: u32 = 2;
/// How often, and at what distance, a command tries to take objects that somebody else is at.
const TURNS_MAX: u32 = 100;
const TURN_PAUSE: Duration = Duration::from_millis(20);

/// What is to be packed.
#[derive(Debug, Clone, Default)]
pub struct PackOrder {
    /// Only of this container; of all where there is none.
    pub of: Option<ContainerId>,
    /// How many of the newest generations stay hot; as the container's policy says, or [`HOT_DEFAULT`], where there is
    /// none.
    pub hot: Option<u32>,
    /// Whether it is work that gives way to everybody.
    pub is_background: bool,
}

/// What packing did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    /// Generations that have become cold.
    pub generations: Vec<(ContainerName, Seq)>,
    /// Objects that are in packs only now.
    pub objects: u64,
    /// Bytes on disk that these took.
    pub freed_bytes: u64,
    /// Bytes of the packs that were written.
    pub packed_bytes: u64,
    /// Objects that stay hot, and why.
    pub refused: Vec<(ObjectId, String)>,
    /// Whether somebody else was at some of it, so that not everything was done.
    pub is_busy: bool,
}

/// Everything a decision was made from and what was decided.
struct Decided {
    containers: Vec<Doc<Container>>,
    plan: ColdPlan,
}

impl Engine {
    /// Packs what only older generations show.
    ///
    /// # Errors
    /// Where records, manifests or the disk fail; nothing is lost then.
    pub fn pack(&self, order: &PackOrder) -> Result<Packed> {
        let _background = order.is_background.then(Background::enter);
        self.pack_now(order)
    }

    fn pack_now(&self, order: &PackOrder) -> Result<Packed> {
        let objects = Objects::open(&self.root)?;
        let requests = self.survey(order, &objects)?;
        if requests.is_empty() {
            return Ok(Packed::default());
        }
        let wait = if order.is_background { Wait::Never } else { Wait::Forever };
        // Held to the end: what is in packs must not be taken for unneeded before the record says that it is needed.
        let Some(mut packer) = Packer::open(&self.root, wait)? else {
            return Ok(Packed { is_busy: true, ..Packed::default() });
        };
        let archived: Archived =
            packer.archive(&objects, requests, &mut || !(order.is_background && self.root.must_yield()))?;
        let safe: BTreeSet<ObjectId> = archived.safe.into_iter().collect();
        let mut packed = self.take_in_turn(order, &objects, &safe)?;
        packed.packed_bytes = archived.packs.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
        for (object, refusal) in archived.refused {
            packed.refused.push((object, Failure::from(refusal).one_line()));
        }
        Ok(packed)
    }

    /// Says what has to be read into packs. Nothing is locked while it looks, so layers may be freed under its eyes: then
    /// it looks again.
    fn survey(&self, order: &PackOrder, objects: &Objects) -> Result<Vec<Request>> {
        for _ in 0..TURNS_MAX {
            let plan = self.decide_cold(order)?.plan;
            let surveyed = self.survey_of(&plan, objects);
            if surveyed.is_ok() || !self.has_lost_a_layer(&plan) {
                return surveyed;
            }
            clock::wait(TURN_PAUSE);
        }
        self.survey_of(&self.decide_cold(order)?.plan, objects)
    }

    fn survey_of(&self, plan: &ColdPlan, objects: &Objects) -> Result<Vec<Request>> {
        let going = self.only_hot(objects, self.going(plan)?)?;
        if going.is_empty() { Ok(Vec::new()) } else { self.requests(plan, &going) }
    }

    /// Whether a layer that a plan names is gone.
    fn has_lost_a_layer(&self, plan: &ColdPlan) -> bool {
        plan.hot.iter().flatten().chain(&plan.layers).any(|layer| !self.root.layer_dir(layer).is_dir())
    }

    /// Decides what is cold by what is recorded now.
    fn decide_cold(&self, order: &PackOrder) -> Result<Decided> {
        let images: BTreeMap<_, _> =
            self.images()?.into_iter().map(|doc| (doc.value.digest, doc.value.layers)).collect();
        let image = |digest: &Digest| images.get(digest).cloned().unwrap_or_default();
        let mut facts = ColdFacts { images: images.values().cloned().collect(), ..ColdFacts::default() };
        for record in self.layers()?.into_iter().map(|doc| doc.value) {
            if record.form == Form::Sealed && !layer::has_tree(&self.root, &record.id) {
                facts.sealed.insert(record.id);
            } else if record.unresolved {
                facts.unresolved.insert(record.id);
            }
        }
        let containers = self.containers()?;
        for container in containers.iter().map(|doc| &doc.value) {
            let generations = container.queue.iter().flat_map(|queue| &queue.generations);
            if let Some(run) = container.phase.run() {
                facts.mounted.push(run.layers.iter().chain(&run.image_layers).cloned().collect());
            }
            let current = container.queue.as_ref().and_then(Queue::current).map(|current| current.seq);
            facts.containers.push(ColdContainer {
                hot: hot_of(order, container),
                is_live: container.phase.run().is_some(),
                current: generations.clone().position(|generation| Some(generation.seq) == current),
                generations: generations
                    .map(|generation| ColdGeneration {
                        layers: generation.layers.clone(),
                        image: image(&generation.image),
                    })
                    .collect(),
                image: image(&container.image),
            });
        }
        for (_, view) in self.views()? {
            facts.mounted.push(view.value.layers.into_iter().chain(image(&view.value.image)).collect());
        }
        Ok(Decided { containers, plan: plan_cold(&facts) })
    }

    /// Returns the objects that may go: named by cold layers, by no other manifest on disk, and shown by nothing hot.
    fn going(&self, plan: &ColdPlan) -> Result<BTreeSet<ObjectId>> {
        let mut going = BTreeSet::new();
        for id in &plan.layers {
            self.objects_of(&self.root.layer_dir(id), &mut |object| {
                going.insert(object);
            })?;
        }
        for id in layer::list(&self.root)?.into_iter().filter(|id| !plan.layers.contains(id)) {
            if going.is_empty() {
                return Ok(going);
            }
            let named = self.objects_of(&self.root.layer_dir(&id), &mut |object| {
                going.remove(&object);
            });
            // One that was freed since it was listed names nothing.
            if self.root.layer_dir(&id).is_dir() {
                named?;
            }
        }
        for stack in &plan.hot {
            if going.is_empty() {
                return Ok(going);
            }
            // A layer that is not cold keeps all of its objects; only what hides cold ones has to be looked at.
            if stack.iter().any(|layer| plan.layers.contains(layer)) {
                for object in sealed::objects_of_merge(&self.root, stack, &[])? {
                    going.remove(&object);
                }
            }
        }
        Ok(going)
    }

    fn only_hot(&self, objects: &Objects, going: BTreeSet<ObjectId>) -> Result<BTreeSet<ObjectId>> {
        let mut hot = BTreeSet::new();
        for object in going {
            if objects.exists(&object)? {
                hot.insert(object);
            }
        }
        Ok(hot)
    }

    /// Says of each object where it lies, and which object lay there before it, or after it where none was before.
    fn requests(&self, plan: &ColdPlan, going: &BTreeSet<ObjectId>) -> Result<Vec<Request>> {
        let mut layers: Vec<LayerRecord> = Vec::new();
        let stacks = plan.hot.iter().flatten().chain(&plan.layers).collect::<BTreeSet<_>>();
        for id in stacks {
            layers.extend(self.layer(id)?.map(|doc| doc.value));
        }
        layers.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        let mut requests: Vec<Request> = Vec::new();
        let mut known: BTreeMap<ObjectId, usize> = BTreeMap::new();
        // By what the path hashes to: an image has many paths, and a wrong neighbour only packs less tightly.
        let mut last: BTreeMap<u64, ObjectId> = BTreeMap::new();
        for record in layers {
            self.each_file(&record.id, &mut |path, object| {
                let before = last.insert(short_hash(&path), object).filter(|before| *before != object);
                let newer = before.and_then(|before| known.get(&before).copied()).and_then(|at| requests.get_mut(at));
                if let Some(request) = newer {
                    request.neighbour.get_or_insert(object);
                }
                if going.contains(&object) && !known.contains_key(&object) {
                    known.insert(object, requests.len());
                    requests.push(Request { object, path, neighbour: before });
                }
            })?;
        }
        Ok(requests)
    }

    /// Visits the files of a sealed layer that have objects, with their paths.
    pub(super) fn each_file(&self, layer: &LayerId, each: &mut dyn FnMut(Vec<u8>, ObjectId)) -> Result<()> {
        self.each_file_of(layer, MANIFEST, each)
    }

    /// The same of a manifest that has this name.
    pub(super) fn each_file_of(
        &self,
        layer: &LayerId,
        manifest: &str,
        each: &mut dyn FnMut(Vec<u8>, ObjectId),
    ) -> Result<()> {
        let path = self.root.layer_dir(layer).join(manifest);
        let damaged = |error: &dyn std::fmt::Display| {
            Failure::new(crate::failure::Code::Damaged, format!("{}: {error}", path.display()))
        };
        let file = File::open(&path).map_err(|error| damaged(&error))?;
        let mut reader = Reader::new(DiskFile(file)).map_err(|error| damaged(&error))?;
        while let Some(directory) = reader.next_directory().map_err(|error| damaged(&error))? {
            let at = directory.path.join(&b'/');
            for entry in directory.entries {
                if let Item::Inode(inode) = entry.item
                    && let Node::File(Content::Object { id, .. }) = inode.node
                {
                    each([at.as_slice(), &entry.name].join(&b'/'), id);
                }
            }
        }
        Ok(())
    }

    /// Takes objects that are safe in packs; a command tries again where somebody is at them.
    fn take_in_turn(&self, order: &PackOrder, objects: &Objects, safe: &BTreeSet<ObjectId>) -> Result<Packed> {
        if order.is_background {
            return self.take(order, objects, safe);
        }
        let yielding = self.root.ask_to_yield()?;
        let mut packed = self.take(order, objects, safe)?;
        for _ in 0..TURNS_MAX {
            if !packed.is_busy || packed.objects > 0 {
                break;
            }
            clock::wait(TURN_PAUSE);
            packed = self.take(order, objects, safe)?;
        }
        drop(yielding);
        Ok(packed)
    }

    fn take(&self, order: &PackOrder, objects: &Objects, safe: &BTreeSet<ObjectId>) -> Result<Packed> {
        let busy = Packed { is_busy: true, ..Packed::default() };
        // An import reads layers without their locks.
        let Some(_images) = self.root.lock_images(LockMode::Exclusive, Wait::Never)? else { return Ok(busy) };
        let Some(containers) = self.lock_all_containers()? else { return Ok(busy) };
        let graph = self.root.lock_graph()?;
        let mut decided = self.decide_cold(order)?;
        let Some(_objects) = self.root.lock_objects(LockMode::Exclusive, Wait::Never)? else { return Ok(busy) };
        let wanted = decided.plan.layers.len();
        let _layers = self.lock_free_ones(&mut decided.plan)?;
        let mut packed = Packed { is_busy: decided.plan.layers.len() < wanted, ..Packed::default() };
        let mut going = self.going(&decided.plan)?;
        going.retain(|object| safe.contains(object));
        if going.is_empty() {
            return Ok(packed);
        }
        match self.record_cold(decided, &going)? {
            Some(generations) => packed.generations = generations,
            None => return Ok(busy),
        }
        drop((containers, graph));
        for object in going {
            if order.is_background && self.root.must_yield() {
                break;
            }
            let Some(stat) = objects.stat(&object)? else { continue };
            objects.remove(&object)?;
            packed.objects = packed.objects.saturating_add(1);
            packed.freed_bytes = packed.freed_bytes.saturating_add(stat.allocated);
        }
        Ok(packed)
    }

    /// Locks all containers, since generations of any may have to be marked.
    fn lock_all_containers(&self) -> Result<Option<Vec<Lock>>> {
        let mut locks = Vec::new();
        for doc in self.containers()? {
            let Some(lock) = self.root.lock_container(&doc.value.id, Wait::Never)? else { return Ok(None) };
            locks.push(lock);
        }
        Ok(Some(locks))
    }

    /// Locks cold layers; those that somebody holds are not cold now.
    fn lock_free_ones(&self, plan: &mut ColdPlan) -> Result<Vec<Lock>> {
        let mut locks = Vec::new();
        for id in std::mem::take(&mut plan.layers) {
            if let Some(lock) = self.root.lock_layer(&id, LockMode::Exclusive, Wait::Never)? {
                locks.push(lock);
                plan.layers.insert(id);
            }
        }
        Ok(locks)
    }

    /// The commit point: layers that lose objects, and generations that may show some of these, are cold. Returns the
    /// generations that were not; nothing where a record has changed.
    fn record_cold(&self, decided: Decided, going: &BTreeSet<ObjectId>) -> Result<Option<Vec<(ContainerName, Seq)>>> {
        let mut transaction = Transaction::new();
        let mut cold = BTreeSet::new();
        for doc in self.layers()? {
            let record = doc.value;
            let mut loses = false;
            if decided.plan.layers.contains(&record.id) {
                self.objects_of(&self.root.layer_dir(&record.id), &mut |object| loses |= going.contains(&object))?;
            }
            if record.cold || loses {
                cold.insert(record.id.clone());
            }
            if loses && !record.cold {
                let key = keys::layer(&record.id);
                transaction =
                    transaction.expect(&key, doc.revision).put(&key, LayerRecord { cold: true, ..record }.encode());
            }
        }
        let mut marked = Vec::new();
        for (number, mut doc) in decided.containers.into_iter().enumerate() {
            let of_this: BTreeSet<usize> = decided
                .plan
                .generations
                .iter()
                .filter(|(of, _)| *of == number)
                .map(|(_, position)| *position)
                .collect();
            let mut seqs = Vec::new();
            for (position, generation) in
                doc.value.queue.iter_mut().flat_map(|queue| &mut queue.generations).enumerate()
            {
                let image = self.image(&generation.image)?.value.layers;
                let has_cold = generation.layers.iter().chain(&image).any(|layer| cold.contains(layer));
                if of_this.contains(&position) && has_cold && !generation.cold {
                    generation.cold = true;
                    seqs.push(generation.seq);
                }
            }
            if seqs.is_empty() {
                continue;
            }
            let list: Vec<String> = seqs.iter().map(ToString::to_string).collect();
            let note = Note::new("pack", format!("generations {} are in packs", list.join(", ")));
            transaction = self.put_container(transaction, &mut doc, Some(note));
            marked.extend(seqs.into_iter().map(|seq| (doc.value.name.clone(), seq)));
        }
        match self.records.commit(&transaction) {
            Ok(_) => Ok(Some(marked)),
            Err(RecordError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the objects that any manifest on disk names. The caller holds the lock of objects exclusively, or only
    /// wants to know.
    ///
    /// # Errors
    /// Where a manifest is missing, damaged or cannot be read: then nothing can be said, and nothing may go.
    pub fn named_objects(&self) -> Result<BTreeSet<ObjectId>> {
        let mut named = BTreeSet::new();
        for id in layer::list(&self.root)? {
            let directory = self.root.layer_dir(&id);
            self.refuse_damaged_manifest(&id, &directory)?;
            self.objects_of(&directory, &mut |object| {
                named.insert(object);
            })?;
        }
        Ok(named)
    }

    /// Returns whether there are packs, without making their directory.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub fn has_packs(&self) -> Result<bool> {
        Ok(!super::collect::entries(&self.root.path().join("packs"))?.is_empty())
    }

    /// Returns the packs that [`Engine::free_in_packs`] would rewrite or remove, with their lengths; nothing while
    /// somebody packs.
    ///
    /// # Errors
    /// Where a manifest or a pack cannot be read.
    pub fn idle_packs(&self) -> Result<ObjectCount> {
        let mut idle = ObjectCount::default();
        if !self.has_packs()? {
            return Ok(idle);
        }
        let Some(mut packer) = Packer::open(&self.root, Wait::Never)? else { return Ok(idle) };
        let named = self.named_objects()?;
        let plan = packer.plan_repack(&mut |object| named.contains(object))?;
        for (pack, bytes) in packer.cold().packs() {
            if plan.remove.contains(&pack) || plan.rewrite.contains(&pack) {
                idle.count = idle.count.saturating_add(1);
                idle.bytes = idle.bytes.saturating_add(bytes);
            }
        }
        Ok(idle)
    }

    /// Frees what packs hold that no manifest names, unless somebody packs or stores objects.
    ///
    /// # Errors
    /// Where a manifest or a pack cannot be read; what is needed stays.
    pub fn free_in_packs(&self) -> Result<()> {
        if !self.has_packs()? {
            return Ok(());
        }
        let Some(mut packer) = Packer::open(&self.root, Wait::Never)? else { return Ok(()) };
        // A layer that is made of others while manifests are read would be missed, and they be gone.
        let Some(objects) = self.root.lock_objects(LockMode::Exclusive, Wait::Never)? else { return Ok(()) };
        let named = self.named_objects()?;
        drop(objects);
        packer.repack(&self.root, &mut |object| named.contains(object), &mut || !self.root.must_yield())?;
        Ok(())
    }

    /// Packs older generations of a container where its policy says so, and gives way to everybody.
    ///
    /// # Errors
    /// As [`Engine::pack`].
    pub fn pack_by_policy(&self, id: &ContainerId) -> Result<()> {
        let Ok(doc) = self.container(id) else { return Ok(()) };
        if doc.value.policy.hot.is_none() || self.root.must_yield() {
            return Ok(());
        }
        self.pack(&PackOrder { of: Some(id.clone()), hot: None, is_background: true }).map(drop)
    }
}

/// How much of a container an order leaves hot.
fn hot_of(order: &PackOrder, container: &Container) -> Hot {
    let own = container.policy.hot.map(Hot::Newest);
    match &order.of {
        Some(id) if *id != container.id => own.unwrap_or(Hot::All),
        Some(_) | None => order.hot.map(Hot::Newest).or(own).unwrap_or(Hot::Newest(HOT_DEFAULT)),
    }
}

fn short_hash(path: &[u8]) -> u64 {
    let id = ObjectId::of(path);
    id.as_bytes().iter().take(8).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
}
