//! Big files that were changed in place: what is read of them is counted, and their names are those of all bytes.
#![cfg(test)]

mod common;

use common::seals::SealLab;
use common::{LoopFs, traps};
use perennial_core::sealed::entry::{Content, DirectorySource as _, Item, Node};
use perennial_core::sealed::object::ObjectId;
use perennial_store::objects::{How, Objects, Older, Verdict};
use perennial_store::root::Secret;
use perennial_store::sealed::{LayerFiles, MANIFEST};
use proptest::test_runner::{RngAlgorithm, TestRng};
use rustix::fd::AsFd as _;
use rustix::fs::{FallocateFlags, IFlags, ioctl_ficlone, ioctl_setflags};
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const GROUP: u64 = 64 << 10;
const SIZE: u64 = 64 * MIB;
/// Writes of 4 KiB, every other one across two groups.
const WRITES: u64 = 16;
const GO_ON: &dyn Fn() -> bool = &|| false;

fn noise(bytes: u64, seed: u8) -> Vec<u8> {
    let mut random = blake3::Hasher::new().update(&[seed]).finalize_xof();
    let mut noise = vec![0; usize::try_from(bytes).unwrap()];
    random.fill(&mut noise);
    noise
}

fn change(path: &Path, byte: u8) {
    let file = File::options().write(true).open(path).unwrap();
    for write in 0..WRITES {
        let at = if write % 2 == 0 { 100 << 10 } else { 2 * GROUP - 1000 };
        file.write_all_at(&[byte; 4096], write * 4 * MIB + at).unwrap();
    }
}

/// A root with one sealed layer that holds a big file, and with no tree.
fn lab(fs: &LoopFs) -> SealLab {
    let mut lab = SealLab::new(&fs.path());
    lab.layer(|root| {
        fs::create_dir(root.join("dir")).unwrap();
        traps::write(&root.join("dir/big"), &noise(SIZE, 1));
    });
    lab.seal(0);
    lab.drop_trees();
    lab
}

/// The object of the one file in the newest layer.
fn newest(lab: &SealLab) -> (ObjectId, u64) {
    let files = LayerFiles::open(&lab.root.layer_dir(&lab.stack[0].0)).unwrap();
    let mut directories = files.directories(MANIFEST).unwrap();
    while let Some(directory) = directories.next_directory().unwrap() {
        for entry in directory.entries {
            if let Item::Inode(inode) = entry.item
                && let Node::File(Content::Object { id, size }) = inode.node
            {
                return (id, size);
            }
        }
    }
    panic!("the layer has no object");
}

fn path_of(lab: &SealLab, id: &ObjectId) -> PathBuf {
    lab.root.objects_dir().join(lab.root.secret().to_string()).join(id.relative_path())
}

fn outboard_of(lab: &SealLab, id: &ObjectId) -> PathBuf {
    path_of(lab, id).with_extension("outboard")
}

/// Seals the newest layer, checks the name of the file in it and returns what was read.
fn seal_and_check(lab: &mut SealLab) -> u64 {
    let read = lab.seal(0).kept.read;
    let (id, size) = newest(lab);
    assert_eq!(lab.objects.stat(&id).unwrap().unwrap().size, size);
    assert_eq!(lab.objects.verify(&id, GO_ON).unwrap(), Verdict::Intact);
    lab.drop_trees();
    read
}

fn used(path: &Path) -> u64 {
    rustix::fs::syncfs(File::open(path).unwrap()).unwrap();
    let stat = rustix::fs::statvfs(path).unwrap();
    (stat.f_blocks - stat.f_bfree) * stat.f_frsize
}

