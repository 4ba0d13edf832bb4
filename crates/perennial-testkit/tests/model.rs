//! Random scripts lead to the same tree on a plain directory and on a growing stack of overlay layers.

use perennial_testkit::bytes::Bytes;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::model::{self, Applied, Op, Stage};
use perennial_testkit::overlay::Stack;
use perennial_testkit::tree::{Difference, Field, TreeListing, ensure_equal_but};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::cell::Cell;
use std::fs;
use std::path::Path;

/// Applies every stage to both, compares after each, and counts what was done and what was refused.
fn compare(dir: &Path, script: &[Stage]) -> anyhow::Result<(usize, usize)> {
    let (plain, mut stack) = (dir.join("plain"), Stack::new(dir.join("stack"))?);
    fs::create_dir(&plain)?;
    perennial_testkit::copy::attributes(&plain, &stack.lower())?;
    let mut counts = (0, 0);
    for stage in script {
        let merged = stack.mount()?;
        let there = model::apply(&merged, stage)?;
        stack.unmount()?;
        let here = model::apply(&plain, stage)?;
        let again = stack.mount()?;
        let listing = TreeListing::of(&again)?;
        stack.unmount()?;
        let done = |applied: &[Applied]| applied.iter().map(|one| one.done()).collect::<Vec<_>>();
        anyhow::ensure!(done(&here) == done(&there), "results differ: {here:?} {there:?}");
        // When overlayfs copies a file up, it fills the smaller holes.
        let filled = |difference: &Difference| difference.field == Field::Holes;
        ensure_equal_but(&TreeListing::of(&plain)?, &listing, &filled)?;
        counts.0 += here.iter().filter(|one| one.done()).count();
        counts.1 += here.iter().filter(|one| !one.done()).count();
    }
    Ok(counts)
}

#[test]
fn random_scripts_lead_to_equal_trees() {
    let disk = LoopFs::new(FsKind::Ext4, 512 << 20).unwrap();
    let number = Cell::new(0);
    let counts = Cell::new((0, 0));
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&model::script(4, 40), |script| {
        number.set(number.get() + 1);
        let dir = disk.path().join(number.get().to_string());
        fs::create_dir(&dir).unwrap();
        let found = compare(&dir, &script);
        fs::remove_dir_all(&dir).unwrap();
        let (done, refused) = found.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
        counts.set((counts.get().0 + done, counts.get().1 + refused));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let (done, refused) = counts.get();
    println!("{done} operations done, {refused} refused");
    assert!(done > refused / 3, "scripts that are refused show nothing");
}

#[test]
fn scripts_survive_json() {
    let stage =
        Stage { number: 1, ops: vec![Op::Symlink { path: Bytes::from(&b"\xff\n"[..]), target: Bytes::from("x") }] };
    let text = serde_json::to_string(&stage).unwrap();
    assert_eq!(serde_json::from_str::<Stage>(&text).unwrap(), stage);
}

#[test]
fn scripts_neither_follow_symlinks_nor_leave_their_root() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    let ops = vec![
        Op::Symlink { path: Bytes::from("a"), target: Bytes::from("../outside") },
        Op::Mkdir { path: Bytes::from("a/b") },
        Op::Chmod { path: Bytes::from("a"), mode: 0 },
        Op::Mkdir { path: Bytes::from("../outside/c") },
    ];
    let applied = model::apply(&root, &Stage { number: 1, ops }).unwrap();
    assert_eq!(applied.iter().map(|one| one.done()).collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
}
