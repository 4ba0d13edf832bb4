//! What can go wrong with a tree, always with the path it went wrong at.

use rustix::io::Errno;
use std::ffi::CStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A path in an error or a report: bytes as found, escaped and shortened for display.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryPath(Vec<u8>);

/// Longest path shown in full; a hostile tree has paths of megabytes.
const SHOWN_BYTES_MAX: usize = 400;

impl EntryPath {
    /// Makes a path from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Returns the bytes as they are in the tree.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<&Path> for EntryPath {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let half = SHOWN_BYTES_MAX / 2;
        let shortened = self.0.len() > SHOWN_BYTES_MAX;
        let (head, tail) = if shortened {
            (self.0.get(..half), self.0.get(self.0.len().saturating_sub(half)..))
        } else {
            (Some(self.0.as_slice()), None)
        };
        for chunk in head.unwrap_or_default().utf8_chunks() {
            write!(f, "{}", chunk.valid().escape_debug())?;
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        match tail {
            Some(tail) => write!(f, "…{}", tail.escape_ascii()),
            None if self.0.is_empty() => f.write_str("the root of the tree"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Why an operation on a tree failed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// A system call failed.
    #[error("cannot {action} {path}")]
    System {
        /// What was to be done, as a verb.
        action: &'static str,
        /// The entry.
        path: EntryPath,
        /// The kernel's answer.
        source: Errno,
    },
    /// An attribute could not be read or set.
    #[error("cannot {action} {attribute} of {path}")]
    Attribute {
        /// `read`, `set` or `remove`.
        action: &'static str,
        /// Name of the attribute.
        attribute: String,
        /// The entry.
        path: EntryPath,
        /// The kernel's answer.
        source: Errno,
    },
    /// The entry carries something that the store's mount options cannot produce and that it does not understand.
    #[error("{path} carries {attribute}, which a layer of this store may not carry")]
    Refused {
        /// The attribute, with its value where that matters.
        attribute: String,
        /// The entry.
        path: EntryPath,
    },
    /// A directory belongs to another file system, so something is still mounted in the tree.
    #[error("{path} is on another file system than the tree it is in")]
    OtherFilesystem {
        /// The directory.
        path: EntryPath,
    },
    /// A directory was not where it was left; somebody else changes the tree.
    #[error("{path} was moved while the tree was being walked")]
    Moved {
        /// The directory.
        path: EntryPath,
    },
    /// The object that is the content of a file of a sealed layer cannot be had.
    #[error("the content of {path} is missing")]
    Content {
        /// The file.
        path: EntryPath,
        /// What is wrong with the object.
        source: Box<crate::objects::ObjectError>,
    },
    /// A file became shorter while it was being copied.
    #[error("{path} became shorter while it was being copied")]
    Shortened {
        /// The file.
        path: EntryPath,
    },
}

impl TreeError {
    /// Makes an error of a system call.
    #[must_use]
    pub const fn system(action: &'static str, path: EntryPath, source: Errno) -> Self {
        Self::System { action, path, source }
    }

    /// Returns the kernel's answer where there is one, for callers that treat a full disk apart.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Content { source, .. } => source.errno(),
            Self::System { source, .. } | Self::Attribute { source, .. } => Some(*source),
            Self::Refused { .. } | Self::OtherFilesystem { .. } | Self::Moved { .. } | Self::Shortened { .. } => None,
        }
    }
}

/// The path of the current directory of a walk, kept in one buffer.
#[derive(Debug, Default, Clone)]
pub struct PathTrail {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl PathTrail {
    /// Goes into a directory.
    pub fn push(&mut self, name: &CStr) {
        self.lengths.push(self.bytes.len());
        if !self.bytes.is_empty() {
            self.bytes.push(b'/');
        }
        self.bytes.extend_from_slice(name.to_bytes());
    }

    /// Goes back to the parent.
    pub fn pop(&mut self) {
        self.bytes.truncate(self.lengths.pop().unwrap_or(0));
    }

    /// Returns the directory's own path, empty for the root.
    #[must_use]
    pub fn here(&self) -> EntryPath {
        EntryPath(self.bytes.clone())
    }

    /// Returns the bytes of the directory's own path.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the directory's own name, empty for the root.
    #[must_use]
    pub fn last(&self) -> &[u8] {
        let from = self.lengths.last().copied().unwrap_or(0);
        let name = self.bytes.get(from..).unwrap_or_default();
        name.strip_prefix(b"/").unwrap_or(name)
    }

    /// Returns the path of an entry of the directory.
    #[must_use]
    pub fn join(&self, name: &CStr) -> EntryPath {
        let mut bytes = Vec::with_capacity(self.bytes.len().saturating_add(name.count_bytes()).saturating_add(1));
        bytes.extend_from_slice(&self.bytes);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.to_bytes());
        EntryPath(bytes)
    }
}
