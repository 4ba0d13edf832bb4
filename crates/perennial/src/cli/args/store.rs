//! Arguments of the commands about the root and what is kept in it.

use clap::Args;

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

/// `gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Free also the layers that `doctor --rebuild` has found nobody for
    #[arg(long)]
    pub held: bool,
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
