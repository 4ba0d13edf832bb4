//! Blobs in the record, and the links by which repositories hold them.

use super::{Meta, nanos, repository_id, repository_made};
use crate::serve::trouble::Trouble;
use perennial_core::registry::collect::Grace;
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::name::{BlobDigest, Repository};
use perennial_core::registry::quota::Quota;
use perennial_core::time::Time;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::collections::BTreeSet;

/// A repository and a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    /// The repository.
    pub(crate) name: Repository,
    /// The blob.
    pub(crate) digest: BlobDigest,
}

/// A blob that a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its length.
    pub(crate) bytes: u64,
    /// When it was put or last asked for.
    pub(crate) touched_at: Time,
}

impl Meta {
    /// Returns a sound blob that a repository holds.
    pub(crate) fn blob(&self, of: &Holding) -> Result<Option<Found>, Trouble> {
        self.read(|connection| {
            let sql = "SELECT blob.bytes, link.touched_at FROM repository JOIN link ON link.repository = repository.id
                JOIN blob ON blob.digest = link.digest
                WHERE repository.name = ?1 AND link.digest = ?2 AND NOT blob.is_damaged";
            let mut statement = connection.prepare_cached(sql)?;
            let found = statement.query_row(params![of.name.as_str(), of.digest.as_str()], |row| {
                Ok(Found { bytes: row.get(0)?, touched_at: Time::from_unix_nanos(row.get(1)?) })
            });
            Ok(found.optional()?)
        })
    }

    /// Returns the length of a sound blob, whoever holds it.
    pub(crate) fn any_blob(&self, digest: &BlobDigest) -> Result<Option<u64>, Trouble> {
        self.read(|connection| any_blob(connection, digest))
    }

    /// Keeps a blob longer that somebody has asked for before a push; nothing where the time of grace is young.
    pub(crate) fn touch(&self, of: &Holding, found: Found, grace: Grace, now: Time) -> Result<(), Trouble> {
        if !grace.is_half_over(found.touched_at, now) {
            return Ok(());
        }
        let Holding { name, digest } = of.clone();
        self.write(move |connection| {
            let Some(id) = repository_id(connection, &name)? else { return Ok(()) };
            let sql = "UPDATE link SET touched_at = max(touched_at, ?3) WHERE repository = ?1 AND digest = ?2";
            connection.prepare_cached(sql)?.execute(params![id, digest.as_str(), nanos(now)])?;
            Ok(())
        })
    }

    /// Records a blob whose bytes are in the store, and that a repository holds it. Where they were written just now,
    /// they are sound.
    pub(crate) fn put_blob(
        &self,
        of: &Holding,
        (bytes, is_written): (u64, bool),
        quota: Quota,
        now: Time,
    ) -> Result<(), Trouble> {
        let Holding { name, digest } = of.clone();
        self.write(move |connection| {
            let sql = "INSERT INTO blob (digest, bytes, added_at, checked_at) VALUES (?1, ?2, ?3, ?3)
                ON CONFLICT (digest) DO UPDATE SET checked_at = ?3, is_damaged = 0 WHERE ?4";
            connection.prepare_cached(sql)?.execute(params![digest.as_str(), bytes, nanos(now), is_written])?;
            link(connection, &name, &digest, quota, now)
        })
    }

