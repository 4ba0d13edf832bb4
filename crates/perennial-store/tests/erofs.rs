//! Images of sealed layers as others read them: the kernel, `fsck.erofs`, and a reader that is not ours.
#![cfg(test)]

#[path = "../../perennial-core/tests/sealed/trees.rs"]
#[expect(dead_code, reason = "the core's tests use the rest")]
mod trees;

use perennial_core::sealed::entry::{Attributes, Content, Directory, Item, Node};
use perennial_core::sealed::erofs::{Identity, plan, write};
use perennial_core::sealed::object::ObjectId;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const SECRET: &str = "00112233445566778899aabbccddeeff";

/// What is seen under one name; `links` tells apart groups by their first name.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: FileType,
    attributes: Attributes,
    size: u64,
    device: (u32, u32),
    links: u64,
    same_as: Option<Vec<u8>>,
    data: Option<Vec<u8>>,
}

fn image(tree: &[Directory]) -> Vec<u8> {
    let layout = plan(&mut trees::source(tree)).unwrap();
    let identity = Identity { secret: SECRET.parse().unwrap(), manifest: ObjectId::of(b"manifest") };
    let image = write(&layout, &identity, &mut trees::source(tree), Vec::new()).unwrap();
    assert_eq!(image.len() as u64, layout.image_bytes());
    image
}

fn mount(image: &Path) -> OwnedFd {
    let fs = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(fs.as_fd(), "source", image).unwrap();
    fsconfig_set_flag(fs.as_fd(), "ro").unwrap();
    if let Err(error) = fsconfig_create(fs.as_fd()) {
        let mut text = [0; 512];
        let count = rustix::io::read(&fs, &mut text).unwrap_or(0);
        panic!("{error}: {}", String::from_utf8_lossy(&text[..count]));
    }
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap()
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// Lists what a mounted image shows.
fn listed(root: &OwnedFd) -> BTreeMap<Vec<u8>, Seen> {
    let (mut all, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut todo = vec![(vec![], root.try_clone().unwrap())];
    all.insert(vec![], seen(&root.try_clone().unwrap(), b".", &statat(root, ".", AtFlags::empty()).unwrap()));
    while let Some((path, fd)) = todo.pop() {
        let again = openat(&fd, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let names: Vec<Vec<u8>> =
            Dir::read_from(&again).unwrap().map(|entry| entry.unwrap().file_name().to_bytes().to_vec()).collect();
        assert!(names.is_sorted(), "names are sorted");
        for name in names.into_iter().filter(|name| name != b"." && name != b"..") {
            let stat = statat(&fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let mut found = seen(&fd, &name, &stat);
            let full = joined(&path, &name);
            if found.kind == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                todo.push((full.clone(), openat(&fd, name.as_slice(), flags, Mode::empty()).unwrap()));
            } else if stat.st_nlink > 1 && (found.kind != FileType::CharacterDevice || stat.st_rdev != 0) {
                inodes.entry(stat.st_ino).or_insert_with(Vec::new).push(full.clone());
            }
            found.links = stat.st_nlink;
            all.insert(full, found);
        }
    }
    with_groups(all, inodes)
}

/// Notes at each name the first of those that share its inode.
fn with_groups(mut all: BTreeMap<Vec<u8>, Seen>, inodes: BTreeMap<u64, Vec<Vec<u8>>>) -> BTreeMap<Vec<u8>, Seen> {
    for names in inodes.into_values() {
        let first = names.iter().min().unwrap().clone();
        for name in names {
            all.get_mut(&name).unwrap().same_as = Some(first.clone());
        }
    }
    all
}

type Reader<'image> = erofs_rs::EroFS<erofs_rs::backend::SliceImage<'image>>;

/// Lists what the reader of others finds in the bytes of an image.
fn read_elsewhere(image: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
    let reader = Reader::new(erofs_rs::backend::SliceImage::new(image)).unwrap();
    let root = reader.get_inode(reader.super_block().root_inode_id()).unwrap();
    let (mut all, mut inodes) = (BTreeMap::from([(vec![], found(&reader, root))]), BTreeMap::new());
    for entry in reader.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path().as_bytes().strip_prefix(b"/").unwrap().to_vec();
        let seen = found(&reader, entry.inode);
        if !seen.kind.is_dir() && seen.links > 1 && (!seen.kind.is_char_device() || seen.device != (0, 0)) {
            inodes.entry(entry.inode.id()).or_insert_with(Vec::new).push(path.clone());
        }
        assert!(all.insert(path, seen).is_none(), "each name is there once");
    }
    with_groups(all, inodes)
}

fn found(reader: &Reader<'_>, inode: erofs_rs::types::Inode) -> Seen {
    let data = if inode.is_symlink() {
        Some(reader.read_link_inode(inode).unwrap().into_vec())
    } else if inode.is_file() && inode.data_size() <= 128 {
        let mut bytes = vec![];
        reader.open_inode_file(inode).unwrap().read_to_end(&mut bytes).unwrap();
        Some(bytes)
    } else {
        None
    };
    let (seconds, nanoseconds) = inode.modified_unix();
    let attributes = Attributes {
        mode: inode.permissions().mode() & 0o7777,
        uid: inode.uid(),
        gid: inode.gid(),
        mtime: perennial_core::sealed::entry::Timestamp { seconds, nanoseconds },
        xattrs: reader.xattrs_inode(inode).unwrap().into_iter().collect(),
    };
    Seen {
        kind: inode.file_type(),
        attributes,
        size: inode.data_size(),
        device: inode.device().unwrap_or((0, 0)),
        links: inode.nlink().into(),
        same_as: None,
        data,
    }
}

fn seen(dir: &OwnedFd, name: &[u8], stat: &Stat) -> Seen {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let opened = |flags| openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let size = u64::try_from(stat.st_size).unwrap();
    let data = if kind == FileType::Symlink {
        Some(readlinkat(dir, name, vec![]).unwrap().into_bytes())
    } else if kind == FileType::RegularFile && size <= 128 {
        let mut bytes = vec![0; 129];
        let count = rustix::io::read(opened(OFlags::RDONLY), &mut bytes).unwrap();
        bytes.truncate(count);
        Some(bytes)
    } else {
        None
    };
    let device = match (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) {
        device if kind.is_block_device() || kind.is_char_device() => device,
        _ => (0, 0),
    };
    let attributes = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: perennial_core::sealed::entry::Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap(),
        },
        xattrs: xattrs(&opened(OFlags::PATH)),
    };
    Seen { kind, attributes, size, device, links: stat.st_nlink, same_as: None, data }
}

