//! Writes one layer archive into an empty directory, in the form overlayfs keeps an upper directory:
//! `.wh.NAME` becomes a character device 0:0, `.wh..wh..opq` becomes `trusted.overlay.opaque=y`.
//!
//! Archives are hostile until proven otherwise: `crate::beneath` keeps every write inside the directory, names and
//! attributes that could steer the union mount are refused, and entries and bytes are bounded. What an archive leaves
//! unsaid comes from the layers below (`crate::lowers`): the attributes of directories it does not describe, and
//! files it only links to, which are copied up as overlayfs itself would do it.
//!
//! Whiteouts take effect at the end, wherever in the archive they stand (image-spec, `layer.md`, "Whiteouts").

mod entries;
mod finish;
mod links;

use crate::attributes::{Attributes, is_linux, is_reserved, is_steering};
use crate::beneath::{Beneath, NameError, Opened, ancestors, entry_path, remove, split, stat};
use crate::digest::HashReader;
use crate::lowers::Lowers;
use crate::tarball::{Kind, Member, Stamp, Tar, TarError, lossy};
use rustix::fs::{self, FileType, Mode};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

/// Bounds on what a source may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries in one layer.
    pub entries_max: u64,
    /// Bytes of one uncompressed layer, and of its files; the free space of the store bounds them as well.
    pub bytes_max: u64,
    /// Layers in one image. A union mount takes 500; generations need their share of them.
    pub layers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries_max: 20_000_000, bytes_max: 1 << 40, layers_max: 256 }
    }
}

/// Why a layer cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The archive is damaged.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry's name is refused.
    #[error("name of entry {entry:?} is refused: {reason}")]
    Name {
        /// The name as it stands in the archive.
        entry: String,
        /// Why.
        reason: NameError,
    },
    /// An entry would be written through a symbolic link of the same archive.
    #[error("entry {entry:?} lies behind a symbolic link, which is refused: it could lead outside")]
    ThroughSymlink {
        /// Its name.
        entry: String,
    },
    /// An entry lies below one that is not a directory.
    #[error("entry {entry:?} lies below an entry that is not a directory")]
    NotDirectory {
        /// Its name.
        entry: String,
    },
    /// The root is not a directory.
    #[error("entry {entry:?} makes the root something else than a directory")]
    Root {
        /// Its name.
        entry: String,
    },
    /// A hard link leads nowhere, outside, or to a directory.
    #[error("entry {entry:?} is a hard link to {target:?}, which {reason}")]
    Link {
        /// Its name.
        entry: String,
        /// What it links to.
        target: String,
        /// Why it is refused.
        reason: LinkReason,
    },
    /// A whiteout names nothing that can be hidden.
    #[error("entry {entry:?} is not a valid whiteout")]
    Whiteout {
        /// Its name.
        entry: String,
    },
    /// A character device 0:0.
    #[error("entry {entry:?} is a device 0:0, which a union mount takes for a whiteout")]
    DeviceZero {
        /// Its name.
        entry: String,
    },
    /// An extended attribute that steers the union mount.
    #[error("entry {entry:?} has the extended attribute {attribute:?}, which is refused: it steers the union mount")]
    Steering {
        /// Its name.
        entry: String,
        /// The attribute.
        attribute: String,
    },
    /// More entries than allowed.
    #[error("layer has more than {entries_max} entries, the limit")]
    TooManyEntries {
        /// The limit.
        entries_max: u64,
    },
    /// More bytes than allowed, or than there is space.
    #[error("layer needs more than {bytes_max} bytes, the limit or the free space of the store (at entry {entry:?})")]
    TooLarge {
        /// The entry that was too much.
        entry: String,
        /// The limit.
        bytes_max: u64,
    },
    /// The file system refused an entry.
    #[error("entry {entry:?} cannot be written")]
    Write {
        /// Its name.
        entry: String,
        /// What the file system said.
        source: io::Error,
    },
}

/// Why a hard link is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LinkReason {
    /// The target's name is refused.
    #[error("has a name that is refused ({0})")]
    Name(NameError),
    /// Neither this layer nor one below has the target.
    #[error("is neither in this layer nor in one below it")]
    Missing,
    /// The target is a directory.
    #[error("is a directory")]
    Directory,
    /// The target lies behind a symbolic link.
    #[error("lies behind a symbolic link")]
    ThroughSymlink,
}

/// What a layer came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of data in its files.
    pub bytes: u64,
    /// What people should know, such as attributes that could not be kept.
    pub notes: Vec<String>,
}

/// Notes kept for one layer; the rest is counted.
const NOTES_MAX: usize = 20;
/// Free space of the store that no import may take.
const RESERVE_BYTES: u64 = 64 << 20;

/// A directory that is being filled with one layer.
struct Writer<'a> {
    tree: Beneath,
    lowers: &'a Lowers,
    entries_max: u64,
    bytes_max: u64,
    entries: u64,
    bytes: u64,
    /// Times of the directories made or described; set at the end, as every entry made in them changes them.
    times: BTreeMap<Vec<u8>, (Stamp, Stamp)>,
    whiteouts: BTreeSet<Vec<u8>>,
    opaques: BTreeSet<Vec<u8>>,
    /// Files taken from a layer below because a hard link names them.
    copied_up: BTreeSet<Vec<u8>>,
    notes: Vec<String>,
    notes_left_out: u64,
}

