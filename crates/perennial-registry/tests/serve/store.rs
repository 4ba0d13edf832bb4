//! Blobs in an object store that refuses, says nothing or breaks off.

use super::bucket::{Bucket, Mood};
use super::site::{Answer, Site, noise, options, sha256, wait_until};
use perennial_registry::serve::Options;
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
