//! The generation queue of a container (rows A5, A13 to A16, A19, A22, A31 to A33, A37, A38).
//!
//! A [`Queue`] is a bounded list in order of sequence number: head oldest, tail newest. `current` is the generation
//! the next run starts from. Appending and evicting is one change of one record ([`Queue::append`]), so that no
//! instant exists at which a generation has left and the next has not come.
//!
//! - [`choose`]: which generation a selector means.
//! - [`rollback`]: what moving `current` does to the newer ones, and how to undo it.
//! - [`health`]: what a run shows about its state.
//! - `retention`: what eviction takes, and what it passes over.

pub mod choose;
pub mod health;
mod retention;
pub mod rollback;

use crate::container::{Container, Exit, Phase, Run, StartMode};
use crate::id::{Digest, LayerId, RunId, Seq};
use crate::time::Time;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use rollback::Undo;
use serde::{Deserialize, Serialize};

/// How many generations a container keeps where its owner says nothing (requirements 2.9).
pub const KEEP_DEFAULT: u32 = 5;
/// Most generations a container may keep: bounds its record to about half a megabyte.
pub const KEEP_MAX: u32 = 1000;
/// Seconds a run must stay up to count as good (requirements 2.9).
pub const GOOD_AFTER_S_DEFAULT: u32 = 60;
/// Salvaged generations kept outside the capacity (requirements 2.9, row A28).
pub const SALVAGE_SLOTS: usize = 1;

/// When a container's layers are sealed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealPolicy {
    /// After each exit, in the background, where the host can.
    #[default]
    Auto,
    /// Only when asked for.
    Never,
}

impl SealPolicy {
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// Retention and health policy of a container (A33).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Capacity of the queue, from 1 to [`KEEP_MAX`].
    pub keep: u32,
    /// Second bound: bytes on disk of the distinct layers of its generations.
    pub keep_bytes: Option<u64>,
    /// Seconds a run must stay up for its origin to count as good.
    pub good_after_s: u32,
    /// When its layers are sealed.
    #[serde(skip_serializing_if = "SealPolicy::is_auto")]
    pub seal: SealPolicy,
    /// How many of the newest generations stay ready to be mounted when older ones are packed by themselves; `None` to
    /// pack nothing unasked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hot: Option<u32>,
    /// The remote it is sent to after each exit; `None` to send nothing unasked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        let (keep, good_after_s) = (KEEP_DEFAULT, GOOD_AFTER_S_DEFAULT);
        Self { keep, keep_bytes: None, good_after_s, seal: SealPolicy::Auto, hot: None, push: None }
    }
}

/// A policy that no queue can follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Capacity outside its bounds (A33).
    #[error("a container cannot keep {keep} generations; from 1 to {KEEP_MAX} are possible")]
    Keep {
        /// The capacity asked for.
        keep: u32,
    },
    /// A byte bound that nothing fits.
    #[error("a container cannot keep its generations in 0 bytes: the last good one always stays")]
    KeepBytes,
    /// A container none of whose generations would be ready to start.
    #[error("a container cannot pack all of its generations after each exit: at least 1 stays hot")]
    Hot,
}

impl Policy {
    /// Checks that a queue can follow the policy; it takes effect at the next exit (A33).
    ///
    /// # Errors
    /// [`PolicyError`] where a bound is violated.
    pub fn check(&self) -> Result<(), PolicyError> {
        if self.keep == 0 || self.keep > KEEP_MAX {
            return Err(PolicyError::Keep { keep: self.keep });
        }
        if self.keep_bytes == Some(0) {
            return Err(PolicyError::KeepBytes);
        }
        if self.hot == Some(0) {
            return Err(PolicyError::Hot);
        }
        Ok(())
    }
}

