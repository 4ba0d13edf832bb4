//! Uploads: `/v2/<name>/blobs/uploads/` and what follows it.

use super::app::{App, Call, Publishing, blob_path, blocking};
use super::blobs::SMALL_BYTES;
use super::hash::Sum;
use super::memory::Taken;
use super::meta::Holding;
use super::net::{nanos_of, pace_of};
use super::reply::{self, Reply};
use super::staging::Session;
use super::trouble::Trouble;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{LOCATION, RANGE};
use perennial_core::registry::access::Action;
use perennial_core::registry::bounds::Pace;
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::name::{Algorithm, BlobDigest, Repository, UploadId};
use perennial_core::registry::range::{ChunkRange, chunk_bytes, upload_range};
use std::sync::Arc;

type Locked = tokio::sync::OwnedMutexGuard<Session>;

/// Answers `POST`: a mount, a whole blob, or the beginning of an upload.
pub(crate) async fn begin(
    app: &Arc<App>,
    call: &Call,
    name: Repository,
    body: &mut Incoming,
) -> Result<Reply, Trouble> {
    if let Some(digest) = call.query.get("mount")
        && let Some(reply) = mount(app, call, &name, digest).await?
    {
        return Ok(reply);
    }
    let digest = call.query.get("digest").map(BlobDigest::parse).transpose()?;
    let algorithm = match (&digest, call.query.get("digest-algorithm")) {
        (Some(digest), _) => digest.algorithm(),
        (None, Some(text)) => Algorithm::parse(text)?,
        (None, None) => Algorithm::Sha256,
    };
    let mut random = [0_u8; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Trouble::io("cannot name the upload")(error.into()))?;
    let id = UploadId::from_random(random);
    let (worker, of) = (Arc::clone(app), name.clone());
    let session = blocking(move || worker.staging.begin(id, &of, algorithm, worker.now())).await?;
    let Some(digest) = digest else { return Ok(accepted(&name, &session.id, session.bytes)) };
    let length = call.length()?;
    let (session, received) = receive(app, session, Some(&digest), length, body).await;
    match received {
        Ok(()) => finish(app, session, name, digest).await,
        Err(trouble) => {
            // Its name was told to nobody, so nobody can go on with it.
            end(app, session).await?;
            Err(trouble)
        }
    }
}

/// Mounts a blob from another repository, or from any that the client may read; nothing where that is not possible.
async fn mount(app: &Arc<App>, call: &Call, name: &Repository, digest: &str) -> Result<Option<Reply>, Trouble> {
    let digest = BlobDigest::parse(digest)?;
    let from = call.query.get("from").map(Repository::parse).transpose()?;
    // Without `from` any copy will do, provided that the client may read everything: whether some repository has a
    // blob is not for everybody to know.
    let may = match &from {
        Some(from) => app.auth.allows(&call.rights, Action::Pull, from),
        None => call.may_read_all(app),
    };
    if !may {
        return Ok(None);
    }
    if app.verdicts.is_unreadable(&digest) {
        // Whoever pushes it brings good bytes.
        return Ok(None);
    }
    let (worker, of) = (Arc::clone(app), Holding { name: name.clone(), digest: digest.clone() });
    let quota = app.options.quota;
    let mounted = blocking(move || worker.meta.mount(&of, from.as_ref(), quota, worker.now())).await?;
    Ok(mounted.then(|| created(name, &digest)))
}

/// Answers `GET`: where the upload stands.
pub(crate) async fn status(app: &Arc<App>, name: Repository, id: UploadId) -> Result<Reply, Trouble> {
    // Without the session's lock, which a request that still sends has.
    let (worker, of, upload) = (Arc::clone(app), name.clone(), id.clone());
    let bytes = blocking(move || worker.staging.standing(&upload, &of)).await?;
    let reply = accepted(&name, &id, bytes);
    let mut status = reply::empty(StatusCode::NO_CONTENT);
    *status.headers_mut() = reply.headers().clone();
    Ok(status)
}

