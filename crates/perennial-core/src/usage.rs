//! What takes space: layers counted once for the whole store, and once for each who names them.

use crate::id::{ContainerName, Digest, LayerId};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::Serialize;

/// Who names which layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageFacts {
    /// Bytes on disk of each layer.
    pub layers: BTreeMap<LayerId, u64>,
    /// Images with their layers.
    pub images: Vec<(Digest, BTreeSet<LayerId>)>,
    /// Containers with the layers of their generations, without those of images.
    pub containers: Vec<(ContainerName, BTreeSet<LayerId>)>,
}

/// Bytes of the layers one image or container names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share<T> {
    /// Who.
    pub of: T,
    /// All of its layers.
    pub bytes: u64,
    /// Those among them that others name too: removing it does not free them.
    pub shared_bytes: u64,
    /// How many layers.
    pub layers: usize,
}

/// What takes space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// For each image.
    pub images: Vec<Share<Digest>>,
    /// For each container.
    pub containers: Vec<Share<ContainerName>>,
    /// Layers of images, each counted once.
    pub images_bytes: u64,
    /// Layers of containers, each counted once.
    pub containers_bytes: u64,
    /// Layers that neither names: `gc` frees them unless a view or a run does.
    pub other_bytes: u64,
}

/// Adds up what takes space.
#[must_use]
pub fn usage(facts: &UsageFacts) -> Usage {
    let sum = |ids: &BTreeSet<LayerId>| ids.iter().fold(0_u64, |sum, id| sum.saturating_add(bytes_of(facts, id)));
    let all = |sets: &mut dyn Iterator<Item = &BTreeSet<LayerId>>| sets.flatten().cloned().collect::<BTreeSet<_>>();
    let of_images = all(&mut facts.images.iter().map(|(_, ids)| ids));
    let of_containers = all(&mut facts.containers.iter().map(|(_, ids)| ids));
    let others =
        facts.layers.keys().filter(|id| !of_images.contains(*id) && !of_containers.contains(*id)).cloned().collect();
    Usage {
        images: shares(facts, &facts.images),
        containers: shares(facts, &facts.containers),
        images_bytes: sum(&of_images),
        containers_bytes: sum(&of_containers),
        other_bytes: sum(&others),
    }
}

fn bytes_of(facts: &UsageFacts, id: &LayerId) -> u64 {
    facts.layers.get(id).copied().unwrap_or(0)
}

fn shares<T: Clone>(facts: &UsageFacts, owners: &[(T, BTreeSet<LayerId>)]) -> Vec<Share<T>> {
    let is_shared = |id: &LayerId| owners.iter().filter(|(_, ids)| ids.contains(id)).count() > 1;
    let share = |(of, ids): &(T, BTreeSet<LayerId>)| {
        let (mut bytes, mut shared_bytes) = (0_u64, 0_u64);
        for id in ids {
            bytes = bytes.saturating_add(bytes_of(facts, id));
            if is_shared(id) {
                shared_bytes = shared_bytes.saturating_add(bytes_of(facts, id));
            }
        }
        Share { of: of.clone(), bytes, shared_bytes, layers: ids.len() }
    };
    owners.iter().map(share).collect()
}
