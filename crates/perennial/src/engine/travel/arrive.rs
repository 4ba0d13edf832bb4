//! What a pull makes of what is here, and the commit point.
//!
//! ```text
//! look ─▶ land what is lacking ─▶ lock and look again ─▶ nothing is lacking: record
//!   ▲                                      │
//!   └───────── something is lacking ◀──────┘
//! ```
//!
//! Minutes may lie between the first look and the record. Meanwhile the container may be started, go on, be rolled back or
//! folded, and an image be removed. So everything is decided anew at the end, from what is here then and stays, since the
//! container and the graph are locked.

use super::land::{Arrival, Landing};
use super::pull::There;
use crate::engine::Engine;
use crate::engine::random;
use crate::engine::records::{Doc, Note};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Phase};
use perennial_core::format::{self, Format};
use perennial_core::generations::{Generation, Queue};
use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId};
use perennial_core::image::Image;
use perennial_core::layers::{Form, LayerKind, LayerOrigin, LayerRecord};
use perennial_core::travel::facts::{Conflict, Facts, settle};
use perennial_core::travel::history::{Mark, Relation, marks, own_marks, relate_to_remote};
use perennial_core::travel::merge::{Newer, Wanted, adopt, pulled};
use perennial_core::travel::remote::Tracking;
use perennial_core::travel::settings::Withheld;
use perennial_core::travel::{PAST_MAX, Sender};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use std::cell::Cell;
use std::collections::BTreeSet;

/// How often is looked again, because something of what came is needed no more and something else is.
const LOOKS_MAX: u32 = 16;

/// Whether settings that reach into the host are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// They are not.
    Wary,
    /// They are: the caller trusts whoever can write to the registry as root.
    Settings,
}

/// What is to be here.
pub(super) struct Goal<'a> {
    pub(super) there: There,
    pub(super) repository: String,
    pub(super) name: &'a ContainerName,
    /// The container here, or the one that is made.
    pub(super) id: ContainerId,
    /// Whether it is here.
    pub(super) is_here: Cell<bool>,
    pub(super) remote: &'a str,
    /// Whether what is known of it at the remote is about what comes: it has the same name there.
    pub(super) is_tracked: bool,
    pub(super) trust: Trust,
}

/// An image as it lies in the registry.
pub(super) struct SentImage {
    pub(super) image: Image,
    pub(super) layers: Vec<LayerRecord>,
    pub(super) from: String,
}

/// What the steps of a pull share.
pub(super) struct Session<'a> {
    pub(super) goal: Goal<'a>,
    pub(super) landing: Landing<'a>,
    pub(super) images: Vec<SentImage>,
}

/// What will be here, as it was seen.
struct Plan {
    before: Option<Doc<Container>>,
    after: Container,
    tracking: Tracking,
    left_out: Vec<String>,
    /// Images that are not here.
    images: Vec<Image>,
    /// Layers that are not here.
    lacking: Vec<Arrival>,
}

/// Both queues, saying the same of what both have.
struct Settled {
    ours: Queue,
    theirs: Queue,
    relation: Relation,
}

impl Engine {
    /// Brings generations here and records them; returns the settings that were not taken.
    pub(super) fn arrive(&self, session: &Session<'_>, wanted: Wanted) -> Result<Vec<String>> {
        let goal = &session.goal;
        let mut landed = Vec::new();
        for _ in 0..LOOKS_MAX {
            let seen = self.present(goal.name)?;
            let ground = self.ground(seen.as_ref(), &goal.there)?;
            let plan = self.plan_arrival(session, seen, (wanted, &landed))?;
            session.landing.land(&plan.lacking, &ground)?;
            landed.extend(plan.lacking);
            let _lock = self.lock_container_politely(&goal.id)?;
            let graph = self.root.lock_graph()?;
            let plan = self.plan_arrival(session, self.named(goal.name)?, (wanted, &landed))?;
            if plan.lacking.is_empty() {
                let (left_out, images) = self.record_arrival(goal, plan, &landed)?;
                drop(graph);
                images.iter().for_each(|image| self.keep_image_copy(image));
                self.keep_container_copies();
                return Ok(left_out);
            }
        }
        let message = format!("container {} changes all the time while it is fetched", goal.name);
        Err(Failure::new(Code::Conflict, message).hint("pull again in a moment: what came is kept"))
    }

