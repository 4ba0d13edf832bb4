//! What becomes of a copy of a blob that was read: a damaged one is put aside, a sound one is left alone for a while.
//!
//! A copy that the disk does not give is neither. Its bytes may be sound, and the disk may give them again when a cable
//! is back in its place, so nothing is moved and nothing recorded that only a push could undo. It is told of as a
//! condition, it is trusted no more, and `HEAD` does not find it, so that a client who has the bytes pushes them again.
//!
//! Reading takes long, and the copy that was read may have been replaced by a push meanwhile. So each verdict is carried
//! out under the lock of the digest, after a second look at which copy is there.

use super::app::App;
use super::log::Level;
use super::storage::Stamp;
use super::trouble::Trouble;
use perennial_core::registry::name::BlobDigest;
use serde_json::json;
use std::io;

/// Returns whether an error says that the disk cannot give the bytes, rather than that they cannot be had just now.
pub(crate) fn is_of_disk(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

impl App {
    /// Puts a damaged copy aside and records it, so that it is not served and can be pushed again.
    pub(crate) fn condemn(&self, digest: &BlobDigest, stamp: &Stamp, found: &str) {
        let _guard = self.lock_digest(digest);
        match self.storage.open(digest) {
            Ok(Some(present)) if present.stamp() == stamp => self.put_aside(digest, found),
            // It was replaced, or is gone; the next reader sees.
            Ok(_) => {}
            Err(error) => self.unopened(digest, error),
        }
    }

    /// Records a blob as damaged that was not there, if that is still so.
    pub(crate) fn condemn_missing(&self, digest: &BlobDigest) {
        let _guard = self.lock_digest(digest);
        match self.storage.open(digest) {
            Ok(Some(_)) => {}
            // What collection has freed meanwhile is not in the record.
            Ok(None) => match self.meta.any_blob(digest) {
                Ok(Some(_)) => self.put_aside(digest, "nothing"),
                Ok(None) => {}
                Err(trouble) => self.trouble("quarantine", digest.as_str(), &trouble),
            },
            Err(error) => self.unopened(digest, error),
        }
    }

    /// Records that a copy was found sound, if it is the one that is there.
    pub(crate) fn acquit(&self, digest: &BlobDigest, stamp: &Stamp) -> Result<(), Trouble> {
        let _guard = self.lock_digest(digest);
        let present = self.storage.open(digest).map_err(Trouble::io("cannot open a blob"))?;
        // A copy that was put meanwhile was checked when it came.
        if present.is_some_and(|present| present.stamp() == stamp) {
            self.meta.found_sound(digest, self.now())?;
        }
        Ok(())
    }

    /// Says that a copy could not be read, which tells nothing of its bytes; nothing where the reader was told to end.
    pub(crate) fn unread(&self, digest: &BlobDigest, stamp: Option<&Stamp>, error: io::Error) {
        if error.kind() != io::ErrorKind::Interrupted {
            self.note_unread(digest, stamp, &error);
            self.trouble("read", digest.as_str(), &Trouble::io("cannot read a blob")(error));
        }
    }

    /// Finds what it means that a copy could not be read, or not be opened: the disk does not give it, or it was cut short.
    pub(crate) fn note_unread(&self, digest: &BlobDigest, stamp: Option<&Stamp>, error: &io::Error) {
        if !is_of_disk(error) && error.kind() != io::ErrorKind::UnexpectedEof {
            return;
        }
        let _guard = self.lock_digest(digest);
        match self.storage.open(digest) {
            Ok(Some(present)) if is_of_disk(error) => {
                // Another copy has taken its place where the stamps differ, and one that could not be opened can be now.
                if stamp.is_some_and(|stamp| stamp == present.stamp()) {
                    self.verdicts.add_unreadable(digest);
                }
            }
            Ok(Some(present)) => {
                if self.meta.any_blob(digest).is_ok_and(|bytes| bytes.is_some_and(|b| b != present.stamp().bytes)) {
                    self.put_aside(digest, "another length");
                }
            }
            Err(error) if is_of_disk(&error) => self.verdicts.add_unreadable(digest),
            // The next reader sees.
            Ok(None) | Err(_) => {}
        }
    }

    fn unopened(&self, digest: &BlobDigest, error: io::Error) {
        if is_of_disk(&error) {
            self.verdicts.add_unreadable(digest);
        }
        self.trouble("quarantine", digest.as_str(), &Trouble::io("cannot open a blob")(error));
    }

    /// The caller holds the lock of the digest.
    fn put_aside(&self, digest: &BlobDigest, found: &str) {
        self.metrics.damaged.inc();
        self.verdicts.remove_unreadable(digest);
        let fields = vec![("digest", json!(digest.as_str())), ("found", json!(found))];
        self.options.log.line(Level::Error, "blob_damaged", fields);
        if self.options.is_read_only {
            // It is found again by each reader, and not sent whole to any.
            return;
        }
        // Recorded first: the record keeps it from being served whatever becomes of the file.
        let recorded = self.meta.found_damaged(digest, self.now());
        let moved = self.storage.quarantine(digest).map_err(Trouble::io("cannot put the blob aside"));
        for trouble in [recorded, moved].into_iter().filter_map(Result::err) {
            self.trouble("quarantine", digest.as_str(), &trouble);
        }
    }
}
