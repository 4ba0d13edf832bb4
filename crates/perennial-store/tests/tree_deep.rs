//! Trees deeper than any path can name, with few descriptors; alone in its process, since it lowers a limit of it.
#![cfg(test)]

mod common;

use common::sessions::borrowed;
use common::{LoopFs, open};
use perennial_store::tree::{self, Data, FoldLayers, FoldOutcome};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::process::{Resource, Rlimit, setrlimit};
use std::fs;
use std::path::Path;

/// Descriptors a whole process may have while trees are worked on.
const DESCRIPTORS_MAX: u64 = 80;
const DEPTH: usize = 100_000;
/// What copies and folds has more to do for each directory.
const WORK_DEPTH: usize = 10_000;

fn nest(root: &Path, depth: usize, file: &str) {
    let mut dir: OwnedFd = open(root);
    for _ in 0..depth {
        mkdirat(&dir, "d", Mode::RWXU).unwrap();
        dir = openat(&dir, "d", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
    }
    openat(&dir, file, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
}

#[test]
fn trees_of_any_depth_are_worked_on_with_few_descriptors() {
    let fs = LoopFs::new("xfs", 1024);
    let dir = |name: &str| {
        let path = fs.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let limit = Rlimit { current: Some(DESCRIPTORS_MAX), maximum: Some(DESCRIPTORS_MAX) };
    setrlimit(Resource::Nofile, limit).unwrap();

    let (deepest, layer, flat) = (dir("deepest"), dir("layer"), dir("flat"));
    nest(&deepest, DEPTH, "bottom");
    assert_eq!(tree::measure_and_strip(open(&deepest).as_fd()).unwrap().entries, u64::try_from(DEPTH).unwrap() + 1);
    tree::remove_tree(&deepest).unwrap();
    assert!(!deepest.exists());

    nest(&layer, WORK_DEPTH, "bottom");
    let entries = u64::try_from(WORK_DEPTH).unwrap() + 1;
    let layers = [open(&layer)];
    let below = [open(&layer)];
    let measure =
        tree::materialize(&borrowed(&layers), &borrowed(&below), open(&flat).as_fd(), Data::Copy, &mut |_| {}).unwrap();
    assert_eq!(measure.entries, entries);
    assert_eq!(tree::measure(open(&flat).as_fd()).unwrap().entries, entries);
    tree::fingerprint(open(&flat).as_fd()).unwrap();

    let (top, bottom, trash) = (dir("top"), dir("bottom"), dir("trash"));
    nest(&top, WORK_DEPTH, "from-top");
    nest(&bottom, WORK_DEPTH, "from-bottom");
    let (open_top, open_bottom) = (open(&top), open(&bottom));
    let below = borrowed(&layers);
    let layers = FoldLayers { top: open_top.as_fd(), bottom: open_bottom.as_fd(), below: &below };
    assert!(matches!(tree::fold(layers, open(&trash).as_fd(), &mut || false).unwrap(), FoldOutcome::Done(_)));
    assert!(tree::measure(open(&top).as_fd()).unwrap().is_empty());
    assert_eq!(tree::measure(open(&bottom).as_fd()).unwrap().entries, u64::try_from(WORK_DEPTH).unwrap() + 2);

    tree::move_to_trash(&flat, &trash).unwrap().unwrap();
    for tree in [&layer, &trash, &bottom, &flat] {
        tree::remove_tree(tree).unwrap();
        assert!(!tree.exists());
    }
}
