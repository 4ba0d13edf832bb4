//! What all requests share, and the way of one request through it.

use super::auth::{Auth, Rights};
use super::log::Level;
use super::memory::Memory;
use super::meta::Meta;
use super::metrics::Metrics;
use super::reply::{self, Reply};
use super::staging::Staging;
use super::storage::{BlobStore, Claimed};
use super::trouble::Trouble;
use super::verdict::Verdicts;
use super::{Options, blobs, lists, manifests, uploads};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_RANGE, EXPECT, HeaderName};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use perennial_core::registry::access::needed;
use perennial_core::registry::bounds::manifest_kib;
use perennial_core::registry::claim::Guard;
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::name::{BlobDigest, Repository};
use perennial_core::registry::query::Query;
use perennial_core::registry::route::Route;
use perennial_core::registry::upload::StorageRecord;
use perennial_core::time::Time;
use serde_json::json;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// Locks for digests: enough that two uploads seldom share one.
const LOCKS: usize = 64;
/// Threads that read blobs at once. More would wait for the same disk.
pub(crate) const READS_MAX: usize = 24;
/// Blobs that are published at once.
pub(crate) const PUBLISHES_MAX: usize = 16;
/// Blobs that are summed at once, where there are so many processors.
pub(crate) const SUMS_MAX: usize = 8;
/// How many times its patience a request waits for its turn at the store.
const TURN_PATIENCES: u32 = 5;
/// Most bytes of a body that nobody wants that are read, so that the client reads the answer.
const DRAIN_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The registry.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) options: Options,
    pub(crate) meta: Meta,
    pub(crate) storage: Box<dyn BlobStore>,
    pub(crate) staging: Staging,
    pub(crate) verdicts: Verdicts,
    pub(crate) metrics: Metrics,
    pub(crate) auth: Auth,
    /// Blobs that are being sent.
    pub(crate) streams: AtomicUsize,
    /// Blobs that the record does not know, where they are so many that nothing is collected.
    pub(crate) strays: AtomicUsize,
    /// Whether another registry has taken the store of blobs, so that nothing is collected.
    pub(crate) is_anothers: AtomicBool,
    /// What this registry is.
    pub(crate) identity: StorageRecord,
    /// Held by the thread that scrubs.
    pub(crate) scrubbing: Arc<Mutex<()>>,
    /// Processors of this machine.
    pub(crate) processors: usize,
    /// Memory for chunks of blobs that are sent.
    pub(crate) sending: Arc<Memory>,
    /// Memory for chunks of uploads.
    pub(crate) receiving: Arc<Memory>,
    /// How many blobs may be summed at once.
    pub(crate) summing: Semaphore,
    /// How many threads may read blobs at once.
    pub(crate) reads: Arc<Semaphore>,
    /// How many blobs may be published at once.
    pub(crate) publishes: Arc<Semaphore>,
    /// KiB of manifests that may come at once.
    pub(crate) manifests: Arc<Semaphore>,
    pub(crate) locks: [Arc<Mutex<()>>; LOCKS],
}

/// One request, without its body.
#[derive(Debug)]
pub(crate) struct Call {
    /// Its method, path and headers.
    pub(crate) parts: Parts,
    /// Where it came from; a proxy's address where one stands in between.
    pub(crate) from: IpAddr,
    /// Its parameters.
    pub(crate) query: Query,
    /// What it may do.
    pub(crate) rights: Rights,
}

impl Call {
    /// Returns a header that is text.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Returns a header that is a list: all lines of it, also those that are no text and so name nothing.
    pub(crate) fn list(&self, name: &HeaderName) -> Option<String> {
        let lines: Vec<_> =
            self.parts.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        (!lines.is_empty()).then(|| lines.join(","))
    }

