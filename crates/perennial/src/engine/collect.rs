//! `gc`: finds what dead processes left and what nothing needs, plans, and carries the plan out.
//!
//! What is looked at is not locked while it is looked at, so each step looks again under the lock that guards its
//! object. A run's lock is held by its supervisor for life: a run whose lock is free is nobody's.

use super::Engine;
use super::exit::cgroup_of;
use super::recover::has_content;
use crate::failure::{Code, Failure, Result};
use perennial_core::collect::{CollectFacts, CollectPlan, RunContent, SizedLayer, ViewFacts, plan};
use perennial_core::id::{ContainerId, LayerId, RunId};
use perennial_runtime::cgroup::Cgroup;
use perennial_runtime::mount;
use perennial_store::layer;
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How long what is left of a dead run may take to end.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// What becomes of layers that `doctor --rebuild` has found nobody for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// They stay.
    Stays,
    /// Nobody wants them any more.
    Goes,
}

/// What a collection did.
#[derive(Debug, Default)]
pub struct Collected {
    /// What was planned after recovery, and done as far as [`Collected::failures`] does not say otherwise.
    pub plan: CollectPlan,
    /// What could not be done.
    pub failures: Vec<Failure>,
}

impl Engine {
    /// Plans a collection without changing anything.
    ///
    /// # Errors
    /// Where records or directories cannot be read.
    pub fn plan_collection(&self, held: Held) -> Result<CollectPlan> {
        let mut facts = self.collect_facts()?;
        if held == Held::Goes {
            facts.held.clear();
        }
        Ok(plan(&facts))
    }

