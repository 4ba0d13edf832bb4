//! Reads the images this release writes, from anywhere in them, and believes nothing.

use super::super::canonical::is_xattr_name;
use super::super::entry::{
    Attributes, Content, INLINE_BYTES_MAX, NAME_BYTES_MAX, Node, TARGET_BYTES_MAX, Timestamp, XATTR_VALUE_BYTES_MAX,
};
use super::super::io::{ReadAt, fill_at};
use super::super::object::ObjectId;
use super::crc::crc32c;
use super::names::DIRENT_BYTES;
use super::raw::{self, format, mode, unpack_device};
use super::xattrs::{ENTRY_BYTES_MAX, HEAD_BYTES, PREFIXES, WHOLE};
use super::{BLOCK, INODE_BYTES, SLOT, SUPERBLOCK, Secret, up};
use crate::sealed::canonical::Fault;
use alloc::vec;
use alloc::vec::Vec;

/// Why an image could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError<E> {
    /// The bytes could not be read.
    #[error("the image cannot be read")]
    Source(#[source] E),
    /// The bytes are not what this release writes.
    #[error("this is not a metadata image of this release: {what} at byte {at}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where, in bytes from the start.
        at: u64,
    },
    /// The directories are no tree in canonical order.
    #[error(transparent)]
    Tree(#[from] Fault),
}

/// Number of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nid(pub(super) u64);

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// Whether it hides what layers below have in it.
        opaque: bool,
    },
    /// A name was removed.
    Whiteout,
    /// Anything else.
    Node(Node),
}

/// An inode of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Metadata.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind,
    /// Its link count.
    pub links: u32,
    pub(super) size: u64,
    /// Where its data is: whole blocks, and what follows the inode.
    pub(super) blocks_at: u64,
    pub(super) tail_at: Option<u64>,
}

/// A metadata image.
#[derive(Debug)]
pub struct Image<R> {
    bytes: R,
    size: u64,
    secret: Secret,
    root: Nid,
}

pub(super) type Read<T, R> = Result<T, ImageError<<R as ReadAt>::Error>>;

/// Extended attributes and what those of overlayfs said.
#[derive(Debug, Default)]
struct Said {
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    metacopy: bool,
    opaque: bool,
    redirect: Option<Vec<u8>>,
}

impl<R: ReadAt> Image<R> {
    /// Reads the superblock. Objects must be in the directory of this name.
    ///
    /// # Errors
    /// [`ImageError`] where this is no image of this release.
    pub fn open(bytes: R, secret: Secret) -> Read<Self, R> {
        let size = bytes.size().map_err(ImageError::Source)?;
        let mut image = Self { bytes, size, secret, root: Nid(0) };
        let first = image.read(0, BLOCK)?;
        let fault = |what| ImageError::Malformed { what, at: SUPERBLOCK };
        let start = usize::try_from(SUPERBLOCK).unwrap_or(usize::MAX);
        let mut block = first.get(start..).unwrap_or_default().to_vec();
        let fields = Fields(&block);
        if fields.u32(0) != raw::MAGIC {
            return Err(fault("another magic number"));
        }
        if fields.u32(8) != raw::COMPATIBLE || fields.u32(80) != raw::INCOMPATIBLE {
            return Err(fault("other features"));
        }
        if fields.get::<2>(12) != [raw::BLOCK_BITS, 0] || (fields.u32(40), fields.u32(44)) != (0, 0) {
            return Err(fault("another layout"));
        }
        if u64::from(fields.u32(36)).checked_mul(BLOCK) != Some(size) {
            return Err(fault("another length"));
        }
        let (checksum, root) = (fields.u32(4), u64::from(fields.u16(14)));
        block.iter_mut().skip(4).take(4).for_each(|byte| *byte = 0);
        if crc32c(&block) != checksum {
            return Err(fault("a checksum that does not fit"));
        }
        image.root = Nid(root);
        Ok(image)
    }

    /// Returns the root directory.
    #[must_use]
    pub const fn root(&self) -> Nid {
        self.root
    }

