//! A place in a registry to send containers to, and what is known of what was sent there.

use super::GENERATIONS_MAX;
use super::cipher::Recipient;
use super::facts::Facts;
use super::history::{Mark, marks};
use crate::format::{self, Format};
use crate::generations::{Generation, Health, Queue};
use crate::id::{Digest, Seq};
use crate::time::Time;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// A place to send to. No secret is in it: logins are where container tools keep them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Its name here.
    pub name: String,
    /// The registry, as `HOST[:PORT]`.
    pub registry: String,
    /// Path below which repositories are; may be empty.
    pub prefix: String,
    /// Whether HTTP is spoken without TLS.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub plain_http: bool,
    /// How everything that is sent there is encrypted, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// When it was added.
    pub added_at: Time,
}

/// How what is sent to a remote is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// Path of the file that has our secret key, as age keeps one. Only the path: the key is no record.
    pub identity: String,
    /// Keys of others who can read it, too.
    pub recipients: Vec<Recipient>,
}

impl Remote {
    /// Returns its bytes: an older release, which would send what it has as it is, refuses an encrypted one.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flags: &[&'static str] = if self.encryption.is_some() { &[format::FLAG_ENCRYPTED] } else { &[] };
        format::encode_flagged(Format::Remote, flags, self)
    }
}

/// What is known of a container at a remote. Only a remark: what is there is asked of the registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// Generations that were there when it was last looked at, in order.
    pub marks: Vec<Mark>,
    /// Digest of the manifest that was there.
    pub manifest: Option<Digest>,
    /// When it was last sent or fetched.
    pub done_at: Option<Time>,
    /// When it was last tried.
    pub tried_at: Option<Time>,
    /// Tries in a row that failed.
    #[serde(default)]
    pub failures: u32,
    /// What stood in the way at the last of them.
    pub error: Option<String>,
    /// What the container and its copy there both had of what may change, when they were last the same in it; not known
    /// to records of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,
    /// Generations that were here when something was sent or fetched. Those that are here no more were let go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub had: Vec<Mark>,
}

/// Shortest and longest time between two tries, in seconds.
const PAUSE_FIRST_S: u32 = 5;
const PAUSE_LONGEST_S: u32 = 300;

/// Returns how long after a failed try the next one is due, in seconds: doubled each time.
#[must_use]
pub fn pause_s(failures: u32) -> u32 {
    let doubled = PAUSE_FIRST_S.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    doubled.min(PAUSE_LONGEST_S)
}

/// Generations that are remembered as having been here: those of two of the longest queues.
const HAD_MAX: usize = 2 * GENERATIONS_MAX;

/// What of a container is not at a remote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Lacking {
    /// Generations that can still be sent, oldest first.
    pub generations: Vec<Generation>,
    /// How many were let go since something was there last, and were never there.
    pub gone: u64,
}

/// What is lost where the record at a remote is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    /// Generations that were there, as far as is known, and are not here, in order.
    pub generations: Vec<Seq>,
    /// Whether something was sent there that was never looked at here, so that more may be lost.
    pub is_unseen: bool,
}

impl Tracking {
    /// Returns what is lost with the record that a manifest leads to. Of what was there before, a remote has what the
    /// container keeps: the newest, and pinned ones.
    #[must_use]
    pub fn loss(&self, queue: Option<&Queue>, manifest: &Digest, keep: u32) -> Loss {
        let facts = self.facts.iter().flat_map(|facts| &facts.generations);
        let pinned: Vec<Seq> = facts.clone().filter(|fact| fact.pinned).map(|fact| fact.seq).collect();
        let here = queue.into_iter().flat_map(|queue| &queue.generations).map(|generation| generation.seq);
        let is_here = |seq: &Seq| queue.is_some_and(|queue| queue.get(*seq).is_some());
        let all: BTreeSet<Seq> = facts.map(|fact| fact.seq).chain(here).collect();
        let kept = usize::try_from(keep).unwrap_or(usize::MAX);
        let newest = all.iter().rev().take(kept);
        let there: BTreeSet<Seq> = newest.copied().chain(pinned).collect();
        Loss {
            generations: there.into_iter().filter(|seq| !is_here(seq)).collect(),
            is_unseen: self.manifest.as_ref() != Some(manifest),
        }
    }

    /// Returns what of a queue is not there. What is damaged is left out: it cannot be sent.
    #[must_use]
    pub fn lacks(&self, queue: &Queue) -> Lacking {
        let is_lacking = |generation: &&Generation| {
            generation.health != Health::Damaged && !self.marks.contains(&Mark::of(generation))
        };
        let generations: Vec<Generation> = queue.generations.iter().filter(is_lacking).cloned().collect();
        let last = self.marks.last().map_or(0, |mark| mark.seq.0);
        let made = queue.next_seq.0.saturating_sub(last).saturating_sub(1);
        let kept = queue.generations.iter().filter(|generation| generation.seq.0 > last).count();
        Lacking { generations, gone: made.saturating_sub(u64::try_from(kept).unwrap_or(u64::MAX)) }
    }

    /// Remembers what is here now.
    pub fn note_here(&mut self, queue: &Queue) {
        let had = marks(&self.had, Some(queue));
        self.had = had.get(had.len().saturating_sub(HAD_MAX)..).unwrap_or_default().to_vec();
    }

    /// Returns which generations were here and are no more.
    #[must_use]
    pub fn let_go(&self, queue: Option<&Queue>) -> Vec<Mark> {
        let is_here = |mark: &&Mark| queue.is_some_and(|queue| queue.get(mark.seq).is_some());
        self.had.iter().filter(|mark| !is_here(mark)).copied().collect()
    }

    /// Returns whether another try is due.
    #[must_use]
    pub fn is_due(&self, now: Time) -> bool {
        // A try in the future was made by a clock that was ahead.
        let Some(tried_at) = self.tried_at.filter(|at| self.failures > 0 && *at <= now) else { return true };
        now.nanos_since(tried_at) >= u64::from(pause_s(self.failures)).saturating_mul(1_000_000_000)
    }
}
