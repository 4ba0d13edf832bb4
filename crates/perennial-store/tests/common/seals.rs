//! A root with layers in both forms, sealed and mounted for real.

use super::{Listing, Lower, View, listing, open, sessions, traps};
use perennial_core::id::LayerId;
use perennial_core::layers::Form;
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::root::{Root, Secret};
use perennial_store::sealed::{self, Outcome, Request, SealError, Sealed};
use perennial_store::tree::{self, Data, MadeOver, Measure};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use std::fs;
use std::path::{Path, PathBuf};

/// A stack of layers in a root, each in one form.
pub struct SealLab {
    pub root: Root,
    pub objects: Objects,
    /// Newest first.
    pub stack: Vec<(LayerId, Form)>,
    made: u64,
}

impl SealLab {
    /// An image of two layers and two runs with every kind of entry.
    pub fn trapped(dir: &Path) -> Self {
        let mut lab = Self::new(dir);
        lab.layer(traps::build);
        lab.session(traps::rebuild);
        lab.session(|root| {
            traps::first(root);
            unflag(root);
        });
        lab.session(|root| {
            traps::second(root);
            unflag(root);
        });
        lab
    }

    pub fn new(dir: &Path) -> Self {
        let now = "2026-11-22T17:00:00Z".parse().unwrap();
        let root = Root::open_or_create(&dir.join("root"), now, Secret::from_random([0x5e; 16])).unwrap();
        fs::create_dir(root.path().join("empty")).unwrap();
        let objects = Objects::open(&root).unwrap();
        Self { root, objects, stack: Vec::new(), made: 0 }
    }

    fn new_layer(&mut self) -> (LayerId, PathBuf) {
        self.made += 1;
        let id = LayerId::from_random(self.made.to_be_bytes());
        fs::create_dir_all(self.root.layer_tree(&id)).unwrap();
        let tree = self.root.layer_tree(&id);
        (id, tree)
    }

    /// A layer whose tree is written directly.
    pub fn layer(&mut self, build: impl FnOnce(&Path)) -> LayerId {
        let (id, tree) = self.new_layer();
        build(&tree);
        self.stack.insert(0, (id.clone(), Form::Dir));
        id
    }

    pub fn open(&self, layers: &[(LayerId, Form)]) -> Vec<OwnedFd> {
        layers.iter().map(|(id, form)| layer::open(&self.root, id, *form).unwrap()).collect()
    }

    /// One run: an empty upper over the stack, changes, unmount, strip.
    pub fn session(&mut self, change: impl FnOnce(&Path)) -> (LayerId, Measure) {
        let (id, upper) = self.new_layer();
        let work = self.root.layer_dir(&id).join("work");
        fs::create_dir(&work).unwrap();
        let below = self.open(&self.stack);
        let borrowed = sessions::borrowed(&below);
        tree::materialize(&[], &borrowed, open(&upper).as_fd(), Data::Copy, &mut |_| {}).unwrap();
        let lowers: Vec<Lower<'_>> = borrowed.iter().map(|fd| Lower::Fd(*fd)).collect();
        let view = View::sealed(&lowers, Some((&upper, &work)), &self.root.objects_dir());
        change(&view.path());
        drop(view);
        let measure = tree::measure_and_strip_over(open(&upper).as_fd(), MadeOver::Sealed).unwrap();
        tree::remove_tree(&work).unwrap();
        self.stack.insert(0, (id.clone(), Form::Dir));
        (id, measure)
    }

    /// Lists a view of layers.
    pub fn list(&self, layers: &[(LayerId, Form)]) -> Listing {
        let fds = self.open(layers);
        let empty = self.root.path().join("empty");
        let mut lowers: Vec<Lower<'_>> = fds.iter().map(|fd| Lower::Fd(fd.as_fd())).collect();
        lowers.push(Lower::Dir(&empty));
        let view = View::sealed(&lowers, None, &self.root.objects_dir());
        // Until a file was opened, overlayfs takes its allocated bytes from its length.
        listing(&view.path());
        without_flags(listing(&view.path()))
    }

    pub fn list_all(&self) -> Listing {
        self.list(&self.stack)
    }

    pub fn try_seal(&self, position: usize, give_way: &mut dyn FnMut() -> bool) -> Result<Outcome, SealError> {
        let below = self.open(&self.stack[position + 1..]);
        let borrowed = sessions::borrowed(&below);
        let tree = open(&self.root.layer_tree(&self.stack[position].0));
        let request = Request {
            root: &self.root,
            objects: &self.objects,
            layer: &self.stack[position].0,
            tree: tree.as_fd(),
            below: &borrowed,
            workers: 2,
        };
        sealed::seal(&request, give_way)
    }

    /// Seals a layer of the stack; its tree stays.
    pub fn seal(&mut self, position: usize) -> Sealed {
        match self.try_seal(position, &mut || false).unwrap() {
            Outcome::Sealed(sealed) => {
                self.stack[position].1 = Form::Sealed;
                sealed
            }
            Outcome::GaveWay => panic!("nobody asked to give way"),
        }
    }

    /// Removes the trees of sealed layers and finishes their objects.
    pub fn drop_trees(&self) {
        for (id, _) in self.stack.iter().filter(|(_, form)| *form == Form::Sealed) {
            tree::remove_tree(&self.root.layer_tree(id)).unwrap();
        }
        let mut ids = Vec::new();
        self.objects
            .list(&mut |id, _| {
                ids.push(id);
                Ok(())
            })
            .unwrap();
        for id in ids {
            self.objects.finish(&id).unwrap();
        }
    }
}

/// A sealed layer has no inode flags, which is not the same as none being set.
pub fn without_flags(mut listing: Listing) -> Listing {
    for item in listing.values_mut() {
        assert!(item.flags.is_none_or(|flags| flags == 0));
        item.flags = None;
    }
    listing
}

/// Takes away the inode flags that the traps set: a layer with them is not sealed.
pub fn unflag(root: &Path) {
    for name in ["attributes/nodump", "attributes/immutable", "attributes/append", "attributes/nodump-dir", "nested"] {
        let Ok(file) = fs::File::open(root.join(name)) else { continue };
        let flags = ioctl_getflags(&file).unwrap();
        let taken = IFlags::NODUMP | IFlags::IMMUTABLE | IFlags::APPEND;
        if flags.intersects(taken) {
            ioctl_setflags(&file, flags - taken).unwrap();
        }
    }
    traps::set_times(&root.join("attributes"), 9_000_000_000, 999_999_999);
}
