//! Sealed layers merged and unpacked, compared with what the kernel shows and with what the readers of trees write.
#![cfg(test)]

mod common;

use common::seals::SealLab;
use common::{Listing, LoopFs, assert_same, listing, open, sessions};
use perennial_core::id::LayerId;
use perennial_core::layers::Form;
use perennial_core::sealed::entry::{Content, DirectorySource as _, Item, Node};
use perennial_core::sealed::manifest::ObjectTable;
use perennial_core::sealed::object::ObjectId;
use perennial_store::layer::{self, LayerOrigin};
use perennial_store::sealed::{
    CompactOutcome, CompactRequest, Compacted, Hidden, LayerFiles, MANIFEST, SealError, UnpackRequest, compact, freed,
    hidden, objects_of_merge, unpack,
};
use perennial_store::tree::{self, Measure, TreeError};
use rustix::fd::AsFd as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Two layers of an image and three runs with every kind of entry, all sealed, without trees.
fn sealed(fs: &LoopFs) -> SealLab {
    let mut lab = SealLab::trapped(&fs.path());
    for position in (0..lab.stack.len()).rev() {
        lab.seal(position);
    }
    lab.drop_trees();
    lab
}

fn merge(lab: &SealLab, from: usize, to: usize, id: &LayerId, give_way: &mut dyn FnMut() -> bool) -> CompactOutcome {
    let of: Vec<LayerId> = lab.stack[from..to].iter().map(|(id, _)| id.clone()).collect();
    let below = lab.open(&lab.stack[to..]);
    let below = sessions::borrowed(&below);
    let now = "2026-11-22T18:00:00Z".parse().unwrap();
    compact(&CompactRequest { root: &lab.root, of: &of, layer: id, below: &below, now }, give_way).unwrap()
}

fn merged(lab: &SealLab, from: usize, to: usize, id: &LayerId) -> Compacted {
    match merge(lab, from, to, id, &mut || false) {
        CompactOutcome::Done(done) => done,
        CompactOutcome::GaveWay => panic!("nobody asked to give way"),
    }
}

fn new_id(number: u64) -> LayerId {
    LayerId::from_random((0xfeed_0000 + number).to_be_bytes())
}

#[test]
fn a_merged_layer_shows_what_its_layers_showed() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 512);
        let lab = sealed(&fs);
        let expected = lab.list_all();
        let count = lab.stack.len();
        for (number, (from, to)) in [(0, 2), (1, 3), (0, 3), (2, count), (0, count)].into_iter().enumerate() {
            let id = new_id(number as u64);
            let done = merged(&lab, from, to, &id);
            println!("{kind}: {from}..{to}: {done:?}");
            let mut stack = lab.stack.clone();
            stack.splice(from..to, [(id.clone(), Form::Sealed)]);
            assert_same(&expected, &lab.list(&stack), &format!("{kind}: {from}..{to} merged"));

            let described = layer::describe(&lab.root, &id).unwrap();
            let of = lab.stack[from..to].iter().map(|(id, _)| id.clone()).collect();
            assert_eq!(described.origin, LayerOrigin::Merged { of });
            assert_eq!(described.entries, done.manifest.counts.entries);
            // Once more, nothing is done.
            assert_eq!(merged(&lab, from, to, &id), done);
        }
        assert!(fs::read_dir(lab.root.staging_dir()).unwrap().next().is_none(), "something is left in staging");
    }
}

#[test]
fn merging_in_two_steps_gives_the_very_same_manifest() {
    let fs = LoopFs::ext4();
    let mut lab = sealed(&fs);
    let count = lab.stack.len();
    let at_once = merged(&lab, 0, count, &new_id(1));
    merged(&lab, 0, 2, &new_id(2));
    lab.stack.splice(0..2, [(new_id(2), Form::Sealed)]);
    let in_two = merged(&lab, 0, count - 1, &new_id(3));
    assert_eq!(at_once.manifest, in_two.manifest);
}

