//! One blob on its way into a staged file: `pull-sha256-….partial` while it grows, without the suffix when it is whole.
//!
//! A partial file is locked by the process that fills it. What it holds is summed again before the transfer goes on, so
//! the digest covers every byte, whoever wrote it.

use super::error::{PullError, is_passing};
use super::{Session, Wanted};
use crate::digest;
use crate::import::ImportError;
use crate::progress::{Event, Phase, Progress};
use futures_util::StreamExt as _;
use oci_client::client::BlobResponse;
use oci_client::errors::{DigestError, OciDistributionError};
use perennial_core::id::Digest;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tries of one blob in all, with progress or without.
const TRIES_TOTAL_MAX: u32 = 1000;
/// Time between two looks at another process's lock, and how often to look: an hour.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
const LOCK_LOOKS_MAX: u32 = 36_000;
/// Bytes between two reports of progress.
const REPORT_BYTES: u64 = 256 * 1024;

/// Returns how long to wait after so many failures: a quarter of a second, doubled each time, at most eight seconds.
pub(crate) fn pause(tries: u32) -> Duration {
    Duration::from_millis(250).saturating_mul(1 << tries.saturating_sub(1).min(5))
}

fn whole_path(staging: &Path, digest: &Digest) -> PathBuf {
    staging.join(format!("pull-sha256-{}", digest.hex()))
}

fn partial_path(staging: &Path, digest: &Digest) -> PathBuf {
    staging.join(format!("pull-sha256-{}.partial", digest.hex()))
}

/// Removes a staged blob.
pub(super) fn discard(staging: &Path, digest: &Digest) -> Result<(), PullError> {
    let path = whole_path(staging, digest);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(PullError::Staging { path, source }),
    }
}

/// One blob to be downloaded.
pub(super) struct Download<'a> {
    pub(super) session: &'a Session,
    pub(super) wanted: &'a Wanted,
    pub(super) staging: &'a Path,
    pub(super) progress: &'a dyn Progress,
}

/// A partial file and the sum of what is in it.
struct Partial {
    file: File,
    sum: Sha256,
    bytes: u64,
}

/// Why one try ended.
enum Stop {
    Broken(OciDistributionError),
    /// More bytes came than the blob has, or the sum is wrong.
    Damaged,
    Staging(io::Error),
}

impl From<OciDistributionError> for Stop {
    fn from(error: OciDistributionError) -> Self {
        if let OciDistributionError::DigestError(DigestError::VerificationError { .. }) = error {
            return Self::Damaged;
        }
        Self::Broken(error)
    }
}

