//! One run, from the request to the settled exit: the life of a supervisor.
//!
//! The supervisor is this program, started by `run` and `start` and then on its own. It is the parent of the
//! container's first process, owns its streams, and carries the exit out by itself, whoever else lives or dies.

use super::Engine;
use super::exit::cgroup_of;
use super::start::{PreparedRun, StartRequest};
use super::thaw::Thawing;
use crate::clock::{self, Stopwatch};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{ConditionKind, Container, Event, Phase};
use perennial_core::generations::health::{RunFacts, judge};
use perennial_core::id::{ContainerId, RunId, Seq};
use perennial_core::process::{Process, resolve_health};
use perennial_core::spec::HealthCheck;
use perennial_core::time::Time;
use perennial_runtime::bundle::BundleError;
use perennial_runtime::logs::LogConfig;
use perennial_runtime::oci::StartFailure;
use perennial_runtime::supervise::{HealthPlan, Session, SessionConfig, SessionEvent};
use perennial_store::root::Lock;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Bytes of one log file, and how many older ones are kept.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
const LOG_FILES_MAX: u32 = 3;
/// First and longest time between two tries to save an exit.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);

/// What the supervisor tells the one who started it.
#[derive(Debug)]
pub enum Report<'a> {
    /// The process runs.
    Started {
        /// The run.
        run: &'a RunId,
        /// Process id of its first process.
        pid: i32,
    },
    /// What the generation shows is being taken out of packs.
    Thawing(Thawing),
    /// The generation can be started: whatever takes long is done.
    Admitted,
    /// Nothing runs.
    Failed(&'a Failure),
    /// The process has ended and its generation is committed, or could not be yet.
    Exited {
        /// Exit code.
        code: i32,
        /// The generation.
        seq: Option<Seq>,
        /// Why it is not committed yet.
        incomplete: Option<&'a Failure>,
    },
    /// A stage was reached after so long.
    Timing {
        /// Which.
        stage: &'static str,
        /// How long it took since the stage before.
        took: Duration,
    },
}

