//! All directories of an image, in canonical order.

use super::super::canonical::{DEPTH_MAX, Fault, Order, Problem, joined};
use super::super::entry::{Directory, DirectorySource, Entry, Inode, Item};
use super::super::io::ReadAt;
use super::image::{Found, Image, ImageError, Kind, Nid, Read};
use super::{BLOCK, SLOT};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

/// Yields the directories of an image. It ends on any image: places of directories only grow on the way.
#[derive(Debug)]
pub struct Directories<'image, R> {
    image: &'image Image<R>,
    order: Order,
    /// Directories in those on the way that have not come yet, the next one last.
    pending: Vec<Vec<Nid>>,
    /// Numbers of groups of hard links.
    groups: BTreeMap<Nid, u32>,
    /// From where the next inode that is none, the next directory, and its blocks, may be.
    next_inode: u64,
    next_nid: u64,
    next_block_at: u64,
}

impl<R: ReadAt> Image<R> {
    /// Returns all directories, in canonical order.
    pub fn directories(&self) -> Directories<'_, R> {
        let pending = vec![vec![self.root()]];
        let (order, groups) = (Order::default(), BTreeMap::new());
        Directories { image: self, order, pending, groups, next_inode: 0, next_nid: 0, next_block_at: 0 }
    }
}

impl<R: ReadAt> Directories<'_, R> {
    fn directory(&mut self, nid: Nid) -> Read<Directory, R> {
        let path = self.order.advance().unwrap_or_default().to_vec();
        if path.len() > DEPTH_MAX {
            return Err(Fault { path: joined(&path, None), problem: Problem::Depth }.into());
        }
        let found = self.image.inode(nid)?;
        let Kind::Directory { opaque } = found.kind else { return Err(malformed("no directory", nid)) };
        self.pass(nid, &found)?;
        let mut directory = Directory { path, opaque, entries: Vec::new(), attributes: found.attributes.clone() };
        let mut inner = Vec::new();
        for (name, nid) in self.image.names(nid, &found)? {
            let item = self.item(nid)?;
            if item == Item::Directory {
                inner.push(nid);
            }
            directory.entries.push(Entry { name, item });
        }
        self.order.check(&directory)?;
        inner.reverse();
        self.pending.push(inner);
        Ok(directory)
    }

    /// No directory, and no block of names, comes twice.
    fn pass(&mut self, nid: Nid, found: &Found) -> Read<(), R> {
        let whole = if found.tail_at.is_some() { found.size / BLOCK } else { found.size.div_ceil(BLOCK) };
        if nid.0 < self.next_nid || whole > 0 && found.blocks_at < self.next_block_at {
            return Err(malformed("a directory that comes twice", nid));
        }
        self.next_nid = nid.0.saturating_add(1);
        if whole > 0 {
            self.next_block_at = found.blocks_at.saturating_add(whole.saturating_mul(BLOCK));
        }
        Ok(())
    }

    fn item(&mut self, nid: Nid) -> Read<Item, R> {
        if let Some(group) = self.groups.get(&nid) {
            return Ok(Item::Link(*group));
        }
        let Found { attributes, kind, links, .. } = self.image.inode(nid)?;
        let node = match kind {
            Kind::Directory { .. } => return Ok(Item::Directory),
            Kind::Whiteout => return Ok(Item::Whiteout),
            Kind::Node(node) => node,
        };
        if nid.0 < self.next_inode {
            return Err(malformed("an inode that comes twice", nid));
        }
        self.next_inode = nid.0.saturating_add(1);
        let links = if links > 1 {
            let group = u32::try_from(self.groups.len()).map_err(|_| malformed("too many links", nid))?;
            self.groups.insert(nid, group);
            Some(group)
        } else {
            None
        };
        Ok(Item::Inode(Inode { attributes, node, links }))
    }
}

impl<R: ReadAt> DirectorySource for Directories<'_, R> {
    type Error = ImageError<R::Error>;
    fn next_directory(&mut self) -> Result<Option<Directory>, Self::Error> {
        while let Some(level) = self.pending.last_mut() {
            match level.pop() {
                Some(nid) => return self.directory(nid).map(Some),
                None => self.pending.pop(),
            };
        }
        self.order.finish()?;
        Ok(None)
    }
}

const fn malformed<E>(what: &'static str, nid: Nid) -> ImageError<E> {
    ImageError::Malformed { what, at: nid.0.saturating_mul(SLOT) }
}
