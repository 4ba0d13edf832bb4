//! The trap stages run on every file system, and a stack of overlay layers made by them shows the same when it is
//! mounted again: what is lost later is not the kernel's doing.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "helpers of tests act like the tests")]

use perennial_testkit::actor;
use perennial_testkit::host::run;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::overlay::Stack;
use perennial_testkit::traps::{self, CASES, Outcome, Performed, STAGES};
use perennial_testkit::tree::{TreeListing, diff, ensure_equal};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn impossible(performed: &[Performed]) -> BTreeSet<&str> {
    let refused = performed.iter().filter(|one| one.outcome != Outcome::Done);
    refused.inspect(|one| println!("{one:?}")).map(|one| one.case.as_str()).collect()
}

/// Performs all stages over overlay mounts, and compares each before and after mounting again.
fn run_stages(dir: PathBuf, expected: &[&str]) -> Vec<TreeListing> {
    let mut stack = Stack::new(dir).unwrap();
    let mut performed = traps::build_lower(&stack.lower()).unwrap();
    let mut listings = Vec::new();
    for stage in 1..=STAGES {
        let merged = stack.mount().unwrap();
        performed.extend(traps::mutate(&merged, stage).unwrap());
        assert_eq!(traps::stage_done(&merged), Some(stage));
        let before = TreeListing::of(&merged).unwrap();
        stack.unmount().unwrap();
        let merged = stack.mount().unwrap();
        let after = TreeListing::of(&merged).unwrap();
        stack.unmount().unwrap();
        ensure_equal(&before, &after).unwrap_or_else(|error| panic!("stage {stage}: {error}"));
        listings.push(before);
    }
    assert_eq!(impossible(&performed), BTreeSet::from_iter(expected.iter().copied()));
    listings
}

#[test]
fn stages_are_the_same_on_ext4_every_time_and_each_changes_something() {
    let disk = LoopFs::new(FsKind::Ext4, 512 << 20).unwrap();
    // ext4 with 4 KiB blocks keeps xattrs of an inode in one block.
    let first = run_stages(disk.path().join("one"), &["xattr-large"]);
    let second = run_stages(disk.path().join("two"), &["xattr-large"]);
    for (one, two) in first.iter().zip(&second) {
        ensure_equal(one, two).unwrap();
    }
    for pair in first.windows(2) {
        for case in CASES.iter().filter(|case| case.name != "root-dir") {
            let part = |listing: &TreeListing| listing.below(&format!("traps/{}", case.name));
            let possible = !["xattr-large"].contains(&case.name);
            assert!(!possible || !diff(&part(&pair[0]), &part(&pair[1])).is_empty(), "{} stands still", case.name);
        }
    }
}

#[test]
fn stages_run_on_xfs() {
    let disk = LoopFs::new(FsKind::Xfs, 512 << 20).unwrap();
    run_stages(disk.path().join("one"), &["symlinks"]);
}

#[test]
fn stages_run_on_btrfs() {
    let disk = LoopFs::new(FsKind::Btrfs, 512 << 20).unwrap();
    run_stages(disk.path().join("one"), &["xattr-large"]);
}

#[test]
fn program_performs_the_stages_inside_a_root_of_its_own() {
    let disk = LoopFs::new(FsKind::Ext4, 512 << 20).unwrap();
    let root = disk.path().join("root");
    fs::create_dir(&root).unwrap();
    actor::trap_rootfs(&root).unwrap();
    run(Command::new("mount").args(["-t", "proc", "proc"]).arg(root.join("proc"))).unwrap();
    let output = Command::new("chroot").arg(&root).args([actor::ACTOR, "stage", "1"]).output().unwrap();
    run(Command::new("umount").arg(root.join("proc"))).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let performed: Vec<Performed> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(performed.len(), CASES.len());
    assert_eq!(impossible(&performed), BTreeSet::new());
    assert_eq!(traps::stage_done(&root), Some(1));
}

#[test]
fn cases_without_their_capabilities_are_named_not_passed() {
    let disk = LoopFs::new(FsKind::Ext4, 512 << 20).unwrap();
    let root = disk.path().join("root");
    fs::create_dir(&root).unwrap();
    traps::build_lower(&root).unwrap();
    let drop_them = "--bounding-set=-sys_admin,-linux_immutable,-mknod";
    let output = run(Command::new("setpriv")
        .arg(drop_them)
        .arg(actor::trap_actor().unwrap())
        .args(["stage", "1"])
        .arg(Path::new(&root)))
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let performed: Vec<Performed> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let needy = CASES.iter().filter(|case| !case.needs.is_empty()).map(|case| case.name);
    // Some kernels let anyone with the file's ownership set the label of a security module that is not in force.
    let needy: BTreeSet<&str> = needy.filter(|name| *name != "xattr-selinux").collect();
    let impossible: BTreeSet<&str> =
        impossible(&performed).into_iter().filter(|name| *name != "xattr-selinux").collect();
    assert_eq!(impossible, needy);
    assert_eq!(traps::capabilities(), ["LINUX_IMMUTABLE", "MKNOD", "SYS_ADMIN"]);
}
