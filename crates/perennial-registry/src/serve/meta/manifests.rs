//! Manifests, tags and referrers in the record.

use super::{Meta, nanos, repository_id, repository_made};
use crate::serve::trouble::Trouble;
use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::manifest::{Facts, Link, Referrer, ReferrersRead};
use perennial_core::registry::name::{BlobDigest, Reference, Repository, Tag};
use perennial_core::registry::page::Page;
use perennial_core::registry::precondition::Precondition;
use perennial_core::registry::quota::Quota;
use perennial_core::time::Time;
use rusqlite::{Connection, OptionalExtension as _, params};

/// A manifest to put.
#[derive(Debug, Clone)]
pub(crate) struct NewManifest {
    /// What was read of it.
    pub(crate) facts: Facts,
    /// Its bytes.
    pub(crate) content: Vec<u8>,
    /// The tags that shall name it.
    pub(crate) tags: Vec<Tag>,
    /// What must hold of what the reference named before.
    pub(crate) precondition: Precondition,
    /// Whether the blobs it refers to may be missing.
    pub(crate) is_sparse: bool,
    /// What it was put as.
    pub(crate) reference: Reference,
}

/// A manifest as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct StoredManifest {
    /// Its digest.
    pub(crate) digest: BlobDigest,
    /// Its media type.
    pub(crate) media_type: String,
    /// Its bytes.
    pub(crate) content: Vec<u8>,
}

/// Most referrers read at once: more than an answer has room for, so that its bytes end it and the rest is linked to.
const REFERRERS_MAX: i64 = 40_000;

