//! Settings of containers, as typed.

use clap::{Args, ValueEnum};
use perennial_core::generations::SealPolicy;
use perennial_core::spec::Network;

/// Policy of a container.
#[derive(Debug, Args, Default)]
pub struct PolicyArgs {
    /// How many generations to keep [default of a new container: 5]
    #[arg(long, value_name = "NUMBER")]
    pub keep: Option<u32>,
    /// How many bytes the generations may take, such as 10g; `none` for no bound
    #[arg(long, value_name = "BYTES")]
    pub keep_bytes: Option<String>,
    /// How long a run must stay up for its state to count as good [default of a new container: 60s]
    #[arg(long, value_name = "TIME")]
    pub good_after: Option<String>,
    /// When its layers are sealed: after each exit in the background, or only by `perennial seal` [default: auto]
    #[arg(long, value_enum)]
    pub seal: Option<SealArg>,
    /// How many of the newest generations stay hot while older ones are packed after each exit; `all` to pack nothing
    /// unasked [default: all]
    #[arg(long, value_name = "NUMBER|all")]
    pub hot: Option<String>,
    /// Remote it is sent to after each exit, in the background; `none` to send nothing unasked [default: none]
    #[arg(long, value_name = "REMOTE|none")]
    pub push: Option<String>,
}

/// `--seal`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SealArg {
    /// After each exit, in the background, where the host can
    Auto,
    /// Only by `perennial seal`
    Never,
}

impl From<SealArg> for SealPolicy {
    fn from(arg: SealArg) -> Self {
        match arg {
            SealArg::Auto => Self::Auto,
            SealArg::Never => Self::Never,
        }
    }
}

/// Settings of a container.
#[derive(Debug, Args, Default)]
pub struct SettingsArgs {
    /// Image to build on: a name or a digest
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Set an environment variable; NAME alone takes its value here, if it has one
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// User, as NAME, UID, NAME:GROUP or UID:GID
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Working directory inside
    #[arg(long, short, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Show a host path inside; it is not part of the generations
    #[arg(long, short, value_name = "HOST:INSIDE[:ro]")]
    pub volume: Vec<String>,
    /// Host name inside, 1 to 64 letters, digits, '-', '_' and '.' [default: the container's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Bound on memory, such as 512m
    #[arg(long, short, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Bound on processors, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,
    /// Bound on processes
    #[arg(long, value_name = "NUMBER")]
    pub pids_limit: Option<u64>,
    /// Network the container sees [default: host]
    #[arg(long, value_enum)]
    pub network: Option<NetworkArg>,
    /// Add a capability
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// Run a small init as process 1
    #[arg(long)]
    pub init: bool,
    /// Command that tells whether the container is healthy, in place of the image's; `none` to check nothing
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Time between health checks
    #[arg(long, value_name = "TIME", default_value = "30s", requires = "health_cmd")]
    pub health_interval: String,
    /// Time a health check may take
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "health_cmd")]
    pub health_timeout: String,
    /// Failures in a row that mean unhealthy
    #[arg(long, value_name = "NUMBER", default_value_t = 3, requires = "health_cmd")]
    pub health_retries: u32,
    /// Time after the start in which failures do not count
    #[arg(long, value_name = "TIME", default_value = "0s", requires = "health_cmd")]
    pub health_start_period: String,
    /// What is kept and how
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// OCI runtime, by name or path [default: runc]
    #[arg(long, value_name = "PROGRAM")]
    pub runtime: Option<String>,
    /// Program to run in place of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Signal that asks the process to end
    #[arg(long, value_name = "SIGNAL")]
    pub stop_signal: Option<String>,
    /// Seconds between that signal and the kill [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub stop_timeout: Option<u32>,
}

/// Networks, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NetworkArg {
    /// The host's own
    Host,
    /// Only loopback
    None,
    /// A bridge of the host
    Bridge,
}

impl From<NetworkArg> for Network {
    fn from(network: NetworkArg) -> Self {
        match network {
            NetworkArg::Host => Self::Host,
            NetworkArg::None => Self::None,
            NetworkArg::Bridge => Self::Bridge,
        }
    }
}
