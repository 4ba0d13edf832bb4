//! What makes tools that keep trees go wrong: an image and two runs that change it in every awkward way.

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, IFlags, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, ioctl_setflags,
    lsetxattr, mknodat, utimensat,
};
use std::ffi::OsStr;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

pub fn write(path: &Path, bytes: &[u8]) {
    fs::File::create(path).unwrap().write_all(bytes).unwrap();
}

pub fn append(path: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

pub fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub fn chown(path: &Path, uid: u32, gid: u32) {
    chownat(CWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn set_times(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn xattr(path: &Path, name: &[u8], value: &[u8]) {
    lsetxattr(path, OsStr::from_bytes(name), value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{}: {}: {error}", path.display(), name.escape_ascii()));
}

pub fn special(path: &Path, file_type: FileType, dev: u64) {
    mknodat(CWD, path, file_type, Mode::from_raw_mode(0o640), dev).unwrap();
}

pub fn flags(path: &Path, flags: IFlags) {
    let file = fs::File::open(path).unwrap();
    let present = rustix::fs::ioctl_getflags(&file).unwrap();
    ioctl_setflags(&file, present | flags).unwrap();
}

pub fn sparse(path: &Path, size: u64, at: &[u64]) {
    let mut file = fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    for offset in at {
        file.seek(SeekFrom::Start(*offset)).unwrap();
        file.write_all(&[7; 4096]).unwrap();
    }
}

/// A version 2 ACL: owner, one named user, group, mask, others.
fn acl() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// `cap_net_bind_service=ep`, version 2.
fn capability() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 10, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

const STATES: [&str; 3] = ["none", "file", "dir"];
const CHANGES: [&str; 8] = ["keep", "remove", "file", "dir", "inside", "mode", "link", "rmdown"];

fn dir_with_content(path: &Path) {
    fs::create_dir(path).unwrap();
    for name in ["a", "b"] {
        write(&path.join(name), name.as_bytes());
    }
    fs::create_dir_all(path.join("sub/deep")).unwrap();
    write(&path.join("sub/deep/x"), b"x");
}

fn change(path: &Path, what: &str, mark: &str) {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let exists = path.symlink_metadata().is_ok();
    match what {
        "remove" => remove(path),
        "file" => {
            remove(path);
            write(path, mark.as_bytes());
        }
        "dir" => {
            remove(path);
            dir_with_content(path);
            write(&path.join(mark), mark.as_bytes());
        }
        "inside" if is_dir => {
            remove(&path.join("a"));
            if path.join("sub/deep").is_dir() {
                write(&path.join("sub/deep").join(mark), mark.as_bytes());
                remove(&path.join("sub/deep/x"));
            }
            write(&path.join(format!("new-{mark}")), b"n");
        }
        "inside" if exists && path.is_file() && !path.is_symlink() => append(path, mark.as_bytes()),
        "mode" if exists && !path.is_symlink() => chmod(path, 0o711),
        "link" => {
            remove(path);
            symlink(mark, path).unwrap();
        }
        "rmdown" if is_dir => remove(&path.join("sub")),
        _ => {}
    }
}

/// A name, its state in the image, its change in the first run, and in the second.
type Case = (PathBuf, &'static str, &'static str, &'static str);

/// All names of the cross product: state in the image, change in the first run, change in the second.
fn cross(changes: &'static [&'static str]) -> impl Iterator<Item = Case> {
    STATES.iter().flat_map(move |state| {
        changes.iter().flat_map(move |one| {
            changes.iter().map(move |two| (PathBuf::from(format!("cross/{state}-{one}-{two}")), *state, *one, *two))
        })
    })
}

fn build_cross(root: &Path, changes: &'static [&'static str]) {
    fs::create_dir(root.join("cross")).unwrap();
    for (path, state, _, _) in cross(changes) {
        match state {
            "file" => write(&root.join(path), b"image"),
            "dir" => dir_with_content(&root.join(path)),
            _ => {}
        }
    }
}

/// Fewer changes, for tests that repeat all of it very often.
const FEW: [&str; 5] = ["keep", "remove", "file", "dir", "inside"];

pub fn build_few(root: &Path) {
    build_cross(root, &FEW);
}

pub fn first_few(root: &Path) {
    cross(&FEW).for_each(|(path, _, one, _)| change(&root.join(path), one, "one"));
}

pub fn second_few(root: &Path) {
    cross(&FEW).for_each(|(path, _, _, two)| change(&root.join(path), two, "two"));
    chown(&root.join("cross"), 3, 4);
    xattr(&root.join("cross"), b"user.second", b"2");
    set_times(&root.join("cross"), 12, 34);
}

/// The older layer of the image.
pub fn build(root: &Path) {
    build_cross(root, &CHANGES);
    for name in ["etc", "usr", "gone", "again", "nested", "nested/in", "nested/in/ner", "metadata", "pairs"] {
        fs::create_dir(root.join(name)).unwrap();
        write(&root.join(name).join("file"), name.as_bytes());
        write(&root.join(name).join("other"), name.as_bytes());
    }
    write(&root.join("etc/passwd"), b"root:x:0:0");
    write(&root.join("pairs/one"), b"pair");
    fs::hard_link(root.join("pairs/one"), root.join("pairs/two")).unwrap();
    write(&root.join("metadata/same"), b"old");
    set_times(&root.join("metadata/same"), 1_000_000, 5);
    symlink("file", root.join("usr/symlink")).unwrap();
    set_times(&root.join("usr"), 1_000, 1);
    set_times(root, 77, 7);
}

/// The newer layer of the image.
pub fn rebuild(root: &Path) {
    remove(&root.join("usr/other"));
    write(&root.join("usr/newer"), b"newer");
}

/// The first run.
pub fn first(root: &Path) {
    for (path, _, one, _) in cross(&CHANGES) {
        change(&root.join(path), one, "one");
    }
    remove(&root.join("etc/file"));
    remove(&root.join("gone"));
    remove(&root.join("again"));
    fs::create_dir(root.join("again")).unwrap();
    write(&root.join("again/file"), b"same name");
    remove(&root.join("nested/in"));
    fs::create_dir(root.join("nested/in")).unwrap();
    write(&root.join("nested/in/file"), b"new");
    for name in ["z-first", "a-second", "usr/third"] {
        if name == "z-first" {
            write(&root.join(name), b"linked");
        } else {
            fs::hard_link(root.join("z-first"), root.join(name)).unwrap();
        }
    }
    symlink("target", root.join("linked-symlink")).unwrap();
    rustix::fs::linkat(CWD, root.join("linked-symlink"), CWD, root.join("usr/linked-symlink"), AtFlags::empty())
        .unwrap();
    append(&root.join("pairs/one"), b" broken");
    special(&root.join("socket"), FileType::Socket, 0);
    special(&root.join("fifo"), FileType::Fifo, 0);
    special(&root.join("null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    special(&root.join("block"), FileType::BlockDevice, rustix::fs::makedev(7, 200));
    sparse(&root.join("sparse"), 8 << 20, &[0, 3 << 20, (8 << 20) - 4096]);
    sparse(&root.join("hole at the end"), 4 << 20, &[4096]);
    sparse(&root.join("only a hole"), 2 << 20, &[]);
    names(root);
    attributes(root);
    write(&root.join(".wh.etc"), b"not a whiteout");
    write(&root.join("usr/.wh..wh..opq"), b"");
    set_times(root, -1, 999_999_999);
}

fn names(root: &Path) {
    let dir = root.join("names");
    fs::create_dir(&dir).unwrap();
    for name in [b"latin-\xe9".as_slice(), b"new\nline", b"back\\slash", b" spaces ", b"..dots", &[b'x'; 255]] {
        write(&dir.join(OsStr::from_bytes(name)), name);
    }
    let mut deep = dir;
    for _ in 0..12 {
        deep.push("d".repeat(250));
        fs::create_dir(&deep).unwrap();
    }
    write(&deep.join("bottom"), b"deep");
    symlink("../../../../../etc/passwd", root.join("names/escape")).unwrap();
    symlink("/nowhere", root.join("names/dangling")).unwrap();
    symlink("t".repeat(1000), root.join("names/long")).unwrap();
}

fn attributes(root: &Path) {
    let dir = root.join("attributes");
    fs::create_dir(&dir).unwrap();
    for name in ["file", "capability", "acl", "setuid", "closed", "nodump", "immutable", "append", "big", "owner"] {
        write(&dir.join(name), name.as_bytes());
    }
    for target in [dir.clone(), dir.join("file")] {
        xattr(&target, b"user.text", b"text");
        xattr(&target, b"user.empty", b"");
        xattr(&target, b"user.with=equals", &[0, 1, 2, 255]);
        xattr(&target, b"user.\xff\xfe", b"not utf-8");
        xattr(&target, b"trusted.mine", b"mine");
        xattr(&target, b"trusted.overlay.foo", b"escaped");
        xattr(&target, b"trusted.overlay.opaque", b"y");
        xattr(&target, b"security.something", b"label");
    }
    xattr(&dir.join("big"), b"user.big", &vec![b'b'; 3000]);
    chown(&dir.join("capability"), 5, 6);
    xattr(&dir.join("capability"), b"security.capability", &capability());
    xattr(&dir.join("acl"), b"system.posix_acl_access", &acl());
    fs::create_dir(dir.join("acl-dir")).unwrap();
    xattr(&dir.join("acl-dir"), b"system.posix_acl_default", &acl());
    write(&dir.join("acl-dir/inherits"), b"");
    fs::create_dir(dir.join("acl-dir/inherits-dir")).unwrap();
    xattr(&root.join("fifo"), b"trusted.on-fifo", b"f");
    symlink("x", dir.join("symlink")).unwrap();
    xattr(&dir.join("symlink"), b"trusted.on-symlink", b"s");
    chown(&dir.join("symlink"), 7, 8);
    set_times(&dir.join("symlink"), -5_000_000_000 / 4, 123_456_789);
    set_times(&dir.join("big"), 8_000_000_000, 1);
    chown(&dir.join("setuid"), 9, 10);
    chmod(&dir.join("setuid"), 0o6755);
    fs::create_dir(dir.join("sticky")).unwrap();
    chmod(&dir.join("sticky"), 0o3777);
    write(&dir.join("sticky/inherits-group"), b"");
    chown(&dir.join("owner"), 4_294_967_290, 2_147_483_649);
    chmod(&dir.join("closed"), 0);
    flags(&dir.join("nodump"), IFlags::NODUMP);
    flags(&dir.join("immutable"), IFlags::IMMUTABLE);
    flags(&dir.join("append"), IFlags::APPEND);
    fs::create_dir(dir.join("nodump-dir")).unwrap();
    flags(&dir.join("nodump-dir"), IFlags::NODUMP);
    set_times(&dir, 9_000_000_000, 999_999_999);
}

/// The second run.
pub fn second(root: &Path) {
    for (path, _, _, two) in cross(&CHANGES) {
        change(&root.join(path), two, "two");
    }
    fs::create_dir(root.join("gone")).unwrap();
    write(&root.join("gone/file"), b"back");
    remove(&root.join("again"));
    write(&root.join("nested/in/later"), b"later");
    remove(&root.join("nested/in/file"));
    append(&root.join("a-second"), b" and more");
    fs::hard_link(root.join("z-first"), root.join("usr/fourth")).unwrap();
    xattr(&root.join("attributes/file"), b"user.text", b"other text");
    rustix::fs::lremovexattr(root.join("attributes"), "user.text").unwrap();
    xattr(&root.join("metadata"), b"user.only", b"this");
    chmod(&root.join("metadata/other"), 0o4711);
    write(&root.join("metadata/same"), b"new");
    set_times(&root.join("metadata/same"), 1_000_000, 5);
    set_times(&root.join("usr"), 12, 34);
    chmod(&root.join("attributes"), 0o500);
    flags(&root.join("nested"), IFlags::NODUMP);
    sparse(&root.join("sparse"), 8 << 20, &[5 << 20]);
    chmod(root, 0o751);
    xattr(root, b"user.root", b"r");
    set_times(root, 5_000_000_000, 42);
}

pub fn chmod_unless_link(path: &Path, mode: u32) {
    if !path.is_symlink() {
        chmod(path, mode);
    }
}
