//! Users looked up in files that a container may have made hostile.
#![cfg(test)]

use perennial_core::process::{ResolvedUser, UserSpec};
use perennial_runtime::user::{UserError, lookup};
use std::os::unix::fs::symlink;
use std::path::Path;

fn root(passwd: &str, group: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    put(&dir.path().join("etc/passwd"), passwd);
    put(&dir.path().join("etc/group"), group);
    dir
}

fn put(path: &Path, text: &str) {
    use std::io::Write as _;
    std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

fn find(root: &Path, user: &str) -> Result<ResolvedUser, UserError> {
    lookup(root, &user.parse::<UserSpec>().unwrap())
}

fn user(uid: u32, gid: u32, additional_gids: &[u32], home: Option<&str>) -> ResolvedUser {
    ResolvedUser { uid, gid, additional_gids: additional_gids.to_vec(), home: home.map(str::to_owned) }
}

const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\nbroken\nbad:x:y:1::/x:\nal:x:10:11:Al:/home/al:/bin/sh\nnohome:x:12:12\n";
const GROUP: &str = "root:x:0:\nal:x:11:\nz:x:40:al,b\na:x:30:b,al\nown:x:11:al\nbad:x:q:al\nalso:x:40:al\n";

#[test]
fn users_and_groups_are_found() {
    let root = root(PASSWD, GROUP);
    let rows = [
        ("al", user(10, 11, &[30, 40], Some("/home/al"))),
        ("10", user(10, 11, &[30, 40], Some("/home/al"))),
        ("al:z", user(10, 40, &[], Some("/home/al"))),
        ("al:5", user(10, 5, &[], Some("/home/al"))),
        ("99", user(99, 0, &[], None)),
        ("99:a", user(99, 30, &[], None)),
        ("nohome", user(12, 12, &[], None)),
        ("0", user(0, 0, &[], Some("/root"))),
    ];
    for (text, expected) in rows {
        assert_eq!(find(root.path(), text).unwrap(), expected, "{text}");
    }
    assert!(matches!(find(root.path(), "bad"), Err(UserError::NoUser { .. })));
    assert!(matches!(find(root.path(), "al:none"), Err(UserError::NoGroup { .. })));
}

#[test]
fn missing_files_are_empty() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(find(root.path(), "0").unwrap(), user(0, 0, &[], None));
    assert!(matches!(find(root.path(), "root"), Err(UserError::NoUser { .. })));
    let error = find(root.path(), "0:staff").unwrap_err();
    assert_eq!(error.to_string(), "group \"staff\" is not in the container's /etc/group");
}

#[test]
fn links_do_not_leave_the_root() {
    let outside = tempfile::tempdir().unwrap();
    put(&outside.path().join("passwd"), "eve:x:666:666::/:\n");
    for target in [
        outside.path().join("passwd"),
        Path::new("../../../..").join(outside.path().strip_prefix("/").unwrap()).join("passwd"),
    ] {
        let root = root("", "");
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        symlink(&target, root.path().join("etc/passwd")).unwrap();
        assert!(matches!(find(root.path(), "eve"), Err(UserError::NoUser { .. })), "{target:?}");
    }
    let root = root("", "");
    std::fs::create_dir(root.path().join("other")).unwrap();
    put(&root.path().join("other/passwd"), "in:x:7:8::/:\n");
    std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
    symlink("/other/passwd", root.path().join("etc/passwd")).unwrap();
    assert_eq!(find(root.path(), "in").unwrap().uid, 7, "an absolute link stays inside");
}

#[test]
fn what_is_no_regular_file_of_bounded_size_is_refused() {
    let dir = root("", "");
    let passwd = dir.path().join("etc/passwd");
    std::fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(matches!(find(dir.path(), "al"), Err(UserError::Unusable { .. })), "a fifo does not block");
    std::fs::remove_file(&passwd).unwrap();
    symlink("/etc/passwd", &passwd).unwrap();
    assert!(matches!(find(dir.path(), "al"), Err(UserError::Read { .. })), "a loop");
    std::fs::remove_file(&passwd).unwrap();
    std::fs::File::create(&passwd).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(find(dir.path(), "al"), Err(UserError::Unusable { .. })), "too large");
    std::fs::remove_file(&passwd).unwrap();
    std::fs::create_dir(&passwd).unwrap();
    assert!(matches!(find(dir.path(), "al"), Err(UserError::Unusable { .. })), "a directory");
}
