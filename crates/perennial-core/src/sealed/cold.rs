//! What may go cold: contents into packs, so that they have to be thawed before anything shows them.
//!
//! ```text
//!   generation   1      2      3      4          hot: the newest 2 and the current one
//!   layers       1      2 1    3 2 1  4 3 2 1
//!                └─cold─┘      └────hot────┘
//! ```
//!
//! A hot generation needs what it shows, not all that its layers have: a version of a file that newer layers hide is
//! shown by older generations only. So an object goes cold where no hot stack shows it, whatever layers name it.

use crate::id::LayerId;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// How much of a container stays hot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hot {
    /// Everything.
    All,
    /// The current generation and so many of the newest ones; with 0 nothing at all, unless the container runs.
    Newest(u32),
}

/// A generation as the decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdGeneration {
    /// Its own layers, newest first.
    pub layers: Vec<LayerId>,
    /// Those of its image, newest first.
    pub image: Vec<LayerId>,
}

/// A container as the decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdContainer {
    /// How much of it stays hot.
    pub hot: Hot,
    /// Whether it has a run, in whatever phase.
    pub is_live: bool,
    /// Position of the current generation.
    pub current: Option<usize>,
    /// Its generations, oldest first.
    pub generations: Vec<ColdGeneration>,
    /// Layers of the image that a first run would start from.
    pub image: Vec<LayerId>,
}

/// What the decision is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColdFacts {
    /// All containers of the root.
    pub containers: Vec<ColdContainer>,
    /// The layers of each image of the root.
    pub images: Vec<Vec<LayerId>>,
    /// Stacks that runs or views have mounted.
    pub mounted: Vec<Vec<LayerId>>,
    /// Layers that are sealed and whose tree is gone: only of these the contents can be packed.
    pub sealed: BTreeSet<LayerId>,
    /// Layers that refer to those below them and are to be sealed: what they refer to stays hot.
    pub unresolved: BTreeSet<LayerId>,
}

/// What may go cold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColdPlan {
    /// Stacks of sealed layers, newest first: what the layers of one show together stays hot.
    pub hot: BTreeSet<Vec<LayerId>>,
    /// Cold generations: positions of the container and of the generation.
    pub generations: Vec<(usize, usize)>,
    /// The sealed layers of cold generations: what they name goes cold unless a hot stack shows it, or another layer
    /// names it.
    pub layers: BTreeSet<LayerId>,
}

/// Decides what may go cold.
#[must_use]
pub fn plan_cold(facts: &ColdFacts) -> ColdPlan {
    let mut plan = ColdPlan::default();
    let (mut hot_images, mut cold_images) = (BTreeSet::new(), BTreeSet::new());
    let mut hot: Vec<Vec<LayerId>> = facts.mounted.clone();
    for (number, container) in facts.containers.iter().enumerate() {
        if container.generations.is_empty() {
            hot_images.insert(&container.image);
        }
        for (position, generation) in container.generations.iter().enumerate() {
            let stack = || generation.layers.iter().chain(&generation.image);
            if container.is_hot(position) || stack().any(|layer| facts.unresolved.contains(layer)) {
                hot.push(stack().cloned().collect());
                hot_images.insert(&generation.image);
            } else {
                plan.generations.push((number, position));
                plan.layers.extend(stack().filter(|layer| facts.sealed.contains(*layer)).cloned());
                cold_images.insert(&generation.image);
            }
        }
    }
    // An image is used alone too, by a new container; one that only cold generations lie on is as cold as they are.
    hot.extend(facts.images.iter().filter(|image| hot_images.contains(image) || !cold_images.contains(image)).cloned());
    for stack in hot {
        // What lies between two sealed layers and is not sealed may show what the upper one hides: each part for itself.
        let parts = stack.split(|layer| !facts.sealed.contains(layer));
        plan.hot.extend(parts.filter(|part| !part.is_empty()).map(<[LayerId]>::to_vec));
    }
    plan
}

impl ColdContainer {
    fn is_hot(&self, position: usize) -> bool {
        let newest = match (self.hot, self.is_live) {
            (Hot::All, _) => return true,
            (Hot::Newest(0), false) => return false,
            // What a live container comes back to is what it was started from.
            (Hot::Newest(number), _) => usize::try_from(number).unwrap_or(usize::MAX).max(1),
        };
        self.current == Some(position) || position.saturating_add(newest) >= self.generations.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};

    fn layer(number: u8) -> LayerId {
        format!("{number:016x}").parse().unwrap()
    }

    fn stack(numbers: &[u8]) -> Vec<LayerId> {
        numbers.iter().copied().map(layer).collect()
    }

