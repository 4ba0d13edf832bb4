//! When the packs of a parcel are written anew: what generations that have gone leave in them is dead weight, and each
//! small push adds a small pack.

use super::{PACKS_MAX, PackAt};

/// Content beyond twice what is needed that is borne, in bytes.
const SLACK_BYTES: u64 = 64 << 20;

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
    if is_whole || (!has_theirs && (is_heavy || packs.len() >= PACKS_MAX / 2)) {
        Sending::Afresh
    } else if loses_base {
        Sending::Doubt
    } else {
        Sending::GoOn
    }
}
