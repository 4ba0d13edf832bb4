//! Whether the copy of a blob that is about to be served is sound.
//!
//! A copy is summed once when it is first asked for, beside the streams that read it, and is then trusted for
//! [`TRUST_NANOS`] as long as its stamp stays the same. Until the verdict is there a stream keeps its last bytes back, so
//! that a damaged blob is never served whole.

use super::app::{App, reading};
use super::condemn::is_of_disk;
use super::hash::Sum;
use super::meta::lock;
use super::storage::{BlobReader, Stamp};
use super::trouble::Trouble;
use perennial_core::registry::name::BlobDigest;
use perennial_core::time::Time;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// How long a copy that was sound is trusted: a sum costs more than sending the bytes does. The scrub and the times of
/// the file show what changes in between.
pub(crate) const TRUST_NANOS: u64 = 3600 * 1_000_000_000;
/// Most copies that are remembered as sound; all are forgotten when there are more, which costs a sum each.
const REMEMBERED_MAX: usize = 200_000;
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
}

impl Verdicts {
    /// Remembers a copy that has just been summed.
    pub(crate) fn trust(&self, digest: &BlobDigest, stamp: Stamp, now: Time) {
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
            unread(app, digest, error);
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
        Err(error) if is_of_disk(&error) => {
            app.condemn(digest, &stamp, "an error of the disk");
            Verdict::Damaged
        }
        Err(error) => {
            unread(app, digest, error);
            Verdict::Unreadable
        }
    }
}

/// Says that a copy could not be read, which tells nothing of its bytes; nothing where the reader was told to end.
fn unread(app: &App, digest: &BlobDigest, error: io::Error) {
    if is_of_disk(&error) {
        app.condemn_missing(digest);
    } else if error.kind() != io::ErrorKind::Interrupted {
        app.trouble("read", digest.as_str(), &Trouble::io("cannot read a blob")(error));
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
    while offset < bytes {
        let count = usize::try_from(bytes.saturating_sub(offset)).unwrap_or(READ_BYTES).min(READ_BYTES);
        sum.update(&reader.read_at(offset, count)?);
        offset = offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        pause(count)?;
    }
    Ok(sum.finish())
}
