//! The OCI runtime by its command line: `runc`, or `crun` where the host allows it.
//!
//! A container is started with one invocation (`run --detach`), about twice as fast as `create` and `start`. Messages
//! of the runtime go to a log without a file (a memory descriptor), and tell a program that cannot be executed from a
//! runtime that cannot do its work.

use crate::attach::SavedTerminal;
use crate::bundle::process_object;
use crate::signals::Signals;
use perennial_core::process::{Process, Signal};
use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, kill_process};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Exit code for "the runtime failed", as in docker and podman.
pub const EXIT_RUNTIME: i32 = 125;
/// Exit code for "the program cannot be executed".
pub const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Exit code for "the program was not found".
pub const EXIT_NOT_FOUND: i32 = 127;
/// Where runtimes live when `PATH` does not say so.
const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"];
/// Most bytes of a runtime's messages that are read.
const LOG_BYTES_MAX: u64 = 256 * 1024;

/// A runtime and the directory of its state.
#[derive(Debug, Clone)]
pub struct OciRuntime {
    program: PathBuf,
    state_root: PathBuf,
}

/// Why the runtime could not be used.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// Not installed.
    #[error("OCI runtime {name:?} is not installed")]
    Missing {
        /// The name as given.
        name: String,
    },
    /// It could not be executed.
    #[error("cannot run {program}")]
    Spawn {
        /// The runtime.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It said no.
    #[error("{program} {command} failed: {message}")]
    Failed {
        /// The runtime.
        program: String,
        /// The subcommand.
        command: &'static str,
        /// What it said.
        message: String,
    },
    /// The container is not running, or not there.
    #[error("container {id} is not running")]
    NotRunning {
        /// The container.
        id: String,
    },
    /// The runtime's answer has an unknown form.
    #[error("cannot read what {program} {command} answered")]
    Answer {
        /// The runtime.
        program: String,
        /// The subcommand.
        command: &'static str,
    },
}

/// A process that could not be started, with the exit code that says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot start the container's process: {message}")]
pub struct StartFailure {
    /// 127 not found, 126 not executable, 125 anything else.
    pub code: i32,
    /// What the runtime said.
    pub message: String,
}

/// What a container is to the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct OciState {
    /// `creating`, `created`, `running`, `stopped` or `paused`.
    pub status: String,
    /// Process id of its init on the host; 0 when stopped.
    #[serde(default)]
    pub pid: i32,
}

/// Where a detached container's standard streams go.
#[derive(Debug)]
pub enum RunStdio {
    /// To these descriptors.
    Streams {
        /// Standard input; nothing where absent.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// To a terminal, whose master side is sent to the socket at this path.
    Console(PathBuf),
}

/// A process to start beside the container's own.
#[derive(Debug)]
pub struct ExecPlan<'a> {
    /// The container.
    pub id: &'a str,
    /// The process.
    pub process: &'a Process,
    /// Where its process id on the host is written.
    pub pid_file: Option<&'a Path>,
}

