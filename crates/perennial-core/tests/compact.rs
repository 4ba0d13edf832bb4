//! Which sealed layers become one, what that costs over thousands of exits, and what an eviction frees.
#![cfg(test)]

use perennial_core::id::LayerId;
use perennial_core::layers::DEPTH_MAX;
use perennial_core::layers::compact::{
    Compact, CompactReason, Demand, Freed, METADATA_BYTES_PER_ENTRY, SealedFacts, freed_by_eviction, is_pending,
    pairs_together, plan_compact, replace,
};
use perennial_core::sealed::object::ObjectId;
use std::collections::{BTreeMap, BTreeSet};

fn id(name: u8) -> LayerId {
    LayerId::from_random([0, 0, 0, 0, 0, 0, 0, name])
}

fn stack(names: &str) -> Vec<LayerId> {
    names.bytes().map(id).collect()
}

/// `"a=5 b=7:1000"`: layer a has 5 entries, b has 7 and hides 1000 bytes in what is below it.
fn facts(text: &str) -> BTreeMap<LayerId, SealedFacts> {
    let layer = |word: &str| {
        let (name, sizes) = word.split_once('=').unwrap();
        let (entries, hides) = sizes.split_once(':').unwrap_or((sizes, "0"));
        (id(name.as_bytes()[0]), SealedFacts { entries: entries.parse().unwrap(), hides: hides.parse().unwrap() })
    };
    text.split_whitespace().map(layer).collect()
}

type Planned = (&'static [&'static str], &'static str, Demand, usize, Option<(&'static str, CompactReason)>);

#[test]
fn layers_are_merged_where_one_of_the_rules_says_so() {
    use CompactReason::{Bytes, Depth, Growth, Waste};
    use Demand::Usual;
    let table: &[Planned] = &[
        (&[], "", Usual, 16, None),
        (&["a"], "a=5", Demand::Bytes, 16, None),
        // Growth: down to the deepest that is at most twice as large as what is above it.
        (&["ba"], "a=10 b=5", Usual, 16, Some(("ba", Growth))),
        (&["ba"], "a=11 b=5", Usual, 16, None),
        (&["cba"], "a=45 b=10 c=5", Usual, 16, Some(("cb", Growth))),
        (&["cba"], "a=30 b=10 c=5", Usual, 16, Some(("cba", Growth))),
        (&["ba"], "a=2 b=0", Usual, 16, Some(("ba", Growth))),
        // Only what is in all stacks together or in none.
        (&["ba", "a"], "a=5 b=5", Usual, 16, None),
        (&["cba", "ba"], "a=5 b=5 c=5", Usual, 16, Some(("ba", Growth))),
        (&["cba", "cxa"], "a=5 b=5 c=5 x=5", Usual, 16, None),
        (&["cba", "dcba"], "a=5 b=5 c=5 d=5", Demand::Bytes, 16, Some(("cba", Bytes))),
        (&["a", "cba", "cba"], "a=5 b=5 c=5", Usual, 16, Some(("cb", Growth))),
        // Directories and images are left alone.
        (&["cbax"], "a=5 b=5 c=5", Usual, 16, Some(("cba", Growth))),
        (&["cbai"], "a=5 c=5", Demand::Bytes, 16, None),
        (&["dcbai"], "a=5 b=5 d=5", Usual, 16, Some(("ba", Growth))),
        // Waste: as soon as it is worth the metadata.
        (&["ba"], "a=99 b=1:38400", Usual, 16, Some(("ba", Waste))),
        (&["ba"], "a=99 b=1:38399", Usual, 16, None),
        (&["cba"], "a=1000 b=99:1000000 c=1:38400", Usual, 16, Some(("cba", Waste))),
        (&["cba"], "a=10000 b=99:1000000 c=1:38400", Usual, 16, Some(("cb", Waste))),
        (&["ba", "a"], "a=99 b=1:38400", Usual, 16, None),
        (&["ba"], "a=99:1000000 b=1", Usual, 16, None),
        // A bound on bytes.
        (&["ba"], "a=1000000 b=1", Demand::Bytes, 16, Some(("ba", Bytes))),
        (&["ba", "a"], "a=1000000 b=1", Demand::Bytes, 16, None),
        (&["ecba", "dcba", "a"], "a=9 b=1 c=1 d=1 e=1", Demand::Bytes, 16, Some(("ecb", Bytes))),
        (&["dxa", "cba"], "a=9 b=1 c=1 d=1", Demand::Bytes, 16, Some(("cba", Bytes))),
        (&["dxa", "a"], "a=9 d=1", Demand::Bytes, 16, None),
        // Depth: also where others see the layers one by one.
        (&["dcba", "cba", "ba", "a"], "a=5 b=5 c=5 d=5", Usual, 4, None),
        (&["dcba", "cba", "ba", "a"], "a=5 b=5 c=5 d=5", Usual, 3, Some(("dcba", Depth))),
        (&["dcba", "cba", "ba", "a"], "a=1000 b=5 c=5 d=5", Usual, 3, Some(("dcb", Depth))),
        (&["dcba", "cba", "ba", "a"], "a=100 b=30 c=9 d=3", Usual, 3, Some(("dc", Depth))),
        (&["dcba", "cba", "ba", "a"], "a=5 b=5 c=5", Usual, 3, Some(("cba", Depth))),
        (&["dcba", "dca", "ca"], "d=5", Usual, 0, None),
    ];
    for (stacks, sealed, demand, depth_max, expected) in table {
        let stacks: Vec<Vec<LayerId>> = stacks.iter().map(|names| stack(names)).collect();
        let borrowed: Vec<&[LayerId]> = stacks.iter().map(Vec::as_slice).collect();
        let expected = expected.map(|(of, reason)| Compact { of: stack(of), reason });
        assert_eq!(plan_compact(&borrowed, &facts(sealed), *demand, *depth_max), expected, "{stacks:?} {sealed}");
    }
}

