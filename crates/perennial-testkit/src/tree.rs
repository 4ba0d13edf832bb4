//! A complete, order-stable listing of a tree, and the differences of two listings.
//!
//! The listing holds everything the kernel shows of a tree but access and change times: kinds, modes, owners, sizes,
//! nanosecond mtimes (directories and symlinks too), contents, targets, device numbers, every xattr, which names
//! share an inode, holes, and inode flags. Two trees with equal listings are equal for every program that does not
//! look at inode numbers.
//!
//! It walks by file descriptors and never follows a symlink, so neither long paths nor hostile trees disturb it.
//! What is mounted below the tree is listed as [`Kind::Mount`] and not entered.

use crate::bytes::{Bytes, hex};
use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fmt;
use std::path::Path;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device; 0:0 in a layer is a whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// Something else is mounted here; it is not entered and its attributes are not listed.
    Mount,
}

/// Everything the kernel shows of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file or of a symlink's target; 0 for others.
    pub size: u64,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Digest of a file's contents, equal for equal bytes whatever the holes (see [`TreeListing`]).
    pub content: Option<String>,
    /// Where a symlink points.
    pub target: Option<Bytes>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Extended attributes; ACLs and file capabilities are among them.
    pub xattrs: BTreeMap<Bytes, Bytes>,
    /// Every path of the tree that is this very inode, itself included, sorted; empty if it is the only one.
    pub links: Vec<Bytes>,
    /// Bytes allocated for a file.
    pub allocated: u64,
    /// Inode flags of a file or directory that a user can set, out of [`FLAGS_LISTED`].
    pub flags: u32,
}

/// Inode flags that are listed; the others say how the file system stores the inode.
pub const FLAGS_LISTED: IFlags = IFlags::IMMUTABLE
    .union(IFlags::APPEND)
    .union(IFlags::NODUMP)
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC);

/// Allocated bytes two equal files may differ by before their holes count as different: file systems round
/// allocation up and allocate ahead.
const ALLOCATION_SLACK: u64 = 128 * 1024;

/// Directories held open at once; ancestors further up are opened again through `..` on the way back.
const OPEN_DIRS_MAX: usize = 64;

/// A complete listing of a tree, by path relative to its root; the root itself is the empty path.
///
/// The digest of a file's contents is the SHA-256 over its 4 KiB blocks that hold a byte other than zero, each after
/// its offset, and its size: so holes are not read, and a hole equals the zeros it stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeListing {
    /// The entries.
    pub entries: BTreeMap<Bytes, Entry>,
}

/// Which xattrs of overlayfs's own are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayXattrs {
    /// None that a mounted overlay would hide; in a mounted overlay, all that it shows.
    AsMerged,
    /// All of them: for looking at layers.
    All,
}

impl TreeListing {
    /// Lists the tree at `path`.
    pub fn of(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .with_context(|| format!("cannot open tree {}", path.display()))?;
        Self::of_fd(fd.as_fd()).with_context(|| format!("cannot list tree {}", path.display()))
    }

    /// Lists the tree whose root is the directory `root`, which may be a mount that is attached nowhere.
    pub fn of_fd(root: BorrowedFd<'_>) -> Result<Self> {
        Self::with(root, OverlayXattrs::AsMerged)
    }

    /// Lists the tree whose root is the directory `root`, with a choice of overlayfs's own xattrs.
    pub fn with(root: BorrowedFd<'_>, overlay: OverlayXattrs) -> Result<Self> {
        let merged = rustix::fs::fstatfs(root)?.f_type == OVERLAYFS_MAGIC;
        let hide_private = overlay == OverlayXattrs::AsMerged && !merged;
        let root = rustix::fs::openat(root, c".", DIR_FLAGS, Mode::empty())?;
        let stat = statx(root.as_fd(), c"", AtFlags::EMPTY_PATH)?;
        let mut lister = Lister { hide_private, mount: stat.stx_mnt_id, ..Lister::default() };
        let entry = lister.entry(At { dir: root.as_fd(), name: c".", path: b"" }, &stat)?;
        lister.listing.entries.insert(Bytes::default(), entry.0);
        lister.walk(root)?;
        Ok(lister.finish())
    }