#[test]
fn a_big_file_costs_its_changed_groups_where_blocks_are_shared_and_its_bytes_once_elsewhere() {
    for kind in ["xfs", "btrfs", "ext4"] {
        let fs = LoopFs::new(kind, 768);
        let mut lab = lab(&fs);
        let before = used(&fs.path());
        for round in 0..3 {
            lab.session(|root| change(&root.join("dir/big"), round));
            let read = seal_and_check(&mut lab);
            println!("{kind}: {read} bytes read");
            if kind == "ext4" {
                assert_eq!(read, SIZE);
            } else {
                assert!(read > 0 && read <= WRITES * GROUP * 2, "{kind}: {read}");
            }
        }
        let grown = used(&fs.path()) - before;
        if kind == "ext4" {
            assert!(grown >= 3 * SIZE, "{grown}");
        } else {
            // Three times sixteen writes, around each of which XFS reserves 128 KiB for a while, and what it needs to
            // note them.
            assert!(grown <= 16 * MIB, "{kind}: the new objects share blocks with the old ones, {grown}");
        }
    }
}

#[test]
fn what_is_moved_grows_shrinks_and_gets_holes_is_compared_too() {
    for kind in ["xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 768);
        let mut lab = lab(&fs);
        lab.session(|root| {
            fs::rename(root.join("dir/big"), root.join("moved")).unwrap();
            File::options().append(true).open(root.join("moved")).unwrap().write_all(&noise(MIB, 2)).unwrap();
        });
        let read = seal_and_check(&mut lab);
        assert!((MIB..=MIB + 2 * GROUP).contains(&read), "{kind}: {read}");
        lab.session(|root| {
            let file = File::options().write(true).open(root.join("moved")).unwrap();
            file.set_len(SIZE - 5000).unwrap();
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, punch, 8 * MIB, 16 * MIB).unwrap();
        });
        let read = seal_and_check(&mut lab);
        assert!(read <= 2 * GROUP, "{kind}: a hole is not read, {read}");
        // The hole is known now.
        lab.session(|root| File::options().write(true).open(root.join("moved")).unwrap().write_all(b"!").unwrap());
        let read = seal_and_check(&mut lab);
        // overlayfs does not share the last block where that is not full.
        assert!(read <= 2 * GROUP, "{kind}: {read}");
        // A file that was written anew shares nothing.
        lab.session(|root| {
            fs::remove_file(root.join("moved")).unwrap();
            traps::write(&root.join("moved"), &noise(SIZE, 3));
        });
        assert_eq!(seal_and_check(&mut lab), SIZE, "{kind}");
    }
}

#[test]
fn an_object_without_an_outboard_is_hashed_whole_once() {
    let fs = LoopFs::new("xfs", 768);
    let mut lab = lab(&fs);
    let (id, _) = newest(&lab);
    fs::remove_file(outboard_of(&lab, &id)).unwrap();
    lab.session(|root| change(&root.join("dir/big"), 1));
    assert_eq!(seal_and_check(&mut lab), SIZE);
    lab.session(|root| change(&root.join("dir/big"), 2));
    assert!(seal_and_check(&mut lab) <= WRITES * GROUP * 2);
}

#[test]
fn a_damaged_outboard_is_not_believed() {
    let fs = LoopFs::new("xfs", 768);
    let mut lab = lab(&fs);
    let (id, _) = newest(&lab);
    let path = outboard_of(&lab, &id);
    let whole = fs::read(&path).unwrap();
    // A bit in the header, in the value of a group that does not change, and in the checksum; cut off; of another object.
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        bytes
    };
    let damaged = [flipped(9), flipped(24 + 32 * 5), flipped(whole.len() - 1), whole[..5000].to_vec(), Vec::new()];
    for (byte, outboard) in (1_u8..).zip(damaged) {
        traps::write(&path, &outboard);
        lab.session(|root| change(&root.join("dir/big"), byte));
        let read = seal_and_check(&mut lab);
        assert!(read >= SIZE, "{byte}: {read}");
        // The next change is one of the first version again.
        let dropped = lab.stack.remove(0);
        fs::remove_dir_all(lab.root.layer_dir(&dropped.0)).unwrap();
    }
    traps::write(&path, &whole);
    lab.session(|root| change(&root.join("dir/big"), 9));
    assert!(seal_and_check(&mut lab) <= WRITES * GROUP * 2);
}