/// Answers `PATCH`: the next chunk.
pub(crate) async fn chunk(
    app: &Arc<App>,
    call: &Call,
    (name, id): (Repository, UploadId),
    body: &mut Incoming,
) -> Result<Reply, Trouble> {
    let range = call.chunk_range()?.map(ChunkRange::parse).transpose()?;
    let length = call.length()?;
    let session = found(app, &name, id).await?;
    let bytes = match chunk_bytes(session.bytes, range, length) {
        Ok(bytes) => bytes,
        Err(fault) => return Ok(refused_at(&fault, &name, &session)),
    };
    let (session, received) = receive(app, session, None, bytes, body).await;
    received?;
    Ok(accepted(&name, &session.id, session.bytes))
}

/// Answers `PUT`: the last chunk, if it was not sent yet, and what all of them are.
pub(crate) async fn close(
    app: &Arc<App>,
    call: &Call,
    (name, id): (Repository, UploadId),
    body: &mut Incoming,
) -> Result<Reply, Trouble> {
    let missing = || Fault::new(Code::DigestInvalid, "the digest of the whole blob is missing");
    let digest = BlobDigest::parse(call.query.get("digest").ok_or_else(missing)?)?;
    let range = call.chunk_range()?.filter(|text| !text.is_empty()).map(ChunkRange::parse).transpose()?;
    let length = call.length()?;
    let session = found(app, &name, id).await?;
    // Some clients send the range of the whole blob with a closing request that has no body.
    let range = range.filter(|_| length != Some(0));
    let bytes = match chunk_bytes(session.bytes, range, length) {
        Ok(bytes) => bytes,
        Err(fault) => return Ok(refused_at(&fault, &name, &session)),
    };
    let (session, received) = receive(app, session, Some(&digest), bytes, body).await;
    received?;
    finish(app, session, name, digest).await
}