    /// Returns the listing of the part below `path`, as if `path` were the root.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        let prefix = [path.as_bytes(), b"/"].concat();
        let strip = |full: &Bytes| {
            if full.0 == path.as_bytes() {
                Some(Bytes::default())
            } else {
                full.strip_prefix(&*prefix).map(Bytes::from)
            }
        };
        let mut entries = BTreeMap::new();
        for (full, entry) in &self.entries {
            if let Some(rest) = strip(full) {
                let links: Vec<Bytes> = entry.links.iter().filter_map(strip).collect();
                let links = if links.len() > 1 { links } else { Vec::new() };
                entries.insert(rest, Entry { links, ..entry.clone() });
            }
        }
        Self { entries }
    }

    /// Returns the listing without the entries at and below `path`.
    #[must_use]
    pub fn without(mut self, path: &str) -> Self {
        let prefix = [path.as_bytes(), b"/"].concat();
        self.entries.retain(|full, _| full.0 != path.as_bytes() && !full.starts_with(&prefix));
        self
    }
}

/// `f_type` of overlayfs (`linux/magic.h`).
const OVERLAYFS_MAGIC: rustix::fs::FsWord = 0x794c_7630;
const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Names after `trusted.overlay.` that overlayfs keeps for itself and hides in the merged view.
const PRIVATE_PREFIX: &[u8] = b"trusted.overlay.";

fn statx(dir: BorrowedFd<'_>, name: &std::ffi::CStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// One entry on the way: its directory, its name there, and its path in the tree.
struct At<'a> {
    dir: BorrowedFd<'a>,
    name: &'a std::ffi::CStr,
    path: &'a [u8],
}

/// An entry that stands for the others of its inode, by device and inode number.
type InodeKey = (u32, u32, u64);

#[derive(Default)]
struct Lister {
    hide_private: bool,
    mount: u64,
    listing: TreeListing,
    inodes: BTreeMap<InodeKey, Vec<Bytes>>,
}

/// A directory being walked; the descriptor is closed while the walk is far below it.
struct Frame {
    fd: Option<OwnedFd>,
    names: std::vec::IntoIter<CString>,
    path_len: usize,
}

impl Frame {
    fn open(fd: OwnedFd, path_len: usize) -> Result<Self> {
        let mut names = Vec::new();
        for item in Dir::read_from(&fd)? {
            let item = item?;
            if !matches!(item.file_name().to_bytes(), b"." | b"..") {
                names.push(item.file_name().to_owned());
            }
        }
        names.sort();
        Ok(Self { fd: Some(fd), names: names.into_iter(), path_len })
    }
}

