//! The registry's record: which repository holds which blobs, manifests and tags, in one SQLite file.
//!
//! All changes go through one thread, which puts those that wait at the same time into one transaction, each behind a
//! savepoint of its own: a change is acknowledged after the commit that holds it has been synced, and many pushes share
//! that sync. Readers have connections of their own and see whole commits only.

mod blobs;
mod collect;
mod manifests;

pub(crate) use blobs::Holding;
pub(crate) use manifests::NewManifest;

use super::trouble::Trouble;
use perennial_core::registry::name::Repository;
use perennial_core::time::Time;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Version of the tables, in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 1;
/// How long a reader waits for the log to be recovered; otherwise readers never wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most changes in one transaction: what waits while a commit is synced.
const BATCH_MAX: usize = 256;
/// Most readers that are kept open: each keeps pages of the record.
const READERS_MAX: usize = 8;
/// Memory for these pages, in KiB; the kernel keeps them too.
const CACHE_KIB: u32 = 512;

const SCHEMA: &str = "
CREATE TABLE repository (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE blob (digest TEXT PRIMARY KEY, bytes INTEGER NOT NULL, added_at INTEGER NOT NULL,
    checked_at INTEGER NOT NULL, is_damaged INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE INDEX blob_checked ON blob (checked_at);
CREATE TABLE link (repository INTEGER NOT NULL REFERENCES repository (id),
    digest TEXT NOT NULL REFERENCES blob (digest), touched_at INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX link_digest ON link (digest);
CREATE TABLE manifest (repository INTEGER NOT NULL REFERENCES repository (id), digest TEXT NOT NULL,
    media_type TEXT NOT NULL, content BLOB NOT NULL, subject TEXT, artifact_type TEXT, annotations TEXT,
    put_at INTEGER NOT NULL, PRIMARY KEY (repository, digest));
CREATE INDEX manifest_subject ON manifest (repository, subject, digest) WHERE subject IS NOT NULL;
CREATE TABLE refers (repository INTEGER NOT NULL, manifest TEXT NOT NULL, target TEXT NOT NULL,
    is_manifest INTEGER NOT NULL, PRIMARY KEY (repository, manifest, target),
    FOREIGN KEY (repository, manifest) REFERENCES manifest (repository, digest) ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX refers_target ON refers (repository, target);
CREATE TABLE tag (repository INTEGER NOT NULL, name TEXT NOT NULL, digest TEXT NOT NULL, set_at INTEGER NOT NULL,
    PRIMARY KEY (repository, name),
    FOREIGN KEY (repository, digest) REFERENCES manifest (repository, digest) ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX tag_digest ON tag (repository, digest);
CREATE TRIGGER link_added AFTER INSERT ON link BEGIN
    UPDATE repository SET bytes = bytes + (SELECT bytes FROM blob WHERE digest = new.digest) WHERE id = new.repository;
END;
CREATE TRIGGER link_gone AFTER DELETE ON link BEGIN
    UPDATE repository SET bytes = bytes - (SELECT bytes FROM blob WHERE digest = old.digest) WHERE id = old.repository;
END;
CREATE TRIGGER manifest_added AFTER INSERT ON manifest BEGIN
    UPDATE repository SET bytes = bytes + length(new.content) WHERE id = new.repository;
END;
CREATE TRIGGER manifest_gone AFTER DELETE ON manifest BEGIN
    UPDATE repository SET bytes = bytes - length(old.content) WHERE id = old.repository;
END;
PRAGMA user_version = 1;
";

type Change = Box<dyn FnOnce(&Connection) -> Waiting + Send>;
/// Called after the commit, with whether it succeeded.
type Waiting = Box<dyn FnOnce(Result<(), String>) + Send>;

/// The record.
pub(crate) struct Meta {
    path: PathBuf,
    readers: Mutex<Vec<Connection>>,
    changes: Mutex<Option<mpsc::Sender<Change>>>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for Meta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meta").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Meta {
    /// Opens the record at `path`, making it where there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, Trouble> {
        let connection = connect(path)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            let text = format!("it has version {version}, this release knows {SCHEMA_VERSION}: use a newer release");
            return Err(Trouble::Damaged(text));
        }
        if version == 0 {
            connection.execute_batch(&format!("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
        }
        let (sender, receiver) = mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("record".into())
            .spawn(move || write_all(connection, &receiver))
            .map_err(Trouble::io("cannot start the thread that writes the record"))?;
        Ok(Self {
            path: path.to_path_buf(),
            readers: Mutex::default(),
            changes: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Reads one whole commit.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let free = lock(&self.readers).pop();
        let mut connection = match free {
            Some(connection) => connection,
            None => connect(&self.path)?,
        };
        let transaction = connection.transaction()?;
        let result = read(&transaction);
        transaction.finish()?;
        let mut readers = lock(&self.readers);
        if readers.len() < READERS_MAX {
            readers.push(connection);
        }
        result
    }

    /// Makes a change; returns when it is durable, or when nothing has changed.
    pub(crate) fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, Trouble> {
        let (answer, wait) = mpsc::sync_channel(1);
        let job: Change = Box::new(move |connection| {
            let result = change(connection);
            let is_refused = result.is_err();
            let done: Waiting = Box::new(move |committed| {
                // Nobody waits any more where the server is ending.
                answer.send((committed, result)).ok();
            });
            if is_refused {
                // What follows undoes the savepoint; the caller learns of it after the batch all the same.
                connection.execute_batch("ROLLBACK TO change").ok();
            }
            done
        });
        let sender = lock(&self.changes).clone().ok_or(Trouble::Ending)?;
        sender.send(job).map_err(|_| Trouble::Ending)?;
        drop(sender);
        let (committed, result) = wait.recv().map_err(|_| Trouble::Ending)?;
        match (result, committed) {
            (Ok(value), Ok(())) => Ok(value),
            (Ok(_), Err(reason)) => Err(Trouble::Damaged(format!("the change could not be committed: {reason}"))),
            (Err(trouble), _) => Err(trouble),
        }
    }

    /// Waits for the changes that are under way, and takes no more.
    pub(crate) fn close(&self) {
        lock(&self.changes).take();
        if let Some(writer) = lock(&self.writer).take() {
            writer.join().ok();
        }
    }
}

/// Locks; a thread that panicked while it held the lock has left nothing half done in these values.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(path: &Path) -> Result<Connection, Trouble> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    let pragmas = format!("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -{CACHE_KIB};");
    connection.execute_batch(&pragmas)?;
    Ok(connection)
}

fn write_all(mut connection: Connection, changes: &mpsc::Receiver<Change>) {
    while let Ok(first) = changes.recv() {
        let mut batch = vec![first];
        batch.extend(changes.try_iter().take(BATCH_MAX.saturating_sub(1)));
        write_batch(&mut connection, batch);
    }
}

fn write_batch(connection: &mut Connection, batch: Vec<Change>) {
    let mut waiting = Vec::with_capacity(batch.len());
    let committed = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
        for change in batch {
            transaction.execute_batch("SAVEPOINT change")?;
            waiting.push(change(&transaction));
            transaction.execute_batch("RELEASE change")?;
        }
        transaction.commit()
    });
    let committed = committed.map_err(|error| error.to_string());
    for done in waiting {
        done(committed.clone());
    }
}

/// Returns the number of a repository.
pub(super) fn repository_id(connection: &Connection, name: &Repository) -> Result<Option<i64>, Trouble> {
    let mut statement = connection.prepare_cached("SELECT id FROM repository WHERE name = ?1")?;
    Ok(statement.query_row([name.as_str()], |row| row.get(0)).optional()?)
}

/// Returns the number of a repository, making it where there is none, and the bytes it holds.
pub(super) fn repository_made(connection: &Connection, name: &Repository) -> Result<(i64, u64), Trouble> {
    connection.prepare_cached("INSERT OR IGNORE INTO repository (name) VALUES (?1)")?.execute([name.as_str()])?;
    let mut statement = connection.prepare_cached("SELECT id, bytes FROM repository WHERE name = ?1")?;
    Ok(statement.query_row([name.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?)
}

/// Returns an instant as the record keeps it.
pub(super) fn nanos(time: Time) -> i64 {
    time.unix_nanos()
}
