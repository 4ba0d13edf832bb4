//! When the packs of a parcel are written anew, since what generations that have gone leave in them is dead weight; and which
//! of them are put together, since each small push adds a small pack.

use super::PackAt;
use alloc::vec::Vec;

/// Content beyond twice what is needed that is borne, in bytes.
const SLACK_BYTES: u64 = 64 << 20;

/// A pack below this is tiny, in bytes: a push of little.
const TINY_BYTES: u64 = 256 << 10;
/// So many tiny packs are put together: most often a few megabytes are sent again then.
const TINY_MAX: usize = 256;
/// A pack below this can be put together with others, in bytes: half of a full one.
const PARTIAL_BYTES: u64 = 16 << 20;
/// So many packs that are not full are put together: each push asks for each, and a first pull reads the index of each.
const PARTIAL_MAX: usize = 1024;
/// At most so much is put together by one push, in bytes.
const JOIN_BYTES_MAX: u64 = 512 << 20;

/// What a push does with the packs that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// Adds to them.
    GoOn,
    /// Adds to them, but takes no object for being there because they say how it is put together: each chunk is looked
    /// for.
    Doubt,
    /// Writes everything anew; a registry frees the old ones when nothing names them.
    Afresh,
}

/// What is known of the packs that are there, beside what they have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Whether something goes that they may rely on: one of them is gone, or an image is no longer named.
    pub loses_base: bool,
    /// Whether generations stay that only they have.
    pub has_theirs: bool,
    /// Whether everything is to be sent again, because something there is damaged.
    pub is_whole: bool,
}

/// Decides whether packs are added to: as long as what is in them is at most about twice what is needed, so that what is
/// sent again is never more than what was sent in between; and always where they have what nobody here can write anew.
#[must_use]
pub fn plan(packs: &[PackAt], needed_bytes: u64, standing: Standing) -> Sending {
    let Standing { loses_base, has_theirs, is_whole } = standing;
    let content = packs.iter().fold(0_u64, |sum, pack| sum.saturating_add(pack.content_bytes));
    let is_heavy = content > needed_bytes.saturating_mul(2).saturating_add(SLACK_BYTES);
    if is_whole || (!has_theirs && is_heavy) {
        Sending::Afresh
    } else if loses_base {
        Sending::Doubt
    } else {
        Sending::GoOn
    }
}

/// Decides which packs, by their number, a push that adds to them puts together as they are, the smallest first: whatever
/// needs them finds the same in fewer. So how many there are depends on how much is in them, and not on how often was
/// pushed, also where nobody here can write anew what they have.
#[must_use]
pub fn to_join(packs: &[PackAt]) -> Vec<usize> {
    let below = |bytes: u64| packs.iter().enumerate().filter(move |(_, pack)| pack.bytes < bytes);
    let bound = match (below(TINY_BYTES).count() >= TINY_MAX, below(PARTIAL_BYTES).count() >= PARTIAL_MAX) {
        (_, true) => PARTIAL_BYTES,
        (true, false) => TINY_BYTES,
        (false, false) => return Vec::new(),
    };
    let mut smallest: Vec<(u64, usize)> = below(bound).map(|(number, pack)| (pack.bytes, number)).collect();
    smallest.sort_unstable();
    let mut sum = 0_u64;
    smallest.retain(|(bytes, _)| {
        sum = sum.saturating_add(*bytes);
        sum <= JOIN_BYTES_MAX
    });
    smallest.into_iter().map(|(_, number)| number).collect()
}
