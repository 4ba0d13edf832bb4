//! A container from a registry: what is not here, then its record.
//!
//! ```text
//! parcel ─▶ compare histories ─▶ the current generation with its image ─▶ recorded: it can start
//!                              ─▶ the other generations                ─▶ recorded
//! ```
//!
//! The generation to start from comes first, and can be started as soon as it is recorded, while the others are still
//! on their way. It can be cut off at any instant and goes on with what is not here yet.

use super::land::{Arrival, Landing};
use super::link::{Found, Link, find};
use super::{Order, add};
use crate::engine::Engine;
use crate::engine::random;
use crate::engine::records::{Doc, Note};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Phase};
use perennial_core::format::{self, Format};
use perennial_core::generations::{Generation, Queue};
use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId, Seq};
use perennial_core::image::Image;
use perennial_core::layers::{Form, LayerKind, LayerOrigin, LayerRecord};
use perennial_core::travel::cipher::Secrecy;
use perennial_core::travel::history::{Mark, Relation, marks, relate};
use perennial_core::travel::merge::{Newer, adopt, queues};
use perennial_core::travel::place::{CONTAINER_TAG, of_container};
use perennial_core::travel::remote::Tracking;
use perennial_core::travel::settings::disarm;
use perennial_core::travel::{Contents, ImageAt, PAST_MAX, PackAt, Sender};
use perennial_registry::progress::Progress;
use perennial_registry::repository::{Access, Repository, Traffic};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use std::collections::{BTreeMap, BTreeSet};

/// Whether settings that reach into the host are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// They are not.
    Wary,
    /// They are: the caller trusts whoever can write to the registry as root.
    Settings,
}

/// Which generations come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All that are there.
    All,
    /// Only the one to start from.
    Current,
}

/// How to pull.
#[derive(Debug, Clone, Copy)]
pub struct PullPlan {
    /// Which settings are taken.
    pub trust: Trust,
    /// Which generations come.
    pub extent: Extent,
}

/// What a pull did.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The repository.
    pub repository: String,
    /// The container here.
    pub name: ContainerName,
    /// Generations that are new here, oldest first.
    pub new: Vec<Seq>,
    /// The generation the next run starts from.
    pub current: Option<Seq>,
    /// Settings that were not taken, in words.
    pub left_out: Vec<String>,
    /// What went over the network.
    pub traffic: Traffic,
}

/// What is in the registry.
struct There {
    container: Container,
    past: Vec<Mark>,
    layers: Vec<LayerRecord>,
    images: Vec<ImageAt>,
    packs: Vec<PackAt>,
    digest: Digest,
    sent: Sender,
}

/// What the steps of a pull share.
struct Session<'a> {
    landing: Landing<'a>,
    there: There,
    /// Images that are not here: records with names of here, and their layers.
    images: Vec<(Image, Vec<Arrival>)>,
    name: &'a ContainerName,
    trust: Trust,
}

