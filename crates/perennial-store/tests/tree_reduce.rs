//! A whole tree made a layer over others: together they show it, and nothing that was there is kept twice.
#![cfg(test)]

mod common;

use common::{LoopFs, View, assert_same, listing, open, run, traps};
use perennial_core::id::LayerId;
use perennial_store::tree::{self, Side};
use rustix::fd::AsFd as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the layers below have, what is done to a copy of it, and which names the layer then has.
type Case = (&'static str, fn(&Path), fn(&Path), &'static [&'static str]);

fn link(root: &Path, from: &str, to: &str) {
    fs::hard_link(root.join(from), root.join(to)).unwrap();
}

fn linked(root: &Path) {
    traps::write(&root.join("a"), b"same");
    link(root, "a", "b");
    link(root, "a", "c");
    traps::write(&root.join("other"), b"other");
}

fn nested(root: &Path) {
    for dir in ["d/e/f", "d/g", "empty", "quiet/inner"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["d/e/f/x", "d/e/y", "d/g/z", "quiet/inner/q", "turns"] {
        traps::write(&root.join(file), b"text");
    }
}

fn unlink(root: &Path, name: &str) {
    let bytes = fs::read(root.join(name)).unwrap();
    traps::remove(&root.join(name));
    traps::write(&root.join(name), &bytes);
    let clock = |path: &Path| traps::set_times(path, 1_000_000_000, 0);
    for entry in ["a", "b", "c"] {
        clock(&root.join(entry));
    }
}

const CASES: [Case; 11] = [
    ("nothing", linked, |_| {}, &[]),
    ("nothing, nested", nested, |_| {}, &[]),
    ("a link more", linked, |root| link(root, "a", "new"), &["a", "b", "c", "new"]),
    ("a link less", linked, |root| traps::remove(&root.join("b")), &["a", "b", "c"]),
    ("one apart", linked, |root| unlink(root, "b"), &["a", "b", "c"]),
    ("one changed in place", linked, |root| traps::append(&root.join("a"), b"!"), &["a", "b", "c"]),
    (
        "linked to another",
        linked,
        |root| {
            traps::remove(&root.join("other"));
            link(root, "a", "other");
        },
        &["a", "b", "c", "other"],
    ),
    (
        "a file deep down",
        nested,
        |root| {
            traps::append(&root.join("d/e/f/x"), b"!");
            traps::set_times(&root.join("d/e"), 5, 5);
        },
        &["d", "d/e", "d/e/f", "d/e/f/x"],
    ),
    ("a directory gone", nested, |root| traps::remove(&root.join("d/e")), &["d", "d/e"]),
    ("a directory empty now", nested, |root| traps::remove(&root.join("d/g/z")), &["d", "d/g", "d/g/z"]),
    (
        "other types",
        nested,
        |root| {
            traps::remove(&root.join("turns"));
            fs::create_dir(root.join("turns")).unwrap();
            traps::write(&root.join("turns/in"), b"");
            traps::remove(&root.join("d"));
            traps::write(&root.join("d"), b"file");
        },
        &["d", "turns", "turns/in"],
    ),
];

#[test]
fn over_the_layers_the_reduced_tree_shows_what_it_was() {
    let fs = LoopFs::ext4();
    for (number, (what, build, change, names)) in CASES.into_iter().enumerate() {
        let at = fs.path().join(number.to_string());
        let (base, whole, empty) = (at.join("base"), at.join("whole"), at.join("empty"));
        for dir in [&base, &empty] {
            fs::create_dir_all(dir).unwrap();
        }
        build(&base);
        run(Command::new("cp").arg("-a").arg(&base).arg(&whole));
        change(&whole);
        let expected = listing(&whole);
        let view = View::of(std::slice::from_ref(&base), &empty).into_fd();
        let (below, own) = (open(&base), open(&whole));
        let layers = [LayerId::from_random([1; 8]), LayerId::from_random([2; 8])];
        let [of_base, of_own] = layers;
        let (from, to) = ([(of_base, below.as_fd())], [(of_own, own.as_fd())]);
        let (from, to) = (Side { layers: &from, root: view.as_fd() }, Side { layers: &to, root: own.as_fd() });
        let changes = tree::diff(&from, &to).unwrap();
        tree::reduce(own.as_fd(), view.as_fd(), &changes).unwrap();
        let found: Vec<String> = listing(&whole)
            .keys()
            .map(|path| String::from_utf8(path.clone()).unwrap())
            .filter(|path| !path.is_empty())
            .collect();
        assert_eq!(found, names, "{what}");
        drop(view);
        let shown = View::of(&[whole, base], &empty);
        assert_same(&expected, &listing(&shown.path()), what);
    }
}
