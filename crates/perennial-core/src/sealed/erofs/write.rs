//! Second pass: the bytes, in order.

use super::super::entry::{Attributes, Content, Directory, DirectorySource, Entry, Inode, Item, Node};
use super::super::io::Sink;
use super::super::object::ObjectId;
use super::names::{Pointer, Target, blocks, targets};
use super::output::Output;
use super::place::{Data, Placed, PlacedDirectory, Placer, kind_of, subdirectories};
use super::plan::Layout;
use super::raw::{self, Head, format, kind, mode, pack_device, types};
use super::xattrs::put_entry;
use super::{BLOCK, INODE_BYTES, METACOPY_AT, OPAQUE_AT, Reason, SLOT, SUPERBLOCK, Secret, WHITEOUT_AT, up};
use alloc::vec::Vec;

/// Why an image could not be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError<E, K> {
    /// The tree could not be read.
    #[error("the tree cannot be read")]
    Source(#[source] E),
    /// The bytes could not be taken.
    #[error("the image cannot be written")]
    Sink(#[source] K),
    /// The tree is not the one that was planned.
    #[error("the tree is not the one the image was planned for")]
    Changed,
}

/// What an image says apart from the tree.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The directory objects are in.
    pub secret: Secret,
    /// The manifest it is made from: its first 16 bytes are the image's UUID, but for the bits that say so.
    pub manifest: ObjectId,
}

type Written<E, K> = Result<(), EncodeError<E, K>>;

/// Writes the image of a tree; `source` yields the tree the layout was made from, once more. Returns the sink.
///
/// # Errors
/// [`EncodeError`] where the tree cannot be read, is another one, or the bytes cannot be taken.
pub fn write<D: DirectorySource, K: Sink>(
    layout: &Layout,
    identity: &Identity,
    source: &mut D,
    sink: K,
) -> Result<K, EncodeError<D::Error, K::Error>> {
    let mut encoder = Encoder { layout, groups: Vec::new(), output: Output::new(sink) };
    let mut placer = Placer::new(identity.secret);
    encoder.start(identity).map_err(EncodeError::Sink)?;
    while let Some(directory) = source.next_directory().map_err(EncodeError::Source)? {
        let placed = placer.directory(&directory).map_err(|_| EncodeError::Changed)?;
        encoder.directory(&directory, &placed)?;
    }
    let (end, sharing) = placer.finish().map_err(|_| EncodeError::Changed)?;
    let area = sharing.area().map_err(|_| EncodeError::Changed)?;
    let output = &mut encoder.output;
    output.skip_to(layout.area).map_err(EncodeError::Sink)?;
    output.put(&area).map_err(EncodeError::Sink)?;
    if end != layout.area || output.offset() != layout.area_end {
        return Err(EncodeError::Changed);
    }
    output.skip_to(layout.image_bytes()).map_err(EncodeError::Sink)?;
    output.flush().map_err(EncodeError::Sink)?;
    Ok(encoder.output.into_sink())
}

struct Encoder<'layout, K> {
    layout: &'layout Layout,
    /// Inode number and type of each group of hard links that came.
    groups: Vec<Pointer>,
    output: Output<K>,
}

