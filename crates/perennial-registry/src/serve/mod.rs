//! A registry: a server of the OCI Distribution Specification 1.1.
//!
//! - `net`: connections; `app`: the way of one request; `blobs`, `uploads`, `manifests`, `lists`: what it may ask for.
//! - `auth`: who may do what.
//! - `meta`: the record of what is there; `storage`: where blobs are kept; `staging`: uploads that are not finished.
//! - `verdict`: whether a blob is sound; `condemn`: what becomes of it; `chores`: collection and scrub.
//! - `metrics`, [`log`]: what is told.
//!
//! What a request means and whether it is right is decided in `perennial_core::registry`. A push is committed by one
//! transaction of the record; everything before it is invisible, and everything after it can be repeated.

mod app;
mod auth;
mod blobs;
mod body;
mod chores;
mod condemn;
#[cfg(test)]
mod faulty;
mod hash;
mod lists;
pub mod log;
mod manifests;
mod memory;
mod meta;
mod metrics;
mod net;
mod reply;
mod staging;
mod storage;
mod trouble;
mod uploads;
mod verdict;

pub use auth::{Accounts, Scheme};
pub use chores::Scrub;
pub use storage::s3::S3;

use app::App;
use log::{Level, Log};
use perennial_core::format::{Format, decode, encode};
use perennial_core::registry::bounds::MANIFESTS_KIB;
use perennial_core::registry::claim::Guard;
use perennial_core::registry::collect::Grace;
use perennial_core::registry::name::UploadId;
use perennial_core::registry::quota::Quota;
use perennial_core::registry::share::Share;
use perennial_core::registry::upload::StorageRecord;
use perennial_core::time::Time;
use serde_json::json;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;
use storage::Claimed;
use tokio::sync::Semaphore;

/// Threads for what blocks that the runtime of a server needs. Those that wait for the store of blobs are fewer, so that
/// some are always left for the record.
pub const BLOCKING_THREADS: usize = 64;

/// Memory for chunks of blobs that are sent. Chunks of more than 256 KiB gain nothing, measured on the loopback device.
const SENDING: Share = Share { total: 16 << 20, least: 16 << 10, most: 256 << 10 };
/// Memory for what has come of uploads and is not written yet. Larger batches wake threads less often.
const RECEIVING: Share = Share { total: 16 << 20, least: 32 << 10, most: 512 << 10 };

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The certificate, with those between it and a known authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How a registry serves.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command, and none depends on another")]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The directory that holds everything.
    pub storage: PathBuf,
    /// The object store that keeps the blobs; the directory does where there is none.
    pub s3: Option<S3>,
    /// Its certificate; without one it speaks plain HTTP.
    pub tls: Option<Tls>,
    /// How clients reach it, where that is not what they send as `Host`.
    pub public_url: Option<String>,
    /// Who is let in; everybody where there are none.
    pub accounts: Option<Accounts>,
    /// Bound on each repository.
    pub quota: Quota,
    /// Whether nothing may be changed.
    pub is_read_only: bool,
    /// Whether an image may be pushed whose blobs are not all there.
    pub takes_sparse: bool,
    /// How long what nothing needs is kept, and an upload that nobody goes on with.
    pub grace: Grace,
    /// How often that is looked for.
    pub collect_every: Option<Duration>,
    /// Whether manifests without a tag count as not needed.
    pub collects_untagged: bool,
    /// Whether blobs that the record does not know are collected where they are most of all.
    pub collects_strays: bool,
    /// How everything is read again.
    pub scrub: Option<Scrub>,
    /// How long a client may send or take nothing while it should.
    pub patience: Duration,
    /// Most connections at once; more wait. Fewer where this process cannot open the files for so many.
    pub connections_max: usize,
    /// How long open connections are waited for at the end.
    pub grace_of_end: Duration,
    /// The clock.
    pub clock: fn() -> Time,
    /// Where lines go.
    pub log: Log,
}

