//! `run`, `start`, `stop`, `exec`, `attach`, and the supervisor they start.

use super::{Context, settings};
use crate::cli::args::{ExecArgs, ModeArg, NameArg, RunArgs, StartArgs, StopArgs, SuperviseArgs, TerminalArgs};
use crate::cli::output::{self, Style};
use crate::cli::progress::ThawBar;
use crate::clock;
use crate::engine::Engine;
use crate::engine::start::StartRequest;
use crate::engine::supervise::{Report, supervise as supervise_run};
use crate::engine::thaw::Thawing;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Given, Phase, StartMode};
use perennial_core::id::ContainerName;
use perennial_core::process::{
    ExecSettings, Process, ProcessFacts, UserSpec, bounded, hostname_of, resolve, resolve_exec, user_of,
};
use perennial_runtime::attach::{AttachConfig, AttachError, Connection, Outcome};
use perennial_runtime::oci::ExecPlan;
use perennial_runtime::{capabilities, program, user};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, PipeReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// How often a command looks whether a run it cannot talk to has ended.
const WATCH_PAUSE: Duration = Duration::from_millis(20);
/// How often it looks at one that it can talk to, and that tells its end.
const HEARING_PAUSE: Duration = Duration::from_millis(500);
/// What to know where `exec` has failed.
const RUNS_ON: &str = "nothing has changed: the container runs on";
/// How long a stop may take beyond its own time-out before it is reported.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// `run`: makes the container if it is new, starts it, and waits for its exit unless detached.
///
/// # Errors
/// Where it cannot be made or started.
pub fn run(context: &Context, args: RunArgs) -> Result<ExitCode> {
    let name = Engine::parse_name(&args.name)?;
    let is_new = context.engine.id_of(&name).is_err_and(|failure| failure.code == Code::NotFound);
    if is_new {
        let Some(image) = args.settings.image.clone() else {
            return Err(Failure::new(Code::NotFound, format!("there is no container {name}"))
                .hint("add --image IMAGE to make it; `perennial image ls` lists images"));
        };
        let spec = settings::spec(&args.settings, TerminalArgs::default(), Vec::new())?;
        match context.engine.create(&name, &image, spec, settings::policy(&args.settings)?) {
            // Another command made it meanwhile; whichever starts it first has it.
            Err(failure) if failure.code == Code::Conflict => {}
            other => drop(other?),
        }
    } else {
        refuse_settings(context, &name, &args)?;
    }
    let request = Wanted { name, mode: args.mode, terminal: args.terminal, command: args.command };
    launch(context, &request, args.detach)
}

/// Refuses settings for a container that exists and has its own, rather than leaving them out in silence.
fn refuse_settings(context: &Context, name: &ContainerName, args: &RunArgs) -> Result<()> {
    let given = settings::given(&args.settings);
    if !given.is_empty() {
        return Err(Failure::new(
            Code::Conflict,
            format!("container {name} exists and keeps its settings: {} cannot be given", given.join(", ")),
        )
        .hint(format!(
            "leave them out; `perennial set` changes the retention. Other settings need another container: `perennial \
             export {name} oci:DIR`, `perennial image import oci:DIR IMAGE` and `perennial create` take the state there"
        )));
    }
    let Some(image) = &args.settings.image else { return Ok(()) };
    let container = context.engine.container_named(name)?.value;
    if *image != container.image_name && context.engine.resolve_image(image)? != container.image {
        return Err(Failure::new(
            Code::Conflict,
            format!("container {name} is on image {}, not {image}", container.image_name),
        )
        .hint(format!("`perennial rebase {name} --image {image}` moves it")));
    }
    Ok(())
}

/// `start`: starts a container from its current generation.
///
/// # Errors
/// Where it is unknown or cannot be started.
pub fn start(context: &Context, args: StartArgs) -> Result<ExitCode> {
    let name = Engine::parse_name(&args.name)?;
    context.engine.id_of(&name)?;
    let request = Wanted { name, mode: args.mode, terminal: args.terminal, command: args.command };
    launch(context, &request, args.detach)
}

