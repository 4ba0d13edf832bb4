//! What two generations do not share, and single files taken out of one.
#![cfg(test)]

mod common;

use common::sessions::{Lab, borrowed};
use common::{LoopFs, View, assert_same, listing, opened, traps};
use perennial_core::id::LayerId;
use perennial_store::tree::{self, ChangeKind, Side};
use rustix::fd::AsFd as _;
use std::fs;
use std::path::Path;

#[test]
fn changes_of_a_run_are_told_by_path() {
    let fs = LoopFs::ext4();
    let build = |root: &Path| {
        for dir in ["etc", "gone/sub", "again", "quiet"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for file in
            ["etc/conf", "etc/mode", "etc/rewritten", "gone/sub/x", "again/old", "again/kept", "turns", "quiet/x"]
        {
            traps::write(&root.join(file), b"text");
        }
        traps::set_times(&root.join("etc/rewritten"), 10, 10);
    };
    let mut lab = Lab::new(fs.path().join("lab"), build, |_| {});
    lab.session(|root| traps::write(&root.join("before"), b"in both"));
    lab.session(|root| {
        traps::append(&root.join("etc/conf"), b"!");
        traps::chmod(&root.join("etc/mode"), 0o600);
        traps::write(&root.join("etc/rewritten"), b"TEXT");
        traps::set_times(&root.join("etc/rewritten"), 10, 10);
        traps::remove(&root.join("gone"));
        traps::remove(&root.join("again"));
        fs::create_dir(root.join("again")).unwrap();
        traps::write(&root.join("again/kept"), b"other");
        traps::remove(&root.join("turns"));
        fs::create_dir(root.join("turns")).unwrap();
        traps::write(&root.join("turns/inside"), b"");
    });
    let fds = opened(&lab.own);
    let ids = [LayerId::from_random([2; 8]), LayerId::from_random([1; 8])];
    let layers: Vec<_> = ids.into_iter().zip(borrowed(&fds)).collect();
    let empty = lab.dir.join("empty");
    let older = [&lab.own[1..], &lab.image].concat();
    let (old, new) = (View::of(&older, &empty).into_fd(), View::of(&lab.stack(), &empty).into_fd());
    let a = Side { layers: &layers[1..], root: old.as_fd() };
    let b = Side { layers: &layers, root: new.as_fd() };
    let found = tree::diff(&a, &b).unwrap();
    let modified = |content, metadata| ChangeKind::Modified { content, metadata };
    let expected = [
        ("again/kept", modified(true, true)),
        ("again/old", ChangeKind::Removed),
        ("etc/conf", modified(true, true)),
        ("etc/mode", modified(false, true)),
        ("etc/rewritten", modified(true, false)),
        ("gone", ChangeKind::Removed),
        ("gone/sub", ChangeKind::Removed),
        ("gone/sub/x", ChangeKind::Removed),
        ("turns", ChangeKind::TypeChanged),
        ("turns/inside", ChangeKind::Added),
    ];
    let found: Vec<_> = found.iter().map(|change| (std::str::from_utf8(&change.path).unwrap(), change.kind)).collect();
    assert_eq!(found, expected);
    let back: Vec<_> = tree::diff(&b, &a).unwrap();
    assert_eq!(back.len(), expected.len());
}

#[test]
fn file_and_tree_are_copied_out_as_the_container_sees_them() {
    let fs = LoopFs::ext4();
    let mut lab = Lab::new(fs.path().join("lab"), traps::build, traps::rebuild);
    lab.session(traps::first);
    lab.session(|root| {
        std::os::unix::fs::symlink("/etc", root.join("usr/absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/passwd", root.join("usr/up")).unwrap();
    });
    let view = View::of(&lab.stack(), &lab.dir.join("empty"));
    let shown = listing(&view.path());
    let root = view.into_fd();
    let out = fs.path().join("out");
    // The host has an /etc/passwd of its own; the container's is meant.
    tree::copy_out(root.as_fd(), Path::new("/usr/absolute/passwd"), &out).unwrap();
    assert_eq!(fs::read(&out).unwrap(), b"root:x:0:0");
    let again = tree::copy_out(root.as_fd(), Path::new("/usr/absolute/passwd"), &out).unwrap_err();
    assert_eq!(again.errno(), Some(rustix::io::Errno::EXIST));
    assert_eq!(fs::read(&out).unwrap(), b"root:x:0:0");
    let link = fs.path().join("link");
    tree::copy_out(root.as_fd(), Path::new("usr/up"), &link).unwrap();
    assert!(link.is_symlink());
    let missing = tree::copy_out(root.as_fd(), Path::new("/not/there"), &fs.path().join("missing")).unwrap_err();
    assert_eq!(missing.errno(), Some(rustix::io::Errno::NOENT));
    let dir = fs.path().join("attributes");
    tree::copy_out(root.as_fd(), Path::new("/attributes"), &dir).unwrap();
    let mut expected = shown.clone();
    expected.retain(|path, _| path.starts_with(b"attributes"));
    let mut found = listing(&dir);
    let found = std::mem::take(&mut found)
        .into_iter()
        .map(|(path, item)| {
            (if path.is_empty() { b"attributes".to_vec() } else { [b"attributes/", &path[..]].concat() }, item)
        })
        .collect();
    assert_same(&expected, &found, "copied out");
    tree::remove_tree(&dir).unwrap();
    let everything = fs.path().join("everything");
    tree::copy_out(root.as_fd(), Path::new("/"), &everything).unwrap();
    assert_same(&shown, &listing(&everything), "the root");
    tree::remove_tree(&everything).unwrap();
}
