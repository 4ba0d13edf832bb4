//! What a registry does by itself: collect what nothing needs, read everything again, end forgotten uploads.

use super::app::{App, blocking};
use super::log::Level;
use super::storage::Claimed;
use super::trouble::Trouble;
use super::verdict::{Verdict, check, open};
use perennial_core::registry::collect::{Grace, are_too_many_strays};
use perennial_core::registry::name::BlobDigest;
use perennial_core::time::Time;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

/// How long the scrub rests when everything was read lately.
const REST: Duration = Duration::from_secs(60);
/// How long the scrub leaves a blob alone that it could not read.
const AGAIN_NANOS: u64 = 3600 * 1_000_000_000;
/// Links that are taken away in one transaction, so that pushes need not wait for all.
const LINKS_AT_ONCE: usize = 500;

/// What a collection has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Collected {
    manifests: usize,
    links: usize,
    blobs: u64,
    uploads: usize,
}

/// Collects again and again.
pub(crate) async fn collect_always(app: Arc<App>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let worker = Arc::clone(&app);
        match blocking(move || collect(&worker)).await {
            Ok(done) if done == Collected::default() => {}
            Ok(done) => {
                let fields = vec![
                    ("manifests", json!(done.manifests)),
                    ("links", json!(done.links)),
                    ("blobs", json!(done.blobs)),
                    ("uploads", json!(done.uploads)),
                ];
                app.options.log.line(Level::Info, "collected", fields);
            }
            Err(Trouble::Ending) => return,
            Err(trouble) => app.trouble("collect_failed", "storage", &trouble),
        }
    }
}

/// Frees what nothing needs.
pub(crate) fn collect(app: &App) -> Result<Collected, Trouble> {
    let (now, grace) = (app.now(), app.options.grace);
    if app.options.is_read_only {
        return Ok(Collected::default());
    }
    let mut done = Collected { uploads: app.staging.expire(ago(now, grace))?, ..Collected::default() };
    if !is_ours(app)? {
        return Ok(done);
    }
    let Some(strays) = strays(app, grace, now)? else { return Ok(done) };
    give_up_unfinished(app);
    if app.options.collects_untagged {
        done.manifests = app.meta.drop_untagged(grace, now)?;
    }
    let mut marked = app.meta.marked(grace, now)?;
    while !marked.is_empty() {
        let rest = marked.split_off(marked.len().min(LINKS_AT_ONCE));
        done.links = done.links.saturating_add(app.meta.drop_links(marked)?);
        marked = rest;
    }
    let mut free: BTreeSet<_> = app.meta.unlinked()?.into_iter().collect();
    free.extend(strays);
    for digest in free {
        let guard = app.lock_digest(&digest);
        if app.meta.is_held(&digest)? {
            continue;
        }
        if app.meta.forget(&digest)? {
            app.storage.delete(&digest).map_err(Trouble::io(format!("cannot delete blob {digest}")))?;
            done.blobs = done.blobs.saturating_add(1);
            app.metrics.freed.inc();
            app.verdicts.remove_unreadable(&digest);
        }
        drop(guard);
    }
    Ok(done)
}

/// Looks whether the store is still this registry's: one that two have taken at the same moment is the later one's, and
/// the other would delete its blobs.
fn is_ours(app: &App) -> Result<bool, Trouble> {
    let claimed = app.claim(false).map_err(Trouble::io("cannot see whose the store of blobs is"))?;
    let refused = match claimed {
        Claimed::Ours(_) => None,
        Claimed::Refused(why) => Some(why),
    };
    app.is_anothers.store(refused.is_some(), Ordering::Relaxed);
    if let Some(why) = refused {
        app.options.log.line(Level::Error, "not_collected", vec![("store", json!(why))]);
    }
    Ok(refused.is_none())
}

/// Returns files that the record does not know, and whose time of grace is over: an upload was cut off between the file
/// and the record, or a blob was being freed. Nothing where they are so many that it is the record which is wrong: then
/// nothing at all may be collected by it.
fn strays(app: &App, grace: Grace, now: Time) -> Result<Option<Vec<BlobDigest>>, Trouble> {
    let mut files = Vec::new();
    let each = &mut |digest, put_at| files.push((digest, put_at));
    app.storage.list(each).map_err(Trouble::io("cannot list the blobs"))?;
    let count = files.len();
    // After the list, so that what was put meanwhile is known.
    let strays = app.meta.unknown(files)?;
    let are_kept = are_too_many_strays(strays.len(), count) && !app.options.collects_strays;
    app.strays.store(if are_kept { strays.len() } else { 0 }, Ordering::Relaxed);
    if are_kept {
        let fields = vec![("unknown", json!(strays.len())), ("files", json!(count))];
        app.options.log.line(Level::Error, "not_collected", fields);
        return Ok(None);
    }
    let old = strays.into_iter().filter(|(_, put_at)| grace.is_over(*put_at, now));
    Ok(Some(old.map(|(digest, _)| digest).collect()))
}

