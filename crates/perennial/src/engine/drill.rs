//! Restore drills: a generation is brought up beside everything else and asked whether it works.
//!
//! The shadow has the generation's tree under an upper of its own, no network and none of the container's volumes, so
//! that nothing it does is seen outside. It is no run of the container: no record names it, nothing it changes is kept, and
//! whatever a killed drill leaves is a run's directory with nothing to keep in it, which `gc` frees.

use super::exit::cgroup_of;
use super::records::{Doc, Note};
use super::start::{PreparedRun, mounted_layers};
use super::supervise::{health_plan, start_failure};
use super::trees::needs;
use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Run, StartMode};
use perennial_core::generations::Generation;
use perennial_core::generations::choose::Selector;
use perennial_core::generations::health::drilled;
use perennial_core::id::{ContainerName, LayerId, RunId, Seq};
use perennial_core::process::Process;
use perennial_core::spec::Network;
use perennial_runtime::cgroup::Cgroup;
use perennial_runtime::logs::LogConfig;
use perennial_runtime::mount;
use perennial_runtime::supervise::{HealthPlan, Session, SessionConfig, SessionEvent};
use std::sync::mpsc;
use std::time::Duration;

/// What the shadow may print before its oldest output is dropped.
const LOG_BYTES_MAX: u64 = 1024 * 1024;
/// How long the processes of a shadow that has done its part may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);
/// Lines of output that a failed drill shows.
const LINES_SHOWN: usize = 10;

/// What is asked of a drill.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    /// The container.
    pub name: ContainerName,
    /// The generation; the current one where none is selected.
    pub selector: Option<Selector>,
    /// Command that tells by its exit code whether the state is good; where empty, the container's own command runs
    /// until its health check passes.
    pub command: Vec<String>,
    /// Longest time for it.
    pub timeout: Duration,
}

/// How a drill ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drilled {
    /// The generation.
    pub seq: Seq,
    /// Whether it works.
    pub passed: bool,
    /// What it was judged by.
    pub because: String,
    /// The last lines it printed.
    pub output: Vec<String>,
}

/// What the shadow showed.
#[derive(Debug, Default)]
struct Seen {
    healthy: bool,
    failures: Option<u32>,
    timed_out: bool,
}

impl Engine {
    /// Brings a generation up in a shadow, asks whether it works, and records the answer with it.
    ///
    /// # Errors
    /// Where there is nothing to ask, or the shadow cannot be made; nothing is recorded then.
    pub fn drill(&self, request: &DrillRequest) -> Result<Drilled> {
        let container = self.seen(&request.name)?.value;
        let generation = self.chosen(&container, request.selector.as_ref())?;
        let (seq, image) = (generation.seq, self.image(&generation.image)?.value);
        if request.command.is_empty() && container.spec.health_on(&image.config).is_none() {
            let message = format!("container {} has no health check, so a drill has nothing to ask", request.name);
            return Err(Failure::new(Code::Usage, message).hint(format!(
                "give a command that ends with code 0 where all is well: `perennial drill {} -- COMMAND`",
                request.name
            )));
        }
        let held = self.hold_layers(&request.name, seq)?;
        let doc = self.seen(&request.name)?;
        // The layers that are held: those of the generation may have been put together meanwhile.
        let chosen = self.chosen(&doc.value, Some(&Selector::Seq(seq)))?.clone();
        let generation = Generation { layers: held.layers.clone(), ..chosen };
        let prepared = self.prepare_shadow(doc, &generation)?;
        let shown = self.show(&prepared, request);
        self.leave_union(&prepared.run)?;
        self.release_run(&prepared.run.id, prepared.spec.runtime.as_deref())?;
        self.empty_trash();
        let drilled = Drilled { seq, ..shown? };
        self.record_drill(&request.name, &drilled)?;
        Ok(drilled)
    }

    fn prepare_shadow(&self, doc: Doc<Container>, generation: &Generation) -> Result<PreparedRun> {
        let image = self.image(&generation.image)?.value;
        let mut run = Run {
            id: RunId::from_random(random()?),
            epoch: doc.value.epoch,
            origin: Some(generation.seq),
            image: image.digest.clone(),
            layers: generation.layers.clone(),
            image_layers: image.layers,
            mode: StartMode::Mount,
            mount_options: Vec::new(),
            layer: LayerId::from_random(random()?),
            command_overridden: true,
            given: None,
            requested_at: self.now(),
            by: self.actor.clone(),
        };
        let layers = self.states(&mounted_layers(&run))?;
        run.mount_options = mount::recorded_options(needs(&layers));
        let mut spec = doc.value.spec.clone();
        spec.network = Network::None;
        spec.volumes.clear();
        (spec.tty, spec.interactive) = (false, false);
        let bundle = self.root.run_dir(&run.id).join("bundle");
        let locks = vec![self.own_run(&run.id)?];
        Ok(PreparedRun { doc, run, spec, bundle, layers, locks })
    }

