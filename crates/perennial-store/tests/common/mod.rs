//! File systems on loop devices, real overlay mounts, complete listings, and sessions that write layers.
//!
//! Everything here is independent of the code under test, apart from the steps of a session.
#![cfg(test)]
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "every test file uses its own part")]

pub mod seals;
pub mod sessions;
pub mod traps;

use perennial_store::tree;
use rustix::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, lgetxattr, llistxattr, lstat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own, unmounted when dropped.
pub struct LoopFs {
    dir: tempfile::TempDir,
}

impl LoopFs {
    pub fn new(kind: &str, mib: u64) -> Self {
        Self::with(kind, mib, if kind == "ext4" { &["-O", "ea_inode"] } else { &[] })
    }

    /// Without room for large extended attributes.
    pub fn plain_ext4() -> Self {
        Self::with("ext4", 64, &["-O", "^ea_inode"])
    }

    fn with(kind: &str, mib: u64, options: &[&str]) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount file systems and need root");
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let mut mkfs = Command::new(format!("mkfs.{kind}"));
        match kind {
            "ext4" => mkfs.args(["-q", "-F", "-b", "4096"]),
            _ => mkfs.arg("-q"),
        };
        mkfs.args(options);
        run(mkfs.arg(&image));
        fs::create_dir(dir.path().join("mnt")).unwrap();
        run(Command::new("mount").arg("-o").arg("loop").arg(&image).arg(dir.path().join("mnt")));
        Self { dir }
    }

    pub fn ext4() -> Self {
        Self::new("ext4", 256)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Loses power after the log of an XFS was written and before data was, and mounts what is left.
    pub fn lose_power(&self) {
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown -f"]).arg(self.path()));
        run(Command::new("umount").arg(self.path()));
        run(Command::new("mount").arg("-o").arg("loop").arg(self.dir.path().join("image")).arg(self.path()));
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.path()).status();
        if !done.is_ok_and(|status| status.success()) {
            drop(Command::new("umount").arg("-l").arg(self.path()).status());
        }
    }
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn open(path: &Path) -> OwnedFd {
    tree::open_tree(path).unwrap()
}

pub fn opened(paths: &[PathBuf]) -> Vec<OwnedFd> {
    paths.iter().map(|path| open(path)).collect()
}

/// A detached overlay mount, gone when dropped.
pub struct View {
    fd: OwnedFd,
}

impl View {
    /// Mounts layers (newest first) to look at.
    pub fn of(layers: &[PathBuf], empty: &Path) -> Self {
        let mut lowers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        if lowers.len() < 2 {
            lowers.push(empty);
        }
        Self { fd: overlay(&lowers, None) }
    }

    /// Mounts layers with an upper directory to write to.
    pub fn writable(layers: &[PathBuf], upper: &Path, work: &Path) -> Self {
        let lowers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        Self { fd: overlay(&lowers, Some((upper, work))) }
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/.", self.fd.as_raw_fd()))
    }

