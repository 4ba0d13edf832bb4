//! What one client may take of what all share.

use super::manifest::MANIFEST_BYTES_MAX;
use crate::time::Time;
use alloc::collections::BTreeMap;
use core::net::{IpAddr, Ipv6Addr};

/// Files that a registry needs beside those of connections: the record's, those of chores, and connections to an object
/// store.
const FILES_RESERVED: u64 = 256;
/// Files of one connection: itself, and the blob or the upload that goes over it.
const FILES_PER_CONNECTION: u64 = 2;

/// Returns how many files a registry with this many connections needs.
#[must_use]
pub fn files_needed(connections: usize) -> u64 {
    let connections = u64::try_from(connections).unwrap_or(u64::MAX);
    connections.saturating_mul(FILES_PER_CONNECTION).saturating_add(FILES_RESERVED)
}

/// Returns how many of the connections that are asked for fit into `files` open files; at least one.
#[must_use]
pub fn connections_that_fit(asked: usize, files: u64) -> usize {
    let fit = files.saturating_sub(FILES_RESERVED) / FILES_PER_CONNECTION;
    asked.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
}

/// Parts in which an object store takes an object, at most.
const PARTS_MAX: u64 = 10_000;
/// Bytes of a part where that is enough.
pub const PART_BYTES: u64 = 8 * 1024 * 1024;
/// Largest part: it is in memory, and is sent while the store says nothing.
pub const PART_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Returns the bytes of each part of an object of `bytes` bytes; nothing where it is too large for any.
#[must_use]
pub fn part_bytes(bytes: u64) -> Option<u64> {
    let least = bytes.div_ceil(PARTS_MAX).max(1).checked_next_multiple_of(1024 * 1024)?;
    Some(least.max(PART_BYTES)).filter(|part| *part <= PART_BYTES_MAX)
}

/// KiB of manifests that may be in memory at once while they are put.
pub const MANIFESTS_KIB: u32 = 32 * 1024;
/// A manifest of so many bytes does not count: most are smaller, and need not wait for those that are not.
const MANIFEST_FREE_BYTES: u64 = 16 * 1024;

/// Returns how many of [`MANIFESTS_KIB`] a manifest of this announced length takes; where nothing was announced, it may
/// become as large as any.
#[must_use]
pub fn manifest_kib(announced: Option<u64>) -> u32 {
    let bytes = announced.unwrap_or(MANIFEST_BYTES_MAX).min(MANIFEST_BYTES_MAX);
    if bytes <= MANIFEST_FREE_BYTES { 0 } else { u32::try_from(bytes.div_ceil(1024)).unwrap_or(MANIFESTS_KIB) }
}

/// Bytes in a second that a client has to send or take while it should.
pub const PACE_BYTES_PER_S: u64 = 1024;

/// How fast a client sends or takes, in one window of time after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    window_nanos: u64,
    nanos: u64,
    bytes: u64,
}

impl Pace {
    /// Makes one that looks at windows of this length.
    #[must_use]
    pub fn new(window_nanos: u64) -> Self {
        Self { window_nanos, nanos: 0, bytes: 0 }
    }

    /// Counts bytes, and the time for which they were waited for; returns whether that is fast enough.
    pub fn is_kept(&mut self, bytes: u64, nanos: u64) -> bool {
        (self.bytes, self.nanos) = (self.bytes.saturating_add(bytes), self.nanos.saturating_add(nanos));
        if self.nanos < self.window_nanos {
            return true;
        }
        let least = self.nanos / 1_000_000 * PACE_BYTES_PER_S / 1000;
        let is_kept = self.bytes >= least;
        (self.bytes, self.nanos) = (0, 0);
        is_kept
    }
}

/// Wrong passwords after which no more are looked at for a while.
pub const FAILURES_MAX: u32 = 10;
/// How long that while is.
pub const FAILURES_NANOS: u64 = 60 * 1_000_000_000;
/// Most names of which failures are remembered; all are forgotten when there are more.
const FAILURES_REMEMBERED_MAX: usize = 10_000;

/// Returns whom an address belongs to: whoever has one address of a network of IPv6 has them all.
#[must_use]
pub fn origin(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64))),
        },
    }
}

/// Wrong passwords of late, by who sent them for whom.
#[derive(Debug, Clone)]
pub struct Failures<K>(BTreeMap<K, (u32, Time)>);

impl<K> Default for Failures<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Failures<K> {
    /// Returns whether there were too many.
    #[must_use]
    pub fn are_too_many(&self, key: &K, now: Time) -> bool {
        self.0.get(key).is_some_and(|(count, since)| *count >= FAILURES_MAX && now.nanos_since(*since) < FAILURES_NANOS)
    }

    /// Counts one.
    pub fn add(&mut self, key: K, now: Time) {
        if self.0.len() >= FAILURES_REMEMBERED_MAX && !self.0.contains_key(&key) {
            self.0.clear();
        }
        let (count, since) = self.0.entry(key).or_insert((0, now));
        if now.nanos_since(*since) >= FAILURES_NANOS {
            (*count, *since) = (0, now);
        }
        *count = count.saturating_add(1);
    }
}
