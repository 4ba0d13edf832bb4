//! What a container's owner asked for: its command, limits, mounts and network.
//!
//! These are settings of the container, not of one run; they override what the image says (row A7).

use crate::image::ImageConfig;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Settings of a container. Empty or absent fields mean "as the image says", else "as the default".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// Arguments in place of the image's `Cmd`.
    pub command: Vec<String>,
    /// Program and arguments in place of the image's `Entrypoint`.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value` pairs on top of the image's.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// Working directory inside the container, absolute.
    pub workdir: Option<String>,
    /// Host directories and files shown inside; never part of a generation (A-Q10).
    pub volumes: Vec<Volume>,
    /// Host name inside; the container's name where absent.
    pub hostname: Option<String>,
    /// Limits on memory, processors and processes.
    pub limits: Limits,
    /// The network the container sees.
    pub network: Network,
    /// Capabilities added to the default set, `CAP_…` or without the prefix; `ALL` for every one.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set; `ALL` for every one.
    pub cap_drop: Vec<String>,
    /// Whether a small init runs as process 1, reaps orphans and forwards signals.
    pub init: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whether standard input is kept open for the process.
    pub interactive: bool,
    /// Command that tells whether the container is healthy.
    pub health: Option<HealthCheck>,
    /// Path or name of the OCI runtime; `runc` where absent.
    pub runtime: Option<String>,
    /// Signal that asks the process to end, such as `SIGTERM`.
    pub stop_signal: Option<String>,
    /// Seconds between that signal and `SIGKILL`; 10 where absent.
    pub stop_timeout_s: Option<u32>,
}

/// Seconds a container has to end after its stop signal before it is killed (requirements 2.9).
pub const STOP_TIMEOUT_S_DEFAULT: u32 = 10;

/// One host path shown inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path inside the container.
    pub target: String,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// Bounds on what a container may use; absent means unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Processors, in thousandths of one.
    pub cpus_milli: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// The network a container sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's own.
    #[default]
    Host,
    /// Only a loopback interface.
    None,
    /// A bridge of the host, with an address of its own.
    Bridge,
}

impl ContainerSpec {
    /// Returns the check of a container on this image: its own, else the image's; none where its own has no command.
    #[must_use]
    pub fn health_on<'a>(&'a self, image: &'a ImageConfig) -> Option<&'a HealthCheck> {
        let check = self.health.as_ref().or(image.health.as_ref());
        check.filter(|check| !check.command.is_empty())
    }
}

/// A command run inside the container from time to time to tell whether it is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Arguments; a single element is given to `/bin/sh -c`. Without any nothing is checked, whatever the image says.
    pub command: Vec<String>,
    /// Seconds between two checks.
    pub interval_s: u32,
    /// Seconds one check may take.
    pub timeout_s: u32,
    /// Failures in a row after which the container counts as unhealthy.
    pub retries: u32,
    /// Seconds after the start in which failures do not count.
    pub start_period_s: u32,
}
