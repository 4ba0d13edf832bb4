//! Blobs: read whole and in parts, mounted, deleted.

use super::site::{Site, image, noise, refused, sha256, sha512};

#[test]
fn a_blob_is_read_whole_by_head_and_in_parts() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    for bytes in [0, 1, 65_536, 65_537, 3_000_001] {
        let content = noise(bytes);
        let digest = site.push("a/b", &content);
        let path = format!("/v2/a/b/blobs/{digest}");
        let whole = site.get(&path);
        assert_eq!((whole.status, &whole.body), (200, &content));
        assert_eq!(whole.header("docker-content-digest"), Some(digest.as_str()));
        assert_eq!(whole.header("etag"), Some(format!("\"{digest}\"").as_str()));
        let head = site.ask("HEAD", &path, &[], b"");
        let length = content.len().to_string();
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some(length.as_str()), 0));
        if bytes < 2 {
            let beyond = site.ask("GET", &path, &[("Range", "bytes=5-")], b"");
            assert_eq!(
                (beyond.status, beyond.header("content-range")),
                (416, Some(format!("bytes */{bytes}").as_str()))
            );
            continue;
        }
        for (range, from, to) in [("0-0", 0, 1), ("100-60000", 100, 60_001), ("5-", 5, bytes), ("-7", bytes - 7, bytes)]
        {
            let part = site.ask("GET", &path, &[("Range", &format!("bytes={range}"))], b"");
            assert_eq!((part.status, part.body.as_slice()), (206, &content[from..to]), "{range} of {bytes}");
            let expected = format!("bytes {from}-{}/{bytes}", to - 1);
            assert_eq!(part.header("content-range"), Some(expected.as_str()));
        }
    }
}

#[test]
fn what_is_not_there_is_unknown() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let digest = site.push("a", b"x");
    refused(&site.get(&format!("/v2/b/blobs/{digest}")), 404, "BLOB_UNKNOWN");
    refused(&site.get(&format!("/v2/a/blobs/{}", sha256(b"y"))), 404, "BLOB_UNKNOWN");
    assert_eq!(site.ask("HEAD", &format!("/v2/b/blobs/{digest}"), &[], b"").status, 404);
    refused(&site.get("/v2/a/blobs/sha256:abc"), 400, "DIGEST_INVALID");
    refused(&site.get(&format!("/v2/A/blobs/{digest}")), 400, "NAME_INVALID");
    refused(&site.get("/v2/b/tags/list"), 404, "NAME_UNKNOWN");
    refused(&site.get("/v2/b/manifests/x"), 404, "NAME_UNKNOWN");
    refused(&site.get("/v2/a/manifests/x"), 404, "MANIFEST_UNKNOWN");
    refused(&site.ask("PUT", &format!("/v2/a/blobs/{digest}"), &[], b"x"), 405, "UNSUPPORTED");
    assert_eq!(site.get("/v2/").status, 200);
    assert_eq!(site.get("/v3/").status, 404);
}

#[test]
fn a_blob_of_another_repository_is_mounted_and_otherwise_an_upload_begins() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let digest = site.push("a", b"x");
    let mount = |to: &str, digest: &str, from: &str| {
        site.ask("POST", &format!("/v2/{to}/blobs/uploads/?mount={digest}{from}"), &[], b"")
    };
    let mounted = mount("b", &digest, "&from=a");
    assert_eq!((mounted.status, mounted.header("location")), (201, Some(format!("/v2/b/blobs/{digest}").as_str())));
    assert_eq!(site.get(&format!("/v2/b/blobs/{digest}")).body, b"x");
    assert_eq!(mount("c", &digest, "").status, 201);
    let begun = mount("d", &digest, "&from=e");
    assert_eq!(begun.status, 202);
    assert!(begun.header("location").unwrap().starts_with("/v2/d/blobs/uploads/"));
    assert_eq!(mount("d", &sha256(b"y"), "").status, 202);
    refused(&mount("d", "sha256:x", ""), 400, "DIGEST_INVALID");
    refused(&mount("d", &digest, "&from=../a"), 400, "NAME_INVALID");
}