/// Applies the archive `input` to the empty directory `directory`, over the layers `lowers` (newest first).
/// Reads the archive up to its end mark only: the caller drains the rest and checks digests.
///
/// # Errors
/// When an entry is refused or cannot be written. The directory then holds a part; the caller removes it.
pub(crate) fn apply<R: Read>(
    input: &mut HashReader<R>,
    directory: &Path,
    lowers: &Lowers,
    limits: &Limits,
) -> Result<Applied, ApplyError> {
    let mut writer = Writer::open(directory, lowers, limits)?;
    let mut archive = Tar::new(input);
    while let Some(member) = archive.next_member()? {
        writer.count(&member, archive.get_ref().passed())?;
        writer.entry(&member, &mut archive)?;
    }
    writer.finish()
}

impl<'a> Writer<'a> {
    fn open(directory: &Path, lowers: &'a Lowers, limits: &Limits) -> Result<Self, ApplyError> {
        let tree = Beneath::open(directory).map_err(|source| write_error(b".", source))?;
        let space = fs::fstatvfs(tree.root()).map_err(|error| write_error(b".", error.into()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize).saturating_sub(RESERVE_BYTES);
        Ok(Self {
            tree,
            lowers,
            entries_max: limits.entries_max,
            bytes_max: limits.bytes_max.min(free),
            entries: 0,
            bytes: 0,
            times: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaques: BTreeSet::new(),
            copied_up: BTreeSet::new(),
            notes: Vec::new(),
            notes_left_out: 0,
        })
    }

    /// Counts an entry against the bounds, before anything of it is written.
    fn count(&mut self, member: &Member, archive_bytes: u64) -> Result<(), ApplyError> {
        self.entries += 1;
        if self.entries > self.entries_max {
            return Err(ApplyError::TooManyEntries { entries_max: self.entries_max });
        }
        let stored = match &member.extents {
            Some(extents) => extents.iter().map(|extent| extent.length).sum(),
            None => member.size,
        };
        self.bytes = self.bytes.saturating_add(stored);
        if self.bytes > self.bytes_max || archive_bytes > self.bytes_max.saturating_mul(2) {
            return Err(ApplyError::TooLarge { entry: lossy(&member.name), bytes_max: self.bytes_max });
        }
        Ok(())
    }

    fn note(&mut self, text: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(text);
        } else {
            self.notes_left_out += 1;
        }
    }

    /// Opens the directory `path`, making what is missing on the way with the attributes it has in the layers below.
    fn directory(&mut self, path: &[u8], entry: &[u8]) -> Result<Rc<OwnedFd>, ApplyError> {
        match self.tree.directory(path).map_err(|source| write_error(entry, source))? {
            Opened::Directory(directory) => return Ok(directory),
            Opened::Missing => {}
            Opened::Symlink => return Err(ApplyError::ThroughSymlink { entry: lossy(entry) }),
            Opened::NotDirectory => return Err(self.not_directory(path, entry)),
        }
        for part in ancestors(path).chain([path]) {
            self.implicit_directory(part).map_err(|source| write_error(entry, source))?;
        }
        match self.tree.directory(path).map_err(|source| write_error(entry, source))? {
            Opened::Directory(directory) => Ok(directory),
            Opened::Missing | Opened::Symlink | Opened::NotDirectory => {
                Err(ApplyError::NotDirectory { entry: lossy(entry) })
            }
        }
    }

    /// Tells a symbolic link at the end of a path from a file.
    fn not_directory(&mut self, path: &[u8], entry: &[u8]) -> ApplyError {
        match self.tree.stat(path) {
            Ok(Some(stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                ApplyError::ThroughSymlink { entry: lossy(entry) }
            }
            Ok(_) => ApplyError::NotDirectory { entry: lossy(entry) },
            Err(source) => write_error(entry, source),
        }
    }

    /// Makes a directory that no entry has described so far, unless it is there.
    fn implicit_directory(&mut self, path: &[u8]) -> io::Result<()> {
        let (parent, name) = split(path);
        let Opened::Directory(parent) = self.tree.directory(parent)? else {
            return Ok(());
        };
        if stat(parent.as_fd(), name)?.is_some() {
            return Ok(());
        }
        fs::mkdirat(&*parent, name, Mode::RWXU)?;
        let attributes = self.inherited(path)?;
        attributes.apply(parent.as_fd(), name, FileType::Directory)?;
        self.times.insert(path.to_vec(), (attributes.mtime, attributes.atime));
        Ok(())
    }

    /// Returns the attributes a directory has in the layers below, or those of a directory nobody described.
    fn inherited(&self, path: &[u8]) -> io::Result<Attributes> {
        match self.lowers.find(path)? {
            Some(found) if found.kind == FileType::Directory => found.attributes(),
            Some(_) | None => Ok(Attributes { mode: 0o755, ..Attributes::default() }),
        }
    }

    /// Removes what is at `path`, with what is remembered about it.
    fn clear(&mut self, parent: &OwnedFd, path: &[u8]) -> io::Result<()> {
        self.tree.forget();
        remove(parent.as_fd(), split(path).1)?;
        self.times.remove(path);
        self.copied_up.remove(path);
        // Everything below sorts between `path/` and `path0`, the character after the slash.
        let (from, to) = ([path, b"/"].concat(), [path, b"0"].concat());
        let times: Vec<_> = self.times.range(from.clone()..to.clone()).map(|(path, _)| path.clone()).collect();
        let copied_up: Vec<_> = self.copied_up.range(from..to).cloned().collect();
        for path in times {
            self.times.remove(&path);
        }
        for path in copied_up {
            self.copied_up.remove(&path);
        }
        Ok(())
    }
}

fn write_error(entry: &[u8], source: io::Error) -> ApplyError {
    ApplyError::Write { entry: lossy(entry), source }
}
