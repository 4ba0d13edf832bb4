//! The process a run starts: the image configuration with the settings of the container on top (row A7).
//!
//! Rules follow podman: the container's entrypoint hides the image's `Cmd`, the container's command replaces it,
//! environment is layered (defaults, image, container), the working directory and the user come from the container,
//! else the image, else `/` and root. Names of users are looked up by the caller in the container's own files:
//! [`user_of`] says what to look up, and the answer comes in as [`ProcessFacts::user`].

mod capability;
mod hostname;
mod program;
mod quantity;
mod signal;
mod user;

pub use capability::{Capability, ParseCapabilityError, bounded, capabilities, parse_bounding};
pub use hostname::{HOSTNAME_BYTES_MAX, ParseHostnameError, hostname_of, parse_hostname};
pub use program::{ExecFacts, ExecRefusal, Found, HEAD_BYTES, Tree, judge};
pub use quantity::{
    ParseQuantityError, parse_bytes, parse_cpus_milli, parse_duration_s, parse_memory_bytes, parse_volume,
};
pub use signal::{ParseSignalError, Signal};
pub use user::{GroupRef, ParseUserError, ResolvedUser, UserRef, UserSpec};

use crate::image::ImageConfig;
use crate::spec::{ContainerSpec, HealthCheck, STOP_TIMEOUT_S_DEFAULT};
use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Where commands are looked for when neither image nor container say so; the engines' common default.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process to run in a container, complete: nothing is left to look up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments, never empty.
    pub args: Vec<String>,
    /// `NAME=value`, each name once, sorted by name.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// Numbers of user and groups.
    pub user: ResolvedUser,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether its standard input is kept open.
    pub interactive: bool,
    /// The signal that asks it to end.
    pub stop_signal: Signal,
    /// Seconds until it is killed after that signal.
    pub stop_timeout_s: u32,
    /// Capabilities it may have, sorted.
    pub capabilities: Vec<Capability>,
    /// Those of them the owner added by name: a user other than root gets only these from the start.
    pub capabilities_added: Vec<Capability>,
}

/// What has to be known beyond settings and image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessFacts {
    /// The user that [`user_of`] named, as the container's files have it.
    pub user: ResolvedUser,
    /// Host name inside the container.
    pub hostname: String,
}

/// Why a process cannot be made out of settings and image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// Neither settings nor image name a program.
    #[error("no command to run: the image has none, so give one after `--`")]
    NoCommand,
    /// The program's name is empty.
    #[error("command to run is an empty text")]
    EmptyProgram,
    /// A text with a NUL byte cannot be handed to a process.
    #[error("{what} contains a NUL byte")]
    NulByte {
        /// Which text.
        what: &'static str,
    },
    /// The working directory is not absolute.
    #[error("working directory {path:?} is not absolute: it must begin with '/'")]
    RelativeWorkdir {
        /// The path as given.
        path: String,
    },
    /// An environment setting without a name or without `=`.
    #[error("environment setting {text:?} is not NAME=value")]
    Env {
        /// The text as given.
        text: String,
    },
    /// The stop signal is not known.
    #[error("stop signal")]
    StopSignal(#[from] ParseSignalError),
    /// The user cannot be parsed.
    #[error("user")]
    User(#[from] ParseUserError),
    /// A capability cannot be parsed, or is both added and dropped.
    #[error("capabilities")]
    Capability(#[from] ParseCapabilityError),
}

/// Returns the user the process runs as, still by name: the container's, else the image's, else root.
///
/// # Errors
/// If the text is not `user`, `uid`, `user:group` or a mix of them.
pub fn user_of(spec: &ContainerSpec, image: &ImageConfig) -> Result<UserSpec, ParseUserError> {
    match spec.user.as_deref().or(image.user.as_deref()) {
        None | Some("") => Ok(UserSpec::root()),
        Some(text) => text.parse(),
    }
}

/// Combines settings, image and facts into the process of a run. `command` replaces the settings' command for this run.
///
/// # Errors
/// If no program is named or a setting is malformed; nothing is guessed.
pub fn resolve(
    spec: &ContainerSpec,
    image: &ImageConfig,
    command: Option<&[String]>,
    facts: &ProcessFacts,
) -> Result<Process, ProcessError> {
    let args = args_of(spec, image, command)?;
    let env = env_of(spec, image, facts)?;
    let cwd = workdir_of(spec, image)?;
    let stop_signal = match spec.stop_signal.as_deref().or(image.stop_signal.as_deref()) {
        None | Some("") => Signal::TERM,
        Some(text) => text.parse()?,
    };
    let (capabilities, capabilities_added) = capabilities(&spec.cap_add, &spec.cap_drop)?;
    Ok(Process {
        args,
        env,
        cwd,
        user: facts.user.clone(),
        tty: spec.tty,
        interactive: spec.interactive,
        stop_signal,
        stop_timeout_s: spec.stop_timeout_s.unwrap_or(STOP_TIMEOUT_S_DEFAULT),
        capabilities,
        capabilities_added,
    })
}

/// What `exec` changes against the container's own process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSettings {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `NAME=value` pairs on top of the container's.
    pub env: Vec<String>,
    /// Working directory; the container's where absent.
    pub workdir: Option<String>,
    /// The user; the container's where absent.
    pub user: Option<ResolvedUser>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether its standard input is kept open.
    pub interactive: bool,
}

/// Returns the process that `exec` starts beside `base`, the container's own.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_exec(base: &Process, settings: &ExecSettings) -> Result<Process, ProcessError> {
    let args = checked_args(settings.command.clone())?;
    let mut env = Env::default();
    for text in &base.env {
        env.set_text(text)?;
    }
    if settings.tty {
        env.set_absent("TERM", "xterm");
    }
    let user = settings.user.clone().unwrap_or_else(|| base.user.clone());
    if settings.user.is_some() {
        env.set("HOME", user.home.as_deref().unwrap_or("/"));
    }
    for text in &settings.env {
        env.set_text(text)?;
    }
    let cwd = match &settings.workdir {
        Some(path) => checked_workdir(path)?,
        None => base.cwd.clone(),
    };
    Ok(Process {
        args,
        env: env.into_texts(),
        cwd,
        user,
        tty: settings.tty,
        interactive: settings.interactive,
        ..base.clone()
    })
}

