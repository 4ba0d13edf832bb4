//! Uppers written over sealed layers: metadata-only files and moved directories, sealed and shown as before.
#![cfg(test)]

mod common;

use common::seals::SealLab;
use common::sessions::borrowed;
use common::{Listing, LoopFs, assert_same, open, traps};
use perennial_core::layers::Form;
use perennial_store::sealed::{ReferenceFault, SealError};
use perennial_store::tree::{self, Data, TreeError};
use rustix::fd::AsFd as _;
use std::fs;
use std::path::Path;

const BIG: usize = 300_000;

fn big(path: &Path, byte: u8) {
    traps::write(path, &vec![byte; BIG]);
}

fn build(root: &Path) {
    for dir in ["a/b/c", "old/sub/deep", "old/other", "plain", "twice/in", "opaque"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (number, file) in (0_u8..).zip([
        "chmod",
        "a/same-dir",
        "a/moved",
        "a/b/written",
        "a/b/c/linked",
        "old/kept",
        "old/gone",
        "old/sub/file",
        "old/sub/deep/bottom",
        "old/other/x",
        "plain/file",
        "twice/in/file",
        "opaque/hidden",
        "a/unlinked",
    ]) {
        big(&root.join(file), number);
    }
    traps::write(&root.join("small"), b"small");
    traps::write(&root.join("old/small"), b"small too");
    fs::hard_link(root.join("chmod"), root.join("old/hard-link")).unwrap();
    fs::hard_link(root.join("old/other/x"), root.join("old/other/y")).unwrap();
    std::os::unix::fs::symlink("kept", root.join("old/symlink")).unwrap();
    traps::special(&root.join("old/fifo"), rustix::fs::FileType::Fifo, 0);
    traps::xattr(&root.join("old/sub"), b"user.dir", b"d");
    traps::set_times(&root.join("old/sub"), 1234, 5);
}

fn rename(root: &Path, from: &str, to: &str) {
    fs::rename(root.join(from), root.join(to)).unwrap();
}

/// Changes that overlayfs keeps as metadata alone.
fn change(root: &Path) {
    traps::chmod(&root.join("chmod"), 0o4711);
    traps::chmod(&root.join("small"), 0o600);
    traps::chown(&root.join("a/same-dir"), 5, 6);
    rename(root, "a/same-dir", "a/same-dir-renamed");
    rename(root, "a/moved", "plain/moved-here");
    traps::chmod(&root.join("a/b/written"), 0o640);
    rename(root, "a/b/written", "a/written-later");
    traps::append(&root.join("a/written-later"), b"more");
    traps::xattr(&root.join("a/b/c/linked"), b"user.x", b"1");
    fs::hard_link(root.join("a/b/c/linked"), root.join("linked-2")).unwrap();
    rename(root, "a/b/c/linked", "linked-1");
    traps::chmod(&root.join("a/unlinked"), 0o600);
    traps::remove(&root.join("a/unlinked"));
    rename(root, "old", "new");
    traps::remove(&root.join("new/gone"));
    traps::write(&root.join("new/added"), b"added");
    traps::chmod(&root.join("new/kept"), 0o600);
    rename(root, "new/sub/deep", "plain/deep");
    rename(root, "plain/deep", "plain/deeper");
    big(&root.join("plain/deeper/new"), 77);
    rename(root, "new/other/x", "new/other/z");
    rename(root, "twice/in", "twice/out");
    rename(root, "twice", "plain/twice");
    traps::remove(&root.join("opaque"));
    fs::create_dir(root.join("opaque")).unwrap();
    rename(root, "new/kept", "opaque/kept");
    fs::create_dir(root.join("old")).unwrap();
    traps::write(&root.join("old/again"), b"again");
}

/// The next run moves what was moved before.
fn change_again(root: &Path) {
    rename(root, "new", "newer");
    rename(root, "plain/deeper", "newer/deepest");
    traps::chmod(&root.join("plain/moved-here"), 0o400);
    rename(root, "plain/moved-here", "newer/moved-again");
    traps::remove(&root.join("linked-1"));
    traps::chmod(&root.join("linked-2"), 0o700);
    rename(root, "opaque", "plain/opaque");
    traps::remove(&root.join("newer/sub/file"));
    traps::chown(&root.join("newer/deepest/bottom"), 8, 9);
    rename(root, "a", "newer/sub/a");
}

fn seal_all(lab: &mut SealLab, expected: &Listing, what: &str, view: fn(Listing) -> Listing) {
    for position in (0..lab.stack.len()).rev() {
        if lab.stack[position].1 == Form::Dir {
            lab.seal(position);
            let found = view(lab.list_all());
            assert_same(&view(expected.clone()), &found, &format!("{what}: sealed down from {position}"));
        }
    }
}

fn whole(listing: Listing) -> Listing {
    listing
}

/// Forgets hard links: one between a directory that is moved and another place ends, as with any copy into an upper.
fn without_links(mut listing: Listing) -> Listing {
    listing.values_mut().for_each(|item| item.links = None);
    listing
}

#[test]
fn metadata_only_files_and_moved_directories_are_resolved() {
    for (kind, sealed_first) in [("ext4", true), ("ext4", false), ("xfs", true), ("btrfs", true)] {
        let fs = LoopFs::new(kind, 512);
        let what = format!("{kind}, image {}", if sealed_first { "sealed" } else { "plain" });
        let mut lab = SealLab::new(&fs.path());
        lab.layer(build);
        lab.session(|root| traps::write(&root.join("old/from-above"), b"another layer"));
        if sealed_first {
            lab.seal(1);
            lab.seal(0);
        }
        let (_, first) = lab.session(change);
        assert!(first.unresolved >= 9, "{what}: {first:?}");
        // The two files that were written, and nothing of the others.
        assert!(first.bytes < 3 * BIG as u64, "{what}: {first:?}");
        let after_first = lab.list_all();
        refused_alone(&lab);
        let (_, second) = lab.session(change_again);
        assert!(second.unresolved >= 5, "{what}: {second:?}");
        let expected = lab.list_all();
        assert!(!expected.contains_key(&b"twice/in/file"[..]), "{what}: shown where it was moved from");
        seal_all(&mut lab, &expected, &what, whole);
        assert_same(&after_first, &lab.list(&lab.stack[1..]), &format!("{what}: without the last run"));
        lab.drop_trees();
        assert_same(&expected, &lab.list_all(), &format!("{what}: without trees"));
    }
}

/// Whatever reads the newest layer by itself refuses it by name.
fn refused_alone(lab: &SealLab) {
    let refused = |result: Result<(), TreeError>| match result {
        Err(TreeError::Refused { attribute, .. }) => assert!(attribute.starts_with("trusted.overlay."), "{attribute}"),
        Err(error) => panic!("{error}"),
        Ok(()) => panic!("read though it means nothing alone"),
    };
    let fds = lab.open(&lab.stack[..1]);
    let layers = borrowed(&fds);
    refused(tree::measure_and_strip(layers[0]).map(drop));
    for data in [Data::Copy, Data::Link] {
        let dst = lab.root.staging_dir().join(format!("{data:?}"));
        fs::create_dir(&dst).unwrap();
        refused(tree::materialize(&layers, &[], open(&dst).as_fd(), data, &mut |_| {}).map(drop));
        // A fold has moved what it met before: it is refused on a copy.
        let copy = lab.root.staging_dir().join(format!("{data:?}-copy"));
        let tree = lab.root.layer_tree(&lab.stack[0].0);
        let copied = std::process::Command::new("cp").arg("-a").args([&tree, &copy]).status().unwrap();
        assert!(copied.success());
        let (top, bottom) = (open(&copy), open(&dst));
        let fold = tree::FoldLayers { top: top.as_fd(), bottom: bottom.as_fd(), below: &[] };
        refused(tree::fold(fold, open(&lab.root.trash_dir()).as_fd(), &mut || false).map(drop));
    }
}

/// A small generator, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

fn all_paths(root: &Path, of_dirs: bool) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            let path = dir.join(name);
            let is_dir = fs::symlink_metadata(&path).unwrap().is_dir();
            if is_dir == of_dirs {
                found.push(path.clone());
            }
            if is_dir {
                todo.push(path);
            }
        }
    }
    found
}

