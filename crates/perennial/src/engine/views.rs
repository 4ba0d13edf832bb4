//! Read-only views of generations: held for one command, or mounted by `browse` until they are unmounted.
//!
//! A command holds the layers it reads with shared locks, which end with it. A mounted view outlives its command, so it
//! is recorded: layers that a recorded view names are neither folded nor freed. A record whose mount is gone, for
//! instance after a boot, protects nothing and is dropped.

use super::records::View;
use super::trees::needs;
use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::format::{self, Format};
use perennial_core::generations::Generation;
use perennial_core::generations::choose::{ChooseError, Selector, choose};
use perennial_core::id::{ContainerName, LayerId, RunId, Seq};
use perennial_core::image::Image;
use perennial_runtime::mount::{self, MountError, OverlayPlan, parse_mountinfo};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{Lock, LockMode, Wait};
use perennial_store::tree;
use perennial_store::tree::diff::{Change, Side};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::UnmountFlags;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How often a generation is looked at again because a fold changed its layers meanwhile.
const HOLD_TRIES_MAX: u32 = 10;
/// How long `browse --unmount` waits for those who still use the view.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(2);

/// A stack of layers that stays as it is while this lives.
#[derive(Debug)]
pub struct Held {
    /// Own layers, newest first.
    pub layers: Vec<LayerId>,
    /// The image below them.
    pub image: Image,
    _locks: Vec<Lock>,
}

impl Held {
    /// Returns all layers, newest first.
    pub fn stack(&self) -> Vec<LayerId> {
        self.layers.iter().chain(&self.image.layers).cloned().collect()
    }
}

/// A held stack mounted where nobody else sees it.
#[derive(Debug)]
pub struct Shown {
    /// Root of the mounted view.
    pub root: OwnedFd,
    _held: Held,
}

/// A held stack with its layers open and mounted where nobody else sees it.
#[derive(Debug)]
pub struct Opened {
    layers: Vec<(LayerId, OwnedFd)>,
    /// Root of the mounted view.
    pub root: OwnedFd,
    _held: Held,
}

