//! Arguments of `registry`.

use clap::{Args, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `registry`.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag on the command line")]
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// Directory of the registry: its record, and its blobs; made where it does not exist
    #[arg(long, value_name = "DIR")]
    pub storage: PathBuf,
    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    pub listen: SocketAddr,
    /// Keep blobs in an object store: s3://BUCKET or s3://BUCKET/PREFIX; the directory keeps the rest
    #[arg(long, value_name = "URL", requires = "s3_key_id", requires = "s3_secret")]
    pub s3: Option<String>,
    /// Address of the object store, where it is not that of the region
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the object store
    #[arg(long, value_name = "NAME", env = "AWS_REGION", default_value = "us-east-1")]
    pub s3_region: String,
    /// Name of the key to the object store
    #[arg(long, value_name = "ID", env = "AWS_ACCESS_KEY_ID", hide_env_values = true)]
    pub s3_key_id: Option<String>,
    /// Key to the object store; better given by the environment
    #[arg(long, value_name = "KEY", env = "AWS_SECRET_ACCESS_KEY", hide_env_values = true)]
    pub s3_secret: Option<String>,
    /// Certificate for TLS, as PEM; without one it speaks plain HTTP
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Address by which clients reach it, where a proxy stands in between
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// How clients log in
    #[arg(long, value_enum, default_value = "none")]
    pub auth: AuthArg,
    /// Names and passwords, as `htpasswd -B` writes them
    #[arg(long, value_name = "FILE")]
    pub htpasswd: Option<PathBuf>,
    /// Who may do what, as JSON; everybody who has logged in may do everything where none is given
    #[arg(long, value_name = "FILE", requires = "htpasswd")]
    pub policy: Option<PathBuf>,
    /// Most bytes in one repository, such as 20g
    #[arg(long, value_name = "BYTES")]
    pub quota: Option<String>,
    /// Let nobody change anything
    #[arg(long)]
    pub read_only: bool,
    /// Take images whose blobs are not all there
    #[arg(long)]
    pub allow_sparse: bool,
    /// Collect what nothing needs, this often; 0 never
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub gc_every: String,
    /// Keep what nothing needs this long after it was last asked for; at least 1m
    #[arg(long, value_name = "TIME", default_value = "24h")]
    pub gc_grace: String,
    /// Collect manifests too that no tag, index or subject keeps
    #[arg(long)]
    pub gc_untagged: bool,
    /// Collect blobs that the record does not know even where they are most of all
    #[arg(long)]
    pub gc_unknown: bool,
    /// Read every blob again in the background
    #[arg(long)]
    pub scrub: bool,
    /// Most bytes that the scrub reads in a second
    #[arg(long, value_name = "BYTES", default_value = "32m")]
    pub scrub_rate: String,
    /// Leave a blob alone this long after it was read
    #[arg(long, value_name = "TIME", default_value = "168h")]
    pub scrub_every: String,
    /// End connections that send or take nothing, or next to nothing, for this long while they should
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub patience: String,
    /// Most connections at once; more wait. Each needs two open files
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    pub connections: usize,
}

/// How clients log in to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuthArg {
    /// Not at all
    None,
    /// With name and password at each request
    Basic,
    /// With tokens, which the registry makes
    Token,
}
