//! One container: its record and its state machine.
//!
//! ```text
//! Created ──start──▶ Starting ──started──▶ Running ──ended──▶ Exiting ──committed──▶ Dormant ──start──▶ …
//!    ▲                  │                     │                  │
//!    └──start failed────┴──────lost───────────┴──▶ Exiting (kind salvage)
//! ```
//!
//! Every transition is recorded before it is acted on; [`Container::step`] consumes the record and returns the next
//! one. A run is described by [`Run`]; the phase and the run together say how far a start or an exit got, so that
//! recovery (rows A27, A28) needs nothing but the record and what is on disk.

mod given;

pub use given::Given;

use crate::generations::{Health, Kind, Policy, Queue};
use crate::id::{ContainerId, ContainerName, Digest, LayerId, RunId, Seq};
use crate::spec::ContainerSpec;
use crate::time::Time;
use crate::travel::settings::Withheld;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The record of one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Identity.
    pub id: ContainerId,
    /// Name.
    pub name: ContainerName,
    /// Digest of the image its next generation builds on (A30).
    pub image: Digest,
    /// Name of the image as the owner gave it, for people.
    pub image_name: String,
    /// Settings.
    pub spec: ContainerSpec,
    /// Retention and health policy.
    pub policy: Policy,
    /// Where it is in its life.
    pub phase: Phase,
    /// Rises with every run; a writer with an older epoch is refused (A26, I1).
    pub epoch: u64,
    /// The generation queue; absent until the first run creates it (A5).
    pub queue: Option<Queue>,
    /// States its owner should know of.
    pub conditions: Vec<Condition>,
    /// When it was created.
    pub created_at: Time,
    /// Number of the next entry of its event log.
    pub next_event: u64,
    /// Settings that came from a registry and are not taken here.
    #[serde(default, skip_serializing_if = "Withheld::is_empty")]
    pub withheld: Withheld,
    /// Fields of a newer release, kept as they are.
    #[serde(flatten)]
    pub extra: BTreeMap<String, serde_json::Value>,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Phase {
    /// Never ran.
    Created,
    /// A run is being set up; its process may or may not have begun.
    Starting {
        /// The run.
        run: Run,
    },
    /// The process was seen to run.
    Running {
        /// The run.
        run: Run,
        /// Process id of the container's first process on the host.
        pid: i32,
        /// When it began.
        started_at: Time,
    },
    /// The process has ended; its layer is being committed.
    Exiting {
        /// The run.
        run: Run,
        /// How it ended.
        exit: Exit,
    },
    /// No run; only generations.
    Dormant,
}

impl Phase {
    /// Returns the run, where there is one.
    #[must_use]
    pub fn run(&self) -> Option<&Run> {
        match self {
            Self::Starting { run } | Self::Running { run, .. } | Self::Exiting { run, .. } => Some(run),
            Self::Created | Self::Dormant => None,
        }
    }

    /// Returns the phase's name as commands show it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Starting { .. } => "Starting",
            Self::Running { .. } => "Running",
            Self::Exiting { .. } => "Exiting",
            Self::Dormant => "Dormant",
        }
    }
}

/// How a start gives the run the state of its generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartMode {
    /// The generation's layers are read-only lower layers under an empty upper.
    #[default]
    Mount,
    /// The generation is copied into the upper (the literal method of A9 to A11).
    Unpack,
}

/// One run of a container, from the request to start to the committed exit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Identity; names the directory under `runs/`.
    pub id: RunId,
    /// The container's epoch during this run.
    pub epoch: u64,
    /// Generation it started from; absent on the first run (A8).
    pub origin: Option<Seq>,
    /// Image it runs on.
    pub image: Digest,
    /// The origin's own layers, newest first.
    pub layers: Vec<LayerId>,
    /// The image's layers, newest first.
    pub image_layers: Vec<LayerId>,
    /// How the state was given to it.
    pub mode: StartMode,
    /// Options the union was mounted with, recorded with the generation (A6).
    pub mount_options: Vec<String>,
    /// Identity its frozen layer will have: fixed at the start, so that a repeated exit is the same exit.
    pub layer: LayerId,
    /// Whether its command was given for this run only.
    pub command_overridden: bool,
    /// What it was started with; absent in a record of an older release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<Given>,
    /// When it was asked for.
    pub requested_at: Time,
    /// Who asked.
    pub by: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When.
    pub at: Time,
    /// Exit code, 128 + signal where a signal ended it; absent where nobody was there to see it.
    pub code: Option<i32>,
    /// Why the generation is made: `exit`, or `salvage` where the end was not observed.
    pub kind: Kind,
    /// What the run shows about the health of its state.
    pub health: Health,
    /// Whether it ended as asked or with code 0.
    #[serde(default)]
    pub clean: bool,
    /// Whether the run also shows that its origin is good (A-Q12).
    pub proves_origin: bool,
    /// Remark for people.
    pub note: Option<String>,
}

