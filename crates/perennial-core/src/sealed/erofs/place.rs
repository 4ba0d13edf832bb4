//! Where everything goes. Both passes run this over the same tree and come to the same places.
//!
//! The inode of a directory comes before those it names. Where it does not fit into the rest of its block, or has whole
//! blocks of names, a *region* is set aside at the next block, and inodes it names fill what is before it:
//!
//! ```text
//!   … inode inode │ names names │ directory with the last names, inode inode …
//!   rest of block │ whole blocks│
//! ```

use super::super::canonical::{Fault, Order, Problem, joined};
use super::super::entry::{Content, Directory, Inode, Item, Node};
use super::names::Fill;
use super::raw::{pack_device, types};
use super::xattrs::{Encoded, Sharing};
use super::{BLOCK, CHUNK_BYTES, FIRST_AT, INODE_BYTES, Reason, SLOT, Secret, Unfit, up};
use alloc::vec;
use alloc::vec::Vec;

/// How the data of an inode is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// There is none.
    None,
    /// So many bytes after the inode, in the same block.
    Inline(u64),
    /// In a block of its own after the inode.
    Own,
    /// An object: so many numbers of chunks.
    Chunks(u64),
}

/// What takes place.
#[derive(Debug)]
pub(super) struct Shape {
    pub(super) xattrs: Encoded,
    pub(super) data: Data,
}

impl Shape {
    fn new(xattrs: Encoded, data_bytes: u64) -> Self {
        let inode = INODE_BYTES.saturating_add(xattrs.bytes());
        let data = match data_bytes {
            0 => Data::None,
            bytes if inode.saturating_add(bytes) <= BLOCK => Data::Inline(bytes),
            _ => Data::Own,
        };
        Self { xattrs, data }
    }

    /// Returns the first offset from `cursor` on where it may be, and its end.
    fn fit(&self, cursor: u64) -> (u64, u64) {
        let inode = INODE_BYTES.saturating_add(self.xattrs.bytes());
        match self.data {
            Data::None => (cursor, cursor.saturating_add(inode)),
            Data::Chunks(count) => (cursor, cursor.saturating_add(inode).saturating_add(count.saturating_mul(4))),
            Data::Own => (cursor, up(cursor.saturating_add(inode), BLOCK).saturating_add(BLOCK)),
            Data::Inline(bytes) => {
                let all = inode.saturating_add(bytes);
                let left = BLOCK.saturating_sub(cursor % BLOCK);
                let at = if all <= left { cursor } else { up(cursor, BLOCK) };
                (at, at.saturating_add(all))
            }
        }
    }
}

/// An inode that has its place.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) at: u64,
    pub(super) shape: Shape,
}

/// A directory that has its place.
#[derive(Debug)]
pub(super) struct PlacedDirectory {
    pub(super) inode: Placed,
    pub(super) fill: Fill,
    /// Where its whole blocks are, if there are any.
    pub(super) blocks_at: u64,
    /// How many blocks are whole: all of them, where the last one does not fit behind the inode.
    pub(super) blocks: u64,
    /// Its own number among the directories that were announced, and that of the first one it announces.
    pub(super) slot: usize,
    pub(super) announces: usize,
    /// Where the directory is that it is in.
    pub(super) parent: Option<usize>,
    /// The inodes it names first, in order.
    pub(super) inodes: Vec<Placed>,
}

/// Why a directory has no place.
#[derive(Debug)]
pub(super) enum Refusal {
    Tree(Fault),
    Unfit(Unfit),
}

#[derive(Debug)]
struct Level {
    slot: usize,
    next: usize,
}

/// Finds places.
#[derive(Debug)]
pub(super) struct Placer {
    order: Order,
    sharing: Sharing,
    secret: Secret,
    cursor: u64,
    /// Set aside: from here to there.
    region: Option<(u64, u64)>,
    levels: Vec<Level>,
    announced: usize,
}

impl Placer {
    pub(super) fn new(secret: Secret) -> Self {
        Self {
            order: Order::default(),
            sharing: Sharing::default(),
            secret,
            cursor: FIRST_AT,
            region: None,
            levels: Vec::new(),
            announced: 1,
        }
    }

