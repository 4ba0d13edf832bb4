//! Damaged blobs are never served whole; they are put aside, told of, and can be pushed again. What nothing needs is
//! collected, and nothing else.

use super::site::{INDEX, Site, noise, options, refused, sha256, wait_until};
use perennial_core::registry::collect::Grace;
use perennial_registry::serve::Scrub;
use serde_json::json;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

fn file(site: &Site, digest: &str) -> std::path::PathBuf {
    let hex = &digest[7..];
    site.storage.join("blobs/sha256").join(&hex[..2]).join(hex)
}

fn damage(site: &Site, digest: &str, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(file(site, digest)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_damaged_blob_is_never_served_whole_and_is_mended_by_a_push() {
    for bytes in [100, 65_537, 4_000_000] {
        for range in [None, Some("bytes=0-"), Some("bytes=1-")] {
            let storage = tempfile::tempdir().unwrap();
            let site = Site::new(storage.path());
            let content = noise(bytes);
            let digest = site.push("a", &content);
            let path = format!("/v2/a/blobs/{digest}");
            assert_eq!(site.get(&path).body, content);
            damage(&site, &digest, u64::try_from(bytes).unwrap() / 2);
            let headers: Vec<(&str, &str)> = range.iter().map(|range| ("Range", *range)).collect();
            let got = site.ask("GET", &path, &headers, b"");
            assert!(got.status == 404 || !got.is_whole, "{bytes} {range:?}: {} {}", got.status, got.body.len());
            wait_until("the quarantine", || site.get(&path).status == 404);
            wait_until("the file to be put aside", || site.files("quarantine").len() == 1);
            assert_eq!(site.ask("HEAD", &path, &[], b"").status, 404, "so that a client pushes it again");
            assert_eq!(site.get("/healthz").json()["damaged"], json!([digest]));
            assert!(site.get("/metrics").text().contains("perennial_registry_blobs_quarantined 1"));
            site.push("a", &content);
            assert_eq!(site.get(&path).body, content);
            assert_eq!(site.get("/healthz").json()["status"], json!("ok"));
        }
    }
}

#[test]
fn a_blob_that_was_cut_short_is_not_served() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let digest = site.push("a", &noise(100_000));
    let hex = &digest[7..];
    let path = site.storage.join("blobs/sha256").join(&hex[..2]).join(hex);
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(99_999).unwrap();
    refused(&site.get(&format!("/v2/a/blobs/{digest}")), 404, "BLOB_UNKNOWN");
}

#[test]
fn the_scrub_finds_what_nobody_asks_for() {
    let storage = tempfile::tempdir().unwrap();
    let (sound, damaged, missing) = {
        let site = Site::new(storage.path());
        let digests = [b"sound", b"worse", b"goner"].map(|content| site.push("a", content));
        damage(&site, &digests[1], 2);
        let hex = &digests[2][7..];
        std::fs::remove_file(site.storage.join("blobs/sha256").join(&hex[..2]).join(hex)).unwrap();
        digests.into()
    };
    let scrub = Scrub { bytes_per_s: 1_000_000, every: Duration::from_millis(100) };
    let site = Site::start(perennial_registry::serve::Options { scrub: Some(scrub), ..options(storage.path()) });
    wait_until("the scrub", || site.get("/healthz").json()["damaged"].as_array().unwrap().len() == 2);
    assert_eq!(site.get(&format!("/v2/a/blobs/{sound}")).status, 200);
    for digest in [damaged, missing] {
        refused(&site.get(&format!("/v2/a/blobs/{digest}")), 404, "BLOB_UNKNOWN");
    }
}

#[test]
fn a_late_verdict_of_the_scrub_says_nothing_about_the_copy_that_was_pushed_meanwhile() {
    let storage = tempfile::tempdir().unwrap();
    let (content, other) = (noise(1_000_000), noise(600_000));
    let digest = {
        let site = Site::new(storage.path());
        let digest = site.push("a", &content);
        site.push("a", &other);
        damage(&site, &digest, 999_999);
        digest
    };
    let scrub = Some(Scrub { bytes_per_s: 500_000, every: Duration::from_millis(1) });
    let site = Site::start(perennial_registry::serve::Options { scrub, ..options(storage.path()) });
    let scrubbed = || {
        let text = site.get("/metrics").text();
        let line = text.lines().find(|line| line.starts_with("perennial_registry_scrubbed_bytes_total ")).unwrap();
        line.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
    };
    wait_until("the scrub to begin", || scrubbed() > 0);
    let path = format!("/v2/a/blobs/{digest}");
    wait_until("a reader to find the damage", || site.get(&path).status == 404);
    site.push("a", &content);
    assert!(scrubbed() < content.len(), "the scrub was still at it");
    wait_until("the scrub to go on to the next", || scrubbed() > content.len());
    assert!(site.get(&path).body == content);
    assert_eq!(site.get("/healthz").json()["damaged"], json!([]));
}

#[test]
fn a_push_mends_a_copy_whatever_became_of_it_unseen() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    for bytes in [1000, 100_000] {
        let content = noise(bytes);
        let digest = site.push("a", &content);
        let path = file(&site, &digest);
        let open = || std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        for worsen in [&(|| open().set_len(5).unwrap()) as &dyn Fn(), &|| damage(&site, &digest, 7)] {
            worsen();
            site.push("b", &content);
            assert!(std::fs::read(&path).unwrap() == content, "the good bytes are kept");
            for name in ["a", "b"] {
                assert!(site.get(&format!("/v2/{name}/blobs/{digest}")).body == content);
            }
        }
    }
}