impl Engine {
    /// Fetches a container; `order.name` is its name in the registry, `order.other_name` the one it gets here.
    ///
    /// # Errors
    /// Where what is there cannot be used, or the container here has another history; nothing has changed then.
    pub fn pull(&self, order: &Order, plan: PullPlan, progress: &dyn Progress) -> Result<Pulled> {
        self.can_seal().map_err(|why| {
            Failure::new(Code::Host, format!("this host cannot use what comes from a registry: {why}"))
                .hint("`perennial doctor` says what it lacks; `perennial export` on the other machine writes an image")
        })?;
        let remote = self.remote(order.remote.as_deref())?;
        let link = Link::new(remote, order)?;
        let repository = link.open(of_container(&link.remote.prefix, &order.name), Access::Pull)?;
        let there = there(&repository, find(&link, &repository, CONTAINER_TAG)?)?;
        if link.secrecy() == Secrecy::Encrypted && there.container.name != order.name {
            return Err(misplaced(&repository, &there.container.name));
        }
        let name = order.other_name.as_ref().unwrap_or(&order.name);
        let spool = format!("pull-{}-{name}", link.remote.name);
        let _lock = self.root.lock_travel(&spool, Wait::Forever)?;
        let present = self.present(name)?;
        if let Some(doc) = &present {
            self.refuse_other_history(doc, &there, &link, name)?;
        }
        // Nothing names what comes before its record does.
        let _images = self.root.lock_images(LockMode::Shared, Wait::Forever)?;
        let _objects = self.root.lock_objects(LockMode::Shared, Wait::Forever)?;
        let (sources, images) = self.sources(&link, repository, &there)?;
        let landing = Landing::begin(self, &self.spool_dir(&spool), sources, progress)?;
        let session = Session { landing, there, images, name, trust: plan.trust };
        let mut pulled = self.take_all(&session, plan.extent)?;
        for repository in session.landing.repositories() {
            add(&mut pulled.traffic, repository.traffic());
        }
        self.remember_pulled(&session, &link, order)?;
        self.clear_spool(&spool);
        Ok(pulled)
    }

    fn take_all(&self, session: &Session<'_>, extent: Extent) -> Result<Pulled> {
        let before: BTreeSet<Seq> = self.present(session.name)?.map(|doc| seqs(&doc.value)).unwrap_or_default();
        let current = session.there.container.queue.as_ref().and_then(|queue| queue.current);
        let is_current = |generation: &Generation| Some(generation.seq) == current;
        let mut left_out = self.take_some(session, &is_current)?;
        if extent == Extent::All {
            left_out.extend(self.take_some(session, &|_| true)?);
        }
        let doc = self.container_named(session.name)?;
        Ok(Pulled {
            repository: session.landing.repositories().first().map(Repository::name).unwrap_or_default(),
            name: session.name.clone(),
            new: seqs(&doc.value).difference(&before).copied().collect(),
            current: doc.value.queue.as_ref().and_then(|queue| queue.current),
            left_out,
            traffic: Traffic::default(),
        })
    }

