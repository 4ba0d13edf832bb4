//! Uploads that are not finished: one file of bytes for each, and beside it what it is for.
//!
//! Where an upload stands is the length of its file, so it survives this process. The sum goes along in memory; after a
//! restart the bytes that are there are summed again when the next ones come. Memory never says more than the disk: before
//! anything is told or added, the file is looked at, and where it has become shorter the upload stands there.

use super::hash::Sum;
use super::meta::lock;
use super::trouble::Trouble;
use bytes::Bytes;
use perennial_core::format::{Format, decode, encode};
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::name::{Algorithm, BlobDigest, Repository, UploadId};
use perennial_core::registry::quota::Quota;
use perennial_core::registry::staged::Staged;
use perennial_core::registry::upload::UploadRecord;
use perennial_core::time::Time;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::OwnedMutexGuard;

/// Bytes read at once when stored bytes are summed again.
const REREAD_BYTES: usize = 256 * 1024;

/// One upload. Whoever works on it holds its lock, so that two requests cannot write at once.
#[derive(Debug)]
pub(crate) struct Session {
    /// Its name.
    pub(crate) id: UploadId,
    /// The repository it is for.
    pub(crate) repository: String,
    /// Bytes that are there.
    pub(crate) bytes: u64,
    path: PathBuf,
    algorithm: Algorithm,
    /// The sum of the bytes that are there; nothing after a restart.
    sum: Option<Sum>,
    is_over: bool,
    standing: Arc<AtomicU64>,
}

/// An upload, and where it stands, which can be told while a request works on it.
#[derive(Debug, Clone)]
struct Shared {
    session: Arc<tokio::sync::Mutex<Session>>,
    repository: String,
    standing: Arc<AtomicU64>,
}

impl Shared {
    fn new(session: Session) -> Self {
        let (repository, standing) = (session.repository.clone(), Arc::clone(&session.standing));
        standing.store(session.bytes, Ordering::Relaxed);
        Self { session: Arc::new(tokio::sync::Mutex::new(session)), repository, standing }
    }
}

type Lockable = Arc<tokio::sync::Mutex<Session>>;

/// All uploads.
#[derive(Debug)]
pub(crate) struct Staging {
    directory: PathBuf,
    sessions: Mutex<BTreeMap<UploadId, Shared>>,
    /// What they take, of those too on which nobody has worked since the start.
    staged: Mutex<Staged>,
}

impl Staging {
    /// Opens the uploads in a directory.
    pub(crate) fn open(directory: PathBuf) -> Result<Self, Trouble> {
        let what = format!("cannot make {}", directory.display());
        std::fs::create_dir_all(&directory).map_err(Trouble::io(what.clone()))?;
        let mut staged = Staged::default();
        for entry in std::fs::read_dir(&directory).map_err(Trouble::io(what.clone()))? {
            let path = entry.map_err(Trouble::io(what.clone()))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // What cannot be read is no upload that anybody could go on with; collection takes it away.
            if let Some(id) = UploadId::parse(name)
                && let Ok(record) = std::fs::read(record_path(&path))
                && let Ok(record) = decode::<UploadRecord>(Format::RegistryUpload, &record)
                && let Ok(meta) = path.metadata()
            {
                staged.found(&id, &record.repository, meta.len());
            }
        }
        Ok(Self { directory, sessions: Mutex::default(), staged: Mutex::new(staged) })
    }

    /// Promises an upload room for `bytes` bytes in a repository that holds `held` bytes.
    pub(crate) fn hold(&self, session: &Session, bytes: u64, held: u64, quota: Quota) -> Result<(), Fault> {
        lock(&self.staged).hold(&session.id, bytes, held, quota)
    }

    /// Counts the bytes of an upload as they are, or as none where they are about to become a blob.
    pub(crate) fn count(&self, session: &Session, bytes: u64) {
        lock(&self.staged).set(&session.id, bytes);
    }

    /// Begins an upload, locked for who begins it: otherwise one that is a moment old could be ended as forgotten.
    pub(crate) fn begin(
        &self,
        id: UploadId,
        repository: &Repository,
        algorithm: Algorithm,
        now: Time,
    ) -> Result<OwnedMutexGuard<Session>, Trouble> {
        let record = UploadRecord {
            repository: repository.to_string(),
            algorithm: algorithm.as_str().to_owned(),
            started_at: now,
        };
        let path = self.directory.join(id.as_str());
        lock(&self.staged).begin(&id, repository.as_str())?;
        let session = Session {
            id: id.clone(),
            repository: record.repository.clone(),
            bytes: 0,
            path: path.clone(),
            algorithm,
            sum: Some(Sum::new(algorithm)),
            is_over: false,
            standing: Arc::default(),
        };
        let shared = Shared::new(session);
        let failed = || format!("cannot begin upload {id}");
        let busy = |_| Trouble::io(failed())(std::io::ErrorKind::WouldBlock.into());
        let session = shared.session.clone().try_lock_owned().map_err(busy)?;
        lock(&self.sessions).insert(id.clone(), shared);
        if let Err(error) = self.create(&id, &path, &record) {
            lock(&self.sessions).remove(&id);
            lock(&self.staged).end(&id);
            return Err(Trouble::io(failed())(error));
        }
        Ok(session)
    }

