//! Rolling back: what moving `current` to an older generation does to the newer ones (rows A18 to A21, A32).
//!
//! Nothing is deleted. Newer generations are quarantined: listed, restorable, aging out by FIFO, and never the
//! default. The chosen one and those it descends from are released from quarantine. The change can be undone.

use super::choose::{ChooseError, Selector, choose};
use super::{Health, Queue};
use crate::id::Seq;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a rollback would change; printed by `--dry-run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RollbackPlan {
    /// Generation that becomes current.
    pub target: Seq,
    /// Present current generation.
    pub from: Option<Seq>,
    /// Present tail; a queue with another one is not the queue that was planned for (A19).
    pub tail: Option<Seq>,
    /// Generations that become quarantined.
    pub quarantine: Vec<Seq>,
    /// Generations that are released.
    pub release: Vec<Seq>,
}

/// How the queue was before the last rollback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Generation that was current.
    pub current: Option<Seq>,
    /// Generations that were quarantined.
    pub quarantined: Vec<Seq>,
    /// Tail of the queue at that time: a newer one makes the undo quarantine it.
    pub tail: Option<Seq>,
}

/// Plans a rollback.
///
/// # Errors
/// [`ChooseError`] where the selector means no generation.
pub fn plan(queue: &Queue, selector: &Selector) -> Result<RollbackPlan, ChooseError> {
    let target = choose(queue, selector)?;
    let lineage = lineage_of(queue, target);
    let quarantine = queue.generations.iter().filter(|g| g.seq > target && !g.quarantined).map(|g| g.seq).collect();
    let release =
        queue.generations.iter().filter(|g| g.quarantined && lineage.contains(&g.seq)).map(|g| g.seq).collect();
    Ok(RollbackPlan { target, from: queue.current, tail: tail_of(queue), quarantine, release })
}

/// Carries a plan out on the queue it was made for. A plan that changes nothing leaves the undo of an earlier rollback
/// in place, so that a repeated request does the same as one (A18).
///
/// # Errors
/// [`ChooseError::UnknownSeq`] where the target has left the queue since, [`ChooseError::Changed`] where the queue is
/// another one than was planned for. Nothing has changed then.
pub fn apply(queue: &mut Queue, plan: &RollbackPlan) -> Result<(), ChooseError> {
    if queue.get(plan.target).is_none() {
        let present = queue.generations.iter().map(|g| g.seq).collect();
        return Err(ChooseError::UnknownSeq { seq: plan.target, present });
    }
    let is_all = |seqs: &[Seq], quarantined: bool| {
        seqs.iter().all(|seq| queue.get(*seq).is_some_and(|g| g.quarantined == quarantined))
    };
    let is_planned_for = queue.current == plan.from
        && tail_of(queue) == plan.tail
        && is_all(&plan.quarantine, false)
        && is_all(&plan.release, true);
    if !is_planned_for {
        return Err(ChooseError::Changed { seq: plan.target });
    }
    queue.held = None;
    if queue.current == Some(plan.target) && plan.quarantine.is_empty() && plan.release.is_empty() {
        return Ok(());
    }
    queue.undo = Some(Undo {
        current: queue.current,
        quarantined: queue.generations.iter().filter(|g| g.quarantined).map(|g| g.seq).collect(),
        tail: tail_of(queue),
    });
    for generation in &mut queue.generations {
        if plan.quarantine.contains(&generation.seq) {
            generation.quarantined = true;
        }
        if plan.release.contains(&generation.seq) {
            generation.quarantined = false;
        }
    }
    queue.current = Some(plan.target);
    Ok(())
}

/// Chooses a generation and holds it against eviction while the present run is stopped for the rollback: its exit is
/// then kept as a salvage (A-Q7) and cannot push the chosen one out (A19). Record this before stopping; [`apply`] and
/// the next start end it.
///
/// # Errors
/// [`ChooseError`] where the selector means no generation.
pub fn hold(queue: &mut Queue, selector: &Selector) -> Result<Seq, ChooseError> {
    let target = choose(queue, selector)?;
    queue.held = Some(target);
    Ok(target)
}

/// Plans to take the last rollback back: what was current becomes current again; generations made since are
/// quarantined. Returns `None` where there is nothing to take back.
#[must_use]
pub fn plan_undo(queue: &Queue) -> Option<RollbackPlan> {
    let undo = queue.undo.as_ref()?;
    let target = undo.current.filter(|seq| queue.get(*seq).is_some())?;
    let was_quarantined = |seq: Seq| undo.quarantined.contains(&seq) || undo.tail.is_some_and(|tail| seq > tail);
    let changed = |is_now: bool| {
        queue
            .generations
            .iter()
            .filter(|g| g.quarantined != was_quarantined(g.seq) && g.quarantined == is_now && g.seq != target)
            .map(|g| g.seq)
            .collect::<Vec<Seq>>()
    };
    let mut release = changed(true);
    if queue.get(target).is_some_and(|g| g.quarantined) {
        release.push(target);
    }
    Some(RollbackPlan { target, from: queue.current, tail: tail_of(queue), quarantine: changed(false), release })
}

/// Marks a generation's health by hand or by a check.
///
/// # Errors
/// [`ChooseError::UnknownSeq`] where there is no such generation.
pub fn mark(queue: &mut Queue, seq: Seq, health: Health) -> Result<(), ChooseError> {
    let present = queue.generations.iter().map(|g| g.seq).collect();
    let generation = queue.get_mut(seq).ok_or(ChooseError::UnknownSeq { seq, present })?;
    generation.health = health;
    Ok(())
}

fn tail_of(queue: &Queue) -> Option<Seq> {
    queue.generations.last().map(|g| g.seq)
}

/// The generation and those it descends from, as far as they are still in the queue.
fn lineage_of(queue: &Queue, seq: Seq) -> BTreeSet<Seq> {
    let mut lineage = BTreeSet::new();
    let mut next = Some(seq);
    while let Some(seq) = next {
        if !lineage.insert(seq) {
            break;
        }
        next = queue.get(seq).and_then(|g| g.parent);
    }
    lineage
}
