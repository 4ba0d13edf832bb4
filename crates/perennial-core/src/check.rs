//! Invariants over records and what is on disk, used by `perennial doctor` and by tests.

use crate::container::{Container, Phase, Run};
use crate::id::{Digest, LayerId, RunId};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// What was found in a store.
#[derive(Debug, Clone, Default)]
pub struct StoreFacts {
    /// Records of containers.
    pub containers: Vec<Container>,
    /// Images there is a record of.
    pub images: BTreeSet<Digest>,
    /// Layers there is a record of.
    pub layer_records: BTreeSet<LayerId>,
    /// Layer directories that have their tree.
    pub layer_trees: BTreeSet<LayerId>,
    /// Layers that images name.
    pub image_layers: BTreeSet<LayerId>,
    /// Layers that mounted views name.
    pub view_layers: BTreeSet<LayerId>,
    /// Layers that a rebuild of the records could not tell to whom they belong.
    pub held: BTreeSet<LayerId>,
    /// Run directories.
    pub run_dirs: BTreeSet<RunId>,
    /// Unions mounted under the root, by run.
    pub mounts: BTreeSet<RunId>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Will be put right by itself, or is only for information.
    Note,
    /// Should be looked at.
    Warning,
    /// State is missing or two records contradict each other.
    Error,
}

/// One finding, with what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Name of the object.
    pub object: String,
    /// What is the matter.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Finding {
    fn new(severity: Severity, object: String, message: String, hint: &str) -> Self {
        Self { severity, object, message, hint: String::from(hint) }
    }
}

/// Checks every invariant that records and directories can show; an empty result means that all hold.
#[must_use]
pub fn check(facts: &StoreFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_names(facts, &mut findings);
    for layer in facts.image_layers.difference(&facts.layer_trees) {
        let (object, message) = (format!("layer {layer}"), "a layer of an image is missing on disk".into());
        findings.push(Finding::new(Severity::Error, object, message, "import the same image again"));
    }
    let mut live_runs = BTreeSet::new();
    let mut named: BTreeSet<LayerId> = facts.image_layers.union(&facts.view_layers).cloned().collect();
    for layer in &facts.held {
        let (object, message) = (format!("layer {layer}"), "held: `doctor --rebuild` found nobody for it".into());
        findings.push(Finding::new(Severity::Warning, object, message, "`perennial gc --held` frees what is held"));
        named.insert(layer.clone());
    }
    for container in &facts.containers {
        check_queue(container, &mut findings);
        check_references(container, facts, &mut findings);
        if let Some(run) = container.phase.run() {
            live_runs.insert(run.id.clone());
            named.extend(run.layers.iter().cloned());
            named.extend(run.image_layers.iter().cloned());
            named.insert(run.layer.clone());
            check_run(container, run, facts, &mut findings);
        }
        if let Some(queue) = &container.queue {
            named.extend(queue.layers());
        }
    }
    for run in facts.run_dirs.difference(&live_runs) {
        let (object, message) = (format!("run {run}"), "a run directory that no container names".into());
        findings.push(Finding::new(
            Severity::Warning,
            object,
            message,
            "run `perennial gc`; it is set aside, not lost",
        ));
    }
    for run in facts.mounts.difference(&live_runs) {
        let (object, message) = (format!("run {run}"), "a union is still mounted but no container runs in it".into());
        findings.push(Finding::new(Severity::Error, object, message, "run `perennial gc`"));
    }
    for layer in facts.layer_trees.difference(&facts.layer_records) {
        if !named.contains(layer) {
            let (object, message) = (format!("layer {layer}"), "a layer directory without a record".into());
            findings.push(Finding::new(Severity::Warning, object, message, "run `perennial gc`"));
        }
    }
    for layer in facts.layer_records.difference(&named) {
        let (object, message) = (format!("layer {layer}"), "a layer that nothing names".into());
        findings.push(Finding::new(Severity::Note, object, message, "`perennial gc` frees it"));
    }
    findings
}