/// Returns the process of a health check: beside `base`, the container's own, without terminal and input. A command of
/// a single element goes to the shell.
///
/// # Errors
/// If the command is empty.
pub fn resolve_health(base: &Process, check: &HealthCheck) -> Result<Process, ProcessError> {
    let command = match check.command.as_slice() {
        [line] => ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
        args => args.to_vec(),
    };
    resolve_exec(base, &ExecSettings { command, ..ExecSettings::default() })
}

fn args_of(spec: &ContainerSpec, image: &ImageConfig, command: Option<&[String]>) -> Result<Vec<String>, ProcessError> {
    let own_command = match command {
        Some(command) if !command.is_empty() => Some(command),
        Some(_) | None if !spec.command.is_empty() => Some(spec.command.as_slice()),
        Some(_) | None => None,
    };
    let entrypoint = spec.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    let tail = match own_command {
        Some(command) => command,
        None if spec.entrypoint.is_some() => &[],
        None => image.cmd.as_slice(),
    };
    checked_args(entrypoint.iter().chain(tail).cloned().collect())
}

fn checked_args(args: Vec<String>) -> Result<Vec<String>, ProcessError> {
    match args.first() {
        None => Err(ProcessError::NoCommand),
        Some(program) if program.is_empty() => Err(ProcessError::EmptyProgram),
        Some(_) if args.iter().any(|arg| arg.contains('\0')) => Err(ProcessError::NulByte { what: "command" }),
        Some(_) => Ok(args),
    }
}

fn workdir_of(spec: &ContainerSpec, image: &ImageConfig) -> Result<String, ProcessError> {
    match spec.workdir.as_deref().or(image.workdir.as_deref()) {
        None | Some("") => Ok("/".to_owned()),
        Some(path) => checked_workdir(path),
    }
}

fn checked_workdir(path: &str) -> Result<String, ProcessError> {
    if !path.starts_with('/') {
        return Err(ProcessError::RelativeWorkdir { path: path.to_owned() });
    }
    if path.contains('\0') {
        return Err(ProcessError::NulByte { what: "working directory" });
    }
    Ok(path.to_owned())
}

/// Returns environment settings as typed with the values of the caller, as podman does it: `NAME` alone takes the value
/// that `caller` has for it, and is left out where there is none.
///
/// # Errors
/// If one has no name or a NUL byte.
pub fn env_from(typed: &[String], caller: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, ProcessError> {
    let mut env = Vec::with_capacity(typed.len());
    for text in typed {
        if text.is_empty() || text.starts_with('=') {
            return Err(ProcessError::Env { text: text.clone() });
        }
        if text.contains('\0') {
            return Err(ProcessError::NulByte { what: "environment" });
        }
        match text.contains('=') {
            true => env.push(text.clone()),
            false => env.extend(caller(text).map(|value| format!("{text}={value}"))),
        }
    }
    Ok(env)
}

fn env_of(spec: &ContainerSpec, image: &ImageConfig, facts: &ProcessFacts) -> Result<Vec<String>, ProcessError> {
    let mut env = Env::default();
    env.set("PATH", PATH_DEFAULT);
    env.set("container", "perennial");
    env.set("HOSTNAME", &facts.hostname);
    env.set("HOME", facts.user.home.as_deref().unwrap_or("/"));
    if spec.tty {
        env.set("TERM", "xterm");
    }
    for text in &image.env {
        // Images in the wild have bare names; engines take them as set to nothing.
        match text.contains('=') {
            true => env.set_text(text)?,
            false => env.set_text(&format!("{text}="))?,
        }
    }
    for text in &spec.env {
        env.set_text(text)?;
    }
    Ok(env.into_texts())
}

/// Environment by name; a map would do, but the names are few and the order of a sorted list is the output's.
#[derive(Default)]
struct Env(alloc::collections::BTreeMap<String, String>);

impl Env {
    fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_string(), value.to_string());
    }

    fn set_absent(&mut self, name: &str, value: &str) {
        self.0.entry(name.to_string()).or_insert_with(|| value.to_string());
    }

    fn set_text(&mut self, text: &str) -> Result<(), ProcessError> {
        if text.contains('\0') {
            return Err(ProcessError::NulByte { what: "environment" });
        }
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                self.set(name, value);
                Ok(())
            }
            Some(_) | None => Err(ProcessError::Env { text: text.to_owned() }),
        }
    }

    fn into_texts(self) -> Vec<String> {
        self.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}