impl Download<'_> {
    /// Downloads the blob; returns the whole file, whose digest is right.
    pub(super) async fn run(&self) -> Result<File, PullError> {
        let Wanted { layer, digest, size } = self.wanted;
        let (path, whole) = (partial_path(self.staging, digest), whole_path(self.staging, digest));
        let failed = |source| PullError::Staging { path: path.clone(), source };
        let name = digest.to_string();
        let (layer, phase) = (*layer, Phase::Download);
        self.progress.event(Event::Started { layer, phase, name: &name, bytes_total: Some(*size) });
        let file = match self.whole(&whole)? {
            Some(file) => file,
            None => {
                let Some(file) = self.lock(&path, &whole).await? else {
                    return File::open(&whole).map_err(failed);
                };
                let partial = Partial::open(file, *size).map_err(failed)?;
                let file = self.fill(partial, &path).await?;
                std::fs::rename(&path, &whole).map_err(failed)?;
                file
            }
        };
        self.progress.event(Event::Advanced { layer, phase, bytes: *size });
        self.progress.event(Event::Finished { layer, phase });
        Ok(file)
    }

    /// Opens the blob where an earlier pull left it whole.
    fn whole(&self, path: &Path) -> Result<Option<File>, PullError> {
        match File::open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PullError::Staging { path: path.to_path_buf(), source }),
        }
    }

    /// Opens and locks the partial file; `None` where another process has meanwhile finished it.
    async fn lock(&self, path: &Path, whole: &Path) -> Result<Option<File>, PullError> {
        let failed = |source| PullError::Staging { path: path.to_path_buf(), source };
        for _ in 0..LOCK_LOOKS_MAX {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
            let file = file.map_err(failed)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    let own = file.metadata().map_err(failed)?;
                    if path.metadata().is_ok_and(|now| now.ino() == own.ino() && now.dev() == own.dev()) {
                        return Ok(Some(file));
                    }
                    // Finished or removed between opening and locking.
                    if whole.exists() {
                        return Ok(None);
                    }
                }
                Err(Errno::WOULDBLOCK) => tokio::time::sleep(LOCK_PAUSE).await,
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(PullError::Busy { digest: self.wanted.digest.to_string() })
    }

    /// Fills the partial file until it is whole.
    async fn fill(&self, mut partial: Partial, path: &Path) -> Result<File, PullError> {
        let digest = self.wanted.digest.as_str();
        let mut tries = 0;
        let mut was_damaged = false;
        for _ in 0..TRIES_TOTAL_MAX {
            let before = partial.bytes;
            let stop = match self.attempt(&mut partial).await {
                Ok(()) => return Ok(partial.file),
                Err(stop) => stop,
            };
            tries = if partial.bytes > before { 1 } else { tries + 1 };
            match stop {
                Stop::Staging(source) => return Err(PullError::Staging { path: path.to_path_buf(), source }),
                Stop::Damaged => {
                    let found = digest::finish(partial.sum.clone());
                    partial.clear().map_err(|source| PullError::Staging { path: path.to_path_buf(), source })?;
                    // What an earlier process left may be what is wrong: begin anew, once.
                    if was_damaged || before == 0 {
                        let (name, stated) = (digest.to_owned(), self.wanted.digest.clone());
                        return Err(ImportError::Digest { what: "layer", name, found, stated }.into());
                    }
                    was_damaged = true;
                }
                Stop::Broken(error) if !is_passing(&error) => {
                    return Err(PullError::from_blob(error, &self.session.reference, digest));
                }
                Stop::Broken(error) if tries >= self.session.tries_max => {
                    return Err(self.given_up(error, &partial, tries));
                }
                Stop::Broken(error) => {
                    let reason = error.to_string();
                    self.progress.event(Event::Retried { layer: self.wanted.layer, attempts: tries, reason: &reason });
                    tokio::time::sleep(pause(tries)).await;
                }
            }
        }
        Err(PullError::Busy { digest: digest.to_owned() })
    }

    fn given_up(&self, error: OciDistributionError, partial: &Partial, tries: u32) -> PullError {
        if partial.bytes == 0 {
            return PullError::from_blob(error, &self.session.reference, self.wanted.digest.as_str());
        }
        PullError::Interrupted {
            digest: self.wanted.digest.to_string(),
            bytes: partial.bytes,
            bytes_total: self.wanted.size,
            tries,
            source: Box::new(error),
        }
    }

    /// Asks for what is missing, once, and checks the whole.
    async fn attempt(&self, partial: &mut Partial) -> Result<(), Stop> {
        let Session { client, reference, .. } = self.session;
        let digest = self.wanted.digest.as_str();
        if partial.bytes < self.wanted.size || self.wanted.size == 0 {
            let mut stream = if partial.bytes == 0 {
                client.pull_blob_stream(reference, digest).await?
            } else {
                match client.pull_blob_stream_partial(reference, digest, partial.bytes, None).await? {
                    BlobResponse::Partial(stream) => stream,
                    BlobResponse::Full(stream) => {
                        partial.clear().map_err(Stop::Staging)?;
                        stream
                    }
                }
            };
            let mut reported = partial.bytes;
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.map_err(broken)?;
                partial.push(&chunk).map_err(Stop::Staging)?;
                if partial.bytes > self.wanted.size {
                    return Err(Stop::Damaged);
                }
                if partial.bytes - reported >= REPORT_BYTES {
                    reported = partial.bytes;
                    let (layer, bytes) = (self.wanted.layer, partial.bytes);
                    self.progress.event(Event::Advanced { layer, phase: Phase::Download, bytes });
                }
            }
        }
        if partial.bytes < self.wanted.size {
            return Err(Stop::Broken(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
        }
        if digest::finish(partial.sum.clone()) != self.wanted.digest {
            return Err(Stop::Damaged);
        }
        Ok(())
    }
}

/// Tells a wrong digest, which the client checks as well, from a broken connection.
fn broken(error: io::Error) -> Stop {
    if error.get_ref().is_some_and(|inner| inner.is::<DigestError>()) {
        return Stop::Damaged;
    }
    Stop::Broken(error.into())
}

impl Partial {
    /// Takes up what is in the file.
    fn open(file: File, size: u64) -> io::Result<Self> {
        let mut partial = Self { file, sum: Sha256::new(), bytes: 0 };
        if partial.file.metadata()?.len() > size {
            partial.clear()?;
        }
        let mut buffer = vec![0_u8; 256 * 1024];
        loop {
            let count = partial.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(partial);
            }
            partial.sum.update(buffer.get(..count).unwrap_or_default());
            partial.bytes = partial.bytes.saturating_add(u64::try_from(count).unwrap_or(0));
        }
    }

    fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.sum.update(chunk);
        self.bytes = self.bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.sum = Sha256::new();
        self.bytes = 0;
        Ok(())
    }
}