#[test]
fn a_merge_that_is_cut_off_leaves_nothing_and_can_be_repeated() {
    let fs = LoopFs::ext4();
    let lab = sealed(&fs);
    let expected = lab.list_all();
    let id = new_id(1);
    for directories in [0, 1, 5] {
        let mut seen = 0;
        let outcome = merge(&lab, 0, 3, &id, &mut || {
            seen += 1;
            seen > directories
        });
        assert_eq!(outcome, CompactOutcome::GaveWay);
        assert!(!lab.root.layer_dir(&id).exists());
        assert!(fs::read_dir(lab.root.staging_dir()).unwrap().next().is_none());
    }
    // What a killed process leaves.
    let staged = lab.root.staging_dir().join(id.to_string());
    fs::create_dir(&staged).unwrap();
    for name in [".manifest.new", MANIFEST, ".meta.erofs.new"] {
        fs::File::create(staged.join(name)).unwrap().set_len(1 << 20).unwrap();
    }
    merged(&lab, 0, 3, &id);
    let mut stack = lab.stack.clone();
    stack.splice(0..3, [(id, Form::Sealed)]);
    assert_same(&expected, &lab.list(&stack), "merged after all");
}

#[test]
fn a_damaged_manifest_is_named_and_nothing_is_made_of_it() {
    let fs = LoopFs::ext4();
    let lab = sealed(&fs);
    let path = lab.root.layer_dir(&lab.stack[1].0).join(MANIFEST);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&path).unwrap();
    std::io::Write::write_all(&mut fs::File::create(&path).unwrap(), &bytes).unwrap();
    let of: Vec<LayerId> = lab.stack[..3].iter().map(|(id, _)| id.clone()).collect();
    let below = lab.open(&lab.stack[3..]);
    let below = sessions::borrowed(&below);
    let now = "2026-11-22T18:00:00Z".parse().unwrap();
    let id = new_id(1);
    let request = CompactRequest { root: &lab.root, of: &of, layer: &id, below: &below, now };
    match compact(&request, &mut || false) {
        Err(SealError::Manifest { path: named, .. }) => assert_eq!(named, path),
        other => panic!("{other:?}"),
    }
    assert!(!lab.root.layer_dir(&id).exists());
    assert!(fs::read_dir(lab.root.staging_dir()).unwrap().next().is_none());
}

fn unpack_to(lab: &SealLab, layers: usize, dst: &Path) -> Result<Measure, SealError> {
    fs::create_dir(dst).unwrap();
    let ids: Vec<LayerId> = lab.stack[..layers].iter().map(|(id, _)| id.clone()).collect();
    let below = lab.open(&lab.stack[layers..]);
    let below = sessions::borrowed(&below);
    let opened = open(dst);
    let request = UnpackRequest {
        root: &lab.root,
        objects: &lab.objects,
        layers: &ids,
        below: &below,
        dst: opened.as_fd(),
        workers: 2,
    };
    unpack(&request, &mut |_| {})
}

fn materialized(lab: &SealLab, layers: usize, dst: &Path) -> Measure {
    fs::create_dir(dst).unwrap();
    let own = lab.open(&lab.stack[..layers]);
    let below = lab.open(&lab.stack[layers..]);
    let opened = open(dst);
    let (own, below) = (sessions::borrowed(&own), sessions::borrowed(&below));
    tree::materialize_sealed(&own, &below, opened.as_fd(), &lab.objects, &mut |_| {}).unwrap()
}

/// Lists an upper directory. What a whiteout has besides its name means nothing.
fn listed(upper: &Path) -> Listing {
    let mut listing = listing(upper);
    for item in listing.values_mut().filter(|item| item.mode & 0o170_000 == 0o020_000 && item.rdev == 0) {
        (item.mtime, item.links) = (None, None);
    }
    listing
}

#[test]
fn unpacked_is_what_materialize_makes() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 512);
        let lab = sealed(&fs);
        for layers in 1..=lab.stack.len() {
            let (unpacked, expected) = (fs.path().join("unpacked"), fs.path().join("materialized"));
            let measure = unpack_to(&lab, layers, &unpacked).unwrap();
            let other = materialized(&lab, layers, &expected);
            let what = format!("{kind}: {layers} layers");
            assert_same(&listed(&expected), &listed(&unpacked), &what);
            assert_eq!((measure.entries, measure.whiteouts), (other.entries, other.whiteouts), "{what}");
            for dir in [unpacked, expected] {
                tree::remove_tree(&dir).unwrap();
            }
        }
    }
}

