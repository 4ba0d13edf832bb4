//! What is freed when sealed layers go, told before it happens.

use super::error::SealError;
use super::files::{LayerFiles, MANIFEST};
use super::stream::Layers;
use crate::objects::Objects;
use crate::root::Root;
use perennial_core::id::LayerId;
use perennial_core::layers::compact::{Freed, freed_by_eviction};
use perennial_core::sealed::entry::{Content, DirectorySource as _, Item, Node};
use perennial_core::sealed::manifest::ObjectTable;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::BorrowedFd;
use std::collections::BTreeSet;

/// Returns the objects that the layer would name into which these layers (newest first) would be merged over `below`
/// (newest first): sorted, each once. Nothing is written. Memory: 32 bytes for each object and what a set needs.
///
/// # Errors
/// [`SealError`] where a layer cannot be read.
pub fn objects_of_merge(
    root: &Root,
    of: &[LayerId],
    below: &[BorrowedFd<'_>],
) -> Result<BTreeSet<ObjectId>, SealError> {
    let layers = Layers::open(root, of)?;
    let mut merged = layers.merge(below)?;
    let mut objects = BTreeSet::new();
    while let Some(directory) = merged.next_directory().map_err(|error| layers.error(error))? {
        objects.extend(directory.entries.into_iter().filter_map(|entry| match entry.item {
            Item::Inode(inode) => match inode.node {
                Node::File(Content::Object { id, .. }) => Some(id),
                Node::File(Content::Inline(_))
                | Node::Symlink(_)
                | Node::CharDevice { .. }
                | Node::BlockDevice { .. }
                | Node::Fifo
                | Node::Socket => None,
            },
            Item::Directory | Item::Link(_) | Item::Whiteout => None,
        }));
    }
    Ok(objects)
}

type Rows<'a> = Box<dyn Iterator<Item = Result<(ObjectId, u64), SealError>> + 'a>;

/// Returns the objects that go, and what they occupy, when the sealed layers `gone` go while all of `kept` and objects of
/// layers that are to be made (`merged`) stay.
///
/// # Errors
/// [`SealError`] where a manifest cannot be read, or an object cannot be looked at.
pub fn freed(
    root: &Root,
    objects: &Objects,
    (gone, kept): (&[LayerId], &[LayerId]),
    merged: &BTreeSet<ObjectId>,
) -> Result<Freed, SealError> {
    let open = |layers: &[LayerId]| -> Result<Vec<_>, SealError> { layers.iter().map(|id| table(root, id)).collect() };
    let (gone, kept) = (open(gone)?, open(kept)?);
    let gone = gone.iter().map(|(files, table)| {
        let rows = table.iter().map(|row| {
            let (id, _) = row.map_err(|error| files.unreadable(MANIFEST, &error))?;
            Ok((id, objects.stat(&id)?.map_or(0, |stat| stat.allocated)))
        });
        Box::new(rows) as Rows<'_>
    });
    let kept = kept.iter().map(|(files, table)| {
        let rows = table.iter().map(|row| row.map_err(|error| files.unreadable(MANIFEST, &error)));
        Box::new(rows) as Rows<'_>
    });
    let merged = std::iter::once(Box::new(merged.iter().map(|id| Ok((*id, 0_u64)))) as Rows<'_>);
    freed_by_eviction(gone.collect(), kept.chain(merged).collect())
}

fn table(root: &Root, layer: &LayerId) -> Result<(LayerFiles, ObjectTable<super::DiskFile>), SealError> {
    let files = LayerFiles::open(&root.layer_dir(layer))?;
    let missing = || files.io("open", MANIFEST, rustix::io::Errno::NOENT);
    let manifest = files.manifest()?.ok_or_else(missing)?;
    let table = ObjectTable::open(manifest).map_err(|error| files.unreadable(MANIFEST, &error))?;
    Ok((files, table))
}