/// Why a generation was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The run ended and its end was observed.
    Exit,
    /// The run was found without its supervisor; what was on disk is kept (A28).
    Salvage,
    /// First generation of a container made from another one's generation.
    Fork,
    /// The same layers on another image (A30).
    Rebase,
    /// Read from an image that was written elsewhere.
    Import,
    /// Taken by hand.
    Manual,
    /// Taken by a time rule.
    Scheduled,
}

/// What is known about a generation's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// A run from it stayed up, its health check passed, or its owner said so.
    Good,
    /// Nothing speaks for or against it.
    Unknown,
    /// Its run failed, or a start from it failed.
    Suspect,
    /// Its data is missing or does not match.
    Damaged,
}

/// One element of the queue: the state of the container at one exit (A14).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and its own field on disk")]
pub struct Generation {
    /// Identity and order.
    pub seq: Seq,
    /// When the run ended.
    pub exited_at: Time,
    /// Why it was made.
    pub kind: Kind,
    /// What is known about its state.
    pub health: Health,
    /// Exit code of the run, where one was seen.
    pub exit_code: Option<i32>,
    /// Generation it was made from.
    pub parent: Option<Seq>,
    /// Image its layers lie on (A30).
    pub image: Digest,
    /// Its layers, newest first; the image's are not among them.
    pub layers: Vec<LayerId>,
    /// Mount options of its run (A6).
    pub mount_options: Vec<String>,
    /// Run that made it.
    pub run: Option<RunId>,
    /// Bytes on disk of the layer its run added; 0 where it shares its parent's (A37).
    pub bytes: u64,
    /// Entries of that layer.
    pub entries: u64,
    /// Whether eviction passes it over.
    pub pinned: bool,
    /// Whether it is never chosen automatically (A32).
    pub quarantined: bool,
    /// Whether its run ended as asked or with code 0.
    pub clean: bool,
    /// Whether some of what it shows may be in packs only, so that its layers are thawed before they are used.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub cold: bool,
    /// When a drill last showed that its state works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<Time>,
    /// Remark for people.
    pub note: Option<String>,
    /// Who asked for the run.
    pub by: String,
    /// Fields of a newer release, kept as they are.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// The queue of one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Queue {
    /// Number of the next generation.
    pub next_seq: Seq,
    /// Generation the next run starts from.
    pub current: Option<Seq>,
    /// Oldest first.
    pub generations: Vec<Generation>,
    /// How to take back the last rollback.
    pub undo: Option<Undo>,
    /// Generation that a rollback waits for while the present run is stopped: eviction passes it over (A19), and the
    /// exit of that run is kept as a salvage (A-Q7).
    #[serde(default)]
    pub held: Option<Seq>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { next_seq: Seq(1), current: None, generations: Vec::new(), undo: None, held: None }
    }
}

/// What the freeze of an upper found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frozen {
    /// The run changed nothing: the generation shares its origin's layers (A37, A-Q18).
    Unchanged,
    /// The layer that the run added.
    Layer {
        /// Its bytes on disk.
        bytes: u64,
        /// Its entries.
        entries: u64,
    },
}

/// Result of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The new tail.
    pub seq: Seq,
    /// Generations that left, oldest first.
    pub evicted: Vec<Seq>,
    /// Whether the queue is over its capacity because everything in it is protected.
    pub is_blocked: bool,
}

impl Queue {
    /// Returns a generation by its number.
    #[must_use]
    pub fn get(&self, seq: Seq) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.seq == seq)
    }

    /// Returns a generation by its number, to be changed.
    pub fn get_mut(&mut self, seq: Seq) -> Option<&mut Generation> {
        self.generations.iter_mut().find(|generation| generation.seq == seq)
    }

    /// Returns the generation the next run starts from.
    #[must_use]
    pub fn current(&self) -> Option<&Generation> {
        self.current.and_then(|seq| self.get(seq))
    }

    /// Returns the layers that any generation names.
    #[must_use]
    pub fn layers(&self) -> BTreeSet<LayerId> {
        self.generations.iter().flat_map(|generation| generation.layers.iter().cloned()).collect()
    }

    /// Appends a generation as the new tail, makes it current and evicts what the policy says, in one change (A15).
    pub fn append(&mut self, mut generation: Generation, policy: &Policy) -> Appended {
        let seq = self.next_seq;
        generation.seq = seq;
        self.next_seq = seq.next();
        self.current = Some(seq);
        self.generations.push(generation);
        let (evicted, is_blocked) = self.evict(policy.keep);
        Appended { seq, evicted, is_blocked }
    }

    /// Takes a generation out; the caller has made sure that it may go.
    pub fn remove(&mut self, seq: Seq) {
        self.generations.retain(|generation| generation.seq != seq);
    }
}

