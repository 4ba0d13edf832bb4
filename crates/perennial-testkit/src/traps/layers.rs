//! Cases about what changes from layer to layer: deletions, replacements, renames, hard links, contents.

use super::site::{Site, may};
use anyhow::{Context as _, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use std::os::fd::AsRawFd as _;

/// Deleted names; more than one, since the kernel lets whiteouts share an inode; one is made again and deleted again.
pub(super) fn whiteout(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => ["a", "b", "c", "d/e", "d/f", "stays"].into_iter().try_for_each(|name| at.file(name, name)),
        1 => ["a", "b", "d/e"].into_iter().try_for_each(|name| at.remove(name)),
        2 => {
            at.file("a", "made again")?;
            at.remove("c")?;
            at.remove("d")
        }
        _ => {
            at.remove("a")?;
            at.file("d/e", "in a directory made again")
        }
    }
}

/// A directory deleted, made again empty, filled.
pub(super) fn dir_removed(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => ["d/x", "d/y", "d/sub/z"].into_iter().try_for_each(|name| at.file(name, name)),
        1 => at.remove("d"),
        2 => at.dir("d"),
        _ => at.file("d/sub/x", "where the image had sub/z"),
    }
}

/// A directory deleted and made again in the same run with some of the same names, at the top and further down.
pub(super) fn dir_recreated(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => {
            ["d/x", "d/y", "n/inner/x", "n/inner/y", "n/side/z"].into_iter().try_for_each(|name| at.file(name, "image"))
        }
        1 => {
            at.remove("d")?;
            at.file("d/x", "new")?;
            at.remove("n/inner")?;
            at.file("n/inner/x", "new")
        }
        2 => {
            at.remove("d")?;
            at.file("d/y", "newer")?;
            at.file("n/inner/w", "added to an opaque directory")
        }
        _ => {
            at.remove("n/inner/x")?;
            at.remove("n/side")?;
            at.file("n/side/other", "and again")
        }
    }
}

/// A directory that becomes opaque between two saves, while everything else about it stays the same.
pub(super) fn opaque_flip(at: &Site, stage: u32) -> Result<()> {
    const TIME: i64 = 1_400_000_000;
    match stage {
        0 => ["d/old-1", "d/old-2"].into_iter().try_for_each(|name| at.file(name, "image"))?,
        1 => at.file("d/new", "kept")?,
        2 => {
            at.remove("d")?;
            at.file("d/new", "kept")?;
        }
        _ => return at.file("d/old-1", "back under an old name"),
    }
    if stage > 0 {
        at.time("d/new", TIME, 5)?;
    }
    at.time("d", TIME, 7)
}

/// An opaque directory that loses what was put into it, and then itself.
pub(super) fn opaque_emptied(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => ["d/x", "d/s/y", "e/s/x"].into_iter().try_for_each(|name| at.file(name, "image")),
        1 => {
            at.remove("d")?;
            at.file("d/x", "new")?;
            at.remove("e")?;
            at.file("e/s/x", "new")
        }
        2 => {
            at.remove("d/x")?;
            at.remove("e/s")?;
            at.dir("e/s")
        }
        _ => {
            at.remove("d")?;
            at.remove("e/s")
        }
    }
}

/// Directories of the image and of earlier runs renamed, there and back, and one made and renamed in one run.
pub(super) fn rename_dir(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => ["d/sub/f1", "d/sub/f2", "d/g"].into_iter().try_for_each(|name| at.file(name, name)),
        1 => {
            at.rename("d", "e")?;
            at.file("fresh/a/b", "pure upper")?;
            at.rename("fresh", "moved")
        }
        2 => {
            at.rename("e", "d")?;
            at.rename("moved/a", "moved/c")?;
            at.file("e", "a file where the directory was")
        }
        _ => {
            at.remove("e")?;
            at.rename("d/sub", "e")?;
            at.rename("moved", "d/sub")
        }
    }
}

/// Files renamed: over others, into new directories, exchanged.
pub(super) fn rename_file(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => ["a", "b", "c", "x/d"].into_iter().try_for_each(|name| at.file(name, name)),
        1 => {
            at.rename("a", "b")?;
            at.dir("new")?;
            at.rename("x/d", "new/d")?;
            at.file("c.tmp", "as editors save")?;
            at.rename("c.tmp", "c")
        }
        2 => {
            let exchange = rustix::fs::renameat_with(CWD, at.at("b"), CWD, at.at("c"), RenameFlags::EXCHANGE);
            may("exchange two names", exchange)?;
            at.rename("new/d", "x/d")
        }
        _ => {
            at.rename("b", "a")?;
            at.rename("x/d", "c")
        }
    }
}

/// Every kind of entry replaced by another kind, and back.
pub(super) fn kind_changed(at: &Site, stage: u32) -> Result<()> {
    let pairs = ["dir-file", "file-dir", "link-dir", "dir-link", "file-link", "fifo-dir"];
    for pair in pairs {
        let (first, second) = pair.split_once('-').context("pair")?;
        let kind = if stage.is_multiple_of(2) { first } else { second };
        if stage > 0 {
            at.remove(pair)?;
        }
        match kind {
            "dir" => at.file(&format!("{pair}/in-{stage}/file"), pair)?,
            "file" => at.file(pair, format!("stage {stage}"))?,
            "link" => at.symlink("file-dir", pair)?,
            _ => at.node(pair, FileType::Fifo, (0, 0))?,
        }
    }
    Ok(())
}

