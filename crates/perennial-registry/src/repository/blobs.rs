//! Blobs: sent whole, unless they are there; received in parts.

use super::{PARALLEL, Repository, RepositoryError};
use crate::digest;
use crate::progress::{Event, Phase, Progress};
use crate::pull::blob;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use perennial_core::id::Digest;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a file that is sent, read at once.
const PIECE_BYTES: usize = 256 << 10;

/// A blob to be sent.
#[derive(Debug)]
pub struct Upload {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub file: File,
    /// Its length.
    pub bytes: u64,
    /// Its name for people.
    pub name: String,
}

/// A part of a blob to be received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The blob.
    pub digest: Digest,
    /// Which bytes of it.
    pub range: Range<u64>,
    /// Its name for people.
    pub name: String,
}

/// Blobs that are not there as they should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    /// Nothing is there.
    pub gone: BTreeSet<Digest>,
    /// Something of another length is there.
    pub unsound: BTreeSet<Digest>,
}

/// How a blob is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Absent,
    /// It has the length it should have, or the registry does not say how long it is.
    Whole,
    /// It has this length instead.
    Other(u64),
}

type Supplied = Result<(), RepositoryError>;

/// Takes what comes of a part, by its number: where in the blob it belongs, and the bytes.
pub type Sink<'a> = &'a dyn Fn(usize, u64, &[u8]) -> io::Result<()>;