/// Lists attributes of a descriptor that may be of a symbolic link or a device: by its parent's magic link.
fn xattrs(fd: &OwnedFd) -> Vec<(Vec<u8>, Vec<u8>)> {
    use rustix::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut list = vec![0; 65536];
    let count = rustix::fs::listxattr(&path, &mut list).unwrap();
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = list[..count]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let count = rustix::fs::getxattr(&path, name, &mut value).unwrap();
            value.truncate(count);
            (name.to_vec(), value)
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// What should be seen.
fn expected(tree: &[Directory]) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut groups: Vec<(Vec<u8>, Vec<Vec<u8>>)> = vec![];
    let whiteouts = tree.iter().flat_map(|directory| &directory.entries);
    let whiteouts = whiteouts.filter(|entry| entry.item == Item::Whiteout).count() as u64;
    for directory in tree {
        let path = directory.path.join(&b'/');
        let inner = directory.entries.iter().filter(|entry| entry.item == Item::Directory).count() as u64;
        let mut attributes = directory.attributes.clone();
        if directory.opaque {
            attributes.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
            attributes.xattrs.sort();
        }
        let size = directory_bytes(directory);
        let kind = FileType::Directory;
        all.insert(
            path.clone(),
            Seen { kind, attributes, size, device: (0, 0), links: inner + 2, same_as: None, data: None },
        );
        for entry in &directory.entries {
            let full = joined(&path, &entry.name);
            match &entry.item {
                Item::Directory => {}
                Item::Link(group) => groups[usize::try_from(*group).unwrap()].1.push(full),
                Item::Whiteout => {
                    let (kind, attributes) = (FileType::CharacterDevice, Attributes::default());
                    let whiteout =
                        Seen { kind, attributes, size: 0, device: (0, 0), links: whiteouts, same_as: None, data: None };
                    all.insert(full, whiteout);
                }
                Item::Inode(inode) => {
                    if inode.links.is_some() {
                        groups.push((full.clone(), vec![]));
                    }
                    all.insert(full, expected_inode(&inode.attributes, &inode.node));
                }
            }
        }
    }
    for (first, names) in groups {
        let links = names.len() as u64 + 1;
        let least = names.iter().chain([&first]).min().unwrap().clone();
        for name in names.into_iter().chain([first.clone()]) {
            let (attributes, seen) = (all[&first].attributes.clone(), &all[&first]);
            let (kind, size, device, data) = (seen.kind, seen.size, seen.device, seen.data.clone());
            all.insert(name, Seen { kind, attributes, size, device, links, same_as: Some(least.clone()), data });
        }
    }
    all
}