impl Lister {
    fn walk(&mut self, root: OwnedFd) -> Result<()> {
        let mut path = Vec::new();
        let mut frames = vec![Frame::open(root, 0)?];
        while let Some(frame) = frames.last_mut() {
            path.truncate(frame.path_len);
            let Some(name) = frame.names.next() else {
                let done = frames.pop().and_then(|frame| frame.fd);
                if let (Some(parent), Some(done)) = (frames.last_mut(), done)
                    && parent.fd.is_none()
                {
                    parent.fd = Some(rustix::fs::openat(done, c"..", DIR_FLAGS, Mode::empty())?);
                }
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            let dir = frame.fd.as_ref().ok_or_else(|| anyhow!("a directory on the way was closed"))?;
            let at = At { dir: dir.as_fd(), name: &name, path: &path };
            if let Some(below) = self.visit(&at).with_context(|| format!("at {}", Bytes::from(&*path)))? {
                frames.push(Frame::open(below, path.len())?);
                if let Some(far) = frames.len().checked_sub(OPEN_DIRS_MAX).and_then(|n| frames.get_mut(n)) {
                    far.fd = None;
                }
            }
        }
        Ok(())
    }

    /// Lists one entry; returns it opened if it is a directory to walk.
    fn visit(&mut self, at: &At<'_>) -> Result<Option<OwnedFd>> {
        let stat = statx(at.dir, at.name, AtFlags::empty())?;
        let (entry, fd) = self.entry(At { ..*at }, &stat)?;
        let path = Bytes::from(at.path);
        if stat.stx_nlink > 1 && !matches!(entry.kind, Kind::Dir | Kind::Mount) {
            let key = (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
            self.inodes.entry(key).or_default().push(path.clone());
        }
        let dir = entry.kind == Kind::Dir;
        self.listing.entries.insert(path, entry);
        Ok(fd.filter(|_| dir))
    }

    fn entry(&self, at: At<'_>, stat: &Statx) -> Result<(Entry, Option<OwnedFd>)> {
        let mode = u32::from(stat.stx_mode);
        let kind = if stat.stx_mnt_id == self.mount { kind_of(mode)? } else { Kind::Mount };
        let mut entry = Entry {
            kind,
            mode: mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: 0,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            content: None,
            target: None,
            device: None,
            xattrs: BTreeMap::new(),
            links: Vec::new(),
            allocated: 0,
            flags: 0,
        };
        let mut opened = None;
        match kind {
            Kind::Mount => {
                return Ok((Entry { mode: 0, uid: 0, gid: 0, mtime: (0, 0), ..entry }, None));
            }
            Kind::Dir => {
                let fd = rustix::fs::openat(at.dir, at.name, DIR_FLAGS, Mode::empty())?;
                entry.flags = flags_of(fd.as_fd())?;
                opened = Some(fd);
            }
            Kind::File => {
                let fd = open_file(&at)?;
                entry.flags = flags_of(fd.as_fd())?;
                entry.size = stat.stx_size;
                entry.content = Some(digest_of(fd.as_fd(), stat.stx_size)?);
                // After it was opened: overlayfs does not know the blocks of a file in a data-only layer before.
                entry.allocated = u64::try_from(rustix::fs::fstat(&fd)?.st_blocks)?.saturating_mul(512);
            }
            Kind::Symlink => {
                entry.size = stat.stx_size;
                entry.target = Some(Bytes(rustix::fs::readlinkat(at.dir, at.name, Vec::new())?.into_bytes()));
            }
            Kind::CharDevice | Kind::BlockDevice => entry.device = Some((stat.stx_rdev_major, stat.stx_rdev_minor)),
            Kind::Fifo | Kind::Socket => {}
        }
        entry.xattrs = self.xattrs(&at)?;
        Ok((entry, opened))
    }

    fn xattrs(&self, at: &At<'_>) -> Result<BTreeMap<Bytes, Bytes>> {
        // Neither a symlink nor a socket can be opened, so every entry is reached through its directory's link.
        let mut path = format!("/proc/self/fd/{}/", at.dir.as_raw_fd()).into_bytes();
        path.extend_from_slice(at.name.to_bytes());
        let mut xattrs = BTreeMap::new();
        for name in xattr_names(&path)?.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            if !(self.hide_private && name.starts_with(PRIVATE_PREFIX)) {
                let value = xattr_value(&path, name).with_context(|| format!("xattr {}", Bytes::from(name)))?;
                xattrs.insert(Bytes::from(name), Bytes(value));
            }
        }
        Ok(xattrs)
    }

    fn finish(mut self) -> TreeListing {
        for group in self.inodes.into_values().filter(|group| group.len() > 1) {
            let sorted: Vec<Bytes> = group.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
            for path in &sorted {
                if let Some(entry) = self.listing.entries.get_mut(path) {
                    entry.links.clone_from(&sorted);
                }
            }
        }
        self.listing
    }
}

fn kind_of(mode: u32) -> Result<Kind> {
    Ok(match FileType::from_raw_mode(mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => bail!("mode {mode:o} names no kind of file"),
    })
}

fn open_file(at: &At<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(at.dir, at.name, flags | OFlags::NOATIME, Mode::empty()) {
        // Only an owner may leave the access time alone.
        Err(Errno::PERM) => Ok(rustix::fs::openat(at.dir, at.name, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

fn flags_of(fd: BorrowedFd<'_>) -> Result<u32> {
    match rustix::fs::ioctl_getflags(fd) {
        Ok(flags) => Ok(flags.intersection(FLAGS_LISTED).bits()),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(0),
        Err(error) => Err(anyhow!(error).context("inode flags")),
    }
}

const BLOCK: usize = 4096;

fn digest_of(fd: BorrowedFd<'_>, size: u64) -> Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0_u8; 64 * BLOCK];
    let mut offset = 0;
    while offset < size {
        offset = match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
            Ok(data) => data - data % 4096,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(anyhow!(error).context("seek to data")),
        };
        let length = fill(fd, &mut buffer, offset)?;
        if length == 0 {
            break;
        }
        for block in buffer.get(..length).unwrap_or_default().chunks(BLOCK) {
            if block.iter().any(|&byte| byte != 0) {
                hash.update(offset.to_le_bytes());
                hash.update(block);
            }
            offset += u64::try_from(block.len())?;
        }
    }
    hash.update(size.to_le_bytes());
    Ok(hex(&hash.finalize()))
}

/// Reads until the buffer is full or the file ends, so that blocks are cut at fixed offsets.
fn fill(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match rustix::io::pread(fd, rest, offset + u64::try_from(length)?)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

fn xattr_names(path: &[u8]) -> Result<Vec<u8>> {
    read_growing(|buffer| rustix::fs::llistxattr(path, buffer)).or_else(|error| match error {
        Errno::OPNOTSUPP => Ok(Vec::new()),
        error => Err(anyhow!(error).context("names of xattrs")),
    })
}

fn xattr_value(path: &[u8], name: &[u8]) -> Result<Vec<u8>> {
    Ok(read_growing(|buffer| rustix::fs::lgetxattr(path, name, buffer))?)
}

/// Bytes a list of xattr names or a value can have (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 65536;

fn read_growing(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 512];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < XATTR_BYTES_MAX => buffer.resize(XATTR_BYTES_MAX, 0),
            Err(error) => return Err(error),
        }
    }
}

/// The part of an entry in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Only the left tree has the entry.
    Missing,
    /// Only the right tree has the entry.
    Extra,
    /// What the entry is.
    Kind,
    /// Permission bits.
    Mode,
    /// Owner.
    Uid,
    /// Group.
    Gid,
    /// Bytes of a file.
    Size,
    /// Time of the last modification.
    Mtime,
    /// A file's bytes.
    Content,
    /// A symlink's target.
    Target,
    /// A device's numbers.
    Device,
    /// The xattr of this name.
    Xattr(Bytes),
    /// The set of names of the inode.
    Links,
    /// How much of a file is holes.
    Holes,
    /// Inode flags.
    Flags,
}

/// One field of one path in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path relative to the roots; empty for the roots themselves.
    pub path: Bytes,
    /// What differs.
    pub field: Field,
    /// What the left tree has, for people.
    pub left: String,
    /// What the right tree has, for people.
    pub right: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, field, left, right } = self;
        match field {
            Field::Missing => write!(f, "/{path}: missing on the right ({left})"),
            Field::Extra => write!(f, "/{path}: only on the right ({right})"),
            Field::Xattr(name) => write!(f, "/{path}: xattr {name}: {left} | {right}"),
            Field::Kind
            | Field::Mode
            | Field::Uid
            | Field::Gid
            | Field::Size
            | Field::Mtime
            | Field::Content
            | Field::Target
            | Field::Device
            | Field::Links
            | Field::Holes
            | Field::Flags => write!(f, "/{path}: {field:?}: {left} | {right}"),
        }
    }
}