    /// Returns the container of that name here, where there is one.
    fn present(&self, name: &ContainerName) -> Result<Option<Doc<Container>>> {
        match self.seen(name) {
            Ok(doc) => Ok(Some(doc)),
            Err(failure) if failure.code == Code::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn refuse_other_history(
        &self,
        doc: &Doc<Container>,
        there: &There,
        link: &Link,
        name: &ContainerName,
    ) -> Result<()> {
        let tracking = self.tracking(&doc.value.id, &link.remote.name)?;
        let ours = marks(&tracking.marks, doc.value.queue.as_ref());
        let theirs = marks(&there.past, there.container.queue.as_ref());
        let relation = relate(&ours, &theirs);
        let Sender { at, machine, by } = &there.sent;
        let what = match relation {
            Relation::Behind if doc.value.phase.run().is_some() => {
                let message = format!("{name} runs here, and newer generations were sent by {by} on {machine} at {at}");
                return Err(Failure::new(Code::Conflict, message).hint(format!(
                    "stop it first: what this run has changed becomes a generation of its own; `perennial pull {name} \
                     NEW-NAME` fetches the others beside it"
                )));
            }
            Relation::Same | Relation::Ahead | Relation::Behind => return Ok(()),
            Relation::Diverged { seq } => format!("generation {seq} here is not generation {seq} there"),
            Relation::Unrelated => "the two have nothing in common".to_owned(),
        };
        let message =
            format!("container {name} here has another history than the one sent by {by} on {machine} at {at}: {what}");
        Err(Failure::new(Code::Conflict, message)
            .hint(format!("nothing was changed; `perennial pull {name} NEW-NAME` fetches the other one beside it")))
    }

    /// Returns where contents come from, and the images that are not here.
    #[expect(clippy::type_complexity, reason = "two lists that are taken apart at once")]
    fn sources(
        &self,
        link: &Link,
        repository: Repository,
        there: &There,
    ) -> Result<(Vec<(Repository, Vec<PackAt>)>, Vec<(Image, Vec<Arrival>)>)> {
        let mut sources = vec![(repository, there.packs.clone())];
        let mut images = Vec::new();
        for at in &there.images {
            let (repository, found) = self.find_sent_image(link, at)?;
            let Contents::Image { image } = &found.parcel.contents else { continue };
            if self.image(&at.image).is_err() {
                images.push(self.arriving_image(image, &found.parcel.layers, &repository.name())?);
            }
            sources.push((repository, found.parcel.packs));
        }
        Ok((sources, images))
    }

    fn arriving_image(&self, image: &Image, layers: &[LayerRecord], from: &str) -> Result<(Image, Vec<Arrival>)> {
        let here: Vec<LayerRecord> =
            self.layers()?.into_iter().map(|doc| doc.value).filter(|l| l.kind == LayerKind::Image).collect();
        let adopted = adopt(&here, layers, &mut || fresh());
        let arrivals = adopted.new.iter().map(|(record, _)| {
            let diff_id = record.diff_id.clone().or_else(|| image.diff_ids.first().cloned());
            let origin =
                diff_id.map_or(LayerOrigin::Merged { of: Vec::new() }, |diff_id| LayerOrigin::Image { diff_id });
            Arrival { record: record.clone(), origin }
        });
        let image = Image {
            layers: adopted.stack(&image.layers),
            imported_at: self.now(),
            source: from.to_owned(),
            ..image.clone()
        };
        Ok((image, arrivals.collect()))
    }

    /// Brings some generations here and records them; returns the settings that were not taken.
    fn take_some(&self, session: &Session<'_>, chosen: &dyn Fn(&Generation) -> bool) -> Result<Vec<String>> {
        let there = &session.there;
        let mut theirs = there.container.queue.clone().unwrap_or_default();
        theirs.generations.retain(chosen);
        if theirs.current.is_some_and(|current| theirs.get(current).is_none()) {
            theirs.current = None;
        }
        let present = self.present(session.name)?;
        let id = match &present {
            Some(doc) => doc.value.id.clone(),
            None => ContainerId::from_random(random()?),
        };
        let ours = present.as_ref().and_then(|doc| doc.value.queue.clone()).unwrap_or_default();
        let needed: BTreeSet<LayerId> =
            theirs.generations.iter().filter(|g| ours.get(g.seq).is_none()).flat_map(|g| g.layers.clone()).collect();
        let wanted: Vec<LayerRecord> =
            there.layers.iter().filter(|layer| needed.contains(&layer.id)).cloned().collect();
        let adopted = adopt(&self.own_layers(&ours)?, &wanted, &mut || fresh());
        for generation in &mut theirs.generations {
            generation.layers = adopted.stack(&generation.layers);
        }
        let needed_images: BTreeSet<&Digest> =
            theirs.generations.iter().map(|generation| &generation.image).chain([&there.container.image]).collect();
        let mut arrivals = Vec::new();
        let mut images = Vec::new();
        for (image, layers) in session.images.iter().filter(|(image, _)| needed_images.contains(&image.digest)) {
            if self.image(&image.digest).is_err() {
                arrivals.extend(layers.iter().cloned());
                images.push(image);
            }
        }
        let place = (&id, session.name);
        arrivals.extend(adopted.new.iter().map(|(record, _)| arrival(record, &theirs, place)));
        session.landing.land(&arrivals, &self.ground(&ours, &theirs)?)?;
        self.record_arrival(session, (id, present), theirs, (arrivals, images))
    }

    fn own_layers(&self, queue: &Queue) -> Result<Vec<LayerRecord>> {
        let mut layers = Vec::new();
        for id in queue.layers() {
            layers.extend(self.layer(&id)?.map(|doc| doc.value));
        }
        Ok(layers)
    }

    /// Returns the sealed layers here that hold other versions of what comes.
    fn ground(&self, ours: &Queue, theirs: &Queue) -> Result<Vec<LayerId>> {
        let mut ground = ours.layers();
        for generation in &theirs.generations {
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

    /// The commit point: layers, images and the container in one transaction.
    fn record_arrival(
        &self,
        session: &Session<'_>,
        (id, present): (ContainerId, Option<Doc<Container>>),
        theirs: Queue,
        (arrivals, images): (Vec<Arrival>, Vec<&Image>),
    ) -> Result<Vec<String>> {
        let _lock = self.lock_container_politely(&id)?;
        let graph = self.root.lock_graph()?;
        let mut transaction = Transaction::new();
        for arrival in &arrivals {
            transaction = transaction.put(keys::layer(&arrival.record.id), arrival.record.encode());
        }
        for image in &images {
            let key = keys::image(&image.digest);
            transaction = transaction.expect(&key, 0).put(&key, format::encode(Format::Image, *image));
        }
        let has_some = !theirs.generations.is_empty();
        let (mut doc, left_out, note) = match present {
            Some(seen) => {
                let mut doc = self.container(&id)?;
                if doc.value.queue != seen.value.queue
                    || (doc.value.phase.run().is_some() != seen.value.phase.run().is_some())
                {
                    let message = format!("container {} changed while it was fetched", session.name);
                    return Err(Failure::new(Code::Conflict, message).hint("pull again: what came is kept"));
                }
                join(&mut doc.value, theirs, &session.there.container);
                (doc, Vec::new(), "pull")
            }
            None => {
                let name_key = keys::name(session.name);
                transaction = transaction.expect(&name_key, 0).put(&name_key, id.as_str().as_bytes().to_vec());
                let (container, left_out) = self.newcomer(session, id, theirs);
                (Doc { value: container, revision: 0 }, left_out, "pull")
            }
        };
        if doc.revision > 0 && !has_some && arrivals.is_empty() {
            return Ok(left_out);
        }
        let detail = format!(
            "from {}, sent by {} on {}",
            session.repository(),
            session.there.sent.by,
            session.there.sent.machine
        );
        let to = doc.value.queue.as_ref().and_then(|queue| queue.current);
        let transaction =
            self.put_container(transaction, &mut doc, Some(Note { action: note, detail, from: None, to }));
        self.records.commit(&transaction)?;
        drop(graph);
        for image in images {
            self.keep_image_copy(image);
        }
        self.keep_container_copies();
        Ok(left_out)
    }

    /// Makes the record of a container that was not here.
    fn newcomer(&self, session: &Session<'_>, id: ContainerId, queue: Queue) -> (Container, Vec<String>) {
        let sent = &session.there.container;
        let mut spec = sent.spec.clone();
        let left_out = match session.trust {
            Trust::Wary => disarm(&mut spec),
            Trust::Settings => Vec::new(),
        };
        let has_run = !queue.generations.is_empty();
        let container = Container {
            id,
            name: session.name.clone(),
            spec,
            phase: if has_run { Phase::Dormant } else { Phase::Created },
            queue: has_run.then_some(queue),
            conditions: Vec::new(),
            next_event: 1,
            ..sent.clone()
        };
        (container, left_out)
    }

    fn remember_pulled(&self, session: &Session<'_>, link: &Link, order: &Order) -> Result<()> {
        if order.other_name.is_some() {
            return Ok(());
        }
        let id = self.container_named(session.name)?.value.id;
        let there = &session.there;
        let mut tracking = self.tracking(&id, &link.remote.name)?;
        let all = marks(&there.past, there.container.queue.as_ref());
        let from = all.len().saturating_sub(PAST_MAX);
        tracking = Tracking {
            marks: all.get(from..).unwrap_or_default().to_vec(),
            manifest: Some(there.digest.clone()),
            done_at: Some(self.now()),
            ..tracking
        };
        self.track(&id, &link.remote.name, &tracking)
    }
}

impl Session<'_> {
    fn repository(&self) -> String {
        self.landing.repositories().first().map(Repository::name).unwrap_or_default()
    }
}

/// Puts generations from elsewhere among those of a container.
fn join(container: &mut Container, theirs: Queue, sent: &Container) {
    let ours = container.queue.take().unwrap_or_default();
    let last = |queue: &Queue| queue.generations.last().map(|generation| generation.seq);
    let is_newer = last(&theirs) > last(&ours) && theirs.current.is_some();
    let newer = if is_newer { Newer::Theirs } else { Newer::Ours };
    let (undo, held) = (ours.undo.clone(), ours.held);
    let mut joined = queues(&ours, &theirs, newer, container.policy.keep);
    if newer == Newer::Ours {
        (joined.undo, joined.held) = (undo, held);
    } else {
        container.image = sent.image.clone();
        container.image_name.clone_from(&sent.image_name);
        container.epoch = container.epoch.max(sent.epoch);
        // What is ours stays, whatever the bound.
        let missing = ours.generations.into_iter().filter(|generation| joined.get(generation.seq).is_none());
        let mut all: BTreeMap<Seq, Generation> = missing.map(|generation| (generation.seq, generation)).collect();
        all.extend(joined.generations.into_iter().map(|generation| (generation.seq, generation)));
        joined.generations = all.into_values().collect();
    }
    if !joined.generations.is_empty() {
        container.queue = Some(joined);
        if matches!(container.phase, Phase::Created) {
            container.phase = Phase::Dormant;
        }
    }
}

fn there(repository: &Repository, found: Option<Found>) -> Result<There> {
    let Some(Found { tagged, parcel }) = found else {
        return Err(Failure::new(Code::NotFound, format!("there is no container in {}", repository.name()))
            .hint("`perennial push` on the machine that has it sends it there"));
    };
    match parcel.contents {
        Contents::Container { container, past, images } => Ok(There {
            container: *container,
            past,
            layers: parcel.layers,
            images,
            packs: parcel.packs,
            digest: tagged.digest,
            sent: parcel.sent,
        }),
        Contents::Image { .. } => {
            Err(Failure::new(Code::NotFound, format!("{} has an image, not a container", repository.name())))
        }
    }
}

/// What is encrypted was sent under a name; who cannot read it can still put it under another one.
fn misplaced(repository: &Repository, name: &ContainerName) -> Failure {
    let message =
        format!("what {} has was sent as {name}: somebody has put it where it does not belong", repository.name());
    Failure::new(Code::Damaged, message).hint("nothing was changed; push the container again from where it is whole")
}

fn seqs(container: &Container) -> BTreeSet<Seq> {
    container.queue.iter().flat_map(|queue| &queue.generations).map(|generation| generation.seq).collect()
}

/// Makes a name for a layer; should the kernel have no random numbers, one that exists refuses to be made again.
fn fresh() -> LayerId {
    LayerId::from_random(random().unwrap_or_default())
}

/// Says where a layer that comes was made, as its generations show it.
fn arrival(record: &LayerRecord, queue: &Queue, (container, name): (&ContainerId, &ContainerName)) -> Arrival {
    let made = queue.generations.iter().find(|generation| generation.layers.first() == Some(&record.id));
    let origin = match made {
        Some(Generation { run: Some(run), layers, image, exited_at, .. }) => LayerOrigin::Run {
            container: container.clone(),
            name: name.to_string(),
            run: run.clone(),
            below: layers.get(1..).unwrap_or_default().to_vec(),
            image: image.clone(),
            exited_at: *exited_at,
        },
        Some(_) | None => LayerOrigin::Merged { of: Vec::new() },
    };
    Arrival { record: record.clone(), origin }
}
