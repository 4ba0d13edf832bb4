//! A directory that is being filled, and the only way to reach into it: by descriptor, never through a symbolic link.
//!
//! Every path is resolved by `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, and every operation names one
//! entry of an open directory. So nothing an archive says, and no link it makes, can reach outside.

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

/// Longest path in an archive; `openat2` takes no longer one (`PATH_MAX` with its NUL).
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// Longest name (`NAME_MAX`).
const NAME_BYTES_MAX: usize = 255;

/// Why a name in an archive is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It is empty.
    #[error("it is empty")]
    Empty,
    /// It has a component `..`.
    #[error("it has a component `..`, which could lead outside")]
    DotDot,
    /// It holds a NUL byte.
    #[error("it holds a NUL byte")]
    Nul,
    /// It is too long.
    #[error("it is longer than 4095 bytes, or one component is longer than 255")]
    TooLong,
}

/// Returns a name of an archive as a path below the root: components joined by `/`; empty for the root itself.
/// Absolute names are taken as relative; `.` and empty components mean nothing.
pub(crate) fn entry_path(name: &[u8]) -> Result<Vec<u8>, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.contains(&0) {
        return Err(NameError::Nul);
    }
    let mut path: Vec<u8> = Vec::with_capacity(name.len());
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(NameError::DotDot),
            // A whiteout is never made under its own name, which may be longer than that of any file.
            component if component.strip_prefix(b".wh.").unwrap_or(component).len() > NAME_BYTES_MAX => {
                return Err(NameError::TooLong);
            }
            component => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(component);
            }
        }
    }
    if path.len() > PATH_BYTES_MAX { Err(NameError::TooLong) } else { Ok(path) }
}

/// Splits a path into the path of its directory and its last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (&[], path),
    }
}

/// Returns the paths of all directories above a path, the outermost first, without the root.
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    ends.map(|(at, _)| path.get(..at).unwrap_or_default())
}

/// What opening a directory beneath the root came to.
pub(crate) enum Opened {
    /// It is there.
    Directory(Rc<OwnedFd>),
    /// A component is missing.
    Missing,
    /// A component is a symbolic link.
    Symlink,
    /// A component is neither a directory nor a link.
    NotDirectory,
}

/// The directory.
pub(crate) struct Beneath {
    root: Rc<OwnedFd>,
    /// The directory opened last: archives list entries of one directory together.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Beneath {
    /// Opens the directory, which must exist.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { root: Rc::new(fs::openat(CWD, directory, flags, Mode::empty())?), last: None })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory by its path; an empty path is the root.
    pub(crate) fn directory(&mut self, path: &[u8]) -> io::Result<Opened> {
        if path.is_empty() {
            return Ok(Opened::Directory(self.root.clone()));
        }
        if let Some((_, directory)) = self.last.as_ref().filter(|(last, _)| last == path) {
            return Ok(Opened::Directory(directory.clone()));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        match fs::openat2(&*self.root, path, flags, Mode::empty(), resolve) {
            Ok(directory) => {
                let directory = Rc::new(directory);
                self.last = Some((path.to_vec(), directory.clone()));
                Ok(Opened::Directory(directory))
            }
            Err(Errno::NOENT) => Ok(Opened::Missing),
            Err(Errno::LOOP) => Ok(Opened::Symlink),
            // The last component may be a link as well: `O_DIRECTORY` is checked before the link is refused.
            Err(Errno::NOTDIR) => Ok(Opened::NotDirectory),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns what is at a path, or `None` where nothing is or its directory cannot be reached.
    pub(crate) fn stat(&mut self, path: &[u8]) -> io::Result<Option<Stat>> {
        if path.is_empty() {
            return Ok(Some(fs::fstat(&*self.root)?));
        }
        let (parent, name) = split(path);
        match self.directory(parent)? {
            Opened::Directory(parent) => stat(parent.as_fd(), name),
            Opened::Missing | Opened::Symlink | Opened::NotDirectory => Ok(None),
        }
    }

    /// Forgets the cached directory; needed before directories are removed.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}

/// Returns what `name` in `parent` is, without following it.
pub(crate) fn stat(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Stat>> {
    match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes `name` in `parent` with everything below it. Directories are climbed by `..`, so that neither the depth of
/// the tree nor the number of open files is a limit.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut names = vec![name.to_vec()];
    let mut here = fs::openat(parent, name, flags, Mode::empty())?;
    while let Some(current) = names.last().cloned() {
        match first_directory(&here)? {
            Some(child) => {
                here = fs::openat(&here, child.as_slice(), flags, Mode::empty())?;
                names.push(child);
            }
            None if names.len() == 1 => {
                names.pop();
                fs::unlinkat(parent, current.as_slice(), AtFlags::REMOVEDIR)?;
            }
            None => {
                here = fs::openat(&here, "..", flags, Mode::empty())?;
                fs::unlinkat(&here, current.as_slice(), AtFlags::REMOVEDIR)?;
                names.pop();
            }
        }
    }
    Ok(())
}

/// Removes everything in a directory but its directories, and returns the first of those.
fn first_directory(directory: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            FileType::RegularFile
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => false,
        };
        if is_directory {
            return Ok(Some(name.to_bytes().to_vec()));
        }
        fs::unlinkat(directory, name, AtFlags::empty())?;
    }
    Ok(None)
}
