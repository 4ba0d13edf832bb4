//! Layers written through real mounts, then flattened and folded: the merged tree must not change in anything.
#![cfg(test)]

mod common;

use common::sessions::Lab;
use common::{LoopFs, assert_same, open, opened, traps};
use perennial_store::tree::{self, Data, FoldOutcome};
use rustix::fd::AsFd as _;

fn trapped(fs: &LoopFs) -> Lab {
    let mut lab = Lab::new(fs.path().join("lab"), traps::build, traps::rebuild);
    lab.session(traps::first);
    lab.session(traps::second);
    lab
}

fn flattened_by_copying_shows_the_same(kind: &str) {
    let fs = LoopFs::new(kind, 512);
    let mut lab = trapped(&fs);
    let expected = lab.list_all();
    let (flat, measure) = lab.flatten(Data::Copy);
    assert_eq!(tree::measure(open(&flat).as_fd()).unwrap().entries, measure.entries);
    lab.own = vec![flat];
    assert_same(&expected, &lab.list_all(), kind);
}

#[test]
fn flattened_by_copying_shows_the_same_on_ext4() {
    flattened_by_copying_shows_the_same("ext4");
}

#[test]
fn flattened_by_cloning_shows_the_same_on_xfs() {
    flattened_by_copying_shows_the_same("xfs");
}

#[test]
fn flattened_by_cloning_shows_the_same_on_btrfs() {
    flattened_by_copying_shows_the_same("btrfs");
}

#[test]
fn flattened_by_linking_shows_the_same_and_takes_no_space() {
    let fs = LoopFs::ext4();
    let mut lab = trapped(&fs);
    let expected = lab.list_all();
    let (flat, _) = lab.flatten(Data::Link);
    lab.own = vec![flat];
    assert_same(&expected, &lab.list_all(), "linked");
}

fn folded_shows_the_same(kind: &str) {
    let fs = LoopFs::new(kind, 512);
    let mut lab = trapped(&fs);
    let expected = lab.list_all();
    let before: u64 = opened(&lab.own).iter().map(|layer| tree::measure(layer.as_fd()).unwrap().entries).sum();
    let FoldOutcome::Done(report) = lab.fold(0, &mut || false) else { panic!("nobody asked to yield") };
    assert_same(&expected, &lab.list_all(), "both layers, folded");
    let top = lab.own.remove(0);
    assert_same(&expected, &lab.list_all(), "the older layer alone");
    assert!(tree::measure(open(&top).as_fd()).unwrap().is_empty());
    let after = tree::measure(open(&lab.own[0]).as_fd()).unwrap();
    assert_eq!(after.entries, before - report.entries_gone);
    assert!(!report.resumed);
}

#[test]
fn folded_shows_the_same_on_ext4() {
    folded_shows_the_same("ext4");
}

#[test]
fn folded_shows_the_same_on_xfs() {
    folded_shows_the_same("xfs");
}

#[test]
fn folded_shows_the_same_on_btrfs() {
    folded_shows_the_same("btrfs");
}

#[test]
fn fold_that_yields_at_every_question_shows_the_same_each_time_and_ends() {
    let fs = LoopFs::ext4();
    let mut lab = trapped(&fs);
    let many = |root: &std::path::Path| {
        let dirs = (0..25).map(|number| format!("many/{}/{}", number / 5, number % 5));
        dirs.map(|dir| root.join(dir)).collect::<Vec<_>>()
    };
    lab.session(|root| {
        for dir in many(root) {
            std::fs::create_dir_all(&dir).unwrap();
            (0..20).for_each(|file| traps::write(&dir.join(file.to_string()), b"first"));
        }
    });
    lab.session(|root| {
        for dir in many(root) {
            (0..10).for_each(|file| traps::append(&dir.join(file.to_string()), b"second"));
            (15..20).for_each(|file| traps::remove(&dir.join(file.to_string())));
        }
    });
    let expected = lab.list_all();
    let (mut yields, mut gone) = (0_u32, 0_u64);
    let pair = opened(&lab.own[..2]);
    let before: u64 = pair.iter().map(|layer| tree::measure(layer.as_fd()).unwrap().entries).sum();
    loop {
        let mut questions = 0;
        let outcome = lab.fold(0, &mut || {
            questions += 1;
            questions > 1
        });
        assert_same(&expected, &lab.list_all(), "after yielding");
        match outcome {
            FoldOutcome::Yielded(report) => {
                yields += 1;
                gone += report.entries_gone;
                assert!(!report.resumed);
            }
            FoldOutcome::Done(report) => {
                gone += report.entries_gone;
                break;
            }
        }
    }
    assert!(yields > 4, "{yields}");
    lab.own.remove(0);
    assert_same(&expected, &lab.list_all(), "done");
    assert_eq!(tree::measure(open(&lab.own[0]).as_fd()).unwrap().entries, before - gone);
}

