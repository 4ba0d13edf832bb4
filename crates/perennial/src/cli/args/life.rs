//! Arguments of the commands that make, run, end and change containers.

use super::{PolicyArgs, SettingsArgs};
use clap::{Args, ValueEnum};
use perennial_core::container::StartMode;

/// Terminal and input.
#[derive(Debug, Args, Default, Clone, Copy)]
pub struct TerminalArgs {
    /// Keep standard input open
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the process a terminal
    #[arg(long, short)]
    pub tty: bool,
}

/// How a start gives the run its state, as typed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// Mount the generation's layers under an empty upper
    #[default]
    Mount,
    /// Copy the generation into the upper
    Unpack,
}

impl From<ModeArg> for StartMode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Mount => Self::Mount,
            ModeArg::Unpack => Self::Unpack,
        }
    }
}

/// `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the container
    pub name: String,
    /// Settings
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Terminal and input
    #[command(flatten)]
    pub terminal: TerminalArgs,
    /// Command in place of the image's
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of the container
    pub name: String,
    /// Settings of a new container
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Terminal and input
    #[command(flatten)]
    pub terminal: TerminalArgs,
    /// Return as soon as the process runs
    #[arg(long, short)]
    pub detach: bool,
    /// How the run gets its state
    #[arg(long, value_enum, default_value_t)]
    pub mode: ModeArg,
    /// Command for this run
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Name of the container
    pub name: String,
    /// Terminal and input
    #[command(flatten)]
    pub terminal: TerminalArgs,
    /// Return as soon as the process runs
    #[arg(long, short)]
    pub detach: bool,
    /// How the run gets its state
    #[arg(long, value_enum, default_value_t)]
    pub mode: ModeArg,
    /// Command for this run
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `stop`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Name of the container
    pub name: String,
    /// Seconds to wait before killing
    #[arg(long, short, value_name = "SECONDS")]
    pub time: Option<u32>,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Name of the container
    pub name: String,
    /// Terminal and input
    #[command(flatten)]
    pub terminal: TerminalArgs,
    /// Set an environment variable; NAME alone takes its value here, if it has one
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// User, as NAME, UID, NAME:GROUP or UID:GID
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Working directory inside
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Name of the container
    pub name: String,
    /// Go on printing what comes
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "LINES")]
    pub tail: Option<usize>,
    /// Put the time in front of every line
    #[arg(long, short)]
    pub timestamps: bool,
    /// Only lines since this instant (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Also those that do not run (the default lists all; kept for habit)
    #[arg(long, short)]
    pub all: bool,
    /// Only those that run
    #[arg(long)]
    pub running: bool,
}

/// `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Names of the containers
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Also when it runs: it is stopped first
    #[arg(long, short)]
    pub force: bool,
}

/// `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Name of the container
    pub name: String,
    /// What is kept and how
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// `__supervise`.
#[derive(Debug, Args)]
pub struct SuperviseArgs {
    /// Name of the container
    pub name: String,
    /// How the run gets its state
    #[arg(long, value_enum, default_value_t)]
    pub mode: ModeArg,
    /// Terminal and input
    #[command(flatten)]
    pub terminal: TerminalArgs,
    /// Descriptor of the first client's connection
    #[arg(long)]
    pub client_fd: Option<i32>,
    /// Descriptor to report the start on
    #[arg(long)]
    pub report_fd: Option<i32>,
    /// Command for this run
    #[arg(last = true)]
    pub command: Vec<String>,
}
