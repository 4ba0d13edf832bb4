//! Blobs in an object store that refuses, says nothing or breaks off.

use super::bucket::{Bucket, Mood};
use super::site::{Answer, Site, noise, options, sha256, wait_until};
use perennial_registry::serve::{Options, Scrub};
use std::time::Duration;

fn site(bucket: &Bucket, storage: &std::path::Path, patience: Duration) -> Site {
    Site::start(Options { s3: Some(bucket.place(patience)), connections_max: 200, ..options(storage) })
}

fn post(site: &Site, content: &[u8]) -> Answer {
    site.ask("POST", &format!("/v2/a/blobs/uploads/?digest={}", sha256(content)), &[], content)
}

#[test]
fn a_store_that_says_nothing_stops_only_what_needs_it() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let site = site(&bucket, storage.path(), Duration::from_secs(10));
    let manifest = site.push_image("a", "v1", &[b"1"]);
    let (content, other) = (noise(1_000_000), noise(1_000_001));
    let digest = site.push("a", &content);
    bucket.turn(Mood::Silent);
    let path = format!("/v2/a/blobs/{digest}");
    let push = &|n: u32| post(&site, &n.to_le_bytes()).status;
    std::thread::scope(|scope| {
        // More than there are threads, of both kinds.
        let pushes: Vec<_> = (0..80).map(|n| scope.spawn(move || push(n))).collect();
        for _ in 0..80 {
            scope.spawn(|| site.get(&path).status);
        }
        let connections = || site.get("/metrics").text().contains("perennial_registry_connections 161\n");
        wait_until("all of them", connections);
        for _ in 0..3 {
            assert_eq!(site.get("/healthz").status, 200);
            assert_eq!(site.get("/v2/a/tags/list").status, 200);
            assert_eq!(site.ask("HEAD", &path, &[], b"").status, 200);
            assert_eq!(site.get("/v2/a/manifests/v1").body, manifest);
            let upload = site.begin("a");
            assert_eq!(site.ask("PATCH", &upload, &[], &other).status, 202);
        }
        assert!(pushes.iter().all(|push| !push.is_finished()), "they still wait for the store");
        bucket.turn(Mood::Well);
    });
    assert_eq!(post(&site, b"again").status, 201);
    assert_eq!(site.get(&format!("/v2/a/blobs/{digest}")).body, content);
}

#[test]
fn a_store_that_says_nothing_is_given_up_on_and_so_is_the_wait_for_it() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let s3 = Some(bucket.place(Duration::from_secs(3)));
    let site = Site::start(Options {
        s3,
        patience: Duration::from_millis(200),
        connections_max: 200,
        ..options(storage.path())
    });
    bucket.turn(Mood::Silent);
    let push = &|n: u32| post(&site, &n.to_le_bytes()).status;
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..40).map(|n| scope.spawn(move || push(n))).collect();
        all.into_iter().map(|push| push.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| [500, 503].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&500) && statuses.contains(&503), "{statuses:?}");
    bucket.turn(Mood::Well);
    assert_eq!(post(&site, b"again").status, 201);
}

#[test]
fn a_store_that_refuses_fails_what_needs_it_and_nothing_is_lost() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let site = site(&bucket, storage.path(), Duration::from_secs(2));
    // Two parts, which a machine with much else to do sends within that time.
    let (content, large) = (noise(1_000_000), noise(9_000_000));
    let path = format!("/v2/a/blobs/{}", site.push("a", &content));
    let before = bucket.objects();
    for status in [403, 500, 503] {
        bucket.turn(Mood::Refuses(status));
        let upload = site.begin("a");
        assert_eq!(site.ask("PATCH", &upload, &[], &large).status, 202);
        let close = format!("{upload}?digest={}", sha256(&large));
        for _ in 0..2 {
            assert_eq!(site.ask("PUT", &close, &[], b"").status, 500, "{status}");
        }
        assert_eq!(post(&site, b"small").status, 500, "{status}");
        assert_eq!(site.get(&path).status, 500, "{status}");
        for content in [large.as_slice(), b"small"] {
            let path = format!("/v2/a/blobs/{}", sha256(content));
            assert_eq!(site.ask("HEAD", &path, &[], b"").status, 404, "what was not stored is not there");
        }
        bucket.turn(Mood::Well);
        assert_eq!(bucket.objects(), before, "{status}");
        // A refusal says nothing about the blob, which is there as before.
        assert_eq!(site.get(&path).body, content, "{status}");
        assert_eq!(site.get("/healthz").json()["status"], serde_json::json!("ok"), "{status}");
        // What had come is still there to be stored.
        assert_eq!(site.ask("PUT", &close, &[], b"").status, 201, "{status}");
        let large_path = format!("/v2/a/blobs/{}", sha256(&large));
        assert!(site.get(&large_path).body == large, "{status}");
        assert_eq!(bucket.unfinished(), Vec::<Vec<usize>>::new(), "{status}");
        assert_eq!(site.ask("DELETE", &large_path, &[], b"").status, 202);
        bucket.remove(&sha256(&large));
    }
}

