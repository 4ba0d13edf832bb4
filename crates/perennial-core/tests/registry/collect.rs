//! Collection beside pushes, mounts and deletions: a model of the record and of the files, in which every step of every
//! request may fall between any two steps of the others, and everything may end at any moment.

use perennial_core::registry::collect::{
    Grace, LinkKey, ManifestFacts, Marked, are_too_many_strays, is_still_free, mark, untagged,
};
use perennial_core::registry::name::{Algorithm, BlobDigest};
use perennial_core::time::Time;
use std::collections::{BTreeMap, BTreeSet};

const ROUNDS: u32 = 100_000;
const GRACE: Grace = Grace { nanos: 1000 };

fn digest(number: u64) -> BlobDigest {
    let byte = u8::try_from(number).unwrap();
    BlobDigest::from_sum(Algorithm::Sha256, &[byte; 32]).unwrap()
}

/// Numbers that only the seed decides.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// What is durable: each change of the record is one transaction.
#[derive(Default)]
struct World {
    now: i64,
    blobs: BTreeSet<BlobDigest>,
    links: BTreeMap<LinkKey, Time>,
    manifests: BTreeMap<(i64, u64), Vec<BlobDigest>>,
    files: BTreeSet<BlobDigest>,
    locks: BTreeSet<BlobDigest>,
    pushed: u64,
    refused: u64,
    freed: u64,
}

/// A request, or a collection, that is under way.
enum Actor {
    Push { repository: i64, todo: Vec<BlobDigest>, blobs: Vec<BlobDigest>, began: i64, state: Pushing },
    Collect { links: Vec<Marked>, free: Option<Vec<BlobDigest>>, deleting: Option<BlobDigest> },
}

enum Pushing {
    Asking,
    /// The lock is held and the file is there; the record does not know it yet.
    Published(BlobDigest),
}

impl World {
    fn time(&self) -> Time {
        Time::from_unix_nanos(self.now)
    }

    fn needed(&self) -> BTreeSet<LinkKey> {
        let keys = self.manifests.iter().flat_map(|((repository, _), blobs)| {
            blobs.iter().map(|digest| LinkKey { repository: *repository, digest: digest.clone() })
        });
        keys.collect()
    }

    fn is_held(&self, digest: &BlobDigest) -> bool {
        self.links.keys().any(|key| key.digest == *digest)
    }

    /// Advances a push by one step; tells whether it goes on.
    fn push(&mut self, actor: &mut Actor, name: u64) -> bool {
        let Actor::Push { repository, todo, blobs, began, state } = actor else { unreachable!() };
        let repository = *repository;
        if let Pushing::Published(digest) = state {
            self.blobs.insert(digest.clone());
            self.links.insert(LinkKey { repository, digest: digest.clone() }, self.time());
            self.locks.remove(digest);
            *state = Pushing::Asking;
            return true;
        }
        let Some(digest) = todo.pop() else {
            let all =
                blobs.iter().all(|digest| self.links.contains_key(&LinkKey { repository, digest: digest.clone() }));
            if all {
                self.manifests.insert((repository, name), blobs.clone());
                self.pushed += 1;
            } else {
                let took = u64::try_from(self.now - *began).unwrap();
                assert!(took > GRACE.nanos / 2, "a push of {took} ns lost a blob that it had sent");
                self.refused += 1;
            }
            return false;
        };
        let (now, key) = (self.time(), LinkKey { repository, digest: digest.clone() });
        if let Some(touched) = self.links.get_mut(&key) {
            if GRACE.is_half_over(*touched, now) {
                *touched = now;
            }
        } else if self.blobs.contains(&digest) && digest.hex().starts_with('0') {
            // A mount: one transaction.
            self.links.insert(key, now);
        } else if self.locks.insert(digest.clone()) {
            self.files.insert(digest.clone());
            *state = Pushing::Published(digest);
        } else {
            todo.push(digest);
        }
        true
    }

    /// Advances a collection by one step; tells whether it goes on.
    fn collect(&mut self, actor: &mut Actor) -> bool {
        let Actor::Collect { links, free, deleting } = actor else { unreachable!() };
        if let Some(digest) = deleting.take() {
            self.files.remove(&digest);
            self.locks.remove(&digest);
            self.freed += 1;
            return true;
        }
        if let Some(marked) = links.pop() {
            let is_needed = self.needed().contains(&marked.key);
            if is_still_free(&marked, self.links.get(&marked.key).copied(), is_needed) {
                self.links.remove(&marked.key);
            }
            return true;
        }
        let found = || self.blobs.iter().chain(&self.files).filter(|digest| !self.is_held(digest)).cloned().collect();
        let free = free.get_or_insert_with(found);
        let Some(digest) = free.pop() else { return false };
        if !self.locks.insert(digest.clone()) {
            free.push(digest);
        } else if self.is_held(&digest) {
            self.locks.remove(&digest);
        } else {
            self.blobs.remove(&digest);
            *deleting = Some(digest);
        }
        true
    }