    /// Returns the announced place of a chunk. One that is no text, or another beside it, is not taken for none.
    pub(crate) fn chunk_range(&self) -> Result<Option<&str>, Fault> {
        let mut lines = self.parts.headers.get_all(&CONTENT_RANGE).iter();
        let invalid = || Fault::new(Code::BlobUploadInvalid, "Content-Range is not FIRST-LAST");
        let range = lines.next().map(|value| value.to_str().map_err(|_| invalid())).transpose()?;
        if lines.next().is_some() { Err(invalid()) } else { Ok(range) }
    }

    /// Returns the announced length of the body.
    pub(crate) fn length(&self) -> Result<Option<u64>, Fault> {
        let text = self.header(&hyper::header::CONTENT_LENGTH);
        let invalid = |_| Fault::new(Code::SizeInvalid, "Content-Length is no number");
        text.map(|text| text.trim().parse().map_err(invalid)).transpose()
    }
}

impl App {
    /// Returns the present time.
    pub(crate) fn now(&self) -> Time {
        (self.options.clock)()
    }

    /// Makes the store of blobs this registry's; directories of before have no name, and lay no claim.
    pub(crate) fn claim(&self, is_new: bool) -> io::Result<Claimed> {
        if self.identity.id.is_none() {
            return Ok(Claimed::Ours(Guard::Store));
        }
        self.storage.claim(&self.identity, is_new)
    }

    /// Makes a set of locks, all free.
    pub(crate) fn free_locks() -> [Arc<Mutex<()>>; LOCKS] {
        std::array::from_fn(|_| Arc::default())
    }

    fn lock_of(&self, digest: &BlobDigest) -> &Arc<Mutex<()>> {
        let number = digest.hex().get(..4).and_then(|hex| usize::from_str_radix(hex, 16).ok()).unwrap_or(0);
        self.locks.get(number % LOCKS).expect("a remainder is less than its divisor")
    }

    /// Locks a digest against the collection of its bytes, on a thread that may block.
    pub(crate) fn lock_digest(&self, digest: &BlobDigest) -> MutexGuard<'_, ()> {
        self.lock_of(digest).blocking_lock()
    }

    /// Waits for the right to publish a blob, with no thread: its digest is locked, and it is one of a few.
    pub(crate) async fn publishing(&self, digest: &BlobDigest) -> Result<Publishing, Trouble> {
        // The lock first: who reads may wait for it too, so nobody may wait for a reader while holding it.
        let guard = self.turn(Arc::clone(self.lock_of(digest)).lock_owned()).await?;
        let permit = self.turn(Arc::clone(&self.publishes).acquire_owned()).await?;
        Ok(Publishing { _guard: guard, _permit: permit.map_err(|_| Trouble::Ending)? })
    }

    /// Waits for the right to take a manifest of this length into memory.
    pub(crate) async fn taking_manifest(&self, announced: Option<u64>) -> Result<OwnedSemaphorePermit, Trouble> {
        let permit = self.turn(Arc::clone(&self.manifests).acquire_many_owned(manifest_kib(announced))).await?;
        permit.map_err(|_| Trouble::Ending)
    }

    async fn turn<T>(&self, turn: impl Future<Output = T>) -> Result<T, Trouble> {
        let patience = self.options.patience.saturating_mul(TURN_PATIENCES);
        tokio::time::timeout(patience, turn).await.map_err(|_| Trouble::Busy)
    }

    /// Logs what went wrong with the registry itself.
    pub(crate) fn trouble(&self, event: &str, about: &str, trouble: &Trouble) {
        self.metrics.troubles.inc();
        self.options.log.line(Level::Error, event, vec![("about", json!(about)), ("error", json!(trouble.one_line()))]);
    }

    /// Refuses what changes something where the registry only reads.
    fn check_writable(&self, method: &Method) -> Result<(), Fault> {
        if self.options.is_read_only && ![Method::GET, Method::HEAD].contains(method) {
            return Err(Fault::new(Code::Unsupported, "the registry is read-only"));
        }
        Ok(())
    }
}

/// The right to publish a blob.
#[derive(Debug)]
pub(crate) struct Publishing {
    _guard: OwnedMutexGuard<()>,
    _permit: OwnedSemaphorePermit,
}

