//! A fold killed at its system calls: a fresh mount shows the same tree at every one of them, and the fold is finished
//! by running it again.
//!
//! `PERENNIAL_KILL_EVERY=1` takes every call that changes something; without it every seventh is taken.
#![cfg(test)]

mod common;

use common::sessions::{Lab, borrowed};
use common::{LoopFs, assert_same, open, opened, traps, without_dir_times};
use perennial_store::tree::{self, FoldLayers, FoldOutcome};
use rustix::fd::AsFd as _;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CHILD: &str = "PERENNIAL_FOLD_IN";
/// The calls of a fold that change something; strace counts each by itself.
const CALLS: [&str; 9] =
    ["renameat", "renameat2", "unlinkat", "lsetxattr", "fsetxattr", "fremovexattr", "utimensat", "fchown", "fchmod"];

fn fold_in(dir: &Path) -> FoldOutcome {
    let (top, bottom) = (open(&dir.join("top")), open(&dir.join("bottom")));
    let below = opened(&[dir.join("newer"), dir.join("base")]);
    let layers = FoldLayers { top: top.as_fd(), bottom: bottom.as_fd(), below: &borrowed(&below) };
    tree::fold(layers, open(&dir.join("trash")).as_fd(), &mut || false).unwrap()
}

/// The other half of the tests beside it, which run it under strace; by itself it has nothing to do.
#[test]
fn child_folds() {
    if let Some(dir) = std::env::var_os(CHILD) {
        assert!(matches!(fold_in(Path::new(&dir)), FoldOutcome::Done(_)));
    }
}

/// Returns whether the fold was killed at the `nth` system call of a kind.
fn killed_at(call: &str, nth: usize, dir: &Path) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:signal=KILL:when={nth}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_folds"])
        .env(CHILD, dir)
        .output()
        .unwrap();
    !status.status.success()
}

fn copy(from: &Path, to: &Path) {
    tree::remove_tree(to).unwrap();
    common::run(Command::new("cp").args([OsStr::new("-a"), from.as_os_str(), to.as_os_str()]));
}

#[test]
fn fold_killed_at_any_call_shows_the_same_tree_and_can_be_finished() {
    let every = std::env::var("PERENNIAL_KILL_EVERY").ok().and_then(|every| every.parse().ok()).unwrap_or(7);
    let fs = LoopFs::ext4();
    let mut lab = Lab::new(fs.path().join("lab"), traps::build_few, |root| traps::write(&root.join("newer"), b"n"));
    lab.session(traps::first_few);
    lab.session(traps::second_few);
    let dir = fs.path().join("kill");
    fs::create_dir(&dir).unwrap();
    let names = ["top", "bottom", "newer", "base"];
    let (own, image) = (lab.own.clone(), lab.image.clone());
    let originals: Vec<PathBuf> = own.into_iter().chain(image).collect();
    for (name, original) in names.iter().zip(&originals) {
        copy(original, &dir.join(name));
    }
    let stack: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    let expected = lab.list_all();
    assert_same(&expected, &lab.list(&stack), "the copy");
    let without_times = without_dir_times(expected.clone());
    let mut points = 0;
    for call in CALLS {
        for nth in (1..).step_by(every) {
            for (name, original) in ["top", "bottom"].iter().zip(&originals) {
                copy(original, &dir.join(name));
            }
            tree::remove_tree(&dir.join("trash")).unwrap();
            fs::create_dir(dir.join("trash")).unwrap();
            if !killed_at(call, nth, &dir) {
                break;
            }
            points += 1;
            let shown = without_dir_times(lab.list(&stack));
            assert_same(&without_times, &shown, &format!("killed at {call} {nth}"));
            fold_in(&dir);
            assert_same(&expected, &lab.list(&stack), &format!("finished after {call} {nth}"));
            assert_same(&expected, &lab.list(&stack[1..]), &format!("finished after {call} {nth}, bottom alone"));
        }
    }
    println!("killed at {points} points");
    assert!(points * every > 150, "{points}");
}
