//! `df`: what takes space in a root.

use super::Engine;
use super::collect::entries;
use crate::failure::Result;
use perennial_core::generations::Queue;
use perennial_core::host::SpaceFacts;
use perennial_core::id::{ContainerName, LayerId, RunId};
use perennial_core::usage::{Usage, UsageFacts, usage};
use perennial_store::objects::Objects;
use perennial_store::{layer, tree};
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What takes space, and what is left.
#[derive(Debug)]
pub struct DiskUse {
    /// Layers.
    pub usage: Usage,
    /// What runs have changed so far, as far as it can be read while they change it.
    pub runs: Vec<(ContainerName, RunId, Option<u64>)>,
    /// How the contents of sealed layers are kept.
    pub stored: Stored,
    /// What waits to be unlinked.
    pub trash_bytes: u64,
    /// What the file system has left.
    pub space: SpaceFacts,
}

/// Bytes on disk of what sealed layers consist of, everything once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Contents that can be mounted.
    pub objects_bytes: u64,
    /// Contents of older generations, compressed together.
    pub packs_bytes: u64,
    /// What is in layers' directories beside trees: manifests, metadata images, descriptions, copies of records.
    pub metadata_bytes: u64,
}

impl Engine {
    fn stored(&self) -> Result<Stored> {
        let mut stored = Stored::default();
        Objects::open(&self.root)?.list(&mut |_, stat| {
            stored.objects_bytes = stored.objects_bytes.saturating_add(stat.allocated);
            Ok(())
        })?;
        stored.packs_bytes = files_in(&self.root.path().join("packs"))?;
        for id in layer::list(&self.root)? {
            stored.metadata_bytes = stored.metadata_bytes.saturating_add(files_in(&self.root.layer_dir(&id))?);
        }
        Ok(stored)
    }

    /// Returns what layers take on disk as their records say, and cold ones without what is in packs only.
    fn layer_sizes(&self) -> Result<BTreeMap<LayerId, u64>> {
        let objects = Objects::open(&self.root)?;
        let mut sizes = BTreeMap::new();
        for record in self.layers()?.into_iter().map(|doc| doc.value) {
            let (mut bytes, mut named) = (record.bytes, Vec::new());
            let directory = self.root.layer_dir(&record.id);
            // Of one that is damaged, what was recorded is the best there is.
            if record.cold && self.objects_of(&directory, &mut |object| named.push(object)).is_ok() {
                bytes = files_in(&directory)?;
                for object in named {
                    bytes = bytes.saturating_add(objects.stat(&object)?.map_or(0, |stat| stat.allocated));
                }
            }
            sizes.insert(record.id, bytes);
        }
        Ok(sizes)
    }

    /// Adds up what takes space.
    ///
    /// # Errors
    /// Where the records or the file system cannot be read.
    pub fn disk_use(&self) -> Result<DiskUse> {
        let images = self.images()?.into_iter();
        let mut facts = UsageFacts {
            layers: self.layer_sizes()?,
            images: images.map(|doc| (doc.value.digest, doc.value.layers.into_iter().collect())).collect(),
            containers: Vec::new(),
        };
        let mut runs = Vec::new();
        let mut containers: Vec<_> = self.containers()?.into_iter().map(|doc| doc.value).collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        for container in containers {
            if let Some(run) = container.phase.run() {
                let bytes = bytes_in(&self.root.run_dir(&run.id).join("upper"));
                runs.push((container.name.clone(), run.id.clone(), bytes));
            }
            facts.containers.push((container.name, container.queue.as_ref().map(Queue::layers).unwrap_or_default()));
        }
        Ok(DiskUse {
            usage: usage(&facts),
            runs,
            stored: self.stored()?,
            trash_bytes: bytes_in(&self.root.trash_dir()).unwrap_or(0),
            space: self.space()?,
        })
    }

    /// Returns what the root's file system has left.
    ///
    /// # Errors
    /// Where it does not tell.
    pub fn space(&self) -> Result<SpaceFacts> {
        let stat = rustix::fs::statvfs(self.root.path())?;
        Ok(SpaceFacts {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_inodes: stat.f_files,
            free_inodes: stat.f_favail,
        })
    }
}

/// Bytes on disk of the files directly in a directory; what goes meanwhile takes none.
fn files_in(directory: &Path) -> Result<u64> {
    let mut bytes = 0_u64;
    for path in entries(directory)? {
        if let Ok(metadata) = path.symlink_metadata()
            && metadata.is_file()
        {
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
        }
    }
    Ok(bytes)
}

/// Bytes in a tree without its root directory; nothing where it changes too fast to be walked.
fn bytes_in(path: &Path) -> Option<u64> {
    let root = tree::open_tree(path).ok()?;
    let own = rustix::fs::fstat(&root).ok()?;
    let own = u64::try_from(own.st_blocks).unwrap_or(0).saturating_mul(512);
    Some(tree::measure(root.as_fd()).ok()?.bytes.saturating_sub(own))
}
