//! A container to a registry: what it lacks, then its record, then the tag.
//!
//! ```text
//! seal ─▶ images ─▶ compare histories ─▶ packs ─▶ parcel ─▶ tag, if nobody else has changed it ─▶ remember
//! ```
//!
//! Up to the tag nothing in the registry has changed for anybody; it can be cut off at any instant and goes on with
//! what is not there yet. It holds no container's lock: a start goes on beside it.

use super::draft::{Draft, Theirs, restore_settings};
use super::image::Lack;
use super::link::{Found, Link, find, look};
use super::load::Load;
use super::send::Consignment;
use super::there::{Seen, There, see, standing};
use super::{Order, add};
use crate::cli::args::ROOT_DEFAULT;
use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::generations::Queue;
use perennial_core::id::{ContainerId, Digest, Seq};
use perennial_core::sealed::pack::Index;
use perennial_core::travel::facts::Facts;
use perennial_core::travel::history::{Mark, Relation, marks, own_marks, relate_to_remote};
use perennial_core::travel::place::{CONTAINER_TAG, of_container};
use perennial_core::travel::remote::{Loss, Tracking};
use perennial_core::travel::{Contents, ImageAt, PAST_MAX, Parcel, ParcelError, Sender, clean};
use perennial_registry::progress::Progress;
use perennial_registry::repository::{Access, Expected, Repository, RepositoryError, Tagged, Traffic};
use perennial_store::root::Wait;
use std::collections::BTreeMap;
use std::path::Path;

/// What a push did.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// The repository.
    pub repository: String,
    /// Generations that were not there, oldest first.
    pub new: Vec<Seq>,
    /// The newest generation that is there now.
    pub head: Option<Seq>,
    /// Generations that were left out, because they are damaged.
    pub left_out: Vec<Seq>,
    /// What was only there, and is lost.
    pub loss: Loss,
    /// Whether it runs: what that run has changed is no generation yet.
    pub is_running: bool,
    /// Whether everything was there.
    pub is_nothing: bool,
    /// Whether two who push at once are told apart by the registry itself.
    pub is_guarded: bool,
    /// What went over the network.
    pub traffic: Traffic,
}

/// What every step of a push needs.
pub(super) struct Sending<'a> {
    pub(super) link: &'a Link,
    pub(super) sender: Sender,
    pub(super) progress: &'a dyn Progress,
    pub(super) traffic: Traffic,
    /// Whether everything is sent again.
    pub(super) is_whole: bool,
}

impl Engine {
    /// Sends a container, and remembers how that went.
    ///
    /// # Errors
    /// Where something of it cannot be read or sent, or somebody else has sent another history; what is there then is
    /// what was there.
    pub fn push(&self, order: &Order, progress: &dyn Progress) -> Result<Pushed> {
        let remote = self.remote(order.remote.as_deref())?;
        let id = self.seen(&order.name)?.value.id;
        let lock = self.root.lock_travel(&format!("{id}-{}", remote.name), Wait::Forever)?;
        let name = remote.name.clone();
        let done = Link::new(remote, order).and_then(|link| self.push_locked(&id, order, &link, progress));
        let done = self.unless_full(&format!("{id}-{name}"), done);
        let mut tracking = self.tracking(&id, &name)?;
        tracking.tried_at = Some(self.now());
        match &done {
            Ok(_) => (tracking.failures, tracking.error) = (0, None),
            Err(failure) => {
                tracking.failures = tracking.failures.saturating_add(1);
                tracking.error = Some(failure.one_line());
            }
        }
        self.track(&id, &name, &tracking)?;
        drop(lock);
        done
    }

