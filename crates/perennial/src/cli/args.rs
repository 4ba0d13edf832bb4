//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use perennial_core::container::StartMode;
use perennial_core::generations::SealPolicy;
use perennial_core::spec::Network;
use perennial_registry::export::Compression;
use std::path::PathBuf;

/// Where state is kept unless `--root` says otherwise.
pub const ROOT_DEFAULT: &str = "/var/lib/perennial";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 usage; 3 not found; 4 conflict; 5 host or privileges; 6 damaged; \
7 exit not saved yet; 125 not started; 126 command not executable; 127 command not found. \
`run`, `exec` and `attach` return the code of the process.";

/// Containers that die back when you leave, grow again with every change when you return, and cannot be lost.
#[derive(Debug, Parser)]
#[command(name = "perennial", version, after_help = EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    /// Directory that holds everything
    #[arg(long, global = true, env = "PERENNIAL_ROOT", default_value = ROOT_DEFAULT, value_name = "DIR")]
    pub root: PathBuf,
    /// Print results, and errors, as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Print how long the stages of a start or an exit took, as JSON lines on standard error
    #[arg(long, global = true)]
    pub timings: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a container without starting it
    Create(CreateArgs),
    /// Start a container, making it if it is new, and wait for its exit
    Run(RunArgs),
    /// Start a container from its current generation
    Start(StartArgs),
    /// Ask a running container to end, and wait until its exit is saved
    Stop(StopArgs),
    /// Run a command in a running container
    Exec(ExecArgs),
    /// Connect to the process of a running container (detach with ctrl-p ctrl-q)
    Attach(NameArg),
    /// Show what a container has printed
    Logs(LogsArgs),
    /// List containers
    Ps(PsArgs),
    /// Show everything about a container
    Inspect(NameArg),
    /// Remove a container with all its generations
    Rm(RmArgs),
    /// Change how many generations a container keeps
    Set(SetArgs),
    /// List a container's generations
    Generations(NameArg),
    /// Go back to an earlier generation; newer ones are kept, quarantined
    Rollback(RollbackArgs),
    /// Protect a generation from eviction
    Pin(GenerationArg),
    /// End the protection of a generation
    Unpin(GenerationArg),
    /// Mark a generation good, suspect or unknown
    Mark(MarkArgs),
    /// Make a new container from a generation of another
    Fork(ForkArgs),
    /// Put a container's state on another image, as a new generation
    Rebase(RebaseArgs),
    /// List what differs between two generations
    Diff(DiffArgs),
    /// Mount a generation read-only
    Browse(BrowseArgs),
    /// Copy a file or directory out of a generation
    Cp(CpArgs),
    /// Write a generation as an OCI image that any engine can run
    Export(ExportArgs),
    /// Bring a generation up in a shadow and see whether it works
    Drill(DrillArgs),
    /// Show who did what with a container
    Events(NameArg),
    /// Images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Check every invariant and the host's abilities, and say what to do
    Doctor(DoctorArgs),
    /// Let a generation go and free what only it showed
    Evict(EvictArgs),
    /// Compare layers and contents with what their names say, and mark what is damaged
    Verify(VerifyArgs),
    /// Read contents again for a while where the last scrub stopped
    Scrub(ScrubArgs),
    /// Seal layers now: keep each content once, checked by its name
    Seal(SealArgs),
    /// Pack what only older generations show: compressed together, thawed when it is used
    Pack(PackArgs),
    /// Recover what dead processes left and free what nothing needs
    Gc(DryRunArg),
    /// Show what takes space
    Df,
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write manual pages
    Man {
        /// Directory to write them to
        directory: PathBuf,
    },
    /// Supervise one run (started by `run` and `start`)
    #[command(name = "__supervise", hide = true)]
    Supervise(SuperviseArgs),
}

/// Image commands.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import an image from this machine
    #[command(about = "Import an image: oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE, or rootfs:DIR-or-TAR")]
    Import {
        /// Where from
        source: String,
        /// Name to give it
        name: String,
    },
    /// Pull an image from a registry
    Pull(PullArgs),
    /// List images
    Ls,
    /// Show everything about an image
    Inspect {
        /// Name or digest
        image: String,
    },
    /// Remove an image's name, and the image when nothing needs it any more
    Rm {
        /// Name or digest
        image: String,
    },
}

/// `image pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Reference, such as registry.example/name:tag
    pub reference: String,
    /// Name to give it; the reference where absent
    pub name: Option<String>,
    /// User and password for the registry
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
    /// Speak HTTP without TLS
    #[arg(long)]
    pub plain_http: bool,
    /// Platform to choose, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
}

/// A container.
#[derive(Debug, Args)]
pub struct NameArg {
    /// Name of the container
    pub name: String,
}

/// A container and one of its generations.
#[derive(Debug, Args)]
pub struct GenerationArg {
    /// Container and generation, as NAME@SEQ
    #[arg(value_name = "NAME@SEQ")]
    pub generation: String,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Make a lost or damaged records.db again from the layers
    #[arg(long)]
    pub rebuild: bool,
    /// With --rebuild: print what would be made, and change nothing
    #[arg(long, requires = "rebuild")]
    pub dry_run: bool,
}

/// `--dry-run`.
#[derive(Debug, Args)]
pub struct DryRunArg {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

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

/// `seal`.
#[derive(Debug, Args)]
pub struct SealArgs {
    /// Name of the container; all containers and images where neither it nor an image is given
    pub name: Option<String>,
    /// Only an image: a name or a digest
    #[arg(long, value_name = "IMAGE", conflicts_with = "name")]
    pub image: Option<String>,
}

/// `pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// Name of the container; all containers where it is not given
    pub name: Option<String>,
    /// How many of the newest generations stay hot; 0 packs all of containers that do not run [default: as set for the
    /// container, else 2]
    #[arg(long, value_name = "NUMBER")]
    pub hot: Option<u32>,
}

