//! Signals of this process as readable descriptors.
//!
//! Handlers only write a byte into a socket, so nothing is blocked and nothing is inherited: a program started from
//! here finds every signal as it should be.

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use signal_hook::SigId;
use std::io;

/// Descriptors, one for each signal listened to, until this is dropped.
#[derive(Debug)]
pub(crate) struct Signals {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    number: i32,
    reader: OwnedFd,
    id: SigId,
}

impl Signals {
    /// Starts listening to `numbers`.
    pub(crate) fn listen(numbers: &[i32]) -> io::Result<Self> {
        let mut signals = Self { entries: Vec::with_capacity(numbers.len()) };
        for number in numbers {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (reader, writer) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            let id = signal_hook::low_level::pipe::register(*number, writer)?;
            signals.entries.push(Entry { number: *number, reader, id });
        }
        Ok(signals)
    }

    /// Returns what to poll to notice any of them.
    pub(crate) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.entries.iter().map(|entry| PollFd::new(&entry.reader, PollFlags::IN))
    }

    /// Returns the numbers of those that came in since the last time.
    pub(crate) fn take(&self) -> Vec<i32> {
        let came = |entry: &&Entry| {
            let mut buffer = [0_u8; 64];
            matches!(rustix::io::read(&entry.reader, &mut buffer), Ok(count) if count > 0)
        };
        self.entries.iter().filter(came).map(|entry| entry.number).collect()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for entry in &self.entries {
            // False only if it was not registered any more.
            let _: bool = signal_hook::low_level::unregister(entry.id);
        }
    }
}
