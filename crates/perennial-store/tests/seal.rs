//! Layers sealed and compared with what they were, through the kernel and through the readers of the store.
#![cfg(test)]

mod common;

use common::seals::{SealLab, without_flags};
use common::sessions::borrowed;
use common::{LoopFs, Lower, View, assert_same, listing, open, traps};
use perennial_core::layers::Form;
use perennial_core::sealed::object::ObjectId;
use perennial_store::layer;
use perennial_store::root::{LockMode, Wait};
use perennial_store::sealed::{self, Kept, Outcome, SealError, Sealed, Unsealable};
use perennial_store::tree::{self, Data, TreeError};
use rustix::fd::AsFd as _;
use rustix::fs::IFlags;
use std::fs;
use std::io::Write as _;
use std::path::Path;

#[test]
fn a_sealed_stack_shows_what_its_trees_showed() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 512);
        let mut lab = SealLab::trapped(&fs.path());
        let expected = lab.list_all();
        for position in (0..lab.stack.len()).rev() {
            let sealed = lab.seal(position);
            println!("{kind}: {sealed:?}");
            assert_same(&expected, &lab.list_all(), &format!("{kind}: sealed down from {position}"));
        }
        lab.drop_trees();
        assert_same(&expected, &lab.list_all(), &format!("{kind}: without trees"));
    }
}

#[test]
fn a_sealed_stack_is_materialised_as_its_trees_were() {
    let fs = LoopFs::new("ext4", 512);
    let mut lab = SealLab::trapped(&fs.path());
    lab.session(|root| {
        fs::rename(root.join("names"), root.join("names-moved")).unwrap();
        traps::chmod(&root.join("sparse"), 0o600);
    });
    let expected = lab.list_all();
    for position in (0..lab.stack.len()).rev() {
        lab.seal(position);
    }
    let fds = lab.open(&lab.stack);
    let layers = borrowed(&fds);
    // Everything into one tree, then the runs alone over the image; from sealed layers, and from both forms mixed.
    for (name, own) in [("all", layers.len()), ("runs", 3), ("none", 0)] {
        let dst = fs.path().join(name);
        fs::create_dir(&dst).unwrap();
        let (own, below) = layers.split_at(own);
        tree::materialize_sealed(own, below, open(&dst).as_fd(), &lab.objects, &mut |_| {}).unwrap();
        let mut lowers = vec![Lower::Dir(&dst)];
        lowers.extend(below.iter().map(|fd| Lower::Fd(*fd)));
        let empty = lab.root.path().join("empty");
        lowers.push(Lower::Dir(&empty));
        let view = View::sealed(&lowers, None, &lab.root.objects_dir());
        listing(&view.path());
        let expected = if own.is_empty() { lab.list(&lab.stack) } else { expected.clone() };
        assert_same(&expected, &without_flags(listing(&view.path())), name);
    }
    // Contents cannot be had without the objects, nor linked.
    let dst = fs.path().join("refused");
    fs::create_dir(&dst).unwrap();
    let refused = tree::materialize(&layers, &[], open(&dst).as_fd(), Data::Copy, &mut |_| {}).unwrap_err();
    assert!(matches!(refused, TreeError::Refused { .. }), "{refused}");
    let dst = fs.path().join("linked");
    fs::create_dir(&dst).unwrap();
    let refused = tree::materialize(&layers, &[], open(&dst).as_fd(), Data::Link, &mut |_| {}).unwrap_err();
    assert_eq!(refused.errno(), Some(rustix::io::Errno::XDEV), "{refused}");
    let root = tree::root_attrs(layers[0]).unwrap();
    assert_eq!(root.xattrs.get(c"user.root"), Some(&b"r".to_vec()));
    assert!(!tree::is_empty(layers[0]).unwrap());
    tree::fingerprint(layers[0]).unwrap();
    assert!(tree::measure(layers[0]).unwrap().entries > 0);
}

#[test]
fn an_object_that_is_missing_is_an_error_that_names_the_file() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    lab.layer(|root| traps::write(&root.join("file"), &[9; 5000]));
    lab.seal(0);
    let id = ObjectId::of(&[9; 5000]);
    let fds = lab.open(&lab.stack);
    let copy = |name: &str| {
        let dst = fs.path().join(name);
        fs::create_dir(&dst).unwrap();
        tree::materialize_sealed(&borrowed(&fds), &[], open(&dst).as_fd(), &lab.objects, &mut |_| {}).unwrap_err()
    };
    lab.objects.remove(&id).unwrap();
    let error = copy("missing");
    assert_eq!(error.to_string(), "the content of file is missing");
    assert_eq!(error.errno(), Some(rustix::io::Errno::NOENT));
    let short = lab.root.objects_dir().join(lab.root.secret().to_string()).join(id.relative_path());
    traps::write(&short, &[9; 4999]);
    assert!(matches!(copy("short"), TreeError::Content { .. }));
}