impl Engine {
    /// Chooses a generation: the selected one, else the current one.
    ///
    /// # Errors
    /// Where there is none, or it is not whole.
    pub fn chosen<'a>(&self, container: &'a Container, selector: Option<&Selector>) -> Result<&'a Generation> {
        let queue = container.queue.as_ref().ok_or(ChooseError::Empty)?;
        let seq = match (selector, queue.current) {
            (Some(selector), _) => choose(queue, selector)?,
            (None, Some(current)) => choose(queue, &Selector::Seq(current))?,
            (None, None) => return Err(ChooseError::Empty.into()),
        };
        let generation = queue.get(seq).ok_or(ChooseError::Empty)?;
        self.check_intact(&container.name, generation)?;
        Ok(generation)
    }

    /// Holds a generation's layers until the result is dropped.
    ///
    /// # Errors
    /// Where it has left the queue or is not whole.
    pub fn hold_layers(&self, name: &ContainerName, seq: Seq) -> Result<Held> {
        for _ in 0..HOLD_TRIES_MAX {
            let before = self.chosen(&self.seen(name)?.value, Some(&Selector::Seq(seq)))?.clone();
            let image = self.image(&before.image)?.value;
            // Shared: an import may go on, but no layer of an image is freed.
            let mut locks: Vec<Lock> = self.root.lock_images(LockMode::Shared, Wait::Forever)?.into_iter().collect();
            // A fold that was cut off is finished before its layers are locked: that takes them exclusively.
            self.finish_interrupted_folds(&before.layers, &image.layers)?;
            locks.extend(self.share_layers(&before.layers)?);
            locks.extend(self.share_layers(&image.layers)?);
            // A fold may have ended while we waited for it, or the generation may have been evicted.
            let doc = self.container_named(name)?;
            let present = self.chosen(&doc.value, Some(&Selector::Seq(seq)))?;
            if present.layers == before.layers {
                if present.cold {
                    self.thaw(&[before.layers.clone(), image.layers.clone()].concat())?;
                }
                return Ok(Held { layers: before.layers, image, _locks: locks });
            }
        }
        Err(Failure::new(Code::Conflict, format!("the layers of {name}@{seq} change all the time")).hint("try again"))
    }

    /// Holds an image alone.
    ///
    /// # Errors
    /// Where it is not in the store.
    pub fn hold_image(&self, image: Image) -> Result<Held> {
        let lock = self.root.lock_images(LockMode::Shared, Wait::Forever)?;
        let image = self.image(&image.digest)?.value;
        let mut locks: Vec<Lock> = lock.into_iter().collect();
        locks.extend(self.share_layers(&image.layers)?);
        // No generation says whether an image is cold.
        self.thaw(&image.layers)?;
        Ok(Held { layers: Vec::new(), image, _locks: locks })
    }

    /// Opens a held stack for reading as what it shows.
    ///
    /// # Errors
    /// Where the kernel refuses the union.
    pub fn open_shown(&self, held: Held) -> Result<Shown> {
        let root = self.mount_unseen(&self.view_of(&held.stack())?)?;
        Ok(Shown { root, _held: held })
    }

    /// Opens a held stack for reading, as what it shows and layer by layer.
    ///
    /// # Errors
    /// Where a layer cannot be opened or the kernel refuses the union.
    pub fn open_view(&self, held: Held) -> Result<Opened> {
        let ids = held.stack();
        self.ensure_resolved(&ids)?;
        let fds = self.open_layers(&ids)?;
        let root = self.mount_unseen(&self.view_of(&ids)?)?;
        Ok(Opened { layers: ids.into_iter().zip(fds).collect(), root, _held: held })
    }

    /// Returns what to mount to look at held layers.
    pub fn view_of(&self, ids: &[LayerId]) -> Result<OverlayPlan> {
        let layers = self.states(ids)?;
        Ok(OverlayPlan::read_only(self.lowers(&layers)?, self.data_of(needs(&layers))))
    }

    /// Mounts a union that is gone with its descriptor: attached nowhere where the kernel can, else only for a moment.
    pub fn mount_unseen(&self, plan: &OverlayPlan) -> Result<OwnedFd> {
        if let Ok(root) = mount::mount_detached(plan) {
            return Ok(root);
        }
        let directory = self.root.staging_dir().join(format!("view-{}", RunId::from_random(random()?)));
        std::fs::create_dir(&directory)?;
        let mounted = mount::mount(plan, &directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = mounted.map(|_| rustix::fs::openat(CWD, &directory, flags, Mode::empty()));
        if root.is_ok() {
            rustix::mount::unmount(&directory, UnmountFlags::DETACH)?;
        }
        std::fs::remove_dir(&directory)?;
        Ok(root??)
    }

    /// Returns what differs between two opened stacks, sorted by path.
    ///
    /// # Errors
    /// Where something in them cannot be read.
    pub fn differences(&self, from: &Opened, to: &Opened) -> Result<Vec<Change>> {
        let from_layers: Vec<_> = from.layers.iter().map(|(id, fd)| (id.clone(), fd.as_fd())).collect();
        let to_layers: Vec<_> = to.layers.iter().map(|(id, fd)| (id.clone(), fd.as_fd())).collect();
        let from = Side { layers: &from_layers, root: from.root.as_fd() };
        let to = Side { layers: &to_layers, root: to.root.as_fd() };
        Ok(tree::diff::diff(&from, &to)?)
    }
}

/// Mounted views.
impl Engine {
    /// Mounts a generation read-only on an empty directory, until [`Engine::unmount_view`].
    ///
    /// # Errors
    /// Where the generation is not whole, or the directory cannot be used; nothing is mounted or recorded then.
    pub fn browse(&self, name: &ContainerName, selector: Option<&Selector>, directory: &Path) -> Result<View> {
        let target = self.check_target(directory)?;
        let seq = self.chosen(&self.seen(name)?.value, selector)?.seq;
        let held = self.hold_layers(name, seq)?;
        // Under this lock nobody frees layers, drops stale views, or takes the same directory.
        let _graph = self.root.lock_graph()?;
        if self.chosen(&self.container_named(name)?.value, Some(&Selector::Seq(seq)))?.layers != held.layers {
            return Err(
                Failure::new(Code::Conflict, format!("the layers of {name}@{seq} have just changed")).hint("try again")
            );
        }
        for (key, view) in self.views()? {
            if view.value.target == target {
                // Not mounted any more, or the directory would not be empty.
                self.records.commit(&Transaction::new().delete(key))?;
            }
        }
        let view = View {
            target,
            container: name.clone(),
            seq,
            layers: held.layers.clone(),
            image: held.image.digest.clone(),
            since: self.now(),
        };
        let key = format!("{}{}", keys::VIEWS, RunId::from_random(random()?));
        let transaction = Transaction::new().expect(&key, 0).put(&key, format::encode(Format::View, &view));
        self.records.commit(&transaction)?;
        let plan = self.view_of(&held.stack());
        if let Err(error) = plan.and_then(|plan| Ok(mount::mount(&plan, Path::new(&view.target))?)) {
            self.records.commit(&Transaction::new().delete(key))?;
            return Err(error);
        }
        Ok(view)
    }

