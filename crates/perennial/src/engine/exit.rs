//! From the end of the last process to a committed generation (rows A13 to A17, A27).
//!
//! ```text
//! unmount ─▶ measure and strip the upper ─▶ layer.json ─▶ sync ─▶ rename into layers/ ─▶ one transaction ─▶ release
//! ```
//!
//! Every step can be repeated; the transaction is the commit point. Until it the run's directory is kept, whatever
//! happens; after it the directory is only garbage. The same function serves the supervisor that saw the end and the
//! recovery that found what a dead one left.

use super::Engine;
use super::records::{Doc, Note};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Event, Exit, Phase, Run, StartMode};
use perennial_core::generations::{Appended, Frozen, commit_exit};
use perennial_core::id::RunId;
use perennial_core::layers::{LayerKind, LayerRecord};
use perennial_runtime::cgroup::Cgroup;
use perennial_runtime::clock;
use perennial_runtime::mount;
use perennial_runtime::oci::{OciError, OciRuntime};
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::records::{RecordError, RecordStore as _, Transaction, keys};
use perennial_store::tree::{self, MadeOver, TreeError};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long one try to unmount lasts; what is left in the container's cgroup is killed before it (A17).
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(10);
/// The OCI runtime where a container names none.
pub const RUNTIME_DEFAULT: &str = "runc";
/// Name of the file in a run's directory that says since which start of the machine the run is there.
const BOOT: &str = "boot";
/// Name of the file in a run's directory that says that nothing in it is to be kept.
const DISPOSABLE: &str = "disposable";
/// Bytes of the file that is given back when the disk is full, so that this fact can still be recorded (A34).
const RESERVE_BYTES: u64 = 2 * 1024 * 1024;

impl Engine {
    /// Records that a run has ended.
    pub fn record_end(&self, doc: &mut Doc<Container>, run: &Run, exit: Exit) -> Result<()> {
        doc.value = doc.value.clone().step(Event::Ended { run: run.id.clone(), exit })?;
        self.save_even_if_full(doc)
    }

    /// Commits the change of one container, with the space of the reserve where there is no other.
    pub fn save_even_if_full(&self, doc: &mut Doc<Container>) -> Result<()> {
        self.save(doc, None).or_else(|error| self.with_reserve(error, || self.save(doc, None)))
    }

    /// Saves the layer of an ended run and commits its generation. The caller holds the container's lock.
    ///
    /// # Errors
    /// Where a step fails; the run's directory is then still there, the queue is as before, and the condition
    /// `ExitIncomplete` says why. Calling it again goes on from there.
    pub fn finish_exit(&self, doc: &mut Doc<Container>) -> Result<Appended> {
        match self.try_finish_exit(doc) {
            Ok(appended) => Ok(appended),
            Err(failure) => {
                self.report_incomplete(doc, &failure);
                Err(failure.code(Code::ExitIncomplete).hint(
                    "nothing is lost: what the run changed is kept, and saving it is tried again by itself and by \
                     every command on this container",
                ))
            }
        }
    }

    fn try_finish_exit(&self, doc: &mut Doc<Container>) -> Result<Appended> {
        let Phase::Exiting { run, exit } = doc.value.phase.clone() else {
            let message = format!("container {} is {}, not exiting", doc.value.name, doc.value.phase.name());
            return Err(Failure::new(Code::Conflict, message));
        };
        // Needs no space, and whatever comes after it there are no processes and no mount any more.
        self.leave_union(&run)?;
        self.refill_reserve()?;
        let made = self.freeze(&doc.value, &run, &exit)?;
        self.commit(doc, &run, made)
    }

    /// Ends what is left of the container's processes and unmounts its root.
    pub fn leave_union(&self, run: &Run) -> Result<()> {
        Cgroup::at(&cgroup_of(&run.id))?.kill_all(UNMOUNT_DEADLINE)?;
        let merged = self.root.run_dir(&run.id).join("merged");
        match mount::unmount(&merged, UNMOUNT_DEADLINE) {
            Ok(()) => Ok(()),
            Err(error) => Err(Failure::from(error).hint(
                "end the processes outside the container that use its files, for instance `fuser -m` names them",
            )),
        }
    }

