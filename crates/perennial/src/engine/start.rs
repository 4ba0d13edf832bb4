//! From a request to a mounted union and a bundle (rows A6 to A12). Runs in the supervisor.
//!
//! ```text
//! lock ─▶ recover ─▶ choose ─▶ check ─▶ record Starting ─▶ upper (empty, or unpacked) ─▶ mount ─▶ bundle ─▶ process
//! ```
//!
//! A step that fails undoes those before it; the queue is untouched.

use super::exit::cgroup_of;
use super::records::{Doc, Note};
use super::thaw::Thawing;
use super::trees::{LayerState, needs};
use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{ConditionKind, Container, Event, Given, Phase, Run, StartFault, StartMode};
use perennial_core::generations::{Generation, Queue};
use perennial_core::id::{ContainerName, LayerId, RunId};
use perennial_core::image::Image;
use perennial_core::process::{Process, ProcessFacts, bounded, hostname_of, resolve, user_of};
use perennial_core::spec::ContainerSpec;
use perennial_runtime::bundle::{self, BundlePlan, HostFacts};
use perennial_runtime::mount::{self, OverlayPlan, Upper};
use perennial_runtime::{capabilities, cgroup, program, user, volumes};
use perennial_store::root::{Lock, LockMode, Wait};
use perennial_store::tree::{self, Data};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// What is asked for with a start.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// The container.
    pub name: ContainerName,
    /// How the run gets its state.
    pub mode: StartMode,
    /// Command for this run; the container's own where empty.
    pub command: Vec<String>,
    /// Whether this run has a terminal although the container's settings do not say so.
    pub tty: bool,
    /// Whether this run has input although the container's settings do not say so.
    pub interactive: bool,
}

/// A run that is recorded and whose union is mounted.
#[derive(Debug)]
pub struct PreparedRun {
    /// The container's record.
    pub doc: Doc<Container>,
    /// The run.
    pub run: Run,
    /// Settings with what was asked for this run.
    pub spec: ContainerSpec,
    /// Where the bundle is.
    pub bundle: PathBuf,
    /// The read-only layers of its union, newest first, as they were when it was recorded.
    pub layers: Vec<LayerState>,
    /// Held for the supervisor's life: the run's, and the layers' it has mounted.
    pub locks: Vec<Lock>,
}

/// What to do where the settings and the state do not fit together.
const UNCHANGED: &str =
    "nothing has changed: the generations are as they were; `perennial rollback` goes to another one";

impl PreparedRun {
    fn hostname(&self) -> String {
        hostname_of(&self.spec, &self.doc.value.name)
    }
}

