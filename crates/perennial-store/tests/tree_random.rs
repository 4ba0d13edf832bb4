//! Random changes in random runs through real mounts; whatever is done to the layers, the merged tree stays the same.
#![cfg(test)]

mod common;

use common::sessions::{Lab, borrowed};
use common::{Item, Listing, LoopFs, View, assert_same, opened, traps};
use perennial_core::id::LayerId;
use perennial_store::tree::{self, Change, ChangeKind, Data, FoldOutcome, Side};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use rustix::fd::AsFd as _;
use rustix::fs::FileType;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Few names, so that runs meet.
const PATHS: [&str; 12] = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "d/e/b", "d/e/f", "d/e/f/a", "g", "g/a"];

#[derive(Debug, Clone)]
struct Op {
    what: u8,
    path: usize,
    other: usize,
}

fn apply(root: &Path, op: &Op) {
    let (path, other) = (root.join(PATHS[op.path]), root.join(PATHS[op.other]));
    let exists = path.symlink_metadata().is_ok();
    let is_file = path.symlink_metadata().is_ok_and(|meta| meta.is_file());
    let has_parent = path.parent().unwrap().symlink_metadata().is_ok_and(|meta| meta.is_dir());
    // Operations that make no sense at this moment fail, as they would for a user.
    match op.what {
        0 | 1 if has_parent && !path.is_dir() => {
            traps::remove(&path);
            traps::write(&path, PATHS[op.other].as_bytes());
        }
        2 if is_file => traps::append(&path, b"+"),
        3..=5 => drop(fs::create_dir(&path)),
        6 | 7 => traps::remove(&path),
        8 | 9 => drop(fs::rename(&path, &other)),
        10 => drop(fs::hard_link(&path, &other)),
        11 => drop(std::os::unix::fs::symlink(PATHS[op.other], &path)),
        12 if exists => traps::chmod_unless_link(&path, 0o500 + u32::try_from(op.other).unwrap()),
        13 if exists => traps::chown(&path, u32::try_from(op.other).unwrap(), 3),
        14 if exists => traps::xattr(&path, b"trusted.mark", PATHS[op.other].as_bytes()),
        15 if exists => traps::set_times(&path, i64::try_from(op.other).unwrap() - 5, 999),
        16 if has_parent && !exists => traps::special(&path, FileType::Fifo, 0),
        17 if is_file => traps::sparse(&path, 1 << 20, &[1 << 19]),
        18 if has_parent => {
            traps::remove(&path);
            fs::create_dir(&path).unwrap();
        }
        _ => {}
    }
}

fn runs() -> impl Strategy<Value = Vec<Vec<Op>>> {
    let op = (0..19_u8, 0..PATHS.len(), 0..PATHS.len()).prop_map(|(what, path, other)| Op { what, path, other });
    prop::collection::vec(prop::collection::vec(op, 1..25), 3..6)
}

fn is_dir(item: &Item) -> bool {
    item.mode & 0o170_000 == 0o040_000
}

/// What [`tree::diff`] must find, from complete listings; times of directories aside.
fn expected_changes(a: &Listing, b: &Listing) -> BTreeSet<Change> {
    let mut changes = BTreeSet::new();
    for path in a.keys().chain(b.keys()) {
        let kind = match (a.get(path), b.get(path)) {
            (Some(a), Some(b)) if a.mode >> 12 != b.mode >> 12 => ChangeKind::TypeChanged,
            (Some(a), Some(b)) => {
                let content = (a.size, &a.content, a.rdev) != (b.size, &b.content, b.rdev);
                let times = a.mtime != b.mtime && !is_dir(a);
                let metadata = times || (a.mode, a.ids, &a.xattrs, a.flags) != (b.mode, b.ids, &b.xattrs, b.flags);
                if !content && !metadata {
                    continue;
                }
                ChangeKind::Modified { content, metadata }
            }
            (Some(_), None) => ChangeKind::Removed,
            (None, Some(_)) => ChangeKind::Added,
            (None, None) => continue,
        };
        changes.insert(Change { path: path.clone(), kind });
    }
    changes
}

