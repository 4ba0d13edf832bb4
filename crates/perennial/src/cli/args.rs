//! The command line: the commands; their arguments by what they are about.

mod generations;
mod life;
mod registry;
mod settings;
mod store;
mod travel;

pub use generations::*;
pub use life::*;
pub use registry::*;
pub use settings::*;
pub use store::*;
pub use travel::*;

use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};

/// Where state is kept unless `--root` says otherwise.
pub const ROOT_DEFAULT: &str = "/var/lib/perennial";

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 usage; 3 not found; 4 conflict; 5 host or privileges; 6 damaged; \
7 exit not saved yet; 125 not started; 126 command not executable; 127 command not found. \
`run`, `exec` and `attach` return the code of the process.";

/// Containers that die back when you leave, grow again with every change when you return, and cannot be lost.
#[derive(Debug, Parser)]
#[command(name = "perennial", version, after_help = EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    /// Directory that holds everything [default: /var/lib/perennial]
    #[arg(long, global = true, env = "PERENNIAL_ROOT", value_name = "DIR")]
    pub root: Option<PathBuf>,
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

impl Cli {
    /// Returns where everything is held.
    pub fn root_path(&self) -> &Path {
        self.root.as_deref().unwrap_or(Path::new(ROOT_DEFAULT))
    }
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
    /// Read an image that was exported, or built on one, as a generation of a container
    Import(ImportArgs),
    /// Send a container's generations to a registry
    Push(PushArgs),
    /// Fetch a container with its generations from a registry
    Pull(FetchArgs),
    /// Places in registries to send containers to
    #[command(subcommand)]
    Remote(RemoteCommand),
    /// Bring a generation up in a shadow and see whether it works
    Drill(DrillArgs),
    /// Show who did what with a container
    Events(NameArg),
    /// Images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Serve images and generations to every container client
    Registry(RegistryArgs),
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
    Gc(GcArgs),
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
    /// Send what is sent by itself (started after an exit, and by `ps`, `gc` and `doctor`)
    #[command(name = "__send", hide = true)]
    Send(NameArg),
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
    /// Send an image to a registry, as any engine can pull it
    Push(ImagePushArgs),
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