impl Repository {
    /// Returns which of some blobs, given with their lengths, are not there as they should be.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn lacking(&self, blobs: &[(Digest, u64)]) -> Result<Lacking, RepositoryError> {
        let looks = blobs.iter().map(|(digest, bytes)| async move {
            let presence = self.presence(digest, *bytes).await?;
            Ok::<_, RepositoryError>((digest.clone(), presence))
        });
        let all = stream::iter(looks).buffer_unordered(PARALLEL).try_collect::<Vec<_>>();
        let mut lacking = Lacking::default();
        for (digest, presence) in self.runtime.block_on(all)? {
            match presence {
                Presence::Whole => {}
                Presence::Absent => drop(lacking.gone.insert(digest)),
                Presence::Other(_) => drop(lacking.unsound.insert(digest)),
            }
        }
        Ok(lacking)
    }

    async fn presence(&self, digest: &Digest, bytes: u64) -> Result<Presence, RepositoryError> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let head = async || {
            let response = self.send(self.request(Method::HEAD, url.clone())).await?;
            if !response.status().is_success() {
                return Ok(Presence::Absent);
            }
            let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            // One that does not say how long it is, is believed.
            Ok(match length.and_then(|length| length.parse::<u64>().ok()) {
                Some(length) if length != bytes => Presence::Other(length),
                Some(_) | None => Presence::Whole,
            })
        };
        self.retried(head).await
    }

    /// Sends what is not there as it should be. A registry may keep what it has under that name, whatever it is.
    async fn supply(
        &self,
        digest: &Digest,
        bytes: u64,
        send: impl AsyncFn() -> Supplied,
    ) -> Result<bool, RepositoryError> {
        let before = self.presence(digest, bytes).await?;
        if before == Presence::Whole {
            return Ok(false);
        }
        self.retried(send).await?;
        if let Presence::Other(_) = before
            && let Presence::Other(found) = self.presence(digest, bytes).await?
        {
            let (repository, digest) = (self.name(), digest.clone());
            return Err(RepositoryError::Unsound { repository, digest, found, bytes });
        }
        Ok(true)
    }

    /// Sends blobs; those that are there already are not sent. Returns how many were sent.
    ///
    /// # Errors
    /// [`RepositoryError`]; blobs that were sent stay.
    pub fn send_blobs(&self, uploads: &[Upload], progress: &dyn Progress) -> Result<usize, RepositoryError> {
        let sends = uploads.iter().enumerate().map(|(number, upload)| async move {
            let (layer, phase) = (number, Phase::Upload);
            progress.event(Event::Started { layer, phase, name: &upload.name, bytes_total: Some(upload.bytes) });
            let is_sent = self.supply(&upload.digest, upload.bytes, async || self.send_one(upload).await).await?;
            progress.event(Event::Advanced { layer, phase, bytes: upload.bytes });
            progress.event(Event::Finished { layer, phase });
            Ok::<_, RepositoryError>(usize::from(is_sent))
        });
        let all = stream::iter(sends).buffer_unordered(PARALLEL);
        self.runtime.block_on(all.try_fold(0_usize, async |sum, sent| Ok(sum.saturating_add(sent))))
    }

    /// Sends a document as a blob, unless it is there.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn send_document(&self, bytes: &[u8]) -> Result<Digest, RepositoryError> {
        let digest = digest::of_bytes(bytes);
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let send = async || {
            self.put_blob(&digest, length, Body::from(bytes.to_vec())).await?;
            self.counters.sent.fetch_add(length, Ordering::Relaxed);
            Ok(())
        };
        self.runtime.block_on(self.supply(&digest, length, send))?;
        Ok(digest)
    }

    async fn send_one(&self, upload: &Upload) -> Result<(), RepositoryError> {
        let (file, counters) = (upload.file.try_clone()?, Arc::clone(&self.counters));
        let end = upload.bytes;
        let pieces = stream::try_unfold(0_u64, move |at| {
            let piece = read_piece(&file, at, end);
            if let Ok(Some((bytes, _))) = &piece {
                counters.sent.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
            }
            std::future::ready(piece)
        });
        self.put_blob(&upload.digest, upload.bytes, Body::wrap_stream(pieces)).await
    }

    /// Opens an upload and fills it at once.
    async fn put_blob(&self, digest: &Digest, bytes: u64, body: Body) -> Result<(), RepositoryError> {
        let begin = self.request(Method::POST, self.url("blobs/uploads/")?).header(CONTENT_LENGTH, 0);
        let begun = self.send(begin).await?;
        let url = self.location(&begun, digest)?;
        let request = self.request(Method::PUT, url);
        let request = request.header(CONTENT_LENGTH, bytes).header(CONTENT_TYPE, "application/octet-stream");
        let done = self.send(request.body(body)).await?;
        if done.status() == StatusCode::NOT_FOUND {
            return Err(self.refusal(done).await);
        }
        Ok(())
    }

    fn location(&self, begun: &Response, digest: &Digest) -> Result<Url, RepositoryError> {
        let damaged = || RepositoryError::Damaged { repository: self.name(), what: "a place for an upload".to_owned() };
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(damaged)?;
        let mut url = self.base.join(location).map_err(|_| damaged())?;
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        Ok(url)
    }

    /// Receives a whole blob of at most `bytes_max` bytes, and compares it with its digest.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn document(&self, digest: &Digest, bytes_max: u64) -> Result<Vec<u8>, RepositoryError> {
        let get = async || {
            let mut response = self.send(self.request(Method::GET, self.url(&format!("blobs/{digest}"))?)).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Err(self.missing(digest));
            }
            let damaged = || RepositoryError::Damaged { repository: self.name(), what: format!("blob {digest}") };
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|source| self.unreachable(source))? {
                bytes.extend_from_slice(&chunk);
                if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
                    return Err(damaged());
                }
            }
            self.counters.received.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
            if digest::of_bytes(&bytes) == *digest { Ok(bytes) } else { Err(damaged()) }
        };
        self.runtime.block_on(self.retried(get))
    }

    fn missing(&self, digest: &Digest) -> RepositoryError {
        RepositoryError::Missing { repository: self.name(), what: format!("blob {digest}") }
    }

    /// Receives parts of blobs; what comes is not compared with anything.
    ///
    /// # Errors
    /// [`RepositoryError`]; what came until then was taken.
    pub fn read(&self, parts: &[Part], sink: Sink<'_>, progress: &dyn Progress) -> Result<(), RepositoryError> {
        let reads = parts.iter().enumerate().map(|(number, part)| async move {
            let total = part.range.end.saturating_sub(part.range.start);
            let (layer, phase) = (number, Phase::Download);
            progress.event(Event::Started { layer, phase, name: &part.name, bytes_total: Some(total) });
            let mut at = part.range.start;
            let mut tries = 0;
            while at < part.range.end {
                let before = at;
                let stop = match self.read_once(number, part, &mut at, (sink, progress)).await {
                    Ok(()) => continue,
                    Err(stop) => stop,
                };
                tries = if at > before { 1 } else { tries + 1 };
                if matches!(stop, RepositoryError::Unauthorized { .. }) && tries == 1 {
                    self.log_in().await?;
                    continue;
                }
                if tries >= self.tries_max || !stop.is_passing() {
                    return Err(stop);
                }
                tokio::time::sleep(blob::pause(tries)).await;
            }
            progress.event(Event::Finished { layer, phase });
            Ok::<_, RepositoryError>(())
        });
        self.runtime.block_on(stream::iter(reads).buffer_unordered(PARALLEL).try_collect())
    }

    /// Asks for what is missing of a part, once. A registry that knows no ranges sends the whole blob.
    async fn read_once(
        &self,
        number: usize,
        part: &Part,
        at: &mut u64,
        (sink, progress): (Sink<'_>, &dyn Progress),
    ) -> Result<(), RepositoryError> {
        let wanted = part.range.end;
        let range = format!("bytes={at}-{}", wanted.saturating_sub(1));
        let url = self.url(&format!("blobs/{}", part.digest))?;
        let response = self.send(self.request(Method::GET, url).header(RANGE, range)).await?;
        let mut offset = match response.status() {
            StatusCode::NOT_FOUND => return Err(self.missing(&part.digest)),
            StatusCode::PARTIAL_CONTENT => *at,
            _ => 0,
        };
        let mut chunks = response.bytes_stream();
        while *at < wanted
            && let Some(chunk) = chunks.next().await
        {
            let chunk = chunk.map_err(|source| self.unreachable(source))?;
            self.counters.received.fetch_add(u64::try_from(chunk.len()).unwrap_or(0), Ordering::Relaxed);
            let skipped = usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX).min(chunk.len());
            let room = usize::try_from(wanted.saturating_sub(*at)).unwrap_or(usize::MAX);
            let fresh = chunk.get(skipped..).unwrap_or_default();
            let fresh = fresh.get(..room.min(fresh.len())).unwrap_or_default();
            offset = offset.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            sink(number, *at, fresh)?;
            *at = at.saturating_add(u64::try_from(fresh.len()).unwrap_or(u64::MAX));
            let bytes = at.saturating_sub(part.range.start);
            progress.event(Event::Advanced { layer: number, phase: Phase::Download, bytes });
        }
        if *at < wanted {
            let what = format!("a part of blob {} that is too short", part.digest);
            return Err(RepositoryError::Damaged { repository: self.name(), what });
        }
        Ok(())
    }
}

type Piece = Option<(Vec<u8>, u64)>;

fn read_piece(file: &File, at: u64, end: u64) -> io::Result<Piece> {
    let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(PIECE_BYTES);
    if left == 0 {
        return Ok(None);
    }
    let mut piece = vec![0; left];
    file.read_exact_at(&mut piece, at)?;
    let next = at.saturating_add(u64::try_from(left).unwrap_or(u64::MAX));
    Ok(Some((piece, next)))
}

/// Returns the SHA-256 and the length of a file.
///
/// # Errors
/// The system's.
pub fn sum(file: &File) -> io::Result<(Digest, u64)> {
    let mut reader = digest::HashReader::new(io::BufReader::with_capacity(PIECE_BYTES, file));
    io::copy(&mut reader, &mut io::sink())?;
    Ok(reader.finish())
}