    fn push_locked(&self, id: &ContainerId, order: &Order, link: &Link, progress: &dyn Progress) -> Result<Pushed> {
        let mut load = self.load(id, order.until)?;
        let name = order.other_name.as_ref().unwrap_or(&order.name);
        let repository = link.open(of_container(&link.remote.prefix, name), Access::Push)?;
        let tracking = self.tracking(id, &link.remote.name)?;
        let seen = see((&repository, look(link, &repository, CONTAINER_TAG)?), order, &load, &tracking)?;
        let Seen { mut found, lost, mut loss } = seen;
        let ours = our_marks(&load, &tracking, order);
        let mut theirs = found.as_ref().map(|found| Theirs::of(&repository, found)).transpose()?;
        let past = theirs.as_ref().map(|theirs| marks(&theirs.past, theirs.container.queue.as_ref()));
        let has_met = tracking.done_at.is_some() && order.other_name.is_none();
        let relation = relate_to_remote(&ours, past.as_deref().unwrap_or_default(), has_met);
        match (relation, &found) {
            (Relation::Ahead | Relation::Same, _) | (_, None) => {}
            (Relation::Behind, Some(found)) => {
                // It may not be known here that what is here has arrived.
                let theirs = past.unwrap_or_default();
                let arrived: Vec<Mark> = ours.into_iter().filter(|mark| theirs.contains(mark)).collect();
                self.remember_arrived(id, link, order, (&arrived, &found.tagged.digest))?;
                return Ok(nothing(&repository, &load, theirs));
            }
            (relation @ (Relation::Diverged { .. } | Relation::Unrelated), Some(found)) => {
                return Err(conflict(&repository, (order, &self.machine()), relation, &found.parcel.sent));
            }
        }
        let here = load.container.queue.clone().unwrap_or_default();
        if let Some(theirs) = &mut theirs {
            let base = tracking.facts.as_ref().filter(|_| order.other_name.is_none());
            theirs.settle(base, &mut load, relation)?;
        }
        restore_settings(&mut load, theirs.as_ref());
        let sender = Sender { at: self.now(), machine: self.machine(), by: self.actor.clone() };
        let is_whole = order.is_whole;
        let mut sending = Sending { link, sender, progress, traffic: Traffic::default(), is_whole };
        let mut draft = self.draft(&load, theirs, &ours, order);
        loss.generations.append(&mut draft.given_up);
        let elsewhere = self.send_images(&mut sending, &load, &mut draft)?;
        let (standing, lack) = standing(&repository, found.as_mut(), &draft, order)?;
        if let Some(found) = &found
            && !link.has_other_readers(&repository, &found.parcel)?
            && draft.is_same(&found.parcel)
            && !standing.loses_base
            && !is_whole
        {
            self.remember(id, link, order, (&ours, &found.tagged.digest, &here))?;
            return Ok(nothing(&repository, &load, ours));
        }
        let there =
            There { packs: found.iter().flat_map(|found| found.parcel.packs.clone()).collect(), standing, lack };
        let before = found.map(|found| found.tagged).or(lost);
        let (digest, new) = self.dispatch((&repository, &elsewhere, there), &sending, &load, (draft, before))?;
        self.remember(id, link, order, (&ours, &digest, &here))?;
        add(&mut sending.traffic, repository.traffic());
        Ok(Pushed {
            repository: repository.name(),
            new: new
                .into_iter()
                .filter(|seq| load.container.queue.as_ref().is_some_and(|q| q.get(*seq).is_some()))
                .collect(),
            head: ours.last().map(|mark| mark.seq),
            left_out: load.left_out,
            loss,
            is_running: load.is_running,
            is_nothing: false,
            is_guarded: repository.has_conditional_tags(),
            traffic: sending.traffic,
        })
    }

    /// Makes sure that the images are there that are named; returns what is in their packs.
    fn send_images(&self, sending: &mut Sending<'_>, load: &Load, draft: &mut Draft) -> Result<Vec<Index>> {
        let kept = std::mem::take(&mut draft.images);
        let mut images: BTreeMap<Digest, ImageAt> = kept.into_iter().map(|at| (at.image.clone(), at)).collect();
        let mut elsewhere = Vec::new();
        for image in &load.images {
            let layers = load.records(image.layers.iter().cloned());
            let place = images.get(&image.digest).and_then(|at| at.place);
            let (at, mut indexes) = self.send_image(sending, (image, &layers), place)?;
            images.insert(at.image.clone(), at);
            elsewhere.append(&mut indexes);
        }
        draft.images = images.into_values().collect();
        Ok(elsewhere)
    }

    /// Sends packs and parcel, and has the tag lead there.
    fn dispatch(
        &self,
        (repository, elsewhere, there): (&Repository, &[Index], There),
        sending: &Sending<'_>,
        load: &Load,
        (draft, before): (Draft, Option<Tagged>),
    ) -> Result<(Digest, Vec<Seq>)> {
        let spool = format!("{}-{}", load.container.id, sending.link.remote.name);
        let There { packs: there, standing, lack } = there;
        // What only they have is in their packs, which then stay.
        let layers = load.own();
        let contents =
            Contents::Container { container: Box::new(draft.container), past: draft.past, images: draft.images };
        let (link, sent, packs) = (sending.link, sending.sender.clone(), Vec::new());
        let mut parcel = Parcel { contents, layers: draft.layers, packs, sent, recipients: link.recipients() };
        // As whoever fetches it will: before anything is sent, and once more with what it names.
        parcel.check().map_err(unsendable)?;
        let is_salted = standing.is_whole || lack == Lack::Unsound;
        let (spool_name, layers) = (spool.clone(), layers.as_slice());
        let consignment = Consignment { repository, spool: spool_name, layers, elsewhere, there, standing, is_salted };
        parcel.packs = self.send_packs(consignment, sending)?;
        parcel.check().map_err(unsendable)?;
        let annotations = annotations(&parcel);
        let manifest = link.send_parcel(repository, parcel, annotations)?;
        let expected = before.as_ref().map_or(Expected::Nothing, Expected::This);
        let digest = repository
            .put_manifest(CONTAINER_TAG, &manifest, &expected)
            .map_err(|error| raced(link, repository, &self.machine(), error))?;
        self.clear_spool(&spool);
        Ok((digest, draft.new))
    }

