//! Layers of an image read into directories that are in no record yet.

use super::{Engine, Held, Taken, random};
use crate::failure::Result;
use perennial_core::id::LayerId;
use perennial_registry::{ImportedLayer, LayerKey, LayerTarget, LayerTree, TargetError};
use perennial_runtime::mount::LayerNeeds;
use perennial_store::tree::{self, Data, Side};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What has been read. Dropped before [`Staged::into_own`], it leaves nothing.
pub(super) struct Staged<'a> {
    engine: &'a Engine,
    /// Layers of the base image, oldest first, that the first layers of the image are.
    known: Vec<Arc<OwnedFd>>,
    /// How many layers have been asked for.
    asked: std::cell::Cell<usize>,
    /// Own trees, oldest first.
    made: Vec<PathBuf>,
}

impl<'a> Staged<'a> {
    pub(super) fn new(engine: &'a Engine, held: &Held, taken: Taken) -> Result<Self> {
        let known = match taken {
            Taken::Layers => engine.open_layers(&held.image.layers)?.into_iter().rev().map(Arc::new).collect(),
            Taken::Difference => Vec::new(),
        };
        Ok(Self { engine, known, asked: std::cell::Cell::new(0), made: Vec::new() })
    }

    /// Returns the trees, newest first; they are the caller's to remove.
    pub(super) fn into_own(mut self) -> Vec<PathBuf> {
        let mut made = std::mem::take(&mut self.made);
        made.reverse();
        made
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        for directory in &self.made {
            // What cannot be removed now is freed by `gc`.
            tree::remove_tree(directory).ok();
        }
    }
}

impl LayerTarget for Staged<'_> {
    fn data(&self) -> Option<PathBuf> {
        self.engine.data_of(LayerNeeds::Data).filter(|path| path.is_dir())
    }

    /// Layers are asked for from the oldest on, each once: the first ones are known by their place.
    fn find(&self, _: &LayerKey) -> Option<LayerTree> {
        let position = self.asked.get();
        let known = self.known.get(position)?;
        self.asked.set(position.saturating_add(1));
        Some(LayerTree::Open(Arc::clone(known)))
    }

    fn begin(&mut self) -> std::result::Result<PathBuf, TargetError> {
        Ok(new_directory(self.engine).map_err(|failure| failure.one_line())?)
    }

    fn commit(&mut self, directory: PathBuf, _: &ImportedLayer) -> std::result::Result<LayerTree, TargetError> {
        self.made.push(directory.clone());
        Ok(LayerTree::Dir(directory))
    }

    fn abort(&mut self, directory: PathBuf) {
        // What cannot be removed now is freed by `gc`.
        tree::remove_tree(&directory).ok();
    }
}

fn new_directory(engine: &Engine) -> Result<PathBuf> {
    let directory = engine.root.staging_dir().join(LayerId::from_random(random()?).as_str());
    std::fs::create_dir(&directory)?;
    Ok(directory)
}

/// Makes one tree of all that has been read that shows the same over the base image; none where that shows it alone.
pub(super) fn make_one(engine: &Engine, staged: Staged<'_>, held: &Held) -> Result<Vec<PathBuf>> {
    let one = match staged.made.as_slice() {
        [_] => staged,
        _ => put_together(engine, staged)?,
    };
    let Some(directory) = one.made.first() else { return Ok(Vec::new()) };
    match reduce(engine, directory, held)? {
        true => Ok(one.into_own()),
        false => Ok(Vec::new()),
    }
}

/// Puts layers together over nothing.
fn put_together<'a>(engine: &'a Engine, staged: Staged<'_>) -> Result<Staged<'a>> {
    let directory = new_directory(engine)?;
    let one = Staged { engine, known: Vec::new(), asked: std::cell::Cell::new(0), made: vec![directory.clone()] };
    let trees =
        staged.made.iter().rev().map(|path| tree::open_tree(path)).collect::<std::result::Result<Vec<_>, _>>()?;
    let layers: Vec<BorrowedFd<'_>> = trees.iter().map(OwnedFd::as_fd).collect();
    tree::materialize(&layers, &[], tree::open_tree(&directory)?.as_fd(), Data::Link, &mut |_| {})?;
    // Now, not when it is dropped: what is left has only the names it shows.
    for path in &staged.made {
        tree::remove_tree(path)?;
    }
    Ok(one)
}

/// Leaves in a whole tree what it shows otherwise than the base image; returns whether that is anything.
fn reduce(engine: &Engine, directory: &Path, held: &Held) -> Result<bool> {
    let own = tree::open_tree(directory)?;
    let ids = held.stack();
    engine.ensure_resolved(&ids)?;
    let below = engine.open_layers(&ids)?;
    let view = engine.mount_unseen(&engine.view_of(&ids)?)?;
    let below: Vec<_> = ids.into_iter().zip(below.iter().map(OwnedFd::as_fd)).collect();
    let whole = [(LayerId::from_random(random()?), own.as_fd())];
    let (from, to) = (Side { layers: &below, root: view.as_fd() }, Side { layers: &whole, root: own.as_fd() });
    let changes = tree::diff(&from, &to)?;
    tree::reduce(own.as_fd(), view.as_fd(), &changes)?;
    Ok(!changes.is_empty() || !tree::is_empty(own.as_fd())?)
}