/// Where reports go.
pub type Reporter<'a> = &'a mut dyn FnMut(Report<'_>);

/// Supervises one run. `client` is the connection of the one who started it.
pub fn supervise(engine: &Engine, request: &StartRequest, client: Option<OwnedFd>, report: Reporter<'_>) {
    if let Err(failure) = try_supervise(engine, request, client, report) {
        report(Report::Failed(&failure));
        // Where the start was undone, its directory is in the trash now.
        engine.empty_trash();
    }
}

fn try_supervise(engine: &Engine, request: &StartRequest, client: Option<OwnedFd>, report: Reporter<'_>) -> Result<()> {
    let watch = Stopwatch::start();
    let admitted = engine.admit(request, &mut |thawing| report(Report::Thawing(thawing)));
    let (container_lock, mut prepared) = admitted?;
    report(Report::Admitted);
    report(Report::Timing { stage: "admitted", took: watch.elapsed() });
    let started = start(engine, &mut prepared, request, client, report);
    let mut session = match started {
        Ok(started) => started,
        Err(failure) => {
            let failure = not_started(failure);
            engine.undo_start(&mut prepared, &failure)?;
            return Err(failure);
        }
    };
    drop(container_lock);
    let up = Stopwatch::start();
    report(Report::Timing { stage: "started", took: watch.elapsed() });
    // One supervisor stands over each running container, for months: what the start needed is given back.
    let _code_bytes = perennial_runtime::memory::release_code();
    let mut last_check_passed = None;
    let status = session.wait(&mut |event| on_event(engine, &prepared.doc.value, &event, &mut last_check_passed))?;
    let ended_at = engine.now();
    let up_ns = i64::try_from(up.elapsed().as_nanos()).unwrap_or(i64::MAX);
    let watch = Stopwatch::start();
    let facts = RunFacts {
        // How long it was up is measured on the clock that nobody sets (A38).
        started_at: Some(Time::from_unix_nanos(ended_at.unix_nanos().saturating_sub(up_ns))),
        ended_at,
        code: status.code,
        was_stopped: status.stopped_by_request,
        was_out_of_memory: status.oom,
        last_check_passed,
    };
    let mut session = Some(session);
    let (id, seq) = save_exit(engine, &prepared, &facts, &mut |failure| {
        // Whoever waits for the exit is told that it is not saved yet, and is not kept waiting for space or strays.
        report(Report::Exited { code: status.code, seq: None, incomplete: Some(failure) });
        if let Some(session) = session.take() {
            session.finish(Ok(status.code));
        }
    })?;
    report(Report::Timing { stage: "committed", took: watch.elapsed() });
    if let Some(session) = session.take() {
        report(Report::Exited { code: status.code, seq: Some(seq), incomplete: None });
        session.finish(Ok(status.code));
    }
    let released = engine.release_run(&prepared.run.id, prepared.spec.runtime.as_deref());
    for lock in prepared.locks.drain(..1.min(prepared.locks.len())) {
        if released.is_ok() {
            lock.remove_file();
        }
    }
    prepared.locks.clear();
    // What could not be released is found by its directory and released by a later command.
    engine.settle(&id).and(released)
}

/// Mounts, writes the bundle and starts the process.
fn start(
    engine: &Engine,
    prepared: &mut PreparedRun,
    request: &StartRequest,
    client: Option<OwnedFd>,
    report: Reporter<'_>,
) -> Result<Session> {
    let watch = Stopwatch::start();
    engine.mount_run(prepared)?;
    report(Report::Timing { stage: "mounted", took: watch.elapsed() });
    let process = engine.resolve_process(prepared, &request.command)?;
    let mut session = Session::open(session_config(engine, prepared, &process, client)?)?;
    // The client says first how large its terminal is, so that the process never sees one of size nothing.
    let console_size = session.console_size();
    engine.write_bundle(prepared, &process, console_size)?;
    let runtime = engine.runtime(prepared.spec.runtime.as_deref())?;
    let id = prepared.run.id.clone();
    let cgroup = cgroup_of(&prepared.run.id);
    let watch = Stopwatch::start();
    // The runtime holds the run's lock as long as it works: should this process be killed meanwhile, nobody takes the
    // run for lost before the runtime has ended, too.
    let run_lock = prepared.locks.first();
    run_lock.map(Lock::share_with_children).transpose()?;
    let started = session.start(&runtime, id.as_str(), &prepared.bundle, &cgroup);
    run_lock.map(Lock::keep_from_children).transpose()?;
    let started = match started {
        Ok(started) => started,
        Err(failure) => {
            let converted = start_failure(&failure);
            session.finish(Err(failure));
            return Err(converted);
        }
    };
    report(Report::Timing { stage: "runtime", took: watch.elapsed() });
    let at = engine.now();
    let event = Event::Started { run: id.clone(), pid: started.pid, at };
    prepared.doc.value = prepared.doc.value.clone().step(event)?;
    // The process runs and may have changed something: from here on only an exit ends it. One whose start could not be
    // recorded shows as starting until then.
    engine.save_even_if_full(&mut prepared.doc).ok();
    report(Report::Started { run: &id, pid: started.pid });
    Ok(session)
}

/// Gives a failure without a code of its own the one for starts, and the hint that nothing was lost.
fn not_started(mut failure: Failure) -> Failure {
    if failure.code == Code::Failed {
        failure.code = Code::NotStarted;
    }
    let hint = hint_of_start(&failure);
    failure.hint.get_or_insert_with(|| hint.to_owned());
    failure
}

/// What helps against a failed start: another generation does not where the host lacks what the settings name.
fn hint_of_start(failure: &Failure) -> &'static str {
    let is_volume = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<BundleError>(), Some(BundleError::VolumeSource { .. }))
    };
    match failure.error.chain().any(is_volume) {
        true => "nothing has changed; make that file or directory on the host again, and start the container",
        false => "nothing has changed: the generations are as they were",
    }
}

pub(super) fn start_failure(failure: &StartFailure) -> Failure {
    let code = match failure.code {
        127 => Code::CommandNotFound,
        126 => Code::NotExecutable,
        _ => Code::NotStarted,
    };
    Failure::new(code, failure).hint("nothing has changed: the generations are as they were")
}

