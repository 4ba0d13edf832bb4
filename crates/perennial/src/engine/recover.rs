//! Puts right what a process that died has left (rows A9, A27, A28).
//!
//! A run's supervisor holds the run's lock for life. Whoever gets that lock while the record still names the run knows
//! that nobody will end it any more, and does so: processes are ended, the union is unmounted, and what the run wrote
//! becomes a generation of kind `salvage`. A run that changed nothing leaves nothing. An exit that was begun is finished as
//! the exit it is, unless the machine went down before its changes were made durable: that is saved as well.

use super::Engine;
use super::records::Doc;
use crate::failure::Result;
use perennial_core::container::{Container, Event, Phase, Run, StartMode};
use perennial_core::generations::health::salvage;
use perennial_core::id::{ContainerName, RunId};
use perennial_store::root::{Lock, Wait};
use perennial_store::tree;
use std::os::fd::AsFd as _;
use std::path::Path;

impl Engine {
    /// Finishes what a dead supervisor of this container left. The caller holds the container's lock.
    ///
    /// # Errors
    /// Where the records cannot be read or written. An exit that cannot be finished yet is no error here: it stays
    /// visible as `ExitIncomplete`.
    pub fn recover_locked(&self, mut doc: Doc<Container>) -> Result<Doc<Container>> {
        let Some(run) = doc.value.phase.run().cloned() else { return Ok(doc) };
        let Some(run_lock) = self.root.lock_run(&run.id, Wait::Never)? else { return Ok(doc) };
        // The supervisor may have finished between our reading the record and its letting go of the lock.
        doc = self.container(&doc.value.id)?;
        if doc.value.phase.run().map(|present| &present.id) != Some(&run.id) {
            return Ok(doc);
        }
        let runtime = doc.value.spec.runtime.clone();
        // An exit goes on where it was, unless the machine went down: then nobody knows whether all of it was written.
        let is_observed = matches!(doc.value.phase, Phase::Exiting { .. }) && !self.was_cut_off(&run.id)?;
        if !is_observed && !self.end_lost_run(&mut doc, &run)? {
            self.release_run(&run.id, runtime.as_deref())?;
            run_lock.remove_file();
            return Ok(doc);
        }
        match self.finish_exit(&mut doc) {
            Ok(_) => {
                self.release_run(&run.id, runtime.as_deref())?;
                run_lock.remove_file();
            }
            Err(failure) => eprintln!("perennial: {}: {}", doc.value.name, failure.one_line()),
        }
        Ok(doc)
    }

    /// Ends a run that was starting or running when its supervisor died, or exiting when the machine went down. Returns
    /// whether it left something to save.
    fn end_lost_run(&self, doc: &mut Doc<Container>, run: &Run) -> Result<bool> {
        // Nothing has outlived a restart of the machine, and what the runtime noted may be cut off.
        if self.is_of_this_boot(&run.id)?
            && let Ok(runtime) = self.runtime(doc.value.spec.runtime.as_deref())
        {
            runtime.delete(run.id.as_str(), true)?;
        }
        self.leave_union(run)?;
        if self.left_something(&doc.value, run)? {
            let reason = "the run ended without its supervisor: power loss, a kill or a crash";
            self.record_end(doc, run, salvage(self.now(), reason))?;
            return Ok(true);
        }
        self.note_disposable(&run.id);
        doc.value = doc.value.clone().step(Event::Discarded { run: run.id.clone() })?;
        self.save(doc, None)?;
        Ok(false)
    }

    fn left_something(&self, container: &Container, run: &Run) -> Result<bool> {
        let upper = self.root.run_dir(&run.id).join("upper");
        if upper.symlink_metadata().is_err() || self.is_disposable(&run.id) {
            return Ok(false);
        }
        // The runtime writes the process id before the process runs. Without it nothing ran, and what is in the upper
        // are places for mounts.
        let pid_file = self.root.run_dir(&run.id).join("bundle/init.pid");
        if matches!(container.phase, Phase::Starting { .. }) && pid_file.symlink_metadata().is_err() {
            return Ok(false);
        }
        // A union that was never mounted has no work directory of the kernel's making, so nothing ran in it. A run that
        // was recorded as running did run, whatever of that directory a power cut has left.
        let was_mounted = !matches!(container.phase, Phase::Starting { .. })
            || self.root.run_dir(&run.id).join("work/work").symlink_metadata().is_ok();
        let is_half_made = run.mode == StartMode::Unpack
            && matches!(container.phase, Phase::Starting { .. })
            && self.root.run_dir(&run.id).join("fingerprint").symlink_metadata().is_err();
        Ok(was_mounted && !is_half_made && !self.is_unchanged(run, &upper)?)
    }

    /// Returns a container to look at, after finishing what a dead supervisor of it left, unless somebody is at it.
    ///
    /// # Errors
    /// Where it is unknown or the records cannot be read.
    pub fn seen(&self, name: &ContainerName) -> Result<Doc<Container>> {
        let doc = self.container_named(name)?;
        if doc.value.phase.run().is_none() {
            return Ok(doc);
        }
        match self.root.lock_container(&doc.value.id, Wait::Never)? {
            Some(_lock) => self.recover_locked(self.container(&doc.value.id)?),
            None => Ok(doc),
        }
    }

    /// Recovers every container whose supervisor died; those that others are at are left to them.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn recover_all(&self) -> Result<()> {
        self.drop_stale_views()?;
        for doc in self.containers()? {
            if doc.value.phase.run().is_none() {
                continue;
            }
            let Some(_lock) = self.root.lock_container(&doc.value.id, Wait::Never)? else { continue };
            let name = doc.value.name.clone();
            let present = self.container(&doc.value.id).and_then(|doc| self.recover_locked(doc));
            if let Err(failure) = present {
                eprintln!("perennial: {name}: {}", failure.one_line());
            }
        }
        self.sweep_runs()
    }

    /// Frees run directories that no record names. A container's record always names its run, so these are what a
    /// removal or a release was interrupted at; one whose upper holds something is set aside, never freed.
    fn sweep_runs(&self) -> Result<()> {
        for (run, lock) in self.lost_runs()? {
            if !self.is_disposable(&run) && has_content(&self.root.run_dir(&run).join("upper")) {
                continue;
            }
            match self.release_run(&run, None) {
                Ok(()) => lock.remove_file(),
                Err(failure) => eprintln!("perennial: run {run}: {}", failure.one_line()),
            }
        }
        Ok(())
    }

    /// Runs that have a directory but neither a record nor a supervisor, locked.
    fn lost_runs(&self) -> Result<Vec<(RunId, Lock)>> {
        let _graph = self.root.lock_graph()?;
        let live: Vec<RunId> =
            self.containers()?.iter().filter_map(|doc| doc.value.phase.run().map(|run| run.id.clone())).collect();
        let mut lost = Vec::new();
        for entry in std::fs::read_dir(self.root.path().join("runs"))?.flatten() {
            let Some(run) = entry.file_name().to_str().and_then(|name| name.parse::<RunId>().ok()) else { continue };
            if live.contains(&run) {
                continue;
            }
            // A start records its run before it makes the directory, and locks it before that.
            if let Some(lock) = self.root.lock_run(&run, Wait::Never)? {
                lost.push((run, lock));
            }
        }
        Ok(lost)
    }
}

/// Whether an upper directory holds anything.
pub fn has_content(upper: &Path) -> bool {
    tree::open_tree(upper).is_ok_and(|fd| tree::is_empty(fd.as_fd()).is_ok_and(|is_empty| !is_empty))
}