    fn create(&self, id: &UploadId, path: &Path, record: &UploadRecord) -> std::io::Result<()> {
        File::create_new(path)?;
        // Last, so that an upload whose record is there has its file. Not synced: an upload may be lost at a power cut,
        // and the client begins anew.
        let temporary = self.directory.join(format!("{id}.new"));
        File::create(&temporary)?.write_all(&encode(Format::RegistryUpload, record))?;
        std::fs::rename(&temporary, record_path(path))
    }

    /// Returns an upload of a repository.
    pub(crate) fn find(&self, id: &UploadId, repository: &Repository) -> Result<Lockable, Trouble> {
        self.shared(id, repository).map(|shared| shared.session)
    }

    /// Returns how many bytes of an upload are there, without waiting for who works on it.
    pub(crate) fn standing(&self, id: &UploadId, repository: &Repository) -> Result<u64, Trouble> {
        let shared = self.shared(id, repository)?;
        if shared.repository != repository.as_str() {
            return Err(unknown(id).into());
        }
        let stands = shared.standing.load(Ordering::Relaxed);
        Ok(stands.min(length_of(id, &self.directory.join(id.as_str()))?))
    }

    fn shared(&self, id: &UploadId, repository: &Repository) -> Result<Shared, Trouble> {
        if let Some(shared) = lock(&self.sessions).get(id) {
            return Ok(shared.clone());
        }
        let loaded = self.load(id, repository)?;
        Ok(lock(&self.sessions).entry(id.clone()).or_insert(loaded).clone())
    }

    fn load(&self, id: &UploadId, repository: &Repository) -> Result<Shared, Trouble> {
        let path = self.directory.join(id.as_str());
        let record = match std::fs::read(record_path(&path)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(unknown(id).into()),
            Err(error) => return Err(Trouble::io(format!("cannot read the record of upload {id}"))(error)),
        };
        let record: UploadRecord =
            decode(Format::RegistryUpload, &record).map_err(|error| Trouble::Damaged(error.to_string()))?;
        if record.repository != repository.as_str() {
            return Err(unknown(id).into());
        }
        let algorithm = Algorithm::parse(&record.algorithm)?;
        let bytes = length_of(id, &path)?;
        let repository = record.repository;
        let (id, standing) = (id.clone(), Arc::default());
        let session = Session { id, repository, bytes, path, algorithm, sum: None, is_over: false, standing };
        Ok(Shared::new(session))
    }

    /// Ends an upload: its bytes have become a blob, or are not wanted. A session that is over takes nothing more.
    pub(crate) fn end(&self, session: &mut Session) -> Result<(), Trouble> {
        session.is_over = true;
        lock(&self.sessions).remove(&session.id);
        remove(&session.path).map_err(Trouble::io(format!("cannot end upload {}", session.id)))?;
        lock(&self.staged).end(&session.id);
        Ok(())
    }

    /// Ends uploads that nobody has written to since `before`, and what is left of others; returns how many.
    pub(crate) fn expire(&self, before: Time) -> Result<usize, Trouble> {
        let failed = || Trouble::io(format!("cannot list {}", self.directory.display()));
        let mut ended = 0_usize;
        for entry in std::fs::read_dir(&self.directory).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let modified = path.metadata().and_then(|meta| meta.modified());
            let Ok(modified) = modified else { continue };
            let is_old = modified.duration_since(std::time::UNIX_EPOCH).is_ok_and(|since| {
                i64::try_from(since.as_nanos()).is_ok_and(|nanos| Time::from_unix_nanos(nanos) < before)
            });
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let is_bytes = UploadId::parse(&name);
            let belongs_to = name.split('.').next().map(|stem| self.directory.join(stem));
            let is_left_over = is_bytes.is_none() && belongs_to.is_some_and(|path| !path.exists());
            if let Some(id) = is_bytes.filter(|_| is_old) {
                if self.is_busy(&id) {
                    continue;
                }
                remove(&path).map_err(Trouble::io(format!("cannot end upload {id}")))?;
                lock(&self.staged).end(&id);
                ended = ended.saturating_add(1);
            } else if is_old && is_left_over {
                std::fs::remove_file(&path).ok();
            }
        }
        Ok(ended)
    }

    /// Returns whether a request works on an upload; forgets one on which none does.
    fn is_busy(&self, id: &UploadId) -> bool {
        let mut sessions = lock(&self.sessions);
        let Some(shared) = sessions.get(id) else { return false };
        let Ok(mut session) = shared.session.clone().try_lock_owned() else { return true };
        session.is_over = true;
        sessions.remove(id);
        false
    }
}

