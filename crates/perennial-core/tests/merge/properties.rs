//! Random stacks of trees.

use crate::model::{Dir, Held, Seen, Shown, at, blocks, merge_complete, merge_over, read, show, show_merged};
use perennial_core::sealed::entry::{Directory, Item};
use proptest::prelude::*;

fn held(depth: u32) -> BoxedStrategy<Held> {
    let leaf = prop_oneof![4 => (0_u32..6).prop_map(Held::File), 2 => Just(Held::Whiteout)];
    if depth == 0 { leaf.boxed() } else { prop_oneof![3 => leaf, 3 => dir(depth - 1).prop_map(Held::Dir)].boxed() }
}

fn dir(depth: u32) -> BoxedStrategy<Dir> {
    let name = prop::sample::select(vec![&b"a"[..], b"a-", b"a.b", b"b", b"\xff"]).prop_map(<[u8]>::to_vec);
    let names = prop::collection::btree_map(name, held(depth), 0..5);
    (0_u32..100, prop::bool::weighted(0.2), names).prop_map(|(tag, opaque, names)| Dir { tag, opaque, names }).boxed()
}

/// Layers, newest first, of which the first `merged` are merged, and the first `early` of those before the others.
fn stacks() -> impl Strategy<Value = (Vec<Dir>, usize, usize)> {
    prop::collection::vec(dir(3), 1..7).prop_flat_map(|layers| {
        let count = layers.len();
        (Just(layers), 1..=count).prop_flat_map(|(layers, merged)| (Just(layers), Just(merged), 0..=merged))
    })
}

fn numbered(layers: &[Dir]) -> Vec<(u32, &Dir)> {
    (0_u32..).zip(layers).collect()
}

/// Takes away opaque marks that hide nothing.
fn without_needless_marks(mut blocks: Vec<Directory>, below: &Shown) -> Vec<Directory> {
    let mut covered: Option<Vec<Vec<u8>>> = None;
    for block in &mut blocks {
        if covered.as_ref().is_some_and(|above| block.path.starts_with(above)) {
            block.opaque = false;
            continue;
        }
        block.opaque &= matches!(at(below, &block.path), Some(Shown::Dir(..)));
        if block.opaque {
            covered = Some(block.path.clone());
        }
    }
    blocks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn merged_tree_shows_what_the_stack_shows((layers, merged, _) in stacks()) {
        let stack = numbered(&layers);
        let (own, below) = stack.split_at(merged);
        let trees: Vec<_> = own.iter().map(|(layer, dir)| blocks(*layer, dir)).collect();
        let mut seen = Seen::new(below);
        let result = merge_over(&trees, &mut seen);
        prop_assert_eq!(show_merged(&result, below), show(&stack));
        prop_assert!(seen.asked.windows(2).all(|pair| pair[0] != pair[1]));
        for block in &result {
            for entry in block.entries.iter().filter(|entry| entry.item == Item::Whiteout) {
                let path: Vec<_> = block.path.iter().chain([&entry.name]).cloned().collect();
                prop_assert!(at(&seen.shown, &path).is_some(), "ghost name {path:?}");
            }
        }
    }

    #[test]
    fn complete_tree_is_what_the_stack_shows((layers, ..) in stacks()) {
        let stack = numbered(&layers);
        let trees: Vec<_> = stack.iter().map(|(layer, dir)| blocks(*layer, dir)).collect();
        let result = merge_complete(&trees);
        prop_assert_eq!(show_merged(&result, &[]), show(&stack));
        prop_assert!(result.iter().all(|block| !block.opaque));
        prop_assert!(result.iter().flat_map(|block| &block.entries).all(|entry| entry.item != Item::Whiteout));
        // It is canonical: written once more as one tree, nothing changes.
        prop_assert_eq!(merge_complete(std::slice::from_ref(&result)), result);
    }

    #[test]
    fn it_does_not_matter_what_is_merged_first((layers, merged, early) in stacks()) {
        let stack = numbered(&layers);
        let (own, below) = stack.split_at(merged);
        let trees: Vec<_> = own.iter().map(|(layer, dir)| blocks(*layer, dir)).collect();
        let at_once = merge_over(&trees, &mut Seen::new(below));
        let bottom = Seen::new(below);
        let expected = without_needless_marks(at_once.clone(), &bottom.shown);

        let newest = merge_over(&trees[..early], &mut Seen::new(&stack[early..]));
        let in_two: Vec<_> = std::iter::once(newest).filter(|tree| !tree.is_empty()).chain(trees[early..].to_vec()).collect();
        let newest_first = merge_over(&in_two, &mut Seen::new(below));
        prop_assert_eq!(without_needless_marks(newest_first, &bottom.shown), expected.clone());

        let oldest = merge_over(&trees[early..], &mut Seen::new(below));
        let in_two: Vec<_> = trees[..early].iter().cloned().chain([oldest].into_iter().filter(|tree| !tree.is_empty())).collect();
        let oldest_first = merge_over(&in_two, &mut Seen::new(below));
        prop_assert_eq!(without_needless_marks(oldest_first, &bottom.shown), expected);

        prop_assert_eq!(merge_over(std::slice::from_ref(&at_once), &mut Seen::new(below)), at_once);
    }
}

#[test]
fn the_model_tells_stacks_apart() {
    // The properties above would hold for a model that shows nothing; this one does show.
    let mut newest = Dir::default();
    newest.names.insert(b"a".to_vec(), Held::Whiteout);
    newest.names.insert(b"b".to_vec(), Held::File(1));
    let mut oldest = Dir::default();
    oldest.names.insert(b"a".to_vec(), Held::File(2));
    oldest.names.insert(b"c".to_vec(), Held::File(2));
    let Shown::Dir(_, names) = show(&[(0, &newest), (1, &oldest)]) else { panic!("no root") };
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        [(b"b".to_vec(), Shown::File(0, 1)), (b"c".to_vec(), Shown::File(1, 2))]
    );
    assert_eq!(read(&blocks(0, &newest)).1.len(), 1);
}