#[test]
fn a_file_is_sealed_whatever_is_wrong_with_its_older_version() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let below = lab.layer(|root| traps::write(&root.join("big"), &noise(9 * MIB, 1)));
    lab.session(|root| traps::append(&root.join("big"), b"more"));
    traps::xattr(&lab.root.layer_tree(&below).join("big"), b"trusted.overlay.metacopy", b"");
    assert_eq!(seal_and_check(&mut lab), 9 * MIB + 4);
}

#[test]
fn verification_reads_what_an_outboard_vouches_for() {
    let fs = LoopFs::new("xfs", 768);
    let lab = lab(&fs);
    let (id, _) = newest(&lab);
    assert!(outboard_of(&lab, &id).exists());
    let object = File::options().write(true).open(path_of(&lab, &id)).unwrap();
    object.write_all_at(&[0xa5], 33 * MIB).unwrap();
    assert!(matches!(lab.objects.verify(&id, GO_ON).unwrap(), Verdict::Damaged { .. }));
}

fn objects(fs: &LoopFs) -> Objects {
    let data = fs.path().join("objects");
    fs::create_dir_all(&data).unwrap();
    Objects::open_at(&data, Secret::from_random([7; 16])).unwrap()
}

fn object_path(fs: &LoopFs, id: &ObjectId) -> PathBuf {
    fs.path().join("objects").join("07".repeat(16)).join(id.relative_path())
}

#[test]
fn outboards_go_with_their_objects_and_are_none() {
    let fs = LoopFs::ext4();
    let objects = objects(&fs);
    traps::write(&fs.path().join("big"), &noise(9 * MIB, 1));
    traps::write(&fs.path().join("small"), &noise(8 * MIB, 2));
    let put = |name: &str| objects.put(File::open(fs.path().join(name)).unwrap().as_fd(), GO_ON).unwrap().id;
    let (big, small) = (put("big"), put("small"));
    let outboard = object_path(&fs, &big).with_extension("outboard");
    assert_eq!(fs::metadata(&outboard).unwrap().len(), 24 + 144 * 32 + 32);
    assert_eq!(fs::metadata(&outboard).unwrap().mode() & 0o7777, 0o400);
    assert!(!object_path(&fs, &small).with_extension("outboard").exists(), "of 8 MiB there is none");
    let mut listed = Vec::new();
    objects
        .list(&mut |id, _| {
            listed.push(id);
            Ok(())
        })
        .unwrap();
    listed.sort();
    let mut expected = [big, small];
    expected.sort();
    assert_eq!(listed, expected);
    // What goes with an object counts as the object's.
    let blocks = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let allocated = objects.stat(&big).unwrap().unwrap().allocated;
    assert_eq!(allocated, blocks(&object_path(&fs, &big)) + blocks(&outboard));
    assert_eq!(objects.remove_strays().unwrap(), 0);
    objects.remove(&big).unwrap();
    assert!(!outboard.exists());
    // What a loss of power may leave.
    traps::write(&outboard, b"");
    traps::write(&object_path(&fs, &small).with_extension("123.new"), b"");
    assert_eq!(objects.remove_strays().unwrap(), 2);
    assert_eq!(objects.remove_strays().unwrap(), 0);
    assert_eq!(objects.verify(&small, GO_ON).unwrap(), Verdict::Intact);
}

#[test]
fn an_outboard_that_cannot_be_removed_does_not_keep_its_object() {
    let fs = LoopFs::ext4();
    let objects = objects(&fs);
    traps::write(&fs.path().join("big"), &noise(9 * MIB, 1));
    let id = objects.put(File::open(fs.path().join("big")).unwrap().as_fd(), GO_ON).unwrap().id;
    let outboard = object_path(&fs, &id).with_extension("outboard");
    traps::flags(&outboard, IFlags::IMMUTABLE);
    objects.remove(&id).unwrap();
    assert_eq!(objects.stat(&id).unwrap(), None);
    // It goes when it can.
    ioctl_setflags(File::open(&outboard).unwrap(), IFlags::empty()).unwrap();
    assert_eq!(objects.remove_strays().unwrap(), 1);
}

