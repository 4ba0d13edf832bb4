//! A blob on its way to a client: read in chunks on a thread that may block, one ahead of what is being sent.

use super::app::App;
use super::storage::BlobReader;
use super::verdict::{Pending, Verdict};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use tokio::task::JoinHandle;

/// Largest chunk: more gains nothing, measured on the loopback device.
const CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Smallest chunk, for when there are many streams.
const CHUNK_BYTES_MIN: usize = 16 * 1024;
/// Bytes of chunks that all streams together shall hold.
const CHUNKS_BYTES: usize = 16 * 1024 * 1024;

type Reader = Box<dyn BlobReader>;
type Read = JoinHandle<(Reader, io::Result<Vec<u8>>)>;
type Waiting = Pin<Box<dyn Future<Output = Verdict> + Send>>;

#[derive(Debug)]
enum Next {
    /// Nothing is being read.
    Idle(Reader),
    /// A chunk is being read.
    Reading(Read),
    /// All has been read, or reading has failed.
    Done,
}

/// The bytes of a blob, or of a part of it.
pub(crate) struct BlobBody {
    app: Arc<App>,
    next: Next,
    offset: u64,
    left: u64,
    verdict: Option<Waiting>,
    /// The last chunk, until the verdict is there.
    held: Option<Bytes>,
}

impl std::fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobBody").field("offset", &self.offset).field("left", &self.left).finish_non_exhaustive()
    }
}

impl BlobBody {
    /// Makes a body of `bytes` bytes from `offset`.
    pub(crate) fn new(app: &Arc<App>, reader: Reader, offset: u64, bytes: u64, verdict: Pending) -> Self {
        app.streams.fetch_add(1, Ordering::Relaxed);
        let verdict: Option<Waiting> = match verdict {
            Pending::Known(Verdict::Sound) => None,
            pending @ (Pending::Known(_) | Pending::Soon(_)) => Some(Box::pin(pending.wait())),
        };
        Self { app: Arc::clone(app), next: Next::Idle(reader), offset, left: bytes, verdict, held: None }
    }

    fn read_on(&mut self) {
        if !matches!(self.next, Next::Idle(_)) {
            return;
        }
        let Next::Idle(mut reader) = std::mem::replace(&mut self.next, Next::Done) else { return };
        if self.left == 0 {
            return;
        }
        let streams = self.app.streams.load(Ordering::Relaxed).max(1);
        let chunk = (CHUNKS_BYTES / streams).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        let count = usize::try_from(self.left).unwrap_or(chunk).min(chunk);
        let offset = self.offset;
        let passed = u64::try_from(count).unwrap_or(0);
        self.offset = self.offset.saturating_add(passed);
        self.left = self.left.saturating_sub(passed);
        self.next = Next::Reading(super::app::spawn_read(&self.app, move || {
            let bytes = reader.read_at(offset, count);
            (reader, bytes)
        }));
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.read_on();
        let Next::Reading(read) = &mut self.next else { return Poll::Ready(None) };
        let (reader, bytes) = match ready!(Pin::new(read).poll(context)) {
            Ok(done) => done,
            Err(error) => {
                self.next = Next::Done;
                return Poll::Ready(Some(Err(io::Error::other(error))));
            }
        };
        self.next = Next::Idle(reader);
        match bytes {
            Ok(bytes) => Poll::Ready(Some(Ok(Bytes::from(bytes)))),
            Err(error) => {
                self.next = Next::Done;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    /// Gives the last chunk away once the verdict is good.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(waiting) = &mut self.verdict {
            let verdict = ready!(waiting.as_mut().poll(context));
            self.verdict = None;
            if verdict != Verdict::Sound {
                self.held = None;
                return Poll::Ready(Some(Err(io::Error::other("the blob is damaged"))));
            }
        }
        Poll::Ready(self.held.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.held.is_some() {
            return self.poll_held(context);
        }
        match ready!(self.poll_chunk(context)) {
            None => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            Some(Ok(bytes)) => {
                if self.left == 0 {
                    self.held = Some(bytes);
                    return self.poll_held(context);
                }
                self.read_on();
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

impl Drop for BlobBody {
    fn drop(&mut self) {
        self.app.streams.fetch_sub(1, Ordering::Relaxed);
    }
}
