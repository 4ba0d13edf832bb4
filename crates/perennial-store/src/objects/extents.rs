//! Which stretches of two open files are the same blocks: asked of file systems that are known to tell the truth.

use crate::tree::cursor::EntryStat;
use fiemap::{Fiemap, FiemapExtent, FiemapExtentFlags, FiemapFlags};
use perennial_core::sealed::extents::{Comparison, Extent, Place};
use rustix::fd::BorrowedFd;
use rustix::fs::{FsWord, fstatfs};

/// File systems whose addresses mean one place each, however many devices they have (`statfs(2)`): XFS, btrfs.
const SHARING: [FsWord; 2] = [0x5846_5342, 0x9123_683e];
/// What an extent may be said to be and still be what its address says. Among the others are those that are not
/// written yet, compressed, encrypted, or kept among metadata.
const PLAIN: FiemapExtentFlags =
    FiemapExtentFlags::LAST.union(FiemapExtentFlags::MERGED).union(FiemapExtentFlags::SHARED);

/// Compares two files, which the caller keeps open and nobody writes to; `None` where their blocks say nothing.
pub(super) fn compare(
    one: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
) -> Option<Comparison<impl Iterator<Item = Extent>, impl Iterator<Item = Extent>>> {
    let dev = |file| EntryStat::of_open(file).ok().map(|stat| stat.dev);
    let tells = |file| fstatfs(file).is_ok_and(|stat| SHARING.contains(&stat.f_type));
    if dev(one).is_none() || dev(one) != dev(other) || !tells(one) || !tells(other) {
        return None;
    }
    Some(Comparison::new(map(one), map(other)))
}

/// Lists the extents of a file after what was written to it has got its place.
fn map(file: BorrowedFd<'_>) -> impl Iterator<Item = Extent> {
    // What cannot be told is not known to be the same.
    Fiemap::with_flags(file, FiemapFlags::SYNC)
        .map(|extent| extent.as_ref().map_or_else(|_| Extent::doubtful_from(0), described))
}

const fn described(extent: &FiemapExtent) -> Extent {
    let flags = extent.fe_flags;
    let is_plain = flags.bits() & !PLAIN.bits() == 0;
    let place = match is_plain && flags.contains(FiemapExtentFlags::SHARED) {
        true => Place::Shared(extent.fe_physical),
        false => Place::Doubtful,
    };
    Extent { offset: extent.fe_logical, bytes: extent.fe_length, place }
}