#[test]
fn sealing_goes_on_where_it_gave_way() {
    let fs = LoopFs::new("ext4", 512);
    let mut lab = SealLab::trapped(&fs.path());
    let expected = lab.list_all();
    for position in (0..lab.stack.len()).rev() {
        let dir = lab.root.layer_dir(&lab.stack[position].0);
        let mut stops = 0;
        loop {
            let (mut asked, stop) = (0, stops * 23);
            let outcome = lab.try_seal(position, &mut || {
                asked += 1;
                asked > stop
            });
            match outcome.unwrap() {
                Outcome::GaveWay => {
                    let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
                    assert_eq!(names, ["tree"], "stopped at {stop}");
                    stops += 1;
                }
                Outcome::Sealed(sealed) => {
                    assert_eq!(
                        lab.try_seal(position, &mut || true).unwrap(),
                        Outcome::Sealed(Sealed { kept: Kept::default(), ..sealed })
                    );
                    break;
                }
            }
        }
        assert!(stops > 0);
        lab.seal(position);
        assert_same(&expected, &lab.list_all(), &format!("after {stops} stops"));
    }
}

#[test]
fn what_was_kept_before_is_not_read_again() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    lab.layer(|root| {
        for number in 0..50_u8 {
            traps::write(&root.join(format!("f{number}")), &[number; 200]);
        }
        fs::hard_link(root.join("f0"), root.join("linked")).unwrap();
    });
    let first = lab.seal(0);
    assert_eq!((first.kept.objects, first.kept.bytes), (50, 10_000));
    for name in ["manifest", "meta.erofs"] {
        fs::remove_file(lab.root.layer_dir(&lab.stack[0].0).join(name)).unwrap();
    }
    // A file whose bytes were exchanged without a trace shows that they are not read.
    let file = lab.root.layer_tree(&lab.stack[0].0).join("f7");
    fs::OpenOptions::new().write(true).open(file).unwrap().write_all(b"!").unwrap();
    let again = lab.seal(0);
    assert_eq!(again.manifest.counts, first.manifest.counts);
    assert_eq!(again.kept, Kept::default());
}

#[test]
fn equal_trees_have_equal_manifests_and_equal_contents_are_kept_once() {
    let fs = LoopFs::new("ext4", 512);
    let build = |root: &Path| {
        for name in ["b", "a", "c"] {
            fs::create_dir(root.join(name)).unwrap();
            traps::write(&root.join(name).join("same"), &[1; 70_000]);
            traps::write(&root.join(name).join("own"), &vec![name.as_bytes()[0]; 70_000]);
            fs::hard_link(root.join(name).join("own"), root.join(format!("link-{name}"))).unwrap();
        }
        for path in ["a/same", "b/same", "c/same", "a/own", "b/own", "c/own", "a", "b", "c", ""] {
            traps::set_times(&root.join(path), 1, 2);
        }
    };
    let mut lab = SealLab::new(&fs.path());
    lab.layer(build);
    lab.layer(build);
    let (first, second) = (lab.seal(1), lab.seal(0));
    assert_eq!((first.manifest.counts.objects, first.kept.objects, first.kept.bytes), (4, 4, 280_000));
    // What the same process has stored is not read once more.
    let expected = Kept { read: 420_000, ..Kept::default() };
    assert_eq!((second.manifest, second.kept), (first.manifest, expected));
    lab.drop_trees();
    let mut count = 0;
    lab.objects
        .list(&mut |id, stat| {
            count += 1;
            assert_eq!(stat.links, 1, "{id}");
            Ok(())
        })
        .unwrap();
    assert_eq!(count, 4);
}

#[test]
fn what_a_sealed_layer_cannot_hold_stays_in_dir_form() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let refused = |lab: &mut SealLab, change: &dyn Fn(&Path)| {
        lab.session(change);
        let error = lab.try_seal(0, &mut || false).unwrap_err();
        let (id, _) = lab.stack.remove(0);
        let left: Vec<_> = fs::read_dir(lab.root.layer_dir(&id)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["tree"], "{error}");
        let SealError::Unsealable { path, why } = error else { panic!("{error}") };
        (String::from_utf8(path.as_bytes().to_vec()).unwrap(), why)
    };
    lab.layer(|root| traps::write(&root.join("image"), b"i"));
    lab.seal(0);
    for (flag, expected) in [
        (IFlags::IMMUTABLE, Unsealable::Protected),
        (IFlags::APPEND, Unsealable::Protected),
        (IFlags::NODUMP, Unsealable::Flags(IFlags::NODUMP.bits())),
        (IFlags::NOATIME, Unsealable::Flags(IFlags::NOATIME.bits())),
    ] {
        for is_dir in [false, true] {
            let found = refused(&mut lab, &|root| {
                let path = root.join("flagged");
                if is_dir {
                    fs::create_dir(&path).unwrap();
                } else {
                    traps::write(&path, b"");
                }
                traps::flags(&path, flag);
            });
            assert_eq!(found, ("flagged".to_owned(), expected.clone()));
        }
    }
    let (path, why) = refused(&mut lab, &|root| {
        traps::write(&root.join("large"), b"");
        traps::xattr(&root.join("large"), b"user.large", &vec![1; 65_536]);
    });
    assert_eq!(path, "large");
    assert!(matches!(why, Unsealable::Limit(_)), "{why}");
}