fn check_names(facts: &StoreFacts, findings: &mut Vec<Finding>) {
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for container in &facts.containers {
        if !ids.insert(&container.id) || !names.insert(&container.name) {
            let message = "another container has the same name or id".into();
            let object = format!("container {} ({})", container.name, container.id);
            findings.push(Finding::new(Severity::Error, object, message, "restore records.db from a copy"));
        }
    }
}

fn check_run(container: &Container, run: &Run, facts: &StoreFacts, findings: &mut Vec<Finding>) {
    let mut error = |message: String, hint: &str| {
        findings.push(Finding::new(Severity::Error, format!("container {}", container.name), message, hint));
    };
    if run.epoch != container.epoch {
        let message = format!("run {} has epoch {}, the container {}", run.id, run.epoch, container.epoch);
        error(message, "restore records.db from a copy");
    }
    if matches!(container.phase, Phase::Running { .. }) && !facts.run_dirs.contains(&run.id) {
        error(format!("is Running but the directory of run {} is missing", run.id), "stop the container");
    }
}

fn check_queue(container: &Container, findings: &mut Vec<Finding>) {
    let object = || format!("container {}", container.name);
    let mut error = |message: String, hint: &str| {
        findings.push(Finding::new(Severity::Error, object(), message, hint));
    };
    let Some(queue) = &container.queue else {
        if !matches!(container.phase, Phase::Created) {
            error(format!("is {} but has no queue", container.phase.name()), "restore records.db from a copy");
        }
        return;
    };
    if let Err(policy) = container.policy.check() {
        error(format!("{policy}"), "set it with `--keep`");
    }
    if queue.current().is_some_and(|generation| generation.quarantined) {
        error("its current generation is in quarantine".into(), "choose one with `perennial rollback`");
    }
    let seqs: Vec<_> = queue.generations.iter().map(|generation| generation.seq).collect();
    if !seqs.is_sorted_by(|a, b| a < b) {
        error("generations are not in order of their numbers".into(), "restore records.db from a copy");
    }
    if seqs.last().is_some_and(|tail| *tail >= queue.next_seq) {
        error("the next generation's number is taken".into(), "restore records.db from a copy");
    }
    match queue.current {
        Some(current) if !seqs.contains(&current) => {
            error(format!("current generation {current} is not in the queue"), "choose one with `perennial rollback`");
        }
        None if !seqs.is_empty() => {
            error("has generations but none is current".into(), "choose one with `perennial rollback`");
        }
        Some(_) | None => {}
    }
    for condition in &container.conditions {
        let message = format!("{:?} since {}: {}", condition.kind, condition.since, condition.message);
        findings.push(Finding::new(Severity::Warning, object(), message, "see `perennial inspect`"));
    }
}

fn check_references(container: &Container, facts: &StoreFacts, findings: &mut Vec<Finding>) {
    if !facts.images.contains(&container.image) {
        let object = format!("container {}", container.name);
        let message = format!("its image {} is missing", container.image);
        findings.push(Finding::new(Severity::Error, object, message, "import the same image again"));
    }
    let Some(queue) = &container.queue else { return };
    for generation in &queue.generations {
        let object = || format!("generation {}@{}", container.name, generation.seq);
        for layer in &generation.layers {
            if !facts.layer_trees.contains(layer) {
                let message = format!("its layer {layer} is missing on disk");
                let hint = "roll back to an intact generation, or restore layers/ from a copy";
                findings.push(Finding::new(Severity::Error, object(), message, hint));
            }
        }
        for layer in generation.layers.iter().filter(|layer| !facts.layer_records.contains(layer)) {
            let message = format!("its layer {layer} has no record");
            findings.push(Finding::new(Severity::Error, object(), message, "restore records.db from a copy"));
        }
        if !facts.images.contains(&generation.image) {
            let message = format!("its image {} is missing", generation.image);
            findings.push(Finding::new(Severity::Error, object(), message, "import the same image again"));
        }
    }
}
