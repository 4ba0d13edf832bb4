//! What one client may take of what all share.

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