    /// Reads an inode: its metadata, and what it is. Contents kept in the image and targets of links come with it.
    ///
    /// # Errors
    /// [`ImageError`] where it cannot be read or is not what this release writes.
    pub fn inode(&self, nid: Nid) -> Read<Found, R> {
        let at = nid.0.saturating_mul(SLOT);
        let head = self.read(at, INODE_BYTES)?;
        let fault = |what| ImageError::Malformed { what, at };
        let fields = Fields(&head);
        let (form, type_and_mode, size, place) = (fields.u16(0), fields.u16(4), fields.u64(8), fields.u32(16));
        let count = u64::from(fields.u16(2));
        let xattr_bytes =
            if count == 0 { 0 } else { HEAD_BYTES.saturating_add(count.saturating_sub(1).saturating_mul(4)) };
        let xattrs_at = at.saturating_add(INODE_BYTES);
        let after = xattrs_at.saturating_add(xattr_bytes);
        let said = if count == 0 { Said::default() } else { self.said(xattrs_at, xattr_bytes)? };
        let (blocks_at, tail_at) = match form {
            format::PLAIN | format::CHUNKS => (u64::from(place).saturating_mul(BLOCK), None),
            format::INLINE => (u64::from(place).saturating_mul(BLOCK), Some(after)),
            _ => return Err(fault("an inode of another format")),
        };
        let attributes = Attributes {
            mode: u32::from(type_and_mode & !mode::TYPE),
            uid: fields.u32(24),
            gid: fields.u32(28),
            mtime: Timestamp { seconds: fields.u64(32).cast_signed(), nanoseconds: fields.u32(40) },
            xattrs: said.xattrs,
        };
        let kind = Kind::Directory { opaque: said.opaque };
        let mut found = Found { attributes, kind, links: fields.u32(44), size, blocks_at, tail_at };
        let is_directory = type_and_mode & mode::TYPE == mode::DIRECTORY;
        let object = said.redirect.map(|redirect| self.object(&redirect).ok_or_else(|| fault("another redirect")));
        let object = object.transpose()?.map(|id| Content::Object { id, size });
        let is_object = type_and_mode & mode::TYPE == mode::FILE && form == format::CHUNKS;
        if said.metacopy != object.is_some() || said.metacopy != is_object || said.opaque && !is_directory {
            return Err(fault("attributes of overlayfs in the wrong place"));
        }
        if !is_directory {
            found.kind = match object {
                Some(object) => Kind::Node(Node::File(object)),
                None => self.node(&found, type_and_mode, place)?.ok_or_else(|| fault("an inode of another type"))?,
            };
        }
        Ok(found)
    }

    fn node(&self, found: &Found, type_and_mode: u16, place: u32) -> Read<Option<Kind>, R> {
        let (major, minor) = unpack_device(place);
        Ok(Some(match type_and_mode & mode::TYPE {
            mode::FILE => Kind::Node(Node::File(Content::Inline(self.data(found, INLINE_BYTES_MAX)?))),
            mode::SYMLINK => Kind::Node(Node::Symlink(self.data(found, TARGET_BYTES_MAX)?)),
            mode::CHAR if place == 0 => Kind::Whiteout,
            mode::CHAR => Kind::Node(Node::CharDevice { major, minor }),
            mode::BLOCK => Kind::Node(Node::BlockDevice { major, minor }),
            mode::FIFO => Kind::Node(Node::Fifo),
            mode::SOCKET => Kind::Node(Node::Socket),
            _ => return Ok(None),
        }))
    }

    /// Reads data that is no directory's: less than a block.
    fn data(&self, found: &Found, most: usize) -> Read<Vec<u8>, R> {
        let at = found.tail_at.unwrap_or(found.blocks_at);
        if found.size > most as u64 {
            return Err(ImageError::Malformed { what: "data that is too long", at });
        }
        if found.size == 0 { Ok(Vec::new()) } else { self.read(at, found.size) }
    }

    /// Returns the names in a directory and their inodes, sorted by the names' bytes, without `.` and `..`.
    ///
    /// # Errors
    /// [`ImageError`] where it cannot be read, is no directory, or is not what this release writes.
    pub fn read_dir(&self, directory: Nid) -> Read<Vec<(Vec<u8>, Nid)>, R> {
        self.names(directory, &self.inode(directory)?)
    }

