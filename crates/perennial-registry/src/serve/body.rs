//! A blob on its way to a client: one chunk at a time, in memory that all streams share.
//!
//! What the kernel has in memory is read where the chunk is needed: that takes less time than waking a thread that may
//! block. What it has not is read on such a thread, and by then the kernel reads ahead by itself. The next chunk is read
//! when the one before has been given to the kernel, into the same memory; only where a processor would idle is it read
//! by another thread meanwhile.

use super::app::App;
use super::memory::Buffer;
use super::storage::BlobReader;
use super::verdict::{Pending, Verdict};
use bytes::{Buf, Bytes};
use hyper::body::{Body, Frame, SizeHint};
use perennial_core::registry::name::BlobDigest;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use tokio::task::JoinHandle;

type Reader = Box<dyn BlobReader>;
type Read = JoinHandle<(Reader, io::Result<Chunk>)>;
type Waiting = Pin<Box<dyn Future<Output = Verdict> + Send>>;

/// What is sent: a short answer, or a piece of a blob.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A short answer.
    Text(Bytes),
    /// A piece of a blob.
    Chunk(Chunk),
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self::Text(bytes)
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Self::Text(bytes) => bytes.remaining(),
            Self::Chunk(chunk) => chunk.end.saturating_sub(chunk.at),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Text(bytes) => bytes.chunk(),
            Self::Chunk(chunk) => chunk.buffer.bytes().get(chunk.at..chunk.end).unwrap_or_default(),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Text(bytes) => bytes.advance(count),
            Self::Chunk(chunk) => chunk.at = chunk.at.saturating_add(count).min(chunk.end),
        }
    }
}

/// Bytes of a blob in a stream's buffer, which goes back to the stream when they have been sent.
#[derive(Debug)]
pub(crate) struct Chunk {
    buffer: Buffer,
    at: usize,
    end: usize,
    home: Arc<Home>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let waker = {
            let mut place = super::meta::lock(&self.home.0);
            place.buffer.get_or_insert(std::mem::take(&mut self.buffer));
            place.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Where a stream's buffer is while nothing is in it. One is enough: where two were in use, the other is given up.
#[derive(Debug, Default)]
struct Home(Mutex<Place>);

#[derive(Debug, Default)]
struct Place {
    buffer: Option<Buffer>,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Next {
    /// Nothing is being read.
    Idle(Reader),
    /// A chunk is being read on a thread that may block.
    Reading(Read),
    /// All has been read, or reading has failed.
    Done,
}

/// The bytes of a blob, or of a part of it.
pub(crate) struct BlobBody {
    app: Arc<App>,
    digest: BlobDigest,
    next: Next,
    offset: u64,
    left: u64,
    verdict: Option<Waiting>,
    home: Arc<Home>,
    /// The last chunk, until the verdict is there.
    held: Option<Chunk>,
}

impl std::fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobBody").field("offset", &self.offset).field("left", &self.left).finish_non_exhaustive()
    }
}

impl BlobBody {
    /// Makes a body of `bytes` bytes from `offset`.
    pub(crate) fn new(
        app: &Arc<App>,
        digest: &BlobDigest,
        reader: Reader,
        (offset, bytes): (u64, u64),
        verdict: Pending,
    ) -> Self {
        app.streams.fetch_add(1, Ordering::Relaxed);
        let verdict: Option<Waiting> = match verdict {
            Pending::Known(Verdict::Sound) => None,
            pending @ (Pending::Known(_) | Pending::Soon(_)) => Some(Box::pin(pending.wait())),
        };
        let place = Place { buffer: Some(Buffer::default()), waker: None };
        let home = Arc::new(Home(Mutex::new(place)));
        let (app, digest, next) = (Arc::clone(app), digest.clone(), Next::Idle(reader));
        Self { app, digest, next, offset, left: bytes, verdict, home, held: None }
    }

