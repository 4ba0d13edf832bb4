//! Which layers become one, and what that costs over many exits.
#![cfg(test)]

use perennial_core::id::LayerId;
use perennial_core::layers::{DEPTH_MAX, Fold, plan_fold, plan_merge, unused};
use std::collections::BTreeSet;

fn id(name: u8) -> LayerId {
    LayerId::from_random([0, 0, 0, 0, 0, 0, 0, name])
}

/// `"cba"` is the stack of the layers c, b and a, newest first.
fn stack(names: &str) -> Vec<LayerId> {
    names.bytes().map(id).collect()
}

fn set(names: &str) -> BTreeSet<LayerId> {
    stack(names).into_iter().collect()
}

fn planned(stacks: &[&str], in_use: &str, images: &str) -> Option<Fold> {
    let stacks: Vec<Vec<LayerId>> = stacks.iter().map(|names| stack(names)).collect();
    let stacks: Vec<&[LayerId]> = stacks.iter().map(Vec::as_slice).collect();
    plan_fold(&stacks, &set(in_use), &set(images))
}

#[test]
fn pair_is_folded_only_where_no_stack_can_tell() {
    let table: [(&[&str], &str, &str, Option<&str>); 14] = [
        (&[], "", "", None),
        (&["a"], "", "", None),
        (&["ba"], "", "", Some("ba")),
        (&["cba"], "", "", Some("ba")),
        (&["cba", "ba"], "", "", Some("ba")),
        (&["cba", "a"], "", "", Some("cb")),
        (&["cba", "ba", "a"], "", "", None),
        (&["cba", "dba"], "", "", Some("ba")),
        (&["cba", "cxa"], "", "", None),
        (&["cba", "b"], "", "", None),
        (&["cba"], "a", "", Some("cb")),
        (&["cba"], "b", "", None),
        (&["cbaij"], "", "ij", Some("ba")),
        (&["cbaij", "ij"], "a", "ij", Some("cb")),
    ];
    for (stacks, in_use, images, expected) in table {
        let expected = expected.map(|pair| Fold { top: id(pair.as_bytes()[0]), bottom: id(pair.as_bytes()[1]) });
        assert_eq!(planned(stacks, in_use, images), expected, "{stacks:?}, in use {in_use:?}");
    }
}

#[test]
fn stack_is_merged_only_when_it_is_too_deep() {
    let sized = |sizes: &[u64]| -> Vec<(LayerId, u64)> { sizes.iter().map(|size| (id(0), *size)).collect() };
    let table: [(&[u64], usize, Option<usize>); 9] = [
        (&[], 4, None),
        (&[5, 5, 5, 5], 4, None),
        (&[5, 5, 5, 5, 5], 4, Some(5)),
        (&[5, 5, 5, 5, 1000], 4, Some(4)),
        (&[5, 5, 5, 400, 1000], 4, Some(3)),
        (&[1000, 5, 5, 5, 5], 4, Some(5)),
        (&[1, 3, 9, 27, 81], 4, Some(2)),
        (&[0, 0, 0, 0, 1_000_000], 4, Some(4)),
        (&[7], 0, None),
    ];
    for (sizes, depth_max, expected) in table {
        assert_eq!(plan_merge(&sized(sizes), depth_max), expected, "{sizes:?}");
    }
}

/// Plays exits that are all kept: returns the deepest stack and the entries that were written by merges.
fn play(sizes: impl Iterator<Item = u64>) -> (usize, u64, u64) {
    let (mut stack, mut deepest, mut merged, mut total): (Vec<(LayerId, u64)>, usize, u64, u64) = (vec![], 0, 0, 0);
    for size in sizes {
        total += size;
        stack.insert(0, (id(0), size));
        if let Some(count) = plan_merge(&stack, DEPTH_MAX) {
            let sum = stack.drain(..count).map(|(_, entries)| entries).sum();
            merged += sum;
            stack.insert(0, (id(0), sum));
        }
        deepest = deepest.max(stack.len());
    }
    (deepest, merged, total)
}

#[test]
fn a_thousand_exits_stay_shallow_at_a_cost_of_n_log_n() {
    let mut seed = 7_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut mixed: Vec<u64> = (0..1000).map(|_| 1 << (random() % 17)).collect();
    mixed[500] = 0;
    let plays: [(&str, Vec<u64>); 5] = [
        ("equal", vec![50; 1000]),
        ("big ones among small", (0..1000).map(|exit| if exit % 100 == 0 { 1_000_000 } else { 5 }).collect()),
        ("growing", (1..=1000).collect()),
        ("shrinking", (1..=1000).rev().collect()),
        ("mixed", mixed),
    ];
    for (name, sizes) in plays {
        let (deepest, merged, total) = play(sizes.into_iter());
        assert!(deepest <= DEPTH_MAX, "{name}: {deepest}");
        // log2(1000) < 10; each entry is written again less than half as often.
        assert!(merged <= total * 5, "{name}: {merged} of {total}");
    }
}

#[test]
fn queue_of_generations_folds_its_oldest_layers_at_the_cost_of_each_exit() {
    const CAPACITY: usize = 5;
    let mut layers: Vec<(LayerId, u64)> = Vec::new();
    let mut moved = 0;
    for exit in 0..1000_u32 {
        let name = exit.to_be_bytes();
        layers.insert(0, (LayerId::from_random([0, 0, 0, 0, name[0], name[1], name[2], name[3]]), 50));
        // Generations share their layers: each is the tail of the newer one's stack.
        let ids: Vec<LayerId> = layers.iter().map(|(id, _)| id.clone()).collect();
        let newest = ids.len().min(CAPACITY);
        let stacks: Vec<&[LayerId]> = (0..newest).map(|skipped| &ids[skipped..]).collect();
        if let Some(fold) = plan_fold(&stacks, &BTreeSet::new(), &BTreeSet::new()) {
            let top = layers.iter().position(|(id, _)| *id == fold.top).unwrap();
            moved += layers[top].1;
            layers[top + 1].1 += layers[top].1;
            layers.remove(top);
        }
        assert!(layers.len() <= CAPACITY, "{}", layers.len());
    }
    assert!(moved <= 1000 * 50);
    assert_eq!(layers.iter().map(|(_, entries)| entries).sum::<u64>(), 1000 * 50);
}

#[test]
fn layers_nobody_refers_to_are_unused() {
    assert_eq!(unused(&stack("dacb"), &set("bd")), stack("ac"));
    assert!(unused(&stack("ab"), &set("abc")).is_empty());
}