    /// Checks a directory to mount on and returns its absolute path.
    fn check_target(&self, directory: &Path) -> Result<String> {
        let usage = |what: &str| {
            Failure::new(Code::Usage, format!("{} {what}", directory.display()))
                .hint("give an existing empty directory outside the root")
        };
        let resolved = std::fs::canonicalize(directory).map_err(|error| usage(&format!("cannot be used: {error}")))?;
        if !resolved.is_dir() {
            return Err(usage("is not a directory"));
        }
        if resolved.starts_with(self.root.path()) || self.root.path().starts_with(&resolved) {
            return Err(usage("holds the root or lies in it"));
        }
        if std::fs::read_dir(&resolved)?.next().is_some() {
            return Err(usage("is not empty"));
        }
        resolved.into_os_string().into_string().map_err(|_| usage("has a name that is not UTF-8"))
    }

    /// Unmounts a view and forgets it. One that is recorded but not mounted any more is only forgotten.
    ///
    /// # Errors
    /// Where no view is recorded there, or somebody uses it.
    pub fn unmount_view(&self, directory: &Path) -> Result<View> {
        let absolute = std::fs::canonicalize(directory).or_else(|_| std::path::absolute(directory))?;
        let text = absolute.to_string_lossy().into_owned();
        let views = self.views()?;
        let Some((key, view)) = views.iter().find(|(_, view)| view.value.target == text) else {
            let there: Vec<String> = views.into_iter().map(|(_, view)| view.value.target).collect();
            let hint = match there.as_slice() {
                [] => "no view is mounted at all".to_owned(),
                _ => format!("views are mounted on {}", there.join(", ")),
            };
            return Err(Failure::new(Code::NotFound, format!("no view is mounted on {text}")).hint(hint));
        };
        // Only a mount of ours is taken away: the view may be gone and something else be there.
        if is_union_mounted(&view.value.target)? {
            mount::unmount(&absolute, UNMOUNT_DEADLINE).map_err(|error| busy(error, &text))?;
        }
        let graph = self.root.lock_graph()?;
        self.records.commit(&Transaction::new().delete(key))?;
        drop(graph);
        self.free_unused()?;
        self.empty_trash();
        Ok(view.value.clone())
    }

    /// Returns the views that are recorded but not mounted any more, with their keys.
    ///
    /// # Errors
    /// Where the records or the table of mounts cannot be read.
    pub fn stale_views(&self) -> Result<Vec<(String, View)>> {
        let mut stale = Vec::new();
        for (key, view) in self.views()? {
            if !is_union_mounted(&view.value.target)? {
                stale.push((key, view.value));
            }
        }
        Ok(stale)
    }

    /// Drops the records of views that are not mounted any more; returns where they were.
    ///
    /// # Errors
    /// As [`Engine::stale_views`].
    pub fn drop_stale_views(&self) -> Result<Vec<String>> {
        if self.views()?.is_empty() {
            return Ok(Vec::new());
        }
        let _graph = self.root.lock_graph()?;
        let stale = self.stale_views()?;
        if !stale.is_empty() {
            let transaction = stale.iter().fold(Transaction::new(), |t, (key, _)| t.delete(key.as_str()));
            self.records.commit(&transaction)?;
        }
        Ok(stale.into_iter().map(|(_, view)| view.target).collect())
    }
}

fn busy(error: MountError, target: &str) -> Failure {
    let is_busy = matches!(error, MountError::Busy { .. });
    let failure = Failure::from(error);
    if is_busy {
        return failure.code(Code::Conflict).hint(format!("`fuser -vm {target}` names those who use it"));
    }
    failure
}

/// Whether a union is mounted at `target`, as we or as the machine's first process sees it: a command may run in a
/// mount namespace of its own, and must not take what it cannot see for gone.
fn is_union_mounted(target: &str) -> Result<bool> {
    let own = std::fs::read("/proc/self/mountinfo")?;
    let first = std::fs::read("/proc/1/mountinfo").unwrap_or_default();
    let mut entries = parse_mountinfo(&own).into_iter().chain(parse_mountinfo(&first));
    Ok(entries.any(|entry| entry.fs_type == "overlay" && entry.target == Path::new(target)))
}