impl OciRuntime {
    /// Finds a runtime by its path, or by its name in `PATH` and the usual directories. Its state is kept below
    /// `state_root`, which should be on a file system that a reboot empties.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn by_path(name: &str, state_root: &Path) -> Result<Self, OciError> {
        let program = if name.contains('/') {
            Some(PathBuf::from(name)).filter(|path| path.is_file())
        } else {
            let listed = std::env::var_os("PATH").unwrap_or_default();
            let directories = std::env::split_paths(&listed).chain(DIRECTORIES.iter().map(PathBuf::from));
            directories.map(|directory| directory.join(name)).find(|path| path.is_file())
        };
        let program = program.ok_or_else(|| OciError::Missing { name: name.to_owned() })?;
        Ok(Self { program, state_root: state_root.to_owned() })
    }

    /// Returns its path.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Returns the first line of its version text.
    ///
    /// # Errors
    /// If it cannot be executed.
    pub fn version(&self) -> Result<String, OciError> {
        let mut command = Command::new(&self.program);
        let output = command.arg("--version").stdin(Stdio::null()).output().map_err(|source| self.spawn(source))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    }

    /// Starts the container of `bundle` and returns the process id of its init, which becomes a child of the nearest
    /// subreaper. `pid_file` is written before the process runs.
    ///
    /// # Errors
    /// If the process cannot be started; the container is not left behind.
    pub fn run_detached(&self, id: &str, bundle: &Path, pid_file: &Path, stdio: RunStdio) -> Result<i32, StartFailure> {
        let log = Log::new().map_err(|error| failure_of_io("making a log", &error))?;
        let mut command = self.command(&log);
        command.args(["run", "--detach", "--bundle"]).arg(bundle).arg("--pid-file").arg(pid_file);
        let mut own_errors = None;
        match stdio {
            RunStdio::Streams { stdin, stdout, stderr } => {
                command.stdin(stdin.map_or_else(Stdio::null, Stdio::from)).stdout(stdout).stderr(stderr);
            }
            RunStdio::Console(socket) => {
                let errors = Log::new().map_err(|error| failure_of_io("making a log", &error))?;
                command.arg("--console-socket").arg(socket).stdin(Stdio::null()).stdout(Stdio::null());
                command.stderr(errors.writer().map_err(|error| failure_of_io("making a log", &error))?);
                own_errors = Some(errors);
            }
        }
        let status = command.arg(id).status();
        let status = status.map_err(|error| failure_of_io(&self.program.display().to_string(), &error))?;
        // The command holds the writing ends of the container's streams.
        drop(command);
        if status.success() {
            return read_pid(pid_file).map_err(|error| failure_of_io("the process id file", &error));
        }
        let message = log.error().or_else(|| own_errors.and_then(|errors| errors.text_of_lines()));
        let message = message.unwrap_or_else(|| format!("{} ended with {status}", self.program.display()));
        // What is left of it would make the id unusable; that there is nothing left is the usual case.
        self.delete(id, true).ok();
        Err(StartFailure { code: classify(&message), message })
    }

    /// Starts a process beside the container's own on the standard streams of this process, waits for it and returns
    /// its exit code (128 + signal where a signal ended it). Signals that come in meanwhile go to it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn exec(&self, plan: &ExecPlan<'_>) -> Result<i32, StartFailure> {
        let terminal = plan.process.tty.then(SavedTerminal::of_stdin);
        let forwarded = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];
        let mut numbers = vec![signal_hook::consts::SIGCHLD];
        numbers.extend(forwarded.iter().map(|signal| i32::from(signal.number())));
        if plan.process.tty {
            numbers.push(signal_hook::consts::SIGWINCH);
        }
        let signals = Signals::listen(&numbers).map_err(|error| failure_of_io("listening to signals", &error))?;
        let stdin = if plan.process.interactive { Stdio::inherit() } else { Stdio::null() };
        let mut running = self.spawn_exec(plan, stdin, None)?;
        let code = wait_forwarding(&mut running.child, &signals);
        drop(terminal);
        let code = code.map_err(|error| failure_of_io("waiting for the process", &error))?;
        match running.log.error() {
            Some(message) if code != 0 => Err(StartFailure { code: classify(&message), message }),
            Some(_) | None => Ok(code),
        }
    }

    /// Starts a process beside the container's own and returns the runtime's process, which ends with the exit code.
    pub(crate) fn spawn_exec(
        &self,
        plan: &ExecPlan<'_>,
        stdin: Stdio,
        output: Option<(Stdio, Stdio)>,
    ) -> Result<RunningExec, StartFailure> {
        let (log, spec) = match (Log::new(), Log::new()) {
            (Ok(log), Ok(spec)) => (log, spec),
            (Err(error), _) | (_, Err(error)) => return Err(failure_of_io("making a log", &error)),
        };
        let mut object = process_object(plan.process);
        // The runtime itself tells the size only after the program has begun to run.
        let size = if plan.process.tty { SavedTerminal::of_stdin().size() } else { None };
        if let (Some((rows, columns)), Some(object)) = (size, object.as_object_mut()) {
            object.insert("consoleSize".to_owned(), json!({ "height": rows, "width": columns }));
        }
        let object = object.to_string();
        spec.writer()
            .and_then(|mut file| file.write_all(object.as_bytes()))
            .map_err(|error| failure_of_io("writing the process", &error))?;
        let mut command = self.command(&log);
        command.arg("exec").arg("--process").arg(spec.path());
        if let Some(pid_file) = plan.pid_file {
            command.arg("--pid-file").arg(pid_file);
        }
        command.arg(plan.id).stdin(stdin);
        if let Some((stdout, stderr)) = output {
            command.stdout(stdout).stderr(stderr);
        }
        let child = command.spawn().map_err(|error| failure_of_io(&self.program.display().to_string(), &error))?;
        Ok(RunningExec { child, log, _spec: spec })
    }

    /// Sends a signal to the container's init.
    ///
    /// # Errors
    /// [`OciError::NotRunning`] if it has ended.
    pub fn kill(&self, id: &str, signal: Signal) -> Result<(), OciError> {
        match self.call("kill", &["kill", id, &signal.number().to_string()]) {
            Err(OciError::Failed { message, .. }) if is_not_running(&message) => {
                Err(OciError::NotRunning { id: id.to_owned() })
            }
            other => other.map(drop),
        }
    }

    /// Removes what the runtime keeps of an ended container; with `force`, kills it first. Nothing there is no error.
    ///
    /// # Errors
    /// If it still runs, or the runtime fails.
    pub fn delete(&self, id: &str, force: bool) -> Result<(), OciError> {
        let result = match force {
            true => self.call("delete", &["delete", "--force", id]),
            false => self.call("delete", &["delete", id]),
        };
        match result {
            Err(OciError::Failed { message, .. }) if is_unknown(&message) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Returns what the container is to the runtime; nothing where it does not know it.
    ///
    /// # Errors
    /// If the runtime fails or answers in an unknown form.
    pub fn state(&self, id: &str) -> Result<Option<OciState>, OciError> {
        let answer = match self.call("state", &["state", id]) {
            Ok(answer) => answer,
            Err(OciError::Failed { message, .. }) if is_unknown(&message) => return Ok(None),
            Err(error) => return Err(error),
        };
        let fail = || OciError::Answer { program: self.program.display().to_string(), command: "state" };
        serde_json::from_slice(&answer).map(Some).map_err(|_| fail())
    }

    fn command(&self, log: &Log) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state_root);
        command.arg("--log").arg(log.path()).arg("--log-format").arg("json");
        command
    }

    fn spawn(&self, source: io::Error) -> OciError {
        OciError::Spawn { program: self.program.display().to_string(), source }
    }

    fn call(&self, name: &'static str, args: &[&str]) -> Result<Vec<u8>, OciError> {
        let log = Log::new().map_err(|source| self.spawn(source))?;
        let output = self.command(&log).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|source| self.spawn(source))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let message = log.error().unwrap_or(said);
        Err(OciError::Failed { program: self.program.display().to_string(), command: name, message })
    }
}

