//! Layers of a store, and the decisions which of them become one and which are no longer needed.
//!
//! A *stack* is the list of layers of a generation, newest first. Layers are shared between stacks; a layer changes
//! only where no stack can tell (fold) and is replaced otherwise (merge).

pub mod compact;

use crate::format::{self, Format};
use crate::id::{ContainerId, Digest, LayerId, RunId};
use crate::sealed::object::ObjectId;
use crate::time::Time;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Deepest stack of own layers that is left as it is; beyond it the newest are merged.
///
/// A cold lookup costs about 1 µs for each layer, 15 µs at this depth (measured on overlayfs of Linux 6.18).
pub const DEPTH_MAX: usize = 16;

/// What a layer is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// A layer of an image, as imported.
    Image,
    /// What runs of a container changed.
    Delta,
}

/// How a layer is kept on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A directory in the format of an overlayfs upper directory.
    #[default]
    Dir,
    /// A manifest whose file contents are objects, and an EROFS image of the same tree; see [`crate::sealed`].
    Sealed,
}

/// The manifest of a sealed layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRef {
    /// BLAKE3 of its bytes.
    pub id: ObjectId,
    /// Its length, in bytes.
    pub bytes: u64,
}

/// The record of a layer, kept beside its tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Its identity in this store.
    pub id: LayerId,
    /// What it is made from.
    pub kind: LayerKind,
    /// Digest of the uncompressed archive it was imported from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// Allocated bytes, hard links counted once.
    pub bytes: u64,
    /// Entries without the root.
    pub entries: u64,
    /// When it was made.
    pub created_at: Time,
    /// How it is kept.
    #[serde(default)]
    pub form: Form,
    /// Whether it holds metadata-only files or directory redirects, which mean something only over the layers it was
    /// made over. Never so in sealed form.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub unresolved: bool,
    /// Whether some of its objects may be in packs only. It is recorded before the first of them goes, and taken back
    /// when all of them are durably back. A generation that is not cold itself shows none of those.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub cold: bool,
    /// The manifest, in sealed form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<ManifestRef>,
    /// Why it cannot be sealed and stays a directory, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsealable: Option<String>,
    /// What it hides of the layer below it, where that has been found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hides: Option<Hides>,
}

/// What a sealed layer hides of the one directly below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hides {
    /// That layer.
    pub below: LayerId,
    /// Lengths of the contents, in bytes.
    pub bytes: u64,
}

impl LayerRecord {
    /// Makes the record of a layer in dir form that stands for itself, of so many allocated bytes and entries.
    #[must_use]
    pub const fn of_tree(id: LayerId, kind: LayerKind, (bytes, entries): (u64, u64), created_at: Time) -> Self {
        let (form, unresolved, cold) = (Form::Dir, false, false);
        let (diff_id, manifest, unsealable, hides) = (None, None, None, None);
        Self { id, kind, diff_id, bytes, entries, created_at, form, unresolved, cold, manifest, unsealable, hides }
    }

    /// Returns its bytes for the record store, with the flags that an older release must understand.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut flags = Vec::new();
        if self.form == Form::Sealed {
            flags.push(format::FLAG_SEALED);
        }
        if self.unresolved {
            flags.push(format::FLAG_UNRESOLVED);
        }
        if self.cold {
            flags.push(format::FLAG_COLD);
        }
        format::encode_flagged(Format::Layer, &flags, self)
    }
}

/// Body of `layer.json`: enough to know, without any record, what a layer is and whose it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFile {
    /// The layer.
    pub id: LayerId,
    /// When it was made.
    pub created_at: Time,
    /// Where it comes from.
    pub origin: LayerOrigin,
    /// Bytes on disk when it was made.
    pub bytes: u64,
    /// Entries when it was made.
    pub entries: u64,
    /// Whether its tree holds metadata-only files or directory redirects; see [`LayerRecord`].
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub unresolved: bool,
}

impl LayerFile {
    /// Returns its bytes, with the flags that an older release must understand.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flags: &[&str] = if self.unresolved { &[format::FLAG_UNRESOLVED] } else { &[] };
        format::encode_flagged(Format::LayerFile, flags, self)
    }
}