    /// Takes the buffer, sized for the next chunk, once what was in it is sent.
    fn poll_buffer(&self, context: &mut Context<'_>) -> Poll<(Buffer, usize)> {
        let mut place = super::meta::lock(&self.home.0);
        let Some(mut buffer) = place.buffer.take() else {
            place.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(place);
        let count = self.sized(&mut buffer);
        Poll::Ready((buffer, count))
    }

    /// Begins to read the next chunk while this one is sent, where there are fewer streams than processors.
    fn read_ahead(&mut self) {
        if self.left == 0 || self.app.streams.load(Ordering::Relaxed) >= self.app.processors {
            return;
        }
        let Next::Idle(reader) = std::mem::replace(&mut self.next, Next::Done) else { return };
        let mut buffer = super::meta::lock(&self.home.0).buffer.take().unwrap_or_default();
        let end = self.sized(&mut buffer);
        self.next = self.reading(reader, Chunk { buffer, at: 0, end, home: Arc::clone(&self.home) });
    }

    /// Sizes a buffer for the next chunk, and returns how much of it is to be filled.
    fn sized(&self, buffer: &mut Buffer) -> usize {
        let count = buffer.take_share(&self.app.sending);
        usize::try_from(self.left).unwrap_or(count).min(count)
    }

    /// Reads a chunk on a thread that may block.
    fn reading(&self, mut reader: Reader, mut chunk: Chunk) -> Next {
        let offset = self.offset;
        Next::Reading(super::app::spawn_read(&self.app, move || {
            let read = reader.read_at(offset, chunk.room());
            (reader, read.map(|()| chunk))
        }))
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Chunk>>> {
        if let Next::Idle(_) = self.next {
            if self.left == 0 {
                return Poll::Ready(None);
            }
            let (buffer, end) = ready!(self.poll_buffer(context));
            if let Some(chunk) = self.read_on(buffer, end) {
                return Poll::Ready(Some(Ok(self.passed(chunk))));
            }
        }
        let Next::Reading(read) = &mut self.next else { return Poll::Ready(None) };
        let (reader, chunk) = match ready!(Pin::new(read).poll(context)) {
            Ok(done) => done,
            Err(error) => {
                self.next = Next::Done;
                return Poll::Ready(Some(Err(io::Error::other(error))));
            }
        };
        match chunk {
            Ok(chunk) => {
                self.next = Next::Idle(reader);
                Poll::Ready(Some(Ok(self.passed(chunk))))
            }
            Err(error) => {
                self.next = Next::Done;
                Poll::Ready(Some(Err(self.unread(&reader, error))))
            }
        }
    }

    /// Lets it be found out, on a thread that may block, what it means that a chunk could not be read; returns what ends
    /// the stream.
    fn unread(&self, reader: &Reader, error: io::Error) -> io::Error {
        let (app, digest, stamp) = (Arc::clone(&self.app), self.digest.clone(), reader.stamp().clone());
        let told = io::Error::from(error.kind());
        tokio::task::spawn_blocking(move || app.unread(&digest, Some(&stamp), error));
        told
    }

    /// Reads a chunk if that takes no time; else begins to read it.
    fn read_on(&mut self, buffer: Buffer, end: usize) -> Option<Chunk> {
        let Next::Idle(mut reader) = std::mem::replace(&mut self.next, Next::Done) else { return None };
        let mut chunk = Chunk { buffer, at: 0, end, home: Arc::clone(&self.home) };
        if let Some(count) = reader.read_at_hand(self.offset, chunk.room()) {
            chunk.end = count;
            self.next = Next::Idle(reader);
            return Some(chunk);
        }
        self.next = self.reading(reader, chunk);
        None
    }

    fn passed(&mut self, chunk: Chunk) -> Chunk {
        let count = u64::try_from(chunk.end).unwrap_or(0);
        self.offset = self.offset.saturating_add(count);
        self.left = self.left.saturating_sub(count);
        chunk
    }

    /// Gives the last chunk away once the verdict is good.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Piece>>>> {
        if let Some(waiting) = &mut self.verdict {
            let verdict = ready!(waiting.as_mut().poll(context));
            self.verdict = None;
            if verdict != Verdict::Sound {
                self.held = None;
                return Poll::Ready(Some(Err(io::Error::other("the blob is damaged"))));
            }
        }
        Poll::Ready(self.held.take().map(|chunk| Ok(Frame::data(Piece::Chunk(chunk)))))
    }
}

impl Chunk {
    fn room(&mut self) -> &mut [u8] {
        self.buffer.bytes_mut().get_mut(..self.end).unwrap_or_default()
    }
}

impl Body for BlobBody {
    type Data = Piece;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, io::Error>>> {
        if self.held.is_some() {
            return self.poll_held(context);
        }
        match ready!(self.poll_chunk(context)) {
            None => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            Some(Ok(chunk)) => {
                if self.left == 0 {
                    self.held = Some(chunk);
                    return self.poll_held(context);
                }
                self.read_ahead();
                Poll::Ready(Some(Ok(Frame::data(Piece::Chunk(chunk)))))
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
