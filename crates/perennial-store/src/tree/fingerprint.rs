//! One number for a whole tree, to see whether anything in it was touched.

use super::attrs::{AttrIo, Target};
use super::cursor::EntryStat;
use super::error::TreeError;
use super::overlay::{self, Rule};
use super::walk::{Order, Visit, walk};
use rustix::fd::BorrowedFd;
use rustix::time::Timespec;
use sha2::{Digest as _, Sha256};

/// Returns a digest of the path, identity, times, size, mode, owner, number of names and device of every entry, and of
/// the extended attributes and flags of directories.
///
/// Whatever a process does to a file changes its time of change, so equal fingerprints of one tree mean that no file was
/// touched. That of a directory also changes when overlayfs only looks at it, and notes where it comes from: so its
/// attributes count instead. It says nothing about two different trees.
///
/// # Errors
/// If the tree cannot be read.
pub fn fingerprint(tree: BorrowedFd<'_>) -> Result<[u8; 32], TreeError> {
    let mut hasher = Sha256::new();
    let mut io = AttrIo::default();
    walk(tree, Order::Sorted, &mut |visit| {
        match visit {
            Visit::NonDir(entry) => {
                add(&mut hasher, entry.name.to_bytes(), entry.stat);
                add_time(&mut hasher, entry.stat.ctime);
            }
            Visit::Enter { own, stat, path } => {
                add(&mut hasher, path.last(), stat);
                let mut attrs = io.read(Target::Open(own), stat, &|| path.here())?;
                attrs.xattrs.retain(|name, _| overlay::rule(name) != Rule::Strip);
                for (name, value) in &attrs.xattrs {
                    hasher.update(name.to_bytes_with_nul());
                    hasher.update(value.len().to_le_bytes());
                    hasher.update(value);
                }
                hasher.update(attrs.flags.map_or(0, |flags| flags.bits()).to_le_bytes());
            }
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
    add_time(hasher, stat.mtime);
}

fn add_time(hasher: &mut Sha256, time: Timespec) {
    hasher.update(time.tv_sec.to_le_bytes());
    hasher.update(time.tv_nsec.to_le_bytes());
}