/// A process started by [`OciRuntime::spawn_exec`].
#[derive(Debug)]
pub(crate) struct RunningExec {
    /// The runtime, waiting for it.
    pub(crate) child: Child,
    /// The runtime's messages.
    pub(crate) log: Log,
    /// The runtime reads it at its leisure.
    _spec: Log,
}

/// A file in memory that the runtime can open by a path.
#[derive(Debug)]
pub(crate) struct Log(File);

impl Log {
    fn new() -> io::Result<Self> {
        Ok(Self(File::from(rustix::fs::memfd_create("perennial-oci", MemfdFlags::CLOEXEC)?)))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    fn writer(&self) -> io::Result<File> {
        self.0.try_clone()
    }

    fn text(&self) -> Option<String> {
        let mut file = &self.0;
        let mut bytes = Vec::new();
        file.rewind().ok()?;
        file.take(LOG_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn text_of_lines(&self) -> Option<String> {
        self.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// Returns the last error in it.
    pub(crate) fn error(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Line {
            level: String,
            msg: String,
        }
        let text = self.text()?;
        let mut lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        lines.find(|line| matches!(line.level.as_str(), "error" | "fatal")).map(|line| line.msg.trim().to_owned())
    }
}

fn failure_of_io(what: &str, error: &io::Error) -> StartFailure {
    StartFailure { code: EXIT_RUNTIME, message: format!("{what}: {error}") }
}

fn read_pid(pid_file: &Path) -> io::Result<i32> {
    let text = std::fs::read_to_string(pid_file)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a process id"))
}

/// Tells whether a runtime does not know a container: runc says so, crun misses its file.
fn is_unknown(message: &str) -> bool {
    message.contains("does not exist") || message.contains("No such file or directory")
}

fn is_not_running(message: &str) -> bool {
    ["does not exist", "not running", "already finished", "stopped container", "no such process"]
        .iter()
        .any(|known| message.to_ascii_lowercase().contains(known))
}

/// Returns the exit code for a message of the runtime about a start that failed.
#[must_use]
pub fn classify(message: &str) -> i32 {
    let message = message.to_ascii_lowercase();
    let has = |text: &str| message.contains(text);
    let is_about_program =
        has("exec: \"") || has("executable") || has("exec container process") || has("exec user process");
    match is_about_program {
        true if has("not found") || has("no such file") => EXIT_NOT_FOUND,
        true if has("permission denied")
            || has("not permitted")
            || has("exec format error")
            || has("is a directory") =>
        {
            EXIT_NOT_EXECUTABLE
        }
        true | false => EXIT_RUNTIME,
    }
}

/// Returns the exit code of an ended child: its own, or 128 + the signal.
pub(crate) fn code_of(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    let by_signal = || status.signal().map(|signal| signal.saturating_add(128));
    status.code().or_else(by_signal).unwrap_or(EXIT_RUNTIME)
}

fn wait_forwarding(child: &mut Child, signals: &Signals) -> io::Result<i32> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(code_of(status));
        }
        let mut fds: Vec<_> = signals.poll_fds().collect();
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        drop(fds);
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        for number in signals.take().into_iter().filter(|number| *number != signal_hook::consts::SIGCHLD) {
            if let (Some(pid), Some(signal)) = (pid, rustix::process::Signal::from_named_raw(number)) {
                // It may just have ended; then the next look finds that.
                kill_process(pid, signal).ok();
            }
        }
    }
}