#[test]
fn a_blob_whose_file_is_gone_is_unknown_to_all_as_soon_as_one_has_asked() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(100_000);
    let digest = site.push("a", &content);
    let manifest = super::site::image(&digest, std::iter::empty());
    std::fs::remove_file(file(&site, &digest)).unwrap();
    let path = format!("/v2/a/blobs/{digest}");
    refused(&site.get(&path), 404, "BLOB_UNKNOWN");
    assert_eq!(site.ask("HEAD", &path, &[], b"").status, 404, "so that a client pushes it again");
    assert_eq!(site.ask("POST", &format!("/v2/b/blobs/uploads/?mount={digest}&from=a"), &[], b"").status, 202);
    refused(&site.put_manifest("a", "v1", &manifest), 400, "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(site.get("/healthz").json()["damaged"], json!([digest]));
    site.push("a", &content);
    assert!(site.get(&path).body == content);
    assert_eq!(site.put_manifest("a", "v1", &manifest).status, 201);
    assert_eq!(site.get("/healthz").json()["status"], json!("ok"));
}

#[test]
fn a_blob_that_is_pushed_again_and_again_is_scrubbed_all_the_same() {
    let storage = tempfile::tempdir().unwrap();
    let scrub = Some(Scrub { bytes_per_s: 1_000_000, every: Duration::from_millis(700) });
    let site = Site::start(perennial_registry::serve::Options { scrub, ..options(storage.path()) });
    wait_until("the scrub to read it", || {
        site.push("a", b"again");
        !site.get("/metrics").text().contains("perennial_registry_scrubbed_bytes_total 0\n")
    });
}

#[test]
fn what_nothing_needs_is_collected_while_pushes_go_on_and_nothing_else() {
    let storage = tempfile::tempdir().unwrap();
    let grace = Grace { nanos: 1_500_000_000 };
    let every = Some(Duration::from_millis(20));
    let base = options(storage.path());
    let site = Site::start(perennial_registry::serve::Options { grace, collect_every: every, ..base });
    let orphan = site.push("a", b"nobody refers to this");
    std::fs::File::create(storage.path().join("blobs/sha256/00").join("0".repeat(64))).unwrap();
    let upload = site.begin("a");
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let site = &site;
            scope.spawn(move || {
                for round in 0..40 {
                    // Layers that come and go, in two repositories, some of them the same.
                    let (name, layer) = (format!("r{}", worker % 2), noise(1000 + round % 7));
                    let tag = format!("t{worker}");
                    let manifest = site.push_image(&name, &tag, &[&layer]);
                    assert_eq!(site.get(&format!("/v2/{name}/blobs/{}", sha256(&layer))).body, layer);
                    if round % 3 == 0 {
                        let gone = site.ask("DELETE", &format!("/v2/{name}/manifests/{}", sha256(&manifest)), &[], b"");
                        assert!([202, 404].contains(&gone.status));
                    }
                }
            });
        }
    });
    wait_until("the orphan's end", || site.get(&format!("/v2/a/blobs/{orphan}")).status == 404);
    wait_until("the stray file's end", || !storage.path().join("blobs/sha256/00").join("0".repeat(64)).exists());
    wait_until("the upload's end", || site.get(&upload).status == 404);
    for name in ["r0", "r1"] {
        for tag in site.get(&format!("/v2/{name}/tags/list")).json()["tags"].as_array().unwrap() {
            let manifest = site.get(&format!("/v2/{name}/manifests/{}", tag.as_str().unwrap())).json();
            for descriptor in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
                let blob = site.get(&format!("/v2/{name}/blobs/{}", descriptor["digest"].as_str().unwrap()));
                assert_eq!(blob.status, 200, "{name} {tag}");
            }
        }
    }
}