/// Why an exit cannot be committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The container is not exiting, or another run is.
    #[error("container {name} has no exit of run {run} to commit")]
    NotExiting {
        /// The container.
        name: String,
        /// The run.
        run: RunId,
    },
    /// The record says that a run ends but has no queue: a new one would hide generations that exist (A5).
    #[error("container {name} has lost its queue; run `perennial doctor`")]
    NoQueue {
        /// The container.
        name: String,
    },
}

/// Commits the exit of a run: one change that appends the generation, evicts by count, and ends the run (A27).
///
/// # Errors
/// [`CommitError::NotExiting`] where the record is not `Exiting` with this run, for instance because it has been
/// committed already; [`CommitError::NoQueue`] where the record contradicts itself.
pub fn commit_exit(container: &mut Container, run: &RunId, frozen: Frozen, now: Time) -> Result<Appended, CommitError> {
    let not_exiting = || CommitError::NotExiting { name: container.name.as_str().into(), run: run.clone() };
    let (run, exit) = match &container.phase {
        Phase::Exiting { run: present, exit } if present.id == *run => (present.clone(), exit.clone()),
        Phase::Created | Phase::Starting { .. } | Phase::Running { .. } | Phase::Exiting { .. } | Phase::Dormant => {
            return Err(not_exiting());
        }
    };
    let policy = container.policy.clone();
    let name = container.name.as_str().into();
    let queue = container.queue.as_mut().ok_or(CommitError::NoQueue { name })?;
    let exit = if queue.held.is_some() { health::set_aside(exit) } else { exit };
    if exit.proves_origin
        && let Some(origin) = run.origin.and_then(|seq| queue.get_mut(seq))
        && origin.health != Health::Damaged
    {
        origin.health = Health::Good;
    }
    let generation = generation_of(&run, &exit, frozen);
    let appended = queue.append(generation, &policy);
    container.rest();
    container.clear(crate::container::ConditionKind::ExitIncomplete);
    container.clear(crate::container::ConditionKind::Unhealthy);
    container.note_retention(appended.is_blocked, now);
    Ok(appended)
}

fn generation_of(run: &Run, exit: &Exit, frozen: Frozen) -> Generation {
    let (layers, bytes, entries) = match frozen {
        Frozen::Unchanged => (run.layers.clone(), 0, 0),
        Frozen::Layer { bytes, entries } => {
            let below: &[LayerId] = match run.mode {
                StartMode::Mount => &run.layers,
                StartMode::Unpack => &[],
            };
            let mut layers = Vec::with_capacity(below.len().saturating_add(1));
            layers.push(run.layer.clone());
            layers.extend_from_slice(below);
            (layers, bytes, entries)
        }
    };
    Generation {
        seq: Seq(0),
        exited_at: exit.at,
        kind: exit.kind,
        health: exit.health,
        exit_code: exit.code,
        parent: run.origin,
        image: run.image.clone(),
        layers,
        mount_options: run.mount_options.clone(),
        run: Some(run.id.clone()),
        bytes,
        entries,
        pinned: false,
        quarantined: false,
        cold: false,
        verified_at: None,
        clean: exit.clean,
        note: exit.note.clone(),
        by: run.by.clone(),
        extra: BTreeMap::new(),
    }
}