    /// Makes the run's upper a layer, unless nothing has changed; repeating it finds the layer made.
    fn freeze(&self, container: &Container, run: &Run, exit: &Exit) -> Result<Option<LayerFile>> {
        let upper = self.root.run_dir(&run.id).join("upper");
        if upper.symlink_metadata().is_err() {
            return self.frozen_before(run).map(Some);
        }
        if self.is_unchanged(run, &upper)? {
            self.note_disposable(&run.id);
            return Ok(None);
        }
        self.refuse_secret(&upper)?;
        let over = if mount::leaves_redirects(&run.mount_options) { MadeOver::Sealed } else { MadeOver::Directories };
        let measure = tree::measure_and_strip_over(tree::open_tree(&upper)?.as_fd(), over)?;
        if measure.protected > 0 {
            tree::protect::protect(tree::open_tree(&upper)?.as_fd())?;
        }
        let file = LayerFile {
            id: run.layer.clone(),
            created_at: exit.at,
            origin: LayerOrigin::Run {
                container: container.id.clone(),
                name: container.name.to_string(),
                run: run.id.clone(),
                below: match run.mode {
                    StartMode::Mount => run.layers.clone(),
                    StartMode::Unpack => Vec::new(),
                },
                image: run.image.clone(),
                exited_at: exit.at,
            },
            bytes: measure.bytes,
            entries: measure.entries,
            unresolved: measure.unresolved > 0,
        };
        layer::prepare(&self.root, &file)?;
        mount::syncfs(&upper)?;
        layer::adopt_tree(&self.root, &run.layer, &upper)?;
        Ok(Some(file))
    }

    /// What an earlier, interrupted call has frozen.
    fn frozen_before(&self, run: &Run) -> Result<LayerFile> {
        if !layer::has_tree(&self.root, &run.layer) {
            let path = self.root.run_dir(&run.id);
            let message = format!("neither the upper of run {} nor its layer {} is on disk", run.id, run.layer);
            return Err(
                Failure::new(Code::Damaged, message).hint(format!("was something removed in {}?", path.display()))
            );
        }
        // The rename may have been the last thing that happened before a power cut.
        layer::adopt_tree(&self.root, &run.layer, &self.root.run_dir(&run.id).join("upper"))?;
        Ok(layer::describe(&self.root, &run.layer)?)
    }

    /// Whether the run left its state exactly as it found it (A37, A-Q18).
    pub fn is_unchanged(&self, run: &Run, upper: &Path) -> Result<bool> {
        match run.mode {
            StartMode::Mount => {
                let upper = tree::open_tree(upper)?;
                let is_empty = tree::is_empty(upper.as_fd())?;
                Ok(is_empty && same_root(upper.as_fd(), self.base_root(run)?.as_fd())?)
            }
            StartMode::Unpack => {
                let before = std::fs::read(self.root.run_dir(&run.id).join("fingerprint"));
                match before {
                    Ok(before) => Ok(before == tree::fingerprint::fingerprint(tree::open_tree(upper)?.as_fd())?),
                    Err(_) => Ok(false),
                }
            }
        }
    }

    /// The directory whose attributes the root of a run's union had at its start.
    pub fn base_root(&self, run: &Run) -> Result<OwnedFd> {
        match run.layers.first().or(run.image_layers.first()) {
            Some(newest) => self.open_layer(&self.state_of(newest)?),
            None => Ok(tree::open_tree(&self.root.run_dir(&run.id).join("empty"))?),
        }
    }

    /// The commit point: appends the generation, evicts, and ends the run in one transaction.
    fn commit(&self, doc: &mut Doc<Container>, run: &Run, made: Option<LayerFile>) -> Result<Appended> {
        let _graph = self.root.lock_graph()?;
        let mut next = doc.clone();
        let frozen = made.as_ref().map_or(Frozen::Unchanged, |file| {
            let (bytes, entries) = (file.bytes, file.entries);
            Frozen::Layer { bytes, entries }
        });
        let appended = commit_exit(&mut next.value, &run.id, frozen, self.now())?;
        let mut transaction = Transaction::new();
        if let Some(file) = made {
            let size = (file.bytes, file.entries);
            let record = LayerRecord::of_tree(run.layer.clone(), LayerKind::Delta, size, self.now());
            let record = LayerRecord { unresolved: file.unresolved, ..record };
            transaction = transaction.put(keys::layer(&run.layer), record.encode());
        }
        let evicted: Vec<u64> = appended.evicted.iter().map(|seq| seq.0).collect();
        let note = Note {
            action: "exit",
            detail: if evicted.is_empty() { String::new() } else { format!("evicted {evicted:?}") },
            from: run.origin,
            to: Some(appended.seq),
        };
        let transaction = self.put_container(transaction, &mut next, Some(note));
        next.revision = self.records.commit(&transaction)?;
        *doc = next;
        Ok(appended)
    }

    /// Returns the OCI runtime of a container.
    pub fn runtime(&self, name: Option<&str>) -> std::result::Result<OciRuntime, OciError> {
        OciRuntime::by_path(name.unwrap_or(RUNTIME_DEFAULT), &self.root.oci_dir())
    }