#[test]
fn manifests_without_a_tag_are_collected_where_that_is_wanted() {
    for (collects_untagged, expected) in [(false, 200), (true, 404)] {
        let storage = tempfile::tempdir().unwrap();
        let base = options(storage.path());
        let site = Site::start(perennial_registry::serve::Options {
            grace: Grace { nanos: 200_000_000 },
            collect_every: Some(Duration::from_millis(50)),
            collects_untagged,
            ..base
        });
        let old = site.push_image("a", "v1", &[b"1"]);
        let new = site.push_image("a", "v1", &[b"2"]);
        let orphan = site.push("a", b"orphan");
        wait_until("a collection", || site.get(&format!("/v2/a/blobs/{orphan}")).status == 404);
        assert_eq!(site.get(&format!("/v2/a/manifests/{}", sha256(&new))).status, 200);
        let path = format!("/v2/a/manifests/{}", sha256(&old));
        wait_until("the old manifest", || site.get(&path).status == expected);
    }
}

#[test]
fn blobs_that_an_index_names_as_manifests_are_needed_until_it_goes() {
    let storage = tempfile::tempdir().unwrap();
    let (layer, index) = {
        let site = Site::new(storage.path());
        let layer = site.push("a", b"a layer of a build cache");
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": 24},
        ]});
        let index = index.to_string().into_bytes();
        let put = site.ask("PUT", "/v2/a/manifests/cache", &[("Content-Type", INDEX)], &index);
        assert_eq!(put.status, 201, "{}", put.text());
        refused(&site.ask("DELETE", &format!("/v2/a/blobs/{layer}"), &[], b""), 409, "DENIED");
        (layer, sha256(&index))
    };
    let base = options(storage.path());
    let every = Some(Duration::from_millis(20));
    let site =
        Site::start(perennial_registry::serve::Options { grace: Grace { nanos: 1 }, collect_every: every, ..base });
    for n in 0..3 {
        let orphan = site.push("a", &[n]);
        wait_until("a collection", || site.get(&format!("/v2/a/blobs/{orphan}")).status == 404);
    }
    assert_eq!(site.get(&format!("/v2/a/blobs/{layer}")).status, 200);
    assert_eq!(site.ask("DELETE", &format!("/v2/a/manifests/{index}"), &[], b"").status, 202);
    wait_until("the layer's end", || site.get(&format!("/v2/a/blobs/{layer}")).status == 404);
}

#[test]
fn a_blob_that_is_cut_short_while_it_is_sent_ends_early_and_is_known_to_be_damaged() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(30_000_000);
    let digest = site.push("a", &content);
    // Its copy is trusted, so that nothing but this stream reads it.
    let stream = site.open("GET", &format!("/v2/a/blobs/{digest}"), &[("Connection", "close")]).unwrap();
    wait_until("the stream", || site.get("/metrics").text().contains("perennial_registry_streams 1\n"));
    std::fs::OpenOptions::new().write(true).open(file(&site, &digest)).unwrap().set_len(29_999_000).unwrap();
    let got = super::site::Answer::read(stream, "GET").unwrap();
    assert!(!got.is_whole && got.body.len() < content.len());
    wait_until("the condition", || site.get("/healthz").json()["damaged"] == json!([digest]));
    assert_eq!(site.files("quarantine").len(), 1);
}