    /// Finds the places of a directory and of the inodes it names first.
    pub(super) fn directory(&mut self, directory: &Directory) -> Result<PlacedDirectory, Refusal> {
        let unfit = |name: Option<&[u8]>, reason| Refusal::Unfit(Unfit { path: joined(&directory.path, name), reason });
        if self.order.advance().is_none() {
            let path = joined(&directory.path, None);
            return Err(Refusal::Tree(Fault { path, problem: Problem::Unexpected }));
        }
        self.order.check(directory).map_err(Refusal::Tree)?;
        let mut placed = self.place_directory(directory).map_err(|reason| unfit(None, reason))?;
        for entry in &directory.entries {
            if let Item::Inode(inode) = &entry.item {
                let shape = self.shape(inode).map_err(|reason| unfit(Some(&entry.name), reason))?;
                let at = self.place(&shape);
                placed.inodes.push(Placed { at, shape });
            }
        }
        if let Some((_, end)) = self.region.take() {
            self.cursor = end;
        }
        Ok(placed)
    }

    /// Checks that nothing is missing; returns the end, and with it the start of the shared attributes.
    pub(super) fn finish(mut self) -> Result<(u64, Sharing), Fault> {
        self.order.finish()?;
        Ok((self.cursor, self.sharing))
    }

    fn place_directory(&mut self, directory: &Directory) -> Result<PlacedDirectory, Reason> {
        let (slot, announces, parent) = self.number(directory);
        let fill = Fill::of(directory);
        let mut xattrs = self.sharing.encode(&directory.attributes.xattrs)?;
        if directory.opaque {
            xattrs.opaque();
        }
        xattrs.count()?;
        let mut shape = Shape::new(xattrs, fill.last_bytes);
        let blocks = match shape.data {
            Data::Own => fill.full.saturating_add(1),
            Data::None | Data::Inline(_) | Data::Chunks(_) => fill.full,
        };
        if shape.data == Data::Own {
            shape.data = Data::None;
        }
        let whole = blocks.saturating_mul(BLOCK);
        let (at, end) = shape.fit(self.cursor);
        let (at, blocks_at) = if at == self.cursor && blocks == 0 || parent.is_none() {
            // The root must be near the start: its number has 16 bits.
            self.cursor = up(end, SLOT);
            let start = up(self.cursor, BLOCK);
            self.region = (blocks > 0).then(|| (start, start.saturating_add(whole)));
            (at, start)
        } else {
            let start = up(self.cursor, BLOCK);
            let (at, end) = shape.fit(start.saturating_add(whole));
            self.region = Some((start, up(end, SLOT)));
            (at, start)
        };
        let inode = Placed { at, shape };
        Ok(PlacedDirectory { inode, fill, blocks_at, blocks, slot, announces, parent, inodes: vec![] })
    }

    /// Numbers a directory and those it announces.
    fn number(&mut self, directory: &Directory) -> (usize, usize, Option<usize>) {
        self.levels.truncate(directory.path.len());
        let (slot, parent) = match self.levels.last_mut() {
            None => (0, None),
            Some(level) => {
                let slot = level.next;
                level.next = level.next.saturating_add(1);
                (slot, Some(level.slot))
            }
        };
        let announces = self.announced;
        self.levels.push(Level { slot, next: announces });
        self.announced = announces.saturating_add(subdirectories(directory));
        (slot, announces, parent)
    }

    fn shape(&mut self, inode: &Inode) -> Result<Shape, Reason> {
        let mut xattrs = self.sharing.encode(&inode.attributes.xattrs)?;
        let shape = match &inode.node {
            Node::File(Content::Object { id, size }) => {
                xattrs.redirect(&self.secret.redirect(id))?;
                Shape { xattrs, data: Data::Chunks(size.div_ceil(CHUNK_BYTES)) }
            }
            Node::File(Content::Inline(bytes)) | Node::Symlink(bytes) => Shape::new(xattrs, bytes.len() as u64),
            Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
                pack_device(*major, *minor).ok_or(Reason::Device)?;
                Shape::new(xattrs, 0)
            }
            Node::Fifo | Node::Socket => Shape::new(xattrs, 0),
        };
        shape.xattrs.count()?;
        Ok(shape)
    }

    fn place(&mut self, shape: &Shape) -> u64 {
        let (mut at, mut end) = shape.fit(self.cursor);
        if let Some((_, after)) = self.region.take_if(|(start, _)| end > *start) {
            (at, end) = shape.fit(after);
        }
        self.cursor = up(end, SLOT);
        at
    }
}

/// Returns how many directories a directory announces.
pub(super) fn subdirectories(directory: &Directory) -> usize {
    directory.entries.iter().filter(|entry| entry.item == Item::Directory).count()
}

/// Returns the type of an inode in the entries that name it.
pub(super) fn kind_of(inode: &Inode) -> u8 {
    types(&inode.node).1
}
