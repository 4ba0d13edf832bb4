//! The event loop around one run: parent of the container's init, owner of its terminal and log.
//!
//! ```text
//!            ┌───────────── supervisor (single-threaded) ─────────────┐
//!   init ──▶ │ stdout/stderr or terminal ──▶ log, attached clients    │ ◀── control socket ── attach, stop, signal
//!        ◀── │ stdin, signals            ◀── attached clients         │
//!            └────────────────────────────────────────────────────────┘
//! ```
//!
//! 1. [`Session::open`] listens: clients may connect from here on.
//! 2. [`Session::start`] runs the OCI runtime; init becomes a child of this process, which is its subreaper.
//! 3. [`Session::wait`] serves until init has ended and all it printed has been taken.
//! 4. The caller unmounts, commits, and then calls [`Session::finish`], which tells every client how it ended. So a
//!    client that hears of the exit can rely on the generation being there.
//!
//! Slow clients hold nothing up for long, a log that cannot be written is reported and does not stop the run, and
//! somebody else who holds the container's output open is not waited for.

mod client;
mod health;
mod input;
mod process;
pub mod protocol;
mod session;
pub(crate) mod socket;
mod streams;

pub use health::{Health, HealthTracker};
pub use session::Session;

use crate::logs::{LogConfig, LogError};
use perennial_core::process::{Process, Signal};
use perennial_core::spec::HealthCheck;
use rustix::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// What a session needs to know.
#[derive(Debug)]
pub struct SessionConfig {
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whether its standard input is kept open.
    pub interactive: bool,
    /// Where its output is kept.
    pub log: LogConfig,
    /// Where clients connect; its directory exists and is private.
    pub control_socket: PathBuf,
    /// A client that is attached from the first byte on: one end of a packet socket pair.
    pub first_client: Option<OwnedFd>,
    /// How its health is checked.
    pub health: Option<HealthPlan>,
    /// The signal that asks it to end.
    pub stop_signal: Signal,
    /// How long it may take after that before it is killed.
    pub stop_timeout: Duration,
}

/// A health check with the process it runs.
#[derive(Debug, Clone)]
pub struct HealthPlan {
    /// When and how often.
    pub check: HealthCheck,
    /// What runs inside the container; its exit code 0 means healthy.
    pub process: Process,
}

/// A container whose process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Process id of its init on the host.
    pub pid: i32,
}

/// Something the caller may want to record while a run goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionEvent {
    /// A check succeeded for the first time, or again after failures.
    Healthy,
    /// As many checks in a row failed as the settings allow.
    Unhealthy {
        /// How many.
        failures: u32,
    },
    /// Somebody asked it to end.
    StopRequested,
    /// It did not end in time and is killed.
    Killed,
    /// Output could not be logged; told once.
    LogFailed {
        /// Why.
        message: String,
    },
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed one of its processes for want of memory.
    pub oom: bool,
    /// Whether it was asked to end.
    pub stopped_by_request: bool,
}

/// Why a session could not go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A call to the kernel failed.
    #[error("supervisor: {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// [`Session::wait`] without a started container.
    #[error("the session has no started container to wait for")]
    NotStarted,
}

impl SessionError {
    fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
