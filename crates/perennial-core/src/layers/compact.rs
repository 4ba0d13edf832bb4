//! Which sealed layers become one, and what that frees.
//!
//! Merging sealed layers writes metadata only, and a new layer beside the old ones: those in use by a mount stay until
//! it is gone. So the cost is counted in entries written, and mounts do not stand in the way.
//!
//! ```text
//!   stacks (newest left)      together: in all stacks or in none
//!   [ g f e d c b a ]         └─ d c b a ─┘  evicted generations' layers; what one hides in another is still pinned
//!   [   f e d c b a ]
//!   [     e d c b a ]
//! ```
//!
//! Three rules, in this order; `s₁, s₂, …` are the entries of adjacent layers, newest first:
//!
//! 1. *Growth*: layers that are together are merged down to the deepest one with `sⱼ ≤ 2 × (s₁ + … + sⱼ₋₁)`.
//! 2. *Waste*: layers that are together are merged down to the deepest one for which what they hide of each other is as
//!    large as the metadata to be written ([`METADATA_BYTES_PER_ENTRY`]).
//! 3. *Depth*: a stack deeper than `depth_max` has its newest layers merged by the first rule, for its sake alone.
//!
//! A byte bound comes first: [`Demand::Bytes`] merges all layers between those on top of which a generation ends, in each
//! stack, so that each layer is the newest one of a generation and nothing is pinned that no generation shows.
//!
//! **Bound.** Growth writes at most three entries for each entry above the bottom of what it merges, and each such
//! entry has one layer less below it afterwards. Where growth has nothing to do, `sⱼ > 2 × (s₁ + … + sⱼ₋₁)`, so there are
//! at most `log₃ N + 1` layers together, where `N` is the number of their entries. So each entry that is ever sealed
//! causes at most `3 × (log₃ N + 1)` entries to be written by growth, and the like for each stack that depth made a copy
//! for; what waste writes is at most what the runs wrote and then hid, each byte once. To know what a layer hides costs a
//! look at each of its entries and at what they hide, bounded by [`looks_max`], once for each pair of layers: the answer
//! is kept in the upper one's record. A large bottom layer is written
//! again only after half of its size has come on top of it, or its worth in bytes been freed.

use super::plan_fold;
use crate::id::LayerId;
use crate::sealed::object::ObjectId;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Metadata written for an entry, in bytes: 64 bytes of inode, the directory entry, the name of its object in the
/// manifest and in a redirect, and room for attributes.
pub const METADATA_BYTES_PER_ENTRY: u64 = 384;

/// Returns how many entries of a layer are looked at to find out what one of so many entries above it hides. A look costs
/// much less than an entry written, so this is within the bound of growth but for a constant for each layer.
#[must_use]
pub const fn looks_max(entries: u64) -> u64 {
    const FOR_EACH_ENTRY: u64 = 4;
    /// A directory that one name hides: its contents are worth rewriting so many entries at an average of 6 kB.
    const FOR_EACH_LAYER: u64 = 1 << 16;
    entries.saturating_mul(FOR_EACH_ENTRY).saturating_add(FOR_EACH_LAYER)
}

/// Returns the adjacent layers, the newer one first, of which the first two rules have to know what the upper hides.
#[must_use]
pub fn pairs_together<'a>(
    stacks: &[&'a [LayerId]],
    sealed: &BTreeMap<LayerId, SealedFacts>,
) -> BTreeSet<(&'a LayerId, &'a LayerId)> {
    let found = Occurrences::count(stacks, sealed);
    found.pairs.keys().filter(|(top, bottom)| found.are_together(top, bottom)).copied().collect()
}

/// How much larger than everything above it a layer may be and still be merged with it.
const GROWTH: u64 = 2;

/// What is known of a layer that can be merged: a sealed one that is not an image's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealedFacts {
    /// Names in it.
    pub entries: u64,
    /// Bytes of contents in the layer directly below that it hides. 0 where that is not known.
    pub hides: u64,
}

/// How urgent space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Waste is left as long as it is small.
    Usual,
    /// A bound on bytes is exceeded: whatever is hidden is to go, at any cost.
    Bytes,
}

/// Why layers are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompactReason {
    /// What has come on top is half as large as what is below.
    Growth,
    /// What they hide of each other is worth it.
    Waste,
    /// A stack is too deep.
    Depth,
    /// A bound on bytes demands it.
    Bytes,
}

/// Adjacent layers that are to become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compact {
    /// The layers, newest first, at least two. The result takes their place in each stack that has them all
    /// ([`replace`]).
    pub of: Vec<LayerId>,
    /// Why.
    pub reason: CompactReason,
}