#[test]
fn a_damaged_object_does_not_cost_the_good_copy() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 320);
        let (first, second) = (fs.path().join("first"), fs.path().join("second"));
        let put = |objects: &Objects, path: &Path| objects.put(File::open(path).unwrap().as_fd(), GO_ON).unwrap();
        for size in [5000, 9 * MIB] {
            traps::write(&first, &noise(size, 3));
            traps::write(&second, &noise(size, 3));
            let id = put(&objects(&fs), &first).id;
            let object = object_path(&fs, &id);
            // A bit that turned over, unnoticed.
            File::options().write(true).open(&object).unwrap().write_all_at(b"!", 4000).unwrap();
            let stored = put(&objects(&fs), &second);
            assert_eq!((stored.id, stored.how, stored.read), (id, How::Linked, 2 * size), "{kind}");
            assert_eq!(fs::metadata(&object).unwrap().ino(), fs::metadata(&second).unwrap().ino());
            let store = objects(&fs);
            assert_eq!(store.verify(&id, GO_ON).unwrap(), Verdict::Intact);
            // A whole one stays and is read once, however many files have its content.
            traps::write(&first, &noise(size, 3));
            assert_eq!((put(&store, &first).how, put(&store, &first).read), (How::Present, size));
            assert_eq!(fs::metadata(&object).unwrap().ino(), fs::metadata(&second).unwrap().ino());
            // The file itself need not be read to be the object.
            assert_eq!(put(&objects(&fs), &second).read, size);
            assert_eq!(store.remove_strays().unwrap(), 0);
            store.remove(&id).unwrap();
        }
    }
}

#[test]
fn what_mends_an_object_survives_a_loss_of_power() {
    let fs = LoopFs::new("xfs", 320);
    let (older, content) = rotten(&fs, &objects(&fs));
    rustix::fs::syncfs(File::open(fs.path()).unwrap()).unwrap();
    traps::write(&fs.path().join("good"), &content);
    let stored = objects(&fs).put(File::open(fs.path().join("good")).unwrap().as_fd(), GO_ON).unwrap();
    assert_eq!((stored.id, stored.how), (older.id, How::Linked));
    fs.lose_power();
    assert_eq!(objects(&fs).verify(&older.id, GO_ON).unwrap(), Verdict::Intact);
}

#[test]
fn a_rest_of_an_attempt_is_not_taken_for_the_good_copy() {
    let fs = LoopFs::ext4();
    let (older, content) = rotten(&fs, &objects(&fs));
    let good = fs.path().join("good");
    traps::write(&good, &content);
    // The attempt was on another disk, from which the root was copied.
    let rest = object_path(&fs, &older.id).with_extension(format!("{}.new", fs::metadata(&good).unwrap().ino()));
    traps::write(&rest, &noise(9 * MIB, 6));
    let stored = objects(&fs).put(File::open(&good).unwrap().as_fd(), GO_ON).unwrap();
    assert_eq!((stored.id, stored.how), (older.id, How::Linked));
    assert_eq!(objects(&fs).verify(&older.id, GO_ON).unwrap(), Verdict::Intact);
    assert!(!rest.exists());
}

/// An object of 9 MiB that has rotted unnoticed, and what it was.
fn rotten(fs: &LoopFs, objects: &Objects) -> (Older, Vec<u8>) {
    let (path, content) = (fs.path().join("first"), noise(9 * MIB, 5));
    traps::write(&path, &content);
    let stored = objects.put(File::open(&path).unwrap().as_fd(), GO_ON).unwrap();
    fs::remove_file(&path).unwrap();
    let object = object_path(fs, &stored.id);
    File::options().write(true).open(&object).unwrap().write_all_at(b"!", 4 * MIB).unwrap();
    (Older { id: stored.id, size: stored.size }, content)
}

