//! Arguments of the commands about single generations.

use clap::{Args, ValueEnum};
use perennial_registry::export::Compression;
use std::path::PathBuf;

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

/// `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Name of the container; it is made where there is none of that name
    pub name: String,
    /// Where from
    #[arg(help = "Where from: oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:REFERENCE]")]
    pub source: String,
    /// Image to put it on [default: the container's; for a new container, the one it was exported from]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
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
