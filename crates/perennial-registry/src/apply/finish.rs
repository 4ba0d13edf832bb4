//! The end of a layer: what it hides, and the times of its directories.

use super::*;
use crate::attributes::{set_opaque, set_times};

impl Writer<'_> {
    /// Makes whiteouts and opaque directories, then sets the times of directories, deepest first.
    pub(super) fn finish(mut self) -> Result<Applied, ApplyError> {
        self.root_attributes().map_err(|source| write_error(b".", source))?;
        if self.opaques.remove(b"".as_slice()) {
            self.hide_root().map_err(|source| write_error(b".wh..wh..opq", source))?;
        }
        for path in self.opaques.clone() {
            self.directory(&path, &path)?;
            self.make_opaque(&path).map_err(|source| write_error(&path, source))?;
        }
        for path in std::mem::take(&mut self.whiteouts) {
            self.whiteout(&path)?;
        }
        self.tree.forget();
        for (path, (mtime, atime)) in std::mem::take(&mut self.times).into_iter().rev() {
            self.directory_times(&path, mtime, atime).map_err(|source| write_error(&path, source))?;
        }
        if self.notes_left_out > 0 {
            self.notes.push(format!("{} more notes are left out", self.notes_left_out));
        }
        Ok(Applied { entries: self.entries, bytes: self.bytes, notes: self.notes })
    }

    /// Gives the root the attributes it has below, where the archive says nothing about it.
    fn root_attributes(&mut self) -> io::Result<()> {
        if self.times.contains_key(b"".as_slice()) {
            return Ok(());
        }
        let attributes = self.inherited(b"")?;
        attributes.apply(self.tree.root(), b".", FileType::Directory)?;
        self.times.insert(Vec::new(), (attributes.mtime, attributes.atime));
        Ok(())
    }

    /// Hides everything below by names: overlayfs takes no notice of an opaque mark on a layer's root.
    fn hide_root(&mut self) -> io::Result<()> {
        for name in self.lowers.root_names()?.into_keys() {
            self.whiteouts.insert(name);
        }
        Ok(())
    }

    /// Makes a directory of this layer opaque. Returns whether it is one.
    fn make_opaque(&mut self, path: &[u8]) -> io::Result<bool> {
        let (parent, name) = split(path);
        let Opened::Directory(parent) = self.tree.directory(parent)? else {
            return Ok(false);
        };
        match stat(parent.as_fd(), name)? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                set_opaque(parent.as_fd(), name)?;
                self.opaques.insert(path.to_vec());
                Ok(true)
            }
            Some(_) | None => Ok(false),
        }
    }

    /// Hides `path`. A whiteout that hides nothing is left out: it would show up as a name without a file wherever its
    /// directory is not merged with one below.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), ApplyError> {
        let io = |source| write_error(path, source);
        let is_hidden = ancestors(path).any(|above| self.opaques.contains(above));
        if self.copied_up.contains(path) {
            // Only the other name of the file was wanted.
            if let Opened::Directory(parent) = self.tree.directory(split(path).0).map_err(io)? {
                remove(parent.as_fd(), split(path).1).map_err(io)?;
            }
        }
        if self.tree.stat(path).map_err(io)?.is_some() {
            self.make_opaque(path).map_err(io)?;
            return Ok(());
        }
        if is_hidden || self.lowers.find(path).map_err(io)?.is_none() {
            return Ok(());
        }
        let parent = match self.directory(split(path).0, path) {
            Ok(parent) => parent,
            // This layer has a file where the directory was, which hides it already.
            Err(ApplyError::NotDirectory { .. } | ApplyError::ThroughSymlink { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        fs::mknodat(&*parent, split(path).1, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(|error| write_error(path, error.into()))
    }

    fn directory_times(&mut self, path: &[u8], mtime: Stamp, atime: Stamp) -> io::Result<()> {
        if path.is_empty() {
            return set_times(self.tree.root(), b".", mtime, atime);
        }
        let (parent, name) = split(path);
        match self.tree.directory(parent)? {
            Opened::Directory(parent) => set_times(parent.as_fd(), name, mtime, atime),
            Opened::Missing | Opened::Symlink | Opened::NotDirectory => Ok(()),
        }
    }
}