    /// Generations of one container, each with one layer on top of the one before, over the image of layer 100.
    fn chain(hot: Hot, generations: u8, current: Option<usize>) -> ColdContainer {
        let generation =
            |top: u8| ColdGeneration { layers: stack(&(1..=top).rev().collect::<Vec<u8>>()), image: stack(&[100]) };
        let generations = (1..=generations).map(generation).collect();
        ColdContainer { hot, is_live: false, current, generations, image: stack(&[100]) }
    }

    fn facts(containers: Vec<ColdContainer>) -> ColdFacts {
        let images = vec![stack(&[100]), stack(&[101])];
        ColdFacts { containers, images, sealed: (0..=200).map(layer).collect(), ..ColdFacts::default() }
    }

    /// The cold generations, and the layers whose objects may go.
    fn cold(facts: &ColdFacts) -> (Vec<(usize, usize)>, Vec<u8>) {
        let plan = plan_cold(facts);
        (plan.generations, (0..=200).filter(|number| plan.layers.contains(&layer(*number))).collect())
    }

    #[test]
    fn generations_older_than_the_hot_ones_go_cold() {
        type Row = (&'static str, ColdContainer, &'static [usize], &'static [u8]);
        let live = |container: ColdContainer| ColdContainer { is_live: true, ..container };
        let rows: [Row; 9] = [
            ("nothing is packed unasked", chain(Hot::All, 5, Some(4)), &[], &[]),
            ("the newest stay", chain(Hot::Newest(2), 5, Some(4)), &[0, 1, 2], &[1, 2, 3, 100]),
            ("the current one stays", chain(Hot::Newest(2), 5, Some(1)), &[0, 2], &[1, 2, 3, 100]),
            ("none is current", chain(Hot::Newest(1), 3, None), &[0, 1], &[1, 2, 100]),
            ("fewer than stay hot", chain(Hot::Newest(9), 3, Some(2)), &[], &[]),
            ("as many as can be", chain(Hot::Newest(u32::MAX), 3, None), &[], &[]),
            ("all of it", chain(Hot::Newest(0), 3, Some(2)), &[0, 1, 2], &[1, 2, 3, 100]),
            ("not all of a live one", live(chain(Hot::Newest(0), 3, Some(1))), &[0], &[1, 100]),
            ("no generation", chain(Hot::Newest(0), 0, None), &[], &[]),
        ];
        for (name, container, generations, layers) in rows {
            let expected = (generations.iter().map(|position| (0, *position)).collect(), layers.to_vec());
            assert_eq!(cold(&facts(vec![container])), expected, "{name}");
        }
    }

    #[test]
    fn what_anything_hot_shows_stays() {
        let hot = |facts: &ColdFacts| plan_cold(facts).hot.into_iter().collect::<Vec<_>>();
        let image = || stack(&[100]);
        let other = || stack(&[101]);
        let all = facts(vec![chain(Hot::Newest(0), 2, Some(1))]);
        assert_eq!(hot(&all), [other()], "an image that nobody has run is left alone");
        let one = facts(vec![chain(Hot::Newest(1), 2, Some(1))]);
        assert_eq!(hot(&one), [stack(&[2, 1, 100]), image(), other()]);
        let unborn = facts(vec![chain(Hot::Newest(0), 2, Some(1)), chain(Hot::Newest(0), 0, None)]);
        assert_eq!(hot(&unborn), [image(), other()], "a new container would start from it");
        let fork = facts(vec![chain(Hot::Newest(0), 3, Some(2)), chain(Hot::All, 1, Some(0))]);
        assert_eq!(hot(&fork), [stack(&[1, 100]), image(), other()]);
        let mounted = ColdFacts { mounted: vec![stack(&[1, 100])], ..all };
        assert_eq!(hot(&mounted), [stack(&[1, 100]), other()]);
    }

    #[test]
    fn only_sealed_layers_are_packed_and_hide_what_is_below() {
        let container = chain(Hot::Newest(1), 5, Some(4));
        let sealed: BTreeSet<LayerId> = stack(&[5, 4, 2, 100]).into_iter().collect();
        let facts = ColdFacts { sealed, ..facts(vec![container]) };
        let plan = plan_cold(&facts);
        assert_eq!(plan.layers, stack(&[4, 2, 100]).into_iter().collect());
        let parts = [stack(&[2]), stack(&[5, 4]), stack(&[100])];
        assert_eq!(plan.hot.into_iter().collect::<Vec<_>>(), parts, "layers 3 and 1 are directories");
    }

    #[test]
    fn what_is_to_be_resolved_keeps_its_generations_hot() {
        let unresolved = stack(&[2]).into_iter().collect();
        let facts = ColdFacts { unresolved, ..facts(vec![chain(Hot::Newest(1), 5, Some(4))]) };
        assert_eq!(cold(&facts), (vec![(0, 0)], vec![1, 100]));
    }
}