    /// Runs the shadow to its end.
    fn show(&self, prepared: &PreparedRun, request: &DrillRequest) -> Result<Drilled> {
        self.mount_run(prepared)?;
        self.note_disposable(&prepared.run.id);
        let process = self.resolve_process(prepared, &request.command)?;
        let image = self.image(&prepared.run.image)?.value;
        let check = prepared.spec.health_on(&image.config).filter(|_| request.command.is_empty());
        let health = check.map(|check| health_plan(check.clone(), &process)).transpose()?;
        let directory = self.root.run_dir(&prepared.run.id);
        let log = directory.join("log");
        let mut session = Session::open(shadow_config(&process, health, &directory))?;
        self.write_bundle(prepared, &process, None)?;
        let runtime = self.runtime(prepared.spec.runtime.as_deref())?;
        let cgroup = cgroup_of(&prepared.run.id);
        let started = session.start(&runtime, prepared.run.id.as_str(), &prepared.bundle, &cgroup);
        if let Err(failure) = started {
            return Err(start_failure(&failure));
        }
        let (seen, code) = watch(&mut session, &cgroup, request.timeout)?;
        let (passed, because) = verdict(&seen, code, request);
        let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
        // Time, stream and a flag stand before the text.
        let lines: Vec<String> = text.lines().filter_map(|line| Some(line.splitn(4, ' ').nth(3)?.to_owned())).collect();
        let output = lines.get(lines.len().saturating_sub(LINES_SHOWN)..).unwrap_or_default().to_vec();
        Ok(Drilled { seq: Seq(0), passed, because, output })
    }

    fn record_drill(&self, name: &ContainerName, result: &Drilled) -> Result<()> {
        let (_lock, mut doc) = self.locked(name)?;
        let now = self.now();
        // It may have been evicted meanwhile: then there is nothing to say it of.
        let Some(generation) = doc.value.queue.as_mut().and_then(|queue| queue.get_mut(result.seq)) else {
            return Ok(());
        };
        drilled(generation, result.passed, &result.because, now);
        let verdict = if result.passed { "passed" } else { "failed" };
        let note = Note::new("drill", format!("{verdict}: {}", result.because));
        self.save(&mut doc, Some(Note { to: Some(result.seq), ..note }))
    }
}

fn shadow_config(process: &Process, health: Option<HealthPlan>, directory: &std::path::Path) -> SessionConfig {
    SessionConfig {
        tty: false,
        interactive: false,
        log: LogConfig { path: directory.join("log"), bytes_max: LOG_BYTES_MAX, files_max: 1 },
        control_socket: directory.join("control.sock"),
        first_client: None,
        health,
        stop_signal: process.stop_signal,
        stop_timeout: END_DEADLINE,
    }
}

/// Waits until the shadow has shown what there is to see, or its time is up, and ends it.
fn watch(session: &mut Session, cgroup: &str, timeout: Duration) -> Result<(Seen, i32)> {
    let mut seen = Seen::default();
    let (done, is_done) = mpsc::channel::<()>();
    let path = cgroup.to_owned();
    let alarm = std::thread::spawn(move || {
        let is_late = matches!(is_done.recv_timeout(timeout), Err(mpsc::RecvTimeoutError::Timeout));
        if is_late && let Ok(cgroup) = Cgroup::at(&path) {
            cgroup.kill_all(END_DEADLINE).ok();
        }
        is_late
    });
    let status = session.wait(&mut |event| {
        match event {
            SessionEvent::Healthy => seen.healthy = true,
            SessionEvent::Unhealthy { failures } => seen.failures = Some(failures),
            SessionEvent::StopRequested | SessionEvent::Killed | SessionEvent::LogFailed { .. } => return,
        }
        if let Ok(cgroup) = Cgroup::at(cgroup) {
            cgroup.kill_all(END_DEADLINE).ok();
        }
    })?;
    drop(done);
    seen.timed_out = alarm.join().unwrap_or(false);
    Ok((seen, status.code))
}

/// Says whether the shadow showed that its state works, and by what.
fn verdict(seen: &Seen, code: i32, request: &DrillRequest) -> (bool, String) {
    let seconds = request.timeout.as_secs();
    if seen.healthy {
        return (true, "its health check passed".to_owned());
    }
    if let Some(failures) = seen.failures {
        return (false, format!("its health check failed {failures} times in a row"));
    }
    if seen.timed_out {
        return (false, format!("it was not done within {seconds} s"));
    }
    if request.command.is_empty() {
        return (false, format!("it ended with code {code} before its health check passed"));
    }
    (code == 0, format!("the command ended with code {code}"))
}