fn random_change(root: &Path, random: &mut Random, number: usize) {
    let (files, dirs) = (all_paths(root, false), all_paths(root, true));
    let pick = |paths: &[std::path::PathBuf], random: &mut Random| {
        (!paths.is_empty()).then(|| paths[random.below(paths.len())].clone())
    };
    let into = pick(&dirs, random).unwrap_or_else(|| root.to_path_buf());
    let new = into.join(format!("n{number}"));
    // What cannot be done, as moving a directory into itself, is left out.
    match random.below(9) {
        0 => fs::create_dir(&new).unwrap(),
        1 => traps::write(&new, &vec![u8::try_from(number % 251).unwrap(); random.below(400)]),
        2 => drop(pick(&files, random).map(|file| fs::hard_link(file, &new))),
        3 => {
            if let Some(file) = pick(&files, random) {
                traps::chmod(&file, 0o600 + u32::try_from(random.below(64)).unwrap());
            }
        }
        4 => drop(pick(&files, random).map(|file| fs::rename(file, &new))),
        5 | 6 => drop(pick(&dirs, random).map(|dir| fs::rename(dir, &new))),
        7 if random.below(3) == 0 => drop(pick(&dirs, random).map(|dir| traps::remove(&dir))),
        7 => drop(pick(&files, random).map(fs::remove_file)),
        _ => drop(pick(&files, random).map(|file| traps::append(&file, b"appended"))),
    }
}

