//! A record that was lost, is older than the blobs, or is another registry's frees no blob.

use super::bucket::{Bucket, Conditions};
use super::site::{Site, noise, now, options, wait_until};
use perennial_core::registry::collect::Grace;
use perennial_core::time::Time;
use perennial_registry::serve::log::Log;
use perennial_registry::serve::{Options, serve};
use serde_json::json;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// Returns why a registry does not begin.
fn refusal(options: Options) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let error = runtime.block_on(serve(options, |_| {}, std::future::ready(()))).unwrap_err();
    error.to_string()
}

fn collecting(base: Options) -> Options {
    Options { grace: Grace { nanos: 1 }, collect_every: Some(Duration::from_millis(20)), ..base }
}

fn take_record(storage: &Path) -> Vec<u8> {
    let record = std::fs::read(storage.join("registry.db")).unwrap();
    for name in ["registry.db", "registry.db-wal", "registry.db-shm"] {
        std::fs::remove_file(storage.join(name)).ok();
    }
    record
}

#[test]
fn without_its_record_or_with_anothers_a_registry_does_not_begin() {
    let (storage, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let push = |storage: &Path| Site::new(storage).push("a", b"kept");
    let digest = push(storage.path());
    push(other.path());
    let record = take_record(storage.path());
    let refused = refusal(collecting(options(storage.path())));
    assert!(refused.contains("it is missing"), "{refused}");
    assert!(!storage.path().join("registry.db").exists(), "nothing was made in its place");
    super::site::write(storage.path().join("registry.db"), b"");
    assert!(refusal(options(storage.path())).contains("it is missing"), "an empty file is no record");
    super::site::write(storage.path().join("registry.db"), take_record(other.path()));
    let refused = refusal(collecting(options(storage.path())));
    assert!(refused.contains("of another registry"), "{refused}");
    take_record(storage.path());
    super::site::write(storage.path().join("registry.db"), record);
    assert_eq!(Site::new(storage.path()).get(&format!("/v2/a/blobs/{digest}")).body, b"kept");
}

#[test]
fn a_registry_whose_making_was_cut_off_is_made() {
    for files in [&[][..], &["registry.db"][..]] {
        let storage = tempfile::tempdir().unwrap();
        drop(Site::new(storage.path()));
        let identity = std::fs::read(storage.path().join("registry.json")).unwrap();
        std::fs::remove_dir_all(storage.path()).unwrap();
        std::fs::create_dir(storage.path()).unwrap();
        super::site::write(storage.path().join("registry.json"), identity);
        for file in files {
            super::site::write(storage.path().join(file), b"");
        }
        let digest = Site::new(storage.path()).push("a", b"x");
        assert_eq!(Site::new(storage.path()).get(&format!("/v2/a/blobs/{digest}")).body, b"x");
    }
}

#[test]
fn a_record_that_is_older_than_most_blobs_frees_none_until_that_is_asked_for() {
    let storage = tempfile::tempdir().unwrap();
    Site::new(storage.path()).push_image("a", "v1", &[b"1"]);
    let older = take_record(storage.path());
    super::site::write(storage.path().join("registry.db"), &older);
    {
        let site = Site::new(storage.path());
        for n in 0..6 {
            site.push_image("a", &format!("w{n}"), &[&noise(100 + n)]);
        }
    }
    take_record(storage.path());
    super::site::write(storage.path().join("registry.db"), &older);
    {
        let site = Site::start(collecting(options(storage.path())));
        wait_until("the refusal to collect", || site.get("/healthz").json()["status"] == json!("not collected"));
        assert_eq!(site.get("/healthz").json()["unknown"], json!(6));
        assert_eq!(site.files("blobs").len(), 8);
    }
    let site = Site::start(Options { collects_strays: true, ..collecting(options(storage.path())) });
    wait_until("the end of what is not known", || site.files("blobs").len() == 2);
    assert_eq!(site.get("/healthz").json()["status"], json!("ok"));
    assert_eq!(site.get("/v2/a/manifests/v1").status, 200);
}

fn two_hours_ago() -> Time {
    Time::from_unix_nanos(now().unix_nanos() - 7_200 * 1_000_000_000)
}

#[test]
fn a_blob_that_the_record_does_not_know_is_kept_for_the_time_of_grace() {
    let storage = tempfile::tempdir().unwrap();
    let stray = storage.path().join("blobs/sha256/00").join("0".repeat(64));
    {
        // By this clock files are always young, and links are not.
        let site = Site::start(Options { clock: two_hours_ago, ..collecting(options(storage.path())) });
        super::site::write(&stray, b"");
        for n in 0..3 {
            let orphan = site.push("a", &[n]);
            wait_until("a collection", || site.get(&format!("/v2/a/blobs/{orphan}")).status == 404);
        }
        assert!(stray.exists());
    }
    let _site = Site::start(collecting(options(storage.path())));
    wait_until("the stray file's end", || !stray.exists());
}

#[test]
fn a_bucket_that_is_anothers_is_not_taken() {
    let (bucket, first, second) = (Bucket::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let with = |storage: &Path| Options { s3: Some(bucket.place(Duration::from_secs(10))), ..options(storage) };
    Site::start(with(first.path())).push_image("a", "v1", &[b"1", b"2", b"3", b"4"]);
    let objects = bucket.objects();
    let refused = refusal(collecting(with(second.path())));
    assert!(refused.contains("belong to another registry"), "{refused}");
    bucket.remove_key("a/b/registry.json");
    let third = tempfile::tempdir().unwrap();
    let refused = refusal(with(third.path()));
    assert!(refused.contains("blobs that the record does not know"), "{refused}");
    let site = Site::start(with(first.path()));
    assert_eq!(bucket.objects(), objects, "it lays claim to it again");
    assert_eq!(site.get("/v2/a/manifests/v1").status, 200);
}

const CLAIM: &str = "a/b/registry.json";

/// Returns a claim of another registry.
fn others_claim() -> Vec<u8> {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let s3 = Some(bucket.place(Duration::from_secs(10)));
    drop(Site::start(Options { s3, ..options(storage.path()) }));
    bucket.object(CLAIM)
}

#[test]
fn a_registry_that_is_not_the_first_to_claim_a_bucket_is_refused_by_its_condition() {
    let (bucket, storage, other) = (Bucket::new(), tempfile::tempdir().unwrap(), others_claim());
    // Another one is quicker, after this one has found nothing.
    bucket.put_after_look(CLAIM, &other);
    let s3 = Some(bucket.place(Duration::from_secs(10)));
    let refused = refusal(Options { s3, ..options(storage.path()) });
    assert!(refused.contains("belong to another registry"), "{refused}");
    assert_eq!(bucket.object(CLAIM), other, "its claim stands");
}

#[test]
fn where_the_store_knows_no_conditions_that_is_told_and_each_collection_looks_whose_it_is() {
    for (conditions, is_told) in [
        (Conditions::Kept, false),
        (Conditions::Ignored, true),
        (Conditions::Refused(400), true),
        (Conditions::Refused(501), true),
    ] {
        let (bucket, storage, other) = (Bucket::new(), tempfile::tempdir().unwrap(), others_claim());
        bucket.keep_conditions(conditions);
        let (sender, lines) = mpsc::channel();
        let log = Log::new(move |line| sender.send(line.event.to_owned()).unwrap_or_default());
        let s3 = Some(bucket.place(Duration::from_secs(1)));
        let site = Site::start(Options { s3, log, ..collecting(options(storage.path())) });
        let told = lines.try_iter().any(|event| event == "claim_unguarded");
        assert_eq!(told, is_told, "{conditions:?}");
        // The other one has found nothing either, and puts its claim now.
        let own = bucket.object(CLAIM);
        bucket.put(CLAIM, &other);
        wait_until("the refusal to collect", || site.get("/healthz").json()["store_is_anothers"] == json!(true));
        assert_eq!(site.get("/healthz").json()["status"], json!("not collected"));
        let orphan = site.push("a", b"orphan");
        let objects = bucket.objects();
        while lines.try_recv().is_ok() {}
        wait_until("some more collections", || lines.try_iter().any(|event| event == "not_collected"));
        assert_eq!(bucket.objects(), objects, "{conditions:?}: nothing is deleted");
        bucket.put(CLAIM, &own);
        wait_until("a collection", || site.get(&format!("/v2/a/blobs/{orphan}")).status == 404);
        assert_eq!(site.get("/healthz").json()["status"], json!("ok"), "{conditions:?}");
    }
}