    /// Records what of ours is known to be there now, where theirs goes on after it.
    fn remember_arrived(
        &self,
        id: &ContainerId,
        link: &Link,
        order: &Order,
        (arrived, manifest): (&[Mark], &Digest),
    ) -> Result<()> {
        if order.other_name.is_some() {
            return Ok(());
        }
        let mut tracking = self.tracking(id, &link.remote.name)?;
        let from = arrived.len().saturating_sub(PAST_MAX);
        tracking.marks = arrived.get(from..).unwrap_or_default().to_vec();
        tracking.manifest = Some(manifest.clone());
        tracking.done_at = Some(self.now());
        self.track(id, &link.remote.name, &tracking)
    }

    /// Records what is there now; what was sent under another name is not asked for again. What others changed there of
    /// what may change is not `here` yet, and a pull finds it changed.
    fn remember(
        &self,
        id: &ContainerId,
        link: &Link,
        order: &Order,
        (marks, manifest, here): (&[Mark], &Digest, &Queue),
    ) -> Result<()> {
        let mut tracking = self.tracking(id, &link.remote.name)?;
        tracking.note_here(here);
        if order.other_name.is_some() {
            return self.track(id, &link.remote.name, &tracking);
        }
        tracking.facts = Some(Facts::of(here).or(tracking.facts, marks));
        let from = marks.len().saturating_sub(PAST_MAX);
        tracking.marks = marks.get(from..).unwrap_or_default().to_vec();
        tracking.manifest = Some(manifest.clone());
        tracking.done_at = Some(self.now());
        self.track(id, &link.remote.name, &tracking)
    }
}

fn unsendable(error: ParcelError) -> Failure {
    let hint = if matches!(error, ParcelError::TooMany { what: "packs", .. }) {
        "nothing in the registry was changed; `perennial push --whole` writes everything that is here anew; generations that \
         are only there go with that, so pull them first"
    } else {
        "nothing in the registry was changed; evict generations, or let them age out"
    };
    Failure::from(error).code(Code::Host).while_doing("nobody could fetch what would be sent").hint(hint)
}

fn our_marks(load: &Load, tracking: &Tracking, order: &Order) -> Vec<Mark> {
    let past: Vec<Mark> = match order.other_name {
        // Under another name nothing was sent before.
        Some(_) => Vec::new(),
        None => {
            tracking.marks.iter().copied().filter(|mark| order.until.is_none_or(|until| mark.seq <= until)).collect()
        }
    };
    own_marks(&past, load.container.queue.as_ref())
}

fn nothing(repository: &Repository, load: &Load, there: Vec<Mark>) -> Pushed {
    Pushed {
        repository: repository.name(),
        new: Vec::new(),
        head: there.last().map(|mark| mark.seq),
        left_out: load.left_out.clone(),
        loss: Loss::default(),
        is_running: load.is_running,
        is_nothing: true,
        is_guarded: repository.has_conditional_tags(),
        traffic: repository.traffic(),
    }
}

fn conflict(repository: &Repository, (order, machine): (&Order, &str), relation: Relation, sent: &Sender) -> Failure {
    let name = &order.name;
    let what = match relation {
        Relation::Diverged { seq } => format!("generation {seq} of {name} here is not generation {seq} there"),
        Relation::Unrelated | Relation::Same | Relation::Ahead | Relation::Behind => {
            format!("{name} here and what is there have nothing in common")
        }
    };
    let Sender { at, machine: other, by } = sent;
    let message =
        format!("{} was sent by {by} on {other} at {at}, and {machine} would overwrite it: {what}", repository.name(),);
    Failure::new(Code::Conflict, message).hint(format!(
        "nothing was changed on either side; `perennial push {name} --as NEW-NAME` sends it beside that, `perennial pull \
         {name} NEW-NAME` fetches that beside it"
    ))
}

fn raced(link: &Link, repository: &Repository, machine: &str, error: RepositoryError) -> Failure {
    if !matches!(error, RepositoryError::Changed { .. }) {
        return error.into();
    }
    let by = match find(link, repository, CONTAINER_TAG) {
        Ok(Some(Found { parcel: Parcel { sent, .. }, .. })) => format!(" by {} on {}", sent.by, sent.machine),
        Ok(None) | Err(_) => String::new(),
    };
    Failure::new(Code::Conflict, format!("{} was changed{by} while {machine} sent it", repository.name()))
        .hint("push again: it compares the two histories and says whether one goes on after the other")
}

fn annotations(parcel: &Parcel) -> BTreeMap<String, String> {
    BTreeMap::from([("org.opencontainers.image.created".to_owned(), parcel.sent.at.to_string())])
}

impl Engine {
    /// Returns the name of this machine, with the root where that is not the usual one.
    fn machine(&self) -> String {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        if self.root.path() == Path::new(ROOT_DEFAULT) {
            clean(&name)
        } else {
            clean(&format!("{name}:{}", self.root.path().display()))
        }
    }
}