/// Answers `DELETE`.
pub(crate) async fn cancel(app: &Arc<App>, name: Repository, id: UploadId) -> Result<Reply, Trouble> {
    let session = found(app, &name, id).await?;
    end(app, session).await?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

async fn found(app: &Arc<App>, name: &Repository, id: UploadId) -> Result<Locked, Trouble> {
    let (worker, of) = (Arc::clone(app), name.clone());
    let session = blocking(move || worker.staging.find(&id, &of)).await?;
    let mut session = session.lock_owned().await;
    session.check(name)?;
    let worker = Arc::clone(app);
    blocking(move || match session.refresh() {
        Ok(is_shorter) => {
            if is_shorter {
                worker.staging.count(&session, session.bytes);
            }
            Ok(session)
        }
        Err(trouble) => {
            if matches!(trouble, Trouble::Fault(_)) {
                worker.staging.end(&mut session)?;
            }
            Err(trouble)
        }
    })
    .await
}

async fn end(app: &Arc<App>, mut session: Locked) -> Result<(), Trouble> {
    let app = Arc::clone(app);
    blocking(move || app.staging.end(&mut session)).await
}

/// Takes a body into an upload. What has come stays when the client breaks off; a body of another length than announced
/// is refused as a whole.
async fn receive(
    app: &Arc<App>,
    mut session: Locked,
    digest: Option<&BlobDigest>,
    expected: Option<u64>,
    body: &mut Incoming,
) -> (Locked, Result<(), Trouble>) {
    let before = session.bytes;
    let algorithm = digest.map(BlobDigest::algorithm);
    let held = match held(app, &session, digest).await {
        Ok(held) => held,
        Err(trouble) => return (session, Err(trouble)),
    };
    let hold = |session: &Session, bytes: u64| app.staging.hold(session, bytes, held, app.options.quota);
    if let Err(fault) = hold(&session, before.saturating_add(expected.unwrap_or(0))) {
        return (session, Err(fault.into()));
    }
    let mut pace = pace_of(app.options.patience);
    let mut taken = Taken::none(&app.receiving);
    loop {
        let (batch, end) = gather(app, body, (&mut pace, &mut taken)).await;
        let bytes = batch.iter().fold(session.bytes, |sum, part| sum.saturating_add(length_of(part)));
        // What was announced has its room.
        let (back, stored) = match if expected.is_none() { hold(&session, bytes) } else { Ok(()) } {
            Ok(()) => store(session, algorithm, batch).await,
            Err(fault) => (session, Err(fault.into())),
        };
        session = back;
        taken.hold(0);
        let came = session.bytes.saturating_sub(before);
        let outcome = match (stored, end) {
            (Err(trouble), _) => Err(trouble),
            (Ok(()), Gathered::More) if expected.is_none_or(|bytes| came <= bytes) => continue,
            (Ok(()), Gathered::Broken(why)) => Err(Trouble::Broken(why)),
            (Ok(()), Gathered::More | Gathered::End) => Ok(()),
        };
        app.metrics.received.inc_by(came);
        let mut outcome = outcome.and_then(|()| check_came(came, expected).map_err(Trouble::from));
        if matches!(outcome, Err(Trouble::Fault(_))) {
            let (back, cut) = cut(session, before).await;
            (session, outcome) = (back, cut.and(outcome));
        }
        app.staging.count(&session, session.bytes);
        return (session, outcome);
    }
}

/// Returns how many bytes of the quota are taken beside uploads. What the repository holds already counts once.
async fn held(app: &Arc<App>, session: &Session, digest: Option<&BlobDigest>) -> Result<u64, Trouble> {
    if app.options.quota.0.is_none() {
        return Ok(0);
    }
    let (worker, name, digest) = (Arc::clone(app), Repository::parse(&session.repository)?, digest.cloned());
    blocking(move || match digest {
        Some(digest) => {
            let of = Holding { name, digest };
            if worker.meta.blob(&of)?.is_some() { Ok(0) } else { worker.meta.held(&of.name) }
        }
        None => worker.meta.held(&name),
    })
    .await
}

fn check_came(came: u64, expected: Option<u64>) -> Result<(), Fault> {
    match expected.filter(|expected| *expected != came) {
        Some(expected) => Err(Fault::new(Code::SizeInvalid, format!("{expected} bytes were announced, {came} came"))),
        None => Ok(()),
    }
}

fn length_of(part: &Bytes) -> u64 {
    u64::try_from(part.len()).unwrap_or(u64::MAX)
}

enum Gathered {
    More,
    End,
    Broken(String),
}

/// Gathers what comes, until it is worth a write: a thread is not to be woken for each packet.
async fn gather(app: &App, body: &mut Incoming, (pace, taken): (&mut Pace, &mut Taken)) -> (Vec<Bytes>, Gathered) {
    let (mut batch, mut bytes) = (Vec::new(), 0_usize);
    let enough = app.receiving.share();
    while bytes < enough {
        let began = tokio::time::Instant::now();
        let frame = match tokio::time::timeout(app.options.patience, body.frame()).await {
            Err(_) => return (batch, Gathered::Broken("nothing came for too long".into())),
            Ok(None) => return (batch, Gathered::End),
            Ok(Some(Err(error))) => return (batch, Gathered::Broken(error.to_string())),
            Ok(Some(Ok(frame))) => frame,
        };
        let data = frame.into_data().unwrap_or_default();
        if !pace.is_kept(length_of(&data), nanos_of(began.elapsed())) {
            batch.push(data);
            return (batch, Gathered::Broken("it came too slowly".into()));
        }
        if !data.is_empty() {
            bytes = bytes.saturating_add(data.len());
            taken.hold(bytes);
            batch.push(data);
        }
    }
    (batch, Gathered::More)
}

async fn store(mut session: Locked, algorithm: Option<Algorithm>, batch: Vec<Bytes>) -> (Locked, Result<(), Trouble>) {
    if batch.is_empty() {
        return (session, Ok(()));
    }
    on_session(session_job(move || {
        let stored = session.writer(algorithm).and_then(|mut writer| {
            writer.append(&batch).map_err(Trouble::io("cannot write the upload"))?;
            session.take_back(writer);
            Ok(())
        });
        (session, stored)
    }))
    .await
}

async fn cut(mut session: Locked, bytes: u64) -> (Locked, Result<(), Trouble>) {
    on_session(session_job(move || {
        let cut = session.cut(bytes);
        (session, cut)
    }))
    .await
}

type SessionJob = Box<dyn FnOnce() -> (Locked, Result<(), Trouble>) + Send>;

fn session_job(work: impl FnOnce() -> (Locked, Result<(), Trouble>) + Send + 'static) -> SessionJob {
    Box::new(work)
}

/// Works on a session on a thread that may block.
#[expect(clippy::panic, reason = "a panic goes on where it was waited for; it has taken the session with it")]
async fn on_session(work: SessionJob) -> (Locked, Result<(), Trouble>) {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => panic!("work on an upload ended early: {error}"),
    }
}