#[test]
fn nothing_is_evicted_for_a_bound_while_layers_wait_to_become_one() {
    // Stacks, layers that are sealed or will be, directories.
    let table: &[(&[&str], &str, &str, bool)] = &[
        (&[], "", "", false),
        (&["a"], "a", "a", false),
        // The generation of a was evicted, and what it hid under b is still there.
        (&["ba"], "ba", "", true),
        (&["ba"], "", "ba", true),
        (&["ba"], "ba", "a", true),
        (&["ba", "a"], "ba", "ba", false),
        (&["dcba", "ba", "a"], "dcba", "d", true),
        // Of two on one ground, the sealed ones can be parted and directories cannot.
        (&["ca", "ba"], "abc", "", true),
        (&["ca", "ba"], "", "abc", false),
        // What cannot be sealed lies on what is, and they stay two.
        (&["ba"], "a", "b", false),
        (&["ba"], "b", "a", false),
        // An image's, or one that lies on different grounds.
        (&["cba"], "ca", "", false),
    ];
    for (stacks, sealable, directories, expected) in table {
        let stacks: Vec<Vec<LayerId>> = stacks.iter().map(|names| stack(names)).collect();
        let borrowed: Vec<&[LayerId]> = stacks.iter().map(Vec::as_slice).collect();
        let set = |names: &str| stack(names).into_iter().collect::<BTreeSet<_>>();
        let found = is_pending(&borrowed, &set(sealable), &set(directories));
        assert_eq!(found, *expected, "{stacks:?} {sealable} {directories}");
    }
}

#[test]
fn merged_layer_takes_the_place_of_those_it_is_made_of() {
    let table = [
        ("dcba", "cb", Some("dxa")),
        ("cb", "cb", Some("x")),
        ("dba", "cb", None),
        ("b", "cb", None),
        ("", "cb", None),
    ];
    for (before, of, after) in table {
        assert_eq!(replace(&stack(before), &stack(of), &id(b'x')), after.map(stack), "{before} {of}");
    }
}

/// Files of a large first layer.
const BOTTOM: u64 = 10_000;

/// A file in a layer, with the bytes of its content and who wrote it.
type Files = BTreeMap<u64, (u64, u64)>;

/// A container of which the last generations are kept; layers are maps of files.
struct World {
    layers: BTreeMap<LayerId, Files>,
    /// Bytes that a layer hides in another.
    hides: BTreeMap<(LayerId, LayerId), u64>,
    stacks: Vec<Vec<LayerId>>,
    capacity: usize,
    exits: u64,
    next: u64,
    sealed: u64,
    written: u64,
    largest_merges: u64,
    deepest: usize,
    /// Entries of upper layers at which was looked to find out what they hide.
    looks: u64,
}

impl World {
    fn new(capacity: usize) -> Self {
        let (layers, hides, stacks) = (BTreeMap::new(), BTreeMap::new(), vec![]);
        let (exits, next, sealed, written, largest_merges, deepest, looks) = (0, 0, 0, 0, 0, 0, 0);
        Self { layers, hides, stacks, capacity, exits, next, sealed, written, largest_merges, deepest, looks }
    }

    fn add(&mut self, files: Files) -> LayerId {
        self.next += 1;
        let id = LayerId::from_random(self.next.to_be_bytes());
        self.layers.insert(id.clone(), files);
        id
    }