/// Why a registry cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory cannot be used.
    #[error("cannot use {path} as a registry's directory")]
    Storage {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory is something else, or of a newer release.
    #[error("cannot use {path} as a registry's directory: {reason}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The object store cannot be used.
    #[error("cannot use the object store {place}")]
    Store {
        /// Where it is.
        place: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// Another registry uses the directory.
    #[error("another registry uses {path}")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The record cannot be opened.
    #[error("cannot open the record in {path}: {reason}")]
    Record {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error("cannot use the certificate or key in {path}: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Serves until `end` is over, then finishes what is under way. Calls `ready` with the address when clients may come.
///
/// # Errors
/// [`ServeError`] where it cannot begin.
pub async fn serve(
    mut options: Options,
    ready: impl FnOnce(SocketAddr),
    end: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (_in_use, record) = prepare(&options)?;
    options.connections_max = net::connections(options.connections_max, &options.log);
    let tls = options.tls.as_ref().map(net::acceptor).transpose()?;
    let app = Arc::new(open(options, record)?);
    claim(&app).await?;
    let address = app.options.listen;
    let unable = |source| ServeError::Listen { address, source };
    let listener = tokio::net::TcpListener::bind(address).await.map_err(unable)?;
    let address = listener.local_addr().map_err(unable)?;
    app.options.log.line(Level::Info, "listening", vec![("address", json!(address.to_string()))]);
    ready(address);
    let (sender, ending) = tokio::sync::watch::channel(false);
    let mut chores = tokio::task::JoinSet::new();
    if let Some(every) = app.options.collect_every {
        chores.spawn(chores::collect_always(Arc::clone(&app), every));
    }
    if let Some(scrub) = app.options.scrub.filter(|_| !app.options.is_read_only) {
        chores.spawn(chores::scrub_always(Arc::clone(&app), scrub));
    }
    let accepting = net::accept(&app, listener, tls, ending);
    let stop = async {
        end.await;
        app.options.log.line(Level::Info, "ending", Vec::new());
        sender.send(true).ok();
    };
    tokio::join!(accepting, stop);
    chores.shutdown().await;
    // A store that does not answer keeps nobody from ending.
    tokio::time::timeout(app.options.grace_of_end, app.scrubbing.lock()).await.ok();
    app.meta.close();
    app.options.log.line(Level::Info, "ended", Vec::new());
    Ok(())
}

/// Makes the store of blobs this registry's, where it is not another's.
async fn claim(app: &Arc<App>) -> Result<(), ServeError> {
    let (path, place) = (app.options.storage.clone(), app.identity.blobs.clone());
    let worker = Arc::clone(app);
    let claimed = app::blocking(move || {
        let is_new = worker.meta.totals()?.0 == 0;
        Ok(worker.claim(is_new))
    });
    match claimed.await {
        Ok(Ok(Claimed::Ours(Guard::Store))) => Ok(()),
        Ok(Ok(Claimed::Ours(Guard::Nobody))) => {
            // Each collection looks again.
            app.options.log.line(Level::Warning, "claim_unguarded", vec![("store", json!(place))]);
            Ok(())
        }
        Ok(Ok(Claimed::Refused(why))) => Err(ServeError::Foreign { path, reason: format!("{place}: {why}") }),
        Ok(Err(source)) => Err(ServeError::Store { place, source }),
        Err(trouble) => Err(ServeError::Record { path, reason: trouble.one_line() }),
    }
}

fn open(options: Options, identity: StorageRecord) -> Result<App, ServeError> {
    let path = options.storage.clone();
    let record = |trouble: trouble::Trouble| ServeError::Record { path: path.clone(), reason: trouble.one_line() };
    let unable = |source| ServeError::Storage { path: path.clone(), source };
    // Before anything is kept here, so that a record that is missing later is one that was lost.
    let is_empty = !["blobs", "uploads"].iter().any(|name| path.join(name).exists());
    let meta = meta::Meta::open(&path.join("registry.db"), identity.id.as_deref(), is_empty).map_err(record)?;
    let storage: Box<dyn storage::BlobStore> = match &options.s3 {
        None => Box::new(storage::directory::Directory::open(&path).map_err(unable)?),
        Some(s3) => {
            let bucket = storage::s3::Bucket::new(s3, &path, tokio::runtime::Handle::current());
            Box::new(bucket.map_err(unable)?)
        }
    };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(App {
        meta,
        staging: staging::Staging::open(path.join("uploads")).map_err(record)?,
        storage,
        verdicts: verdict::Verdicts::default(),
        metrics: metrics::Metrics::new(),
        auth: auth::Auth::new(options.accounts.clone()).map_err(record)?,
        streams: AtomicUsize::new(0),
        strays: AtomicUsize::new(0),
        is_anothers: AtomicBool::new(false),
        identity,
        scrubbing: Arc::default(),
        sending: memory::Memory::new(SENDING),
        receiving: memory::Memory::new(RECEIVING),
        processors,
        summing: Semaphore::new(processors.min(app::SUMS_MAX)),
        reads: Arc::new(Semaphore::new(app::READS_MAX)),
        publishes: Arc::new(Semaphore::new(app::PUBLISHES_MAX)),
        manifests: Arc::new(Semaphore::new(usize::try_from(MANIFESTS_KIB).unwrap_or(usize::MAX))),
        locks: App::free_locks(),
        options,
    })
}

/// Makes sure that the directory is a registry's and nobody else's; returns the lock on it, and what it is.
fn prepare(options: &Options) -> Result<(std::fs::File, StorageRecord), ServeError> {
    let path = &options.storage;
    let unable = |source| ServeError::Storage { path: path.clone(), source };
    let foreign = |reason: String| ServeError::Foreign { path: path.clone(), reason };
    std::fs::create_dir_all(path).map_err(unable)?;
    let lock = std::fs::File::open(path).map_err(unable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => return Err(ServeError::InUse { path: path.clone() }),
        Err(std::fs::TryLockError::Error(source)) => return Err(unable(source)),
    }
    let name = path.join("registry.json");
    let blobs = options.s3.as_ref().map_or_else(|| "directory".to_owned(), S3::place);
    let record = match std::fs::read(&name) {
        Ok(bytes) => {
            let record: StorageRecord = decode(Format::Registry, &bytes).map_err(|error| foreign(error.to_string()))?;
            if record.blobs != blobs {
                return Err(foreign(format!("its blobs are in {}, not in {blobs}", record.blobs)));
            }
            record
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let is_ours = |name: &str| name == ".registry.json.new" || name == "lost+found";
            let mut entries = std::fs::read_dir(path).map_err(unable)?;
            if entries.any(|entry| entry.is_ok_and(|entry| !entry.file_name().to_str().is_some_and(is_ours))) {
                return Err(foreign("it is not empty, and not a registry's".into()));
            }
            let record = StorageRecord { created_at: (options.clock)(), blobs, id: Some(new_id().map_err(unable)?) };
            write_whole(path, &encode(Format::Registry, &record)).map_err(unable)?;
            record
        }
        Err(error) => return Err(unable(error)),
    };
    Ok((lock, record))
}

fn new_id() -> std::io::Result<String> {
    let mut random = [0_u8; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(UploadId::from_random(random).as_str().to_owned())
}

fn write_whole(directory: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = directory.join(".registry.json.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(temporary, directory.join("registry.json"))?;
    storage::directory::sync_directory(directory)
}