#[test]
fn nothing_in_a_container_can_pass_for_an_object() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let secret = lab.root.secret().to_string();
    lab.layer(|root| {
        // What the research has shown to replace contents where objects have no secret directory.
        let object = root.join(ObjectId::of(&[1; 5000]).relative_path());
        fs::create_dir_all(object.parent().unwrap()).unwrap();
        traps::write(&object, &[2; 5000]);
    });
    lab.layer(|root| traps::write(&root.join("file"), &[1; 5000]));
    lab.seal(1);
    lab.seal(0);
    lab.drop_trees();
    assert_eq!(lab.list_all()[b"file".as_slice()].size, 5000);
    let fds = lab.open(&lab.stack);
    let lowers: Vec<Lower<'_>> = fds.iter().map(|fd| Lower::Fd(fd.as_fd())).collect();
    let view = View::sealed(&lowers, None, &lab.root.objects_dir());
    assert_eq!(fs::read(view.path().join("file")).unwrap(), [1; 5000]);
    lab.layer(|root| fs::create_dir(root.join(&secret)).unwrap());
    let error = lab.try_seal(0, &mut || false).unwrap_err();
    assert!(matches!(&error, SealError::Hijack { path } if path.as_bytes() == secret.as_bytes()), "{error}");
}

#[test]
fn a_layer_is_sealed_by_one_at_a_time_and_not_while_objects_are_removed() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let id = lab.layer(|root| traps::write(&root.join("file"), &[1; 5000]));
    let lock = lab.root.lock_seal(&id).unwrap().unwrap();
    assert_eq!(lab.try_seal(0, &mut || false).unwrap(), Outcome::GaveWay);
    drop(lock);
    let lock = lab.root.lock_objects(LockMode::Exclusive, Wait::Never).unwrap().unwrap();
    assert_eq!(lab.try_seal(0, &mut || false).unwrap(), Outcome::GaveWay);
    drop(lock);
    lab.seal(0);
    sealed::probe(&lab.root).unwrap();
    assert_eq!(fs::read_dir(lab.root.staging_dir()).unwrap().count(), 0);
}

#[test]
fn a_damaged_image_is_not_mounted() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let id = lab.layer(|root| traps::write(&root.join("file"), &[1; 5000]));
    lab.seal(0);
    traps::write(&lab.root.layer_dir(&id).join("meta.erofs"), &[0; 4096]);
    let error = layer::open(&lab.root, &id, Form::Sealed).unwrap_err();
    let layer::LayerError::Image { source, .. } = &error else { panic!("{error}") };
    assert_eq!((source.action, source.source), ("mount", rustix::io::Errno::INVAL));
    fs::remove_file(lab.root.layer_dir(&id).join("meta.erofs")).unwrap();
    assert!(layer::open(&lab.root, &id, Form::Sealed).is_err());
}

#[test]
fn contents_of_sealed_layers_are_compared_by_their_names() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let build = |byte: u8, seconds: i64| {
        move |root: &Path| {
            traps::write(&root.join("same"), &[1; 5000]);
            traps::write(&root.join("other"), &[byte; 5000]);
            traps::set_times(&root.join("same"), seconds, 0);
            traps::set_times(&root.join("other"), seconds, 0);
            traps::set_times(root, 1, 1);
        }
    };
    lab.layer(build(2, 10));
    lab.layer(build(3, 20));
    lab.seal(1);
    lab.seal(0);
    lab.drop_trees();
    // Whoever reads them sees no difference.
    let objects = lab.root.objects_dir().join(lab.root.secret().to_string());
    traps::write(&objects.join(ObjectId::of(&[3; 5000]).relative_path()), &[2; 5000]);
    let fds = lab.open(&lab.stack);
    let empty = lab.root.path().join("empty");
    let view = |fd: &std::os::fd::OwnedFd| {
        View::sealed(&[Lower::Fd(fd.as_fd()), Lower::Dir(&empty)], None, &lab.root.objects_dir()).into_fd()
    };
    let (view_a, view_b) = (view(&fds[1]), view(&fds[0]));
    let (a, b) = ([(lab.stack[1].0.clone(), fds[1].as_fd())], [(lab.stack[0].0.clone(), fds[0].as_fd())]);
    let a = tree::Side { layers: &a, root: view_a.as_fd() };
    let b = tree::Side { layers: &b, root: view_b.as_fd() };
    let found = tree::diff(&a, &b).unwrap();
    let modified = |path: &[u8], content| tree::Change {
        path: path.to_vec(),
        kind: tree::ChangeKind::Modified { content, metadata: true },
    };
    assert_eq!(found, [modified(b"other", true), modified(b"same", false)]);
}
