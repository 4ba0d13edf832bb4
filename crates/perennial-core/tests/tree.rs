//! Tables of how entries of stacked layers combine.
#![cfg(test)]

use perennial_core::tree::{Below, EntryKind, FoldAction, Resolved, fold_step, resolve};
use std::collections::BTreeMap;

use Below::{Absent, Visible};
use EntryKind::{Dir, NonDir, OpaqueDir, Whiteout};
use FoldAction::{ClearThenDrop, ClearThenMove, Drop, Merge, Move, SealThenMove};

const KINDS: [EntryKind; 4] = [Whiteout, OpaqueDir, Dir, NonDir];

#[test]
fn topmost_entry_wins_and_directories_merge_until_something_stops_them() {
    let table: [(&[EntryKind], Below, Resolved); 13] = [
        (&[], Visible, Resolved::Nothing),
        (&[NonDir, Dir, NonDir], Visible, Resolved::NonDir),
        (&[NonDir], Absent, Resolved::NonDir),
        (&[Whiteout, NonDir], Visible, Resolved::Whiteout),
        (&[Whiteout, NonDir], Absent, Resolved::Nothing),
        (&[Dir], Visible, Resolved::Dir { merged: 1, opaque: false }),
        (&[Dir, Dir, Dir], Visible, Resolved::Dir { merged: 3, opaque: false }),
        (&[OpaqueDir, Dir], Visible, Resolved::Dir { merged: 1, opaque: true }),
        (&[Dir, OpaqueDir, Dir], Visible, Resolved::Dir { merged: 2, opaque: true }),
        (&[Dir, Dir, Whiteout, Dir], Visible, Resolved::Dir { merged: 2, opaque: true }),
        (&[Dir, NonDir, Dir], Visible, Resolved::Dir { merged: 1, opaque: true }),
        (&[Dir, Whiteout], Absent, Resolved::Dir { merged: 1, opaque: true }),
        (&[OpaqueDir], Absent, Resolved::Dir { merged: 1, opaque: true }),
    ];
    for (entries, below, expected) in table {
        assert_eq!(resolve(entries, below), expected, "{entries:?} over {below:?}");
    }
}

#[test]
fn every_step_of_a_fold_is_decided() {
    // Rows: top and what is below; columns: bottom has nothing, a whiteout, an opaque directory, a directory, a file.
    let table: [(EntryKind, Below, [FoldAction; 5]); 8] = [
        (Whiteout, Visible, [Move, Drop, ClearThenMove, ClearThenMove, Move]),
        (Whiteout, Absent, [Drop, ClearThenDrop, ClearThenDrop, ClearThenDrop, ClearThenDrop]),
        (OpaqueDir, Visible, [Move, ClearThenMove, ClearThenMove, ClearThenMove, ClearThenMove]),
        (OpaqueDir, Absent, [Move, ClearThenMove, ClearThenMove, ClearThenMove, ClearThenMove]),
        (Dir, Visible, [Move, SealThenMove, Merge, Merge, SealThenMove]),
        (Dir, Absent, [Move, SealThenMove, Merge, Merge, SealThenMove]),
        (NonDir, Visible, [Move, Move, ClearThenMove, ClearThenMove, Move]),
        (NonDir, Absent, [Move, Move, ClearThenMove, ClearThenMove, Move]),
    ];
    for (top, below, actions) in table {
        let bottoms = [None, Some(Whiteout), Some(OpaqueDir), Some(Dir), Some(NonDir)];
        for (bottom, expected) in bottoms.into_iter().zip(actions) {
            assert_eq!(fold_step(top, bottom, below), expected, "{top:?} into {bottom:?} over {below:?}");
        }
    }
}

/// What a merged tree shows under a name, in as far as folding one name can change it: whose content it is.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    File(char),
    Dirs(Vec<char>),
}

/// Layers by name, newest first; `i` is the image.
fn shown(layers: &[(char, Option<EntryKind>)]) -> Shown {
    let held: Vec<(char, EntryKind)> = layers.iter().filter_map(|(id, kind)| kind.map(|kind| (*id, kind))).collect();
    let kinds: Vec<EntryKind> = held.iter().map(|(_, kind)| *kind).collect();
    match resolve(&kinds, Absent) {
        Resolved::Nothing | Resolved::Whiteout => Shown::Nothing,
        Resolved::NonDir => Shown::File(held[0].0),
        Resolved::Dir { merged, .. } => Shown::Dirs(held.iter().take(merged).map(|(id, _)| *id).collect()),
    }
}

#[test]
fn each_single_call_of_a_fold_leaves_the_merged_tree_as_it_is() {
    for top in KINDS {
        for bottom in [None, Some(Whiteout), Some(OpaqueDir), Some(Dir), Some(NonDir)] {
            for image in [None, Some(Dir), Some(NonDir)] {
                let expected = shown(&[('t', Some(top)), ('b', bottom), ('i', image)]);
                let below = if image.is_some() { Visible } else { Absent };
                // States after each system call: top, bottom, and whether bottom's entry is top's own by now.
                let states: Vec<(Option<EntryKind>, Option<EntryKind>, char)> = match fold_step(top, bottom, below) {
                    Move => vec![(None, Some(top), 't')],
                    ClearThenMove => vec![(Some(top), None, 'b'), (None, Some(top), 't')],
                    SealThenMove => {
                        vec![(Some(OpaqueDir), bottom, 'b'), (Some(OpaqueDir), None, 'b'), (None, Some(OpaqueDir), 't')]
                    }
                    Drop => vec![(None, bottom, 'b')],
                    ClearThenDrop => vec![(Some(top), None, 'b'), (None, None, 'b')],
                    Merge => continue,
                };
                for (top_now, bottom_now, owner) in states {
                    let found = shown(&[('t', top_now), (owner, bottom_now), ('i', image)]);
                    assert_eq!(found, expected, "{top:?} into {bottom:?} over {image:?}: {top_now:?} {bottom_now:?}");
                    // Decided again from here, the fold comes to the same end.
                    if let (Some(top_now), 'b') = (top_now, owner) {
                        let again = fold_step(top_now, bottom_now, below);
                        assert!(!matches!(again, Merge), "{top:?} into {bottom:?}: {again:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_whiteout_is_kept_exactly_where_it_hides_something() {
    let mut kept = BTreeMap::new();
    for below in [Visible, Absent] {
        kept.insert(format!("{below:?}"), resolve(&[Whiteout], below) == Resolved::Whiteout);
    }
    assert_eq!(kept, BTreeMap::from([("Absent".to_owned(), false), ("Visible".to_owned(), true)]));
}
