//! Where blobs are kept: a directory of this machine, or an object store.
//!
//! A blob is there whole or not at all. What is put has been summed by the caller; what is read is checked by the
//! caller. All calls block: they are made on threads that may.

pub(crate) mod directory;
pub(crate) mod s3;

use perennial_core::registry::claim::Guard;
use perennial_core::registry::name::BlobDigest;
use perennial_core::registry::upload::StorageRecord;
use perennial_core::time::Time;
use std::fmt::Debug;
use std::io;
use std::path::Path;

/// What tells one copy of a blob from another, so that a copy that has been checked need not be checked again soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Its length.
    pub(crate) bytes: u64,
    /// The file's number and times, or the object's entity tag.
    pub(crate) tag: String,
}

/// Whose a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// The registry's, and whether the store would have refused another one's claim at the same moment.
    Ours(Guard),
    /// It cannot be the registry's, and why.
    Refused(&'static str),
}

/// A blob that is being read.
pub(crate) trait BlobReader: Send + Debug {
    /// Returns which copy this is.
    fn stamp(&self) -> &Stamp;

    /// Fills the buffer from `offset`.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Reads what is at hand from `offset`, without waiting for a disk or a network; nothing where nothing is. Unlike the
    /// other calls this one may be made anywhere.
    fn read_at_hand(&mut self, offset: u64, buffer: &mut [u8]) -> Option<usize> {
        let _ = (offset, buffer);
        None
    }
}

/// A store of blobs.
pub(crate) trait BlobStore: Send + Sync + Debug {
    /// Puts the file at `staged` as a blob, durably, and takes the file away. A blob that is there is replaced.
    fn publish(&self, staged: &Path, digest: &BlobDigest) -> io::Result<()>;

    /// Opens a blob; nothing where it is not there.
    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn BlobReader>>>;

    /// Deletes a blob; one that is not there is no error.
    fn delete(&self, digest: &BlobDigest) -> io::Result<()>;

    /// Puts a damaged blob aside, where somebody can look at it.
    fn quarantine(&self, digest: &BlobDigest) -> io::Result<()>;

    /// Returns the blobs on whose way here something was begun that takes space and may never end.
    fn unfinished(&self) -> io::Result<Vec<BlobDigest>> {
        Ok(Vec::new())
    }

    /// Gives up what was begun; the caller has the digest's lock, so that it is not under way.
    fn give_up(&self, digest: &BlobDigest) -> io::Result<()> {
        let _ = digest;
        Ok(())
    }

    /// Calls `each` for every blob that is there, with when it was put.
    fn list(&self, each: &mut dyn FnMut(BlobDigest, Time)) -> io::Result<()>;

    /// Makes the store that of a registry, or tells why it cannot be. One whose record `is_new` has no blobs yet.
    fn claim(&self, registry: &StorageRecord, is_new: bool) -> io::Result<Claimed> {
        let _ = (registry, is_new);
        Ok(Claimed::Ours(Guard::Store))
    }
}

/// Demands the contract of [`BlobStore`] of an implementation, on an empty store; `staging` is a directory for files.
#[cfg(test)]
pub(crate) fn conformance(store: &dyn BlobStore, staging: &Path) {
    use crate::serve::hash::Sum;
    use perennial_core::registry::name::Algorithm;
    let stage = |content: &[u8]| {
        let file = tempfile::NamedTempFile::new_in(staging).unwrap();
        std::io::Write::write_all(&mut file.as_file(), content).unwrap();
        file.into_temp_path().keep().unwrap()
    };
    let list = || {
        let mut all = Vec::new();
        store
            .list(&mut |digest, at| {
                assert!(at.unix_nanos() > 1_600_000_000 * 1_000_000_000, "it says when: {at}");
                all.push(digest);
            })
            .unwrap();
        all.sort();
        all
    };
    let mut digests = Vec::new();
    for (algorithm, content) in [
        (Algorithm::Sha256, Vec::new()),
        (Algorithm::Sha512, b"short".to_vec()),
        (Algorithm::Sha256, (0..12_000_003_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[2]).collect()),
    ] {
        let digest = Sum::of(algorithm, &content);
        assert!(store.open(&digest).unwrap().is_none(), "an absent blob is None");
        for _ in 0..2 {
            let staged = stage(&content);
            store.publish(&staged, &digest).unwrap();
            assert!(!staged.exists(), "the staged file is gone");
        }
        let mut reader = store.open(&digest).unwrap().expect("a published blob is there");
        assert_eq!(reader.stamp().bytes, content.len() as u64);
        let mut read = |offset: usize, bytes: usize| {
            let mut buffer = vec![0; bytes];
            reader.read_at(offset as u64, &mut buffer).map(|()| buffer)
        };
        assert_eq!(read(0, content.len()).unwrap(), content, "it reads back");
        let half = content.len() / 2;
        assert_eq!(read(half, content.len() - half).unwrap(), content[half..], "from the middle");
        assert!(read(0, content.len() + 1).is_err(), "beyond the end is an error");
        let mut buffer = vec![0; content.len() + 1];
        if let Some(count) = reader.read_at_hand(half as u64, &mut buffer) {
            assert!(count > 0 && buffer[..count] == content[half..half + count], "what is at hand is right");
        }
        assert_eq!(reader.read_at_hand(content.len() as u64, &mut buffer), None, "nothing is at hand at the end");
        assert_eq!(store.open(&digest).unwrap().unwrap().stamp(), reader.stamp(), "one copy has one stamp");
        digests.push(digest);
    }
    digests.sort();
    assert_eq!(list(), digests);
    let first = digests.remove(0);
    let mut open = store.open(&first).unwrap().unwrap();
    let bytes = usize::try_from(open.stamp().bytes).unwrap();
    let mut content = vec![0; bytes];
    open.read_at(0, &mut content).unwrap();
    store.delete(&first).unwrap();
    store.delete(&first).unwrap();
    assert!(store.open(&first).unwrap().is_none(), "a deleted blob is gone");
    let second = digests.remove(0);
    store.quarantine(&second).unwrap();
    store.quarantine(&second).unwrap();
    assert!(store.open(&second).unwrap().is_none(), "a quarantined blob is not served");
    assert_eq!(list(), digests);
    store.publish(&stage(&content), &first).unwrap();
    assert!(store.open(&first).unwrap().is_some(), "a deleted blob can be put again");
}