fn cloned(from: &Path, to: &Path) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(to).unwrap();
    ioctl_ficlone(&file, File::open(from).unwrap()).unwrap();
    file
}

#[test]
fn what_was_not_read_does_not_cost_the_good_copy() {
    for kind in ["xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 320);
        let (older, content) = rotten(&fs, &objects(&fs));
        let good = fs.path().join("good");
        traps::write(&good, &content);
        // It shares all blocks with the object: that is there.
        let store = objects(&fs);
        let clone = cloned(&object_path(&fs, &older.id), &fs.path().join("clone"));
        let stored = store.put_over(clone.as_fd(), Some(&older), GO_ON).unwrap();
        assert_eq!((stored.id, stored.how, stored.read), (older.id, How::Present, 0), "{kind}");
        let stored = store.put(File::open(&good).unwrap().as_fd(), GO_ON).unwrap();
        assert_eq!((stored.id, stored.how), (older.id, How::Linked), "{kind}");
        assert_eq!(store.verify(&older.id, GO_ON).unwrap(), Verdict::Intact);
        // It shares most blocks, and is a new object that has the rot, too.
        store.remove(&older.id).unwrap();
        let (older, mut content) = rotten(&fs, &store);
        let store = objects(&fs);
        let changed = cloned(&object_path(&fs, &older.id), &fs.path().join("changed"));
        changed.write_all_at(b"new", 0).unwrap();
        content[..3].copy_from_slice(b"new");
        let stored = store.put_over(changed.as_fd(), Some(&older), GO_ON).unwrap();
        assert_eq!((stored.id, stored.how), (ObjectId::of(&content), How::Linked), "{kind}");
        assert!(stored.read <= 2 * GROUP, "{kind}: {}", stored.read);
        fs::remove_file(&good).unwrap();
        traps::write(&good, &content);
        let again = store.put(File::open(&good).unwrap().as_fd(), GO_ON).unwrap();
        assert_eq!((again.id, again.how), (stored.id, How::Linked), "{kind}");
        assert_eq!(store.verify(&stored.id, GO_ON).unwrap(), Verdict::Intact);
    }
}

#[test]
fn what_was_not_read_mends_nothing() {
    for kind in ["xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 320);
        let (older, mut content) = rotten(&fs, &objects(&fs));
        content[..3].copy_from_slice(b"new");
        // A damaged object bears the name that the changed file seems to have, as it shares the rot of the older one.
        let planted = object_path(&fs, &ObjectId::of(&content));
        fs::create_dir_all(planted.parent().unwrap()).unwrap();
        let (before, mut damaged) = (noise(9 * MIB, 6), content.clone());
        damaged[6_000_000] ^= 1;
        traps::write(&planted, &before);
        let changed = cloned(&object_path(&fs, &older.id), &fs.path().join("changed"));
        changed.write_all_at(b"new", 0).unwrap();
        let bytes = fs::read(fs.path().join("changed")).unwrap();
        let stored = objects(&fs).put_over(changed.as_fd(), Some(&older), GO_ON).unwrap();
        assert_eq!((stored.id, stored.how), (ObjectId::of(&bytes), How::Linked), "{kind}: its own name");
        assert_eq!(objects(&fs).verify(&stored.id, GO_ON).unwrap(), Verdict::Intact);
        assert!(fs::read(&planted).unwrap() == before, "{kind}: it stays as it is");
        // One that is good, and was read, takes the place.
        fs::remove_file(object_path(&fs, &older.id)).unwrap();
        let mut first = content.clone();
        first[..3].copy_from_slice(&noise(9 * MIB, 5)[..3]);
        traps::write(&object_path(&fs, &older.id), &first);
        traps::write(&planted, &damaged);
        let changed = cloned(&object_path(&fs, &older.id), &fs.path().join("good"));
        changed.write_all_at(b"new", 0).unwrap();
        let stored = objects(&fs).put_over(changed.as_fd(), Some(&older), GO_ON).unwrap();
        assert_eq!((stored.id, stored.how), (ObjectId::of(&content), How::Linked), "{kind}");
        // Its changed group; then all of it; and each time what was there.
        assert!((27 * MIB..=27 * MIB + 2 * GROUP).contains(&stored.read), "{kind}: {}", stored.read);
        assert_eq!(objects(&fs).verify(&stored.id, GO_ON).unwrap(), Verdict::Intact);
    }
}