impl<K: Sink> Encoder<'_, K> {
    /// Writes what is before the root.
    fn start(&mut self, identity: &Identity) -> Result<(), K::Error> {
        let output = &mut self.output;
        output.skip_to(SUPERBLOCK)?;
        output.put(&superblock(self.layout, &identity.manifest))?;
        for (at, name, value) in [
            (METACOPY_AT, b"trusted.overlay.metacopy".as_slice(), b"".as_slice()),
            (OPAQUE_AT, b"trusted.overlay.opaque", b"y"),
        ] {
            let mut entry = Vec::new();
            // These two have a place.
            put_entry(&mut entry, name, value).unwrap_or_default();
            output.skip_to(at)?;
            output.put(&entry)?;
        }
        output.skip_to(WHITEOUT_AT)?;
        if self.layout.whiteouts > 0 {
            let mut inode = Vec::new();
            let attributes = Attributes::default();
            let head = Head {
                format: format::PLAIN,
                xattr_count: 0,
                kind: mode::CHAR,
                attributes: &attributes,
                size: 0,
                place: 0,
                nid: WHITEOUT_AT / SLOT,
                links: self.layout.whiteouts,
            };
            head.put(&mut inode);
            output.put(&inode)?;
        }
        Ok(())
    }

    fn directory<E>(&mut self, directory: &Directory, placed: &PlacedDirectory) -> Written<E, K::Error> {
        if self.layout.nids.get(placed.slot) != Some(&(placed.inode.at / SLOT)) {
            return Err(EncodeError::Changed);
        }
        let names = self.pointers(directory, placed).ok_or(EncodeError::Changed)?;
        let mut own =
            self.own_bytes(directory, placed, blocks(&names)).ok_or(EncodeError::Changed)?.into_iter().peekable();
        let inodes = directory.entries.iter().filter_map(|entry| match &entry.item {
            Item::Inode(inode) => Some(inode),
            Item::Directory | Item::Link(_) | Item::Whiteout => None,
        });
        let mut bytes = Vec::new();
        for (inode, placed) in inodes.zip(&placed.inodes) {
            while let Some((at, own)) = own.next_if(|(at, _)| *at < placed.at) {
                self.put_at(at, &own)?;
            }
            bytes.clear();
            self.inode(&mut bytes, inode, placed).map_err(|_| EncodeError::Changed)?;
            self.put_at(placed.at, &bytes)?;
        }
        own.try_for_each(|(at, own)| self.put_at(at, &own))
    }

    fn put_at<E>(&mut self, at: u64, bytes: &[u8]) -> Written<E, K::Error> {
        self.output.skip_to(at).map_err(EncodeError::Sink)?;
        if self.output.offset() != at {
            return Err(EncodeError::Changed);
        }
        self.output.put(bytes).map_err(EncodeError::Sink)
    }

    /// Returns what the names of a directory stand for.
    fn pointers<'tree>(
        &mut self,
        directory: &'tree Directory,
        placed: &PlacedDirectory,
    ) -> Option<Vec<(&'tree [u8], Pointer)>> {
        let own = placed.inode.at / SLOT;
        let parent = match placed.parent {
            None => own,
            Some(slot) => *self.layout.nids.get(slot)?,
        };
        let mut directories = self.layout.nids.iter().skip(placed.announces);
        let mut inodes = placed.inodes.iter();
        let mut names = Vec::with_capacity(directory.entries.len().saturating_add(2));
        for target in targets(directory) {
            let pointer = match target {
                Target::Itself => (own, kind::DIRECTORY),
                Target::Parent => (parent, kind::DIRECTORY),
                Target::Entry(Entry { item: Item::Directory, .. }) => (*directories.next()?, kind::DIRECTORY),
                Target::Entry(Entry { item: Item::Whiteout, .. }) => (WHITEOUT_AT / SLOT, kind::CHAR),
                Target::Entry(Entry { item: Item::Link(group), .. }) => {
                    *self.groups.get(usize::try_from(*group).ok()?)?
                }
                Target::Entry(Entry { item: Item::Inode(inode), .. }) => {
                    let pointer = (inodes.next()?.at / SLOT, kind_of(inode));
                    if inode.links.is_some() {
                        self.groups.push(pointer);
                    }
                    pointer
                }
            };
            names.push((target.name(), pointer));
        }
        Some(names)
    }

    /// Returns inode and blocks of the directory itself, in the order of their offsets.
    fn own_bytes(
        &self,
        directory: &Directory,
        placed: &PlacedDirectory,
        mut blocks: Vec<Vec<u8>>,
    ) -> Option<Vec<(u64, Vec<u8>)>> {
        let Placed { at, shape } = &placed.inode;
        let inline = matches!(shape.data, Data::Inline(_));
        let last = if inline { blocks.pop()? } else { Vec::new() };
        if blocks.len() as u64 != placed.blocks {
            return None;
        }
        let mut whole = Vec::new();
        for block in blocks {
            whole.extend_from_slice(&block);
            whole.resize(usize::try_from(up(whole.len() as u64, BLOCK)).ok()?, 0);
        }
        let links = u32::try_from(subdirectories(directory)).ok()?.checked_add(2)?;
        let head = Head {
            format: if inline { format::INLINE } else { format::PLAIN },
            xattr_count: shape.xattrs.count().ok()?,
            kind: mode::DIRECTORY,
            attributes: &directory.attributes,
            size: placed.fill.bytes(),
            place: u32::try_from(placed.blocks_at / BLOCK).ok()?,
            nid: at / SLOT,
            links,
        };
        let mut inode = Vec::new();
        head.put(&mut inode);
        shape.xattrs.put(&mut inode, self.layout.area).ok()?;
        inode.extend_from_slice(&last);
        let mut own = alloc::vec![(*at, inode)];
        if !whole.is_empty() {
            own.push((placed.blocks_at, whole));
        }
        own.sort_unstable_by_key(|(at, _)| *at);
        Some(own)
    }

    /// Appends an inode that is no directory.
    fn inode(&self, out: &mut Vec<u8>, inode: &Inode, placed: &Placed) -> Result<(), Reason> {
        let Placed { at, shape } = placed;
        let bytes = INODE_BYTES.saturating_add(shape.xattrs.bytes());
        let data_block = up(at.saturating_add(bytes), BLOCK);
        let (format, place) = match shape.data {
            Data::None => (format::PLAIN, 0),
            Data::Inline(_) => (format::INLINE, 0),
            Data::Own => (format::PLAIN, u32::try_from(data_block / BLOCK).map_err(|_| Reason::Size)?),
            Data::Chunks(_) => (format::CHUNKS, raw::CHUNK_FORMAT),
        };
        let (kind, _) = types(&inode.node);
        let (size, place, data): (u64, u32, &[u8]) = match &inode.node {
            Node::File(Content::Object { size, .. }) => (*size, place, b""),
            Node::File(Content::Inline(bytes)) | Node::Symlink(bytes) => (bytes.len() as u64, place, bytes),
            Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                (0, pack_device(*major, *minor).ok_or(Reason::Device)?, b"")
            }
            Node::Fifo | Node::Socket => (0, 0, b""),
        };
        let group = inode.links.and_then(|group| usize::try_from(group).ok());
        let links = group.map_or(Some(1), |group| self.layout.links.get(group).copied()).ok_or(Reason::Links)?;
        let xattr_count = shape.xattrs.count()?;
        let attributes = &inode.attributes;
        Head { format, xattr_count, kind, attributes, size, place, nid: at / SLOT, links }.put(out);
        shape.xattrs.put(out, self.layout.area)?;
        match shape.data {
            Data::None => {}
            Data::Inline(_) => out.extend_from_slice(data),
            Data::Own => {
                let offset = |from: u64| usize::try_from(from.saturating_sub(*at)).map_err(|_| Reason::Size);
                out.resize(offset(data_block)?, 0);
                out.extend_from_slice(data);
                out.resize(offset(data_block.saturating_add(BLOCK))?, 0);
            }
            Data::Chunks(count) => (0..count).for_each(|_| out.extend_from_slice(&raw::NO_BLOCK.to_le_bytes())),
        }
        Ok(())
    }
}

