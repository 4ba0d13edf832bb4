//! One number for a whole tree, to see whether anything in it was touched.

use super::attrs::{AttrIo, Attrs, Target};
use super::cursor::EntryStat;
use super::error::TreeError;
use super::overlay::{Rule, rule};
use super::walk::{Order, Visit, walk};
use rustix::fd::BorrowedFd;
use rustix::time::Timespec;
use sha2::{Digest as _, Sha256};

/// Returns a digest of the path, identity, times, size, mode, owner, number of names and device of every entry, and of
/// the attributes of directories.
///
/// Whatever a process does to a file changes its time of change. That of a directory says nothing: overlayfs notes the
/// origin of a merged directory in its attributes when somebody looks at it, so there the attributes themselves count,
/// without those notes. Equal fingerprints of one tree mean that nothing was changed; they say nothing about two
/// different trees.
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
                add_attributes(&mut hasher, &io.read_as_is(Target::Open(own), stat, &|| path.here())?);
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

fn add_attributes(hasher: &mut Sha256, attrs: &Attrs) {
    hasher.update(attrs.flags.map_or(0, |flags| flags.bits()).to_le_bytes());
    for (name, value) in attrs.xattrs.iter().filter(|(name, _)| !matches!(rule(name), Rule::Strip | Rule::Refuse)) {
        hasher.update(name.as_bytes_with_nul());
        // Values may hold zero bytes, so their length goes first.
        hasher.update(value.len().to_le_bytes());
        hasher.update(value);
    }
    hasher.update([0]);
}