#[test]
fn a_seal_mends_what_it_meets_damaged() {
    let fs = LoopFs::ext4();
    let mut lab = SealLab::new(&fs.path());
    let build = |root: &Path| traps::write(&root.join("file"), &noise(MIB, 4));
    lab.layer(build);
    lab.seal(0);
    lab.drop_trees();
    let (id, _) = newest(&lab);
    File::options().write(true).open(path_of(&lab, &id)).unwrap().write_all_at(b"!", 9).unwrap();
    lab.objects = Objects::open(&lab.root).unwrap();
    lab.layer(build);
    let kept = lab.seal(0).kept;
    assert_eq!((kept.objects, kept.bytes, kept.read), (1, MIB, 2 * MIB));
    lab.drop_trees();
    assert_eq!(lab.objects.verify(&id, GO_ON).unwrap(), Verdict::Intact);
    let shown = |layers: &[_]| lab.list(layers)[b"file".as_slice()].content.clone();
    assert!(shown(&lab.stack[1..]) == shown(&lab.stack[..1]), "both layers have the good one");
}

#[test]
fn huge_holes_are_not_read() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 320);
        let objects = objects(&fs);
        let path = fs.path().join("sparse");
        traps::sparse(&path, 512 * MIB, &[0, 100 * MIB, 512 * MIB - 4096]);
        let file = File::open(&path).unwrap();
        rustix::fs::fsync(&file).unwrap();
        let stored = objects.put(file.as_fd(), GO_ON).unwrap();
        assert!(stored.read <= 3 * GROUP, "{kind}: {}", stored.read);
        assert_eq!(objects.verify(&stored.id, GO_ON).unwrap(), Verdict::Intact);
        // Beside so little, an outboard of 256 KiB is too much.
        assert!(!object_path(&fs, &stored.id).with_extension("outboard").exists(), "{kind}");
        let allocated = objects.stat(&stored.id).unwrap().unwrap().allocated;
        assert!(allocated <= 3 * GROUP, "{kind}: {allocated}");
        let older = Older { id: stored.id, size: stored.size };
        File::options().write(true).open(&path).unwrap().set_len(512 * MIB + 1).unwrap();
        let again = objects.put_over(file.as_fd(), Some(&older), GO_ON).unwrap();
        assert!(again.read <= 3 * GROUP, "{kind}: {}", again.read);
    }
}

/// One change that programs make to files.
fn alter(random: &mut TestRng, file: &mut File) {
    use proptest::prelude::Rng as _;
    let size = file.metadata().unwrap().len();
    let mut below = |most: u64| random.next_u64() % most.max(1);
    let at = match below(2) {
        0 => below(size),
        _ => (below(size / GROUP + 1) * GROUP + below(3)).saturating_sub(1),
    };
    let length = match below(3) {
        0 => below(5000) + 1,
        1 => 4096 * (below(40) + 1),
        _ => below(300_000) + 1,
    };
    match below(8) {
        0..4 => {
            let bytes = noise(length, u8::try_from(below(256)).unwrap());
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&bytes).unwrap();
        }
        4 => file.set_len((9 * MIB).max(size.saturating_sub(length))).unwrap(),
        5 => file.set_len((size + length).min(20 * MIB)).unwrap(),
        6 => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file.as_fd(), punch, at, length).unwrap();
        }
        _ => rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), at.min(19 * MIB), length).unwrap(),
    }
}

