//! Arguments of the commands that send and fetch containers and images.

use clap::{Args, Subcommand};
use std::path::PathBuf;

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
    /// Leave out keys that can read what is there and that the remote does not name (`remote set`)
    #[arg(long)]
    pub drop_recipients: bool,
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
    /// Only the generation to start from, with all layers below it; a later pull brings the others
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
    /// Where to, such as registry.example/name:tag; it is not encrypted, so that any engine can pull it
    pub reference: String,
    /// Speak HTTP without TLS
    #[arg(long)]
    pub plain_http: bool,
    /// Login
    #[command(flatten)]
    pub login: LoginArgs,
}

/// Keys of a remote.
#[derive(Debug, Args, Default, Clone)]
pub struct KeyArgs {
    /// Encrypt everything that is sent there, images too, so that only holders of a key can read it
    ///
    /// With age (X25519), for the key of --identity and those of --recipient. Whoever keeps the registry still sees names
    /// of containers, sizes, numbers and times, and can withhold things. Without a key nothing there can be read again.
    #[arg(long)]
    pub encrypt: bool,
    /// File with our secret key, as `age-keygen` writes it [default: keys/NAME.txt in the root, made where it is missing]
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Key of another who can read it, too; `none` for nobody else. May be given several times
    #[arg(long, value_name = "age1…|none")]
    pub recipient: Vec<String>,
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
        /// Keys
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// Change the keys of a remote; what was encrypted stays so
    Set {
        /// Its name
        name: String,
        /// Keys
        #[command(flatten)]
        keys: KeyArgs,
    },
    /// List remotes
    Ls,
    /// Forget a remote; what is in the registry stays
    Rm {
        /// Its name
        name: String,
    },
}
