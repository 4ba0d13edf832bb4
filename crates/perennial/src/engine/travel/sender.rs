//! What is sent by itself: after each exit a process of its own sends it, and tries again until it is there.
//!
//! ```text
//! exit ─settled─▶ sender ─▶ sent
//!                   └─ unreachable: 5 s, 10 s, … 5 min, for an hour ─▶ ends; the next exit, `ps`, `gc` or `doctor`
//!                                                                      starts another when the next try is due
//! ```
//!
//! Nobody waits for it: it holds no container's lock, and no exit or start. There is one for a container at a time.

use super::remotes::Unsent;
use super::{Order, stored_login};
use crate::cli::table;
use crate::clock::{self, Stopwatch};
use crate::engine::Engine;
use crate::failure::{Failure, Result};
use perennial_core::check::{Finding, Severity};
use perennial_core::container::{Condition, ConditionKind, Container};
use perennial_core::id::ContainerId;
use perennial_core::travel::cipher::Dropping;
use perennial_core::travel::remote::pause_s;
use perennial_registry::progress::Silent;
use perennial_registry::repository::RepositoryError;
use perennial_runtime::background::Background;
use perennial_store::root::Wait;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long one sender goes on trying.
const TRYING: Duration = Duration::from_secs(3600);

impl Engine {
    /// Starts a sender for each container of which something is not where it is to be, where the next try is due.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn wake_senders(&self) -> Result<()> {
        self.containers()?.iter().try_for_each(|doc| self.wake_sender(&doc.value))
    }

    /// The same for one container.
    ///
    /// # Errors
    /// Where the records cannot be read, or no process can be started.
    pub fn wake_sender(&self, container: &Container) -> Result<()> {
        let Some(unsent) = self.unsent(container)? else { return Ok(()) };
        if !unsent.tracking.is_due(self.now()) || self.root.lock_travel(&sender(&container.id), Wait::Never)?.is_none()
        {
            return Ok(());
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0("perennial").arg("--root").arg(self.root.path()).args(["__send", container.name.as_str()]);
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map_err(|error| Failure::from(error).while_doing("cannot start a process that sends"))?;
        Ok(())
    }

    /// The life of a sender.
    ///
    /// # Errors
    /// Where the records cannot be read, or it cannot be sent and waiting does not help.
    pub fn send_by_policy(&self, id: &ContainerId) -> Result<()> {
        // It must not end with the terminal or session of the one who started it.
        rustix::process::setsid().ok();
        let _background = Background::enter();
        let Some(_lock) = self.root.lock_travel(&sender(id), Wait::Never)? else { return Ok(()) };
        let watch = Stopwatch::start();
        while watch.elapsed() < TRYING {
            let container = self.container(id)?.value;
            let Some(unsent) = self.unsent(&container)? else { return Ok(()) };
            let order = Order {
                name: container.name.clone(),
                until: None,
                other_name: None,
                remote: Some(unsent.remote.clone()),
                credentials: stored_login(),
                tries_max: 1,
                is_whole: false,
                dropping: Dropping::Refused,
            };
            match self.push(&order, &Silent) {
                Ok(pushed) if pushed.is_nothing && self.unsent(&self.container(id)?.value)?.is_some() => return Ok(()),
                Ok(_) => {}
                Err(failure) if !is_passing(&failure) => return Err(failure),
                Err(_) => {
                    let failures = self.tracking(id, &unsent.remote)?.failures;
                    clock::wait(Duration::from_secs(u64::from(pause_s(failures))));
                }
            }
        }
        Ok(())
    }

    /// Returns the conditions of a container, with what is not yet where it is to be.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn conditions_of(&self, container: &Container) -> Result<Vec<Condition>> {
        let mut conditions = container.conditions.clone();
        if let Some(unsent) = self.unsent(container)?
            && let Some(oldest) = unsent.generations.first()
        {
            let message = in_words(&unsent);
            conditions.push(Condition { kind: ConditionKind::NotSent, since: oldest.exited_at, message });
        }
        Ok(conditions)
    }

    /// Returns what the doctor says of what is not yet where it is to be.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn check_unsent(&self, containers: &[Container]) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for container in containers {
            let Some(unsent) = self.unsent(container)? else { continue };
            let Unsent { remote, tracking, .. } = &unsent;
            findings.push(Finding {
                severity: if tracking.failures > 0 { Severity::Warning } else { Severity::Note },
                object: format!("container {}", container.name),
                message: in_words(&unsent),
                hint: format!(
                    "it goes by itself when that works again; `perennial push {} {remote}` sends it now and says what \
                     stands in the way",
                    container.name
                ),
            });
        }
        Ok(findings)
    }
}

fn sender(id: &ContainerId) -> String {
    format!("sender-{id}")
}

fn in_words(unsent: &Unsent) -> String {
    let (count, bytes) = (unsent.generations.len(), table::bytes(unsent.bytes()));
    let what = if count == 1 { "1 generation".to_owned() } else { format!("{count} generations") };
    let why = match (&unsent.tracking.error, unsent.tracking.failures) {
        (Some(error), 1) => format!("; a try failed: {error}"),
        (Some(error), failures) if failures > 1 => format!("; {failures} tries failed, the last with: {error}"),
        (Some(_) | None, _) => String::new(),
    };
    let gone = match unsent.gone {
        0 => String::new(),
        1 => "; 1 more was let go and was never there".to_owned(),
        gone => format!("; {gone} more were let go and were never there"),
    };
    format!("{what} ({bytes}) not yet at {}{gone}{why}", unsent.remote)
}

/// Whether it may work later without anybody doing anything.
fn is_passing(failure: &Failure) -> bool {
    failure.error.chain().any(|cause| cause.downcast_ref().is_some_and(RepositoryError::is_passing))
}
