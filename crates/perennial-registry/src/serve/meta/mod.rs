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
const SCHEMA_VERSION: i64 = 2;
/// How long a reader waits for the log to be recovered; otherwise readers never wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most changes in one transaction: what waits while a commit is synced.
const BATCH_MAX: usize = 256;
/// Most readers that are kept open.
const READERS_MAX: usize = 16;

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
CREATE TABLE registry (id TEXT NOT NULL);
PRAGMA user_version = 2;
";
/// What version 2 has more than version 1.
const SCHEMA_2: &str = "CREATE TABLE registry (id TEXT NOT NULL); PRAGMA user_version = 2;";

/// Called with the transaction, or with why there is none.
type Change = Box<dyn FnOnce(Result<&Connection, &Failed>) -> Waiting + Send>;
/// Called after the commit, with whether it succeeded.
type Waiting = Box<dyn FnOnce(Result<(), Failed>) + Send>;

/// Why a transaction was not committed, for all whose changes were in it.
#[derive(Debug, Clone)]
struct Failed {
    code: Option<rusqlite::ffi::Error>,
    text: String,
}

impl From<rusqlite::Error> for Failed {
    fn from(error: rusqlite::Error) -> Self {
        Self { code: error.sqlite_error().copied(), text: error.to_string() }
    }
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Self {
        match failed.code {
            Some(code) => Self::Record(rusqlite::Error::SqliteFailure(code, Some(failed.text))),
            None => Self::Damaged(format!("the change could not be committed: {}", failed.text)),
        }
    }
}

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
    /// Opens the record at `path` of the registry with this name. It is made only where nothing is kept yet: an empty
    /// record in place of one that was lost would free every blob.
    pub(crate) fn open(path: &Path, id: Option<&str>, may_be_made: bool) -> Result<Self, Trouble> {
        let missing = || Trouble::Damaged("it is missing, and what it is the record of is not".into());
        if !may_be_made && !path.try_exists().map_err(Trouble::io("cannot look for it"))? {
            return Err(missing());
        }
        let connection = connect(path)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version > SCHEMA_VERSION {
            let text = format!("it has version {version}, this release knows {SCHEMA_VERSION}: use a newer release");
            return Err(Trouble::Damaged(text));
        }
        match version {
            0 if !may_be_made => return Err(missing()),
            0 => make(&connection, id)?,
            1 => connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA_2} COMMIT;"))?,
            _ => {}
        }
        let own: Option<String> = connection.query_row("SELECT id FROM registry", [], |row| row.get(0)).optional()?;
        if own.as_deref() != id {
            return Err(Trouble::Damaged("it is the record of another registry".into()));
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
        let (job, wait) = job_of(change);
        let sender = lock(&self.changes).clone().ok_or(Trouble::Ending)?;
        sender.send(job).map_err(|_| Trouble::Ending)?;
        drop(sender);
        let (committed, result) = wait.recv().map_err(|_| Trouble::Ending)?;
        let value = result?;
        committed?;
        Ok(value)
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

/// What comes of a change: whether the commit succeeded, and what the change itself said.
type Outcome<T> = (Result<(), Failed>, Result<T, Trouble>);

fn job_of<T: Send + 'static>(
    change: impl FnOnce(&Connection) -> Result<T, Trouble> + Send + 'static,
) -> (Change, mpsc::Receiver<Outcome<T>>) {
    let (answer, wait) = mpsc::sync_channel(1);
    let job: Change = Box::new(move |connection| {
        let result = match connection {
            Ok(connection) => change(connection),
            Err(failed) => Err(failed.clone().into()),
        };
        if let (Ok(connection), Err(_)) = (connection, &result) {
            // What follows undoes the savepoint; the caller learns of it after the batch all the same.
            connection.execute_batch("ROLLBACK TO change").ok();
        }
        Box::new(move |committed| {
            // Nobody waits any more where the server is ending.
            answer.send((committed, result)).ok();
        })
    });
    (job, wait)
}

fn connect(path: &Path) -> Result<Connection, Trouble> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")?;
    Ok(connection)
}

fn make(connection: &Connection, id: Option<&str>) -> Result<(), Trouble> {
    connection.execute_batch("PRAGMA journal_mode = WAL;")?;
    let transaction = connection.unchecked_transaction()?;
    transaction.execute_batch(SCHEMA)?;
    if let Some(id) = id {
        transaction.execute("INSERT INTO registry (id) VALUES (?1)", [id])?;
    }
    Ok(transaction.commit()?)
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
    let mut batch = batch.into_iter();
    let committed = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
        while batch.len() > 0 {
            transaction.execute_batch("SAVEPOINT change")?;
            waiting.extend(batch.next().map(|change| change(Ok(&transaction))));
            transaction.execute_batch("RELEASE change")?;
        }
        transaction.commit()
    });
    let committed = committed.map_err(Failed::from);
    if let Err(failed) = &committed {
        // Those whose turn did not come are told why, too: only a record that is closed makes the chores end.
        waiting.extend(batch.map(|change| change(Err(failed))));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn put(connection: &Connection) -> Result<(), Trouble> {
        repository_made(connection, &Repository::parse("a").unwrap()).map(drop)
    }

    fn outcomes(connection: &mut Connection, changes: usize) -> Vec<Result<(), Trouble>> {
        let (batch, waits): (Vec<_>, Vec<_>) = (0..changes).map(|_| job_of(put)).unzip();
        write_batch(connection, batch);
        let outcome = |wait: mpsc::Receiver<Outcome<()>>| {
            let (committed, result) = wait.try_recv().expect("everybody who waits is answered");
            result?;
            Ok(committed?)
        };
        waits.into_iter().map(outcome).collect()
    }

    #[test]
    fn a_transaction_that_does_not_begin_is_an_error_for_all_in_it_and_the_next_one_begins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.db");
        Meta::open(&path, None, true).unwrap().close();
        let (mut connection, other) = (connect(&path).unwrap(), connect(&path).unwrap());
        connection.busy_timeout(Duration::ZERO).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let refused = outcomes(&mut connection, 3);
        assert!(refused.iter().all(|outcome| matches!(outcome, Err(Trouble::Record(_)))), "{refused:?}");
        other.execute_batch("ROLLBACK").unwrap();
        assert!(outcomes(&mut connection, 3).iter().all(Result::is_ok));
    }

    #[test]
    fn a_change_for_which_there_is_no_space_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registry.db");
        Meta::open(&path, None, true).unwrap().close();
        let mut connection = connect(&path).unwrap();
        let full = |connection: &Connection| -> Result<(), Trouble> {
            Ok(connection
                .execute_batch("CREATE TABLE large (bytes BLOB); INSERT INTO large VALUES (zeroblob(9999999));")?)
        };
        let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        connection.query_row(&format!("PRAGMA max_page_count = {}", pages + 2), [], |_| Ok(())).unwrap();
        let ((first, of_first), (second, of_second)) = (job_of(full), job_of(put));
        write_batch(&mut connection, vec![first, second]);
        let (_, result) = of_first.try_recv().unwrap();
        assert!(result.unwrap_err().is_full(), "it says that there is no space");
        of_second.try_recv().expect("the one behind it is answered too").1.ok();
    }
}
