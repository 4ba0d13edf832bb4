//! One client of a supervisor: a packet socket and a bounded queue towards it.
//!
//! A client that reads slowly first slows the output down for a moment ([`STALL_MAX`]), then is skipped: it loses
//! output, is told how much, and still learns how the run ended. It never holds up the container for longer.

use super::protocol::Reply;
use super::socket::{Received, receive_packet, send_packet};
use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes that may wait for a client before output is slowed down.
const QUEUE_BYTES_MAX: usize = 256 * 1024;
/// Longest time for which output waits until a full queue is half empty again.
pub(super) const STALL_MAX: Duration = Duration::from_secs(2);

/// A connected client.
#[derive(Debug)]
pub(super) struct Client {
    fd: OwnedFd,
    /// Tells it from every other client of the session, also after those have gone.
    pub(super) number: u64,
    queue: VecDeque<Vec<u8>>,
    queue_bytes: usize,
    /// Since when output waits for it: from a full queue until half of it has gone.
    stalled_at: Option<Duration>,
    skipped_bytes: u64,
    is_skipping: bool,
    is_gone: bool,
    /// Whether it gets output.
    pub(super) is_attached: bool,
}

impl Client {
    pub(super) fn new(fd: OwnedFd, number: u64) -> Self {
        Self {
            fd,
            number,
            queue: VecDeque::new(),
            queue_bytes: 0,
            stalled_at: None,
            skipped_bytes: 0,
            is_skipping: false,
            is_gone: false,
            is_attached: false,
        }
    }

    /// A client that is attached without having asked: not a byte of output is missed.
    pub(super) fn attached(fd: OwnedFd, number: u64) -> Self {
        Self { is_attached: true, ..Self::new(fd, number) }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(super) fn interest(&self) -> PollFlags {
        match self.queue.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub(super) fn is_drained(&self) -> bool {
        self.is_gone || self.queue.is_empty()
    }

    /// Takes a request packet, if one is there.
    pub(super) fn receive(&mut self) -> Option<Vec<u8>> {
        match receive_packet(&self.fd) {
            Received::Packet(packet) => Some(packet),
            Received::Nothing => None,
            Received::Closed => {
                self.is_gone = true;
                None
            }
        }
    }

    /// Queues a reply that must not get lost.
    pub(super) fn tell(&mut self, reply: &Reply) {
        self.push(reply.encode());
        self.flush();
    }

    /// Queues output, or counts it as skipped.
    pub(super) fn offer(&mut self, reply: &Reply, bytes: usize) {
        if self.is_skipping {
            self.skipped_bytes = self.skipped_bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
            return;
        }
        self.tell(reply);
    }

    fn push(&mut self, packet: Vec<u8>) {
        self.queue_bytes = self.queue_bytes.saturating_add(packet.len());
        self.queue.push_back(packet);
    }

    /// Sends what can be sent now.
    pub(super) fn flush(&mut self) {
        while let Some(packet) = self.queue.front() {
            match send_packet(&self.fd, packet) {
                Ok(true) => {
                    self.queue_bytes = self.queue_bytes.saturating_sub(packet.len());
                    self.queue.pop_front();
                }
                Ok(false) => break,
                Err(_) => {
                    // It has gone without a word; nobody is left to tell.
                    self.is_gone = true;
                    return;
                }
            }
        }
        if self.queue_bytes >= QUEUE_BYTES_MAX / 2 {
            return;
        }
        self.stalled_at = None;
        if self.is_skipping {
            self.is_skipping = false;
            let skipped = std::mem::take(&mut self.skipped_bytes);
            self.push(Reply::Skipped(skipped).encode());
        }
    }

    /// Tells whether output has to wait for this client now; gives it up for output after [`STALL_MAX`].
    pub(super) fn holds_output(&mut self, now: Duration) -> bool {
        let is_full = self.stalled_at.is_some() || self.queue_bytes >= QUEUE_BYTES_MAX;
        if self.is_gone || self.is_skipping || !is_full {
            return false;
        }
        let since = *self.stalled_at.get_or_insert(now);
        if now.saturating_sub(since) < STALL_MAX {
            return true;
        }
        self.stalled_at = None;
        self.is_skipping = true;
        false
    }
}