#[test]
fn a_blob_whose_sending_the_store_breaks_off_is_not_sent_whole_and_the_next_reader_gets_it() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let site = site(&bucket, storage.path(), Duration::from_secs(1));
    for bytes in [1000, 100_000, 3_000_000] {
        let content = noise(bytes);
        let path = format!("/v2/a/blobs/{}", site.push("a", &content));
        bucket.turn(Mood::BreaksOff);
        let got = site.get(&path);
        assert!(got.status == 500 || !got.is_whole, "{bytes}: {} {}", got.status, got.body.len());
        bucket.turn(Mood::Well);
        assert!(site.get(&path).body == content, "{bytes}: a store that breaks off is no damage");
        assert_eq!(site.get("/healthz").json()["status"], serde_json::json!("ok"));
    }
}

#[test]
fn a_store_that_dies_while_a_large_blob_is_stored_leaves_the_upload_to_be_closed_again() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    // Longer than this machine takes for a part where much else goes on.
    let site = site(&bucket, storage.path(), Duration::from_secs(4));
    let large = noise(40_000_000);
    let upload = site.begin("a");
    assert_eq!(site.ask("PATCH", &upload, &[], &large).status, 202);
    let close = format!("{upload}?digest={}", sha256(&large));
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| site.ask("PUT", &close, &[], b"").status);
        wait_until("the first part", || bucket.unfinished().iter().any(|parts| !parts.is_empty()));
        bucket.turn(Mood::Silent);
        // It is given up where it was not all there before.
        let status = closing.join().unwrap();
        assert!([500, 201].contains(&status), "{status}");
    });
    bucket.turn(Mood::Well);
    assert!([201, 404].contains(&site.ask("PUT", &close, &[], b"").status), "it is stored, now or before");
    assert!(site.get(&format!("/v2/a/blobs/{}", sha256(&large))).body == large);
}

#[test]
fn parts_that_a_killed_push_has_left_are_given_up() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let large = noise(20_000_000);
    let close = {
        let site = site(&bucket, storage.path(), Duration::from_secs(1));
        let upload = site.begin("a");
        assert_eq!(site.ask("PATCH", &upload, &[], &large).status, 202);
        let close = format!("{upload}?digest={}", sha256(&large));
        for _ in 0..2 {
            // As far as the store can see, the registry is gone when all parts are there.
            bucket.turn(Mood::Keeps);
            assert_eq!(site.ask("PUT", &close, &[], b"").status, 500);
            assert_eq!(bucket.unfinished(), [[8 << 20, 8 << 20, 20_000_000 - (16 << 20)]], "one at a time");
            bucket.turn(Mood::Well);
        }
        close
    };
    let s3 = Some(bucket.place(Duration::from_secs(1)));
    let collect_every = Some(Duration::from_millis(100));
    let site = Site::start(Options { s3, collect_every, ..options(storage.path()) });
    wait_until("the parts to be gone", || bucket.unfinished().is_empty() && site.files("parts").is_empty());
    assert_eq!(site.ask("PUT", &close, &[], b"").status, 201);
    assert!(site.get(&format!("/v2/a/blobs/{}", sha256(&large))).body == large);
    assert!(bucket.unfinished().is_empty() && site.files("parts").is_empty());
}

#[test]
fn a_note_of_parts_that_lost_its_content_keeps_nothing_from_being_pushed() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let site = site(&bucket, storage.path(), Duration::from_secs(1));
    let large = noise(9_000_000);
    let note = storage.path().join("parts").join(format!("sha256-{}.json", &sha256(&large)[7..]));
    std::fs::File::create(&note).unwrap();
    assert_eq!(post(&site, &large).status, 201);
    assert!(!note.exists());
}

#[test]
fn the_scrub_takes_a_store_that_refuses_for_no_damage() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let scrub = Some(Scrub { bytes_per_s: 100_000_000, every: Duration::from_millis(50) });
    let s3 = Some(bucket.place(Duration::from_secs(1)));
    let site = Site::start(Options { s3, scrub, ..options(storage.path()) });
    let digests = [b"1", b"2", b"3"].map(|content| site.push("a", content));
    bucket.turn(Mood::Refuses(403));
    let failed = |text: &str| text.lines().any(|line| line.starts_with("perennial_registry_troubles_total 4"));
    wait_until("the scrub to fail some times", || failed(&site.get("/metrics").text()));
    bucket.turn(Mood::Well);
    assert_eq!(site.get("/healthz").json()["damaged"], serde_json::json!([]));
    for digest in &digests {
        assert_eq!(site.get(&format!("/v2/a/blobs/{digest}")).status, 200);
    }
    bucket.remove(&digests[1]);
    wait_until("a loss to be found", || site.get("/healthz").json()["damaged"] == serde_json::json!([digests[1]]));
}

#[test]
fn bytes_that_take_the_place_of_a_trusted_copy_while_it_is_opened_are_not_sent_for_it() {
    let (bucket, storage) = (Bucket::new(), tempfile::tempdir().unwrap());
    let site = site(&bucket, storage.path(), Duration::from_secs(1));
    let content = noise(300_000);
    let digest = site.push("a", &content);
    let path = format!("/v2/a/blobs/{digest}");
    assert_eq!(site.get(&path).body, content);
    let mut worse = content.clone();
    worse[150_000] ^= 1;
    bucket.swap_after_look(&digest, &worse);
    let got = site.get(&path);
    assert!(got.status != 200 || !got.is_whole, "{} {}", got.status, got.body.len());
    site.push("a", &content);
    assert_eq!(site.get(&path).body, content);
}
