//! Memory that sealing holds: what an entry costs, counted, so that a million fit in what the design allows.
//!
//! The only test of its program: the most memory that a process has held is the process' own.
#![cfg(test)]

use perennial_core::id::LayerId;
use perennial_store::objects::Objects;
use perennial_store::root::{Root, Secret};
use perennial_store::sealed::{self, Outcome, Request};
use perennial_store::tree;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Memory that a seal may hold at a million entries, in bytes.
const ALLOWED: u64 = 128 << 20;
const MILLION: u64 = 1_000_000;
/// Entries of the two layers: what both hold alike, stacks of threads and buffers, falls out of the difference.
const FEW: u64 = 10_000;
const MANY: u64 = 60_000;
/// Entries in a directory, as in the trees that the benchmark makes.
const IN_DIRECTORY: u64 = 100;

/// A file system of its own in memory, so that a tree this large wears out nothing.
struct Ground(PathBuf);

impl Ground {
    fn new(place: &Path) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1g", "tmpfs"]).arg(place).status();
        assert!(mounted.unwrap().success(), "cannot mount a tmpfs: this test needs root");
        Self(place.to_owned())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

fn write(path: &Path, text: &str) {
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Files with objects, files without, links, and names of one file.
fn make(tree: &Path, entries: u64) {
    for number in 0..entries {
        let directory = tree.join(format!("directory-{:06}", number / IN_DIRECTORY));
        if number % IN_DIRECTORY == 0 {
            fs::create_dir_all(&directory).unwrap();
            continue;
        }
        let path = directory.join(format!("an-entry-{number}"));
        match number % 10 {
            7 => write(&path, &number.to_string()),
            8 => symlink(format!("../target-{number}"), path).unwrap(),
            9 => fs::hard_link(directory.join(format!("an-entry-{}", number - 3)), path).unwrap(),
            _ => write(&path, &number.to_string().repeat(40)),
        }
    }
}

/// The most memory this process has held since it was last asked to forget, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number") << 10
}

/// Seals a layer of so many entries, and returns the most memory that was held meanwhile.
fn seal(root: &Root, number: u8, entries: u64) -> u64 {
    let layer = LayerId::from_random([number; 8]);
    let path = root.layer_tree(&layer);
    fs::create_dir_all(&path).unwrap();
    make(&path, entries);
    let (objects, tree) = (Objects::open(root).unwrap(), tree::open_tree(&path).unwrap());
    let request = Request { root, objects: &objects, layer: &layer, tree: tree.as_fd(), below: &[], workers: 2 };
    write(Path::new("/proc/self/clear_refs"), "5");
    match sealed::seal(&request, &mut || false).unwrap() {
        Outcome::Sealed(sealed) => assert_eq!(sealed.manifest.counts.entries, entries),
        Outcome::GaveWay => panic!("it gave way to nobody"),
    }
    peak()
}

#[test]
fn a_million_entries_are_sealed_in_128_mib() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("ground");
    fs::create_dir(&place).unwrap();
    let ground = Ground::new(&place);
    let now = "2026-11-22T17:00:00Z".parse().unwrap();
    let root = Root::open_or_create(&place.join("root"), now, Secret::from_random([7; 16])).unwrap();
    let few = seal(&root, 1, FEW);
    let many = seal(&root, 2, MANY);
    let bytes_each = many.saturating_sub(few) / (MANY - FEW);
    let at_million = many + bytes_each * (MILLION - MANY);
    assert!(at_million <= ALLOWED, "{bytes_each} bytes an entry: {few} at {FEW}, {many} at {MANY}");
    drop(root);
    drop(ground);
}