impl Engine {
    /// Admits a start: chooses the generation, checks that all of it is there, and records the run.
    /// Returns the container's lock, to be held until the process runs. `tell` hears how far a thaw is.
    ///
    /// # Errors
    /// Where the container cannot start now; nothing has changed.
    pub fn admit(&self, request: &StartRequest, tell: &mut dyn FnMut(Thawing)) -> Result<(Lock, PreparedRun)> {
        let (lock, mut doc) = self.locked(&request.name)?;
        refuse_busy(&doc.value)?;
        // Without it an exit could perhaps not even be recorded (A34).
        self.refill_reserve()?;
        let name = doc.value.name.clone();
        let origin = doc.value.queue.as_ref().and_then(Queue::current).cloned();
        if origin.is_none() && doc.value.queue.as_ref().is_some_and(|queue| !queue.generations.is_empty()) {
            return Err(Failure::new(Code::Conflict, format!("container {name} has generations but none is current"))
                .hint(format!("choose one with `perennial rollback {name}`")));
        }
        let image = self.image(origin.as_ref().map_or(&doc.value.image, |generation| &generation.image))?.value;
        match &origin {
            Some(generation) => self.check_intact(&name, generation)?,
            None => self.check_image_intact(&image)?,
        }
        let mut run = self.new_run(&doc.value, request, origin.as_ref(), &image)?;
        self.finish_interrupted_folds(&run.layers, &run.image_layers)?;
        if run.mode == StartMode::Unpack {
            let whole: Vec<LayerId> = run.layers.iter().chain(&run.image_layers).cloned().collect();
            self.resolve_directories(&whole)?;
        }
        let mut locks = vec![self.own_run(&run.id)?];
        locks.extend(self.share_layers(&run.layers)?);
        locks.extend(self.share_layers(&run.image_layers)?);
        // A fold may have ended while we waited for it: what the generation consists of is read again.
        doc = self.container(&doc.value.id)?;
        let present = run.origin.and_then(|seq| doc.value.queue.as_ref().and_then(|queue| queue.get(seq)));
        if let Some(present) = present {
            run.layers = present.layers.clone();
        }
        // A generation that is not cold shows nothing that is in packs only, whatever its layers have.
        if present.is_none_or(|present| present.cold) {
            self.thaw_telling(&[run.layers.clone(), run.image_layers.clone()].concat(), tell)?;
            doc = self.container(&doc.value.id)?;
            if let Some(origin) = run.origin.and_then(|seq| doc.value.queue.as_mut()?.get_mut(seq)) {
                origin.cold = false;
            }
        }
        if run.mode == StartMode::Unpack {
            let whole: Vec<LayerId> = run.layers.iter().chain(&run.image_layers).cloned().collect();
            if !self.is_resolved(&whole)? {
                // It can only be used over the layers it was made over: it is mounted over them, which shows the same.
                run.mode = StartMode::Mount;
            }
        }
        let layers = self.states(&mounted_layers(&run))?;
        run.mount_options = mount::recorded_options(needs(&layers));
        let mut spec = doc.value.spec.clone();
        spec.tty |= request.tty;
        spec.interactive |= request.interactive;
        doc.value = doc.value.clone().step(Event::StartRequested(run.clone()))?;
        let note = Note { from: run.origin, ..Note::new("start", format!("run {}", run.id)) };
        self.save(&mut doc, Some(note))?;
        let bundle = self.root.run_dir(&run.id).join("bundle");
        Ok((lock, PreparedRun { doc, run, spec, bundle, layers, locks }))
    }

    fn new_run(
        &self,
        container: &Container,
        request: &StartRequest,
        origin: Option<&Generation>,
        image: &Image,
    ) -> Result<Run> {
        let given = Given {
            command: request.command.clone(),
            tty: container.spec.tty || request.tty,
            interactive: container.spec.interactive || request.interactive,
        };
        Ok(Run {
            id: RunId::from_random(random()?),
            epoch: container.epoch.saturating_add(1),
            origin: origin.map(|generation| generation.seq),
            image: image.digest.clone(),
            layers: origin.map(|generation| generation.layers.clone()).unwrap_or_default(),
            image_layers: image.layers.clone(),
            mode: request.mode,
            mount_options: Vec::new(),
            layer: LayerId::from_random(random()?),
            command_overridden: !request.command.is_empty(),
            given: Some(given),
            requested_at: self.now(),
            by: self.actor.clone(),
        })
    }

    /// Takes the lock of a run that is being made.
    pub(super) fn own_run(&self, run: &RunId) -> Result<Lock> {
        let lock = self.root.lock_run(run, Wait::Never)?;
        lock.ok_or_else(|| Failure::new(Code::Conflict, format!("run {run} is taken")))
    }

    /// Takes a shared lock of every layer, so that none is folded while it is mounted; a fold in progress is asked to
    /// give way.
    pub fn share_layers(&self, layers: &[LayerId]) -> Result<Vec<Lock>> {
        let mut locks = Vec::with_capacity(layers.len());
        for layer in layers {
            let mut lock = self.root.lock_layer(layer, LockMode::Shared, Wait::Never)?;
            if lock.is_none() {
                let yielding = self.root.ask_to_yield()?;
                lock = self.root.lock_layer(layer, LockMode::Shared, Wait::Forever)?;
                drop(yielding);
            }
            locks.extend(lock);
        }
        Ok(locks)
    }