#[test]
fn fold_of_everything_into_the_first_run_shows_the_same() {
    let fs = LoopFs::ext4();
    let mut lab = trapped(&fs);
    for round in 0..4 {
        lab.session(|root| {
            traps::write(&root.join("etc/passwd"), format!("round {round}").as_bytes());
            traps::remove(&root.join(format!("cross/dir-dir-{}", ["keep", "remove", "file", "dir"][round])));
        });
    }
    let expected = lab.list_all();
    while lab.own.len() > 1 {
        let deepest = lab.own.len() - 2;
        assert!(matches!(lab.fold(deepest, &mut || false), FoldOutcome::Done(_)));
        lab.own.remove(deepest);
        assert_same(&expected, &lab.list_all(), "folded");
    }
}

#[test]
fn unpacked_layers_make_an_upper_directory_that_runs_on() {
    let fs = LoopFs::ext4();
    let mut lab = trapped(&fs);
    let mut twin = lab.twin();
    let more = |root: &std::path::Path| {
        traps::write(&root.join("etc/more"), b"more");
        traps::remove(&root.join("usr/newer"));
        traps::set_times(&root.join("etc"), 1, 1);
        traps::set_times(&root.join("usr"), 1, 1);
        traps::set_times(root, 1, 1);
    };
    lab.session(more);
    // Mode `unpack`: the own layers are written into the upper directory itself.
    let (upper, _) = twin.flatten(Data::Copy);
    let work = twin.new_dir("work");
    let view = common::View::writable(&twin.image, &upper, &work);
    more(&view.path());
    drop(view);
    tree::measure_and_strip(open(&upper).as_fd()).unwrap();
    twin.own = vec![upper];
    let (mut expected, mut found) = (lab.list_all(), twin.list_all());
    for listing in [&mut expected, &mut found] {
        listing.get_mut(b"etc/more".as_slice()).unwrap().mtime = None;
    }
    assert_same(&expected, &found, "unpacked");
}

#[test]
fn untouched_tree_has_the_same_fingerprint_and_a_touched_one_has_not() {
    let fs = LoopFs::ext4();
    let lab = trapped(&fs);
    let layer = open(&lab.own[1]);
    let before = tree::fingerprint(layer.as_fd()).unwrap();
    assert_eq!(before, tree::fingerprint(layer.as_fd()).unwrap());
    traps::chmod(&lab.own[1].join("attributes/closed"), 0o1);
    traps::chmod(&lab.own[1].join("attributes/closed"), 0);
    assert_ne!(before, tree::fingerprint(layer.as_fd()).unwrap());
}

#[test]
fn nothing_of_a_layer_is_lost_when_it_is_measured() {
    let fs = LoopFs::ext4();
    let lab = trapped(&fs);
    for layer in &lab.own {
        let found = tree::measure_and_strip(open(layer).as_fd()).unwrap();
        assert_eq!(found.stripped, 0, "a layer is stripped once");
        for (path, item) in common::listing(layer) {
            for name in item.xattrs.keys().filter(|name| name.starts_with(b"trusted.overlay.")) {
                let name = String::from_utf8_lossy(name).into_owned();
                let kept = ["trusted.overlay.opaque", "trusted.overlay.protattr"].contains(&name.as_str());
                assert!(kept || name.starts_with("trusted.overlay.overlay."), "{}: {name}", path.escape_ascii());
            }
        }
    }
}