    /// Returns the container of that name here, where there is one, with what a dead command has left put right.
    pub(super) fn present(&self, name: &ContainerName) -> Result<Option<Doc<Container>>> {
        found(self.seen(name))
    }

    /// The same as it is recorded.
    fn named(&self, name: &ContainerName) -> Result<Option<Doc<Container>>> {
        found(self.container_named(name))
    }

    /// Refuses what cannot be put together.
    ///
    /// # Errors
    /// Where the two have other histories, or what comes would change what a run here started from.
    pub(super) fn check_arrival(&self, goal: &Goal<'_>, present: Option<&Doc<Container>>) -> Result<()> {
        let tracking = self.tracking_of(goal)?;
        settled(goal, present.map(|doc| &doc.value), &tracking).map(drop)
    }

    fn tracking_of(&self, goal: &Goal<'_>) -> Result<Tracking> {
        self.tracking(&goal.id, goal.remote)
    }

    /// Decides what will be here. `landed` are layers that have come, and that no record names.
    fn plan_arrival(
        &self,
        session: &Session<'_>,
        before: Option<Doc<Container>>,
        (wanted, landed): (Wanted, &[Arrival]),
    ) -> Result<Plan> {
        let goal = &session.goal;
        let mut tracking = self.tracking_of(goal)?;
        let Settled { ours, theirs, relation } = settled(goal, before.as_ref().map(|doc| &doc.value), &tracking)?;
        let newer = if relation == Relation::Behind { Newer::Theirs } else { Newer::Ours };
        let keep = before.as_ref().map_or(goal.there.container.policy.keep, |doc| doc.value.policy.keep);
        let let_go = self.let_go(goal, &ours)?;
        let mut queue = pulled(&ours, theirs, (wanted, &let_go), newer, keep);
        let mut lacking = self.name_layers(goal, &ours, &mut queue, landed)?;
        let needed: BTreeSet<Digest> = queue.generations.iter().map(|generation| generation.image.clone()).collect();
        let (mut after, left_out) = match &before {
            Some(doc) => (joined(&doc.value, queue, &goal.there.container), Vec::new()),
            None => newcomer(goal, queue),
        };
        let mut images = Vec::new();
        for sent in &session.images {
            let is_needed = needed.contains(&sent.image.digest) || after.image == sent.image.digest;
            if is_needed && self.read::<Image>(Format::Image, &keys::image(&sent.image.digest))?.is_none() {
                let (image, mut arrivals) = self.arriving_image(sent, landed)?;
                images.push(image);
                lacking.append(&mut arrivals);
            }
        }
        let new = after.queue.iter_mut().flat_map(|queue| &mut queue.generations);
        for generation in new.filter(|generation| ours.get(generation.seq).is_none()) {
            generation.cold = self.is_on_cold(generation, &images)?;
        }
        if goal.is_tracked {
            goal.there.remember(&mut tracking);
            tracking.done_at = Some(self.now());
        }
        after.queue.iter().for_each(|queue| tracking.note_here(queue));
        Ok(Plan { before, after, tracking, left_out, images, lacking })
    }