/// Reads of the store of blobs, on one of the threads that may: the record's work is never behind a store that does not
/// answer.
pub(crate) async fn reading<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let permit = app.turn(Arc::clone(&app.reads).acquire_owned()).await?;
    blocking(move || {
        let done = work();
        drop(permit);
        done
    })
    .await
}

/// Begins to read from the store of blobs, as soon as one of the threads that may is free.
pub(crate) fn spawn_read<T: Send + 'static>(app: &App, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let with = |permit: Option<OwnedSemaphorePermit>| {
        tokio::task::spawn_blocking(move || {
            let done = work();
            drop(permit);
            done
        })
    };
    match Arc::clone(&app.reads).try_acquire_owned() {
        Ok(permit) => with(Some(permit)),
        Err(_) => {
            let reads = Arc::clone(&app.reads);
            tokio::spawn(async move { joined(with(reads.acquire_owned().await.ok()).await) })
        }
    }
}

#[expect(clippy::panic, reason = "a panic goes on where it was waited for")]
fn joined<T>(done: Result<T, tokio::task::JoinError>) -> T {
    done.unwrap_or_else(|error| panic!("a read ended early: {error}"))
}

/// Does something on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Trouble::Ending))
}

/// Answers one request.
pub(crate) async fn answer(app: Arc<App>, request: Request<Incoming>, from: IpAddr) -> Reply {
    let started = tokio::time::Instant::now();
    let (parts, mut body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let waits = parts.headers.contains_key(EXPECT);
    let (mut is_read_on, mut who) = (true, None);
    let reply = match route(&app, (parts, from), &mut body, &mut who).await {
        Ok(reply) => reply,
        Err(trouble) => {
            is_read_on = !matches!(trouble, Trouble::Broken(_));
            if !matches!(trouble, Trouble::Fault(_) | Trouble::Broken(_) | Trouble::Ending) {
                app.trouble("request_failed", &path, &trouble);
            }
            reply::failed(&trouble)
        }
    };
    let reply = reply::with_own(reply, "docker-distribution-api-version", "registry/2.0");
    // Tells clients that `If-Match` and `If-None-Match` hold for tags: no push passes another unseen.
    let reply = reply::with_own(reply, crate::repository::CONDITIONAL_TAGS, "1");
    app.metrics.answered(&method, reply.status().as_u16(), started.elapsed());
    let mut fields = vec![
        ("method", json!(method.as_str())),
        ("path", json!(path)),
        ("status", json!(reply.status().as_u16())),
        ("ms", json!(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))),
        ("from", json!(from.to_canonical().to_string())),
    ];
    fields.extend(who.map(|user| ("user", json!(user))));
    app.options.log.line(Level::Info, "request", fields);
    if reply.status().as_u16() < 400 || body.is_end_stream() || !is_read_on {
        return reply;
    }
    if waits {
        // It was to send the body only when told to, so there is none to read, and what comes next is no body.
        return reply::with(reply, CONNECTION, "close");
    }
    // Beside the answer, which some clients read meanwhile.
    tokio::spawn(drain(body, app.options.patience));
    reply
}

/// Reads what is left of a body that nobody wants: many clients read the answer when they have sent everything, and lose
/// it where the connection is closed before.
async fn drain(mut body: Incoming, patience: Duration) {
    use http_body_util::BodyExt as _;
    let mut left = DRAIN_BYTES_MAX;
    let all = async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(0)));
            if left == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(patience, all).await.ok();
}