fn record_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

fn remove(path: &Path) -> std::io::Result<()> {
    for path in [path.to_path_buf(), record_path(path)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Returns how many bytes of an upload the disk has; one without a file is unknown.
fn length_of(id: &UploadId, path: &Path) -> Result<u64, Trouble> {
    match path.metadata() {
        Ok(meta) => Ok(meta.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(unknown(id).into()),
        Err(error) => Err(Trouble::io(format!("cannot look at upload {id}"))(error)),
    }
}

fn unknown(id: &UploadId) -> Fault {
    Fault::new(Code::BlobUploadUnknown, format!("there is no upload {id} for this repository"))
}

/// A file that takes an upload's bytes, with their sum.
#[derive(Debug)]
pub(crate) struct Writer {
    file: File,
    sum: Sum,
    bytes: u64,
}

impl Session {
    /// Refuses a session that has ended, or that is another repository's.
    pub(crate) fn check(&self, repository: &Repository) -> Result<(), Fault> {
        if self.is_over || self.repository != repository.as_str() {
            return Err(unknown(&self.id));
        }
        Ok(())
    }

    /// Looks at the file: where it has become shorter, what is gone has to come again. Returns whether it has.
    pub(crate) fn refresh(&mut self) -> Result<bool, Trouble> {
        let length = length_of(&self.id, &self.path)?;
        let is_shorter = length < self.bytes;
        if is_shorter {
            (self.bytes, self.sum) = (length, None);
            self.standing.store(length, Ordering::Relaxed);
        }
        Ok(is_shorter)
    }

    /// Returns where its bytes are.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file for more bytes, to be summed by this algorithm (the session's own where none is given). What is
    /// there is summed first where no sum of it is at hand. The sum is the writer's until [`Session::take_back`].
    pub(crate) fn writer(&mut self, algorithm: Option<Algorithm>) -> Result<Writer, Trouble> {
        let algorithm = algorithm.unwrap_or(self.algorithm);
        let failed = || format!("cannot open upload {}", self.id);
        let open = OpenOptions::new().read(true).append(true).open(&self.path);
        let mut file = open.map_err(Trouble::io(failed()))?;
        let length = file.metadata().map_err(Trouble::io(failed()))?.len();
        if length < self.bytes {
            // Since the request began. What goes on behind a gap could never be right.
            return Err(Trouble::Damaged(format!("upload {} had {} bytes and has {length}", self.id, self.bytes)));
        }
        if length > self.bytes {
            // A write that was cut off: what was not acknowledged is not there.
            file.set_len(self.bytes).map_err(Trouble::io(failed()))?;
        }
        let sum = match self.sum.take().filter(|sum| sum.algorithm() == algorithm) {
            Some(sum) => sum,
            None => summed(&mut file, algorithm).map_err(Trouble::io(failed()))?,
        };
        self.algorithm = algorithm;
        Ok(Writer { file, sum, bytes: self.bytes })
    }

    /// Takes the sum back from a writer whose bytes have all been written.
    pub(crate) fn take_back(&mut self, writer: Writer) {
        self.bytes = writer.bytes;
        self.standing.store(self.bytes, Ordering::Relaxed);
        self.sum = Some(writer.sum);
    }

    /// Cuts the upload back to `bytes` bytes: what came after them is refused.
    pub(crate) fn cut(&mut self, bytes: u64) -> Result<(), Trouble> {
        self.sum = None;
        let cut = OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(bytes));
        cut.map_err(Trouble::io(format!("cannot cut upload {}", self.id)))?;
        self.bytes = bytes;
        self.standing.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the digest of the bytes that are there.
    pub(crate) fn digest(&mut self, algorithm: Algorithm) -> Result<BlobDigest, Trouble> {
        let writer = self.writer(Some(algorithm))?;
        let digest = writer.sum.clone().finish();
        self.take_back(writer);
        Ok(digest)
    }
}

fn summed(file: &mut File, algorithm: Algorithm) -> std::io::Result<Sum> {
    let mut sum = Sum::new(algorithm);
    let mut buffer = vec![0_u8; REREAD_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(sum);
        }
        sum.update(buffer.get(..count).unwrap_or_default());
    }
}

impl Writer {
    /// Appends chunks, in their order.
    pub(crate) fn append(&mut self, chunks: &[Bytes]) -> std::io::Result<()> {
        for chunk in chunks {
            self.file.write_all(chunk)?;
            self.sum.update(chunk);
            self.bytes = self.bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}
