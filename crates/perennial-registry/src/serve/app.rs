//! What all requests share, and the way of one request through it.

use super::auth::{Auth, Rights};
use super::log::Level;
use super::memory::Memory;
use super::meta::{Meta, lock};
use super::metrics::Metrics;
use super::reply::{self, Reply};
use super::staging::Staging;
use super::storage::BlobStore;
use super::trouble::Trouble;
use super::verdict::Verdicts;
use super::{Options, blobs, lists, manifests, uploads};
use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use perennial_core::registry::access::needed;
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::name::{BlobDigest, Repository};
use perennial_core::registry::query::Query;
use perennial_core::registry::route::Route;
use perennial_core::time::Time;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Locks for digests: enough that two uploads seldom share one.
const LOCKS: usize = 64;
/// Most bytes of a body that nobody wants that are read, so that the client reads the answer.
const DRAIN_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long that may take.
const DRAIN: Duration = Duration::from_secs(5);

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
    /// Processors of this machine.
    pub(crate) processors: usize,
    /// Memory for chunks of blobs that are sent.
    pub(crate) sending: Arc<Memory>,
    /// Memory for chunks of uploads.
    pub(crate) receiving: Arc<Memory>,
    /// How many blobs may be summed at once.
    pub(crate) summing: tokio::sync::Semaphore,
    pub(crate) locks: [Mutex<()>; LOCKS],
}

/// One request, without its body.
#[derive(Debug)]
pub(crate) struct Call {
    /// Its method, path and headers.
    pub(crate) parts: Parts,
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

    /// Makes a set of locks, all free.
    pub(crate) fn free_locks() -> [Mutex<()>; LOCKS] {
        std::array::from_fn(|_| Mutex::new(()))
    }

    /// Locks a digest against the collection of its bytes.
    pub(crate) fn lock_digest(&self, digest: &BlobDigest) -> MutexGuard<'_, ()> {
        let number = digest.hex().get(..4).and_then(|hex| usize::from_str_radix(hex, 16).ok()).unwrap_or(0);
        lock(self.locks.get(number % LOCKS).expect("a remainder is less than its divisor"))
    }

    /// Puts a damaged blob aside and records it, so that it is not served and can be pushed again.
    pub(crate) fn condemn(&self, digest: &BlobDigest, found: &BlobDigest) {
        self.metrics.damaged.inc();
        let fields = vec![("digest", json!(digest.as_str())), ("found", json!(found.as_str()))];
        self.options.log.line(Level::Error, "blob_damaged", fields);
        let guard = self.lock_digest(digest);
        // Recorded first: the record keeps it from being served whatever becomes of the file.
        let recorded = self.meta.checked(digest, true, self.now());
        let moved = self.storage.quarantine(digest).map_err(Trouble::io("cannot put the blob aside"));
        drop(guard);
        for trouble in [recorded, moved].into_iter().filter_map(Result::err) {
            self.trouble("quarantine", digest.as_str(), &trouble);
        }
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

/// Does something on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Trouble::Ending))
}

/// Answers one request.
pub(crate) async fn answer(app: Arc<App>, request: Request<Incoming>) -> Reply {
    let started = tokio::time::Instant::now();
    let (parts, mut body) = request.into_parts();
    let (method, path) = (parts.method.clone(), parts.uri.path().to_owned());
    let reply = match route(&app, parts, &mut body).await {
        Ok(reply) => reply,
        Err(trouble) => {
            if !matches!(trouble, Trouble::Fault(_) | Trouble::Broken(_) | Trouble::Ending) {
                app.trouble("request_failed", &path, &trouble);
            }
            drain(&mut body).await;
            reply::failed(&trouble)
        }
    };
    let reply = reply::with_own(reply, "docker-distribution-api-version", "registry/2.0");
    // Tells clients that `If-Match` and `If-None-Match` hold for tags: no push passes another unseen.
    let reply = reply::with_own(reply, crate::repository::CONDITIONAL_TAGS, "1");
    app.metrics.answered(&method, reply.status().as_u16(), started.elapsed());
    let fields = vec![
        ("method", json!(method.as_str())),
        ("path", json!(path)),
        ("status", json!(reply.status().as_u16())),
        ("ms", json!(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))),
    ];
    app.options.log.line(Level::Info, "request", fields);
    reply
}

/// Reads what is left of a body that nobody wants: a client that still sends does not read the answer.
async fn drain(body: &mut Incoming) {
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
    tokio::time::timeout(DRAIN, all).await.ok();
}

async fn route(app: &Arc<App>, parts: Parts, body: &mut Incoming) -> Result<Reply, Trouble> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let mut call = Call { parts, query, rights: Rights::Policy(None) };
    let path = call.parts.uri.path().to_owned();
    match path.as_str() {
        "/healthz" => return health(app).await,
        "/metrics" => return super::metrics::page(app).await,
        "/token" => return super::auth::token(app, &call, body).await,
        _ => {}
    }
    let Some(route) = Route::parse(&path)? else { return Ok(reply::empty(StatusCode::NOT_FOUND)) };
    let need = needed(call.parts.method.as_str(), &route).zip(route.repository());
    match app.auth.check(app, &call, need).await? {
        Ok(rights) => call.rights = rights,
        Err(challenge) => return Ok(challenge),
    }
    app.check_writable(&call.parts.method)?;
    dispatch(app, &call, route, body).await
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
    let status = if damaged.is_empty() { "ok" } else { "damaged" };
    let body = json!({"status": status, "damaged": damaged, "read_only": app.options.is_read_only});
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