    /// Makes the run's directories and mounts its union.
    ///
    /// # Errors
    /// Where something cannot be made or mounted; the caller undoes the start.
    pub fn mount_run(&self, prepared: &PreparedRun) -> Result<()> {
        let run = &prepared.run;
        let directory = self.root.run_dir(&run.id);
        for path in ["", "work", "merged", "bundle", "empty"] {
            std::fs::create_dir(directory.join(path))?;
        }
        self.note_boot(&run.id)?;
        let mut lowers = self.lowers(&prepared.layers)?;
        if lowers.is_empty() {
            lowers.push(directory.join("empty").into());
        }
        match run.mode {
            StartMode::Mount => self.make_empty_upper(run, &directory)?,
            StartMode::Unpack => self.unpack_upper(run, &directory)?,
        }
        let upper = Upper { upper: directory.join("upper"), work: directory.join("work") };
        let data = self.data_of(needs(&prepared.layers));
        let plan = OverlayPlan { lowers, data, upper: Some(upper), read_only: false };
        let merged = directory.join("merged");
        mount::mount(&plan, &merged)?;
        if run.origin.is_none() {
            // Later runs go on from what the first one had: a volume that was removed inside stays so.
            volumes::make_directories(&merged, &self.image(&run.image)?.value.config.volumes)?;
        }
        Ok(())
    }

    /// An empty upper whose root looks as the root below it, so that the union's root looks as it did at the exit.
    fn make_empty_upper(&self, run: &Run, directory: &Path) -> Result<()> {
        let upper = directory.join("upper");
        std::fs::create_dir(&upper)?;
        let base = self.base_root(run)?;
        let target = tree::open_tree(&upper)?;
        tree::materialize(&[], &[base.as_fd()], target.as_fd(), Data::Copy, &mut |_| {})?;
        Ok(())
    }

    /// The literal method of A9 to A11: the generation is copied into the upper, complete or not at all.
    fn unpack_upper(&self, run: &Run, directory: &Path) -> Result<()> {
        let partial = directory.join("upper.partial");
        std::fs::create_dir(&partial)?;
        let target = tree::open_tree(&partial)?;
        self.write_out(&run.layers, &run.image_layers, target.as_fd())?;
        std::fs::rename(&partial, directory.join("upper"))?;
        let fingerprint = tree::fingerprint::fingerprint(target.as_fd())?;
        let run_directory = perennial_store::atomic::open_directory(directory)?;
        perennial_store::atomic::write(run_directory.as_fd(), "fingerprint", &fingerprint)?;
        Ok(())
    }

    /// Looks up what the process needs in the mounted tree, and whether its program can be executed there.
    ///
    /// # Errors
    /// Where the settings do not fit the tree; the caller undoes the start.
    pub fn resolve_process(&self, prepared: &PreparedRun, command: &[String]) -> Result<Process> {
        let run = &prepared.run;
        let image = self.image(&run.image)?.value;
        let not_started = |failure: Failure| failure.code(Code::NotStarted).hint(UNCHANGED);
        let wanted = user_of(&prepared.spec, &image.config).map_err(|error| not_started(error.into()))?;
        let merged = self.root.run_dir(&run.id).join("merged");
        let user = user::lookup(&merged, &wanted).map_err(|error| not_started(error.into()))?;
        let command = (!command.is_empty()).then_some(command);
        let facts = ProcessFacts { user, hostname: prepared.hostname() };
        let process = resolve(&prepared.spec, &image.config, command, &facts);
        let process = process.map_err(|error| not_started(error.into()))?;
        let process = bounded(process, &prepared.spec.cap_add, &capabilities::of_host());
        let process = process.map_err(|error| not_started(error.into()))?;
        // A program that the kernel refuses only when the container is there would count as a run that has ended.
        let checked = program::check(&merged, &process, &prepared.spec.volumes, prepared.spec.init);
        checked.map_err(|refusal| Failure::from(refusal).hint(UNCHANGED))?;
        Ok(process)
    }

