//! Layers that no copy of a record tells of: generations saved after it, whole containers without one, and the rest.

use super::{Place, RebuildFacts, Rebuilt, warning};
use crate::check::Finding;
use crate::container::Container;
use crate::generations::{Generation, Health, Kind, Queue};
use crate::id::{ContainerId, Digest, LayerId, RunId, Seq};
use crate::layers::{LayerFile, LayerKind, LayerOrigin, LayerRecord};
use crate::time::Time;
use alloc::borrow::ToOwned as _;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

/// A state of a container that is told by the layer on top of it.
pub(super) struct Found<'a> {
    layer: &'a LayerId,
    record: &'a LayerRecord,
    run: Option<&'a RunId>,
    below: &'a [LayerId],
    image: &'a Digest,
    at: Time,
    /// Whether it came after everything that the copy knows.
    is_later: bool,
}

/// What a layer tells of the state it is on top of: its container, its name, and the state; no stack where that of
/// several is not known.
fn told(file: &LayerFile) -> Option<Told<'_>> {
    let (container, name, run, below, image, at) = match &file.origin {
        LayerOrigin::Run { container, name, run, below, image, exited_at } => {
            (container, name, Some(run), Some(below.as_slice()), image, *exited_at)
        }
        LayerOrigin::Import { container, name, image, below } => {
            (container, name, None, below.as_deref(), image, file.created_at)
        }
        LayerOrigin::Image { .. } | LayerOrigin::Merged { .. } => return None,
    };
    Some(Told { container, name, run, below, image, at })
}

struct Told<'a> {
    container: &'a ContainerId,
    name: &'a String,
    run: Option<&'a RunId>,
    below: Option<&'a [LayerId]>,
    image: &'a Digest,
    at: Time,
}

/// Containers that layers tell of and no copy does, as new ones of that name, in order of their ids.
pub(super) fn bare_containers(facts: &RebuildFacts, is_known: &dyn Fn(&ContainerId) -> bool) -> Vec<Container> {
    let mut bare: BTreeMap<&ContainerId, Container> = BTreeMap::new();
    let mut files: Vec<(Told<'_>, &LayerFile)> =
        facts.layers.iter().filter_map(|(file, _)| Some((told(file)?, file))).collect();
    files.sort_by_key(|(told, _)| told.at);
    for (told, file) in files.into_iter().filter(|(told, _)| !is_known(told.container)) {
        let Ok(name) = told.name.parse() else { continue };
        // The name and the image are those of its last state.
        let entry = bare.entry(told.container).or_insert_with(|| {
            let image = (told.image.clone(), told.image.to_string());
            Container::new(told.container.clone(), told.name.parse().unwrap_or(name), image, file.created_at)
        });
        if let Ok(name) = told.name.parse() {
            entry.name = name;
        }
        (entry.image, entry.image_name) = (told.image.clone(), told.image.to_string());
    }
    bare.into_values().collect()
}

/// States of a container that the copy of its record does not know, oldest first.
pub(super) fn of_container<'a>(copy: &Container, facts: &'a RebuildFacts) -> Vec<Found<'a>> {
    let generations = || copy.queue.iter().flat_map(|queue| &queue.generations);
    let runs: BTreeSet<&RunId> = generations().filter_map(|generation| generation.run.as_ref()).collect();
    let named: BTreeSet<&LayerId> = generations().flat_map(|generation| &generation.layers).collect();
    let last = generations().map(|generation| generation.exited_at).max();
    let became = became(facts, &named);
    let unknown: Vec<(Told<'_>, &LayerId, &LayerRecord)> = facts
        .layers
        .iter()
        .filter(|(file, _)| !named.contains(&file.id) && !became.contains(&file.id))
        .filter_map(|(file, record)| Some((told(file)?, &file.id, record)))
        .filter(|(told, ..)| *told.container == copy.id && told.run.is_none_or(|run| !runs.contains(run)))
        .collect();
    // Parts of what was read from an image are no states by themselves, only the whole is; and what an older release
    // read does not say in which order its parts lie, unless it is the only one.
    let read = || unknown.iter().filter(|(told, ..)| told.run.is_none());
    let parts: BTreeSet<&LayerId> = read().filter_map(|(told, ..)| told.below).flatten().collect();
    let is_only = read().count() == 1;
    let mut found: Vec<Found<'_>> = unknown
        .iter()
        .filter(|(told, layer, _)| told.run.is_some() || !parts.contains(layer))
        .filter_map(|(told, layer, record)| {
            let below = told.below.or(is_only.then_some(&[]))?;
            let (run, image, at) = (told.run, told.image, told.at);
            Some(Found { layer, record, run, below, image, at, is_later: Some(at) > last })
        })
        .collect();
    found.sort_by(|a, b| a.at.cmp(&b.at).then_with(|| a.layer.cmp(b.layer)));
    found
}

