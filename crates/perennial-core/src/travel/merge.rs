//! Two copies of one history put together: neither loses a generation that the container may keep.

use super::history::Mark;
use crate::generations::{Generation, Queue};
use crate::id::{LayerId, Seq};
use crate::layers::LayerRecord;
use crate::sealed::object::ObjectId;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Layers of one copy as the other knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// What each of theirs is called here.
    pub names: BTreeMap<LayerId, LayerId>,
    /// Theirs that are not here, by their name here, with their name there.
    pub new: Vec<(LayerRecord, LayerId)>,
}

impl Adopted {
    /// Returns a stack in names of here; what is not known is left out, which a checked parcel has none of.
    #[must_use]
    pub fn stack(&self, theirs: &[LayerId]) -> Vec<LayerId> {
        theirs.iter().filter_map(|id| self.names.get(id).cloned()).collect()
    }
}

/// Finds theirs among ours by what is in them: one of ours stands for one of theirs at most, so that no layer comes
/// twice into one stack. For others `fresh` makes a name.
pub fn adopt(ours: &[LayerRecord], theirs: &[LayerRecord], fresh: &mut dyn FnMut() -> LayerId) -> Adopted {
    let mut free: BTreeMap<ObjectId, Vec<&LayerRecord>> = BTreeMap::new();
    for layer in ours.iter().rev() {
        if let Some(manifest) = &layer.manifest {
            free.entry(manifest.id).or_default().push(layer);
        }
    }
    let mut adopted = Adopted::default();
    for layer in theirs {
        let Some(manifest) = &layer.manifest else { continue };
        let same = free.get_mut(&manifest.id);
        let found = same.and_then(|same| {
            // The one of the same name, where there is one.
            let at = same.iter().position(|other| other.id == layer.id).unwrap_or(same.len().saturating_sub(1));
            (same.get(at).is_some_and(|other| other.kind == layer.kind)).then(|| same.remove(at))
        });
        let name = found.map_or_else(&mut *fresh, |ours| ours.id.clone());
        if found.is_none() {
            adopted.new.push((LayerRecord { id: name.clone(), ..layer.clone() }, layer.id.clone()));
        }
        adopted.names.insert(layer.id.clone(), name);
    }
    adopted
}

/// Puts two queues with one history together. `newer` says what is current; what both have is as `ours` has it, and
/// stacks of theirs are in our names already. What neither may keep beyond `keep` goes.
#[must_use]
pub fn queues(ours: &Queue, theirs: &Queue, newer: Newer, keep: u32) -> Queue {
    let mut all: BTreeMap<Seq, Generation> =
        theirs.generations.iter().map(|generation| (generation.seq, generation.clone())).collect();
    all.extend(ours.generations.iter().map(|generation| (generation.seq, generation.clone())));
    let current = match newer {
        Newer::Ours => ours.current,
        Newer::Theirs => theirs.current,
    };
    let mut queue = Queue {
        next_seq: ours.next_seq.max(theirs.next_seq),
        current,
        generations: all.into_values().collect(),
        undo: None,
        held: None,
    };
    // Ours stay whatever the bound: it takes effect at the next exit.
    let own: BTreeSet<Seq> = match newer {
        Newer::Ours => ours.generations.iter().map(|generation| generation.seq).collect(),
        Newer::Theirs => theirs.generations.iter().map(|generation| generation.seq).collect(),
    };
    let mut bounded = queue.clone();
    bounded.evict(keep);
    queue.generations.retain(|generation| own.contains(&generation.seq) || bounded.get(generation.seq).is_some());
    queue
}

/// Which of theirs a pull brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// All that the container may keep.
    All,
    /// Only the one that is current.
    Current,
}

/// Puts theirs into ours, after [`settle`](super::facts::settle): no generation of ours goes, whatever the bound, and none
/// comes that was here and was let go, unless it was made current since.
#[must_use]
pub fn pulled(ours: &Queue, mut theirs: Queue, (wanted, let_go): (Wanted, &[Mark]), newer: Newer, keep: u32) -> Queue {
    let current = ours.current.or(theirs.current);
    theirs.generations.retain(|generation| {
        let is_current = Some(generation.seq) == current;
        let is_let_go = let_go.contains(&Mark::of(generation));
        ours.get(generation.seq).is_some() || is_current || wanted == Wanted::All && !is_let_go
    });
    let joined = queues(ours, &theirs, newer, keep);
    let mut all: BTreeMap<Seq, Generation> = joined.generations.into_iter().map(|g| (g.seq, g)).collect();
    all.extend(ours.generations.iter().map(|generation| (generation.seq, generation.clone())));
    let generations = all.into_values().collect();
    Queue { current, generations, undo: ours.undo.clone(), held: ours.held, next_seq: joined.next_seq }
}

/// Which of two copies goes on after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// Ours.
    Ours,
    /// Theirs.
    Theirs,
}