/// Chooses layers to merge, or nothing where all is well. To be asked again after each merge.
///
/// `stacks` are those of all generations and runs, newest layer first; `sealed` has the layers that can be merged. What
/// is not among them (directories, images' layers) is left alone and separates what is above it from what is below.
#[must_use]
pub fn plan_compact(
    stacks: &[&[LayerId]],
    sealed: &BTreeMap<LayerId, SealedFacts>,
    demand: Demand,
    depth_max: usize,
) -> Option<Compact> {
    let plan = |layers: &[LayerId], reason| Compact { of: layers.to_vec(), reason };
    if demand == Demand::Bytes
        && let Some(layers) = unshown(stacks, sealed)
    {
        return Some(plan(layers, CompactReason::Bytes));
    }
    let found = Occurrences::count(stacks, sealed);
    let groups = stacks.iter().flat_map(|stack| stack.chunk_by(|top, bottom| found.are_together(top, bottom)));
    for group in groups {
        let facts = facts_of(group, sealed);
        if let Some(layers) = growth(&facts).and_then(|count| group.get(..count)) {
            return Some(plan(layers, CompactReason::Growth));
        }
        if let Some(layers) = waste(&facts).and_then(|count| group.get(..count)) {
            return Some(plan(layers, CompactReason::Waste));
        }
    }
    let too_deep = stacks.iter().filter(|stack| own_depth(stack, sealed) > depth_max);
    too_deep.filter_map(|stack| depth(stack, sealed)).next().map(|layers| plan(layers, CompactReason::Depth))
}

/// Returns whether layers wait to become one, and what they hide of each other to go with that: a bound on bytes that is
/// exceeded may be kept to once they are one, so nothing is evicted for it before.
///
/// `sealable` has the layers that are sealed or will be, `directories` those that can be folded once nobody uses them.
#[must_use]
pub fn is_pending(stacks: &[&[LayerId]], sealable: &BTreeSet<LayerId>, directories: &BTreeSet<LayerId>) -> bool {
    let facts = sealable.iter().map(|layer| (layer.clone(), SealedFacts::default())).collect();
    let others = stacks.iter().flat_map(|stack| stack.iter()).filter(|layer| !directories.contains(layer)).cloned();
    unshown(stacks, &facts).is_some() || plan_fold(stacks, &others.collect(), &BTreeSet::new()).is_some()
}

/// Returns a stack in which `by` stands for the adjacent layers `of`; `None` where it does not have them all.
#[must_use]
pub fn replace(stack: &[LayerId], of: &[LayerId], by: &LayerId) -> Option<Vec<LayerId>> {
    let start = stack.windows(of.len().max(1)).position(|window| window == of)?;
    let (above, rest) = stack.split_at_checked(start)?;
    let below = rest.get(of.len()..)?;
    Some(above.iter().chain([by]).chain(below).cloned().collect())
}

/// In how many stacks layers and pairs of adjacent layers are.
#[derive(Debug, Default)]
struct Occurrences<'a> {
    layers: BTreeMap<&'a LayerId, u32>,
    /// The newer layer first.
    pairs: BTreeMap<(&'a LayerId, &'a LayerId), u32>,
}

impl<'a> Occurrences<'a> {
    /// Counts, of the layers that can be merged. No stack has one of those twice.
    fn count(stacks: &[&'a [LayerId]], sealed: &BTreeMap<LayerId, SealedFacts>) -> Self {
        let mut found = Self::default();
        for stack in stacks {
            for layer in stack.iter().filter(|layer| sealed.contains_key(*layer)) {
                let count = found.layers.entry(layer).or_default();
                *count = count.saturating_add(1);
            }
            for (top, bottom) in stack.iter().zip(stack.iter().skip(1)) {
                let count = found.pairs.entry((top, bottom)).or_default();
                *count = count.saturating_add(1);
            }
        }
        found
    }

    /// Returns whether each stack has both, one directly above the other, or neither.
    fn are_together(&self, top: &'a LayerId, bottom: &'a LayerId) -> bool {
        let count = |layer| self.layers.get(layer).copied();
        let pairs = self.pairs.get(&(top, bottom)).copied();
        top != bottom && pairs.is_some() && count(top) == pairs && count(bottom) == pairs
    }
}

/// Returns adjacent layers of a stack of which only the newest is the newest of a generation, where there are several.
fn unshown<'a>(stacks: &[&'a [LayerId]], sealed: &BTreeMap<LayerId, SealedFacts>) -> Option<&'a [LayerId]> {
    let whole: BTreeSet<&[LayerId]> = stacks.iter().copied().collect();
    let can_merge = |rest: &[LayerId]| rest.first().is_some_and(|layer| sealed.contains_key(layer));
    for stack in stacks {
        let mut rest = *stack;
        while !rest.is_empty() {
            let ends = |count: &usize| {
                let below = rest.get(*count..).unwrap_or_default();
                !can_merge(below) || whole.contains(below)
            };
            let count = if can_merge(rest) { (1..rest.len()).find(ends).unwrap_or(rest.len()) } else { 1 };
            let (part, below) = rest.split_at_checked(count)?;
            if part.len() > 1 {
                return Some(part);
            }
            rest = below;
        }
    }
    None
}