    pub fn into_fd(self) -> OwnedFd {
        rustix::fs::openat(self.fd.as_fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }
}

fn overlay(lowers: &[&Path], upper: Option<(&Path, &Path)>) -> OwnedFd {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for lower in lowers {
        fsconfig_set_string(&fs, "lowerdir+", *lower).unwrap();
    }
    if let Some((upper, work)) = upper {
        fsconfig_set_string(&fs, "upperdir", upper).unwrap();
        fsconfig_set_string(&fs, "workdir", work).unwrap();
    }
    for (option, value) in
        [("metacopy", "off"), ("redirect_dir", "off"), ("index", "off"), ("nfs_export", "off"), ("uuid", "null")]
    {
        fsconfig_set_string(&fs, option, value).unwrap();
    }
    fsconfig_create(&fs).unwrap();
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

/// All that can be seen of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub mode: u32,
    pub ids: (u32, u32),
    pub mtime: Option<(i64, i64)>,
    pub size: u64,
    pub content: Content,
    pub rdev: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub flags: Option<u32>,
    pub links: Option<Vec<u8>>,
    pub sparse: bool,
}

pub type Listing = BTreeMap<Vec<u8>, Item>;

/// Lists a tree completely.
pub fn listing(root: &Path) -> Listing {
    let mut items = Listing::new();
    list_into(root, b"", &mut items);
    // A group is named after the first of its names; files with one name are no group.
    let mut groups: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
    for (path, item) in &items {
        groups.entry(item.links.clone().unwrap_or_default()).or_default().push(path.clone());
    }
    for item in items.values_mut() {
        let names = item.links.as_ref().map(|inode| &groups[inode]);
        item.links = names.filter(|names| names.len() > 1).map(|names| names[0].clone());
    }
    items
}

fn list_into(path: &Path, name: &[u8], items: &mut Listing) {
    let stat = lstat(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file_type = stat.st_mode & 0o170_000;
    let size = u64::try_from(stat.st_size).unwrap();
    let (content, flags) = match file_type {
        0o100_000 => {
            let bytes = fs::read(path).unwrap();
            let flags = fs::File::open(path).ok().and_then(|file| ioctl_getflags(&file).ok());
            let kept = IFlags::NODUMP | IFlags::IMMUTABLE | IFlags::APPEND | IFlags::NOATIME | IFlags::SYNC;
            (Content(bytes), flags.map(|flags| flags.intersection(kept).bits()))
        }
        0o120_000 => (Content(fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()), None),
        _ => (Content::default(), None),
    };
    let is_dir = file_type == 0o040_000;
    let inode = format!("{}-{}", stat.st_dev, stat.st_ino).into_bytes();
    let item = Item {
        mode: stat.st_mode,
        ids: (stat.st_uid, stat.st_gid),
        mtime: Some((stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap())),
        size: if is_dir { 0 } else { size },
        content,
        rdev: stat.st_rdev,
        xattrs: xattrs(path),
        flags,
        links: (!is_dir).then_some(inode),
        sparse: u64::try_from(stat.st_blocks).unwrap() * 512 + (256 << 10) < size,
    };
    items.insert(name.to_vec(), item);
    if is_dir {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().file_name();
            let mut below = name.to_vec();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(entry.as_bytes());
            list_into(&path.join(&entry), &below, items);
        }
    }
}

/// Content of a file; only its beginning is printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content(Vec<u8>);

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        write!(f, "{} ({} bytes)", shown.escape_ascii(), self.0.len())
    }
}

pub fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0_u8; 1 << 16];
    let length = llistxattr(path, &mut list[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; 1 << 16];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    found
}

/// Forgets the modification times of directories, which a fold may be working on.
pub fn without_dir_times(mut listing: Listing) -> Listing {
    for item in listing.values_mut() {
        if item.mode & 0o170_000 == 0o040_000 {
            item.mtime = None;
        }
    }
    listing
}

/// Says where two trees differ; empty if they do not.
pub fn differences(expected: &Listing, found: &Listing) -> Vec<String> {
    let show = |path: &[u8]| path.escape_ascii().to_string();
    let mut differences = Vec::new();
    for (path, item) in expected {
        match found.get(path) {
            None => differences.push(format!("{}: missing", show(path))),
            Some(other) if other != item => {
                differences.push(format!("{}:\n  expected {item:?}\n  found    {other:?}", show(path)));
            }
            Some(_) => {}
        }
    }
    for path in found.keys().filter(|path| !expected.contains_key(*path)) {
        differences.push(format!("{}: not expected", show(path)));
    }
    differences
}

#[track_caller]
pub fn assert_same(expected: &Listing, found: &Listing, what: &str) {
    let differences = differences(expected, found);
    assert!(differences.is_empty(), "{what}: {} differences\n{}", differences.len(), differences.join("\n"));
}

/// A layer of a mount with sealed layers.
#[derive(Clone, Copy)]
pub enum Lower<'a> {
    Dir(&'a Path),
    Fd(rustix::fd::BorrowedFd<'a>),
}

impl View {
    /// Mounts layers (newest first) of which some are sealed, with the objects in `data`.
    pub fn sealed(layers: &[Lower<'_>], upper: Option<(&Path, &Path)>, data: &Path) -> Self {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        for lower in layers {
            match lower {
                Lower::Dir(path) => fsconfig_set_string(&fs, "lowerdir+", *path).unwrap(),
                Lower::Fd(fd) => rustix::mount::fsconfig_set_fd(&fs, "lowerdir+", fd).unwrap(),
            }
        }
        fsconfig_set_string(&fs, "datadir+", data).unwrap();
        if let Some((upper, work)) = upper {
            fsconfig_set_string(&fs, "upperdir", upper).unwrap();
            fsconfig_set_string(&fs, "workdir", work).unwrap();
        }
        for (option, value) in
            [("metacopy", "on"), ("redirect_dir", "on"), ("index", "off"), ("nfs_export", "off"), ("uuid", "null")]
        {
            fsconfig_set_string(&fs, option, value).unwrap();
        }
        if let Err(error) = fsconfig_create(&fs) {
            let mut said = [0_u8; 1024];
            let length = rustix::io::read(&fs, &mut said).unwrap_or(0);
            panic!("{error}: {}", String::from_utf8_lossy(&said[..length]));
        }
        Self { fd: fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap() }
    }
}
