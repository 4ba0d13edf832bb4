//! Cases about names, paths and symlink targets.

use super::site::Site;
use anyhow::Result;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use std::fs;
use std::os::fd::OwnedFd;

/// A user's files with the names that tar layers use for deletions.
pub(super) fn lookalikes(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => ["foo", "d/x", "e/x"].into_iter().try_for_each(|name| at.file(name, "must stay")),
        1 => {
            at.file(".wh.foo", "a user's file")?;
            at.file("d/.wh..wh..opq", "a user's file")?;
            at.dir("e/.wh.x")
        }
        2 => {
            at.append(".wh.foo", b", changed")?;
            at.file(".wh..wh.plnk", "")
        }
        _ => {
            at.remove(".wh.foo")?;
            at.remove("d/.wh..wh..opq")?;
            at.file("e/.wh.x/y", "")
        }
    }
}

/// Names of any bytes, which later runs change and delete.
pub(super) fn names(at: &Site, stage: u32) -> Result<()> {
    let long = [b'n'; 255];
    let names: [&[u8]; 16] = [
        b"latin-1-\xe9\xe8",
        b"bad-utf8-\xff\xfe\xc0",
        b"new\nline",
        b"back\\slash",
        b" leading and trailing ",
        b"-dash",
        b"--option=x",
        "NFC-\u{e9}".as_bytes(),
        "NFC-e\u{301}".as_bytes(),
        b"Case",
        b"case",
        b"\x01\x1b[31m",
        b"percent%2f",
        b"quote'\"`$(x)",
        "emoji-\u{1f600}".as_bytes(),
        &long,
    ];
    for (number, name) in names.into_iter().enumerate() {
        let path = at.at_bytes(name);
        match (stage, number % 3) {
            (0, 0 | 1) => crate::host::write(&path, name)?,
            (1, 0) | (2, 1) | (3, 2) => fs::remove_file(&path)?,
            (1, 2) => crate::host::write(&path, name)?,
            (2, 0) => {
                fs::create_dir(&path)?;
                crate::host::write(path.join("in a directory with an odd name"), name)?;
            }
            (3, 0) => fs::remove_dir_all(&path)?,
            (_, _) => {}
        }
    }
    Ok(())
}

/// Directories below each other: together longer than any path the kernel takes.
const DEPTH: usize = 20;
const DEEP_NAME_BYTES: usize = 250;

/// A path longer than `PATH_MAX`; at its end a file is made, changed, and cut off half way.
pub(super) fn deep(at: &Site, stage: u32) -> Result<()> {
    let name = "d".repeat(DEEP_NAME_BYTES);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut way: Vec<OwnedFd> = vec![rustix::fs::open(at.at("."), flags, Mode::empty())?];
    for _ in 0..DEPTH {
        let Some(dir) = way.last() else { continue };
        if stage == 0 {
            rustix::fs::mkdirat(dir, &*name, Mode::from_raw_mode(0o755))?;
        }
        let next = rustix::fs::openat(dir, &*name, flags, Mode::empty())?;
        way.push(next);
    }
    let end = way.last().ok_or(rustix::io::Errno::NOENT)?;
    let create = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    if stage < 3 {
        let file = rustix::fs::openat(end, "leaf", create, Mode::from_raw_mode(0o644))?;
        rustix::io::write(file, format!("stage {stage}\n").as_bytes())?;
        rustix::fs::openat(end, format!("leaf-{stage}"), create, Mode::from_raw_mode(0o644))?;
    } else {
        let names = ["leaf", "leaf-0", "leaf-1", "leaf-2"];
        names.into_iter().try_for_each(|name| rustix::fs::unlinkat(end, name, AtFlags::empty()))?;
        let pairs = way.windows(2).rev().take(DEPTH / 2).filter_map(|pair| pair.first());
        pairs.into_iter().try_for_each(|dir| rustix::fs::unlinkat(dir, &*name, AtFlags::REMOVEDIR))?;
    }
    fix_times(&way, stage)
}

/// Sets the times of what is too deep for a path, deepest first.
fn fix_times(way: &[OwnedFd], stage: u32) -> Result<()> {
    let time = Timespec { tv_sec: 1_200_000_000 + i64::from(stage), tv_nsec: 9 };
    let times = Timestamps { last_access: time, last_modification: time };
    for name in ["leaf".to_owned(), format!("leaf-{stage}")] {
        if let (Some(end), true) = (way.last(), stage < 3) {
            rustix::fs::utimensat(end, name, &times, AtFlags::empty())?;
        }
    }
    // A directory that has just been removed is only an open descriptor, and takes a time all the same.
    way.iter().rev().try_for_each(|dir| rustix::fs::futimens(dir, &times))?;
    Ok(())
}

/// Symlinks to anywhere, and as long as they can be.
pub(super) fn symlinks(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => {
            at.symlink("../../../../../etc/passwd", "image-up")?;
            at.symlink("/nonexistent/absolute", "image-dangling")
        }
        1 => {
            at.symlink("../../../../../../../../etc/passwd", "up")?;
            at.symlink("/etc/passwd", "absolute")?;
            at.symlink("loop", "loop")?;
            at.symlink(&"t".repeat(1000), "target-1000")?;
            at.chown("up", 77, 88)?;
            at.time("up", 1_000_000_000, 1)
        }
        2 => {
            at.remove("image-up")?;
            at.symlink("image-dangling", "image-up")?;
            at.chown("image-dangling", 7, 8)?;
            // XFS keeps at most 1,024 bytes.
            at.symlink(&"t".repeat(4000), "target-4000")
        }
        _ => {
            at.remove("up")?;
            at.time("absolute", 1_000_000_001, 2)
        }
    }
}
