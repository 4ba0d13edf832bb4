//! First pass: where everything goes.
//!
//! Memory: 8 bytes for each directory, 4 for each group of hard links, and what is remembered to be shared.

use super::super::canonical::Fault;
use super::super::entry::{Directory, DirectorySource, Item};
use super::place::{Placer, Refusal, subdirectories};
use super::{BLOCK, Reason, SLOT, Secret, Unfit, up};
use alloc::vec::Vec;

/// Why no image can be planned.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError<E> {
    /// The tree could not be read.
    #[error("the tree cannot be read")]
    Source(#[source] E),
    /// The directories are no tree in canonical order.
    #[error(transparent)]
    Tree(#[from] Fault),
    /// It has no place in an EROFS: the layer stays in dir form.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// Where everything of a tree goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Inode numbers of directories, by the order in which they are announced.
    pub(super) nids: Vec<u64>,
    /// Names of each group of hard links.
    pub(super) links: Vec<u32>,
    pub(super) whiteouts: u32,
    pub(super) inodes: u64,
    /// Where the shared attributes are, and where they end.
    pub(super) area: u64,
    pub(super) area_end: u64,
}

impl Layout {
    /// Returns the length of the image, in bytes.
    #[must_use]
    pub const fn image_bytes(&self) -> u64 {
        up(self.area_end, BLOCK)
    }

    fn count(&mut self, directory: &Directory) -> Option<()> {
        self.inodes = self.inodes.checked_add(1)?;
        for entry in &directory.entries {
            match &entry.item {
                Item::Directory => {}
                Item::Whiteout => self.whiteouts = self.whiteouts.checked_add(1)?,
                Item::Link(group) => {
                    let links = self.links.get_mut(usize::try_from(*group).ok()?)?;
                    *links = links.checked_add(1)?;
                }
                Item::Inode(inode) => {
                    self.inodes = self.inodes.checked_add(1)?;
                    if inode.links.is_some() {
                        self.links.push(1);
                    }
                }
            }
        }
        Some(())
    }
}

/// Finds out where everything of a tree goes.
///
/// # Errors
/// [`PlanError`] where the tree cannot be read, is none, or has no place in an EROFS.
pub fn plan<D: DirectorySource>(source: &mut D) -> Result<Layout, PlanError<D::Error>> {
    let mut layout = Layout { nids: Vec::new(), links: Vec::new(), whiteouts: 0, inodes: 0, area: 0, area_end: 0 };
    // Redirects are as long with any secret.
    let mut placer = Placer::new(Secret::from_random([0; 16]));
    while let Some(directory) = source.next_directory().map_err(PlanError::Source)? {
        let placed = placer.directory(&directory).map_err(|refusal| match refusal {
            Refusal::Tree(fault) => PlanError::Tree(fault),
            Refusal::Unfit(unfit) => PlanError::Unfit(unfit),
        })?;
        layout.nids.resize(placed.announces.saturating_add(subdirectories(&directory)), 0);
        if let Some(nid) = layout.nids.get_mut(placed.slot) {
            *nid = placed.inode.at / SLOT;
        }
        layout.count(&directory).ok_or_else(|| whole(Reason::Links))?;
    }
    let (end, sharing) = placer.finish()?;
    (layout.area, layout.area_end) = (end, end.saturating_add(sharing.area_bytes()));
    layout.inodes = layout.inodes.saturating_add(u64::from(layout.whiteouts > 0));
    let blocks = u32::try_from(layout.image_bytes() / BLOCK);
    let shared = sharing.area_bytes() == 0 || u32::try_from(layout.area_end / 4).is_ok();
    if blocks.is_err() || !shared {
        return Err(whole(Reason::Size).into());
    }
    Ok(layout)
}

const fn whole(reason: Reason) -> Unfit {
    Unfit { path: Vec::new(), reason }
}