    fn check(&self) {
        for ((repository, _), blobs) in &self.manifests {
            for digest in blobs {
                let key = LinkKey { repository: *repository, digest: digest.clone() };
                assert!(self.links.contains_key(&key), "a manifest's blob is no longer in its repository");
            }
        }
        for key in self.links.keys() {
            assert!(self.blobs.contains(&key.digest), "a link without a blob");
            assert!(self.files.contains(&key.digest), "a live blob without its bytes");
        }
    }
}

fn step(world: &mut World, actors: &mut Vec<Actor>, dice: &mut Dice, round: u64) {
    let repository = i64::try_from(dice.roll(3)).unwrap();
    match dice.roll(200) {
        0..12 if actors.len() < 6 => {
            let blobs: BTreeSet<BlobDigest> = (0..=dice.roll(3)).map(|_| digest(dice.roll(24))).collect();
            let blobs: Vec<BlobDigest> = blobs.into_iter().collect();
            let (todo, began) = (blobs.clone(), world.now);
            actors.push(Actor::Push { repository, todo, blobs, began, state: Pushing::Asking });
        }
        12..16 if actors.len() < 6 => {
            let links = world.links.iter().map(|(key, at)| Marked { key: key.clone(), touched_at: *at }).collect();
            let links = mark(links, &world.needed(), GRACE, world.time());
            actors.push(Actor::Collect { links, free: None, deleting: None });
        }
        16..22 => {
            let at = usize::try_from(dice.roll(8)).unwrap();
            if let Some(key) = world.manifests.keys().nth(at).copied() {
                world.manifests.remove(&key);
            }
        }
        22..30 => world.now += i64::try_from(dice.roll(400)).unwrap(),
        30 => {
            // The server is killed: what was under way is gone, and so are the locks.
            actors.clear();
            world.locks.clear();
        }
        _ if !actors.is_empty() => {
            let at = usize::try_from(dice.roll(u64::try_from(actors.len()).unwrap())).unwrap();
            let goes_on = match actors[at] {
                Actor::Push { .. } => world.push(&mut actors[at], round % 40),
                Actor::Collect { .. } => world.collect(&mut actors[at]),
            };
            if !goes_on {
                actors.swap_remove(at);
            }
        }
        _ => {}
    }
}

#[test]
fn no_live_blob_is_lost_in_a_hundred_thousand_rounds_of_pushes_deletions_and_collections() {
    for seed in 0..2 {
        let (mut world, mut actors, mut dice) = (World::default(), Vec::new(), Dice(seed));
        for round in 0..ROUNDS {
            step(&mut world, &mut actors, &mut dice, round.into());
            world.check();
        }
        println!("seed {seed}: {} pushed, {} refused, {} freed", world.pushed, world.refused, world.freed);
        assert!(world.pushed > 500 && world.freed > 100, "seed {seed} shows nothing");
    }
}

#[test]
fn everything_that_nothing_needs_is_collected_at_last() {
    let (mut world, mut actors, mut dice) = (World::default(), Vec::new(), Dice(9));
    for round in 0..20_000 {
        step(&mut world, &mut actors, &mut dice, round);
    }
    world.manifests.clear();
    world.locks.clear();
    world.now += 10_000;
    let links = world.links.iter().map(|(key, at)| Marked { key: key.clone(), touched_at: *at }).collect();
    let links = mark(links, &world.needed(), GRACE, world.time());
    let mut last = Actor::Collect { links, free: None, deleting: None };
    while world.collect(&mut last) {}
    assert_eq!((world.links.len(), world.blobs.len(), world.files.len()), (0, 0, 0));
}

#[test]
fn most_files_are_unknown_only_to_a_wrong_record() {
    let table =
        [(0, 0, false), (1, 1, false), (3, 3, false), (4, 4, true), (4, 8, false), (5, 8, true), (99, 1000, false)];
    for (strays, files, expected) in table {
        assert_eq!(are_too_many_strays(strays, files), expected, "{strays} of {files}");
    }
}

#[test]
fn a_manifest_lives_by_its_tag_its_index_or_its_subject() {
    let old = |is_tagged: bool, subject: Option<u64>, children: &[u64]| ManifestFacts {
        put_at: Time::from_unix_nanos(0),
        is_tagged,
        subject: subject.map(digest),
        children: children.iter().copied().map(digest).collect(),
    };
    let young = ManifestFacts { put_at: Time::from_unix_nanos(5000), ..old(false, None, &[]) };
    let manifests: BTreeMap<BlobDigest, ManifestFacts> = [
        (1, old(true, None, &[2])),
        (2, old(false, None, &[])),
        (3, old(false, Some(2), &[])),
        (4, old(false, Some(3), &[])),
        (5, young),
        (6, old(false, None, &[7])),
        (7, old(false, None, &[6])),
        (8, old(false, Some(9), &[])),
    ]
    .into_iter()
    .map(|(number, facts)| (digest(number), facts))
    .collect();
    assert_eq!(untagged(&manifests, GRACE, Time::from_unix_nanos(5500)), [6, 7, 8].map(digest));
}
