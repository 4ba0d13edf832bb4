//! Where a container's changes and a new image's changes meet (row A30).
//!
//! A rebase puts the layers of a generation on another image. What the container has changed stays as it is, so a path
//! that the new image changes too shows the container's version: such a path is a conflict, and its owner is told.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use serde::Serialize;

/// How a path differs between two trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Its content.
    Content,
    /// Only its mode, owner, time or attributes.
    Metadata,
    /// Its type.
    Type,
}

/// What is known before a rebase; paths are bytes, relative to the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebaseFacts {
    /// From the old image to the generation.
    pub ours: BTreeMap<Vec<u8>, Difference>,
    /// Directories of the generation's layers that hide what an image has there.
    pub opaque: BTreeSet<Vec<u8>>,
    /// From the old image to the new one.
    pub theirs: BTreeMap<Vec<u8>, Difference>,
}

/// A path that both sides have changed; the container's version is what shows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Conflict {
    /// Its path.
    pub path: Vec<u8>,
    /// What the container did with it, where it is not only something above or below it.
    pub ours: Option<Difference>,
    /// What the new image did with it, or with something below it.
    pub theirs: Difference,
}

/// Returns the conflicts, sorted by path. Where the container replaced or removed a whole directory it is one conflict,
/// however much of it the image changed.
#[must_use]
pub fn conflicts(facts: &RebaseFacts) -> Vec<Conflict> {
    let mut found: BTreeMap<Vec<u8>, Conflict> = BTreeMap::new();
    for (path, theirs) in &facts.theirs {
        if let Some(path) = place_of_conflict(facts, path, *theirs) {
            let conflict = || Conflict { path: path.to_vec(), ours: facts.ours.get(path).copied(), theirs: *theirs };
            found.entry(path.to_vec()).or_insert_with(conflict);
        }
    }
    found.into_values().collect()
}

fn place_of_conflict<'a>(facts: &RebaseFacts, path: &'a [u8], theirs: Difference) -> Option<&'a [u8]> {
    if let Some(hiding) = ancestors(path).find(|above| hides(facts, above)) {
        // What the image took away would not have been seen anyway.
        return (theirs != Difference::Removed).then_some(hiding);
    }
    match (facts.ours.get(path), theirs) {
        (Some(Difference::Removed), Difference::Removed) => None,
        (Some(_), _) => Some(path),
        (None, Difference::Type) if changes_below(facts, path) => Some(path),
        // An opaque directory that equals what the old image had there still hides what the new one adds to it.
        (None, _) => None,
    }
}

fn hides(facts: &RebaseFacts, path: &[u8]) -> bool {
    facts.opaque.contains(path)
        || match facts.ours.get(path) {
            Some(Difference::Removed | Difference::Type) => true,
            Some(Difference::Added | Difference::Content | Difference::Metadata) | None => false,
        }
}

fn changes_below(facts: &RebaseFacts, path: &[u8]) -> bool {
    let mut from = path.to_vec();
    from.push(b'/');
    facts.ours.range(from.clone()..).take_while(|(below, _)| below.starts_with(&from)).next().is_some()
}

/// The directories above a path, the highest first, without the root.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').filter_map(|(at, _)| path.get(..at))
}