/// Starts a container in the background as it was started once before.
///
/// # Errors
/// Where it cannot be started.
pub fn start_again(context: &Context, name: &ContainerName, (mode, given): (StartMode, Given)) -> Result<()> {
    let mode = match mode {
        StartMode::Mount => ModeArg::Mount,
        StartMode::Unpack => ModeArg::Unpack,
    };
    let terminal = TerminalArgs { tty: given.tty, interactive: given.interactive };
    let request = Wanted { name: name.clone(), mode, terminal, command: given.command };
    let (_connection, mut reports) = spawn(context, &request)?;
    reports.started()?;
    Ok(())
}

struct Wanted {
    name: ContainerName,
    mode: ModeArg,
    terminal: TerminalArgs,
    command: Vec<String>,
}

fn launch(context: &Context, wanted: &Wanted, detach: bool) -> Result<ExitCode> {
    let container = context.engine.container_named(&wanted.name)?.value;
    let (connection, mut reports) = spawn(context, wanted)?;
    if detach {
        let started = reports.started()?;
        match context.style {
            Style::Json => {
                output::json(&json!({"container": wanted.name, "run": started.get("run"), "pid": started.get("pid")}));
            }
            Style::Text => output::line(format!("{} is running", wanted.name)),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let config = AttachConfig {
        tty: container.spec.tty || wanted.terminal.tty,
        interactive: container.spec.interactive || wanted.terminal.interactive,
    };
    reports.admitted()?;
    let attached = connection.attach(config)?;
    if attached.skipped_bytes > 0 {
        output::remark(format!("{} bytes of output were left out; `perennial logs` has them", attached.skipped_bytes));
    }
    match attached.outcome {
        Outcome::Detached | Outcome::OutputClosed => Ok(ExitCode::SUCCESS),
        Outcome::Exited(code) => match reports.incomplete() {
            Some(failure) => Err(failure),
            None => Ok(exit_code(code)),
        },
        Outcome::Failed(_) | Outcome::Lost => Err(reports.failure(&wanted.name)),
    }
}

/// Returns an exit code of a process as ours.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// Starts a supervisor: this program again, on its own from now on.
fn spawn(context: &Context, wanted: &Wanted) -> Result<(Connection, Reports)> {
    let (connection, supervisor_end) = Connection::pair()?;
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("perennial");
    command.arg("--root").arg(context.engine.root.path());
    if context.timings {
        command.arg("--timings");
    }
    command.arg("__supervise").arg(wanted.name.as_str());
    command.args(["--mode", if wanted.mode == ModeArg::Unpack { "unpack" } else { "mount" }]);
    for (flag, is_set) in [("--tty", wanted.terminal.tty), ("--interactive", wanted.terminal.interactive)] {
        if is_set {
            command.arg(flag);
        }
    }
    command.arg("--").args(&wanted.command);
    command.current_dir("/").stdin(Stdio::from(supervisor_end)).stdout(Stdio::from(writer)).stderr(Stdio::null());
    command.spawn().map_err(|error| Failure::from(error).while_doing("cannot start the supervisor"))?;
    // The command holds our copies of the supervisor's ends.
    drop(command);
    let (lines, bar) = (BufReader::new(reader), ThawBar::new(context.style));
    Ok((connection, Reports { lines, timings: context.timings, bar }))
}

/// What the supervisor reports: one JSON object a line.
struct Reports {
    lines: BufReader<PipeReader>,
    timings: bool,
    bar: ThawBar,
}

impl Reports {
    /// Returns the next report that matters, and shows the others.
    fn next(&mut self) -> Option<Value> {
        loop {
            let report = self.next_step()?;
            if report.get("event").and_then(Value::as_str) != Some("admitted") {
                return Some(report);
            }
        }
    }

    /// The same with the one that says that a start is admitted.
    fn next_step(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let report: Value = serde_json::from_str(&line).ok()?;
            let number = |name: &str| report.get(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
            match report.get("event").and_then(Value::as_str) {
                Some("timing") if self.timings => eprint!("{line}"),
                Some("timing") => {}
                Some("thawing") => {
                    let (done, total) = (number("done").unwrap_or(0), number("total").unwrap_or(0));
                    self.bar.show(Thawing { done, total });
                }
                _ => {
                    self.bar.clear();
                    return Some(report);
                }
            }
        }
    }

    /// Waits until the start is admitted: until then it may take long, and nothing comes from the container.
    fn admitted(&mut self) -> Result<()> {
        match self.next_step() {
            Some(report) if report.get("error").is_some() => Err(failure_of(&report)),
            Some(_) => Ok(()),
            None => Err(lost()),
        }
    }

    /// Waits for the start.
    fn started(&mut self) -> Result<Value> {
        match self.next() {
            Some(report) if report.get("event").and_then(Value::as_str) == Some("started") => Ok(report),
            Some(report) => Err(failure_of(&report)),
            None => Err(lost()),
        }
    }

    /// Reads on until the last report, so that timings are shown; returns why the exit is not saved yet, if so.
    fn incomplete(&mut self) -> Option<Failure> {
        while let Some(report) = self.next() {
            if report.get("event").and_then(Value::as_str) == Some("exited") {
                return report.get("error").is_some().then(|| failure_of(&report));
            }
        }
        None
    }

    /// What went wrong, after the connection said that something did.
    fn failure(&mut self, name: &ContainerName) -> Failure {
        while let Some(report) = self.next() {
            if report.get("error").is_some() {
                return failure_of(&report);
            }
        }
        lost().while_doing(format!("container {name}"))
    }
}

fn lost() -> Failure {
    Failure::new(Code::Failed, "the supervisor ended without a word; it was killed or crashed")
        .hint("nothing is lost: the next command on this container recovers what its run changed")
}

fn failure_of(report: &Value) -> Failure {
    let error = report.get("error");
    let text = |key: &str| error.and_then(|error| error.get(key)).and_then(Value::as_str).map(str::to_owned);
    let code = match text("code").as_deref() {
        Some("usage") => Code::Usage,
        Some("not_found") => Code::NotFound,
        Some("conflict") => Code::Conflict,
        Some("host") => Code::Host,
        Some("damaged") => Code::Damaged,
        Some("exit_incomplete") => Code::ExitIncomplete,
        Some("not_started") => Code::NotStarted,
        Some("not_executable") => Code::NotExecutable,
        Some("command_not_found") => Code::CommandNotFound,
        Some(_) | None => Code::Failed,
    };
    let failure = Failure::new(code, text("message").unwrap_or_else(|| "no report from the supervisor".to_owned()));
    match text("hint") {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The supervisor's side: takes its standard streams for the first client and the reports, and gives them up.
///
/// # Errors
/// Only where it cannot even begin; everything else is reported.
pub fn supervise(context: Context, args: SuperviseArgs) -> Result<ExitCode> {
    // A supervisor must not end with the terminal or session of the one who started it.
    rustix::process::setsid().ok();
    let client = std::io::stdin().as_fd().try_clone_to_owned()?;
    let mut reports = std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    let request = StartRequest {
        name: Engine::parse_name(&args.name)?,
        mode: args.mode.into(),
        command: args.command,
        tty: args.terminal.tty,
        interactive: args.terminal.interactive,
    };
    let timings = context.timings;
    supervise_run(&context.engine, &request, Some(client), &mut |report| {
        if let Some(line) = report_line(&report, timings) {
            // Nobody may be listening any more; the run goes on without.
            reports.write_all(line.as_bytes()).ok();
        }
    });
    Ok(ExitCode::SUCCESS)
}

fn report_line(report: &Report<'_>, timings: bool) -> Option<String> {
    let error =
        |failure: &Failure| json!({"code": failure.code.name(), "message": failure.one_line(), "hint": failure.hint});
    let value = match report {
        Report::Started { run, pid } => json!({"event": "started", "run": run, "pid": pid}),
        Report::Thawing(Thawing { done, total }) => json!({"event": "thawing", "done": done, "total": total}),
        Report::Admitted => json!({"event": "admitted"}),
        Report::Failed(failure) => json!({"event": "failed", "error": error(failure)}),
        Report::Exited { code, seq, incomplete: None } => json!({"event": "exited", "code": code, "seq": seq}),
        Report::Exited { code, seq, incomplete: Some(failure) } => {
            json!({"event": "exited", "code": code, "seq": seq, "error": error(failure)})
        }
        Report::Timing { .. } if !timings => return None,
        Report::Timing { stage, took } => {
            let ms = took.as_secs_f64() * 1000.0;
            json!({"event": "timing", "stage": stage, "ms": ms})
        }
    };
    Some(format!("{value}\n"))
}

/// `stop`: asks the process to end and waits until its exit is saved.
///
/// # Errors
/// Where the container is unknown or does not run, or its exit cannot be saved yet.
pub fn stop(context: &Context, args: &StopArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let container = stop_and_wait(context, &name, args.time)?;
    let current = container.queue.as_ref().and_then(|queue| queue.current);
    match context.style {
        Style::Json => output::json(&json!({"container": name, "current": current})),
        Style::Text => match current {
            Some(seq) => output::line(format!("{name} has exited; its state is generation {seq}")),
            None => output::line(format!("{name} has ended and changed nothing")),
        },
    }
    Ok(())
}

/// Stops a container and returns its record after the exit.
///
/// # Errors
/// As [`stop`].
pub fn stop_and_wait(context: &Context, name: &ContainerName, timeout_s: Option<u32>) -> Result<Container> {
    let container = context.engine.seen(name)?.value;
    let Some(run) = container.phase.run().cloned() else {
        return Err(Failure::new(Code::Conflict, format!("container {name} is not running"))
            .hint(format!("`perennial start {name}` starts it")));
    };
    let grace = Duration::from_secs(u64::from(timeout_s.or(container.spec.stop_timeout_s).unwrap_or(10)));
    let socket = context.engine.root.run_dir(&run.id).join("control.sock");
    let watch = clock::Stopwatch::start();
    let mut is_asked = false;
    let mut asked: Option<Connection> = None;
    loop {
        // One that is only starting may not listen yet; one without a supervisor is ended by looking at it.
        if !is_asked {
            asked = ask_to_stop(&socket, timeout_s)?;
            is_asked = asked.is_some();
        }
        let present = context.engine.seen(name)?.value;
        if present.phase.run().map(|present| &present.id) != Some(&run.id) {
            return Ok(present);
        }
        let incomplete = present
            .conditions
            .iter()
            .find(|condition| condition.kind == perennial_core::container::ConditionKind::ExitIncomplete);
        if let (Phase::Exiting { .. }, Some(condition)) = (&present.phase, incomplete) {
            let message = format!("container {name} has ended, but its exit is not saved yet: {}", condition.message);
            return Err(
                Failure::new(Code::ExitIncomplete, message).hint("nothing is lost; saving it is tried again by itself")
            );
        }
        if watch.elapsed() > grace.saturating_add(STOP_MARGIN) {
            return Err(Failure::new(Code::Failed, format!("container {name} has not ended in time")));
        }
        match asked.take() {
            // It says so itself when the exit is saved.
            Some(connection) if !connection.wait_exit_for(HEARING_PAUSE)? => asked = Some(connection),
            Some(_) => {}
            None => clock::wait(WATCH_PAUSE),
        }
    }
}

/// Asks a supervisor to end its container; returns the connection if one was there to be asked.
fn ask_to_stop(socket: &std::path::Path, timeout_s: Option<u32>) -> Result<Option<Connection>> {
    let connection = match Connection::open(socket) {
        Ok(connection) => connection,
        Err(AttachError::NoSupervisor { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match connection.stop(timeout_s) {
        Ok(()) => Ok(Some(connection)),
        // It may have ended by itself just now, or its start have failed.
        Err(AttachError::NoAnswer) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `attach`: connects to the process of a running container.
///
/// # Errors
/// Where it is unknown or does not run.
pub fn attach(context: &Context, args: &NameArg) -> Result<ExitCode> {
    let name = Engine::parse_name(&args.name)?;
    let container = running(context, &name)?;
    let Some(run) = container.phase.run() else { return Ok(ExitCode::SUCCESS) };
    let connection = Connection::open(&context.engine.root.run_dir(&run.id).join("control.sock"))?;
    let given = run.given(&container.spec);
    let attached = connection.attach(AttachConfig { tty: given.tty, interactive: given.interactive })?;
    match attached.outcome {
        Outcome::Exited(code) => Ok(exit_code(code)),
        Outcome::Detached | Outcome::OutputClosed => Ok(ExitCode::SUCCESS),
        Outcome::Failed(failure) => Err(failure.into()),
        Outcome::Lost => Err(lost()),
    }
}

/// Returns a container that runs.
fn running(context: &Context, name: &ContainerName) -> Result<Container> {
    let container = context.engine.seen(name)?.value;
    match &container.phase {
        Phase::Running { .. } => Ok(container),
        phase @ (Phase::Created | Phase::Starting { .. } | Phase::Exiting { .. } | Phase::Dormant) => {
            let message = format!("container {name} is not running but {}", phase.name());
            Err(Failure::new(Code::Conflict, message).hint(format!("`perennial start {name} --detach` starts it")))
        }
    }
}

/// `exec`: runs a command beside the container's process.
///
/// # Errors
/// Where the container does not run, or the command cannot be executed.
pub fn exec(context: &Context, mut args: ExecArgs) -> Result<ExitCode> {
    let name = Engine::parse_name(&args.name)?;
    args.env = settings::env(&args.env)?;
    let asked = asked_user(&args)?;
    let container = running(context, &name)?;
    let Some(run) = container.phase.run() else { return Ok(ExitCode::SUCCESS) };
    let merged = context.engine.root.run_dir(&run.id).join("merged");
    let process = exec_process(context, &container, &merged, (args, asked)).map_err(not_executed)?;
    // Who may mount inside may have put the program there, where it cannot be seen from here.
    let may_mount = process.capabilities.iter().any(|capability| capability.name() == "CAP_SYS_ADMIN");
    if !may_mount {
        let checked = program::check(&merged, &process, &container.spec.volumes, false);
        checked.map_err(|refusal| Failure::from(refusal).hint(RUNS_ON))?;
    }
    let runtime = context.engine.runtime(container.spec.runtime.as_deref())?;
    let plan = ExecPlan { id: run.id.as_str(), process: &process, pid_file: None };
    match runtime.exec(&plan) {
        Ok(code) => Ok(exit_code(code)),
        Err(failure) => {
            let code = match failure.code {
                127 => Code::CommandNotFound,
                126 => Code::NotExecutable,
                _ => Code::NotStarted,
            };
            Err(Failure::from(failure).code(code).hint(RUNS_ON))
        }
    }
}

/// Checks what can be checked without the container, as `run` does, and returns the user that is asked for.
fn asked_user(args: &ExecArgs) -> Result<Option<UserSpec>> {
    settings::check_workdir(args.workdir.as_deref())?;
    args.user.as_deref().map(|text| settings::option("user", text.parse())).transpose()
}

/// Returns the process that is to run beside the container's own.
fn exec_process(
    context: &Context,
    container: &Container,
    merged: &Path,
    (args, asked): (ExecArgs, Option<UserSpec>),
) -> Result<Process> {
    let run = container.phase.run();
    let image = context.engine.image(run.map_or(&container.image, |run| &run.image))?.value;
    let base_user = user::lookup(merged, &user_of(&container.spec, &image.config)?)?;
    let hostname = hostname_of(&container.spec, &container.name);
    // The base is what the container was started with; its command does not matter here, but there must be one.
    let facts = ProcessFacts { user: base_user, hostname };
    let base: Process = resolve(&container.spec, &image.config, Some(&args.command), &facts)?;
    let base = bounded(base, &container.spec.cap_add, &capabilities::of_host())?;
    let user = asked.map(|asked| user::lookup(merged, &asked)).transpose()?;
    let settings = ExecSettings {
        command: args.command,
        env: args.env,
        workdir: args.workdir,
        user,
        tty: args.terminal.tty,
        interactive: args.terminal.interactive,
    };
    Ok(resolve_exec(&base, &settings)?)
}

/// Gives a failure without a code of its own the one of commands that were not started.
fn not_executed(mut failure: Failure) -> Failure {
    if failure.code == Code::Failed {
        failure.code = Code::NotStarted;
    }
    failure.hint.get_or_insert_with(|| RUNS_ON.to_owned());
    failure
}