/// A state its owner should know of; shown by `inspect`, `ps` and `doctor` (I9).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Which.
    pub kind: ConditionKind,
    /// Since when.
    pub since: Time,
    /// What happened and what to do, for people.
    pub message: String,
}

/// The conditions there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConditionKind {
    /// An exit could not be committed; the run's upper is kept and the exit is tried again (A-Q3, A34).
    ExitIncomplete,
    /// Everything in the queue is protected, so it outgrew its capacity (A31).
    RetentionBlocked,
    /// The last start failed.
    StartFailed,
    /// A generation's layer is missing or not readable (A29).
    Damaged,
    /// The process is up but its health check fails.
    Unhealthy,
    /// Something is not yet where it is sent by itself. It is found out when it is shown, and never recorded.
    NotSent,
}

/// Where the cause of a failed start lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFault {
    /// In the container: its command could not be executed in the state it started from.
    Container,
    /// In the host: no space, no runtime, a mount that failed. It says nothing about the generation.
    Host,
}

/// What happened to a container.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A start was admitted; the run is fully described.
    StartRequested(Run),
    /// The process runs.
    Started {
        /// The run it belongs to.
        run: RunId,
        /// Process id on the host.
        pid: i32,
        /// When.
        at: Time,
    },
    /// The process could not be started; nothing of the container ran.
    StartFailed {
        /// The run it belongs to.
        run: RunId,
        /// Where the cause lies.
        fault: StartFault,
        /// Why, for people.
        reason: String,
        /// When.
        at: Time,
    },
    /// The process ended, or the run was found without its supervisor. An exit that has begun can still become a salvage.
    Ended {
        /// The run it belongs to.
        run: RunId,
        /// How.
        exit: Exit,
    },
    /// A step of the exit failed; it will be tried again.
    ExitFailed {
        /// The run it belongs to.
        run: RunId,
        /// Why, for people.
        reason: String,
        /// When.
        at: Time,
    },
    /// The run changed nothing and its end was not observed: nothing is to be kept.
    Discarded {
        /// The run it belongs to.
        run: RunId,
    },
}

/// An event that cannot happen in the container's phase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("container {name} is {phase}: {event} is not possible now")]
pub struct IllegalEvent {
    name: ContainerName,
    phase: &'static str,
    event: &'static str,
}

impl Container {
    /// Makes the record of a container that never ran.
    #[must_use]
    pub fn new(id: ContainerId, name: ContainerName, image: (Digest, String), created_at: Time) -> Self {
        Self {
            id,
            name,
            image: image.0,
            image_name: image.1,
            spec: ContainerSpec::default(),
            policy: Policy::default(),
            phase: Phase::Created,
            epoch: 0,
            queue: None,
            conditions: Vec::new(),
            created_at,
            next_event: 1,
            withheld: Withheld::default(),
            extra: BTreeMap::new(),
        }
    }

    /// Moves the container by one event. An event of another run than the present one is refused, which is what
    /// fences a supervisor that lost its container (I1).
    ///
    /// # Errors
    /// [`IllegalEvent`] where the event does not fit the phase or names another run.
    pub fn step(mut self, event: Event) -> Result<Self, IllegalEvent> {
        let illegal = |event: &'static str| IllegalEvent { name: self.name.clone(), phase: self.phase.name(), event };
        match event {
            Event::StartRequested(run) => match self.phase {
                Phase::Created | Phase::Dormant if !self.has_state_of(&run) => {
                    return Err(illegal("a start from anything but one of its generations"));
                }
                Phase::Created | Phase::Dormant if run.epoch > self.epoch => self.begin(run),
                Phase::Created
                | Phase::Dormant
                | Phase::Starting { .. }
                | Phase::Running { .. }
                | Phase::Exiting { .. } => return Err(illegal("a start")),
            },
            Event::Started { run: id, pid, at } => match self.phase {
                Phase::Starting { run } if run.id == id => {
                    self.phase = Phase::Running { run, pid, started_at: at };
                }
                Phase::Created
                | Phase::Dormant
                | Phase::Starting { .. }
                | Phase::Running { .. }
                | Phase::Exiting { .. } => return Err(illegal("a process start")),
            },
            Event::StartFailed { run: id, fault, reason, at } => match &self.phase {
                Phase::Starting { run } if run.id == id => {
                    self.blame_origin_of_failed_start(&run.clone(), fault);
                    self.rest();
                    self.raise(ConditionKind::StartFailed, at, reason);
                }
                Phase::Created
                | Phase::Dormant
                | Phase::Starting { .. }
                | Phase::Running { .. }
                | Phase::Exiting { .. } => return Err(illegal("a failed start")),
            },
            Event::Ended { run: id, exit } => match self.ending(&id, exit.kind) {
                Some(run) => {
                    self.phase = Phase::Exiting { run, exit };
                    self.clear(ConditionKind::Unhealthy);
                }
                None => return Err(illegal("an end")),
            },
            Event::ExitFailed { run: id, reason, at } => match &self.phase {
                Phase::Exiting { run, .. } if run.id == id => self.raise(ConditionKind::ExitIncomplete, at, reason),
                Phase::Created
                | Phase::Dormant
                | Phase::Starting { .. }
                | Phase::Running { .. }
                | Phase::Exiting { .. } => return Err(illegal("a failed exit")),
            },
            Event::Discarded { run: id } => match &self.phase {
                Phase::Starting { run } | Phase::Running { run, .. } | Phase::Exiting { run, .. } if run.id == id => {
                    self.rest();
                    self.clear(ConditionKind::ExitIncomplete);
                    self.clear(ConditionKind::Unhealthy);
                }
                Phase::Created
                | Phase::Dormant
                | Phase::Starting { .. }
                | Phase::Running { .. }
                | Phase::Exiting { .. } => return Err(illegal("the end of a run")),
            },
        }
        Ok(self)
    }