fn session_config(
    engine: &Engine,
    prepared: &PreparedRun,
    process: &Process,
    client: Option<OwnedFd>,
) -> Result<SessionConfig> {
    let logs = engine.log_dir(&prepared.doc.value.id);
    std::fs::create_dir_all(&logs)?;
    let image = engine.image(&prepared.run.image)?.value;
    let check = prepared.spec.health_on(&image.config).cloned();
    let health = check.map(|check| health_plan(check, process)).transpose()?;
    Ok(SessionConfig {
        tty: process.tty,
        interactive: process.interactive,
        log: LogConfig { path: logs.join("log"), bytes_max: LOG_BYTES_MAX, files_max: LOG_FILES_MAX },
        control_socket: engine.root.run_dir(&prepared.run.id).join("control.sock"),
        first_client: client,
        health,
        stop_signal: process.stop_signal,
        stop_timeout: Duration::from_secs(u64::from(process.stop_timeout_s)),
    })
}

pub(super) fn health_plan(check: HealthCheck, base: &Process) -> Result<HealthPlan> {
    let process = resolve_health(base, &check)?;
    Ok(HealthPlan { check, process })
}

/// Records what health checks say; a record that cannot be written now will be with the next change.
fn on_event(engine: &Engine, container: &Container, event: &SessionEvent, last_check_passed: &mut Option<bool>) {
    let change = |change: &dyn Fn(&mut Container)| {
        let Ok(_lock) = engine.lock_container_politely(&container.id) else { return };
        let Ok(mut doc) = engine.container(&container.id) else { return };
        change(&mut doc.value);
        engine.save(&mut doc, None).ok();
    };
    match event {
        SessionEvent::Healthy => {
            *last_check_passed = Some(true);
            change(&|container| container.clear(ConditionKind::Unhealthy));
        }
        SessionEvent::Unhealthy { failures } => {
            *last_check_passed = Some(false);
            let now = engine.now();
            let message = format!("its health check failed {failures} times in a row");
            change(&|container| container.raise(ConditionKind::Unhealthy, now, message.clone()));
        }
        SessionEvent::StopRequested | SessionEvent::Killed | SessionEvent::LogFailed { .. } => {}
    }
}

/// Commits the exit, trying until it succeeds: the run's directory is the only copy of what it changed. `on_failure` is
/// called once, with the first failure.
fn save_exit(
    engine: &Engine,
    prepared: &PreparedRun,
    facts: &RunFacts,
    on_failure: &mut dyn FnMut(&Failure),
) -> Result<(ContainerId, Seq)> {
    let id = prepared.doc.value.id.clone();
    let mut pause = RETRY_FIRST;
    let mut is_reported = false;
    loop {
        match try_save_exit(engine, &id, prepared, facts) {
            Ok(seq) => return Ok((id, seq)),
            Err(failure) if has_lost_its_run(engine, &id, &prepared.run.id) => return Err(failure),
            Err(failure) if !is_reported => {
                on_failure(&failure);
                is_reported = true;
            }
            Err(_) => {}
        }
        clock::wait(pause);
        pause = pause.saturating_mul(2).min(RETRY_LONGEST);
    }
}

fn try_save_exit(engine: &Engine, id: &ContainerId, prepared: &PreparedRun, facts: &RunFacts) -> Result<Seq> {
    let _lock = engine.lock_container_politely(id)?;
    let mut doc = engine.container(id)?;
    if !matches!(doc.value.phase, Phase::Exiting { .. }) {
        let exit = judge(facts, doc.value.policy.good_after_s);
        engine.record_end(&mut doc, &prepared.run, exit)?;
    }
    Ok(engine.finish_exit(&mut doc)?.seq)
}

/// Whether the records are known to say that the run is not the container's any more, so that there is nothing left
/// that could be saved. That they cannot be read does not say so.
fn has_lost_its_run(engine: &Engine, id: &ContainerId, run: &RunId) -> bool {
    match engine.container(id) {
        Ok(doc) => doc.value.phase.run().map(|present| &present.id) != Some(run),
        Err(failure) => failure.code == Code::NotFound,
    }
}

impl Engine {
    /// Returns where a container's output is logged; it outlives its runs.
    pub fn log_dir(&self, id: &perennial_core::id::ContainerId) -> std::path::PathBuf {
        self.root.path().join("logs").join(id.as_str())
    }
}
