//! Records made again from what lies in the layers, where the record store is lost.
//!
//! After every exit a copy of the container's record goes into the directory of the newest layer of its current
//! generation, and after every import one of the image's record into that of the image's newest layer. The newest copy
//! of each is where a rebuild begins; what happened after it is in the layers' own files:
//!
//! - A generation of which a layer is gone was evicted after the copy, or is damaged: it is left out, by name.
//! - A layer made by a run that the copy does not know is a generation that was saved after it.
//! - A layer that was merged meanwhile is replaced by the one it became.
//! - A container without a copy is made of its layers, with the settings of a new one.
//! - A layer that nothing shows after all that is held: nothing frees it until somebody says so.

mod later;

use crate::check::{Finding, Severity};
use crate::container::{Container, Phase};
use crate::generations::Generation;
use crate::id::{ContainerId, Digest, LayerId, Seq};
use crate::image::Image;
use crate::layers::{Form, LayerFile, LayerKind, LayerOrigin, LayerRecord, ManifestRef};
use alloc::borrow::ToOwned as _;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Copy of a record, kept beside a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "lowercase")]
pub enum RecordCopy {
    /// A container with its queue.
    Container {
        /// Its record.
        container: Box<Container>,
        /// Records of its layers.
        layers: Vec<LayerRecord>,
    },
    /// An image.
    Image {
        /// Its record.
        image: Box<Image>,
        /// Names that lead to it.
        names: Vec<String>,
        /// Records of its layers.
        layers: Vec<LayerRecord>,
    },
}

impl RecordCopy {
    /// Returns the name of its file in the layer's directory.
    #[must_use]
    pub fn file_name(&self) -> String {
        match self {
            Self::Container { container, .. } => format!("container-{}.json", container.id),
            Self::Image { image, .. } => format!("image-{}.json", image.digest.as_str().replace(':', "-")),
        }
    }

    /// Returns whether a file of this name in a layer's directory is a copy.
    #[must_use]
    pub fn is_file_name(name: &str) -> bool {
        (name.starts_with("container-") || name.starts_with("image-")) && name.ends_with(".json")
    }
}

/// What was found in the layers.
#[derive(Debug, Clone, Default)]
pub struct RebuildFacts {
    /// Layers whose data is there, as their own files and directories say.
    pub layers: Vec<(LayerFile, LayerRecord)>,
    /// Copies of records.
    pub copies: Vec<RecordCopy>,
}

/// Records made again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rebuilt {
    /// Containers, in order of their ids.
    pub containers: Vec<Container>,
    /// Images, in order of their digests.
    pub images: Vec<Image>,
    /// What names of images lead to.
    pub names: BTreeMap<String, Digest>,
    /// Layers, in order of their ids.
    pub layers: Vec<LayerRecord>,
    /// Those among them that nothing shows and that are kept all the same, in order.
    pub held: Vec<LayerId>,
    /// What could not be made again, or not for certain.
    pub findings: Vec<Finding>,
}

/// Plans a rebuild.
#[must_use]
pub fn plan(facts: &RebuildFacts) -> Rebuilt {
    let found: BTreeMap<&LayerId, &(LayerFile, LayerRecord)> =
        facts.layers.iter().map(|layer| (&layer.0.id, layer)).collect();
    let mut rebuilt = Rebuilt { layers: records(facts, &found), ..Rebuilt::default() };
    rebuild_images(facts, &found, &mut rebuilt);
    let digests: BTreeSet<&Digest> = rebuilt.images.iter().map(|image| &image.digest).collect();
    let place = Place { found: &found, became: became(facts), images: digests };
    let mut findings = Vec::new();
    let mut names = BTreeSet::new();
    let copied = newest_containers(facts);
    let bare = later::bare_containers(facts, &|id| copied.contains_key(id));
    let containers = copied.into_values().map(|copy| (copy, true)).chain(bare.iter().map(|bare| (bare, false)));
    for (copy, has_copy) in containers {
        let mut container = rebuild_container(copy, &place, facts, &mut findings);
        if !has_copy {
            if container.queue.as_ref().is_none_or(|queue| queue.generations.is_empty()) {
                continue;
            }
            if let Some((name, _)) = rebuilt.names.iter().find(|(_, digest)| **digest == container.image) {
                container.image_name.clone_from(name);
            }
            findings.push(Finding {
                hint: "`perennial inspect` shows what it has now".to_owned(),
                ..warning(
                    format!("container {}", container.name),
                    "there is no copy of its record: it has the generations that its layers tell of, and the settings of \
                     a new container"
                        .to_owned(),
                )
            });
        }
        if !names.insert(container.name.clone()) {
            // A container of that name was removed and its layers not yet freed.
            let name = format!("{}-{}", container.name, container.id);
            findings.push(warning(
                format!("container {}", container.name),
                format!("there are several of that name; this one is now {name}"),
            ));
            container.name = name.parse().unwrap_or(container.name);
        }
        rebuilt.containers.push(container);
    }
    rebuilt.containers.sort_by(|a, b| a.id.cmp(&b.id));
    rebuilt.findings.append(&mut findings);
    later::hold(facts, &mut rebuilt);
    rebuilt
}