/// Makes the bytes of an upload a blob of the repository.
async fn finish(app: &Arc<App>, mut session: Locked, name: Repository, digest: BlobDigest) -> Result<Reply, Trouble> {
    let worker = Arc::clone(app);
    let reply = created(&name, &digest);
    let right = app.publishing(&digest).await?;
    // From here on the record counts them, once they are there.
    app.staging.count(&session, 0);
    blocking(move || publish(&worker, &mut session, &Holding { name, digest }, right)).await?;
    Ok(reply)
}

fn publish(app: &App, session: &mut Session, of: &Holding, right: Publishing) -> Result<(), Trouble> {
    let digest = &of.digest;
    let found = session.digest(digest.algorithm())?;
    if found != *digest {
        // Nothing can make the bytes right any more, so the session ends with them.
        app.staging.end(session)?;
        return Err(Fault::new(Code::DigestInvalid, format!("the content has the digest {found}")).into());
    }
    let bytes = session.bytes;
    let failed = || format!("cannot keep blob {digest}");
    // The bytes are at hand, so a copy that is not known to be sound is replaced by them.
    let is_sound = app.meta.any_blob(digest)?.is_some() && is_known_sound(app, digest, bytes);
    if !is_sound {
        app.storage.publish(session.path(), digest).map_err(Trouble::io(failed()))?;
        if let Some(reader) = app.storage.open(digest).map_err(Trouble::io(failed()))? {
            app.verdicts.trust(digest, reader.stamp().clone(), app.now());
        }
    }
    let recorded = app.meta.put_blob(of, (bytes, !is_sound), app.options.quota, app.now());
    drop(right);
    app.staging.end(session)?;
    recorded
}

fn is_known_sound(app: &App, digest: &BlobDigest, bytes: u64) -> bool {
    // One that cannot be opened is not.
    let Some(mut present) = app.storage.open(digest).ok().flatten() else { return false };
    if present.stamp().bytes != bytes {
        return false;
    }
    if bytes > SMALL_BYTES {
        return app.verdicts.is_trusted(digest, present.stamp(), app.now());
    }
    // A small one is summed whenever it matters.
    let mut read = vec![0; usize::try_from(bytes).unwrap_or_default()];
    present.read_at(0, &mut read).is_ok() && Sum::of(digest.algorithm(), &read) == *digest
}

/// Returns the answer that an upload goes on.
fn accepted(name: &Repository, id: &UploadId, bytes: u64) -> Reply {
    let reply = reply::with(reply::empty(StatusCode::ACCEPTED), LOCATION, format!("/v2/{name}/blobs/uploads/{id}"));
    let reply = reply::with(reply, RANGE, upload_range(bytes));
    reply::with_own(reply, "docker-upload-uuid", id.as_str())
}

/// Returns the answer to a chunk at the wrong place, with where the upload stands.
fn refused_at(fault: &Fault, name: &Repository, session: &Session) -> Reply {
    let mut reply = reply::refused(fault);
    let standing = accepted(name, &session.id, session.bytes);
    reply.headers_mut().extend(standing.headers().clone());
    reply
}

fn created(name: &Repository, digest: &BlobDigest) -> Reply {
    let reply = reply::with(reply::empty(StatusCode::CREATED), LOCATION, blob_path(name, digest));
    reply::with_own(reply, "docker-content-digest", digest.as_str())
}

/// Sums a manifest: it is small enough for that to be done where it is.
pub(crate) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> BlobDigest {
    Sum::of(algorithm, bytes)
}
