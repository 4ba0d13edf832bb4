//! What may change about generations that two copies share: which one is current, pins, quarantine, health.
//!
//! Two copies are compared with what both had when they were last the same. Whoever changed something since is followed;
//! so a change reaches the other copy, and a copy that knows nothing of it never undoes it. Where both changed the same:
//!
//! | what | rule |
//! |---|---|
//! | current | a conflict, which is told |
//! | pin, quarantine | cannot be, as there are two values; where nothing is known of before, set in one is set in both |
//! | health | the warier one: `suspect`, then `good`, then `unknown` |
//!
//! `damaged` is about the data of one machine and does not travel.

use super::GENERATIONS_MAX;
use super::history::{Mark, Relation};
use crate::generations::rollback::Undo;
use crate::generations::{Generation, Health, Queue};
use crate::id::Seq;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What may change about a queue and its generations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The generation the next run starts from.
    pub current: Option<Seq>,
    /// One for each generation, in order.
    pub generations: Vec<Fact>,
}

/// What may change about one generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Its number.
    pub seq: Seq,
    /// Whether eviction passes it over.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub pinned: bool,
    /// Whether it is never chosen automatically.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub quarantined: bool,
    /// What is known about its state.
    pub health: Health,
}

/// Both copies have another current generation than when they were last the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it starts from generation {ours} here and from generation {theirs} there")]
pub struct Conflict {
    /// Ours.
    pub ours: Seq,
    /// Theirs.
    pub theirs: Seq,
    /// The one a rollback here can go to so that the two fit again, where there is one.
    pub way_out: Option<Seq>,
}

impl Facts {
    /// Returns those of a queue.
    #[must_use]
    pub fn of(queue: &Queue) -> Self {
        Self { current: queue.current, generations: queue.generations.iter().map(Fact::of).collect() }
    }

    /// Returns what is known of a generation.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Fact> {
        self.generations.iter().find(|fact| fact.seq == seq)
    }

    /// Adds what was known of generations of this history that are not among these, such as one that was left out.
    #[must_use]
    pub fn or(mut self, before: Option<Self>, history: &[Mark]) -> Self {
        let before = before.into_iter().flat_map(|before| before.generations);
        let is_of = |fact: &Fact| history.iter().any(|mark| mark.seq == fact.seq);
        let missing: Vec<Fact> = before.filter(|fact| self.get(fact.seq).is_none() && is_of(fact)).collect();
        let from = missing.len().saturating_sub(GENERATIONS_MAX);
        self.generations.extend(missing.into_iter().skip(from));
        self.generations.sort_by_key(|fact| fact.seq);
        self
    }
}

impl Fact {
    fn of(generation: &Generation) -> Self {
        let Generation { seq, pinned, quarantined, health, .. } = *generation;
        Self { seq, pinned, quarantined, health }
    }
}

/// Makes two copies say the same of what both have. `base` is what both had when they were last the same, where that is
/// known. `ours` can be taken back to what it was by its undo.
///
/// # Errors
/// [`Conflict`]; nothing has changed then.
pub fn settle(base: Option<&Facts>, ours: &mut Queue, theirs: &mut Queue, relation: Relation) -> Result<(), Conflict> {
    // A copy that was put back to before that, such as a registry out of its backup, has chosen nothing against it.
    let base = base.filter(|base| base.generations.iter().all(|fact| fact.seq < theirs.next_seq));
    let current = current(base, ours, theirs, relation)?;
    if current != ours.current && current.is_some_and(|seq| ours.get(seq).is_some()) {
        let quarantined = ours.generations.iter().filter(|generation| generation.quarantined);
        ours.undo = Some(Undo {
            current: ours.current,
            quarantined: quarantined.map(|generation| generation.seq).collect(),
            tail: ours.generations.last().map(|generation| generation.seq),
        });
    }
    set_aside(ours, theirs, current);
    set_aside(theirs, ours, current);
    (ours.current, theirs.current) = (current, current);
    for mine in &mut ours.generations {
        let Some(other) = theirs.get_mut(mine.seq) else { continue };
        let before = base.and_then(|base| base.get(mine.seq));
        let pinned = flag(before.map(|fact| fact.pinned), mine.pinned, other.pinned);
        let quarantined = if Some(mine.seq) == current {
            // Whoever chose it has released it.
            mine.quarantined && other.quarantined
        } else {
            flag(before.map(|fact| fact.quarantined), mine.quarantined, other.quarantined)
        };
        (mine.pinned, mine.quarantined) = (pinned, quarantined);
        (other.pinned, other.quarantined) = (pinned, quarantined);
        settle_health(before.map(|fact| fact.health), mine, other);
    }
    Ok(())
}

/// Puts into quarantine what only this queue has and a rollback elsewhere would have put there, had it been there.
fn set_aside(queue: &mut Queue, other: &Queue, current: Option<Seq>) {
    if queue.current != current {
        let newer = queue.generations.iter_mut().filter(|generation| Some(generation.seq) > current);
        newer.filter(|newer| other.get(newer.seq).is_none()).for_each(|newer| newer.quarantined = true);
    }
}

fn current(base: Option<&Facts>, ours: &Queue, theirs: &Queue, relation: Relation) -> Result<Option<Seq>, Conflict> {
    let (Some(mine), Some(other)) = (ours.current, theirs.current) else {
        return Ok(ours.current.or(theirs.current));
    };
    let newest = |queue: &Queue| queue.generations.last().map(|generation| generation.seq);
    let (is_mine_old, is_other_old) = match (base, relation) {
        (Some(base), _) => (base.current == Some(mine), base.current == Some(other)),
        // Nothing is known of before: who only goes on from the newest of the other has not chosen against it.
        (None, Relation::Behind) => (newest(ours) == Some(mine), false),
        (None, Relation::Ahead) => (false, newest(theirs) == Some(other)),
        (None, Relation::Same | Relation::Diverged { .. } | Relation::Unrelated) => (false, false),
    };
    if mine == other || is_other_old {
        return Ok(Some(mine));
    }
    if is_mine_old {
        return Ok(Some(other));
    }
    let before = base.and_then(|base| base.current);
    let way_out = [Some(other), before].into_iter().flatten().find(|seq| ours.get(*seq).is_some());
    Err(Conflict { ours: mine, theirs: other, way_out })
}

fn flag(before: Option<bool>, mine: bool, other: bool) -> bool {
    match before {
        Some(before) if before == mine => other,
        Some(_) => mine,
        None => mine || other,
    }
}

fn settle_health(before: Option<Health>, mine: &mut Generation, other: &mut Generation) {
    if mine.health == Health::Damaged || other.health == Health::Damaged {
        return;
    }
    let takes_other = match before {
        Some(before) if before == mine.health => true,
        Some(before) if before == other.health => false,
        Some(_) | None => wariness(other.health) > wariness(mine.health),
    };
    let verified_at = mine.verified_at.max(other.verified_at);
    let (from, to) = if takes_other { (&*other, &mut *mine) } else { (&*mine, &mut *other) };
    let note = from.note.clone().or_else(|| to.note.clone().filter(|_| to.health == from.health));
    to.health = from.health;
    (mine.note, other.note) = (note.clone(), note);
    (mine.verified_at, other.verified_at) = (verified_at, verified_at);
}

fn wariness(health: Health) -> u8 {
    match health {
        Health::Unknown | Health::Damaged => 0,
        Health::Good => 1,
        Health::Suspect => 2,
    }
}