    /// Layers that `doctor --rebuild` has found nobody for.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn held_layers(&self) -> Result<BTreeSet<LayerId>> {
        let keys = self.records.list(keys::HELD)?.into_iter();
        Ok(keys.filter_map(|(key, _)| key.strip_prefix(keys::HELD)?.parse().ok()).collect())
    }

    /// Holds them no longer: what frees layers that nothing names frees them, too.
    fn let_held_go(&self) -> Result<()> {
        let _graph = self.root.lock_graph()?;
        let held = self.held_layers()?;
        let transaction = held.iter().fold(Transaction::new(), |transaction, id| transaction.delete(keys::held(id)));
        self.records.commit(&transaction)?;
        Ok(())
    }

    /// Recovers what dead processes left and frees what nothing needs.
    ///
    /// # Errors
    /// Where records or directories cannot be read; a single object that resists is in the result.
    pub fn collect(&self, held: Held) -> Result<Collected> {
        if held == Held::Goes {
            self.let_held_go()?;
        }
        let before = self.plan_collection(held)?;
        let mut done = Collected::default();
        let mut note = |result: Result<()>| done.failures.extend(result.err());
        for run in &before.runs {
            note(self.free_dead_run(run));
        }
        note(self.drop_stale_views().map(drop));
        // A recovered run evicts, so what is free is known only after it.
        self.recover_all()?;
        let after = self.plan_collection(held)?;
        note(self.free_unused().map(drop));
        note(self.free_image_layers().map(drop));
        for id in &after.logs {
            note(layer::discard(&self.root, &self.log_dir(id), &format!("logs-{id}")).map_err(Failure::from));
        }
        note(self.remove_idle_locks());
        note(self.drop_sealed_trees().and_then(|dropped| {
            self.empty_trash();
            self.finish_objects(&dropped)
        }));
        self.empty_trash();
        note(self.free_objects().map(drop));
        note(self.free_in_packs());
        self.empty_trash();
        note(self.free_travellers());
        note(self.wake_senders());
        done.plan = CollectPlan {
            recover: before.recover,
            views: before.views,
            runs: before.runs,
            trash: before.trash,
            staging: before.staging,
            ..after
        };
        // Whoever unlinks right now goes on; alone with the trash, what was there before the collection must be gone.
        if self.root.lock_trash()?.is_some() {
            self.empty_trash();
            let left = names_in(&self.root.trash_dir())?;
            for name in left.iter().filter(|name| done.plan.trash.contains(name)) {
                done.failures.push(Failure::new(Code::Failed, format!("trash/{name} could not be unlinked")));
            }
        }
        Ok(done)
    }

    fn collect_facts(&self) -> Result<CollectFacts> {
        // Directories before records: what a record names now was made after the record, so nothing that is seen here
        // and not named below is about to be named.
        let layer_dirs = layer::list(&self.root)?.into_iter().collect();
        let dirs: BTreeSet<RunId> = named(&self.root.path().join("runs"), "")?;
        let mut traces: BTreeSet<RunId> = named(&self.root.oci_dir(), "")?;
        traces.extend(named(&self.root.path().join("locks"), "run-")?);
        let logs: BTreeSet<ContainerId> = named(&self.root.path().join("logs"), "")?;
        let mut facts = CollectFacts { layer_dirs, logs, ..CollectFacts::default() };
        facts.containers = self.containers()?.into_iter().map(|doc| doc.value).collect();
        for run in facts.containers.iter().filter_map(|container| container.phase.run()) {
            if self.is_nobodys(&run.id)? {
                facts.unsupervised.insert(run.id.clone());
            }
        }
        for run in dirs {
            if self.is_nobodys(&run)? {
                let content = match has_content(&self.root.run_dir(&run).join("upper")) {
                    true => RunContent::Changes,
                    false => RunContent::Nothing,
                };
                facts.run_dirs.push((run, content));
            }
        }
        for run in traces {
            if self.is_nobodys(&run)? {
                facts.run_traces.insert(run);
            }
        }
        for doc in self.layers()? {
            facts.layer_records.push(SizedLayer { id: doc.value.id, bytes: doc.value.bytes });
        }
        facts.held = self.held_layers()?;
        facts.image_layers = self.images()?.into_iter().flat_map(|image| image.value.layers).collect();
        let stale: BTreeSet<String> = self.stale_views()?.into_iter().map(|(key, _)| key).collect();
        for (key, view) in self.views()? {
            let (target, layers) = (view.value.target, view.value.layers);
            facts.views.push(ViewFacts { target, layers, is_mounted: !stale.contains(&key) });
        }
        facts.sealed_trees = self.sealed_trees()?;
        // Where they cannot be told apart, the attempt to free them says so; everything else goes on.
        facts.objects = self.unused_objects().unwrap_or_default();
        facts.packs = self.idle_packs().unwrap_or_default();
        facts.staging = names_in(&self.root.staging_dir())?;
        facts.trash = names_in(&self.root.trash_dir())?;
        facts.is_making_layers = self.root.lock_images(LockMode::Exclusive, Wait::Never)?.is_none();
        Ok(facts)
    }

    /// Whether a run's supervisor is gone; a lock file that this look makes is removed again.
    pub fn is_nobodys(&self, run: &RunId) -> Result<bool> {
        let had_file = self.root.path().join("locks").join(format!("run-{run}")).symlink_metadata().is_ok();
        match self.root.lock_run(run, Wait::Never)? {
            Some(lock) if !had_file => {
                lock.remove_file();
                Ok(true)
            }
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    /// Frees what is left of a run that no record names and whose directory holds nothing.
    fn free_dead_run(&self, run: &RunId) -> Result<()> {
        let Some(lock) = self.root.lock_run(run, Wait::Never)? else { return Ok(()) };
        let is_live = self.containers()?.iter().any(|doc| doc.value.phase.run().is_some_and(|live| live.id == *run));
        let directory = self.root.run_dir(run);
        if is_live || has_content(&directory.join("upper")) {
            return Ok(());
        }
        if self.is_of_this_boot(run)?
            && let Ok(runtime) = self.runtime(None)
        {
            runtime.delete(run.as_str(), true)?;
        }
        let cgroup = Cgroup::at(&cgroup_of(run))?;
        cgroup.kill_all(END_DEADLINE)?;
        cgroup.remove()?;
        self.disconnect(run)?;
        mount::unmount(&directory.join("merged"), END_DEADLINE)?;
        layer::discard(&self.root, &self.root.oci_dir().join(run.as_str()), &format!("oci-{run}"))?;
        layer::discard(&self.root, &directory, &format!("run-{run}"))?;
        lock.remove_file();
        Ok(())
    }

    /// Removes the lock files of layers and containers that are gone.
    fn remove_idle_locks(&self) -> Result<()> {
        let locks = self.root.path().join("locks");
        let layers: BTreeSet<LayerId> = named(&locks, "layer-")?;
        for id in layers.iter().filter(|id| self.root.layer_dir(id).symlink_metadata().is_err()) {
            if let Some(lock) = self.root.lock_layer(id, LockMode::Exclusive, Wait::Never)? {
                lock.remove_file();
            }
        }
        // Made for each attempt, and of no use between two.
        let sealing: BTreeSet<LayerId> = named(&locks, "seal-")?;
        for id in &sealing {
            if let Some(lock) = self.root.lock_seal(id)? {
                lock.remove_file();
            }
        }
        let known: BTreeSet<ContainerId> = self.containers()?.into_iter().map(|doc| doc.value.id).collect();
        let containers: BTreeSet<ContainerId> = named(&locks, "container-")?;
        for id in containers.difference(&known) {
            if let Some(lock) = self.root.lock_container(id, Wait::Never)? {
                lock.remove_file();
            }
        }
        Ok(())
    }
}

/// Returns the entries of a directory; one that is missing has none.
pub fn entries(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn names_in(directory: &Path) -> std::io::Result<Vec<String>> {
    let names =
        entries(directory)?.into_iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    Ok(names)
}

/// Returns the ids that entries of a directory are named by, after a prefix.
pub fn named<T: FromStr + Ord>(directory: &Path, prefix: &str) -> std::io::Result<BTreeSet<T>> {
    let names = names_in(directory)?;
    Ok(names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect())
}