/// Gives up what killed pushes have left on their way to the store of blobs.
fn give_up_unfinished(app: &App) {
    let failed = |error| app.trouble("give_up_failed", "storage", &Trouble::io("cannot give up a push")(error));
    for digest in app.storage.unfinished().map_err(failed).unwrap_or_default() {
        let guard = app.lock_digest(&digest);
        // One that does not go keeps nothing else from being collected.
        app.storage.give_up(&digest).map_err(failed).ok();
        drop(guard);
    }
}

fn ago(now: Time, grace: Grace) -> Time {
    Time::from_unix_nanos(now.unix_nanos().saturating_sub_unsigned(grace.nanos))
}

/// How the scrub reads.
#[derive(Debug, Clone, Copy)]
pub struct Scrub {
    /// Most bytes in a second.
    pub bytes_per_s: u64,
    /// How long a blob that was checked is left alone.
    pub every: Duration,
}

/// Reads every blob again and again, the one first that was checked longest ago.
pub(crate) async fn scrub_always(app: Arc<App>, scrub: Scrub) {
    let age = Grace { nanos: u64::try_from(scrub.every.as_nanos()).unwrap_or(u64::MAX) };
    let rest = REST.min(scrub.every);
    // What could not be read, and when, so that the others have their turn before it is tried again.
    let mut passed_over = BTreeMap::new();
    let again = Grace { nanos: age.nanos.min(AGAIN_NANOS) };
    loop {
        let now = app.now();
        passed_over.retain(|_, at| !again.is_over(*at, now));
        let worker = Arc::clone(&app);
        let over: BTreeSet<_> = passed_over.keys().cloned().collect();
        let next = blocking(move || worker.meta.oldest_checked(ago(worker.now(), age), &over)).await;
        let digest = match next {
            Ok(Some(digest)) => digest,
            Ok(None) => {
                tokio::time::sleep(rest).await;
                continue;
            }
            Err(Trouble::Ending) => return,
            Err(trouble) => {
                app.trouble("scrub_failed", "record", &trouble);
                tokio::time::sleep(rest).await;
                continue;
            }
        };
        match scrub_one(&app, &digest, scrub.bytes_per_s).await {
            Ok(Verdict::Sound) => continue,
            Ok(Verdict::Damaged) => {
                // Even if that could not be recorded, the others have their turn.
                passed_over.insert(digest, now);
                continue;
            }
            Ok(Verdict::Unreadable) => {}
            Err(Trouble::Ending) => return,
            Err(trouble) => app.trouble("scrub_failed", digest.as_str(), &trouble),
        }
        // A store that refuses, or does not answer, tells nothing of the blob.
        passed_over.insert(digest, now);
        tokio::time::sleep(rest).await;
    }
}

async fn scrub_one(app: &Arc<App>, digest: &BlobDigest, bytes_per_s: u64) -> Result<Verdict, Trouble> {
    // Its end goes when this is dropped, which ends the pauses: the thread must not outlive the server.
    let (_alive, ended) = mpsc::channel::<()>();
    let (worker, of) = (Arc::clone(app), digest.clone());
    let busy = Arc::clone(&app.scrubbing).lock_owned().await;
    blocking(move || {
        let _busy = busy;
        let mut pause = |bytes: usize| {
            let bytes = u64::try_from(bytes).unwrap_or(0);
            worker.metrics.scrubbed.inc_by(bytes);
            let nanos = bytes.saturating_mul(1_000_000_000) / bytes_per_s.max(1);
            match ended.recv_timeout(Duration::from_nanos(nanos)) {
                Err(mpsc::RecvTimeoutError::Disconnected) => Err(io::ErrorKind::Interrupted.into()),
                Ok(()) | Err(mpsc::RecvTimeoutError::Timeout) => Ok(()),
            }
        };
        let reader = match open(&worker, &of) {
            Ok(Some(reader)) => reader,
            Ok(None) => return Ok(Verdict::Damaged),
            Err(verdict) => return Ok(verdict),
        };
        let stamp = reader.stamp().clone();
        let verdict = check(&worker, &of, reader, &mut pause);
        if verdict == Verdict::Sound {
            worker.acquit(&of, &stamp)?;
        }
        Ok(verdict)
    })
    .await
}