fn warning(object: String, message: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        object,
        message,
        hint: "nothing was removed: its directory is where it was".to_owned(),
    }
}

/// Records of layers: the copies', where there are some, since only they know an image layer's digest.
fn records(facts: &RebuildFacts, found: &BTreeMap<&LayerId, &(LayerFile, LayerRecord)>) -> Vec<LayerRecord> {
    let mut records: BTreeMap<LayerId, LayerRecord> =
        facts.layers.iter().map(|(file, record)| (file.id.clone(), record.clone())).collect();
    for copy in &facts.copies {
        let (RecordCopy::Container { layers, .. } | RecordCopy::Image { layers, .. }) = copy;
        for copied in layers.iter().filter(|layer| found.contains_key(&layer.id)) {
            if let Some(record) = records.get_mut(&copied.id) {
                // Its form is what is on disk; the rest is what was recorded.
                let (form, unresolved, manifest) = (record.form, record.unresolved, record.manifest.take());
                *record = LayerRecord { form, unresolved, manifest, ..copied.clone() };
            }
        }
    }
    records.into_values().collect()
}

fn rebuild_images(facts: &RebuildFacts, found: &BTreeMap<&LayerId, &(LayerFile, LayerRecord)>, rebuilt: &mut Rebuilt) {
    let mut images: BTreeMap<&Digest, (&Image, BTreeSet<&String>)> = BTreeMap::new();
    for copy in &facts.copies {
        let RecordCopy::Image { image, names, .. } = copy else { continue };
        let entry = images.entry(&image.digest).or_insert((image, BTreeSet::new()));
        if image.imported_at >= entry.0.imported_at {
            entry.0 = image;
        }
        entry.1.extend(names);
    }
    let mut images: Vec<(&Image, BTreeSet<&String>)> = images.into_values().collect();
    // A name that was given twice leads to the image imported last.
    images.sort_by_key(|(image, _)| image.imported_at);
    for (image, names) in images {
        if let Some(missing) = image.layers.iter().find(|id| !found.contains_key(id)) {
            rebuilt.findings.push(warning(format!("image {}", image.digest), format!("its layer {missing} is gone")));
            continue;
        }
        rebuilt.names.extend(names.into_iter().map(|name| (name.clone(), image.digest.clone())));
        rebuilt.images.push(image.clone());
    }
    rebuilt.images.sort_by(|a, b| a.digest.cmp(&b.digest));
}

/// The newest copy of each container's record.
fn newest_containers(facts: &RebuildFacts) -> BTreeMap<&ContainerId, &Container> {
    let mut newest: BTreeMap<&ContainerId, &Container> = BTreeMap::new();
    let age = |container: &Container| (container.epoch, container.next_event);
    for copy in &facts.copies {
        let RecordCopy::Container { container, .. } = copy else { continue };
        let entry = newest.entry(&container.id).or_insert(container);
        if age(container) > age(entry) {
            *entry = container;
        }
    }
    newest
}