    /// Frees what a run used besides its upper; everything in it is committed or was never wanted. Repeatable. The run's
    /// directory goes last, so that whoever still finds it knows that there is something to do.
    pub fn release_run(&self, run: &RunId, runtime: Option<&str>) -> Result<()> {
        let directory = self.root.run_dir(run);
        let runtime_state = self.root.oci_dir().join(run.as_str());
        // After a restart of the machine nothing of the run is alive, and what the runtime noted of it, which it does not
        // sync, may be empty: it refuses to delete that.
        if runtime_state.symlink_metadata().is_ok()
            && self.is_of_this_boot(run)?
            && let Ok(runtime) = self.runtime(runtime)
        {
            runtime.delete(run.as_str(), true)?;
        }
        let cgroup = Cgroup::at(&cgroup_of(run))?;
        cgroup.kill_all(UNMOUNT_DEADLINE)?;
        cgroup.remove()?;
        // What another runtime than the one asked has left, or one that was killed at its work.
        match std::fs::remove_dir_all(&runtime_state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        self.disconnect(run)?;
        mount::unmount(&directory.join("merged"), UNMOUNT_DEADLINE)?;
        layer::discard(&self.root, &directory, &format!("run-{run}"))?;
        Ok(())
    }

    /// Notes in a run's directory that there is nothing in it to keep, before the record stops naming the run: should
    /// this process die between the two, the directory is freed and not set aside.
    pub fn note_disposable(&self, run: &RunId) {
        // A note that cannot be written costs space after a crash, nothing else.
        std::fs::File::create(self.root.run_dir(run).join(DISPOSABLE)).ok();
    }

    /// Whether [`Engine::note_disposable`] was called for a run.
    pub fn is_disposable(&self, run: &RunId) -> bool {
        self.root.run_dir(run).join(DISPOSABLE).symlink_metadata().is_ok()
    }

    /// Notes during which start of the machine a run began.
    ///
    /// # Errors
    /// Where the note cannot be written.
    pub fn note_boot(&self, run: &RunId) -> Result<()> {
        // Not synced: whatever a power cut leaves of it names no start of the machine that is still going on.
        let mut file = std::fs::File::create(self.root.run_dir(run).join(BOOT))?;
        Ok(file.write_all(clock::boot()?.as_bytes())?)
    }

    /// Whether the machine went down while a run's changes were still in its upper, so that some of them may not have
    /// reached the disk. Once they are a layer, all of them have.
    ///
    /// # Errors
    /// Where it cannot be told.
    pub fn was_cut_off(&self, run: &RunId) -> Result<bool> {
        let has_upper = self.root.run_dir(run).join("upper").symlink_metadata().is_ok();
        Ok(has_upper && !self.is_of_this_boot(run)?)
    }

    /// Returns whether a run was begun since the machine was started.
    ///
    /// # Errors
    /// Where it cannot be told.
    pub fn is_of_this_boot(&self, run: &RunId) -> Result<bool> {
        let noted = std::fs::read(self.root.run_dir(run).join(BOOT)).unwrap_or_default();
        Ok(noted == clock::boot()?.as_bytes())
    }

    /// Raises `ExitIncomplete`, with the reserve where the disk is too full even for that.
    fn report_incomplete(&self, doc: &mut Doc<Container>, failure: &Failure) {
        let Some(run) = doc.value.phase.run().map(|run| run.id.clone()) else { return };
        let event = Event::ExitFailed { run, reason: failure.one_line(), at: self.now() };
        let Ok(next) = doc.value.clone().step(event) else { return };
        if next == doc.value {
            return;
        }
        doc.value = next;
        // Where not even that can be written, the run is still recorded and its directory is kept, which is what counts.
        self.save_even_if_full(doc).ok();
    }

    /// Repeats a commit that failed for want of space after giving the reserve back.
    fn with_reserve<T>(&self, error: Failure, again: impl FnOnce() -> Result<T>) -> Result<T> {
        let is_full = error
            .error
            .chain()
            .any(|cause| matches!(cause.downcast_ref::<RecordError>(), Some(RecordError::NoSpace { .. })));
        if !is_full || std::fs::remove_file(self.reserve_path()).is_err() {
            return Err(error);
        }
        again()
    }

    fn reserve_path(&self) -> PathBuf {
        self.root.path().join("reserve")
    }

    /// Makes sure that the reserve is there: without it the disk counts as full.
    pub fn refill_reserve(&self) -> Result<()> {
        let path = self.reserve_path();
        if path.symlink_metadata().is_ok_and(|metadata| metadata.len() >= RESERVE_BYTES) {
            return Ok(());
        }
        let file = std::fs::File::options().create(true).truncate(false).write(true).open(&path)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES) {
            Ok(()) => Ok(()),
            Err(error) => {
                std::fs::remove_file(&path).ok();
                Err(Failure::new(Code::Failed, format!("no space left for {}: {error}", self.root.path().display())))
            }
        }
    }
}

/// Whether two roots have the same attributes, apart from what overlayfs notes for itself and times of access.
fn same_root(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> std::result::Result<bool, TreeError> {
    Ok(tree::root_attrs(a)?.same_apart_from_access(&tree::root_attrs(b)?))
}

/// The cgroup of a run, relative to each hierarchy's root.
pub fn cgroup_of(run: &RunId) -> String {
    format!("/perennial/{run}")
}