/// A file of the whole stack that is an object, with its path.
fn an_object(lab: &SealLab) -> (PathBuf, ObjectId) {
    let files = LayerFiles::open(&lab.root.layer_dir(&lab.stack[0].0)).unwrap();
    let mut reader = files.directories(MANIFEST).unwrap();
    while let Some(directory) = reader.next_directory().unwrap() {
        for entry in &directory.entries {
            if let Item::Inode(inode) = &entry.item
                && let Node::File(Content::Object { id, .. }) = inode.node
            {
                let names = directory.path.iter().chain([&entry.name]);
                return (names.map(|name| std::str::from_utf8(name).unwrap()).collect(), id);
            }
        }
    }
    panic!("the newest layer has no object");
}

#[test]
fn a_damaged_or_missing_object_is_named_with_its_path() {
    let fs = LoopFs::ext4();
    let lab = sealed(&fs);
    let (path, id) = an_object(&lab);
    let object = lab.root.objects_dir().join(lab.objects.secret().to_string()).join(id.relative_path());
    let intact = fs::read(&object).unwrap();
    for damage in ["a bit", "missing"] {
        fs::remove_file(&object).unwrap();
        if damage == "a bit" {
            let mut bytes = intact.clone();
            *bytes.last_mut().unwrap() ^= 4;
            std::io::Write::write_all(&mut fs::File::create(&object).unwrap(), &bytes).unwrap();
        }
        let dst = fs.path().join("unpacked");
        match unpack_to(&lab, 1, &dst) {
            Err(SealError::Tree(TreeError::Content { path: named, source })) => {
                assert_eq!(named.as_bytes(), path.as_os_str().as_encoded_bytes(), "{damage}");
                assert!(source.to_string().contains(&id.to_string()), "{damage}: {source}");
            }
            other => panic!("{damage}: {other:?}"),
        }
        tree::remove_tree(&dst).unwrap();
    }
}

#[test]
fn what_an_eviction_frees_is_known_before_and_is_what_the_merge_leaves_out() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let write = |path: PathBuf, byte: u8, length: usize| {
        std::io::Write::write_all(&mut fs::File::create(path).unwrap(), &vec![byte; length]).unwrap();
    };
    lab.layer(|root| {
        write(root.join("replaced"), b'a', 100_000);
        write(root.join("shared"), b'b', 50_000);
        write(root.join("kept"), b'c', 30_000);
    });
    lab.session(|root| {
        write(root.join("replaced"), b'd', 20_000);
        fs::remove_file(root.join("shared")).unwrap();
    });
    lab.session(|root| write(root.join("again"), b'b', 50_000));
    for position in (0..3).rev() {
        lab.seal(position);
    }
    lab.drop_trees();
    let ids: Vec<LayerId> = lab.stack.iter().map(|(id, _)| id.clone()).collect();
    let merged_objects = objects_of_merge(&lab.root, &ids[1..], &[]).unwrap();
    let told = freed(&lab.root, &lab.objects, (&ids[1..], &ids[..1]), &merged_objects).unwrap();
    // The old content of one file; that of the other is in the newest layer too.
    let replaced = lab.objects.stat(&ObjectId::of(&[b'a'; 100_000])).unwrap().unwrap();
    assert_eq!((told.objects, told.bytes), (1, replaced.allocated));
    assert!(told.bytes >= 100_000);
    let all = freed(&lab.root, &lab.objects, (&ids[1..], &[]), &std::collections::BTreeSet::new()).unwrap();
    assert_eq!(all.objects, 4);
    // The layer that is made names just these.
    merged(&lab, 1, 3, &new_id(1));
    let after = freed(&lab.root, &lab.objects, (&ids[1..], &[ids[0].clone(), new_id(1)]), &[].into()).unwrap();
    assert_eq!(after, told);
}

/// A content of its own, so many bytes long.
fn content(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![seed; length];
    bytes[..8].copy_from_slice(&u64::from(seed).to_be_bytes());
    bytes
}

fn hide(lab: &SealLab) -> Hidden {
    let fds = lab.open(&lab.stack);
    let [top, below, ..] = fds.as_slice() else { panic!("two layers") };
    hidden(&lab.root, &lab.stack[0].0, (top.as_fd(), below.as_fd()), &mut || false).unwrap().unwrap()
}