/// One inode made under three names, the first of which sorts last; later written by one name and named again.
pub(super) fn links_new(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => at.file("aa/unrelated", "image"),
        1 => {
            at.file("zz/first", "one inode")?;
            at.link("zz/first", "aa/second")?;
            at.link("zz/first", "mm/third")
        }
        2 => {
            at.append("mm/third", b", appended to by one name")?;
            at.file("pair-1", "pair")?;
            at.link("pair-1", "pair-2")
        }
        _ => {
            at.link("aa/second", "aa/fourth")?;
            at.append("pair-2", b", appended to")?;
            at.remove("zz")
        }
    }
}

/// Names of one inode in the image: written, removed, replaced and added by one of them.
pub(super) fn links_lower(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => {
            for group in ["append", "remove", "replace", "chmod", "alone"] {
                at.file(&format!("{group}-1"), group)?;
                at.link(&format!("{group}-1"), &format!("sub/{group}-2"))?;
            }
            at.file("single", "one name")
        }
        1 => {
            at.append("append-1", b" one name")?;
            at.remove("remove-1")?;
            at.remove("replace-1")?;
            at.file("replace-1", "another inode")?;
            at.chmod("sub/chmod-2", 0o600)?;
            at.link("single", "second")
        }
        2 => {
            at.remove("single")?;
            at.link("sub/append-2", "append-3")?;
            at.file("made-1", "made in run 2")?;
            at.link("made-1", "made-2")
        }
        _ => {
            at.append("made-2", b", and appended to in run 3")?;
            at.append("second", b", changed")?;
            at.remove("sub/remove-2")
        }
    }
}

/// Names shared by inodes that are not files.
pub(super) fn links_special(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => {
            at.symlink("nowhere", "symlink-1")?;
            at.link("symlink-1", "symlink-2")
        }
        1 => {
            at.symlink("elsewhere", "new-1")?;
            at.link("new-1", "new-2")?;
            at.node("fifo-1", FileType::Fifo, (0, 0))?;
            at.link("fifo-1", "fifo-2")?;
            at.node("device-1", FileType::CharacterDevice, (1, 3))?;
            at.link("device-1", "device-2")
        }
        2 => {
            at.chown("new-1", 3, 4)?;
            at.chmod("fifo-2", 0o666)
        }
        _ => {
            at.link("symlink-2", "symlink-3")?;
            at.remove("device-1")
        }
    }
}

/// Entries that are not files, deleted in a later run than they were made in.
pub(super) fn special_removed(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => at.symlink("x", "image-link"),
        1 => {
            at.node("fifo", FileType::Fifo, (0, 0))?;
            at.node("socket", FileType::Socket, (0, 0))?;
            at.node("null", FileType::CharacterDevice, (1, 3))?;
            at.symlink("y", "link")
        }
        2 => ["fifo", "socket", "null", "link", "image-link"].into_iter().try_for_each(|name| at.remove(name)),
        _ => at.node("socket", FileType::Fifo, (0, 0)),
    }
}

/// A file rewritten with as many bytes and the same mtime, as package managers and `touch -r` do.
pub(super) fn rewrite_in_disguise(at: &Site, stage: u32) -> Result<()> {
    let letter = ["a", "b", "c", "d"].get(usize::try_from(stage)?).context("stage")?;
    at.file("file", letter.repeat(5000))?;
    at.time("file", 1_300_000_000, 0)
}

/// Files that grow, shrink, become empty, and end in zeros.
pub(super) fn grow_and_shrink(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => {
            at.file("shrinks", vec![b's'; 300_000])?;
            at.file("grows", "g")?;
            at.file("empty", "")?;
            at.file("zeros", b"x\0y\0\0\0")
        }
        1 => {
            at.truncate("shrinks", 70_001)?;
            at.append("grows", &vec![b'g'; 200_000])?;
            at.append("empty", b"no more")
        }
        2 => {
            at.write_at("shrinks", 65_536, b"in the middle")?;
            at.truncate("empty", 0)?;
            at.truncate("zeros", 4096)
        }
        _ => {
            at.truncate("shrinks", 0)?;
            at.write_at("grows", 1, b"early")
        }
    }
}

/// Files with holes: in the middle, at both ends, and nothing else; later written into their holes.
pub(super) fn sparse(at: &Site, stage: u32) -> Result<()> {
    const MIB: u64 = 1 << 20;
    match stage {
        0 => {
            at.file("image", "head")?;
            at.truncate("image", 32 * MIB)
        }
        1 => {
            at.file("three", vec![b'1'; 4096])?;
            at.write_at("three", 128 * MIB, &[b'2'; 4096])?;
            at.write_at("three", 256 * MIB - 4096, &[b'3'; 4096])?;
            at.file("middle", "")?;
            at.truncate("middle", 64 * MIB)?;
            at.write_at("middle", 32 * MIB, &[b'm'; 100])?;
            at.file("all", "")?;
            at.truncate("all", 64 * MIB)
        }
        2 => {
            at.write_at("image", 16 * MIB, b"into the hole of a lower file")?;
            at.write_at("all", 63 * MIB, b"x")
        }
        _ => {
            at.truncate("three", 100 * MIB)?;
            at.chmod("middle", 0o600)
        }
    }
}

/// A file that was made without a name and got one later.
pub(super) fn tmpfile(at: &Site, stage: u32) -> Result<()> {
    if stage == 0 {
        return Ok(());
    }
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = may("O_TMPFILE", rustix::fs::open(at.at("."), flags, Mode::from_raw_mode(0o644)))?;
    rustix::io::write(&file, b"nameless at first")?;
    let magic = format!("/proc/self/fd/{}", file.as_raw_fd());
    let name = at.at(&format!("named-{stage}"));
    may("name an O_TMPFILE", rustix::fs::linkat(CWD, magic, CWD, name, AtFlags::SYMLINK_FOLLOW))
}
