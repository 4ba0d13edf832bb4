//! What a registry does by itself: collect what nothing needs, read everything again, end forgotten uploads.

use super::app::{App, blocking};
use super::log::Level;
use super::trouble::Trouble;
use super::verdict::{Verdict, check};
use perennial_core::registry::collect::{Grace, are_too_many_strays};
use perennial_core::registry::name::BlobDigest;
use perennial_core::time::Time;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the scrub rests when everything was read lately.
const REST: Duration = Duration::from_secs(60);
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
    let mut done = Collected { uploads: app.staging.expire(ago(now, grace))?, ..Collected::default() };
    if app.options.is_read_only {
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
        }
        drop(guard);
    }
    Ok(done)
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
    loop {
        let worker = Arc::clone(&app);
        let next = blocking(move || worker.meta.oldest_checked(ago(worker.now(), age))).await;
        let digest = match next {
            Ok(Some(aged)) => aged.digest,
            Ok(None) => {
                tokio::time::sleep(REST.min(scrub.every)).await;
                continue;
            }
            Err(Trouble::Ending) => return,
            Err(trouble) => {
                app.trouble("scrub_failed", "record", &trouble);
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (worker, handle) = (Arc::clone(&app), tokio::runtime::Handle::current());
        let of = digest.clone();
        let checked = blocking(move || {
            let mut pause = |bytes: usize| {
                let bytes = u64::try_from(bytes).unwrap_or(0);
                worker.metrics.scrubbed.inc_by(bytes);
                let nanos = bytes.saturating_mul(1_000_000_000) / scrub.bytes_per_s.max(1);
                handle.block_on(tokio::time::sleep(Duration::from_nanos(nanos)));
            };
            let verdict = check(&worker, &of, &mut pause);
            if verdict != Verdict::Damaged {
                // What is not there is not read for ever: a blob without bytes is damaged.
                worker.meta.checked(&of, verdict == Verdict::Unreadable, worker.now())?;
            }
            Ok(verdict)
        });
        match checked.await {
            Ok(Verdict::Sound | Verdict::Damaged) => {}
            Ok(Verdict::Unreadable) => {
                app.metrics.damaged.inc();
                app.options.log.line(Level::Error, "blob_missing", vec![("digest", json!(digest.as_str()))]);
            }
            Err(Trouble::Ending) => return,
            Err(trouble) => {
                app.trouble("scrub_failed", digest.as_str(), &trouble);
                tokio::time::sleep(REST).await;
            }
        }
    }
}