impl Meta {
    /// Returns a manifest by tag or digest.
    pub(crate) fn manifest(&self, name: &Repository, reference: &Reference) -> Result<StoredManifest, Trouble> {
        self.read(|connection| {
            let id = known(connection, name)?;
            let digest = resolve(connection, id, reference)?
                .ok_or_else(|| Fault::new(Code::ManifestUnknown, format!("{name} has no manifest {reference}")))?;
            let sql = "SELECT media_type, content FROM manifest WHERE repository = ?1 AND digest = ?2";
            let (media_type, content) = connection
                .prepare_cached(sql)?
                .query_row(params![id, digest.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(StoredManifest { digest, media_type, content })
        })
    }

    /// Puts a manifest, and its tags: the commit point of a push.
    pub(crate) fn put_manifest(
        &self,
        name: &Repository,
        manifest: NewManifest,
        quota: Quota,
        now: Time,
    ) -> Result<(), Trouble> {
        let name = name.clone();
        self.write(move |connection| {
            let (id, before) = repository_made(connection, &name)?;
            // A tag is what may be replaced, however it is named; the manifest itself counts where none is.
            if manifest.tags.is_empty() {
                manifest.precondition.check(resolve(connection, id, &manifest.reference)?.as_ref())?;
            }
            for tag in &manifest.tags {
                let present = resolve(connection, id, &Reference::Tag(tag.clone()))?;
                manifest.precondition.check(present.as_ref())?;
            }
            if !manifest.is_sparse {
                check_links(connection, id, &manifest.facts)?;
            }
            insert(connection, id, &manifest, now)?;
            for tag in &manifest.tags {
                let sql = "INSERT INTO tag (repository, name, digest, set_at) VALUES (?1, ?2, ?3, ?4)
                    ON CONFLICT (repository, name) DO UPDATE SET digest = ?3, set_at = ?4";
                let digest = manifest.facts.digest.as_str();
                connection.prepare_cached(sql)?.execute(params![id, tag.as_str(), digest, nanos(now)])?;
            }
            let (_, after) = repository_made(connection, &name)?;
            Ok(quota.check(before, after.saturating_sub(before))?)
        })
    }

    /// Deletes a tag, or a manifest with all its tags.
    pub(crate) fn delete_manifest(
        &self,
        name: &Repository,
        reference: &Reference,
        precondition: Precondition,
    ) -> Result<(), Trouble> {
        let (name, reference) = (name.clone(), reference.clone());
        self.write(move |connection| {
            let id = known(connection, &name)?;
            let present = resolve(connection, id, &reference)?;
            precondition.check(present.as_ref())?;
            let unknown = || Fault::new(Code::ManifestUnknown, format!("{name} has no manifest {reference}"));
            present.ok_or_else(unknown)?;
            let sql = match reference {
                Reference::Tag(_) => "DELETE FROM tag WHERE repository = ?1 AND name = ?2",
                Reference::Digest(_) => "DELETE FROM manifest WHERE repository = ?1 AND digest = ?2",
            };
            connection.prepare_cached(sql)?.execute(params![id, reference.to_string()])?;
            Ok(())
        })
    }

    /// Returns a page of tags, and whether more follow.
    pub(crate) fn tags(&self, name: &Repository, page: &Page) -> Result<(Vec<String>, bool), Trouble> {
        self.read(|connection| {
            let id = known(connection, name)?;
            let sql = "SELECT name FROM tag WHERE repository = ?1 AND name > ?2 ORDER BY name LIMIT ?3";
            let mut statement = connection.prepare_cached(sql)?;
            let count = page.count_max.saturating_add(1);
            let rows =
                statement.query_map(params![id, page.after.as_deref().unwrap_or(""), count], |row| row.get(0))?;
            let mut tags: Vec<String> = rows.collect::<Result<_, _>>()?;
            let wanted = usize::try_from(page.count_max).unwrap_or(usize::MAX);
            let has_more = tags.len() > wanted;
            tags.truncate(wanted);
            Ok((tags, has_more && wanted > 0))
        })
    }

    /// Returns the manifests that are about `subject`, in order of their digests after `after`.
    pub(crate) fn referrers(
        &self,
        name: &Repository,
        subject: &BlobDigest,
        artifact_type: Option<&str>,
        after: &str,
    ) -> Result<Vec<Referrer>, Trouble> {
        self.read(|connection| {
            let Some(id) = repository_id(connection, name)? else { return Ok(Vec::new()) };
            let sql = "SELECT media_type, digest, length(content), artifact_type, annotations FROM manifest
                WHERE repository = ?1 AND subject = ?2 AND digest > ?3 AND (?4 IS NULL OR artifact_type = ?4)
                ORDER BY digest LIMIT ?5";
            let mut statement = connection.prepare_cached(sql)?;
            let rows =
                statement.query_map(params![id, subject.as_str(), after, artifact_type, REFERRERS_MAX], |row| {
                    Ok(Referrer {
                        media_type: row.get(0)?,
                        digest: row.get(1)?,
                        bytes: row.get(2)?,
                        artifact_type: row.get(3)?,
                        annotations: row.get(4)?,
                    })
                })?;
            let (mut all, mut read) = (Vec::new(), ReferrersRead::default());
            for row in rows {
                let referrer = row?;
                let goes_on = read.goes_on_after(&referrer);
                all.push(referrer);
                if !goes_on {
                    break;
                }
            }
            Ok(all)
        })
    }
}

fn known(connection: &Connection, name: &Repository) -> Result<i64, Trouble> {
    let unknown = || Fault::new(Code::NameUnknown, format!("there is no repository {name}"));
    Ok(repository_id(connection, name)?.ok_or_else(unknown)?)
}

/// Returns the digest of the manifest that a reference names.
fn resolve(connection: &Connection, id: i64, reference: &Reference) -> Result<Option<BlobDigest>, Trouble> {
    let sql = match reference {
        Reference::Tag(_) => "SELECT digest FROM tag WHERE repository = ?1 AND name = ?2",
        Reference::Digest(_) => "SELECT digest FROM manifest WHERE repository = ?1 AND digest = ?2",
    };
    let found: Option<String> =
        connection.prepare_cached(sql)?.query_row(params![id, reference.to_string()], |row| row.get(0)).optional()?;
    found.map(|digest| BlobDigest::parse(&digest)).transpose().map_err(|fault| Trouble::Damaged(fault.message))
}

/// Refuses a manifest that refers to a blob which its repository does not hold.
fn check_links(connection: &Connection, id: i64, facts: &Facts) -> Result<(), Trouble> {
    let sql = "SELECT EXISTS (SELECT 1 FROM link JOIN blob USING (digest)
        WHERE repository = ?1 AND link.digest = ?2 AND NOT is_damaged)";
    let mut statement = connection.prepare_cached(sql)?;
    for digest in facts.links.iter().filter(|(_, link)| **link == Link::Blob).map(|(digest, _)| digest) {
        let is_there: bool = statement.query_row(params![id, digest.as_str()], |row| row.get(0))?;
        if !is_there {
            let message = format!("the manifest refers to {digest}, which the repository does not have");
            return Err(Fault::new(Code::ManifestBlobUnknown, message).into());
        }
    }
    Ok(())
}

fn insert(connection: &Connection, id: i64, manifest: &NewManifest, now: Time) -> Result<(), Trouble> {
    let facts = &manifest.facts;
    let digest = facts.digest.as_str();
    let annotations = facts.annotations.as_ref().map(ToString::to_string);
    let subject = facts.subject.as_ref().map(BlobDigest::as_str);
    let sql = "INSERT INTO manifest
        (repository, digest, media_type, content, subject, artifact_type, annotations, put_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
        ON CONFLICT (repository, digest) DO UPDATE SET media_type = ?3, put_at = ?8";
    let values =
        params![id, digest, facts.media_type, manifest.content, subject, facts.artifact_type, annotations, nanos(now)];
    connection.prepare_cached(sql)?.execute(values)?;
    let sql = "INSERT OR IGNORE INTO refers (repository, manifest, target, is_manifest) VALUES (?1, ?2, ?3, ?4)";
    let mut statement = connection.prepare_cached(sql)?;
    for (target, link) in &facts.links {
        statement.execute(params![id, digest, target.as_str(), *link == Link::Manifest])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::hash::Sum;
    use perennial_core::registry::manifest::{IMAGE, REFERRERS_BYTES_MAX};
    use perennial_core::registry::name::Algorithm;

    #[test]
    fn no_more_of_a_list_of_referrers_is_read_than_an_answer_holds() {
        let directory = tempfile::tempdir().unwrap();
        let meta = Meta::open(&directory.path().join("registry.db"), None, true).unwrap();
        let name = Repository::parse("a").unwrap();
        let subject = Sum::of(Algorithm::Sha256, b"subject");
        let annotations = serde_json::json!({"text": "x".repeat(REFERRERS_BYTES_MAX / 2)});
        for number in 0..6_u8 {
            let digest = Sum::of(Algorithm::Sha256, &[number]);
            let facts = Facts {
                media_type: IMAGE.into(),
                digest: digest.clone(),
                bytes: 1,
                links: std::collections::BTreeMap::new(),
                subject: Some(subject.clone()),
                artifact_type: None,
                annotations: Some(annotations.clone()),
            };
            let manifest = NewManifest {
                facts,
                content: vec![number],
                tags: Vec::new(),
                precondition: Precondition::new(None, None),
                is_sparse: false,
                reference: Reference::Digest(digest),
            };
            meta.put_manifest(&name, manifest, Quota(None), Time::from_unix_nanos(0)).unwrap();
        }
        let mut after = String::new();
        let mut counts = Vec::new();
        while counts.last() != Some(&0) {
            let read = meta.referrers(&name, &subject, None, &after).unwrap();
            after = perennial_core::registry::manifest::referrers_page(&read).1.unwrap_or("z").to_owned();
            counts.push(read.len());
        }
        assert_eq!(counts, [2, 2, 2, 2, 2, 1, 0], "one that fits, and one that does not");
        meta.close();
    }
}
