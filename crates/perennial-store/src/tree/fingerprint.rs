//! One number for a whole tree, to see whether anything in it was touched.

use super::cursor::EntryStat;
use super::error::TreeError;
use super::walk::{Order, Visit, walk};
use rustix::fd::BorrowedFd;
use sha2::{Digest as _, Sha256};

/// Returns a digest of the path, identity, times, size, mode, owner, number of names and device of every entry.
///
/// Whatever a process does to a tree changes some entry's time of change, so equal fingerprints of one tree mean that
/// nothing was touched. It says nothing about two different trees.
///
/// # Errors
/// If the tree cannot be read.
pub fn fingerprint(tree: BorrowedFd<'_>) -> Result<[u8; 32], TreeError> {
    let mut hasher = Sha256::new();
    walk(tree, Order::Sorted, &mut |visit| {
        match visit {
            Visit::NonDir(entry) => add(&mut hasher, entry.name.to_bytes(), entry.stat),
            Visit::Enter { stat, path, .. } => add(&mut hasher, path.last(), stat),
            // An empty name, which no entry has, closes a directory.
            Visit::Leave { .. } => hasher.update([0]),
        }
        Ok(())
    })?;
    Ok(hasher.finalize().into())
}

/// Adds one entry by its name alone: with whole paths a deep tree would cost the square of its depth.
fn add(hasher: &mut Sha256, name: &[u8], stat: &EntryStat) {
    // Names end with a zero byte, which none contains, so that no two trees give the same input.
    hasher.update(name);
    hasher.update([0]);
    for number in [stat.ino, stat.nlink, stat.rdev, stat.size] {
        hasher.update(number.to_le_bytes());
    }
    for number in [stat.mode, stat.uid, stat.gid] {
        hasher.update(number.to_le_bytes());
    }
    for time in [stat.mtime, stat.ctime] {
        hasher.update(time.tv_sec.to_le_bytes());
        hasher.update(time.tv_nsec.to_le_bytes());
    }
}
