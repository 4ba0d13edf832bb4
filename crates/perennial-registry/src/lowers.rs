//! The layers below the one being written, seen as one tree, the way a union mount would show them.
//!
//! Needed for what a layer takes for granted: directories it does not describe, files it links to, and names it hides.

use crate::attributes::{Attributes, is_opaque, redirect};
use crate::import::LayerTree;
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::rc::Rc;

/// What a path is in the merged tree.
pub(crate) struct Found {
    parent: Rc<OwnedFd>,
    name: Vec<u8>,
    data: Option<Rc<OwnedFd>>,
    pub(crate) stat: Stat,
    pub(crate) kind: FileType,
}

impl Found {
    /// Reads its attributes.
    pub(crate) fn attributes(&self) -> io::Result<Attributes> {
        Attributes::read(self.parent.as_fd(), &self.name, &self.stat)
    }

    /// Opens a regular file for reading: the one that has its content.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        if let Some(data) = &self.data
            && let Some(redirect) = redirect(self.parent.as_fd(), &self.name)?
        {
            // The store writes such names itself, absolute from the directory of data.
            let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
            return Ok(fs::openat2(&**data, redirect.as_slice(), flags, Mode::empty(), how)?);
        }
        Ok(fs::openat(&*self.parent, self.name.as_slice(), flags, Mode::empty())?)
    }

    /// Reads the target of a symbolic link.
    pub(crate) fn target(&self) -> io::Result<Vec<u8>> {
        Ok(fs::readlinkat(&*self.parent, self.name.as_slice(), Vec::new())?.into_bytes())
    }
}

/// Trees of layers, newest first.
#[derive(Debug, Default)]
pub(crate) struct Lowers {
    roots: Vec<Rc<OwnedFd>>,
    data: Option<Rc<OwnedFd>>,
}

/// A directory of the merged tree: the directories of the layers that make it up, newest first.
type Merged = Vec<Rc<OwnedFd>>;

impl Lowers {
    /// Opens the trees, newest first; `data` is where files have their content that say so.
    pub(crate) fn open(trees: &[LayerTree], data: Option<&Path>) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open_path = |path: &Path| Ok(Rc::new(fs::openat(CWD, path, flags, Mode::empty())?));
        let open = |tree: &LayerTree| match tree {
            LayerTree::Dir(path) => open_path(path),
            LayerTree::Open(root) => Ok(Rc::new(fs::openat(&**root, ".", flags, Mode::empty())?)),
        };
        Ok(Self { roots: trees.iter().map(open).collect::<io::Result<_>>()?, data: data.map(open_path).transpose()? })
    }

    /// Returns what a path is, or `None` where no layer has it. An empty path is the root.
    pub(crate) fn find(&self, path: &[u8]) -> io::Result<Option<Found>> {
        let mut here = self.roots.clone();
        let Some(first) = here.first() else {
            return Ok(None);
        };
        let stat = fs::statat(&**first, ".", AtFlags::empty())?;
        let (name, kind, data) = (b".".to_vec(), FileType::Directory, None);
        let mut found = Found { parent: first.clone(), name, data, stat, kind };
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let (Some(next), below) = step(&here, name)? else {
                return Ok(None);
            };
            found = Found { data: self.data.clone(), ..next };
            here = below;
        }
        Ok(Some(found))
    }

    /// Returns the names in the merged root, with their types.
    pub(crate) fn root_names(&self) -> io::Result<BTreeMap<Vec<u8>, FileType>> {
        let mut names = BTreeMap::new();
        for root in &self.roots {
            let root = fs::openat(&**root, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            for entry in Dir::read_from(&root)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if name != b"." && name != b".." && !names.contains_key(&name) {
                    let stat = fs::statat(&root, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
                    let kind =
                        if is_whiteout(&stat) { FileType::Unknown } else { FileType::from_raw_mode(stat.st_mode) };
                    names.insert(name, kind);
                }
            }
        }
        names.retain(|_, kind| *kind != FileType::Unknown);
        Ok(names)
    }
}

/// Returns whether a file is a whiteout: a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Looks a name up in a merged directory, as overlayfs does: newest first, until a whiteout, a file, or an opaque
/// directory ends the search.
fn step(here: &Merged, name: &[u8]) -> io::Result<(Option<Found>, Merged)> {
    let mut found: Option<Found> = None;
    let mut below = Merged::new();
    for directory in here {
        let stat = match fs::statat(&**directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => continue,
            Err(error) => return Err(error.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_directory = kind == FileType::Directory;
        if is_whiteout(&stat) || (found.is_some() && !is_directory) {
            break;
        }
        if found.is_none() {
            found = Some(Found { parent: directory.clone(), name: name.to_vec(), data: None, stat, kind });
        }
        if !is_directory {
            break;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = fs::openat(&**directory, name, flags, Mode::empty())?;
        let ends_here = is_opaque(&next)?;
        below.push(Rc::new(next));
        if ends_here {
            break;
        }
    }
    Ok((found, below))
}
