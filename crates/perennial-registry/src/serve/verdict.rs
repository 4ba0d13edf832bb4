//! Whether the copy of a blob that is about to be served is sound.
//!
//! A copy is summed once when it is first asked for, beside the streams that read it, and is then trusted for
//! [`TRUST_NANOS`] as long as its stamp stays the same. Until the verdict is there a stream keeps its last bytes back, so
//! that a damaged blob is never served whole.

use super::app::{App, reading};
use super::blobs::SMALL_BYTES;
use super::hash::Sum;
use super::meta::lock;
use super::storage::{BlobReader, Stamp};
use perennial_core::registry::name::BlobDigest;
use perennial_core::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// How long a copy that was sound is trusted: a sum costs more than sending the bytes does. The scrub and the times of
/// the file show what changes in between.
pub(crate) const TRUST_NANOS: u64 = 3600 * 1_000_000_000;
/// Most copies that are remembered as sound, a few hundred bytes each; all are forgotten when there are more, which costs
/// a sum each.
const REMEMBERED_MAX: usize = 20_000;
/// Most blobs that are remembered as unreadable: a disk that gives none of more than these needs no list.
const UNREADABLE_MAX: usize = 1000;
/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;

/// What is known of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its bytes have its digest.
    Sound,
    /// They do not.
    Damaged,
    /// It could not be read.
    Unreadable,
}

type Receiver = watch::Receiver<Option<Verdict>>;

/// A verdict that is there, or will be.
#[derive(Debug, Clone)]
pub(crate) enum Pending {
    /// It is there.
    Known(Verdict),
    /// It is being found.
    Soon(Receiver),
}

impl Pending {
    /// Waits for the verdict.
    pub(crate) async fn wait(self) -> Verdict {
        match self {
            Self::Known(verdict) => verdict,
            Self::Soon(mut receiver) => match receiver.wait_for(Option::is_some).await {
                Ok(verdict) => verdict.unwrap_or(Verdict::Unreadable),
                Err(_) => Verdict::Unreadable,
            },
        }
    }
}

/// The verdicts so far.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    sound: Mutex<BTreeMap<BlobDigest, (Stamp, Time)>>,
    underway: Mutex<BTreeMap<BlobDigest, (Stamp, Receiver)>>,
    /// Blobs that the disk did not give when they were last read.
    unreadable: Mutex<BTreeSet<BlobDigest>>,
}

impl Verdicts {
    /// Remembers a copy that has just been summed; a small one is summed each time it is read.
    pub(crate) fn trust(&self, digest: &BlobDigest, stamp: Stamp, now: Time) {
        self.remove_unreadable(digest);
        if stamp.bytes <= SMALL_BYTES {
            return;
        }
        let mut sound = lock(&self.sound);
        if sound.len() >= REMEMBERED_MAX {
            sound.clear();
        }
        sound.insert(digest.clone(), (stamp, now));
    }

    /// Returns whether a copy was summed lately.
    pub(crate) fn is_trusted(&self, digest: &BlobDigest, stamp: &Stamp, now: Time) -> bool {
        let sound = lock(&self.sound);
        sound.get(digest).is_some_and(|(known, at)| known == stamp && now.nanos_since(*at) < TRUST_NANOS)
    }

    /// Remembers a blob that the disk did not give, and trusts its copy no more.
    pub(crate) fn add_unreadable(&self, digest: &BlobDigest) {
        lock(&self.sound).remove(digest);
        let mut unreadable = lock(&self.unreadable);
        if unreadable.len() < UNREADABLE_MAX {
            unreadable.insert(digest.clone());
        }
    }

    /// Forgets that a blob could not be read: it was read whole, was put again, or is gone.
    pub(crate) fn remove_unreadable(&self, digest: &BlobDigest) {
        lock(&self.unreadable).remove(digest);
    }

    /// Returns whether the disk did not give a blob when it was last read.
    pub(crate) fn is_unreadable(&self, digest: &BlobDigest) -> bool {
        lock(&self.unreadable).contains(digest)
    }

    /// Returns the digests of the blobs that the disk did not give.
    pub(crate) fn unreadable(&self) -> Vec<String> {
        lock(&self.unreadable).iter().map(ToString::to_string).collect()
    }
}

