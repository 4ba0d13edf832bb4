//! What `gc` does: what dead processes left is put right, and what nothing needs is freed.
//!
//! The plan is made from facts that may be old by the time it is carried out; whoever carries it out looks again under
//! the lock that guards each object.

use crate::container::Container;
use crate::generations::Queue;
use crate::id::{ContainerId, ContainerName, LayerId, RunId};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// A layer with its size.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SizedLayer {
    /// The layer.
    pub id: LayerId,
    /// Its bytes on disk; 0 where there is no record of it.
    pub bytes: u64,
}

/// Objects and the bytes they take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ObjectCount {
    /// How many.
    pub count: u64,
    /// Their bytes on disk.
    pub bytes: u64,
}

/// A view that `browse` has recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewFacts {
    /// Where it was mounted.
    pub target: String,
    /// Layers it shows.
    pub layers: Vec<LayerId>,
    /// Whether it still is.
    pub is_mounted: bool,
}

/// What is in a run's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunContent {
    /// Nothing anybody would miss.
    Nothing,
    /// Changes that no generation has.
    Changes,
}

/// What was found in a store.
#[derive(Debug, Clone, Default)]
pub struct CollectFacts {
    /// Records of containers.
    pub containers: Vec<Container>,
    /// Runs whose supervisor is gone.
    pub unsupervised: BTreeSet<RunId>,
    /// Layers there is a record of.
    pub layer_records: Vec<SizedLayer>,
    /// Layers there is a directory of.
    pub layer_dirs: BTreeSet<LayerId>,
    /// Layers that images name.
    pub image_layers: BTreeSet<LayerId>,
    /// Layers that are held though nothing else names them.
    pub held: BTreeSet<LayerId>,
    /// Views.
    pub views: Vec<ViewFacts>,
    /// Run directories nobody holds.
    pub run_dirs: Vec<(RunId, RunContent)>,
    /// Other traces of runs nobody holds: state of the OCI runtime, locks.
    pub run_traces: BTreeSet<RunId>,
    /// Containers there is a log directory of.
    pub logs: BTreeSet<ContainerId>,
    /// What is in `staging/`.
    pub staging: Vec<String>,
    /// What is in `trash/`.
    pub trash: Vec<String>,
    /// Sealed layers whose tree is still there.
    pub sealed_trees: Vec<LayerId>,
    /// Objects that no manifest names.
    pub objects: ObjectCount,
    /// Packs that nothing, or little, is needed of.
    pub packs: ObjectCount,
    /// Whether an image is being imported or a layer made right now.
    pub is_making_layers: bool,
}

/// A run to be finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostRun {
    /// Its container.
    pub container: ContainerName,
    /// The run.
    pub run: RunId,
}

/// What is to be done; printed by `--dry-run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CollectPlan {
    /// Runs whose supervisor died: they are ended and what they changed is saved.
    pub recover: Vec<LostRun>,
    /// Directories whose view is not mounted any more.
    pub views: Vec<String>,
    /// Layers that nothing names.
    pub layers: Vec<SizedLayer>,
    /// Runs no record names, with nothing in them.
    pub runs: Vec<RunId>,
    /// Runs no record names whose changes are kept.
    pub set_aside: Vec<RunId>,
    /// Logs of containers that are gone.
    pub logs: Vec<ContainerId>,
    /// What interrupted imports left.
    pub staging: Vec<String>,
    /// What waits to be unlinked.
    pub trash: Vec<String>,
    /// Sealed layers whose tree nothing has mounted any more.
    pub sealed_trees: Vec<LayerId>,
    /// Objects that no manifest names.
    pub objects: ObjectCount,
    /// Packs that go, or are written anew without what no manifest names, with their present lengths.
    pub packs: ObjectCount,
}

impl CollectPlan {
    /// Returns whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self { set_aside: self.set_aside.clone(), ..Self::default() }
    }
}

/// Plans a collection.
#[must_use]
pub fn plan(facts: &CollectFacts) -> CollectPlan {
    let live = |id: &RunId| facts.containers.iter().any(|c| c.phase.run().is_some_and(|run| run.id == *id));
    let recover = facts
        .containers
        .iter()
        .filter_map(|container| container.phase.run().map(|run| (container, run)))
        .filter(|(_, run)| facts.unsupervised.contains(&run.id))
        .map(|(container, run)| LostRun { container: container.name.clone(), run: run.id.clone() })
        .collect();
    let mut runs = BTreeSet::new();
    let mut set_aside = Vec::new();
    for (run, content) in facts.run_dirs.iter().filter(|(run, _)| !live(run)) {
        match content {
            RunContent::Nothing => {
                runs.insert(run.clone());
            }
            RunContent::Changes => set_aside.push(run.clone()),
        }
    }
    // What is left of a run that is set aside stays with it.
    runs.extend(facts.run_traces.iter().filter(|run| !live(run) && !set_aside.contains(run)).cloned());
    let is_known = |id: &ContainerId| facts.containers.iter().any(|container| container.id == *id);
    CollectPlan {
        recover,
        views: facts.views.iter().filter(|view| !view.is_mounted).map(|view| view.target.clone()).collect(),
        layers: unused_layers(facts),
        runs: runs.into_iter().collect(),
        set_aside,
        logs: facts.logs.iter().filter(|id| !is_known(id)).cloned().collect(),
        staging: if facts.is_making_layers { Vec::new() } else { facts.staging.clone() },
        trash: facts.trash.clone(),
        sealed_trees: facts.sealed_trees.iter().filter(|id| !facts.is_mounted(id)).cloned().collect(),
        objects: facts.objects,
        packs: facts.packs,
    }
}

impl CollectFacts {
    /// Whether a run or a view may have a layer mounted; of a view's image it is only known that it has layers.
    fn is_mounted(&self, id: &LayerId) -> bool {
        let runs = self.containers.iter().filter_map(|container| container.phase.run());
        let mut views = self.views.iter().filter(|view| view.is_mounted);
        runs.into_iter().any(|run| run.layers.contains(id) || run.image_layers.contains(id))
            || views.any(|view| view.layers.contains(id) || self.image_layers.contains(id))
    }
}

fn unused_layers(facts: &CollectFacts) -> Vec<SizedLayer> {
    let mut named: BTreeSet<LayerId> = facts.image_layers.union(&facts.held).cloned().collect();
    for container in &facts.containers {
        named.extend(container.queue.iter().flat_map(Queue::layers));
        if let Some(run) = container.phase.run() {
            named.extend(run.layers.iter().chain(&run.image_layers).cloned());
            named.insert(run.layer.clone());
        }
    }
    named.extend(facts.views.iter().filter(|view| view.is_mounted).flat_map(|view| view.layers.iter().cloned()));
    let mut unused: Vec<SizedLayer> =
        facts.layer_records.iter().filter(|layer| !named.contains(&layer.id)).cloned().collect();
    let is_recorded = |id: &LayerId| facts.layer_records.iter().any(|layer| layer.id == *id);
    if !facts.is_making_layers {
        let nameless = facts.layer_dirs.iter().filter(|id| !named.contains(*id) && !is_recorded(id));
        unused.extend(nameless.map(|id| SizedLayer { id: id.clone(), bytes: 0 }));
    }
    unused.sort();
    unused
}