/// Returns the superblock, without its checksum.
fn superblock(layout: &Layout, manifest: &ObjectId) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&raw::MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&raw::COMPATIBLE.to_le_bytes());
    out.extend_from_slice(&[raw::BLOCK_BITS, 0]);
    // The root is within the first two blocks.
    let root = layout.nids.first().and_then(|nid| u16::try_from(*nid).ok()).unwrap_or_default();
    out.extend_from_slice(&root.to_le_bytes());
    out.extend_from_slice(&layout.inodes.to_le_bytes());
    // Time of building: none.
    out.extend_from_slice(&[0; 12]);
    let blocks = u32::try_from(layout.image_bytes() / BLOCK).unwrap_or(u32::MAX);
    out.extend_from_slice(&blocks.to_le_bytes());
    // Inodes and shared attributes are counted from the start of the image.
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&uuid(manifest));
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&raw::INCOMPATIBLE.to_le_bytes());
    out.resize(128, 0);
    out
}

/// Bytes of an image, from its start, that [`is_of`] looks at.
pub const HEAD_BYTES: usize = 1152;

/// Returns whether an image that begins with these [`HEAD_BYTES`] and has this length may be that of a manifest: magic
/// number, length and identity are as they were written. What follows is not looked at; the kernel compares the
/// checksum of the first block when it mounts the image.
#[must_use]
pub fn is_of(head: &[u8], size: u64, manifest: &ObjectId) -> bool {
    let at = |start: usize, length: usize| head.get(start..start.saturating_add(length));
    let blocks = at(1060, 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes).map(u64::from);
    at(1024, 4) == Some(&raw::MAGIC.to_le_bytes())
        && blocks.and_then(|blocks| blocks.checked_mul(BLOCK)) == Some(size)
        && at(1072, 16) == Some(&uuid(manifest))
}

/// Returns a UUID of version 8 (RFC 9562): bits of one's own.
fn uuid(manifest: &ObjectId) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (index, (to, from)) in uuid.iter_mut().zip(manifest.as_bytes()).enumerate() {
        *to = match index {
            6 => from & 0x0f | 0x80,
            8 => from & 0x3f | 0x80,
            _ => *from,
        };
    }
    uuid
}