/// Settings of a container.
#[derive(Debug, Args, Default)]
pub struct SettingsArgs {
    /// Image to build on: a name or a digest
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
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
    /// Host name inside
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
    /// Command that tells whether the container is healthy
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
    /// Set an environment variable
    #[arg(long, short, value_name = "NAME=VALUE")]
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

/// Which generation.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct TargetArgs {
    /// Generation by its number
    #[arg(long, value_name = "SEQ")]
    pub to: Option<String>,
    /// The state as of this instant (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// The newest good generation
    #[arg(long)]
    pub latest_good: bool,
    /// Take the last rollback back
    #[arg(long)]
    pub undo: bool,
}

/// `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Name of the container
    pub name: String,
    /// Where to
    #[command(flatten)]
    pub target: TargetArgs,
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Leave a container that was running stopped
    #[arg(long)]
    pub no_start: bool,
}

/// `evict`.
#[derive(Debug, Args)]
pub struct EvictArgs {
    /// Container and generation, as NAME@SEQ
    #[arg(value_name = "NAME@SEQ")]
    pub generation: String,
    /// Print what would be freed, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Container, or generation as NAME@SEQ; everything where none is given
    #[arg(value_name = "NAME[@SEQ]")]
    pub generation: Option<String>,
    /// Read every content again; without it only lengths are compared
    #[arg(long)]
    pub full: bool,
    /// Most bytes to read in a second, such as 50M
    #[arg(long, value_name = "BYTES", requires = "full")]
    pub rate: Option<String>,
}

/// `scrub`.
#[derive(Debug, Args)]
pub struct ScrubArgs {
    /// Most bytes to read in a second, such as 50M
    #[arg(long, value_name = "BYTES", default_value = "64M")]
    pub rate: String,
    /// Seconds after which to stop; to the end where none are given
    #[arg(long = "for", value_name = "SECONDS")]
    pub seconds: Option<u64>,
}

/// `drill`.
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// Container, or generation as NAME@SEQ; the current one where no number is given
    #[arg(value_name = "NAME[@SEQ]")]
    pub generation: String,
    /// Seconds after which it counts as failed
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Command that ends with code 0 where all is well; without one the health check decides
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `mark`.
#[derive(Debug, Args)]
pub struct MarkArgs {
    /// Container and generation, as NAME@SEQ
    #[arg(value_name = "NAME@SEQ")]
    pub generation: String,
    /// What is known about it
    #[arg(value_enum)]
    pub health: HealthArg,
}

/// Health, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HealthArg {
    /// It works
    Good,
    /// Nothing is known
    Unknown,
    /// Something is wrong with it
    Suspect,
}

/// `fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// Container to fork, or NAME@SEQ
    #[arg(value_name = "NAME[@SEQ]")]
    pub source: String,
    /// Name of the new container
    pub name: String,
}

/// `rebase`.
#[derive(Debug, Args)]
pub struct RebaseArgs {
    /// Name of the container
    pub name: String,
    /// Image to put it on
    #[arg(long, value_name = "IMAGE")]
    pub image: String,
    /// Print what would conflict, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Container, or NAME@SEQ; without a second one, against the generation it was made from
    #[arg(value_name = "NAME[@SEQ]")]
    pub generation: String,
    /// Number of the generation to compare with, or `image` for the image below it
    #[arg(value_name = "SEQ")]
    pub other: Option<String>,
}

/// `browse`.
#[derive(Debug, Args)]
#[command(override_usage = "perennial browse NAME[@SEQ] DIR\n       perennial browse --unmount DIR")]
pub struct BrowseArgs {
    /// Container, or NAME@SEQ
    #[arg(value_name = "NAME[@SEQ]", required_unless_present = "unmount")]
    pub generation: Option<String>,
    /// Empty directory to mount it on
    #[arg(value_name = "DIR", required_unless_present = "unmount")]
    pub directory: Option<PathBuf>,
    /// Unmount the view that is mounted there
    #[arg(long, value_name = "DIR", conflicts_with_all = ["generation", "directory"])]
    pub unmount: Option<PathBuf>,
}

/// `cp`.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// What to copy
    #[arg(help = "What to copy, as NAME[@SEQ]:PATH", value_name = "NAME[@SEQ]:PATH")]
    pub source: String,
    /// Where to
    pub target: PathBuf,
}

/// `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Container, or NAME@SEQ; the current generation where no number is given
    #[arg(value_name = "NAME[@SEQ]")]
    pub generation: String,
    /// Where to
    #[arg(help = "Where to: oci:DIR[:TAG] or oci-archive:FILE[:TAG]", required_unless_present = "oci")]
    pub destination: Option<String>,
    /// Write to this directory, as oci:DIR
    #[arg(long, value_name = "DIR", conflicts_with = "destination")]
    pub oci: Option<PathBuf>,
    /// Write all layers as one, over nothing
    #[arg(long)]
    pub flatten: bool,
    /// How layers are packed
    #[arg(long, value_enum, default_value_t)]
    pub compress: CompressArg,
}

/// `--compress`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CompressArg {
    /// Fast and small
    #[default]
    Zstd,
    /// For engines that know nothing else
    Gzip,
    /// Not packed
    None,
}

impl From<CompressArg> for Compression {
    fn from(arg: CompressArg) -> Self {
        match arg {
            CompressArg::Zstd => Self::Zstd,
            CompressArg::Gzip => Self::Gzip,
            CompressArg::None => Self::None,
        }
    }
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