fn facts_of(layers: &[LayerId], sealed: &BTreeMap<LayerId, SealedFacts>) -> Vec<SealedFacts> {
    let facts = layers.iter().map(|layer| sealed.get(layer).copied().unwrap_or_default());
    // An empty layer still costs its place in the stack.
    facts.map(|facts| SealedFacts { entries: facts.entries.max(1), ..facts }).collect()
}

/// Returns how many of the newest layers are to be merged for the first rule.
fn growth(facts: &[SealedFacts]) -> Option<usize> {
    let mut above = 0_u64;
    let mut merged = None;
    for (position, layer) in facts.iter().enumerate() {
        if position > 0 && layer.entries <= above.saturating_mul(GROWTH) {
            merged = Some(position.saturating_add(1));
        }
        above = above.saturating_add(layer.entries);
    }
    merged
}

/// Returns how many of the newest layers are to be merged for the second rule.
fn waste(facts: &[SealedFacts]) -> Option<usize> {
    let (mut entries, mut hidden) = (0_u64, 0_u64);
    let mut merged = None;
    for (position, layer) in facts.iter().enumerate() {
        entries = entries.saturating_add(layer.entries);
        if hidden > 0 && hidden >= entries.saturating_mul(METADATA_BYTES_PER_ENTRY) {
            merged = Some(position.saturating_add(1));
        }
        hidden = hidden.saturating_add(layer.hides);
    }
    merged
}

/// Layers that count for the depth: those above the deepest that can be merged, and that one.
fn own_depth(stack: &[LayerId], sealed: &BTreeMap<LayerId, SealedFacts>) -> usize {
    stack.iter().rposition(|layer| sealed.contains_key(layer)).map_or(0, |position| position.saturating_add(1))
}

/// Returns what is merged of a stack that is too deep: of its longest part that can be merged, the newest layers by the
/// first rule, or two where it has nothing to say.
fn depth<'a>(stack: &'a [LayerId], sealed: &BTreeMap<LayerId, SealedFacts>) -> Option<&'a [LayerId]> {
    const MERGED_MIN: usize = 2;
    let parts = stack.chunk_by(|top, bottom| sealed.contains_key(top) && sealed.contains_key(bottom));
    let longest = parts.max_by_key(|part| part.len()).filter(|part| part.len() >= MERGED_MIN)?;
    longest.get(..growth(&facts_of(longest, sealed)).unwrap_or(MERGED_MIN))
}

/// What goes when layers go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freed {
    /// Objects that no layer names any more.
    pub objects: u64,
    /// What they occupy, in bytes.
    pub bytes: u64,
}

/// Tells what is freed, exactly, when some layers go: the objects that they name and nothing that is kept does.
///
/// Each table is sorted by object and gives what it occupies, in bytes. `kept` has every other layer of the store, and
/// the layers that take the place of those that go. The tables are read once, side by side.
///
/// # Errors
/// Whatever a table fails with.
pub fn freed_by_eviction<T, E>(gone: Vec<T>, kept: Vec<T>) -> Result<Freed, E>
where
    T: Iterator<Item = Result<(ObjectId, u64), E>>,
{
    let mut gone: Vec<Table<T>> = gone.into_iter().map(Table::open).collect::<Result<_, E>>()?;
    let mut kept: Vec<Table<T>> = kept.into_iter().map(Table::open).collect::<Result<_, E>>()?;
    let mut freed = Freed::default();
    while let Some((id, bytes)) = gone.iter().filter_map(|table| table.head).min() {
        let mut is_kept = false;
        for table in &mut kept {
            is_kept |= table.skip_to(id)?;
        }
        for table in &mut gone {
            if table.skip_to(id)? {
                table.advance()?;
            }
        }
        if !is_kept {
            freed.objects = freed.objects.saturating_add(1);
            freed.bytes = freed.bytes.saturating_add(bytes);
        }
    }
    Ok(freed)
}

/// A table of objects and its present row.
struct Table<T> {
    rows: T,
    head: Option<(ObjectId, u64)>,
}

impl<T: Iterator<Item = Result<(ObjectId, u64), E>>, E> Table<T> {
    fn open(mut rows: T) -> Result<Self, E> {
        let head = rows.next().transpose()?;
        Ok(Self { rows, head })
    }

    fn advance(&mut self) -> Result<(), E> {
        self.head = self.rows.next().transpose()?;
        Ok(())
    }

    /// Leaves out what comes before an object; returns whether the object is there.
    fn skip_to(&mut self, id: ObjectId) -> Result<bool, E> {
        while self.head.is_some_and(|(head, _)| head < id) {
            self.advance()?;
        }
        Ok(self.head.is_some_and(|(head, _)| head == id))
    }
}
