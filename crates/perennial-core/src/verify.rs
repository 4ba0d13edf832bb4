//! What verification found, and what that means for generations (A29).

use crate::container::{ConditionKind, Container};
use crate::generations::choose::nearest_intact;
use crate::generations::{Generation, Health};
use crate::id::{Digest, LayerId, Seq};
use crate::sealed::object::ObjectId;
use crate::time::Time;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use serde::{Serialize, Serializer};

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything is there and has its length; manifests and images are read whole.
    Existence,
    /// Every content is read again and compared with its name.
    Full,
}

/// A part of a layer that can be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Its `layer.json`.
    Description,
    /// The directory of a layer that is not sealed.
    Tree,
    /// The manifest of a sealed layer.
    Manifest,
    /// The metadata image of a sealed layer.
    Image,
    /// The content of a file.
    Object(ObjectId),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Description => f.write_str("layer.json"),
            Self::Tree => f.write_str("tree"),
            Self::Manifest => f.write_str("manifest"),
            Self::Image => f.write_str("meta.erofs"),
            Self::Object(id) => write!(f, "object {id}"),
        }
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// The layer.
    pub layer: LayerId,
    /// What of it.
    pub part: Part,
    /// How it differs.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}: {}: {}", self.layer, self.part, self.problem)
    }
}

/// What was looked at.
#[derive(Debug, Clone)]
pub struct Checked<'a> {
    /// How thoroughly.
    pub depth: Depth,
    /// The layers.
    pub layers: &'a BTreeSet<LayerId>,
    /// What is wrong with them.
    pub faults: &'a BTreeMap<LayerId, Vec<Fault>>,
    /// Layers of the images that generations lie on.
    pub images: &'a BTreeMap<Digest, Vec<LayerId>>,
    /// The objects among the damaged that a stack, with its image's layers, shows; where a stack is not here, all.
    pub shown: &'a BTreeMap<Vec<LayerId>, BTreeSet<ObjectId>>,
    /// When.
    pub at: Time,
}

/// What is to be said of a damaged generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DamagedGeneration {
    /// Its number.
    pub seq: Seq,
    /// What is wrong with its layers and its image's.
    pub faults: Vec<Fault>,
    /// The newest intact generation before it, or else the oldest after it.
    pub nearest_intact: Option<Seq>,
}

/// Marks the damaged generations of a container, and those that turned out to be whole again as unknown; raises or
/// clears the condition. Only a full look clears a mark.
pub fn judge(container: &mut Container, checked: &Checked<'_>) -> Vec<DamagedGeneration> {
    let Some(queue) = &mut container.queue else { return Vec::new() };
    let mut damaged = Vec::new();
    for generation in &mut queue.generations {
        let faults = faults_of(generation, checked);
        if let Some(first) = faults.first() {
            generation.health = Health::Damaged;
            generation.note = Some(first.to_string());
            damaged.push(DamagedGeneration { seq: generation.seq, faults, nearest_intact: None });
        } else if generation.health == Health::Damaged && is_covered(generation, checked) {
            generation.health = Health::Unknown;
            generation.note = None;
        }
    }
    for found in &mut damaged {
        let is_later = |other: &&Generation| other.seq > found.seq && other.health != Health::Damaged;
        let later = queue.generations.iter().find(is_later).map(|other| other.seq);
        found.nearest_intact = nearest_intact(queue, found.seq).or(later);
    }
    let marked: Vec<u64> =
        queue.generations.iter().filter(|other| other.health == Health::Damaged).map(|other| other.seq.0).collect();
    if marked.is_empty() {
        container.clear(ConditionKind::Damaged);
    } else {
        container.raise(ConditionKind::Damaged, checked.at, format!("generations {marked:?} are damaged"));
    }
    damaged
}

fn layers_of<'a>(generation: &'a Generation, checked: &'a Checked<'_>) -> impl Iterator<Item = &'a LayerId> {
    generation.layers.iter().chain(checked.images.get(&generation.image).into_iter().flatten())
}

fn faults_of(generation: &Generation, checked: &Checked<'_>) -> Vec<Fault> {
    let stack: Vec<LayerId> = layers_of(generation, checked).cloned().collect();
    let shown = checked.shown.get(&stack);
    // A version of a file that newer layers hide is none of this generation's.
    let counts = |fault: &&Fault| match fault.part {
        Part::Object(object) => shown.is_none_or(|shown| shown.contains(&object)),
        Part::Description | Part::Tree | Part::Manifest | Part::Image => true,
    };
    stack.iter().filter_map(|layer| checked.faults.get(layer)).flatten().filter(counts).cloned().collect()
}

fn is_covered(generation: &Generation, checked: &Checked<'_>) -> bool {
    checked.depth == Depth::Full
        && checked.images.contains_key(&generation.image)
        && layers_of(generation, checked).all(|layer| checked.layers.contains(layer))
}