#[test]
fn what_the_file_system_compresses_or_has_not_written_is_read() {
    let text: Vec<u8> = (0..2_000_000_u32).flat_map(|number| format!("{number:07}\n").into_bytes()).collect();
    let fs = LoopFs::new("btrfs", 320);
    common::run(std::process::Command::new("mount").args(["-o", "remount,compress-force=zstd"]).arg(fs.path()));
    let objects = objects(&fs);
    let before = used(&fs.path());
    traps::write(&fs.path().join("text"), &text);
    assert!(used(&fs.path()) - before < 8_000_000, "it is compressed");
    let put = |file: &File, older: Option<&Older>| {
        let stored = objects.put_over(file.as_fd(), older, GO_ON).unwrap();
        (Older { id: stored.id, size: stored.size }, stored.read)
    };
    let (older, size) = put(&File::open(fs.path().join("text")).unwrap(), None);
    assert_eq!(size, 16_000_000);
    let changed = cloned(&fs.path().join("text"), &fs.path().join("changed"));
    changed.write_all_at(b"!", 5_000_000).unwrap();
    let mut expected = text;
    expected[5_000_000] = b'!';
    let (newer, read) = put(&changed, Some(&older));
    assert_eq!((newer.id, read), (ObjectId::of(&expected), size));
    // Space that is only reserved, beside a hole in the older version.
    let fs = LoopFs::new("xfs", 320);
    let objects = self::objects(&fs);
    traps::sparse(&fs.path().join("sparse"), 12 * MIB, &[0]);
    let filled = File::options().write(true).open(fs.path().join("sparse")).unwrap();
    filled.write_all_at(&noise(2 * MIB, 8), 4 * MIB).unwrap();
    let stored = objects.put(File::open(fs.path().join("sparse")).unwrap().as_fd(), GO_ON).unwrap();
    let reserved = cloned(&fs.path().join("sparse"), &fs.path().join("reserved"));
    rustix::fs::fallocate(&reserved, FallocateFlags::empty(), MIB, MIB).unwrap();
    let older = Older { id: stored.id, size: stored.size };
    let again = objects.put_over(reserved.as_fd(), Some(&older), GO_ON).unwrap();
    assert_eq!((again.id, again.how), (stored.id, How::Present));
    assert!(again.read <= MIB, "{}", again.read);
}

#[test]
fn the_name_of_a_changed_file_is_that_of_its_bytes_whatever_was_done_to_it() {
    for kind in ["xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 768);
        let objects = objects(&fs);
        let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut older_path = fs.path().join("0");
        traps::write(&older_path, &noise(12 * MIB + 17, 1));
        let stored = objects.put(File::open(&older_path).unwrap().as_fd(), GO_ON).unwrap();
        let mut older = Older { id: stored.id, size: stored.size };
        let (mut read, mut whole) = (0, 0);
        for round in 1..60 {
            let path = fs.path().join(round.to_string());
            let mut file = cloned(&older_path, &path);
            for _ in 0..=round % 4 {
                alter(&mut random, &mut file);
            }
            // Not synced: what was written may have no place on disk yet.
            let stored = objects.put_over(file.as_fd(), Some(&older), GO_ON).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert_eq!(stored.id, ObjectId::of(&bytes), "{kind}, round {round}");
            read += stored.read;
            whole += stored.size;
            fs::remove_file(&older_path).unwrap();
            objects.remove(&older.id).unwrap();
            older = Older { id: stored.id, size: stored.size };
            older_path = path;
        }
        println!("{kind}: {read} of {whole} bytes read");
        assert!(read < whole / 4, "{kind}: {read} of {whole}");
    }
}
