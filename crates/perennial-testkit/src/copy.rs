//! Moves a tree as `mv` does where a rename is refused: copies it with its attributes and removes it.
//!
//! Overlayfs refuses to rename a directory of a lower layer while `redirect_dir` is off; programs then copy.

use anyhow::{Context as _, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Renames an entry, or moves it by copying where the kernel says that it must be copied.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    match rustix::fs::rename(from, to) {
        Err(Errno::XDEV) => move_tree(from, to),
        other => Ok(other?),
    }
}

/// Copies a tree to a place where nothing is, and removes it.
pub fn move_tree(from: &Path, to: &Path) -> Result<()> {
    copy_entry(from, to, &mut BTreeMap::new())?;
    let removed = if fs::symlink_metadata(from)?.is_dir() { fs::remove_dir_all(from) } else { fs::remove_file(from) };
    Ok(removed?)
}

/// Copies one file with its attributes to a place where nothing is.
pub fn copy_file(from: &Path, to: &Path) -> Result<()> {
    copy_entry(from, to, &mut BTreeMap::new())
}

fn copy_entry(from: &Path, to: &Path, links: &mut BTreeMap<(u64, u64), PathBuf>) -> Result<()> {
    let meta = fs::symlink_metadata(from)?;
    if meta.nlink() > 1 && !meta.is_dir() {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            return Ok(rustix::fs::linkat(CWD, first, CWD, to, AtFlags::empty())?);
        }
        links.insert((meta.dev(), meta.ino()), to.to_owned());
    }
    let kind = meta.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy_entry(&from.join(&name), &to.join(&name), links)?;
        }
    } else if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else if kind.is_fifo() {
        rustix::fs::mknodat(CWD, to, FileType::Fifo, Mode::empty(), 0)?;
    } else {
        bail!("cannot copy {}", from.display());
    }
    attributes(from, to).with_context(|| format!("attributes of {}", to.display()))
}

/// Gives an entry the attributes of another one of its kind: owner, xattrs, mode, mtime.
pub fn attributes(from: &Path, to: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(from)?;
    std::os::unix::fs::lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(from, &mut names[..])?;
    for name in names.get(..length).unwrap_or_default().split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::lsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    if !meta.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
