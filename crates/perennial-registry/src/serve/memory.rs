//! Memory that many streams share: what all hold is counted, and each takes its part of what is free.

use perennial_core::registry::share::Share;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory of one kind of streams.
#[derive(Debug)]
pub(crate) struct Memory {
    share: Share,
    held: AtomicUsize,
}

impl Memory {
    /// Makes memory of which nothing is taken.
    pub(crate) fn new(share: Share) -> Arc<Self> {
        Arc::new(Self { share, held: AtomicUsize::new(0) })
    }

    /// Returns how many bytes a stream may take now.
    pub(crate) fn share(&self) -> usize {
        self.share.next(self.held.load(Ordering::Relaxed))
    }
}

/// Bytes of it that are taken, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Taken {
    /// Takes nothing yet.
    pub(crate) fn none(memory: &Arc<Memory>) -> Self {
        Self { memory: Arc::clone(memory), bytes: 0 }
    }

    /// Holds so many bytes from now on.
    pub(crate) fn hold(&mut self, bytes: usize) {
        self.memory.held.fetch_add(bytes, Ordering::Relaxed);
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A buffer whose size is counted.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    taken: Option<Taken>,
}

impl Buffer {
    /// Makes the buffer as large as its share of the memory is now, and returns that.
    pub(crate) fn take_share(&mut self, memory: &Arc<Memory>) -> usize {
        let taken = self.taken.get_or_insert_with(|| Taken::none(memory));
        taken.hold(0);
        let bytes = memory.share();
        taken.hold(bytes);
        if self.bytes.len() > bytes {
            self.bytes.truncate(bytes);
            self.bytes.shrink_to_fit();
        } else if self.bytes.len() < bytes {
            // Nothing of what is in it is wanted any more, so nothing is copied.
            self.bytes = Vec::new();
            self.bytes.resize(bytes, 0);
        }
        bytes
    }

    /// Returns what is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the place for new bytes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