    /// A run ends that has written these files, with so many bytes each.
    fn exit(&mut self, files: impl Iterator<Item = (u64, u64)>, demand: Demand) {
        self.exits += 1;
        let files: Files = files.map(|(name, bytes)| (name, (self.exits, bytes))).collect();
        self.sealed += files.len() as u64;
        let below = self.stacks.last().cloned().unwrap_or_default();
        let layer = self.add(files);
        self.stacks.push(std::iter::once(layer).chain(below).collect());
        if self.stacks.len() > self.capacity {
            self.stacks.remove(0);
        }
        while let Some(plan) = self.plan(demand) {
            let merged = plan.of.iter().rev().flat_map(|layer| self.layers[layer].clone()).collect::<Files>();
            let read: u64 = plan.of.iter().map(|layer| self.layers[layer].len() as u64).sum();
            self.written += read;
            self.largest_merges += u64::from(read >= BOTTOM);
            let merged = self.add(merged);
            for stack in &mut self.stacks {
                if let Some(replaced) = replace(stack, &plan.of, &merged) {
                    *stack = replaced;
                }
            }
        }
        let named: BTreeSet<&LayerId> = self.stacks.iter().flatten().collect();
        self.layers.retain(|layer, _| named.contains(layer));
        self.deepest = self.deepest.max(self.stacks.iter().map(Vec::len).max().unwrap_or(0));
    }

    fn plan(&mut self, demand: Demand) -> Option<Compact> {
        let entries = |layer: &LayerId| SealedFacts { entries: self.layers[layer].len() as u64, hides: 0 };
        let mut facts: BTreeMap<LayerId, SealedFacts> =
            self.stacks.iter().flatten().map(|layer| (layer.clone(), entries(layer))).collect();
        let stacks: Vec<&[LayerId]> = self.stacks.iter().map(Vec::as_slice).collect();
        for (top, below) in pairs_together(&stacks, &facts.clone()) {
            let files = &self.layers[top];
            let hides = *self.hides.entry((top.clone(), below.clone())).or_insert_with(|| {
                self.looks += files.len() as u64;
                files.keys().filter_map(|name| self.layers[below].get(name)).map(|(_, bytes)| bytes).sum()
            });
            facts.get_mut(top).unwrap().hides = hides;
        }
        plan_compact(&stacks, &facts, demand, DEPTH_MAX)
    }

    fn bytes<'a>(contents: impl Iterator<Item = (&'a u64, &'a (u64, u64))>) -> u64 {
        let distinct: BTreeSet<(u64, u64, u64)> = contents.map(|(name, (run, bytes))| (*name, *run, *bytes)).collect();
        distinct.iter().map(|(_, _, bytes)| bytes).sum()
    }

    /// Bytes that the layers pin.
    fn pinned(&self) -> u64 {
        Self::bytes(self.layers.values().flatten())
    }

    /// Bytes that the generations show.
    fn shown(&self) -> u64 {
        let shown: Vec<Files> = self
            .stacks
            .iter()
            .map(|stack| stack.iter().rev().flat_map(|layer| self.layers[layer].clone()).collect())
            .collect();
        Self::bytes(shown.iter().flatten())
    }
}

/// Greatest number of entries that may be written for each one that is sealed: `3 × (log₃ N + 1)`, for the layers that
/// are together and once more for the copy that depth asks for.
fn bound(entries: u64, copies: u64) -> u64 {
    copies * 3 * (u64::from(entries.ilog(3)) + 1)
}

#[test]
fn exits_cost_their_own_changes_times_a_logarithm_at_any_capacity() {
    for (capacity, exits, copies) in [(3, 1500, 1), (10, 1500, 1), (100, 400, 2)] {
        let mut world = World::new(capacity);
        world.exit((0..BOTTOM).map(|name| (name, 4096)), Demand::Usual);
        for exit in 1..exits {
            // Files of its own, so that nothing is ever hidden: the largest trees.
            let count = 1 + exit * 7919 % 13;
            world.exit((0..count).map(|name| (exit * 1_000_000 + name, 4096)), Demand::Usual);
        }
        let changes = world.sealed - BOTTOM;
        let written = world.written;
        println!(
            "capacity {capacity}: {exits} exits of {changes} entries over {BOTTOM}; {written} written again, with the bottom {} times; depth {}",
            world.largest_merges, world.deepest
        );
        assert!(written <= bound(world.sealed, copies) * changes, "capacity {capacity}: {written} for {changes}");
        // Each time half of its size has come on top of it.
        let largest_merges_max = copies * (1 + changes * 2 / BOTTOM);
        assert!(
            world.largest_merges <= largest_merges_max,
            "capacity {capacity}: {} merges of the bottom",
            world.largest_merges
        );
        assert!(world.deepest <= DEPTH_MAX, "capacity {capacity}: depth {}", world.deepest);
        assert!(world.written > 0);
        // Each layer lies on one other when it is asked what it hides, as good as always.
        assert!(world.looks <= 2 * (changes + written), "capacity {capacity}: {} looks", world.looks);
    }
}

