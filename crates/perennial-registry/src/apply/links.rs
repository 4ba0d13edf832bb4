//! Hard links, also to files of layers below.

use super::entries::create;
use super::*;
use crate::contents;
use crate::lowers::Found;
use rustix::fs::{AtFlags, linkat};

impl Writer<'_> {
    /// Makes `path` another name of the file the entry links to.
    pub(super) fn hardlink(&mut self, member: &Member, path: &[u8], parent: &OwnedFd) -> Result<(), ApplyError> {
        let refuse = |reason| {
            let (entry, target) = (lossy(&member.name), lossy(&member.link));
            ApplyError::Link { entry, target, reason }
        };
        let target = entry_path(&member.link).map_err(|reason| refuse(LinkReason::Name(reason)))?;
        let io = |source| write_error(&member.name, source);
        let (target_parent, target_name) = split(&target);
        let found = match self.tree.directory(target_parent).map_err(io)? {
            Opened::Directory(target_parent) => stat(target_parent.as_fd(), target_name).map_err(io)?,
            Opened::Missing => None,
            Opened::Symlink => return Err(refuse(LinkReason::ThroughSymlink)),
            Opened::NotDirectory => {
                let error = self.not_directory(target_parent, &member.name);
                let is_symlink = matches!(error, ApplyError::ThroughSymlink { .. });
                return Err(refuse(if is_symlink { LinkReason::ThroughSymlink } else { LinkReason::Missing }));
            }
        };
        match found {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(refuse(LinkReason::Directory));
            }
            Some(_) => {}
            None => match self.lowers.find(&target).map_err(io)? {
                None => return Err(refuse(LinkReason::Missing)),
                Some(lower) if lower.kind == FileType::Directory => return Err(refuse(LinkReason::Directory)),
                Some(lower) => self.copy_up(&target, &lower, &member.name)?,
            },
        }
        if target == path {
            // A file packed twice under one name.
            return Ok(());
        }
        if stat(parent.as_fd(), split(path).1).map_err(io)?.is_some() {
            self.clear(parent, path).map_err(io)?;
        }
        // Clearing may have removed the target itself, where the entry replaced a directory above it.
        let target_parent = match self.tree.directory(target_parent).map_err(io)? {
            Opened::Directory(directory) => directory,
            Opened::Missing | Opened::Symlink | Opened::NotDirectory => return Err(refuse(LinkReason::Missing)),
        };
        linkat(&*target_parent, target_name, parent, split(path).1, AtFlags::empty())
            .map_err(|error| write_error(&member.name, error.into()))
    }

    /// Copies a file of a layer below to its own place in this one, as overlayfs does before it links a file.
    fn copy_up(&mut self, path: &[u8], lower: &Found, entry: &[u8]) -> Result<(), ApplyError> {
        let parent = self.directory(split(path).0, entry)?;
        let size = u64::try_from(lower.stat.st_size).unwrap_or(0);
        if lower.kind == FileType::RegularFile {
            self.bytes = self.bytes.saturating_add(size);
            if self.bytes > self.bytes_max {
                return Err(ApplyError::TooLarge { entry: lossy(entry), bytes_max: self.bytes_max });
            }
        }
        copy_file(lower, &parent, split(path).1, size).map_err(|source| write_error(entry, source))?;
        self.copied_up.insert(path.to_vec());
        Ok(())
    }
}

fn copy_file(lower: &Found, parent: &OwnedFd, name: &[u8], size: u64) -> io::Result<()> {
    match lower.kind {
        FileType::RegularFile => {
            contents::copy(&lower.open()?, &create(parent, name)?, size, None)?;
        }
        FileType::Symlink => fs::symlinkat(lower.target()?.as_slice(), parent, name)?,
        FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice => {
            fs::mknodat(parent, name, lower.kind, Mode::RUSR, lower.stat.st_rdev)?;
        }
        FileType::Directory | FileType::Unknown => return Err(io::ErrorKind::IsADirectory.into()),
    }
    let attributes = lower.attributes()?;
    attributes.apply(parent.as_fd(), name, lower.kind)?;
    attributes.apply_times(parent.as_fd(), name)
}
