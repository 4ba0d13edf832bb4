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
    /// Writes everything anew; a registry frees the old ones when nothing names them.
    Afresh,
}

/// Decides whether packs are added to: as long as what is in them is at most about twice what is needed, so that what is
/// sent again is never more than what was sent in between.
#[must_use]
pub fn plan(packs: &[PackAt], needed_bytes: u64) -> Sending {
    let content = packs.iter().fold(0_u64, |sum, pack| sum.saturating_add(pack.content_bytes));
    let is_heavy = content > needed_bytes.saturating_mul(2).saturating_add(SLACK_BYTES);
    if is_heavy || packs.len() >= PACKS_MAX / 2 { Sending::Afresh } else { Sending::GoOn }
}
