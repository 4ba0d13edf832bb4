//! What a push will leave in the registry: ours, and what only they have and the container may keep.

use super::Order;
use super::arrive::other_current;
use super::link::Found;
use super::load::Load;
use crate::engine::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::generations::{Generation, Queue};
use perennial_core::id::{LayerId, Seq};
use perennial_core::layers::LayerRecord;
use perennial_core::travel::facts::{Facts, settle};
use perennial_core::travel::history::{Mark, Relation, marks};
use perennial_core::travel::merge::{Newer, adopt, queues};
use perennial_core::travel::place::CONTAINER_TAG;
use perennial_core::travel::settings::Withheld;
use perennial_core::travel::{Contents, ImageAt, PAST_MAX, Parcel, Sender};
use perennial_registry::repository::Repository;
use std::collections::{BTreeMap, BTreeSet};

/// What is there.
pub(super) struct Theirs {
    pub(super) container: Container,
    pub(super) past: Vec<Mark>,
    layers: Vec<LayerRecord>,
    images: Vec<ImageAt>,
    sent: Sender,
}

impl Theirs {
    /// Takes a container's parcel apart.
    pub(super) fn of(repository: &Repository, found: &Found) -> Result<Self> {
        match &found.parcel.contents {
            Contents::Container { container, past, images } => Ok(Self {
                container: (**container).clone(),
                past: past.clone(),
                layers: found.parcel.layers.clone(),
                images: images.clone(),
                sent: found.parcel.sent.clone(),
            }),
            Contents::Image { .. } => {
                let message = format!("what {} has as {CONTAINER_TAG} is an image, not a container", repository.name());
                Err(Failure::new(Code::Damaged, message)
                    .hint("somebody else has written there; push under another name"))
            }
        }
    }
}

impl Theirs {
    /// Makes what is sent and what is there say the same of what both have, whoever has changed it.
    pub(super) fn settle(&mut self, base: Option<&Facts>, load: &mut Load, relation: Relation) -> Result<()> {
        let (Some(theirs), Some(ours)) = (&mut self.container.queue, &mut load.container.queue) else { return Ok(()) };
        let before = ours.current;
        settle(base, ours, theirs, relation)
            .map_err(|conflict| other_current(&load.container.name, &conflict, &self.sent))?;
        // Such as how to take back what came from there, which it has not yet.
        ours.undo = None;
        if ours.current != before {
            load.container.image = self.container.image.clone();
            load.container.image_name.clone_from(&self.container.image_name);
        }
        Ok(())
    }
}

/// Puts the settings back that are not taken here, for whoever takes them: as they are there, where they are.
pub(super) fn restore_settings(load: &mut Load, theirs: Option<&Theirs>) {
    let withheld = std::mem::take(&mut load.container.withheld);
    if !withheld.is_empty() {
        if let Some(theirs) = theirs {
            Withheld::take(&mut theirs.container.spec.clone()).restore(&mut load.container.spec);
        }
        withheld.restore(&mut load.container.spec);
    }
}

/// What will be there, but for the packs.
pub(super) struct Draft {
    pub(super) container: Container,
    pub(super) layers: Vec<LayerRecord>,
    pub(super) past: Vec<Mark>,
    pub(super) images: Vec<ImageAt>,
    pub(super) new: Vec<Seq>,
    /// Generations in it that are only there.
    pub(super) only_there: Vec<Seq>,
    /// Generations that are only there and are given up.
    pub(super) given_up: Vec<Seq>,
}

impl Draft {
    /// Returns whether that is there already, in all that matters to whoever pulls it.
    pub(super) fn is_same(&self, there: &Parcel) -> bool {
        let Contents::Container { container, images, .. } = &there.contents else { return false };
        let seen = |container: &Container| {
            let generations = container.queue.iter().flat_map(|queue| &queue.generations);
            let list: Vec<Generation> =
                generations.map(|generation| Generation { layers: Vec::new(), ..generation.clone() }).collect();
            (
                list,
                container.queue.as_ref().and_then(|queue| queue.current),
                container.spec.clone(),
                container.image.clone(),
            )
        };
        self.new.is_empty()
            && seen(container) == seen(&self.container)
            && container.policy == self.container.policy
            && *images == self.images
    }
}

impl Engine {
    /// Puts together what will be there.
    pub(super) fn draft(&self, load: &Load, theirs: Option<Theirs>, ours: &[Mark], order: &Order) -> Draft {
        let name = order.other_name.as_ref().unwrap_or(&order.name);
        let mut container = Container { name: name.clone(), ..load.container.clone() };
        // Layers of images are in the parcels of the images.
        let mut layers = load.own();
        let mut all: BTreeMap<Seq, Mark> = ours.iter().map(|mark| (mark.seq, *mark)).collect();
        let (mut images, mut known) = (Vec::new(), BTreeSet::new());
        let (mut only_there, mut given_up) = (Vec::new(), Vec::new());
        if let Some(theirs) = theirs {
            let mut queue = theirs.container.queue.unwrap_or_default();
            all.extend(marks(&theirs.past, Some(&queue)).into_iter().map(|mark| (mark.seq, mark)));
            known = queue.generations.iter().map(|generation| generation.seq).collect();
            let mut fresh = || LayerId::from_random(random().unwrap_or_default());
            let adopted = adopt(&layers, &theirs.layers, &mut fresh);
            for generation in &mut queue.generations {
                generation.layers = adopted.stack(&generation.layers);
            }
            let own = container.queue.take().unwrap_or_default();
            if order.is_whole {
                given_up = lacking(&own, &queue);
                queue.generations.retain(|generation| own.get(generation.seq).is_some());
            }
            let merged = queues(&own, &queue, Newer::Ours, container.policy.keep);
            let needed = merged.layers();
            let added = adopted.new.into_iter().map(|(layer, _)| layer);
            layers.extend(added.filter(|layer| needed.contains(&layer.id)));
            only_there = lacking(&own, &merged);
            images = theirs.images;
            // What packs have that only they need may be put together with what is in any of these.
            let is_needed = |at: &ImageAt| merged.generations.iter().any(|generation| generation.image == at.image);
            images.retain(|at| !only_there.is_empty() || is_needed(at));
            container.queue = if merged.generations.is_empty() { None } else { Some(merged) };
        }
        let generations = container.queue.iter().flat_map(|queue| &queue.generations);
        let kept: BTreeSet<Seq> = generations.map(|generation| generation.seq).collect();
        let past: Vec<Mark> = all.into_values().filter(|mark| !kept.contains(&mark.seq)).collect();
        let past = past.get(past.len().saturating_sub(PAST_MAX)..).unwrap_or_default().to_vec();
        let new = kept.into_iter().filter(|seq| !known.contains(seq)).collect();
        Draft { container, layers, past, images, new, only_there, given_up }
    }
}

/// Returns what one queue lacks of another.
fn lacking(own: &Queue, other: &Queue) -> Vec<Seq> {
    let seqs = other.generations.iter().map(|generation| generation.seq);
    seqs.filter(|seq| own.get(*seq).is_none()).collect()
}
