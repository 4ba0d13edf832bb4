//! Whether two histories of a container are one.
//!
//! A generation is told by what never changes about it: its number, and when, why and by which run it was made. Its
//! layers are not asked: they are merged and folded on each machine as it suits it.

use super::clean;
use crate::generations::{Generation, Queue};
use crate::id::Seq;
use crate::sealed::object::ObjectId;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a generation is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// Its number.
    pub seq: Seq,
    /// BLAKE3 of what never changes about it.
    pub made: ObjectId,
}

impl Mark {
    /// Returns the mark of a generation.
    #[must_use]
    pub fn of(generation: &Generation) -> Self {
        let Generation { seq, exited_at, kind, exit_code, parent, image, run, by, .. } = generation;
        let at = exited_at.unix_nanos();
        // As it is sent: older releases let control characters into it.
        let by = clean(by);
        let made = format!("{seq}\n{at}\n{kind:?}\n{exit_code:?}\n{parent:?}\n{image}\n{run:?}\n{by}");
        Self { seq: *seq, made: ObjectId::of(made.as_bytes()) }
    }
}

/// Returns the marks of a queue and of what it once held, in order, each number once; `past` yields to the queue.
#[must_use]
pub fn marks(past: &[Mark], queue: Option<&Queue>) -> Vec<Mark> {
    let kept = queue.into_iter().flat_map(|queue| &queue.generations).map(Mark::of);
    let all: BTreeMap<Seq, Mark> = past.iter().copied().chain(kept).map(|mark| (mark.seq, mark)).collect();
    all.into_values().collect()
}

/// Returns the marks of a container here: of its queue, and of what is remembered of it from a registry, as far as it once
/// was here. What another has made since is not ours, even where we have seen that it is there.
#[must_use]
pub fn own_marks(remembered: &[Mark], queue: Option<&Queue>) -> Vec<Mark> {
    let next = queue.map_or(Seq(0), |queue| queue.next_seq);
    let past: Vec<Mark> = remembered.iter().copied().filter(|mark| mark.seq < next).collect();
    marks(&past, queue)
}

/// How two histories lie to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// They end with the same generation.
    Same,
    /// Ours goes on where theirs ends.
    Ahead,
    /// Theirs goes on where ours ends.
    Behind,
    /// They had a common beginning, and go on differently with this number.
    Diverged {
        /// The number.
        seq: Seq,
    },
    /// They have nothing in common.
    Unrelated,
}

/// Compares the history of a container here with one at a remote, as [`relate`]. One that never ran goes on from nothing:
/// only where it `has_met` the other, because it was sent there or came from there, is it the same container.
#[must_use]
pub fn relate_to_remote(ours: &[Mark], theirs: &[Mark], has_met: bool) -> Relation {
    if ours.is_empty() && !theirs.is_empty() && !has_met { Relation::Unrelated } else { relate(ours, theirs) }
}

/// Compares two histories, given as marks in order.
#[must_use]
pub fn relate(ours: &[Mark], theirs: &[Mark]) -> Relation {
    let (Some(our_last), Some(their_last)) = (ours.last(), theirs.last()) else {
        return match (ours.is_empty(), theirs.is_empty()) {
            (true, true) => Relation::Same,
            (true, false) => Relation::Behind,
            (false, _) => Relation::Ahead,
        };
    };
    let known: BTreeMap<Seq, ObjectId> = theirs.iter().map(|mark| (mark.seq, mark.made)).collect();
    let mut common = None;
    for mark in ours {
        match known.get(&mark.seq) {
            Some(made) if *made == mark.made => common = Some(mark.seq),
            Some(_) if common.is_none() => return Relation::Unrelated,
            Some(_) => return Relation::Diverged { seq: mark.seq },
            None => {}
        }
    }
    let Some(common) = common else { return Relation::Unrelated };
    // A number that only one of them has, below the last of the other, was made by that one alone.
    let missing = |of: &[Mark], other_last: Seq, other: &dyn Fn(Seq) -> bool| {
        of.iter().find(|mark| mark.seq > common && mark.seq <= other_last && !other(mark.seq)).map(|mark| mark.seq)
    };
    let is_ours = |seq| ours.iter().any(|mark| mark.seq == seq);
    let is_theirs = |seq| known.contains_key(&seq);
    let (we_alone, they_alone) = (missing(ours, their_last.seq, &is_theirs), missing(theirs, our_last.seq, &is_ours));
    if let Some(seq) = we_alone.into_iter().chain(they_alone).min() {
        return Relation::Diverged { seq };
    }
    match our_last.seq.cmp(&their_last.seq) {
        core::cmp::Ordering::Equal => Relation::Same,
        core::cmp::Ordering::Greater => Relation::Ahead,
        core::cmp::Ordering::Less => Relation::Behind,
    }
}