    /// Returns the run of that id where it can end now. One that is exiting ends once more only where the machine went down
    /// before its exit was durable: what is left is saved, and is no exit.
    fn ending(&self, id: &RunId, kind: Kind) -> Option<Run> {
        let run = match &self.phase {
            Phase::Starting { run } | Phase::Running { run, .. } => Some(run),
            Phase::Exiting { run, .. } => (kind == Kind::Salvage).then_some(run),
            Phase::Created | Phase::Dormant => None,
        };
        run.filter(|run| run.id == *id).cloned()
    }

    /// Raises a condition, or renews its message while keeping since when it holds.
    pub fn raise(&mut self, kind: ConditionKind, now: Time, message: String) {
        match self.conditions.iter_mut().find(|condition| condition.kind == kind) {
            Some(condition) => condition.message = message,
            None => self.conditions.push(Condition { kind, since: now, message }),
        }
    }

    /// Clears a condition.
    pub fn clear(&mut self, kind: ConditionKind) {
        self.conditions.retain(|condition| condition.kind != kind);
    }

    /// Returns whether a condition holds.
    #[must_use]
    pub fn has(&self, kind: ConditionKind) -> bool {
        self.conditions.iter().any(|condition| condition.kind == kind)
    }

    /// Ends the run: back to `Created` where no generation was ever made, else `Dormant`.
    pub(crate) fn rest(&mut self) {
        let has_run = self.queue.as_ref().is_some_and(|queue| queue.next_seq > Seq(1));
        self.phase = if has_run { Phase::Dormant } else { Phase::Created };
    }

    fn begin(&mut self, run: Run) {
        self.epoch = run.epoch;
        self.queue.get_or_insert_with(Queue::default).held = None;
        self.clear(ConditionKind::StartFailed);
        self.phase = Phase::Starting { run };
    }

    /// Whether a run starts from what the queue holds: from a generation with its very layers and image (A30), or
    /// from nothing where the queue is known to be empty (A8). A queue that has gone missing is never replaced by an
    /// empty one (A5).
    fn has_state_of(&self, run: &Run) -> bool {
        let Some(queue) = &self.queue else {
            return matches!(self.phase, Phase::Created) && self.is_first(run);
        };
        match run.origin {
            None => queue.generations.is_empty() && self.is_first(run),
            Some(seq) => queue.get(seq).is_some_and(|g| g.layers == run.layers && g.image == run.image),
        }
    }

    fn is_first(&self, run: &Run) -> bool {
        run.origin.is_none() && run.layers.is_empty() && run.image == self.image
    }

    /// A start whose own command cannot be executed says something about the state it started from (A22); a host
    /// that cannot start it, or a command typed for this run, does not.
    fn blame_origin_of_failed_start(&mut self, run: &Run, fault: StartFault) {
        match fault {
            StartFault::Host => return,
            StartFault::Container if run.command_overridden => return,
            StartFault::Container => {}
        }
        let origin = run.origin.and_then(|seq| self.queue.as_mut().and_then(|queue| queue.get_mut(seq)));
        if let Some(generation) = origin
            && generation.health == Health::Unknown
        {
            generation.health = Health::Suspect;
        }
    }
}