/// Layers that became one with others, where that one is among these.
fn became<'a>(facts: &'a RebuildFacts, named: &BTreeSet<&LayerId>) -> BTreeSet<&'a LayerId> {
    let of =
        facts.layers.iter().filter(|(file, _)| named.contains(&file.id)).filter_map(|(file, _)| match &file.origin {
            LayerOrigin::Merged { of } => Some(of),
            LayerOrigin::Image { .. } | LayerOrigin::Run { .. } | LayerOrigin::Import { .. } => None,
        });
    of.flatten().collect()
}

/// Appends a state to the queue: as the present one if it came after everything else, else for its owner to look at. It
/// may have been evicted, or saved while the clock was wrong.
pub(super) fn append(
    queue: &mut Queue,
    found: &Found<'_>,
    (copy, place): (&Container, &Place<'_>),
    findings: &mut Vec<Finding>,
) {
    let seq = queue.next_seq;
    let mut layers = alloc::vec![found.layer.clone()];
    layers.extend_from_slice(found.below);
    let generation = Generation {
        seq,
        exited_at: found.at,
        kind: if found.run.is_some() { Kind::Salvage } else { Kind::Import },
        health: Health::Unknown,
        exit_code: None,
        parent: queue.current,
        image: found.image.clone(),
        layers,
        mount_options: Vec::new(),
        run: found.run.cloned(),
        bytes: found.record.bytes,
        entries: found.record.entries,
        pinned: !found.is_later,
        quarantined: !found.is_later,
        cold: false,
        verified_at: None,
        clean: false,
        note: Some("found by doctor --rebuild".to_owned()),
        by: "doctor".to_owned(),
        extra: BTreeMap::new(),
    };
    match place.check(&generation) {
        Ok(layers) => {
            queue.generations.push(Generation { layers, ..generation });
            queue.next_seq = Seq(seq.0.saturating_add(1));
            if found.is_later {
                queue.current = Some(seq);
                return;
            }
            findings.push(Finding {
                hint: format!(
                    "`perennial diff {0}@{seq}` shows what it is, `perennial rollback {0} --to {seq}` starts from it; \
                     `perennial unpin {0}@{seq}` lets it go",
                    copy.name
                ),
                ..warning(
                    format!("generation {}@{seq}", copy.name),
                    format!(
                        "made of layer {}, which the copy of the record does not know and which is not younger: it was \
                         evicted, or saved while the clock was wrong; it is pinned and quarantined",
                        found.layer
                    ),
                )
            });
        }
        Err(why) => findings.push(warning(format!("layer {} of container {}", found.layer, copy.name), why)),
    }
}

/// Holds the layers of containers that nothing shows now, and says so.
pub(super) fn hold(facts: &RebuildFacts, rebuilt: &mut Rebuilt) {
    let queues = || rebuilt.containers.iter().filter_map(|container| container.queue.as_ref());
    let generations = || queues().flat_map(|queue| &queue.generations);
    let named: BTreeSet<&LayerId> = generations().flat_map(|generation| &generation.layers).collect();
    let runs: BTreeSet<&RunId> = generations().filter_map(|generation| generation.run.as_ref()).collect();
    let shown = |of: &[LayerId]| !of.is_empty() && of.iter().all(|id| named.contains(id));
    let became = became(facts, &named);
    let is_shown_otherwise = |file: &LayerFile| match &file.origin {
        LayerOrigin::Merged { of } => shown(of),
        LayerOrigin::Run { run, .. } => runs.contains(run),
        LayerOrigin::Image { .. } | LayerOrigin::Import { .. } => false,
    };
    let held = facts.layers.iter().filter(|(file, record)| {
        record.kind == LayerKind::Delta
            && !named.contains(&file.id)
            && !became.contains(&file.id)
            && !is_shown_otherwise(file)
    });
    let mut held: Vec<&LayerFile> = held.map(|(file, _)| file).collect();
    held.sort_by(|a, b| a.id.cmp(&b.id));
    let ids = held.iter().map(|file| file.id.clone()).collect();
    for file in held {
        let whose = match told(file) {
            Some(told) => format!("layer {} of container {}", file.id, told.name),
            None => format!("layer {}", file.id),
        };
        rebuilt.findings.push(Finding {
            hint: format!(
                "where an image or another layer is gone, bring it back, move records.db aside and rebuild once more; \
                 files of a layer that is not sealed are in layers/{}/tree; `perennial gc --held` frees what is held",
                file.id
            ),
            ..warning(
                whose,
                "no generation shows it, and what there is does not tell which should: it is held".to_owned(),
            )
        });
    }
    rebuilt.held = ids;
}