    /// Whether something of a generation that comes may be in packs only: layers that were here already are not fetched
    /// again, and a start looks for what is packed only where the generation says so.
    fn is_on_cold(&self, generation: &Generation, arriving: &[Image]) -> Result<bool> {
        let image = match arriving.iter().find(|image| image.digest == generation.image) {
            Some(image) => image.clone(),
            None => self.image(&generation.image)?.value,
        };
        for id in generation.layers.iter().chain(&image.layers) {
            if self.layer(id)?.is_some_and(|doc| doc.value.cold) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the generations that were here and were let go, whatever remote they came from or went to.
    fn let_go(&self, goal: &Goal<'_>, ours: &Queue) -> Result<Vec<Mark>> {
        let known = self.read_all::<Tracking>(Format::Tracking, &keys::trackings(&goal.id))?;
        Ok(known.iter().flat_map(|tracking| tracking.value.let_go(Some(ours))).collect())
    }

    /// Gives the layers of what is new their names here; returns those that are not here.
    fn name_layers(
        &self,
        goal: &Goal<'_>,
        ours: &Queue,
        queue: &mut Queue,
        landed: &[Arrival],
    ) -> Result<Vec<Arrival>> {
        let is_new = |generation: &&mut Generation| ours.get(generation.seq).is_none();
        let needed: BTreeSet<LayerId> =
            queue.generations.iter_mut().filter(is_new).flat_map(|generation| generation.layers.clone()).collect();
        let named = goal.there.layers.iter().filter(|layer| needed.contains(&layer.id));
        let wanted: Vec<LayerRecord> = named.cloned().collect();
        let mut here = Vec::new();
        for id in ours.layers() {
            here.extend(self.layer(&id)?.map(|doc| doc.value));
        }
        here.extend(records(landed, LayerKind::Delta));
        let adopted = adopt(&here, &wanted, &mut fresh);
        for generation in queue.generations.iter_mut().filter(is_new) {
            generation.layers = adopted.stack(&generation.layers);
        }
        Ok(adopted.new.iter().map(|(record, _)| arrival(record, queue, goal)).collect())
    }

    fn arriving_image(&self, sent: &SentImage, landed: &[Arrival]) -> Result<(Image, Vec<Arrival>)> {
        let SentImage { image, layers, from } = sent;
        let mut here: Vec<LayerRecord> =
            self.layers()?.into_iter().map(|doc| doc.value).filter(|l| l.kind == LayerKind::Image).collect();
        here.extend(records(landed, LayerKind::Image));
        let adopted = adopt(&here, layers, &mut fresh);
        let arrivals = adopted.new.iter().map(|(record, _)| {
            let diff_id = record.diff_id.clone().or_else(|| image.diff_ids.first().cloned());
            let origin =
                diff_id.map_or(LayerOrigin::Merged { of: Vec::new() }, |diff_id| LayerOrigin::Image { diff_id });
            Arrival { record: record.clone(), origin }
        });
        let image = Image {
            layers: adopted.stack(&image.layers),
            imported_at: self.now(),
            source: from.clone(),
            believed: true,
            ..image.clone()
        };
        Ok((image, arrivals.collect()))
    }

    /// Returns the sealed layers here that hold other versions of what comes.
    fn ground(&self, present: Option<&Doc<Container>>, there: &There) -> Result<Vec<LayerId>> {
        let mut ground = BTreeSet::new();
        let queues = [present.and_then(|doc| doc.value.queue.as_ref()), there.container.queue.as_ref()];
        ground.extend(queues.first().copied().flatten().map(Queue::layers).unwrap_or_default());
        for generation in queues.into_iter().flatten().flat_map(|queue| &queue.generations) {
            if let Ok(image) = self.image(&generation.image) {
                ground.extend(image.value.layers);
            }
        }
        let mut sealed = Vec::new();
        for id in ground {
            if self.layer(&id)?.is_some_and(|doc| doc.value.form == Form::Sealed) {
                sealed.push(id);
            }
        }
        Ok(sealed)
    }

    /// The commit point: layers, images, the container and what is known of it at the remote in one transaction.
    fn record_arrival(&self, goal: &Goal<'_>, plan: Plan, landed: &[Arrival]) -> Result<(Vec<String>, Vec<Image>)> {
        let Plan { before, after, tracking, left_out, images, .. } = plan;
        let mut named = after.queue.as_ref().map(Queue::layers).unwrap_or_default();
        named.extend(images.iter().flat_map(|image| image.layers.iter().cloned()));
        let mut transaction = Transaction::new();
        for arrival in landed.iter().filter(|arrival| named.contains(&arrival.record.id)) {
            transaction = transaction.put(keys::layer(&arrival.record.id), arrival.record.encode());
        }
        for image in &images {
            let key = keys::image(&image.digest);
            transaction = transaction.expect(&key, 0).put(&key, format::encode(Format::Image, image));
        }
        let key = keys::tracking(&goal.id, goal.remote);
        transaction = transaction.put(key, format::encode(Format::Tracking, &tracking));
        if before.as_ref().is_none_or(|doc| doc.value != after) {
            let Sender { by, machine, .. } = &goal.there.sent;
            let detail = format!("from {}, sent by {by} on {machine}", goal.repository);
            let current = |container: &Container| container.queue.as_ref().and_then(|queue| queue.current);
            let from = before.as_ref().and_then(|doc| current(&doc.value));
            let note = Note { from, to: current(&after), ..Note::new("pull", detail) };
            if before.is_none() {
                let name_key = keys::name(goal.name);
                transaction = transaction.expect(&name_key, 0).put(&name_key, goal.id.as_str().as_bytes().to_vec());
            }
            let mut doc = Doc { value: after, revision: before.map_or(0, |doc| doc.revision) };
            transaction = self.put_container(transaction, &mut doc, Some(note));
        }
        self.records.commit(&transaction)?;
        goal.is_here.set(true);
        Ok((left_out, images))
    }
}

fn found(doc: Result<Doc<Container>>) -> Result<Option<Doc<Container>>> {
    match doc {
        Ok(doc) => Ok(Some(doc)),
        Err(failure) if failure.code == Code::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Compares the two and makes them say the same of what both have.
fn settled(goal: &Goal<'_>, present: Option<&Container>, tracking: &Tracking) -> Result<Settled> {
    let name = goal.name;
    match present {
        None if goal.is_here.get() => {
            let message = format!("container {name} was removed while it was fetched");
            return Err(Failure::new(Code::NotFound, message).hint("pull again to have it anew"));
        }
        Some(container) if container.id != goal.id => {
            let message = format!("another container was made as {name} while one was fetched");
            return Err(Failure::new(Code::Conflict, message).hint(format!(
                "nothing was changed; `perennial pull {name} NEW-NAME` fetches the other one beside it"
            )));
        }
        None | Some(_) => {}
    }
    let queue = present.and_then(|container| container.queue.as_ref());
    let there = goal.there.container.queue.as_ref();
    let remembered = if goal.is_tracked { tracking.marks.as_slice() } else { &[] };
    let has_met = present.is_none() || (goal.is_tracked && tracking.done_at.is_some());
    let relation = relate_to_remote(&own_marks(remembered, queue), &marks(&goal.there.past, there), has_met);
    let Sender { at, machine, by } = &goal.there.sent;
    let what = match relation {
        Relation::Same | Relation::Ahead | Relation::Behind => None,
        Relation::Diverged { seq } => Some(format!("generation {seq} here is not generation {seq} there")),
        Relation::Unrelated if queue.is_none() => Some(format!("{name} here never ran, and did not come from there")),
        Relation::Unrelated => Some("the two have nothing in common".to_owned()),
    };
    if let Some(what) = what {
        let message = format!(
            "container {name} here is not the one in {}, sent by {by} on {machine} at {at}: {what}",
            goal.repository
        );
        let source = &goal.there.container.name;
        return Err(Failure::new(Code::Conflict, message).hint(format!(
            "nothing was changed; `perennial pull {source} NEW-NAME` fetches the other one beside it, and `perennial push \
             {name} --as NEW-NAME` sends the one here beside that"
        )));
    }
    let (mut ours, mut theirs) = (queue.cloned().unwrap_or_default(), there.cloned().unwrap_or_default());
    let base = tracking.facts.as_ref().filter(|_| goal.is_tracked);
    settle(base, &mut ours, &mut theirs, relation)
        .map_err(|conflict| other_current(name, &conflict, &goal.there.sent))?;
    let is_moved = ours.current != queue.and_then(|queue| queue.current);
    if present.is_some_and(|container| container.phase.run().is_some()) && (relation == Relation::Behind || is_moved) {
        let what = match ours.current {
            Some(seq) if relation != Relation::Behind => format!("another current generation, {seq}, was chosen"),
            Some(_) | None => "newer generations were sent".to_owned(),
        };
        let message = format!("{name} runs here, and {what} by {by} on {machine} at {at}");
        return Err(Failure::new(Code::Conflict, message).hint(format!(
            "stop it first: what this run has changed becomes a generation of its own; `perennial pull {name} NEW-NAME` \
             fetches the others beside it"
        )));
    }
    Ok(Settled { ours, theirs, relation })
}

/// Says that both sides have chosen another current generation, and what leads out of it.
pub(super) fn other_current(name: &ContainerName, conflict: &Conflict, sent: &Sender) -> Failure {
    let Conflict { ours, theirs, way_out } = conflict;
    let Sender { at, machine, by } = sent;
    let message = format!(
        "container {name} starts from generation {ours} here, and was sent by {by} on {machine} at {at} to start from \
         generation {theirs}: both were changed since they were the same"
    );
    let beside = format!("`perennial pull {name} NEW-NAME` fetches the other one beside it");
    Failure::new(Code::Conflict, message).hint(match way_out {
        Some(seq) => format!(
            "nothing was changed on either side; `perennial rollback {name} --to {seq}` and then `perennial pull {name}` take \
             over theirs, after which a rollback to another one can be sent; {beside}"
        ),
        None => format!("nothing was changed on either side; {beside}"),
    })
}

/// Returns a container with another queue.
fn joined(before: &Container, queue: Queue, sent: &Container) -> Container {
    let mut after = before.clone();
    if queue.generations.is_empty() {
        return after;
    }
    if before.queue.as_ref().and_then(|queue| queue.current) != queue.current {
        // Theirs is what the next generation builds on.
        after.image = sent.image.clone();
        after.image_name.clone_from(&sent.image_name);
        after.epoch = before.epoch.max(sent.epoch);
    }
    after.queue = Some(queue);
    if matches!(after.phase, Phase::Created) {
        after.phase = Phase::Dormant;
    }
    after
}

/// Makes the record of a container that was not here.
fn newcomer(goal: &Goal<'_>, queue: Queue) -> (Container, Vec<String>) {
    let sent = &goal.there.container;
    let mut spec = sent.spec.clone();
    let withheld = match goal.trust {
        Trust::Wary => Withheld::take(&mut spec),
        Trust::Settings => Withheld::default(),
    };
    let left_out = withheld.in_words();
    let has_run = !queue.generations.is_empty();
    let container = Container {
        id: goal.id.clone(),
        name: goal.name.clone(),
        spec,
        withheld,
        phase: if has_run { Phase::Dormant } else { Phase::Created },
        queue: has_run.then_some(queue),
        conditions: Vec::new(),
        next_event: 1,
        ..sent.clone()
    };
    (container, left_out)
}

impl There {
    /// Writes down what is there.
    fn remember(&self, tracking: &mut Tracking) {
        let all = marks(&self.past, self.container.queue.as_ref());
        let from = all.len().saturating_sub(PAST_MAX);
        tracking.marks = all.get(from..).unwrap_or_default().to_vec();
        tracking.manifest = Some(self.digest.clone());
        tracking.facts = self.container.queue.as_ref().map(Facts::of);
    }
}

fn records(landed: &[Arrival], kind: LayerKind) -> impl Iterator<Item = LayerRecord> {
    landed.iter().map(|arrival| arrival.record.clone()).filter(move |record| record.kind == kind)
}

/// Makes a name for a layer; should the kernel have no random numbers, one that exists refuses to be made again.
fn fresh() -> LayerId {
    LayerId::from_random(random().unwrap_or_default())
}

/// Says where a layer that comes was made, as its generations show it.
fn arrival(record: &LayerRecord, queue: &Queue, goal: &Goal<'_>) -> Arrival {
    let made = queue.generations.iter().find(|generation| generation.layers.first() == Some(&record.id));
    let origin = match made {
        Some(Generation { run: Some(run), layers, image, exited_at, .. }) => LayerOrigin::Run {
            container: goal.id.clone(),
            name: goal.name.to_string(),
            run: run.clone(),
            below: layers.get(1..).unwrap_or_default().to_vec(),
            image: image.clone(),
            exited_at: *exited_at,
        },
        Some(Generation { run: None, layers, image, .. }) => LayerOrigin::Import {
            container: goal.id.clone(),
            name: goal.name.to_string(),
            image: image.clone(),
            below: Some(layers.get(1..).unwrap_or_default().to_vec()),
        },
        None => LayerOrigin::Merged { of: Vec::new() },
    };
    Arrival { record: record.clone(), origin }
}
