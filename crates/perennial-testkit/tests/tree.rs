//! The listing shows every field, and every kind of damage to a copy.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use perennial_testkit::bytes::Bytes;
use perennial_testkit::host::{now, run, write};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::tree::{Field, Kind, OverlayXattrs, TreeListing, diff, ensure_equal};
use rustix::fd::AsFd as _;
use rustix::fs::{CWD, FileType, IFlags, Mode, OFlags, XattrFlags};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

fn node(path: &Path, kind: FileType, major: u32, minor: u32) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}

/// A tree with one entry for every field that can differ.
fn make(dir: &Path) {
    for name in ["mode", "uid", "gid", "size", "mtime", "content", "xattr", "empty-xattr", "missing", "flags", "acl"] {
        write(dir.join(name), "four").unwrap();
    }
    fs::create_dir(dir.join("dir")).unwrap();
    fs::create_dir(dir.join("becomes-file")).unwrap();
    symlink("here", dir.join("target")).unwrap();
    node(&dir.join("device"), FileType::CharacterDevice, 1, 3);
    node(&dir.join("block"), FileType::BlockDevice, 7, 200);
    node(&dir.join("fifo"), FileType::Fifo, 0, 0);
    node(&dir.join("socket"), FileType::Socket, 0, 0);
    write(dir.join("link-a"), "linked").unwrap();
    fs::hard_link(dir.join("link-a"), dir.join("dir/link-b")).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(16 << 20).unwrap();
    rustix::io::pwrite(&sparse, b"data", 8 << 20).unwrap();
    rustix::fs::setxattr(dir.join("xattr"), "user.name=odd", b"\0value", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(dir.join("empty-xattr"), "user.empty", b"", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(dir.join("dir"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    rustix::fs::lsetxattr(dir.join("target"), "trusted.on.link", b"1", XattrFlags::empty()).unwrap();
    rustix::fs::lsetxattr(dir.join("fifo"), "trusted.on.fifo", b"1", XattrFlags::empty()).unwrap();
    write(dir.join("caf\u{e9}\nline"), "odd name").unwrap();
}

fn fixture() -> (LoopFs, std::path::PathBuf, std::path::PathBuf) {
    let disk = LoopFs::new(FsKind::Ext4, 128 << 20).unwrap();
    let (a, b) = (disk.path().join("a"), disk.path().join("b"));
    fs::create_dir(&a).unwrap();
    make(&a);
    run(Command::new("cp").arg("-a").arg("--sparse=always").arg(&a).arg(&b)).unwrap();
    (disk, a, b)
}

fn fields(a: &Path, b: &Path) -> Vec<(String, Field)> {
    let found = diff(&TreeListing::of(a).unwrap(), &TreeListing::of(b).unwrap());
    found.into_iter().map(|difference| (difference.path.to_string(), difference.field)).collect()
}

fn retime(path: &Path, like: &Path) {
    run(Command::new("touch").arg("-h").arg("-r").arg(like).arg(path)).unwrap();
}

#[test]
fn faithful_copy_shows_no_difference() {
    let (_disk, a, b) = fixture();
    ensure_equal(&TreeListing::of(&a).unwrap(), &TreeListing::of(&b).unwrap()).unwrap();
}

#[test]
fn every_damaged_field_is_shown_and_no_other() {
    let (_disk, a, b) = fixture();
    fs::set_permissions(b.join("mode"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(b.join("uid"), Some(4_294_967_290), None).unwrap();
    std::os::unix::fs::lchown(b.join("gid"), None, Some(7)).unwrap();
    write(b.join("size"), "four\0").unwrap();
    write(b.join("content"), "FOUR").unwrap();
    run(Command::new("touch").args(["-d", "1955-11-05 06:15:00.123456789"]).arg(b.join("mtime"))).unwrap();
    fs::remove_file(b.join("target")).unwrap();
    symlink("hera", b.join("target")).unwrap();
    rustix::fs::lsetxattr(b.join("target"), "trusted.on.link", b"2", XattrFlags::empty()).unwrap();
    for (name, kind, major, minor) in
        [("device", FileType::CharacterDevice, 1, 5), ("block", FileType::BlockDevice, 8, 200)]
    {
        fs::remove_file(b.join(name)).unwrap();
        node(&b.join(name), kind, major, minor);
    }
    rustix::fs::setxattr(b.join("xattr"), "user.name=odd", b"\0Value", XattrFlags::empty()).unwrap();
    rustix::fs::removexattr(b.join("empty-xattr"), "user.empty").unwrap();
    rustix::fs::lremovexattr(b.join("fifo"), "trusted.on.fifo").unwrap();
    fs::remove_file(b.join("link-a")).unwrap();
    write(b.join("link-a"), "linked").unwrap();
    fs::remove_file(b.join("missing")).unwrap();
    write(b.join("extra"), "").unwrap();
    fs::remove_dir(b.join("becomes-file")).unwrap();
    write(b.join("becomes-file"), "").unwrap();
    write(b.join("sparse"), {
        let mut all = vec![0; 16 << 20];
        all[8 << 20..][..4].copy_from_slice(b"data");
        all
    })
    .unwrap();
    let file = fs::File::open(b.join("flags")).unwrap();
    rustix::fs::ioctl_setflags(&file, rustix::fs::ioctl_getflags(&file).unwrap() | IFlags::NODUMP).unwrap();
    run(Command::new("setfacl").args(["-m", "u:1234:rwx"]).arg(b.join("acl"))).unwrap();
    fs::remove_file(b.join("socket")).unwrap();
    node(&b.join("socket"), FileType::Fifo, 0, 0);
    for name in ["mode", "uid", "gid", "size", "content", "target", "device", "block", "link-a", "sparse", "socket"] {
        retime(&b.join(name), &a.join(name));
    }
    retime(&b, &a);
    let xattr = |name: &str| Field::Xattr(Bytes::from(name));
    let expected = [
        ("acl", Field::Mode),
        ("acl", xattr("system.posix_acl_access")),
        ("becomes-file", Field::Kind),
        ("block", Field::Device),
        ("content", Field::Content),
        ("device", Field::Device),
        ("dir/link-b", Field::Links),
        ("empty-xattr", xattr("user.empty")),
        ("extra", Field::Extra),
        ("fifo", xattr("trusted.on.fifo")),
        ("flags", Field::Flags),
        ("gid", Field::Gid),
        ("link-a", Field::Links),
        ("missing", Field::Missing),
        ("mode", Field::Mode),
        ("mtime", Field::Mtime),
        ("size", Field::Size),
        ("size", Field::Content),
        ("socket", Field::Kind),
        ("sparse", Field::Holes),
        ("target", Field::Target),
        ("target", xattr("trusted.on.link")),
        ("uid", Field::Uid),
        ("xattr", xattr("user.name=odd")),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(path, field)| (path.to_owned(), field)).collect();
    assert_eq!(fields(&a, &b), expected);
}

#[test]
fn times_of_directories_symlinks_and_root_are_listed_to_the_nanosecond() {
    let (_disk, a, b) = fixture();
    for name in ["dir", "target", "fifo", "."] {
        run(Command::new("touch").args(["-h", "-d", "2255-01-01 00:00:00.000000001 UTC"]).arg(a.join(name))).unwrap();
        run(Command::new("touch").args(["-h", "-d", "2255-01-01 00:00:00.000000002 UTC"]).arg(b.join(name))).unwrap();
    }
    let expected = ["", "dir", "fifo", "target"].map(|path| (path.to_owned(), Field::Mtime));
    assert_eq!(fields(&a, &b), expected);
}

#[test]
fn overlay_private_xattrs_are_hidden_unless_asked_for() {
    let (_disk, a, _) = fixture();
    let dir = fs::File::open(&a).unwrap();
    let opaque = Bytes::from("trusted.overlay.opaque");
    let has = |listing: TreeListing| listing.entries[&Bytes::from("dir")].xattrs.contains_key(&opaque);
    assert!(!has(TreeListing::of_fd(dir.as_fd()).unwrap()));
    assert!(has(TreeListing::with(dir.as_fd(), OverlayXattrs::All).unwrap()));
}

#[test]
fn paths_longer_than_the_kernel_takes_are_listed() {
    let disk = LoopFs::new(FsKind::Ext4, 64 << 20).unwrap();
    let name = "d".repeat(200);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut dir = rustix::fs::open(disk.path(), flags, Mode::empty()).unwrap();
    for _ in 0..200 {
        rustix::fs::mkdirat(&dir, &*name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, &*name, flags, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&dir, "leaf", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
    let listing = TreeListing::of(disk.path()).unwrap();
    assert_eq!(listing.entries.len(), 203, "root, lost+found, 200 directories and the leaf");
    assert_eq!(listing.entries.keys().map(|path| path.len()).max(), Some(200 * 201 + 4));
}

#[test]
fn what_is_mounted_below_is_named_and_not_entered() {
    let (disk, a, _) = fixture();
    let other = LoopFs::new(FsKind::Ext4, 16 << 20).unwrap();
    run(Command::new("mount").arg("--bind").arg(other.path()).arg(a.join("dir"))).unwrap();
    let listing = TreeListing::of(&a).unwrap();
    run(Command::new("umount").arg(a.join("dir"))).unwrap();
    assert_eq!(listing.entries[&Bytes::from("dir")].kind, Kind::Mount);
    assert!(!listing.entries.contains_key(&Bytes::from("dir/link-b")));
    drop(disk);
}

#[test]
fn listing_survives_json() {
    let (_disk, a, _) = fixture();
    let listing = TreeListing::of(&a).unwrap();
    let text = serde_json::to_vec(&listing).unwrap();
    assert_eq!(serde_json::from_slice::<TreeListing>(&text).unwrap(), listing);
}

#[test]
fn part_of_a_listing_equals_the_listing_of_the_part() {
    let (_disk, a, _) = fixture();
    ensure_equal(&TreeListing::of(&a).unwrap().below("dir"), &TreeListing::of(a.join("dir")).unwrap()).unwrap();
    assert!(fs::metadata(a.join("link-a")).unwrap().nlink() == 2);
}

#[test]
fn hundred_thousand_entries_take_seconds() {
    let disk = LoopFs::new(FsKind::Ext4, 2 << 30).unwrap();
    for d in 0..500 {
        let dir = disk.path().join(format!("d{d}"));
        fs::create_dir(&dir).unwrap();
        for f in 0..200 {
            write(dir.join(format!("f{f}")), b"some bytes").unwrap();
        }
    }
    let started = now();
    let listing = TreeListing::of(disk.path()).unwrap();
    let took = now() - started;
    assert_eq!(listing.entries.len(), 2 + 500 * 201);
    println!("{} entries in {took:?}", listing.entries.len());
    assert!(took.as_secs() < 30, "{took:?}");
}