/// Lengths of the contents that the two newest layers have and their merge has not.
fn let_go(lab: &SealLab) -> u64 {
    let of: Vec<LayerId> = lab.stack[..2].iter().map(|(id, _)| id.clone()).collect();
    let below = lab.open(&lab.stack[2..]);
    let kept = objects_of_merge(&lab.root, &of, &sessions::borrowed(&below)).unwrap();
    let mut gone = std::collections::BTreeMap::new();
    for id in &of {
        let files = LayerFiles::open(&lab.root.layer_dir(id)).unwrap();
        let table = ObjectTable::open(files.manifest().unwrap().unwrap()).unwrap();
        gone.extend(table.iter().map(Result::unwrap).filter(|(object, _)| !kept.contains(object)));
    }
    gone.values().sum()
}

#[test]
fn what_a_layer_hides_is_what_merging_lets_go() {
    let fs = LoopFs::ext4();
    let write = |path: PathBuf, seed: u8, length: usize| common::traps::write(&path, &content(seed, length));
    let build = |root: &Path| {
        for dir in ["gone/deep/er", "again", "stays"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        for (number, name) in
            (1_u8..).zip(["big", "mode", "gone/a", "gone/deep/er/b", "again/c", "stays/d", "turns", "moved"])
        {
            write(root.join(name), number, 10_000 * usize::from(number));
        }
        write(root.join("linked"), 100, 64_000);
        fs::hard_link(root.join("linked"), root.join("stays/linked")).unwrap();
        fs::hard_link(root.join("linked"), root.join("gone/linked")).unwrap();
    };
    type Change = fn(&Path);
    let rewrite = |root: &Path| common::traps::write(&root.join("big"), &content(50, 9_000));
    let table: [(&str, Change, u64); 9] = [
        ("nothing", |_| {}, 0),
        ("a rewritten file", rewrite, 10_000),
        ("a mode", |root| common::traps::chmod(&root.join("mode"), 0o600), 0),
        ("a directory removed", |root| common::traps::remove(&root.join("gone")), 30_000 + 40_000 + 64_000 / 3),
        (
            "a directory made anew",
            |root| {
                common::traps::remove(&root.join("again"));
                fs::create_dir(root.join("again")).unwrap();
            },
            50_000,
        ),
        (
            "a file that became a directory",
            |root| {
                common::traps::remove(&root.join("turns"));
                fs::create_dir(root.join("turns")).unwrap();
            },
            70_000,
        ),
        ("a file moved", |root| fs::rename(root.join("moved"), root.join("elsewhere")).unwrap(), 0),
        ("one of three names", |root| common::traps::remove(&root.join("linked")), 64_000 / 3),
        ("a new file", |root| common::traps::write(&root.join("new"), &content(60, 5_000)), 0),
    ];
    for (number, (what, change, bytes)) in table.into_iter().enumerate() {
        let dir = fs.path().join(number.to_string());
        fs::create_dir(&dir).unwrap();
        let mut lab = SealLab::new(&dir);
        lab.layer(build);
        lab.session(change);
        lab.seal(1);
        lab.seal(0);
        lab.drop_trees();
        let found = hide(&lab);
        assert_eq!((found.bytes, found.is_complete), (bytes, true), "{what}");
        // Of a file with several names that is not wholly hidden only the share of those that are is counted.
        if !what.contains("removed") && !what.contains("names") {
            assert_eq!(found.bytes, let_go(&lab), "{what}");
        }
    }
}

/// What is looked at is bound by what the upper layer has and hides, not by what there is below.
#[test]
fn finding_out_what_is_hidden_costs_the_upper_layer() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    lab.layer(|root| {
        for dir in 0..50 {
            let dir = root.join(format!("d{dir}"));
            fs::create_dir(&dir).unwrap();
            for file in 0..100 {
                common::traps::write(&dir.join(format!("f{file}")), b"small");
            }
        }
        common::traps::write(&root.join("big"), &content(1, 1_000_000));
    });
    lab.session(|root| {
        common::traps::write(&root.join("big"), &content(2, 1_000_000));
        common::traps::remove(&root.join("d7"));
    });
    lab.seal(1);
    lab.seal(0);
    lab.drop_trees();
    assert_eq!(hide(&lab), Hidden { bytes: 1_000_000, looks: 1 + 1 + 100, is_complete: true });
    let fds = lab.open(&lab.stack);
    let gave_way = hidden(&lab.root, &lab.stack[0].0, (fds[0].as_fd(), fds[1].as_fd()), &mut || true).unwrap();
    assert_eq!(gave_way, Some(hide(&lab)), "a layer without directories asks nobody");
}
