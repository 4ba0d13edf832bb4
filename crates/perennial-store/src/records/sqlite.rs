//! The record store of one machine: a table of records in SQLite (write-ahead log, every commit synced).

use super::{RecordError, RecordStore, Transaction, Versioned};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, TransactionBehavior, ffi, params};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Version of the table's layout, in SQLite's `user_version`.
const SCHEMA_VERSION: i64 = 1;
/// How long a command waits for another's transaction; transactions take milliseconds, so this is for a stalled disk.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

/// Extended codes by which SQLite reports that it could not enlarge a file.
const NO_SPACE: [i32; 2] = [ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_TRUNCATE];

/// Records in a SQLite file.
#[derive(Debug)]
pub struct SqliteRecords {
    connection: RefCell<Connection>,
    path: PathBuf,
}

impl SqliteRecords {
    /// Opens the store at `path`, making it where it does not exist.
    ///
    /// # Errors
    /// [`RecordError`]; a damaged file is named and left as it is.
    pub fn open_or_create(path: &Path) -> Result<Self, RecordError> {
        let fail = |error: rusqlite::Error| convert(path, &error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(fail)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(fail)?;
        // Closing must stay cheap: the log is folded into the file by size, not by every short command that ends.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(fail)?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
        if version > SCHEMA_VERSION {
            let path = path.display().to_string();
            return Err(RecordError::NewerVersion { path, found: version, known: SCHEMA_VERSION });
        }
        if version == 0 {
            let _lock = lock_directory(path)?;
            create(&connection).map_err(fail)?;
        }
        connection.execute_batch("PRAGMA synchronous = FULL").map_err(fail)?;
        Ok(Self { connection: RefCell::new(connection), path: path.to_path_buf() })
    }

    /// Folds the log into the file, durably, so that the file alone is the store, and closes it.
    ///
    /// # Errors
    /// [`RecordError`]; the log is then still needed.
    pub fn close_whole(self) -> Result<(), RecordError> {
        let fail = |error: rusqlite::Error| convert(&self.path, &error);
        let connection = self.connection.borrow();
        let is_busy: bool =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).map_err(fail)?;
        if is_busy {
            return Err(RecordError::Failed {
                path: self.path.display().to_string(),
                reason: "somebody else has it open".to_owned(),
            });
        }
        Ok(())
    }

    /// Checks the whole file; returns what SQLite finds wrong, nothing where it is sound.
    ///
    /// # Errors
    /// [`RecordError`] where the file cannot even be read.
    pub fn integrity(&self) -> Result<Vec<String>, RecordError> {
        let fail = |error: rusqlite::Error| convert(&self.path, &error);
        let connection = self.connection.borrow();
        let mut statement = connection.prepare("PRAGMA integrity_check").map_err(fail)?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0)).map_err(fail)?;
        let lines: Vec<String> = lines.collect::<Result<_, _>>().map_err(fail)?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }
}

/// Locks the directory of a new store: changing to a write-ahead log is refused at once where another is at it.
fn lock_directory(path: &Path) -> Result<std::fs::File, RecordError> {
    let fail = |error: std::io::Error| RecordError::Failed {
        path: path.display().to_string(),
        reason: format!("cannot lock its directory: {error}"),
    };
    let directory = std::fs::File::open(path.parent().unwrap_or(path)).map_err(fail)?;
    directory.lock().map_err(fail)?;
    Ok(directory)
}

fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS record (key TEXT PRIMARY KEY, bytes BLOB NOT NULL, revision INTEGER NOT NULL)
             WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS revision (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL);
         INSERT OR IGNORE INTO revision (id, last) VALUES (1, 0);
         PRAGMA user_version = 1;
         COMMIT;",
    )
}

fn convert(path: &Path, error: &rusqlite::Error) -> RecordError {
    let path = path.display().to_string();
    // A full disk shows as an I/O error where SQLite makes room in advance or syncs.
    if error.sqlite_error().is_some_and(|error| NO_SPACE.contains(&error.extended_code)) {
        return RecordError::NoSpace { path };
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => RecordError::NoSpace { path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            RecordError::Damaged { path, reason: error.to_string() }
        }
        Some(_) | None => RecordError::Failed { path, reason: error.to_string() },
    }
}

impl RecordStore for SqliteRecords {
    fn get(&self, key: &str) -> Result<Option<Versioned>, RecordError> {
        let fail = |error: rusqlite::Error| convert(&self.path, &error);
        let connection = self.connection.borrow();
        let mut statement =
            connection.prepare_cached("SELECT bytes, revision FROM record WHERE key = ?1").map_err(fail)?;
        statement
            .query_row([key], |row| Ok(Versioned { bytes: row.get(0)?, revision: row.get(1)? }))
            .optional()
            .map_err(fail)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, RecordError> {
        let fail = |error: rusqlite::Error| convert(&self.path, &error);
        let connection = self.connection.borrow();
        // Keys are ASCII, so every key with the prefix sorts before the prefix followed by the last code point.
        let sql = "SELECT key, bytes, revision FROM record WHERE key >= ?1 AND key < ?2 ORDER BY key";
        let mut statement = connection.prepare_cached(sql).map_err(fail)?;
        let end = format!("{prefix}\u{10FFFF}");
        let rows = statement
            .query_map([prefix, &end], |row| Ok((row.get(0)?, Versioned { bytes: row.get(1)?, revision: row.get(2)? })))
            .map_err(fail)?;
        rows.collect::<Result<_, _>>().map_err(fail)
    }

    fn commit(&self, transaction: &Transaction) -> Result<u64, RecordError> {
        let fail = |error: rusqlite::Error| convert(&self.path, &error);
        let mut connection = self.connection.borrow_mut();
        let sql = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        for (key, expected) in transaction.expectations() {
            let present: Option<u64> = sql
                .prepare_cached("SELECT revision FROM record WHERE key = ?1")
                .and_then(|mut statement| statement.query_row([key], |row| row.get(0)).optional())
                .map_err(fail)?;
            if present.unwrap_or(0) != *expected {
                return Err(RecordError::Conflict { key: key.clone() });
            }
        }
        let revision: u64 = sql
            .prepare_cached("UPDATE revision SET last = last + 1 WHERE id = 1 RETURNING last")
            .and_then(|mut statement| statement.query_row([], |row| row.get(0)))
            .map_err(fail)?;
        for (key, bytes) in transaction.puts() {
            sql.prepare_cached("INSERT OR REPLACE INTO record (key, bytes, revision) VALUES (?1, ?2, ?3)")
                .and_then(|mut statement| statement.execute(params![key, bytes, revision]))
                .map_err(fail)?;
        }
        for key in transaction.deletes() {
            sql.prepare_cached("DELETE FROM record WHERE key = ?1")
                .and_then(|mut statement| statement.execute([key]))
                .map_err(fail)?;
        }
        sql.commit().map_err(fail)?;
        Ok(revision)
    }
}