/// Returns every field of every path in which the listings differ, in the order of the paths.
#[must_use]
pub fn diff(left: &TreeListing, right: &TreeListing) -> Vec<Difference> {
    let paths: BTreeSet<&Bytes> = left.entries.keys().chain(right.entries.keys()).collect();
    let mut found = Vec::new();
    for path in paths {
        let mut put = |field, left, right| found.push(Difference { path: path.clone(), field, left, right });
        match (left.entries.get(path), right.entries.get(path)) {
            (Some(a), Some(b)) => diff_entry(a, b, &mut put),
            (Some(a), None) => put(Field::Missing, format!("{:?}", a.kind), String::new()),
            (None, Some(b)) => put(Field::Extra, String::new(), format!("{:?}", b.kind)),
            (None, None) => {}
        }
    }
    found
}

/// Fails with all differences, at most `LINES_MAX` of them in words, unless the listings are equal.
pub fn ensure_equal(left: &TreeListing, right: &TreeListing) -> Result<()> {
    ensure_equal_but(left, right, &|_| false)
}

/// Fails like [`ensure_equal`], but for the differences that are accepted.
pub fn ensure_equal_but(left: &TreeListing, right: &TreeListing, accepted: &dyn Fn(&Difference) -> bool) -> Result<()> {
    const LINES_MAX: usize = 60;
    let mut found = diff(left, right);
    found.retain(|difference| !accepted(difference));
    if found.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = found.iter().take(LINES_MAX).map(ToString::to_string).collect();
    bail!("{} differences:\n{}", found.len(), lines.join("\n"))
}

