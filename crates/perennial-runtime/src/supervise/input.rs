//! Input on its way to a container: a bounded queue, and whom to tell that it has arrived.

use super::protocol::INPUT_WINDOW_BYTES;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;

/// End-of-file character of a terminal in its usual setting.
const END_OF_TRANSMISSION: u8 = 4;
/// Bytes that may wait: two clients with full windows.
const QUEUE_BYTES_MAX: usize = INPUT_WINDOW_BYTES * 2;

/// Where input goes.
#[derive(Debug)]
enum Target {
    /// The container has not been started; input waits.
    Waiting,
    /// A pipe, closed after the end of input.
    Pipe(OwnedFd),
    /// A terminal, which stays open.
    Terminal(OwnedFd),
    /// Nobody reads, or nobody is to: input goes nowhere, as with a closed pipe.
    Nowhere,
}

/// The queue.
#[derive(Debug)]
pub(super) struct Input {
    target: Target,
    queue: VecDeque<u8>,
    /// Who sent what is in the queue, oldest first: the client's number and bytes still to be written.
    owners: VecDeque<(u64, usize)>,
    ends: bool,
}

impl Input {
    /// Begins with an empty queue; without `interactive`, input goes nowhere.
    pub(super) fn new(interactive: bool) -> Self {
        let target = if interactive { Target::Waiting } else { Target::Nowhere };
        Self { target, queue: VecDeque::new(), owners: VecDeque::new(), ends: false }
    }

    /// Connects it to the started container.
    pub(super) fn connect(&mut self, fd: Option<OwnedFd>, is_terminal: bool) {
        self.target = match (std::mem::replace(&mut self.target, Target::Nowhere), fd, is_terminal) {
            (Target::Waiting, Some(fd), true) => Target::Terminal(fd),
            (Target::Waiting, Some(fd), false) => Target::Pipe(fd),
            (other, _, _) => match other {
                Target::Waiting | Target::Nowhere => Target::Nowhere,
                Target::Pipe(fd) => Target::Pipe(fd),
                Target::Terminal(fd) => Target::Terminal(fd),
            },
        };
        if self.ends && matches!(self.target, Target::Terminal(_)) {
            self.ends = false;
            self.queue.push_back(END_OF_TRANSMISSION);
        }
    }

    /// Queues bytes from a client; false if more are on the way than the protocol allows.
    pub(super) fn push(&mut self, client: u64, bytes: &[u8]) -> bool {
        if self.queue.len().saturating_add(bytes.len()) > QUEUE_BYTES_MAX {
            return false;
        }
        self.queue.extend(bytes);
        self.owners.push_back((client, bytes.len()));
        true
    }

    /// Ends the input after what is queued. A terminal is told by its end-of-file character.
    pub(super) fn end(&mut self) {
        match self.target {
            Target::Terminal(_) => self.queue.push_back(END_OF_TRANSMISSION),
            Target::Waiting | Target::Pipe(_) | Target::Nowhere => self.ends = true,
        }
    }

    /// Returns what to poll while something waits to be written.
    pub(super) fn pending_fd(&self) -> Option<&OwnedFd> {
        match &self.target {
            Target::Pipe(fd) | Target::Terminal(fd) => Some(fd).filter(|_| !self.queue.is_empty()),
            Target::Waiting | Target::Nowhere => None,
        }
    }

    /// Writes what can be written now; returns how many bytes of which clients are done with.
    pub(super) fn flush(&mut self) -> Vec<(u64, usize)> {
        let mut written: usize = 0;
        while !self.queue.is_empty() {
            let (front, _) = self.queue.as_slices();
            let result = match &self.target {
                Target::Pipe(fd) | Target::Terminal(fd) => rustix::io::write(fd, front),
                Target::Nowhere => Ok(front.len()),
                Target::Waiting => break,
            };
            match result {
                Ok(count) => {
                    drop(self.queue.drain(..count.min(self.queue.len())));
                    written = written.saturating_add(count);
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                // The reader has gone.
                Err(_) => self.target = Target::Nowhere,
            }
        }
        if self.ends && self.queue.is_empty() && matches!(self.target, Target::Pipe(_)) {
            self.target = Target::Nowhere;
        }
        self.settle(written)
    }

    fn settle(&mut self, mut written: usize) -> Vec<(u64, usize)> {
        let mut settled = Vec::new();
        while let Some((client, left)) = self.owners.front_mut() {
            let part = written.min(*left);
            if part == 0 && *left > 0 {
                break;
            }
            settled.push((*client, part));
            written = written.saturating_sub(part);
            *left = left.saturating_sub(part);
            if *left > 0 {
                break;
            }
            self.owners.pop_front();
        }
        settled
    }
}