#[test]
fn growing_from_nothing_costs_a_logarithm_too() {
    for (capacity, copies) in [(3, 1), (10, 1), (100, 2)] {
        for size in [|_| 1, |exit: u64| 1 + exit % 50, |exit: u64| if exit.is_multiple_of(100) { 1000 } else { 1 }] {
            let mut world = World::new(capacity);
            for exit in 0..400_u64 {
                world.exit((0..size(exit)).map(|name| (exit * 1_000_000 + name, 4096)), Demand::Usual);
            }
            println!(
                "capacity {capacity}: {} sealed, {} written, depth {}",
                world.sealed, world.written, world.deepest
            );
            assert!(world.written <= bound(world.sealed, copies) * world.sealed, "capacity {capacity}");
            assert!(world.deepest <= DEPTH_MAX, "capacity {capacity}: depth {}", world.deepest);
        }
    }
}

#[test]
fn a_large_file_rewritten_by_each_run_is_kept_once_for_each_generation() {
    const LARGE: u64 = 1 << 30;
    for capacity in [3, 10] {
        let mut world = World::new(capacity);
        world.exit((0..BOTTOM).map(|name| (name, 4096)), Demand::Usual);
        for exit in 1..=200_u64 {
            world.exit([(0, LARGE)].into_iter(), Demand::Usual);
            if !exit.is_multiple_of(25) {
                continue;
            }
            let wasted = world.pinned() - world.shown();
            assert!(wasted <= METADATA_BYTES_PER_ENTRY * (BOTTOM + 1), "capacity {capacity}, exit {exit}: {wasted}");
        }
        let paid = world.written * METADATA_BYTES_PER_ENTRY;
        assert!(paid <= 200 * LARGE + bound(BOTTOM + 200, 1) * METADATA_BYTES_PER_ENTRY * 200, "{paid}");
    }
}

#[test]
fn small_waste_stays_until_bytes_are_demanded() {
    for capacity in [3, 10, 30] {
        let mut world = World::new(capacity);
        world.exit((0..BOTTOM).map(|name| (name, 4096)), Demand::Usual);
        for exit in 1..200_u64 {
            world.exit((0..5).map(|name| (exit * 31 % 97 * 5 + name, 100_000)), Demand::Usual);
        }
        assert!(world.pinned() > world.shown(), "capacity {capacity}: nothing was wasted, so nothing is shown here");
        world.exit([(7, 100_000)].into_iter(), Demand::Bytes);
        assert_eq!(world.pinned(), world.shown(), "capacity {capacity}");
        assert!(world.deepest <= DEPTH_MAX);
    }
}

fn object(name: u8) -> ObjectId {
    ObjectId::new([name; 32])
}

/// `"a5 b7"`: object a occupies 5 bytes.
fn tables(texts: &[&str]) -> Vec<std::vec::IntoIter<Result<(ObjectId, u64), &'static str>>> {
    let row = |word: &str| match word.split_at(1) {
        ("!", _) => Err("torn"),
        (name, bytes) => Ok((object(name.as_bytes()[0]), bytes.parse().unwrap())),
    };
    texts.iter().map(|text| text.split_whitespace().map(row).collect::<Vec<_>>().into_iter()).collect()
}

#[test]
fn an_eviction_frees_what_only_the_layers_that_go_name() {
    let freed = |objects, bytes| Ok(Freed { objects, bytes });
    type Row = (&'static [&'static str], &'static [&'static str], Result<Freed, &'static str>);
    let table: &[Row] = &[
        (&[], &[], freed(0, 0)),
        (&[], &["a5"], freed(0, 0)),
        (&["a5 b7"], &[], freed(2, 12)),
        (&["a5 b7"], &["b7"], freed(1, 5)),
        (&["a5 b7"], &["a5 b7 c9"], freed(0, 0)),
        // Named by two that go: freed once.
        (&["a5 b7", "b7 c9"], &[], freed(3, 21)),
        // The merged layer keeps some of both.
        (&["a5 b7", "b7 c9 d1"], &["b7 d1"], freed(2, 14)),
        (&["c9"], &["a5", "b7", "c9"], freed(0, 0)),
        (&["a5 z1"], &["b7", "y2", ""], freed(2, 6)),
        (&["", ""], &[""], freed(0, 0)),
        (&["a5 !"], &[], Err("torn")),
        (&["a5 c9"], &["b7 !"], Err("torn")),
    ];
    for (gone, kept, expected) in table {
        assert_eq!(freed_by_eviction(tables(gone), tables(kept)), *expected, "{gone:?} {kept:?}");
    }
}