/// What there is to make generations of.
struct Place<'a> {
    found: &'a BTreeMap<&'a LayerId, &'a (LayerFile, LayerRecord)>,
    became: Vec<(&'a LayerId, &'a [LayerId])>,
    images: BTreeSet<&'a Digest>,
}

/// Merged layers with what they were made from.
fn became(facts: &RebuildFacts) -> Vec<(&LayerId, &[LayerId])> {
    facts
        .layers
        .iter()
        .filter_map(|(file, _)| match &file.origin {
            LayerOrigin::Merged { of } => Some((&file.id, of.as_slice())),
            LayerOrigin::Image { .. } | LayerOrigin::Run { .. } | LayerOrigin::Import { .. } => None,
        })
        .collect()
}

impl Place<'_> {
    /// Returns a stack of layers that are all there, with merged ones in the place of those they were made from.
    fn resolve(&self, stack: &[LayerId]) -> Result<Vec<LayerId>, LayerId> {
        let mut resolved = Vec::with_capacity(stack.len());
        let mut rest = stack;
        while let Some((first, others)) = rest.split_first() {
            // What layers became stands for them as soon as one of them is gone.
            let is_gone = |of: &[LayerId]| of.iter().any(|id| !self.found.contains_key(id));
            let merged = self.became.iter().find(|(_, of)| rest.starts_with(of) && is_gone(of));
            if merged.is_none() && self.found.contains_key(first) {
                resolved.push(first.clone());
                rest = others;
                continue;
            }
            let (id, of) = merged.ok_or_else(|| first.clone())?;
            resolved.push((*id).clone());
            rest = rest.get(of.len()..).unwrap_or_default();
        }
        Ok(resolved)
    }

    fn check(&self, generation: &Generation) -> Result<Vec<LayerId>, String> {
        if !self.images.contains(&generation.image) {
            return Err(format!("its image {} is gone", generation.image));
        }
        self.resolve(&generation.layers).map_err(|id| format!("its layer {id} is gone"))
    }
}

fn rebuild_container(
    copy: &Container,
    place: &Place<'_>,
    facts: &RebuildFacts,
    findings: &mut Vec<Finding>,
) -> Container {
    let mut container = copy.clone();
    let mut queue = container.queue.take().unwrap_or_default();
    queue.generations = queue
        .generations
        .into_iter()
        .filter_map(|generation| match place.check(&generation) {
            Ok(layers) => Some(Generation { layers, ..generation }),
            Err(why) => {
                findings.push(warning(format!("generation {}@{}", copy.name, generation.seq), why));
                None
            }
        })
        .collect();
    for found in later::of_container(copy, facts) {
        later::append(&mut queue, &found, (copy, place), findings);
    }
    let is_there = |seq: Option<Seq>| seq.is_some_and(|seq| queue.generations.iter().any(|item| item.seq == seq));
    if !is_there(queue.current) {
        queue.current = queue.generations.iter().rev().find(|item| !item.quarantined).map(|item| item.seq);
    }
    queue.undo = queue.undo.filter(|_| is_there(queue.current));
    queue.held = None;
    // What was running is not any more, or it is a run that nobody commits: its directory is kept by recovery.
    container.phase = Phase::Dormant;
    container.conditions.clear();
    container.queue = Some(queue);
    container
}

/// Returns the record of a layer as its own file and directory say, for want of a copy. `manifest` is that of its sealed
/// form, where its data is there in that form.
#[must_use]
pub fn record_of(file: &LayerFile, manifest: Option<ManifestRef>) -> LayerRecord {
    let (kind, diff_id) = match &file.origin {
        LayerOrigin::Image { diff_id } => (LayerKind::Image, Some(diff_id.clone())),
        LayerOrigin::Run { .. } | LayerOrigin::Merged { .. } | LayerOrigin::Import { .. } => (LayerKind::Delta, None),
    };
    LayerRecord {
        diff_id,
        form: if manifest.is_some() { Form::Sealed } else { Form::Dir },
        unresolved: file.unresolved && manifest.is_none(),
        manifest,
        ..LayerRecord::of_tree(file.id.clone(), kind, (file.bytes, file.entries), file.created_at)
    }
}