fn diff_entry(a: &Entry, b: &Entry, put: &mut dyn FnMut(Field, String, String)) {
    if a.kind != b.kind {
        return put(Field::Kind, format!("{:?}", a.kind), format!("{:?}", b.kind));
    }
    let mut text = |field, a: String, b: String| {
        if a != b {
            put(field, a, b);
        }
    };
    text(Field::Mode, format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    text(Field::Uid, a.uid.to_string(), b.uid.to_string());
    text(Field::Gid, a.gid.to_string(), b.gid.to_string());
    text(Field::Size, a.size.to_string(), b.size.to_string());
    text(Field::Mtime, format!("{}.{:09}", a.mtime.0, a.mtime.1), format!("{}.{:09}", b.mtime.0, b.mtime.1));
    text(Field::Content, format!("{:?}", a.content), format!("{:?}", b.content));
    text(Field::Device, format!("{:?}", a.device), format!("{:?}", b.device));
    text(Field::Flags, format!("{:#x}", a.flags), format!("{:#x}", b.flags));
    if a.target != b.target {
        put(Field::Target, format!("{:?}", a.target), format!("{:?}", b.target));
    }
    if a.links != b.links {
        put(Field::Links, format!("{:?}", a.links), format!("{:?}", b.links));
    }
    let names: BTreeSet<&Bytes> = a.xattrs.keys().chain(b.xattrs.keys()).collect();
    for name in names {
        let (x, y) = (a.xattrs.get(name), b.xattrs.get(name));
        if x != y {
            put(Field::Xattr(name.clone()), format!("{x:?}"), format!("{y:?}"));
        }
    }
    if a.size == b.size && holes(a).abs_diff(holes(b)) > ALLOCATION_SLACK + a.size / 16 {
        put(Field::Holes, format!("{} bytes allocated", a.allocated), format!("{} bytes allocated", b.allocated));
    }
}

fn holes(entry: &Entry) -> u64 {
    entry.size.saturating_sub(entry.allocated)
}
