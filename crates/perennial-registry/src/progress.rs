//! What a long import or pull tells while it works; the command draws bars from it.
//!
//! Rates are the renderer's: it has a clock, this crate has none.

use perennial_core::id::Digest;

/// What is being done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its blob comes over the network.
    Download,
    /// It goes out over the network.
    Upload,
    /// Its entries are written into the store.
    Apply,
}

/// One thing that happened. Layers are counted from 0, oldest first.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The image is known: so many layers will follow.
    Image {
        /// The image's digest.
        digest: &'a Digest,
        /// Its layers.
        layers: usize,
    },
    /// A phase of a layer begins.
    Started {
        /// The layer.
        layer: usize,
        /// What begins.
        phase: Phase,
        /// Name of the layer for people: digest of its blob, or its path.
        name: &'a str,
        /// Bytes to do, where known.
        bytes_total: Option<u64>,
    },
    /// Bytes are done: the total of the phase so far, not the step. May go back when a transfer starts anew.
    Advanced {
        /// The layer.
        layer: usize,
        /// What goes on.
        phase: Phase,
        /// Bytes done so far.
        bytes: u64,
    },
    /// A phase of a layer is done.
    Finished {
        /// The layer.
        layer: usize,
        /// What is done.
        phase: Phase,
    },
    /// The store has this layer already.
    Known {
        /// The layer.
        layer: usize,
        /// Digest of the uncompressed layer.
        diff_id: &'a Digest,
    },
    /// A transfer failed and is tried again.
    Retried {
        /// The layer.
        layer: usize,
        /// Attempts so far.
        attempts: u32,
        /// Why.
        reason: &'a str,
    },
    /// Something people should know, such as an entry that could not be kept.
    Note(&'a str),
}

/// Receives events. Called often: it must be quick.
pub trait Progress {
    /// Takes one event.
    fn event(&self, event: Event<'_>);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: Event<'_>) {}
}