async fn route(
    app: &Arc<App>,
    (parts, from): (Parts, IpAddr),
    body: &mut Incoming,
    who: &mut Option<String>,
) -> Result<Reply, Trouble> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let mut call = Call { parts, from, query, rights: Rights::Policy(None) };
    let path = call.parts.uri.path().to_owned();
    match path.as_str() {
        "/healthz" => return health(app).await,
        "/metrics" => return super::metrics::page(app).await,
        "/token" => return super::auth::token(app, &call, who).await,
        _ => {}
    }
    let Some(route) = Route::parse(&path)? else { return Ok(reply::empty(StatusCode::NOT_FOUND)) };
    let need = needed(call.parts.method.as_str(), &route).zip(route.repository());
    match app.auth.check(app, &call, need, who).await? {
        Ok(rights) => call.rights = rights,
        Err(challenge) => return Ok(challenge),
    }
    let methods = route.methods(app.options.is_read_only);
    let answered = match app.check_writable(&call.parts.method) {
        Ok(()) => dispatch(app, &call, route, body).await,
        Err(fault) => Err(fault.into()),
    };
    match answered {
        Err(Trouble::Fault(fault)) if fault.status == StatusCode::METHOD_NOT_ALLOWED => {
            Ok(reply::with(reply::refused(&fault), ALLOW, methods))
        }
        answered => answered,
    }
}

async fn dispatch(app: &Arc<App>, call: &Call, route: Route, body: &mut Incoming) -> Result<Reply, Trouble> {
    let method = call.parts.method.as_str();
    match (method, route) {
        ("GET" | "HEAD", Route::Base) => Ok(reply::json(StatusCode::OK, "{}")),
        ("GET" | "HEAD", Route::Blob(name, digest)) => blobs::get(app, call, name, digest).await,
        ("DELETE", Route::Blob(name, digest)) => blobs::delete(app, name, digest).await,
        ("POST", Route::Uploads(name)) => uploads::begin(app, call, name, body).await,
        ("GET" | "HEAD", Route::Upload(name, id)) => uploads::status(app, name, id).await,
        ("PATCH", Route::Upload(name, id)) => uploads::chunk(app, call, (name, id), body).await,
        ("PUT", Route::Upload(name, id)) => uploads::close(app, call, (name, id), body).await,
        ("DELETE", Route::Upload(name, id)) => uploads::cancel(app, name, id).await,
        ("GET" | "HEAD", Route::Manifest(name, reference)) => manifests::get(app, call, name, reference).await,
        ("PUT", Route::Manifest(name, reference)) => manifests::put(app, call, (name, reference), body).await,
        ("DELETE", Route::Manifest(name, reference)) => manifests::delete(app, call, name, reference).await,
        ("GET" | "HEAD", Route::Tags(name)) => lists::tags(app, call, name).await,
        ("GET" | "HEAD", Route::Referrers(name, digest)) => lists::referrers(app, call, name, digest).await,
        (_, _) => {
            let message = format!("{method} is not something that can be done with {}", call.parts.uri.path());
            Err(Fault::new(Code::Unsupported, message).into())
        }
    }
}

async fn health(app: &Arc<App>) -> Result<Reply, Trouble> {
    let worker = Arc::clone(app);
    let damaged = blocking(move || worker.meta.damaged()).await?;
    let (unreadable, unknown) = (app.verdicts.unreadable(), load(&app.strays));
    let is_anothers = app.is_anothers.load(Ordering::Relaxed);
    let status = match (damaged.is_empty(), unreadable.is_empty(), unknown == 0 && !is_anothers) {
        (false, _, _) => "damaged",
        (true, false, _) => "unreadable",
        (true, true, true) => "ok",
        (true, true, false) => "not collected",
    };
    let read_only = app.options.is_read_only;
    let body = json!({
        "status": status, "damaged": damaged, "unreadable": unreadable, "unknown": unknown, "read_only": read_only,
        "store_is_anothers": is_anothers,
    });
    Ok(reply::json(StatusCode::OK, body.to_string()))
}

/// Returns the path of a blob.
pub(crate) fn blob_path(name: &Repository, digest: &BlobDigest) -> String {
    format!("/v2/{name}/blobs/{digest}")
}

/// Counts one more, for [`App::streams`] and its like.
pub(crate) fn load(counter: &AtomicUsize) -> u64 {
    u64::try_from(counter.load(Ordering::Relaxed)).unwrap_or(u64::MAX)
}
