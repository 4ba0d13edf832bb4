//! The processes of a session: the container's init, its end by request, and the check of its health.

use super::health::HealthTracker;
use super::{HealthPlan, SessionEvent};
use crate::clock;
use crate::oci::{ExecPlan, OciRuntime, RunningExec};
use perennial_core::process::Signal;
use rustix::process::{Pid, kill_process};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// The container's init and how it is being ended.
#[derive(Debug)]
pub(super) struct Init {
    pub(super) id: String,
    pub(super) pid: Pid,
    pub(super) runtime: OciRuntime,
    pub(super) started_at: Duration,
    kill_at: Option<Duration>,
    pub(super) is_stopping: bool,
    /// Whether it has been reaped: its id may be another's from then on.
    pub(super) has_ended: bool,
}

impl Init {
    pub(super) fn new(id: &str, pid: Pid, runtime: &OciRuntime) -> Self {
        let started_at = clock::monotonic();
        let (id, runtime) = (id.to_owned(), runtime.clone());
        Self { id, pid, runtime, started_at, kill_at: None, is_stopping: false, has_ended: false }
    }

    /// Sends a signal, unless it has ended. Before that init is a child of this process that has not been reaped, so its
    /// id cannot be another's.
    pub(super) fn signal(&self, signal: Signal) -> Result<(), String> {
        if self.has_ended {
            return Ok(());
        }
        match rustix::process::Signal::from_named_raw(i32::from(signal.number())) {
            Some(named) => kill_process(self.pid, named).map_err(|errno| errno.to_string()),
            None => self.runtime.kill(&self.id, signal).map_err(|error| error.to_string()),
        }
    }

    /// Asks it to end; a second request can only bring the end nearer.
    pub(super) fn stop(&mut self, signal: Signal, timeout: Duration) -> Result<(), String> {
        if self.has_ended {
            return Ok(());
        }
        let kill_at = clock::monotonic().saturating_add(timeout);
        self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
        self.is_stopping = true;
        self.signal(signal)
    }

    /// Kills it if its time is over.
    pub(super) fn kill_if_due(&mut self, now: Duration) -> Option<SessionEvent> {
        self.kill_at.filter(|at| *at <= now)?;
        self.kill_at = None;
        // It may just have ended; then the next look finds that.
        self.signal(Signal::KILL).ok();
        Some(SessionEvent::Killed)
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.kill_at
    }
}

/// The checks of a container's health.
#[derive(Debug)]
pub(super) struct Checks {
    plan: HealthPlan,
    pub(super) tracker: HealthTracker,
    next_at: Duration,
    running: Option<Check>,
    pid_file: PathBuf,
}

#[derive(Debug)]
struct Check {
    exec: RunningExec,
    kill_at: Duration,
}

impl Checks {
    /// Plans the first check one interval from now.
    pub(super) fn new(plan: HealthPlan, directory: &Path, now: Duration) -> Self {
        let tracker = HealthTracker::new(&plan.check);
        let next_at = now.saturating_add(interval(&plan));
        Self { plan, tracker, next_at, running: None, pid_file: directory.join("health.pid") }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.running.as_ref().map_or(self.next_at, |check| check.kill_at)
    }

    /// Tells whether a check runs, whose process is a child of this one.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Starts, ends or takes the result of a check, whatever is due.
    pub(super) fn step(&mut self, init: &Init, now: Duration) -> Option<SessionEvent> {
        let age = now.saturating_sub(init.started_at);
        let Some(check) = &mut self.running else {
            if now < self.next_at {
                return None;
            }
            return match self.begin(init, now) {
                Ok(()) => None,
                Err(()) => self.conclude(false, age, now),
            };
        };
        match check.exec.child.try_wait() {
            Ok(Some(status)) => self.conclude(status.success(), age, now),
            Ok(None) if now < check.kill_at => None,
            Ok(None) | Err(_) => {
                self.abort();
                self.conclude(false, age, now)
            }
        }
    }

    fn begin(&mut self, init: &Init, now: Duration) -> Result<(), ()> {
        let plan = ExecPlan { id: &init.id, process: &self.plan.process, pid_file: Some(&self.pid_file) };
        let output = Some((Stdio::null(), Stdio::null()));
        let exec = init.runtime.spawn_exec(&plan, Stdio::null(), output).map_err(drop)?;
        let timeout = Duration::from_secs(u64::from(self.plan.check.timeout_s.max(1)));
        self.running = Some(Check { exec, kill_at: now.saturating_add(timeout) });
        Ok(())
    }

    fn conclude(&mut self, succeeded: bool, age: Duration, now: Duration) -> Option<SessionEvent> {
        self.running = None;
        self.next_at = now.saturating_add(interval(&self.plan));
        self.tracker.observe(succeeded, age)
    }

    /// Kills a running check: first the process inside the container, which would outlive the runtime's.
    pub(super) fn abort(&mut self) {
        let Some(mut check) = self.running.take() else { return };
        let inside = std::fs::read_to_string(&self.pid_file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = inside.and_then(Pid::from_raw) {
            // It may just have ended by itself.
            kill_process(pid, rustix::process::Signal::KILL).ok();
        }
        check.exec.child.kill().ok();
        check.exec.child.wait().ok();
    }
}

fn interval(plan: &HealthPlan) -> Duration {
    Duration::from_secs(u64::from(plan.check.interval_s.max(1)))
}
