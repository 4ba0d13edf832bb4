//! Blobs: `GET`, `HEAD` and `DELETE` of `/v2/<name>/blobs/<digest>`.

use super::app::{App, Call, blocking, reading};
use super::body::{BlobBody, Piece};
use super::hash::Sum;
use super::meta::Holding;
use super::reply::{self, Reply};
use super::storage::BlobReader;
use super::trouble::Trouble;
use super::verdict::verdict;
use http_body_util::{Either, Full};
use hyper::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE};
use hyper::{Method, Response, StatusCode};
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::name::{BlobDigest, Repository};
use perennial_core::registry::precondition::{Precondition, entity_tag, is_range_meant};
use perennial_core::registry::range::{Part, requested};
use std::sync::Arc;

/// Blobs up to this length are read and summed at once, and their bytes are sent when they are known to be sound.
pub(crate) const SMALL_BYTES: u64 = 64 * 1024;

/// Answers `GET` and `HEAD`.
pub(crate) async fn get(app: &Arc<App>, call: &Call, name: Repository, digest: BlobDigest) -> Result<Reply, Trouble> {
    let (worker, of) = (Arc::clone(app), Holding { name, digest: digest.clone() });
    let is_head = call.parts.method == Method::HEAD;
    let is_known = Precondition::new(None, call.list(&IF_NONE_MATCH).as_deref()).is_unchanged(Some(&digest));
    let find = move || find(&worker, &of, is_head || is_known);
    // The record alone says whether it is there.
    let (bytes, reader) = if is_head || is_known { blocking(find).await } else { reading(app, find).await }?;
    if is_known {
        let reply = reply::with(reply::empty(StatusCode::NOT_MODIFIED), ETAG, entity_tag(&digest));
        return Ok(reply::with_own(reply, "docker-content-digest", digest.as_str()));
    }
    let is_meant = !is_head && is_range_meant(call.list(&IF_RANGE).as_deref(), &digest);
    let (status, first, count) = match requested(call.header(&RANGE).filter(|_| is_meant), bytes) {
        Part::Whole => (StatusCode::OK, 0, bytes),
        Part::Some { first, last } => {
            (StatusCode::PARTIAL_CONTENT, first, last.saturating_sub(first).saturating_add(1))
        }
        Part::Beyond => {
            let fault = Fault::new(Code::SizeInvalid, format!("the blob has {bytes} bytes")).with_status(416);
            return Ok(reply::with(reply::refused(&fault), CONTENT_RANGE, format!("bytes */{bytes}")));
        }
    };
    let body = match reader {
        None => Either::Left(Default::default()),
        Some(reader) if bytes <= SMALL_BYTES => {
            let bytes = small(app, &digest, reader, (first, count)).await?;
            Either::Left(Full::new(Piece::from(bytes)))
        }
        Some(reader) => {
            let pending = verdict(app, &digest, reader.stamp());
            Either::Right(BlobBody::new(app, &digest, reader, (first, count), pending))
        }
    };
    app.metrics.sent.inc_by(if is_head { 0 } else { count });
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    if status == StatusCode::PARTIAL_CONTENT {
        let last = first.saturating_add(count).saturating_sub(1);
        reply = reply::with(reply, CONTENT_RANGE, format!("bytes {first}-{last}/{bytes}"));
    }
    reply = reply::with_length(reply, count);
    reply = reply::with(reply, CONTENT_TYPE, "application/octet-stream");
    reply = reply::with(reply, ACCEPT_RANGES, "bytes");
    reply = reply::with(reply, ETAG, entity_tag(&digest));
    reply = reply::with(reply, CACHE_CONTROL, "max-age=31536000, immutable");
    Ok(reply::with_own(reply, "docker-content-digest", digest.as_str()))
}

type Opened = (u64, Option<Box<dyn BlobReader>>);

fn find(app: &App, of: &Holding, is_head: bool) -> Result<Opened, Trouble> {
    let Holding { name, digest } = of;
    let unknown = || Fault::new(Code::BlobUnknown, format!("{name} has no blob {digest}"));
    let found = app.meta.blob(of)?.ok_or_else(unknown)?;
    if is_head {
        if app.verdicts.is_unreadable(digest) {
            return Err(unknown().into());
        }
        if !app.options.is_read_only {
            app.meta.touch(of, found, app.options.grace, app.now())?;
        }
        return Ok((found.bytes, None));
    }
    let reader = match app.storage.open(digest) {
        Ok(Some(reader)) => reader,
        Err(error) => {
            app.note_unread(digest, None, &error);
            return Err(Trouble::io(format!("cannot open blob {digest}"))(error));
        }
        // Recorded, so that `HEAD` says so too, and a client pushes it again.
        Ok(None) => {
            app.condemn_missing(digest);
            return Err(unknown().into());
        }
    };
    if reader.stamp().bytes != found.bytes {
        // The record knows the length; a copy of another length is damaged without being summed.
        app.condemn(digest, reader.stamp(), "another length");
        return Err(unknown().into());
    }
    Ok((found.bytes, Some(reader)))
}

/// Reads a small blob, and the part of it that is asked for, once it is known to be sound.
async fn small(
    app: &Arc<App>,
    digest: &BlobDigest,
    mut reader: Box<dyn BlobReader>,
    (first, count): (u64, u64),
) -> Result<bytes::Bytes, Trouble> {
    let (worker, digest) = (Arc::clone(app), digest.clone());
    reading(app, move || {
        let length = usize::try_from(reader.stamp().bytes).unwrap_or(usize::MAX);
        let mut read = vec![0; length];
        let outcome = reader.read_at(0, &mut read);
        let damaged = |found: &str| {
            worker.condemn(&digest, reader.stamp(), found);
            Trouble::from(Fault::new(Code::BlobUnknown, format!("blob {digest} is damaged")))
        };
        match outcome {
            Ok(()) => {}
            Err(error) => {
                worker.note_unread(&digest, Some(reader.stamp()), &error);
                return Err(Trouble::io(format!("cannot read blob {digest}"))(error));
            }
        }
        let found = Sum::of(digest.algorithm(), &read);
        if found != digest {
            return Err(damaged(found.as_str()));
        }
        worker.verdicts.remove_unreadable(&digest);
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let end = first.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(bytes::Bytes::from(read).slice(first.min(length)..end.min(length)))
    })
    .await
}

/// Answers `DELETE`.
pub(crate) async fn delete(app: &Arc<App>, name: Repository, digest: BlobDigest) -> Result<Reply, Trouble> {
    let app = Arc::clone(app);
    blocking(move || app.meta.unlink(&Holding { name, digest })).await?;
    Ok(reply::empty(StatusCode::ACCEPTED))
}
