//! Which blobs nothing needs any more.
//!
//! A blob is in a repository by a *link*. A link is needed while a manifest of that repository refers to the blob, and
//! for a time of grace after it was made or last asked for, because a push sends blobs first and the manifest last. A
//! blob without links is freed.
//!
//! Marking reads the whole record while pushes go on, so it is old when it is carried out. Each link is therefore looked
//! at again in the transaction that takes it away ([`is_still_free`]), and the transaction that puts a manifest fails
//! where a link it needs is gone. The file is unlinked under a lock that an upload of the same blob takes too.

use super::name::BlobDigest;
use crate::time::Time;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Number of a repository in the record.
pub type RepositoryId = i64;

/// A blob in a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkKey {
    /// The repository.
    pub repository: RepositoryId,
    /// The blob.
    pub digest: BlobDigest,
}

/// A link as it was when it was marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Which link.
    pub key: LinkKey,
    /// When it was made or last asked for.
    pub touched_at: Time,
}

/// How long what nothing needs is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace {
    /// In nanoseconds.
    pub nanos: u64,
}

impl Grace {
    /// Returns whether the time since `then` is over.
    #[must_use]
    pub fn is_over(self, then: Time, now: Time) -> bool {
        now.nanos_since(then) > self.nanos
    }

    /// Returns whether somebody who asks for it now should have it kept longer: half of the time is over.
    #[must_use]
    pub fn is_half_over(self, then: Time, now: Time) -> bool {
        now.nanos_since(then) > self.nanos / 2
    }
}

/// Returns the links that nothing needs.
#[must_use]
pub fn mark(links: Vec<Marked>, needed: &BTreeSet<LinkKey>, grace: Grace, now: Time) -> Vec<Marked> {
    let is_free = |link: &Marked| !needed.contains(&link.key) && grace.is_over(link.touched_at, now);
    links.into_iter().filter(is_free).collect()
}

/// Decides in the transaction that takes a link away whether it may go: it is as it was marked, and not needed.
#[must_use]
pub fn is_still_free(marked: &Marked, touched_at: Option<Time>, is_needed: bool) -> bool {
    touched_at == Some(marked.touched_at) && !is_needed
}

/// So many files that the record does not know are nothing to wonder about: pushes that were cut off left them.
const STRAYS_FEW: usize = 3;

/// Decides whether `strays` of `files` files that the record does not know are so many that the record must be another
/// one, or one of before: pushes that were cut off leave few.
#[must_use]
pub fn are_too_many_strays(strays: usize, files: usize) -> bool {
    strays > STRAYS_FEW && strays > files / 2
}

/// A manifest as collection sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFacts {
    /// When it was put.
    pub put_at: Time,
    /// Whether a tag names it.
    pub is_tagged: bool,
    /// What it is about.
    pub subject: Option<BlobDigest>,
    /// The manifests it refers to.
    pub children: Vec<BlobDigest>,
}

/// Returns the manifests of one repository that neither a tag, nor a live index, nor a live subject keeps, and whose
/// time of grace is over.
#[must_use]
pub fn untagged(manifests: &BTreeMap<BlobDigest, ManifestFacts>, grace: Grace, now: Time) -> Vec<BlobDigest> {
    let is_root = |facts: &ManifestFacts| facts.is_tagged || !grace.is_over(facts.put_at, now);
    let mut todo: Vec<&BlobDigest> =
        manifests.iter().filter(|(_, facts)| is_root(facts)).map(|(digest, _)| digest).collect();
    let mut about: BTreeMap<&BlobDigest, Vec<&BlobDigest>> = BTreeMap::new();
    for (digest, facts) in manifests {
        if let Some(subject) = &facts.subject {
            about.entry(subject).or_default().push(digest);
        }
    }
    let mut live = BTreeSet::new();
    while let Some(digest) = todo.pop() {
        let Some(facts) = manifests.get(digest).filter(|_| live.insert(digest)) else { continue };
        todo.extend(&facts.children);
        todo.extend(about.get(digest).into_iter().flatten());
    }
    manifests.keys().filter(|digest| !live.contains(digest)).cloned().collect()
}
