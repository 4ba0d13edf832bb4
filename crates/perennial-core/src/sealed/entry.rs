//! What a sealed tree is made of.
//!
//! A tree is a sequence of [`Directory`] blocks in *canonical order*: depth first, a directory before the directories
//! in it, and the names in a directory by their bytes. So several trees can be read side by side in one pass each, and
//! equal trees have equal bytes.
//!
//! ```text
//!   /            a.txt (file)   bin (dir)   usr (dir)
//!   /bin         sh (link 1)
//!   /usr         lib (dir)
//!   /usr/lib     libc.so (file)
//! ```

use super::object::ObjectId;
use alloc::vec::Vec;

/// Largest content kept in the metadata itself, in bytes: a reference to an object takes about as much.
pub const INLINE_BYTES_MAX: usize = 128;
/// Longest name (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest target of a symbolic link (`PATH_MAX` without the NUL).
pub const TARGET_BYTES_MAX: usize = 4095;
/// Longest name and longest value of an extended attribute (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest value of an extended attribute (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_BYTES_MAX: usize = 65536;

/// A time of last modification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds in the second, below 10⁹.
    pub nanoseconds: u32,
}

/// Metadata of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// Permissions with setuid, setgid and sticky bits: `st_mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes with their full names (bytes without NUL), sorted by name, each name once. POSIX ACLs and
    /// file capabilities are among them; overlayfs' private `trusted.overlay.opaque`, `metacopy`, `redirect`, `origin`,
    /// `uuid`, `impure` and `nlink` are not: what they say is said by the types here.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Content of a regular file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Content {
    /// At most [`INLINE_BYTES_MAX`] bytes, kept here.
    Inline(Vec<u8>),
    /// An object of more bytes than that.
    Object {
        /// Its name.
        id: ObjectId,
        /// Its length, in bytes.
        size: u64,
    },
}

impl Content {
    /// Returns the length, in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Object { size, .. } => *size,
        }
    }
}

/// What a name stands for, apart from its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    /// A regular file.
    File(Content),
    /// A symbolic link and its target, as bytes without NUL.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number. 0:0 would be a whiteout and is never a device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A non-directory with its metadata.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Inode {
    /// Metadata.
    pub attributes: Attributes,
    /// What it is.
    pub node: Node,
    /// Number of the group of hard links it belongs to, counted from 0 in the order in which groups first appear;
    /// `None` where this is its only name in the tree.
    pub links: Option<u32>,
}

/// What a directory says about a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Item {
    /// A directory; its block follows later in the order.
    Directory,
    /// A non-directory; the first of its names where it has several.
    Inode(Inode),
    /// One more name of the inode with this number of a group of hard links.
    Link(u32),
    /// The name was removed: what layers below have under it is hidden. Its own metadata means nothing.
    Whiteout,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The name: 1 to [`NAME_BYTES_MAX`] bytes, without NUL and `/`, neither `.` nor `..`.
    pub name: Vec<u8>,
    /// What it stands for.
    pub item: Item,
}

/// One directory of a tree: its own metadata and the names in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Directory {
    /// Names on the way from the root; empty for the root itself.
    pub path: Vec<Vec<u8>>,
    /// Metadata.
    pub attributes: Attributes,
    /// Whether it hides what layers below have in it.
    pub opaque: bool,
    /// Names in it, sorted by their bytes, each once.
    pub entries: Vec<Entry>,
}

/// Something that yields the directories of one tree in canonical order.
pub trait DirectorySource {
    /// Why it could not go on.
    type Error;

    /// Returns the next directory; `None` after the last.
    ///
    /// # Errors
    /// Where the tree cannot be read on; nothing more is to be asked of it then.
    fn next_directory(&mut self) -> Result<Option<Directory>, Self::Error>;
}
