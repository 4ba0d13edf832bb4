//! In which order layers are sealed.
//!
//! A layer may hold files and directories that mean something only over the layers below it. So those are sealed first:
//! a layer is sealed when everything below it is sealed or stays a directory for good.

use crate::id::LayerId;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// A layer to be sealed, with what it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealStep {
    /// The layer.
    pub layer: LayerId,
    /// The layers below it, newest first.
    pub below: Vec<LayerId>,
}

/// Returns the layers to be sealed, each after those below it.
///
/// `stacks` are whole stacks, newest layer first, image layers included; earlier stacks come first. `is_open` says
/// whether a layer is still to be sealed. A layer that lies on different layers in different stacks is left out:
/// whether a whiteout in it hides something has no single answer then.
#[must_use]
pub fn plan_seal(stacks: &[Vec<LayerId>], is_open: &dyn Fn(&LayerId) -> bool) -> Vec<SealStep> {
    let mut grounds: BTreeMap<&LayerId, &[LayerId]> = BTreeMap::new();
    let mut left_out: BTreeSet<&LayerId> = BTreeSet::new();
    let mut order: Vec<&LayerId> = Vec::new();
    for stack in stacks {
        let mut below: &[LayerId] = &[];
        for (position, layer) in stack.iter().enumerate().rev() {
            match grounds.get(layer) {
                None => {
                    grounds.insert(layer, below);
                    order.push(layer);
                }
                Some(ground) if *ground == below => {}
                Some(_) => {
                    left_out.insert(layer);
                }
            }
            below = stack.get(position..).unwrap_or_default();
        }
    }
    let wanted = order.into_iter().filter(|layer| is_open(layer) && !left_out.contains(layer));
    wanted
        .map(|layer| SealStep {
            layer: layer.clone(),
            below: grounds.get(layer).map(|ground| ground.to_vec()).unwrap_or_default(),
        })
        .collect()
}
