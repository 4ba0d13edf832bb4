//! Collection in the record: what is marked, and what is taken away after a second look.

use super::Meta;
use crate::serve::trouble::Trouble;
use perennial_core::registry::collect::{Grace, LinkKey, ManifestFacts, Marked, is_still_free, mark, untagged};
use perennial_core::registry::name::BlobDigest;
use perennial_core::time::Time;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::collections::{BTreeMap, BTreeSet};

impl Meta {
    /// Returns the links that nothing needs at this commit.
    pub(crate) fn marked(&self, grace: Grace, now: Time) -> Result<Vec<Marked>, Trouble> {
        self.read(|connection| {
            let mut statement = connection.prepare("SELECT repository, digest, touched_at FROM link")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)))?;
            let mut links = Vec::new();
            for row in rows {
                let (repository, digest, touched_at) = row?;
                let key = LinkKey { repository, digest: parse(&digest)? };
                links.push(Marked { key, touched_at: Time::from_unix_nanos(touched_at) });
            }
            let mut statement =
                // An index may name blobs under `manifests` (a build cache does); what is a manifest has no link.
                connection.prepare("SELECT DISTINCT repository, target FROM refers")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
            let mut needed = BTreeSet::new();
            for row in rows {
                let (repository, digest) = row?;
                needed.insert(LinkKey { repository, digest: parse(&digest)? });
            }
            Ok(mark(links, &needed, grace, now))
        })
    }

    /// Takes marked links away that are still free; returns how many.
    pub(crate) fn drop_links(&self, marked: Vec<Marked>) -> Result<usize, Trouble> {
        self.write(move |connection| {
            let mut gone = 0_usize;
            for link in &marked {
                let key = params![link.key.repository, link.key.digest.as_str()];
                let touched_at: Option<i64> = connection
                    .prepare_cached("SELECT touched_at FROM link WHERE repository = ?1 AND digest = ?2")?
                    .query_row(key, |row| row.get(0))
                    .optional()?;
                let sql = "SELECT EXISTS (SELECT 1 FROM refers WHERE repository = ?1 AND target = ?2)";
                let is_needed = connection.prepare_cached(sql)?.query_row(key, |row| row.get(0))?;
                if is_still_free(link, touched_at.map(Time::from_unix_nanos), is_needed) {
                    connection
                        .prepare_cached("DELETE FROM link WHERE repository = ?1 AND digest = ?2")?
                        .execute(key)?;
                    gone = gone.saturating_add(1);
                }
            }
            Ok(gone)
        })
    }

    /// Deletes manifests that no tag keeps, in all repositories; returns how many.
    pub(crate) fn drop_untagged(&self, grace: Grace, now: Time) -> Result<usize, Trouble> {
        self.write(move |connection| {
            let mut gone = 0_usize;
            let mut statement = connection.prepare("SELECT id FROM repository")?;
            let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
            for id in ids {
                for digest in untagged(&manifests(connection, id)?, grace, now) {
                    gone = gone.saturating_add(
                        connection
                            .prepare_cached("DELETE FROM manifest WHERE repository = ?1 AND digest = ?2")?
                            .execute(params![id, digest.as_str()])?,
                    );
                }
            }
            Ok(gone)
        })
    }

    /// Returns blobs that no repository holds.
    pub(crate) fn unlinked(&self) -> Result<Vec<BlobDigest>, Trouble> {
        self.read(|connection| {
            let sql = "SELECT digest FROM blob WHERE NOT EXISTS (SELECT 1 FROM link WHERE link.digest = blob.digest)";
            let mut statement = connection.prepare(sql)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.map(|row| parse(&row?)).collect()
        })
    }

    /// Returns those of some blobs that the record does not know.
    pub(crate) fn unknown(&self, mut blobs: Vec<(BlobDigest, Time)>) -> Result<Vec<(BlobDigest, Time)>, Trouble> {
        self.read(|connection| {
            let mut statement = connection.prepare("SELECT EXISTS (SELECT 1 FROM blob WHERE digest = ?1)")?;
            let mut failed = None;
            blobs.retain(|(digest, _)| {
                let is_known = statement.query_row([digest.as_str()], |row| row.get(0));
                !is_known.unwrap_or_else(|error| {
                    failed = Some(error);
                    true
                })
            });
            failed.map_or(Ok(blobs), |error| Err(error.into()))
        })
    }

    /// Returns whether a repository holds a blob.
    pub(crate) fn is_held(&self, digest: &BlobDigest) -> Result<bool, Trouble> {
        self.read(|connection| {
            let sql = "SELECT EXISTS (SELECT 1 FROM link WHERE digest = ?1)";
            Ok(connection.prepare_cached(sql)?.query_row([digest.as_str()], |row| row.get(0))?)
        })
    }

    /// Forgets a blob that no repository holds; tells whether its bytes may go.
    ///
    /// The caller holds the lock on the digest until they have gone.
    pub(crate) fn forget(&self, digest: &BlobDigest) -> Result<bool, Trouble> {
        let digest = digest.clone();
        self.write(move |connection| {
            let sql = "DELETE FROM blob WHERE digest = ?1
                AND NOT EXISTS (SELECT 1 FROM link WHERE link.digest = blob.digest)";
            connection.prepare_cached(sql)?.execute([digest.as_str()])?;
            let sql = "SELECT NOT EXISTS (SELECT 1 FROM blob WHERE digest = ?1)";
            Ok(connection.prepare_cached(sql)?.query_row([digest.as_str()], |row| row.get(0))?)
        })
    }
}

fn parse(text: &str) -> Result<BlobDigest, Trouble> {
    BlobDigest::parse(text).map_err(|fault| Trouble::Damaged(fault.message))
}

fn manifests(connection: &Connection, id: i64) -> Result<BTreeMap<BlobDigest, ManifestFacts>, Trouble> {
    let sql = "SELECT digest, put_at, subject,
        EXISTS (SELECT 1 FROM tag WHERE tag.repository = manifest.repository AND tag.digest = manifest.digest)
        FROM manifest WHERE repository = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([id], |row| {
        Ok((row.get::<_, String>(0)?, row.get(1)?, row.get::<_, Option<String>>(2)?, row.get(3)?))
    })?;
    let mut all = BTreeMap::new();
    for row in rows {
        let (digest, put_at, subject, is_tagged) = row?;
        let subject = subject.as_deref().map(parse).transpose()?;
        let put_at = Time::from_unix_nanos(put_at);
        all.insert(parse(&digest)?, ManifestFacts { put_at, is_tagged, subject, children: Vec::new() });
    }
    let mut statement =
        connection.prepare_cached("SELECT manifest, target FROM refers WHERE repository = ?1 AND is_manifest")?;
    let rows = statement.query_map([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    for row in rows {
        let (manifest, target) = row?;
        if let Some(facts) = all.get_mut(&parse(&manifest)?) {
            facts.children.push(parse(&target)?);
        }
    }
    Ok(all)
}