/// Where a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum LayerOrigin {
    /// A layer of an image.
    Image {
        /// Digest of its uncompressed content.
        diff_id: Digest,
    },
    /// What one run of a container changed.
    Run {
        /// The container.
        container: ContainerId,
        /// Its name at that time.
        name: String,
        /// The run.
        run: RunId,
        /// Layers below it at that time, newest first.
        below: Vec<LayerId>,
        /// The image below them.
        image: Digest,
        /// When the run ended.
        exited_at: Time,
    },
    /// Several layers in one.
    Merged {
        /// Those layers, newest first.
        of: Vec<LayerId>,
    },
    /// A part of a generation that was read from an image, or the newest of one that came from elsewhere.
    Import {
        /// The container it was read for.
        container: ContainerId,
        /// Its name at that time.
        name: String,
        /// The image below it.
        image: Digest,
        /// Own layers below it, newest first; nothing where an older release has not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        below: Option<Vec<LayerId>>,
    },
}

/// Two layers of which the newer is to be folded into the older.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// The newer layer; empty afterwards, and taken out of every stack.
    pub top: LayerId,
    /// The older layer; holds both afterwards.
    pub bottom: LayerId,
}

/// Chooses the next pair of layers to fold, or nothing where no pair can be folded unseen.
///
/// A pair qualifies if every stack that holds one of the two holds both, `top` directly above `bottom`, and neither is
/// mounted or part of an image. The deepest pair of the first stack that has one is chosen: a layer is then moved once
/// on its way down, since a fold costs as much as its top is large.
#[must_use]
pub fn plan_fold(stacks: &[&[LayerId]], in_use: &BTreeSet<LayerId>, images: &BTreeSet<LayerId>) -> Option<Fold> {
    let is_free = |id: &LayerId| !in_use.contains(id) && !images.contains(id);
    stacks
        .iter()
        .flat_map(|stack| stack.iter().zip(stack.iter().skip(1)).rev())
        .filter(|(top, bottom)| top != bottom && is_free(top) && is_free(bottom))
        .find(|(top, bottom)| stacks.iter().all(|stack| keeps_pair_together(stack, top, bottom)))
        .map(|(top, bottom)| Fold { top: top.clone(), bottom: bottom.clone() })
}

fn keeps_pair_together(stack: &[LayerId], top: &LayerId, bottom: &LayerId) -> bool {
    let count = |id: &LayerId| stack.iter().filter(|other| *other == id).count();
    let pairs = stack.iter().zip(stack.iter().skip(1)).filter(|(a, b)| *a == top && *b == bottom).count();
    (count(top), count(bottom), pairs) == (0, 0, 0) || (count(top), count(bottom), pairs) == (1, 1, 1)
}

/// Decides how many of the newest layers of a stack are to be merged into one new layer, if it is too deep.
///
/// `stack_entries` are the stack's layers, newest first, with the number of their entries. Merged are all layers down to
/// the deepest one that is at most twice as large as everything above it. So what remains grows geometrically, an entry
/// is merged again only into a layer at least half as large again (apart from once), and the cost of each exit is
/// O(log n) times its own change.
#[must_use]
pub fn plan_merge(stack_entries: &[(LayerId, u64)], depth_max: usize) -> Option<usize> {
    const MERGED_MIN: usize = 2;
    if stack_entries.len() <= depth_max || stack_entries.len() < MERGED_MIN {
        return None;
    }
    let mut above = 0_u64;
    let mut merged = MERGED_MIN;
    for (position, (_, entries)) in stack_entries.iter().enumerate() {
        // An empty layer still costs its place in the stack.
        let weight = (*entries).max(1);
        if position > 0 && weight <= above.saturating_mul(2) {
            merged = position.saturating_add(1);
        }
        above = above.saturating_add(weight);
    }
    Some(merged)
}

/// Returns the layers that nothing refers to, sorted.
#[must_use]
pub fn unused(all: &[LayerId], referenced: &BTreeSet<LayerId>) -> Vec<LayerId> {
    let left: BTreeSet<&LayerId> = all.iter().filter(|id| !referenced.contains(*id)).collect();
    left.into_iter().cloned().collect()
}