    pub(super) fn names(&self, directory: Nid, found: &Found) -> Read<Vec<(Vec<u8>, Nid)>, R> {
        let mut names: Vec<(Vec<u8>, Nid)> = Vec::new();
        let mut dots = 0_u32;
        for number in 0..self.blocks(directory, found)? {
            let (block, at) = self.block(found, number)?;
            for (name, nid) in parse_block(&block).ok_or(ImageError::Malformed { what: "a block of names", at })? {
                match name {
                    b"." if nid == directory => dots = dots.saturating_add(1),
                    b".." => dots = dots.saturating_add(1),
                    _ => names.push((name.to_vec(), nid)),
                }
            }
        }
        let at = directory.0.saturating_mul(SLOT);
        let sorted = names.iter().zip(names.iter().skip(1)).all(|(one, next)| one.0 < next.0);
        if dots != 2 || !sorted {
            return Err(ImageError::Malformed { what: "a directory that is not sorted, or without dots", at });
        }
        Ok(names)
    }

    /// Returns the inode a directory has under a name, if it has.
    ///
    /// # Errors
    /// [`ImageError`] as for [`Image::read_dir`].
    pub fn lookup(&self, directory: Nid, name: &[u8]) -> Read<Option<Nid>, R> {
        let found = self.inode(directory)?;
        let (mut low, mut high) = (0, self.blocks(directory, &found)?);
        while low < high {
            let middle = low.midpoint(high);
            let (block, at) = self.block(&found, middle)?;
            let names = parse_block(&block).ok_or(ImageError::Malformed { what: "a block of names", at })?;
            if names.first().is_some_and(|(first, _)| name < *first) {
                high = middle;
            } else if names.last().is_some_and(|(last, _)| name > *last) {
                low = middle.saturating_add(1);
            } else {
                return Ok(names.iter().find(|(found, _)| *found == name).map(|(_, nid)| *nid));
            }
        }
        Ok(None)
    }

    /// Returns of how many blocks a directory consists, where the image has room for them.
    fn blocks(&self, nid: Nid, found: &Found) -> Read<u64, R> {
        let at = nid.0.saturating_mul(SLOT);
        match found.kind {
            Kind::Directory { .. } if found.size <= self.size => Ok(found.size.div_ceil(BLOCK)),
            Kind::Directory { .. } => Err(ImageError::Malformed { what: "a directory that is too long", at }),
            Kind::Whiteout | Kind::Node(_) => Err(ImageError::Malformed { what: "no directory", at }),
        }
    }

    /// Reads a block of a directory, as far as it is filled; returns with it where it is.
    fn block(&self, found: &Found, number: u64) -> Read<(Vec<u8>, u64), R> {
        let start = number.saturating_mul(BLOCK);
        let left = found.size.saturating_sub(start);
        let at = match found.tail_at {
            Some(tail) if left < BLOCK => tail,
            Some(_) | None => found.blocks_at.saturating_add(start),
        };
        Ok((self.read(at, left.min(BLOCK))?, at))
    }

    /// Reads the extended attributes of an inode.
    fn said(&self, at: u64, bytes: u64) -> Read<Said, R> {
        let fault = |at| ImageError::Malformed { what: "extended attributes", at };
        let area = self.read(at, bytes)?;
        let (head, rest) = area.split_at_checked(usize::try_from(HEAD_BYTES).unwrap_or(0)).ok_or_else(|| fault(at))?;
        let shared = usize::from(head.get(4).copied().unwrap_or(0)).saturating_mul(4);
        let (shared, mut inline) = rest.split_at_checked(shared).ok_or_else(|| fault(at))?;
        let mut said = Said::default();
        for number in shared.chunks_exact(4) {
            let at = u64::from(Fields(number).u32(0)).saturating_mul(4);
            let length = Fields(&self.read(at, 4)?).entry_bytes();
            if length > ENTRY_BYTES_MAX {
                return Err(fault(at));
            }
            let entry = self.read(at, length)?;
            said.add(&entry).ok_or_else(|| fault(at))?;
        }
        while !inline.is_empty() {
            let length = usize::try_from(Fields(inline).entry_bytes()).unwrap_or(usize::MAX);
            let (entry, after) = inline.split_at_checked(length).ok_or_else(|| fault(at))?;
            said.add(entry).ok_or_else(|| fault(at))?;
            inline = after;
        }
        said.xattrs.sort_unstable();
        Ok(said)
    }

