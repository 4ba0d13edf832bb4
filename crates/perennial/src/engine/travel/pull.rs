//! A container from a registry: what is not here, then its record.
//!
//! ```text
//! parcel ─▶ compare histories ─▶ the current generation with its image ─▶ recorded: it can start
//!                              ─▶ the other generations                ─▶ recorded
//! ```
//!
//! The generation to start from comes first, and can be started as soon as it is recorded, while the others are still
//! on their way. It can be cut off at any instant and goes on with what is not here yet.

use super::arrive::{Goal, SentImage, Session};
use super::land::Landing;
use super::link::{Found, Link, find};
use super::{Order, add};
use crate::engine::Engine;
use crate::engine::random;
use crate::engine::records::Doc;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::id::{ContainerId, ContainerName, Digest, Seq};
use perennial_core::layers::LayerRecord;
use perennial_core::travel::cipher::Secrecy;
use perennial_core::travel::history::Mark;
use perennial_core::travel::merge::Wanted;
use perennial_core::travel::place::{CONTAINER_TAG, of_container};
use perennial_core::travel::{Contents, ImageAt, PackAt, Sender};
use perennial_registry::progress::Progress;
use perennial_registry::repository::{Access, Repository, Traffic};
use perennial_store::root::{LockMode, Wait};
use std::cell::Cell;
use std::collections::BTreeSet;

pub use super::arrive::Trust;

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
    /// Generations that stay there: they were let go here, or were not asked for.
    pub left_there: Vec<Seq>,
    /// The generation the next run starts from.
    pub current: Option<Seq>,
    /// Whether that is another one than before, of a container that was here.
    pub is_moved: bool,
    /// Settings that were not taken, in words.
    pub left_out: Vec<String>,
    /// What went over the network.
    pub traffic: Traffic,
}

/// What is in the registry.
pub(super) struct There {
    pub(super) container: Container,
    pub(super) past: Vec<Mark>,
    pub(super) layers: Vec<LayerRecord>,
    images: Vec<ImageAt>,
    packs: Vec<PackAt>,
    pub(super) digest: Digest,
    pub(super) sent: Sender,
}

/// Repositories with the packs that are wanted of them.
type Sources = Vec<(Repository, Vec<PackAt>)>;

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
        let id = match &present {
            Some(doc) => doc.value.id.clone(),
            None => ContainerId::from_random(random()?),
        };
        // What is sent meanwhile would be compared with what is about to change.
        let _sending = self.root.lock_travel(&format!("{id}-{}", link.remote.name), Wait::Forever)?;
        let goal = Goal {
            there,
            repository: repository.name(),
            name,
            id,
            is_here: Cell::new(present.is_some()),
            remote: &link.remote.name,
            is_tracked: order.other_name.is_none(),
            trust: plan.trust,
        };
        self.check_arrival(&goal, present.as_ref())?;
        // Nothing names what comes before its record does.
        let _images = self.root.lock_images(LockMode::Shared, Wait::Forever)?;
        let _objects = self.root.lock_objects(LockMode::Shared, Wait::Forever)?;
        let (sources, images) = self.sources(&link, repository, &goal.there)?;
        let landed = Landing::begin(self, &self.spool_dir(&spool), sources, progress)
            .and_then(|landing| self.take_all(&Session { goal, landing, images }, present.as_ref(), plan.extent));
        let pulled = self.unless_full(&spool, landed)?;
        self.clear_spool(&spool);
        Ok(pulled)
    }

    fn take_all(&self, session: &Session<'_>, before: Option<&Doc<Container>>, extent: Extent) -> Result<Pulled> {
        let mut left_out = self.arrive(session, Wanted::Current)?;
        if extent == Extent::All {
            left_out.extend(self.arrive(session, Wanted::All)?);
        }
        let after = self.container_named(session.goal.name)?.value;
        let mut pulled = Pulled {
            repository: session.goal.repository.clone(),
            name: session.goal.name.clone(),
            new: seqs(Some(&after)).difference(&seqs(before.map(|doc| &doc.value))).copied().collect(),
            current: current(&after),
            left_there: seqs(Some(&session.goal.there.container)).difference(&seqs(Some(&after))).copied().collect(),
            is_moved: before.is_some_and(|doc| current(&doc.value) != current(&after)),
            left_out,
            traffic: Traffic::default(),
        };
        for repository in session.landing.repositories() {
            add(&mut pulled.traffic, repository.traffic());
        }
        Ok(pulled)
    }

    /// Returns where contents come from, and the images.
    fn sources(&self, link: &Link, repository: Repository, there: &There) -> Result<(Sources, Vec<SentImage>)> {
        let mut sources = vec![(repository, there.packs.clone())];
        let mut images = Vec::new();
        for at in &there.images {
            let (repository, found) = self.find_sent_image(link, at)?;
            let Contents::Image { image } = found.parcel.contents else { continue };
            images.push(SentImage { image: *image, layers: found.parcel.layers, from: repository.name() });
            sources.push((repository, found.parcel.packs));
        }
        Ok((sources, images))
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

fn seqs(container: Option<&Container>) -> BTreeSet<Seq> {
    let queue = container.and_then(|container| container.queue.as_ref());
    queue.into_iter().flat_map(|queue| &queue.generations).map(|generation| generation.seq).collect()
}

fn current(container: &Container) -> Option<Seq> {
    container.queue.as_ref().and_then(|queue| queue.current)
}