fn check_diff(lab: &Lab, older: usize) {
    let empty = lab.dir.join("empty");
    let fds = opened(&lab.own);
    let layers: Vec<_> = borrowed(&fds)
        .into_iter()
        .enumerate()
        .map(|(at, fd)| (LayerId::from_random(u64::try_from(at).unwrap().to_be_bytes()), fd))
        .collect();
    let old_stack = [&lab.own[older..], &lab.image].concat();
    let (view_a, view_b) = (View::of(&old_stack, &empty), View::of(&lab.stack(), &empty));
    let (list_a, list_b) = (lab.list(&old_stack), lab.list_all());
    let (root_a, root_b) = (view_a.into_fd(), view_b.into_fd());
    let a = Side { layers: &layers[older..], root: root_a.as_fd() };
    let b = Side { layers: &layers, root: root_b.as_fd() };
    let found = tree::diff(&a, &b).unwrap();
    let times_only = |change: &Change| {
        let dir = list_a.get(&change.path).filter(|item| is_dir(item));
        let same = |a: &Item, b: &Item| (a.mode, a.ids, &a.xattrs, a.flags) == (b.mode, b.ids, &b.xattrs, b.flags);
        matches!(change.kind, ChangeKind::Modified { .. })
            && dir.is_some_and(|a| list_b.get(&change.path).is_some_and(|b| same(a, b)))
    };
    let found: BTreeSet<Change> = found.into_iter().filter(|change| !times_only(change)).collect();
    assert_eq!(found, expected_changes(&list_a, &list_b));
    assert_eq!(tree::diff(&a, &a).unwrap(), []);
}

fn play(dir: &Path, runs: &[Vec<Op>], pick: usize) {
    let build = |root: &Path| {
        fs::create_dir_all(root.join("d/e/f")).unwrap();
        for name in ["a", "d/a", "d/e/a", "d/e/f/a"] {
            traps::write(&root.join(name), name.as_bytes());
        }
    };
    let mut lab = Lab::new(dir.to_path_buf(), build, |root| runs[0].iter().for_each(|op| apply(root, op)));
    for run in &runs[1..] {
        lab.session(|root| run.iter().for_each(|op| apply(root, op)));
    }
    let expected = lab.list_all();
    check_diff(&lab, 1 + pick % (lab.own.len() - 1));
    for data in [Data::Copy, Data::Link] {
        let (flat, measure) = lab.flatten(data);
        assert_eq!(measure.entries, tree::measure(common::open(&flat).as_fd()).unwrap().entries);
        let stack = [std::slice::from_ref(&flat), &lab.image].concat();
        assert_same(&expected, &lab.list(&stack), "flattened");
        tree::remove_tree(&flat).unwrap();
    }
    let mut pick = pick;
    while lab.own.len() > 1 {
        let at = pick % (lab.own.len() - 1);
        pick /= 2;
        assert!(matches!(lab.fold(at, &mut || false), FoldOutcome::Done(_)));
        assert_same(&expected, &lab.list_all(), "folded, with the empty layer");
        lab.own.remove(at);
        assert_same(&expected, &lab.list_all(), "folded");
    }
    tree::remove_tree(dir).unwrap();
}

#[test]
fn merged_tree_stays_the_same_whatever_is_done_to_its_layers() {
    let fs = LoopFs::ext4();
    let cases = std::env::var("PERENNIAL_RANDOM_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let number = Cell::new(0);
    let outcome = TestRunner::new(config).run(&(runs(), any::<u16>()), |(runs, pick)| {
        number.set(number.get() + 1);
        let dir = fs.path().join(format!("lab{}", number.get()));
        let played = std::panic::catch_unwind(|| play(&dir, &runs, usize::from(pick)));
        played.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            TestCaseError::fail(text)
        })
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
