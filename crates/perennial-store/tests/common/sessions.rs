//! A container's life without a container: an image, and runs that each leave a layer.

use super::{Listing, View, listing, open, opened};
use perennial_store::tree::{self, Data, Measure};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::fs;
use std::path::{Path, PathBuf};

pub struct Lab {
    pub dir: PathBuf,
    /// The image's layers, newest first.
    pub image: Vec<PathBuf>,
    /// The container's own layers, newest first.
    pub own: Vec<PathBuf>,
    made: usize,
}

pub fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(OwnedFd::as_fd).collect()
}

impl Lab {
    /// Makes an image of two layers; `build` fills the older, `rebuild` changes it through a mount.
    pub fn new(dir: PathBuf, build: impl FnOnce(&Path), rebuild: impl FnOnce(&Path)) -> Self {
        for name in ["empty", "trash", "base"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        build(&dir.join("base"));
        let image = vec![dir.join("base")];
        let mut lab = Self { dir, image, own: Vec::new(), made: 0 };
        lab.session(rebuild);
        lab.image = lab.stack();
        lab.own.clear();
        lab
    }

    /// The same container once more; what it makes gets other names.
    pub fn twin(&self) -> Self {
        let made = self.made + 1000;
        Self { dir: self.dir.clone(), image: self.image.clone(), own: self.own.clone(), made }
    }

    pub fn stack(&self) -> Vec<PathBuf> {
        self.own.iter().chain(&self.image).cloned().collect()
    }

    pub fn new_dir(&mut self, name: &str) -> PathBuf {
        self.made += 1;
        let dir = self.dir.join(format!("{name}{}", self.made));
        fs::create_dir(&dir).unwrap();
        dir
    }

    /// One run: an empty upper over the stack, changes, unmount, strip.
    pub fn session(&mut self, change: impl FnOnce(&Path)) -> Measure {
        let (upper, work) = (self.new_dir("layer"), self.new_dir("work"));
        let stack = self.stack();
        let below = opened(&stack);
        tree::materialize(&[], &borrowed(&below), open(&upper).as_fd(), Data::Copy, &mut |_| {}).unwrap();
        let view = View::writable(&stack, &upper, &work);
        change(&view.path());
        drop(view);
        let measure = tree::measure_and_strip(open(&upper).as_fd()).unwrap();
        tree::remove_tree(&work).unwrap();
        self.own.insert(0, upper);
        measure
    }

    pub fn list(&self, layers: &[PathBuf]) -> Listing {
        listing(&View::of(layers, &self.dir.join("empty")).path())
    }

    pub fn list_all(&self) -> Listing {
        self.list(&self.stack())
    }

    /// Flattens all own layers into a new one.
    pub fn flatten(&mut self, data: Data) -> (PathBuf, Measure) {
        let flat = self.new_dir("flat");
        let (own, below) = (opened(&self.own), opened(&self.image));
        let measure =
            tree::materialize(&borrowed(&own), &borrowed(&below), open(&flat).as_fd(), data, &mut |_| {}).unwrap();
        (flat, measure)
    }

    /// Folds the own layer at `position` into the one below it.
    pub fn fold(&mut self, position: usize, should_yield: &mut dyn FnMut() -> bool) -> tree::FoldOutcome {
        let stack = self.stack();
        let (top, bottom) = (open(&stack[position]), open(&stack[position + 1]));
        let below = opened(&stack[position + 2..]);
        let below = borrowed(&below);
        let layers = tree::FoldLayers { top: top.as_fd(), bottom: bottom.as_fd(), below: &below };
        tree::fold(layers, open(&self.dir.join("trash")).as_fd(), should_yield).unwrap()
    }
}