    /// Lets a repository hold a blob that is in the store already; tells whether it is.
    ///
    /// Only what `from` holds is looked at, where one is named.
    pub(crate) fn mount(
        &self,
        of: &Holding,
        from: Option<&Repository>,
        quota: Quota,
        now: Time,
    ) -> Result<bool, Trouble> {
        let (Holding { name, digest }, from) = (of.clone(), from.cloned());
        self.write(move |connection| {
            let is_there = match &from {
                None => any_blob(connection, &digest)?.is_some(),
                Some(from) => match repository_id(connection, from)? {
                    None => false,
                    Some(id) => {
                        let sql = "SELECT EXISTS (SELECT 1 FROM link JOIN blob USING (digest)
                            WHERE repository = ?1 AND link.digest = ?2 AND NOT is_damaged)";
                        connection.prepare_cached(sql)?.query_row(params![id, digest.as_str()], |row| row.get(0))?
                    }
                },
            };
            if is_there {
                link(connection, &name, &digest, quota, now)?;
            }
            Ok(is_there)
        })
    }

    /// Takes a blob out of a repository; its bytes go when no repository holds it.
    pub(crate) fn unlink(&self, of: &Holding) -> Result<(), Trouble> {
        let Holding { name, digest } = of.clone();
        self.write(move |connection| {
            let unknown = || Fault::new(Code::BlobUnknown, format!("{name} has no blob {digest}"));
            let id = repository_id(connection, &name)?.ok_or_else(unknown)?;
            let sql = "SELECT manifest FROM refers WHERE repository = ?1 AND target = ?2 LIMIT 1";
            let needed: Option<String> =
                connection.prepare_cached(sql)?.query_row(params![id, digest.as_str()], |row| row.get(0)).optional()?;
            if let Some(manifest) = needed {
                let message = format!("manifest {manifest} refers to the blob: delete that first");
                return Err(Fault::new(Code::Denied, message).with_status(409).into());
            }
            let sql = "DELETE FROM link WHERE repository = ?1 AND digest = ?2";
            let gone = connection.prepare_cached(sql)?.execute(params![id, digest.as_str()])?;
            if gone == 0 { Err(unknown().into()) } else { Ok(()) }
        })
    }

    /// Returns the bytes that a repository holds.
    pub(crate) fn held(&self, name: &Repository) -> Result<u64, Trouble> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT bytes FROM repository WHERE name = ?1")?;
            Ok(statement.query_row([name.as_str()], |row| row.get(0)).optional()?.unwrap_or(0))
        })
    }

    /// Records that a blob was found sound. One that was found damaged stays that until it is put again.
    pub(crate) fn found_sound(&self, digest: &BlobDigest, now: Time) -> Result<(), Trouble> {
        self.checked("UPDATE blob SET checked_at = ?2 WHERE digest = ?1", digest, now)
    }

    /// Records that a blob was found damaged.
    pub(crate) fn found_damaged(&self, digest: &BlobDigest, now: Time) -> Result<(), Trouble> {
        self.checked("UPDATE blob SET checked_at = ?2, is_damaged = 1 WHERE digest = ?1", digest, now)
    }

    fn checked(&self, sql: &'static str, digest: &BlobDigest, now: Time) -> Result<(), Trouble> {
        let digest = digest.clone();
        self.write(move |connection| {
            connection.prepare_cached(sql)?.execute(params![digest.as_str(), nanos(now)])?;
            Ok(())
        })
    }

    /// Returns the sound blob that was checked longest ago, if that was before `before`; none of those to pass over.
    pub(crate) fn oldest_checked(
        &self,
        before: Time,
        passed_over: &BTreeSet<BlobDigest>,
    ) -> Result<Option<BlobDigest>, Trouble> {
        self.read(|connection| {
            let sql = "SELECT digest FROM blob WHERE NOT is_damaged AND checked_at < ?1 ORDER BY checked_at";
            let mut statement = connection.prepare_cached(sql)?;
            for digest in statement.query_map([nanos(before)], |row| row.get::<_, String>(0))? {
                let digest = BlobDigest::parse(&digest?)?;
                if !passed_over.contains(&digest) {
                    return Ok(Some(digest));
                }
            }
            Ok(None)
        })
    }

    /// Returns how many blobs there are, their bytes, and how many are damaged.
    pub(crate) fn totals(&self) -> Result<(u64, u64, u64), Trouble> {
        self.read(|connection| {
            let sql = "SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(is_damaged), 0) FROM blob";
            Ok(connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?)
        })
    }

    /// Returns the digests of damaged blobs.
    pub(crate) fn damaged(&self) -> Result<Vec<String>, Trouble> {
        self.read(|connection| {
            let mut statement =
                connection.prepare("SELECT digest FROM blob WHERE is_damaged ORDER BY digest LIMIT 1000")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

fn any_blob(connection: &Connection, digest: &BlobDigest) -> Result<Option<u64>, Trouble> {
    let mut statement = connection.prepare_cached("SELECT bytes FROM blob WHERE digest = ?1 AND NOT is_damaged")?;
    Ok(statement.query_row([digest.as_str()], |row| row.get(0)).optional()?)
}

fn link(
    connection: &Connection,
    name: &Repository,
    digest: &BlobDigest,
    quota: Quota,
    now: Time,
) -> Result<(), Trouble> {
    let (id, before) = repository_made(connection, name)?;
    let sql = "INSERT INTO link (repository, digest, touched_at) VALUES (?1, ?2, ?3)
        ON CONFLICT (repository, digest) DO UPDATE SET touched_at = max(touched_at, ?3)";
    connection.prepare_cached(sql)?.execute(params![id, digest.as_str(), nanos(now)])?;
    let (_, after) = repository_made(connection, name)?;
    Ok(quota.check(before, after.saturating_sub(before))?)
}