/// Returns the verdict on a copy, beginning to find it where that is needed.
pub(crate) fn verdict(app: &Arc<App>, digest: &BlobDigest, stamp: &Stamp) -> Pending {
    if app.verdicts.is_trusted(digest, stamp, app.now()) {
        return Pending::Known(Verdict::Sound);
    }
    let mut underway = lock(&app.verdicts.underway);
    if let Some((_, receiver)) = underway.get(digest).filter(|(known, _)| known == stamp) {
        return Pending::Soon(receiver.clone());
    }
    let (sender, receiver) = watch::channel(None);
    underway.insert(digest.clone(), (stamp.clone(), receiver.clone()));
    let (app, digest, stamp) = (Arc::clone(app), digest.clone(), stamp.clone());
    // Whoever waits is told by the sender's end where the sum panics or the server ends.
    tokio::spawn(async move {
        let found = found(&app, &digest, &stamp).await;
        let mut underway = lock(&app.verdicts.underway);
        if underway.get(&digest).is_some_and(|(known, _)| *known == stamp) {
            underway.remove(&digest);
        }
        drop(underway);
        sender.send(Some(found)).ok();
    });
    Pending::Soon(receiver)
}

/// Finds the verdict on one copy. It is opened at once, as waiting for the turn to sum takes long, and a push may replace
/// it meanwhile.
async fn found(app: &Arc<App>, digest: &BlobDigest, stamp: &Stamp) -> Verdict {
    let (worker, of) = (Arc::clone(app), digest.clone());
    let opened = reading(app, move || Ok(open(&worker, &of))).await;
    let Ok(Ok(Some(reader))) = opened else { return Verdict::Unreadable };
    if reader.stamp() != stamp {
        // Nothing is known of the copy that was asked about.
        return Verdict::Unreadable;
    }
    let permit = app.summing.acquire().await;
    let (worker, of) = (Arc::clone(app), digest.clone());
    let found = tokio::task::spawn_blocking(move || check(&worker, &of, reader, &mut |_| Ok(()))).await;
    drop(permit);
    found.unwrap_or(Verdict::Unreadable)
}

/// Opens a copy to be checked; one that is not there is recorded as damaged.
pub(crate) fn open(app: &App, digest: &BlobDigest) -> Result<Option<Box<dyn BlobReader>>, Verdict> {
    match app.storage.open(digest) {
        Ok(Some(reader)) => Ok(Some(reader)),
        Ok(None) => {
            app.condemn_missing(digest);
            Ok(None)
        }
        Err(error) => {
            app.unread(digest, None, error);
            Err(Verdict::Unreadable)
        }
    }
}

/// Sums a copy, calling `pause` with the bytes of each read; what is damaged is put aside and recorded.
pub(crate) fn check(
    app: &App,
    digest: &BlobDigest,
    mut reader: Box<dyn BlobReader>,
    pause: &mut dyn FnMut(usize) -> io::Result<()>,
) -> Verdict {
    let stamp = reader.stamp().clone();
    match sum_of(&mut *reader, digest, pause) {
        Ok(found) if found == *digest => {
            app.verdicts.trust(digest, stamp, app.now());
            Verdict::Sound
        }
        Ok(found) => {
            app.condemn(digest, &stamp, found.as_str());
            Verdict::Damaged
        }
        Err(error) => {
            app.unread(digest, Some(&stamp), error);
            Verdict::Unreadable
        }
    }
}

fn sum_of(
    reader: &mut dyn BlobReader,
    digest: &BlobDigest,
    pause: &mut dyn FnMut(usize) -> io::Result<()>,
) -> io::Result<BlobDigest> {
    let bytes = reader.stamp().bytes;
    let mut sum = Sum::new(digest.algorithm());
    let mut offset = 0_u64;
    let mut buffer = vec![0; READ_BYTES];
    while offset < bytes {
        let count = usize::try_from(bytes.saturating_sub(offset)).unwrap_or(READ_BYTES).min(READ_BYTES);
        let part = buffer.get_mut(..count).unwrap_or_default();
        reader.read_at(offset, part)?;
        sum.update(part);
        offset = offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        pause(count)?;
    }
    Ok(sum.finish())
}