    /// Connects the network and writes the bundle.
    ///
    /// # Errors
    /// Where the settings do not fit the host; the caller undoes the start.
    pub fn write_bundle(
        &self,
        prepared: &PreparedRun,
        process: &Process,
        console_size: Option<(u16, u16)>,
    ) -> Result<()> {
        let run = &prepared.run;
        let spec = &prepared.spec;
        let network = self.connect(run, spec.network)?;
        let resolv_conf = self.name_service(run, spec.network)?;
        let init = if spec.init { Some(bundle::find_init()?) } else { None };
        let plan = BundlePlan {
            process,
            rootfs: &self.root.run_dir(&run.id).join("merged"),
            hostname: &prepared.hostname(),
            cgroups_path: &cgroup_of(&run.id),
            limits: &spec.limits,
            host: HostFacts {
                swap_accounting: cgroup::has_swap_accounting(),
                cgroup_v2: cgroup::version() == cgroup::CgroupVersion::V2,
                recursive_read_only: bundle::has_recursive_read_only(),
            },
            network,
            volumes: &spec.volumes,
            resolv_conf: resolv_conf.as_deref(),
            init: init.as_ref(),
            console_size,
        };
        bundle::write(&plan, &prepared.bundle)?;
        Ok(())
    }

    /// Undoes a start whose process never ran: back to where the container was, nothing kept, queue untouched.
    ///
    /// # Errors
    /// Where undoing fails; recovery will do it.
    pub fn undo_start(&self, prepared: &mut PreparedRun, failure: &Failure) -> Result<()> {
        let run = prepared.run.clone();
        self.leave_union(&run)?;
        self.note_disposable(&run.id);
        let fault = match failure.code {
            Code::NotExecutable | Code::CommandNotFound => StartFault::Container,
            Code::Failed
            | Code::Usage
            | Code::NotFound
            | Code::Conflict
            | Code::Host
            | Code::Damaged
            | Code::ExitIncomplete
            | Code::NotStarted => StartFault::Host,
        };
        let event = Event::StartFailed { run: run.id.clone(), fault, reason: failure.one_line(), at: self.now() };
        prepared.doc.value = prepared.doc.value.clone().step(event)?;
        let note = Note { from: run.origin, ..Note::new("start-failed", failure.one_line()) };
        self.save(&mut prepared.doc, Some(note))?;
        self.release_run(&run.id, prepared.spec.runtime.as_deref())?;
        // Nothing of the run is left that somebody could wait for its lock, the first, with.
        if !prepared.locks.is_empty() {
            prepared.locks.remove(0).remove_file();
        }
        Ok(())
    }
}

/// The read-only layers of a run's union, newest first.
pub(super) fn mounted_layers(run: &Run) -> Vec<LayerId> {
    let own: &[LayerId] = match run.mode {
        StartMode::Mount => &run.layers,
        StartMode::Unpack => &[],
    };
    own.iter().chain(&run.image_layers).cloned().collect()
}

/// Refuses a start while there is a run, saying which and what to do (A26).
fn refuse_busy(container: &Container) -> Result<()> {
    let name = &container.name;
    let Some(run) = container.phase.run() else { return Ok(()) };
    let incomplete = container.conditions.iter().find(|c| c.kind == ConditionKind::ExitIncomplete);
    let failure = match (&container.phase, incomplete) {
        (Phase::Exiting { .. }, Some(condition)) => Failure::new(
            Code::ExitIncomplete,
            format!("the last exit of container {name} is not saved yet: {}", condition.message),
        )
        .hint("it is tried again by itself; free space or end what uses its files"),
        (Phase::Running { started_at, .. }, _) => Failure::new(
            Code::Conflict,
            format!("container {name} is already running (run {}, since {started_at})", run.id),
        )
        .hint(format!("`perennial attach {name}` connects to it, `perennial stop {name}` ends it")),
        (phase, _) => Failure::new(Code::Conflict, format!("container {name} is {} (run {})", phase.name(), run.id))
            .hint("wait for it"),
    };
    Err(failure)
}