#[test]
fn random_runs_over_sealed_layers_are_resolved() {
    let fs = LoopFs::new("ext4", 512);
    for seed in 0..12 {
        let dir = fs.path().join(seed.to_string());
        fs::create_dir(&dir).unwrap();
        let mut random = Random(seed);
        let mut lab = SealLab::new(&dir);
        lab.layer(|root| (0..40).for_each(|number| random_change(root, &mut random, number)));
        let mut number = 100;
        for run in 0..5 {
            // Sometimes a run begins over layers that are not sealed yet.
            if random.below(3) > 0 {
                let expected = lab.list_all();
                seal_all(&mut lab, &expected, &format!("seed {seed}, before run {run}"), without_links);
            }
            lab.session(|root| {
                for _ in 0..12 {
                    number += 1;
                    random_change(root, &mut random, number);
                }
            });
        }
        let expected = lab.list_all();
        seal_all(&mut lab, &expected, &format!("seed {seed}"), without_links);
        lab.drop_trees();
        let found = without_links(lab.list_all());
        assert_same(&without_links(expected), &found, &format!("seed {seed}: without trees"));
        tree::remove_tree(&dir).unwrap();
    }
}

/// Seals a layer with one attribute that no mount has written.
fn hostile(fs: &LoopFs, number: usize, write: impl FnOnce(&Path)) -> SealError {
    let dir = fs.path().join(number.to_string());
    fs::create_dir(&dir).unwrap();
    let mut lab = SealLab::new(&dir);
    lab.layer(build);
    lab.seal(0);
    lab.layer(|root| {
        fs::create_dir_all(root.join("dir/in")).unwrap();
        fs::File::create(root.join("file")).unwrap().set_len(BIG as u64).unwrap();
        write(root);
    });
    lab.try_seal(0, &mut || false).unwrap_err()
}

#[test]
fn references_that_overlayfs_does_not_write_are_refused_by_name() {
    let fs = LoopFs::new("ext4", 512);
    let long = [b'x'; 256];
    let longer = b"/a".repeat(3000);
    let table: [(&[u8], ReferenceFault); 13] = [
        (b"", ReferenceFault::Malformed),
        (b"/", ReferenceFault::Malformed),
        (b".", ReferenceFault::Malformed),
        (b"..", ReferenceFault::Malformed),
        (b"/../etc", ReferenceFault::Malformed),
        (b"/old/../../etc", ReferenceFault::Malformed),
        (b"/old//sub", ReferenceFault::Malformed),
        (b"old/sub", ReferenceFault::Malformed),
        (b"/old\0sub", ReferenceFault::Malformed),
        (&long, ReferenceFault::Malformed),
        (&longer, ReferenceFault::Malformed),
        (b"/not/there", ReferenceFault::Nowhere),
        (b"not-there", ReferenceFault::Nowhere),
    ];
    let mut number = 0;
    for (value, expected) in table {
        for path in ["dir", "file"] {
            number += 1;
            let error = hostile(&fs, number, |root| {
                if path == "file" {
                    traps::xattr(&root.join(path), b"trusted.overlay.metacopy", b"");
                }
                traps::xattr(&root.join(path), b"trusted.overlay.redirect", value);
            });
            let SealError::Reference { path: found, fault, .. } = &error else { panic!("{error}") };
            assert_eq!((found.as_bytes(), *fault), (path.as_bytes(), expected), "{error}");
        }
    }
}

