//! What eviction takes and what it passes over (rows A15, A22, A28, A31, A33).
//!
//! Eviction is first in, first out over what nothing protects. Protected are the current generation, the last good
//! one, pinned ones, the one a rollback waits for, and the newest salvage, which lives outside the capacity. Where
//! only protected ones are left the queue outgrows its bound, and says so.

use super::{Generation, Health, Kind, Queue, SALVAGE_SLOTS};
use crate::container::{ConditionKind, Container};
use crate::id::Seq;
use crate::time::Time;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

impl Queue {
    /// Evicts the oldest unprotected generations until at most `keep` are left outside the salvage slots.
    /// Returns those that left and whether protection kept it from reaching `keep`.
    pub fn evict(&mut self, keep: u32) -> (Vec<Seq>, bool) {
        let keep = usize::try_from(keep.max(1)).unwrap_or(usize::MAX);
        let mut evicted = Vec::new();
        while self.counted() > keep {
            let Some(seq) = self.head_for_eviction() else { return (evicted, true) };
            self.remove(seq);
            evicted.push(seq);
        }
        (evicted, false)
    }

    /// Returns the oldest generation that eviction may take, if there is one.
    #[must_use]
    pub fn head_for_eviction(&self) -> Option<Seq> {
        let protected = self.protected();
        self.generations.iter().map(|generation| generation.seq).find(|seq| !protected.contains(seq))
    }

    /// Returns the generations that eviction passes over.
    #[must_use]
    pub fn protected(&self) -> BTreeSet<Seq> {
        let last_good = self.last_good();
        // Where the last good one is good only for want of anything against it, the newest that was *seen* to be good
        // stays too, even in quarantine: no automatic path removes the last good generation (I3).
        let seen_good = match last_good.map(|generation| generation.health) {
            Some(Health::Good) => None,
            Some(Health::Unknown | Health::Suspect | Health::Damaged) | None => {
                self.generations.iter().rev().find(|generation| generation.health == Health::Good)
            }
        };
        let pinned = self.generations.iter().filter(|generation| generation.pinned);
        let mut protected = self.salvage_exempt();
        protected.extend(pinned.chain(last_good).chain(seen_good).map(|generation| generation.seq));
        protected.extend(self.current.into_iter().chain(self.held));
        protected
    }

    /// Returns the newest generation known to be good; where none is, the newest that ended cleanly and has nothing
    /// against it (A22, A31). One that is not quarantined is preferred.
    #[must_use]
    pub fn last_good(&self) -> Option<&Generation> {
        self.newest_good(|g| !g.quarantined).or_else(|| self.newest_good(|_| true))
    }

    /// Returns the same among those that `admits` accepts.
    fn newest_good(&self, admits: impl Fn(&Generation) -> bool) -> Option<&Generation> {
        let newest = || self.generations.iter().rev().filter(|g| admits(g));
        let is_clean = |g: &&Generation| g.health == Health::Unknown && g.clean;
        newest().find(|g| g.health == Health::Good).or_else(|| newest().find(is_clean))
    }

    /// Number of generations that count against the capacity; the others are salvages outside it.
    #[must_use]
    pub fn counted(&self) -> usize {
        self.generations.len().saturating_sub(self.salvage_exempt().len())
    }

    /// The newest salvaged generations, which live outside the capacity (A28).
    fn salvage_exempt(&self) -> BTreeSet<Seq> {
        self.generations
            .iter()
            .rev()
            .filter(|generation| generation.kind == Kind::Salvage)
            .take(SALVAGE_SLOTS)
            .map(|generation| generation.seq)
            .collect()
    }
}

impl Container {
    /// Raises or clears `RetentionBlocked` for the bound on the number of generations (A31).
    pub fn note_retention(&mut self, is_blocked: bool, now: Time) {
        if is_blocked {
            let message = alloc::format!(
                "every generation is pinned, current or the last good one, so the queue is over its bound ({}); \
                 unpin one or raise --keep",
                self.policy.keep
            );
            self.raise(ConditionKind::RetentionBlocked, now, message);
        } else {
            self.clear(ConditionKind::RetentionBlocked);
        }
    }

    /// Raises `RetentionBlocked` for a bound on bytes that cannot be kept (A31); the next exit looks again.
    pub fn note_bytes_blocked(&mut self, keep_bytes: u64, now: Time) {
        let message = alloc::format!(
            "every generation left is pinned, current or the last good one, and they take more than the bound on bytes \
             ({keep_bytes}); unpin one or raise --keep-bytes"
        );
        self.raise(ConditionKind::RetentionBlocked, now, message);
    }
}