    /// Returns the object a redirect names.
    fn object(&self, redirect: &[u8]) -> Option<ObjectId> {
        let digits: Vec<u8> = redirect
            .rsplit(|byte| *byte == b'/')
            .take(2)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .flatten()
            .copied()
            .collect();
        let id: ObjectId = core::str::from_utf8(&digits).ok()?.parse().ok()?;
        (self.secret.redirect(&id) == redirect).then_some(id)
    }

    /// Reads so many bytes; they are there before room is made for them.
    fn read(&self, at: u64, count: u64) -> Read<Vec<u8>, R> {
        let fault = || ImageError::Malformed { what: "an end too early", at };
        if at.checked_add(count).is_none_or(|end| end > self.size) {
            return Err(fault());
        }
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| fault())?];
        let filled = fill_at(&self.bytes, at, &mut bytes).map_err(ImageError::Source)?;
        if filled == bytes.len() { Ok(bytes) } else { Err(fault()) }
    }
}

impl Said {
    /// Adds an attribute as it is stored.
    fn add(&mut self, entry: &[u8]) -> Option<()> {
        let fields = Fields(entry);
        let [name_bytes, number] = fields.get::<2>(0);
        let (rest, value) = entry.get(4..)?.split_at_checked(usize::from(name_bytes))?;
        let value = value.get(..usize::from(fields.u16(2)))?;
        let prefix = PREFIXES.iter().chain(&WHOLE).find(|(known, _)| *known == number)?.1;
        let name = [prefix, rest].concat();
        match name.as_slice() {
            b"trusted.overlay.metacopy" if value.is_empty() && !self.metacopy => self.metacopy = true,
            b"trusted.overlay.opaque" if value == b"y" && !self.opaque => self.opaque = true,
            b"trusted.overlay.redirect" if self.redirect.is_none() => self.redirect = Some(value.to_vec()),
            _ if is_xattr_name(&name) && value.len() <= XATTR_VALUE_BYTES_MAX => {
                self.xattrs.push((name, value.to_vec()));
            }
            _ => return None,
        }
        Some(())
    }
}

/// Numbers at offsets; what is not there is zero.
struct Fields<'bytes>(&'bytes [u8]);

impl Fields<'_> {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.get(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.get(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.get(at))
    }
    /// Returns the length of the attribute that begins here.
    fn entry_bytes(&self) -> u64 {
        let [name, _] = self.get::<2>(0);
        up(u64::from(name).saturating_add(u64::from(self.u16(2))).saturating_add(4), 4)
    }
}

/// Returns the names in a block and their inodes.
fn parse_block(block: &[u8]) -> Option<Vec<(&[u8], Nid)>> {
    let offset = |index: usize| {
        let dirent = block.get(index.checked_mul(DIRENT_BYTES)?..)?.first_chunk::<DIRENT_BYTES>()?;
        Some((usize::from(Fields(dirent).u16(8)), Fields(dirent).u64(0)))
    };
    let (first, _) = offset(0)?;
    let count = first / DIRENT_BYTES;
    if count == 0 || !first.is_multiple_of(DIRENT_BYTES) {
        return None;
    }
    let mut names = Vec::new();
    for index in 0..count {
        let (from, nid) = offset(index)?;
        let next = index.saturating_add(1);
        let name = if next < count {
            block.get(from..offset(next)?.0)?
        } else {
            // The last name ends with the block, or with a NUL.
            block.get(from..)?.split(|byte| *byte == 0).next()?
        };
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        names.push((name, Nid(nid)));
    }
    Some(names)
}
