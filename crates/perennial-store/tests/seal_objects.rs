//! The store of objects: named by content, kept once, whatever the file system can do.
#![cfg(test)]

mod common;

use common::{LoopFs, traps};
use perennial_core::sealed::object::ObjectId;
use perennial_store::objects::{HashError, How, ObjectError, Objects, Verdict};
use perennial_store::root::Secret;
use rustix::fd::AsFd as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

const GO_ON: &dyn Fn() -> bool = &|| false;

fn objects(fs: &LoopFs) -> Objects {
    let data = fs.path().join("objects");
    fs::create_dir_all(&data).unwrap();
    Objects::open_at(&data, Secret::from_random([7; 16])).unwrap()
}

fn put(objects: &Objects, path: &Path) -> (ObjectId, How) {
    let stored = objects.put(fs::File::open(path).unwrap().as_fd(), GO_ON).unwrap();
    assert_eq!(stored.size, fs::metadata(path).unwrap().len());
    (stored.id, stored.how)
}

fn path_of(fs: &LoopFs, id: &ObjectId) -> std::path::PathBuf {
    fs.path().join("objects").join("07".repeat(16)).join(id.relative_path())
}

#[test]
fn a_content_is_linked_under_its_hash_and_kept_once() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 320);
        let objects = objects(&fs);
        let (one, two) = (fs.path().join("one"), fs.path().join("two"));
        traps::write(&one, &[3; 5000]);
        traps::write(&two, &[3; 5000]);
        let (id, how) = put(&objects, &one);
        assert_eq!((id, how), (ObjectId::of(&[3; 5000]), How::Linked), "{kind}");
        assert_eq!(fs::metadata(path_of(&fs, &id)).unwrap().ino(), fs::metadata(&one).unwrap().ino());
        assert_eq!(put(&objects, &one), (id, How::Present));
        assert_eq!(put(&objects, &two), (id, How::Present));
        assert_eq!(objects.stat(&id).unwrap().unwrap().links, 2);
        assert_eq!(objects.verify(&id, GO_ON).unwrap(), Verdict::Intact);
        let mut listed = Vec::new();
        objects
            .list(&mut |id, stat| {
                listed.push((id, stat.size));
                Ok(())
            })
            .unwrap();
        assert_eq!(listed, [(id, 5000)]);
        let mut inodes = Vec::new();
        objects.each_inode(&mut |inode, id| inodes.push((inode, id))).unwrap();
        assert_eq!(inodes, [(fs::metadata(&one).unwrap().ino(), id)]);
        objects.remove(&id).unwrap();
        objects.remove(&id).unwrap();
        assert!(!objects.exists(&id).unwrap());
        assert_eq!(objects.verify(&id, GO_ON).unwrap(), Verdict::Missing);
        assert_eq!(fs::read(&one).unwrap(), [3; 5000]);
    }
}

#[test]
fn holes_are_hashed_as_zeros_and_stay_holes() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 320);
        let objects = objects(&fs);
        for (name, size, at) in [
            ("middle", 8 << 20, vec![0, 3 << 20, (8 << 20) - 4096]),
            ("end", 4 << 20, vec![4096]),
            ("all", 3 << 20, vec![]),
            ("odd", (1 << 20) + 17, vec![65536]),
        ] {
            let path = fs.path().join(name);
            traps::sparse(&path, size, &at);
            rustix::fs::fsync(fs::File::open(&path).unwrap()).unwrap();
            let (id, _) = put(&objects, &path);
            assert_eq!(id, ObjectId::of(&fs::read(&path).unwrap()), "{kind} {name}");
            let allocated = objects.stat(&id).unwrap().unwrap().allocated;
            assert!(allocated <= 64 << 10, "{kind} {name}: {allocated}");
        }
    }
}

#[test]
fn what_takes_no_further_name_is_copied() {
    let fs = LoopFs::ext4();
    let objects = objects(&fs);
    // ext4 gives an inode 65,000 names.
    let many = fs.path().join("many");
    fs::create_dir(&many).unwrap();
    traps::write(&many.join("first"), &[1; 5000]);
    for number in 1..65_000 {
        fs::hard_link(many.join("first"), many.join(number.to_string())).unwrap();
    }
    let (id, how) = put(&objects, &many.join("first"));
    assert_eq!(how, How::Copied);
    assert_eq!(put(&objects, &many.join("9")), (id, How::Present));
    // An immutable file, and one of another file system.
    traps::write(&fs.path().join("immutable"), &[2; 5000]);
    traps::flags(&fs.path().join("immutable"), rustix::fs::IFlags::IMMUTABLE);
    assert_eq!(put(&objects, &fs.path().join("immutable")).1, How::Copied);
    let other = LoopFs::ext4();
    traps::sparse(&other.path().join("other"), 4 << 20, &[1 << 20]);
    let (id, how) = put(&objects, &other.path().join("other"));
    assert_eq!(how, How::Copied);
    assert_eq!(objects.verify(&id, GO_ON).unwrap(), Verdict::Intact);
    assert!(objects.stat(&id).unwrap().unwrap().allocated < 64 << 10);
}

#[test]
fn damage_is_told_and_what_was_cut_short_is_replaced() {
    let fs = LoopFs::ext4();
    let objects = objects(&fs);
    traps::write(&fs.path().join("file"), &[5; 9000]);
    let (id, _) = put(&objects, &fs.path().join("file"));
    fs::remove_file(path_of(&fs, &id)).unwrap();
    traps::write(&path_of(&fs, &id), &[5; 8999]);
    let error = objects.open_sized(&id, 9000).unwrap_err();
    assert!(matches!(error, ObjectError::Damaged { .. }), "{error}");
    assert_eq!(objects.verify(&id, GO_ON).unwrap(), Verdict::Damaged { found: ObjectId::of(&[5; 8999]) });
    assert_eq!(put(&objects, &fs.path().join("file")), (id, How::Linked));
    assert_eq!(objects.verify(&id, GO_ON).unwrap(), Verdict::Intact);
}

#[test]
fn an_object_is_finished_when_its_other_names_are_gone() {
    let fs = LoopFs::ext4();
    let objects = objects(&fs);
    let file = fs.path().join("file");
    traps::write(&file, &[6; 200]);
    traps::chown(&file, 5, 6);
    traps::chmod(&file, 0o6755);
    traps::xattr(&file, b"user.mine", b"1");
    traps::xattr(&file, b"trusted.overlay.metacopy", b"");
    let (id, _) = put(&objects, &file);
    assert!(!objects.finish(&id).unwrap());
    fs::remove_file(&file).unwrap();
    assert!(objects.finish(&id).unwrap());
    let stat = fs::metadata(path_of(&fs, &id)).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.gid()), (0o400, 0, 0));
    assert!(common::xattrs(&path_of(&fs, &id)).is_empty());
    assert!(objects.finish(&id).unwrap());
}

#[test]
fn hashing_stops_when_asked() {
    let fs = LoopFs::ext4();
    let objects = objects(&fs);
    traps::sparse(&fs.path().join("huge"), 1 << 40, &[]);
    let file = fs::File::open(fs.path().join("huge")).unwrap();
    let asked = std::cell::Cell::new(0);
    let stopped = objects.put(file.as_fd(), &|| {
        asked.set(asked.get() + 1);
        asked.get() > 3
    });
    assert!(matches!(stopped, Err(ObjectError::Hash(HashError::Stopped))));
}
