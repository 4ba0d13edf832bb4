//! Arguments of the commands that send and fetch containers and images.

use clap::{Args, Subcommand};

/// The login for a registry.
#[derive(Debug, Args, Default, Clone)]
pub struct LoginArgs {
    /// User and password for the registry; without them, the login that podman or docker have stored
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
}

/// `push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Container, or NAME@SEQ to send nothing newer
    #[arg(value_name = "NAME[@SEQ]")]
    pub generation: String,
    /// Name of the remote; the only one where it is not given
    pub remote: Option<String>,
    /// Name it gets there
    #[arg(long = "as", value_name = "NAME")]
    pub other_name: Option<String>,
    /// Send everything again, because something there is damaged; what is only there goes
    #[arg(long)]
    pub whole: bool,
    /// Login
    #[command(flatten)]
    pub login: LoginArgs,
}

/// `pull`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// Container, or REMOTE/NAME where there are several remotes
    #[arg(value_name = "[REMOTE/]NAME")]
    pub name: String,
    /// Name it gets here
    #[arg(value_name = "AS")]
    pub other_name: Option<String>,
    /// Only the generation to start from; a later pull brings the others
    #[arg(long)]
    pub current: bool,
    /// Take settings that reach into this host, too: volumes, added capabilities, the runtime
    #[arg(long)]
    pub trust_settings: bool,
    /// Login
    #[command(flatten)]
    pub login: LoginArgs,
}

/// `image push`.
#[derive(Debug, Args)]
pub struct ImagePushArgs {
    /// Name or digest of the image
    pub image: String,
    /// Where to, such as registry.example/name:tag
    pub reference: String,
    /// Speak HTTP without TLS
    #[arg(long)]
    pub plain_http: bool,
    /// Login
    #[command(flatten)]
    pub login: LoginArgs,
}

/// `remote`.
#[derive(Debug, Subcommand)]
pub enum RemoteCommand {
    /// Add a place in a registry to send containers to
    Add {
        /// Name for it
        name: String,
        /// Registry, and path below which repositories are, as `HOST[:PORT][/PATH]`
        address: String,
        /// Speak HTTP without TLS
        #[arg(long)]
        plain_http: bool,
    },
    /// List remotes
    Ls,
    /// Forget a remote; what is in the registry stays
    Rm {
        /// Its name
        name: String,
    },
}
