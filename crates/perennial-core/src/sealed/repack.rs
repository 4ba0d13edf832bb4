//! Which packs are to be written anew: those that hold mostly what nothing needs, and small ones that add up.

use super::object::ObjectId;
use alloc::vec::Vec;

/// A pack in which less than this share of its bytes is needed is written anew: so at most a third of what packs take
/// is waste, and a byte is copied at most once for two that are freed.
const LIVE_PERCENT_MIN: u64 = 67;
/// A pack below this is small, in bytes.
const SMALL_BYTES_MAX: u64 = 4 << 20;
/// So many small packs are joined: a byte is copied once for this many archived generations.
const SMALL_PACKS_MAX: usize = 16;

/// A pack, and how much of it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackUse {
    /// The pack.
    pub pack: ObjectId,
    /// Its length, in bytes.
    pub bytes: u64,
    /// Its share of bytes that are needed: compressed, by the share of its frames' contents.
    pub live_bytes: u64,
}

/// What is to be done about packs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepackPlan {
    /// Nothing in them is needed: they go.
    pub remove: Vec<ObjectId>,
    /// What is needed of them is copied to new packs, then they go.
    pub rewrite: Vec<ObjectId>,
}

/// Decides about packs; the order of the answers is that of `packs`.
#[must_use]
pub fn plan_repack(packs: &[PackUse]) -> RepackPlan {
    let dead = |pack: &&PackUse| pack.live_bytes == 0;
    let sparse = |pack: &PackUse| {
        u128::from(pack.live_bytes).saturating_mul(100) < u128::from(pack.bytes).saturating_mul(LIVE_PERCENT_MIN.into())
    };
    let small = |pack: &PackUse| pack.live_bytes < SMALL_BYTES_MAX;
    let needed = || packs.iter().filter(|pack| pack.live_bytes > 0);
    let join = needed().filter(|pack| small(pack)).count() >= SMALL_PACKS_MAX;
    RepackPlan {
        remove: packs.iter().filter(dead).map(|pack| pack.pack).collect(),
        rewrite: needed().filter(|pack| sparse(pack) || (join && small(pack))).map(|pack| pack.pack).collect(),
    }
}

/// What packs lose when less is needed of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackLoss {
    /// Packs of which nothing is needed afterwards: they go at once.
    pub removed: Vec<ObjectId>,
    /// Bytes of other packs that are needed before and not afterwards: they stay until those packs are written anew.
    pub waiting_bytes: u64,
}

/// Says what packs lose from one use to another of the same packs.
#[must_use]
pub fn pack_loss(before: &[PackUse], after: &[PackUse]) -> PackLoss {
    let mut loss = PackLoss::default();
    for pack in after {
        let live_before = before.iter().find(|other| other.pack == pack.pack).map_or(0, |other| other.live_bytes);
        if pack.live_bytes == 0 {
            loss.removed.push(pack.pack);
        } else {
            let lost = live_before.saturating_sub(pack.live_bytes);
            loss.waiting_bytes = loss.waiting_bytes.saturating_add(lost);
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u8, bytes: u64, live_bytes: u64) -> PackUse {
        PackUse { pack: ObjectId::new([number; 32]), bytes, live_bytes }
    }

    fn numbers(ids: &[ObjectId]) -> Vec<u8> {
        ids.iter().map(|id| id.as_bytes()[0]).collect()
    }

    #[test]
    fn a_pack_goes_when_nothing_of_it_is_needed_and_is_rewritten_below_two_thirds() {
        let mib = 1 << 20;
        let plan = plan_repack(&[
            pack(1, 32 * mib, 0),
            pack(2, 32 * mib, 1),
            pack(3, 100 * mib, 67 * mib),
            pack(4, 100 * mib, 67 * mib - 1),
            pack(5, u64::MAX, u64::MAX),
            pack(6, mib, mib),
        ]);
        assert_eq!((numbers(&plan.remove), numbers(&plan.rewrite)), (alloc::vec![1], alloc::vec![2, 4]));
        assert_eq!(plan_repack(&[]), RepackPlan::default());
    }

    #[test]
    fn what_packs_lose_goes_with_them_or_waits() {
        let before = [pack(1, 100, 90), pack(2, 100, 50), pack(3, 100, 0), pack(4, 100, 70)];
        let after = [pack(1, 100, 0), pack(2, 100, 30), pack(3, 100, 0), pack(4, 100, 70)];
        let loss = pack_loss(&before, &after);
        assert_eq!((numbers(&loss.removed), loss.waiting_bytes), (alloc::vec![1, 3], 20));
        assert_eq!(pack_loss(&[], &[]), PackLoss::default());
    }

    #[test]
    fn small_packs_are_joined_when_there_are_sixteen() {
        let mut packs: Vec<PackUse> = (1..=15).map(|number| pack(number, 1000, 1000)).collect();
        packs.push(pack(99, 5 << 20, 5 << 20));
        assert_eq!(plan_repack(&packs), RepackPlan::default());
        packs.push(pack(16, 1000, 1000));
        assert_eq!(numbers(&plan_repack(&packs).rewrite), (1..=16).collect::<Vec<u8>>());
    }
}