#[test]
fn references_to_what_they_cannot_mean_are_refused_by_name() {
    let fs = LoopFs::new("ext4", 512);
    let redirect = |path: &Path, value: &[u8]| traps::xattr(path, b"trusted.overlay.redirect", value);
    let metacopy = |path: &Path| traps::xattr(path, b"trusted.overlay.metacopy", b"");
    let fault = |error: SealError| {
        let SealError::Reference { path, fault, .. } = error else { panic!("{error}") };
        (String::from_utf8(path.as_bytes().to_vec()).unwrap(), fault)
    };
    // Two directories that were one, one in another, and one that is its own parent.
    for (number, values) in [(1, ["/old", "/old"]), (2, ["/old", "/old/sub"]), (3, ["/old/sub", "/old"])] {
        let error = hostile(&fs, number, |root| {
            redirect(&root.join("dir"), values[0].as_bytes());
            fs::create_dir(root.join("second")).unwrap();
            redirect(&root.join("second"), values[1].as_bytes());
        });
        assert_eq!(fault(error).1, ReferenceFault::Twice);
    }
    let error = hostile(&fs, 4, |root| redirect(&root.join("dir"), b"/chmod"));
    assert_eq!(fault(error), ("dir".to_owned(), ReferenceFault::Nowhere));
    let error = hostile(&fs, 5, |root| {
        metacopy(&root.join("file"));
        redirect(&root.join("file"), b"/old");
    });
    assert_eq!(fault(error), ("file".to_owned(), ReferenceFault::Nowhere));
    let error = hostile(&fs, 6, |root| {
        metacopy(&root.join("file"));
        redirect(&root.join("file"), b"/small");
    });
    assert_eq!(fault(error), ("file".to_owned(), ReferenceFault::Size));
    let error = hostile(&fs, 7, |root| metacopy(&root.join("file")));
    assert_eq!(fault(error), ("file".to_owned(), ReferenceFault::Nowhere));
    let error = hostile(&fs, 8, |root| redirect(root, b"/old"));
    assert_eq!(fault(error), (String::new(), ReferenceFault::Malformed));
    // An object that is not there, named by a path that begins as those of objects do.
    let error = hostile(&fs, 9, |root| {
        metacopy(&root.join("file"));
        redirect(&root.join("file"), format!("/{}/ab/{}", "5e".repeat(16), "cd".repeat(31)).as_bytes());
    });
    assert_eq!(fault(error), ("file".to_owned(), ReferenceFault::Nowhere));
    // Two names for content that each finds by its own name.
    let error = hostile(&fs, 10, |root| {
        metacopy(&root.join("file"));
        redirect(&root.join("file"), b"chmod");
        fs::hard_link(root.join("file"), root.join("file-2")).unwrap();
    });
    assert_eq!(fault(error), ("file".to_owned(), ReferenceFault::Malformed));
    // Deeper in each other than any sequence of runs makes them.
    let error = hostile(&fs, 11, |root| {
        let mut dir = root.join("dir");
        for number in 0..70 {
            redirect(&dir, b"/plain");
            dir = dir.join(number.to_string());
            fs::create_dir(&dir).unwrap();
        }
    });
    assert_eq!(fault(error).1, ReferenceFault::Twice);
}

#[test]
fn attributes_nobody_knows_are_refused_by_name() {
    let fs = LoopFs::new("ext4", 512);
    let table: [(&str, &[u8], &[u8]); 5] = [
        ("dir", b"trusted.overlay.opaque", b"x"),
        ("dir/in", b"trusted.overlay.whiteouts", b""),
        ("file", b"trusted.overlay.verity", b"1"),
        ("file", b"trusted.overlay.unheard-of", b"1"),
        ("", b"trusted.overlay.unheard-of", b"1"),
    ];
    for (number, (path, name, value)) in table.into_iter().enumerate() {
        let error = hostile(&fs, number, |root| traps::xattr(&root.join(path), name, value));
        let SealError::Tree(TreeError::Refused { path: found, .. }) = &error else { panic!("{error}") };
        assert_eq!(found.as_bytes(), path.as_bytes(), "{error}");
    }
}