fn expected_inode(attributes: &Attributes, node: &Node) -> Seen {
    let mut attributes = attributes.clone();
    let (kind, size, device, data) = match node {
        Node::File(Content::Inline(bytes)) => (FileType::RegularFile, bytes.len() as u64, (0, 0), Some(bytes.clone())),
        Node::File(Content::Object { id, size }) => {
            let redirect = format!("/{SECRET}/{}", id.relative_path());
            attributes.xattrs.push((b"trusted.overlay.metacopy".to_vec(), vec![]));
            attributes.xattrs.push((b"trusted.overlay.redirect".to_vec(), redirect.into_bytes()));
            attributes.xattrs.sort();
            (FileType::RegularFile, *size, (0, 0), None)
        }
        Node::Symlink(target) => (FileType::Symlink, target.len() as u64, (0, 0), Some(target.clone())),
        Node::CharDevice { major, minor } => (FileType::CharacterDevice, 0, (*major, *minor), None),
        Node::BlockDevice { major, minor } => (FileType::BlockDevice, 0, (*major, *minor), None),
        Node::Fifo => (FileType::Fifo, 0, (0, 0), None),
        Node::Socket => (FileType::Socket, 0, (0, 0), None),
    };
    Seen { kind, attributes, size, device, links: 1, same_as: None, data }
}

/// Names are packed as tightly as blocks allow.
fn directory_bytes(directory: &Directory) -> u64 {
    let mut names: Vec<&[u8]> = directory.entries.iter().map(|entry| entry.name.as_slice()).collect();
    names.extend([b".".as_slice(), b".."]);
    names.sort_unstable();
    let (mut blocks, mut last) = (0, 0);
    for name in names {
        let bytes = 12 + name.len() as u64;
        if last + bytes > 4096 {
            (blocks, last) = (blocks + 1, 0);
        }
        last += bytes;
    }
    blocks * 4096 + last
}

/// Compares an image with what the kernel, `fsck.erofs` and a reader of others say of it.
fn check(tree: &[Directory]) {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("meta.erofs");
    let (image, expected) = (image(tree), expected(tree));
    std::fs::File::create(&path).and_then(|mut file| std::io::Write::write_all(&mut file, &image)).unwrap();
    for (who, seen) in [("the kernel", listed(&mount(&path))), ("the reader", read_elsewhere(&image))] {
        for (name, expected) in &expected {
            assert_eq!(seen.get(name), Some(expected), "{who}: /{}", name.escape_ascii());
        }
        assert_eq!(seen.len(), expected.len(), "{who}");
    }
    let fsck = Command::new("fsck.erofs").arg(&path).output().expect("fsck.erofs is there (package erofs-utils)");
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&[fsck.stdout, fsck.stderr].concat()));
}

#[test]
fn one_of_everything_is_what_the_kernel_and_fsck_see() {
    check(&trees::everything());
}

#[test]
fn directories_of_many_blocks_are_what_the_kernel_and_fsck_see() {
    for names in [100, 130, 3000, 20_000] {
        check(&trees::wide(names));
    }
}

#[test]
fn random_trees_are_what_the_kernel_and_fsck_see() {
    let mut runner = TestRunner::default();
    for _ in 0..60 {
        check(&trees::trees().new_tree(&mut runner).unwrap().current());
    }
}