#[test]
fn a_deleted_blob_is_gone_from_its_repository_only_and_never_under_a_manifest() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let digest = site.push("a", b"x");
    site.push("b", b"x");
    let path = |name: &str| format!("/v2/{name}/blobs/{digest}");
    assert_eq!(site.ask("DELETE", &path("a"), &[], b"").status, 202);
    refused(&site.get(&path("a")), 404, "BLOB_UNKNOWN");
    refused(&site.ask("DELETE", &path("a"), &[], b""), 404, "BLOB_UNKNOWN");
    assert_eq!(site.get(&path("b")).status, 200);
    let manifest = image(&digest, std::iter::empty());
    assert_eq!(site.put_manifest("b", "v1", &manifest).status, 201);
    refused(&site.ask("DELETE", &path("b"), &[], b""), 409, "DENIED");
    assert_eq!(site.ask("DELETE", &format!("/v2/b/manifests/{}", sha256(&manifest)), &[], b"").status, 202);
    assert_eq!(site.ask("DELETE", &path("b"), &[], b"").status, 202);
}

#[test]
fn sha512_names_blobs_as_well() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(200_000);
    let digest = sha512(&content);
    let begun = site.ask("POST", "/v2/a/blobs/uploads/?digest-algorithm=sha512", &[], b"");
    let path = begun.header("location").unwrap();
    assert_eq!(site.ask("PATCH", path, &[("Content-Range", "0-99999")], &content[..100_000]).status, 202);
    let closed = site.ask("PUT", &format!("{path}?digest={digest}"), &[], &content[100_000..]);
    assert_eq!(closed.status, 201, "{}", closed.text());
    assert_eq!(site.get(&format!("/v2/a/blobs/{digest}")).body, content);
    // Begun as one algorithm and closed as the other: summed again.
    let path = site.begin("a");
    assert_eq!(site.ask("PATCH", &path, &[], &content[..100_000]).status, 202);
    assert_eq!(site.ask("PUT", &format!("{path}?digest={digest}"), &[], &content[100_000..]).status, 201);
    let unknown = site.ask("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", &[], b"");
    refused(&unknown, 400, "DIGEST_INVALID");
}

#[test]
fn a_client_that_has_a_blob_is_told_so_and_one_that_has_a_part_of_another_gets_the_whole() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(100_000);
    let digest = site.push("a", &content);
    let path = format!("/v2/a/blobs/{digest}");
    let (own, other) = (format!("\"{digest}\""), format!("\"{}\"", sha256(b"other")));
    for method in ["GET", "HEAD"] {
        for tags in [&[own.as_str()][..], &["*"], &[&other, &own]] {
            let headers: Vec<(&str, &str)> = tags.iter().map(|tag| ("If-None-Match", *tag)).collect();
            let known = site.ask(method, &path, &headers, b"");
            assert_eq!((known.status, known.body.len()), (304, 0), "{method} {tags:?}");
            assert_eq!(known.header("etag"), Some(own.as_str()));
        }
        assert_eq!(site.ask(method, &path, &[("If-None-Match", &other)], b"").status, 200);
    }
    let missing = format!("/v2/a/blobs/{}", sha256(b"other"));
    assert_eq!(site.ask("GET", &missing, &[("If-None-Match", "*")], b"").status, 404);
    let part = |tag: &str| site.ask("GET", &path, &[("Range", "bytes=7-"), ("If-Range", tag)], b"");
    let known = part(&own);
    assert!(known.status == 206 && known.body == content[7..]);
    for tag in [other.as_str(), &format!("W/{own}"), "Sun, 29 Nov 2026 00:00:00 GMT"] {
        let whole = part(tag);
        assert!(whole.status == 200 && whole.body == content, "{tag}: {}", whole.status);
    }
}

#[test]
fn head_says_what_get_says() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let manifest = site.push_image("a", "v1", &[&noise(100_000)]);
    let upload = site.begin("a");
    let digest = sha256(&noise(100_000));
    for path in [
        format!("/v2/a/blobs/{digest}"),
        "/v2/a/manifests/v1".to_owned(),
        format!("/v2/a/manifests/{}", sha256(&manifest)),
        "/v2/a/tags/list".to_owned(),
        format!("/v2/a/referrers/{}", sha256(&manifest)),
        "/v2/a/manifests/none".to_owned(),
        format!("/v2/a/blobs/{}", sha256(b"none")),
        "/v2/a/blobs/sha256:x".to_owned(),
        "/v2/none/tags/list".to_owned(),
        "/v2/".to_owned(),
        upload,
    ] {
        let [get, head] = ["GET", "HEAD"].map(|method| site.ask(method, &path, &[], b""));
        let headers = |mut headers: Vec<(String, String)>| {
            headers.retain(|(name, _)| name != "date");
            headers
        };
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(headers(head.headers), headers(get.headers), "{path}");
    }
}
