//! Manifests, tags and referrers.

use super::site::{Answer, IMAGE, INDEX, Site, image, refused, sha256, sha512};
use serde_json::{Value, json};

#[test]
fn a_manifest_is_kept_byte_for_byte_under_its_tag_and_its_digest() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let config = site.push("a/b", b"{}");
    let mut manifest = image(&config, std::iter::empty());
    manifest.extend(b"\n  ");
    let put = site.put_manifest("a/b", "v1", &manifest);
    let digest = sha256(&manifest);
    assert_eq!((put.status, put.header("docker-content-digest")), (201, Some(digest.as_str())));
    assert_eq!(put.header("location"), Some(format!("/v2/a/b/manifests/{digest}").as_str()));
    for reference in ["v1", &digest] {
        let path = format!("/v2/a/b/manifests/{reference}");
        let got = site.get(&path);
        assert_eq!((got.status, &got.body, got.header("content-type")), (200, &manifest, Some(IMAGE)));
        let head = site.ask("HEAD", &path, &[], b"");
        let length = manifest.len().to_string();
        assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
        assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
        let tag = format!("\"{digest}\"");
        assert_eq!(site.ask("GET", &path, &[("If-None-Match", &tag)], b"").status, 304);
    }
    let long = sha512(&manifest);
    let put = site.put_manifest("a/b", &long, &manifest);
    assert_eq!((put.status, put.header("docker-content-digest")), (201, Some(long.as_str())));
    assert_eq!(site.get(&format!("/v2/a/b/manifests/{long}")).body, manifest);
}

#[test]
fn bad_manifests_are_refused_by_their_codes_and_leave_nothing() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let config = site.push("a", b"{}");
    let manifest = image(&config, std::iter::empty());
    refused(&site.put_manifest("a", "v1", b"{"), 400, "MANIFEST_INVALID");
    refused(&site.put_manifest("a", &sha256(b"other"), &manifest), 400, "DIGEST_INVALID");
    refused(&site.put_manifest("a", "sha256:x", &manifest), 400, "DIGEST_INVALID");
    refused(&site.put_manifest("A", "v1", &manifest), 400, "NAME_INVALID");
    refused(&site.put_manifest("b", "v1", &manifest), 400, "MANIFEST_BLOB_UNKNOWN");
    let missing = image(&config, [sha256(b"missing")].into_iter());
    refused(&site.put_manifest("a", "v1", &missing), 400, "MANIFEST_BLOB_UNKNOWN");
    let other = site.ask("PUT", "/v2/a/manifests/v1", &[("Content-Type", INDEX)], &manifest);
    refused(&other, 400, "MANIFEST_INVALID");
    refused(&site.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN");
    assert_eq!(site.get("/v2/a/tags/list").json()["tags"], json!([]));
}

#[test]
fn a_manifest_of_four_mebibytes_is_taken_and_a_larger_one_is_not() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let config = site.push("a", b"{}");
    let mut manifest = image(&config, std::iter::empty());
    manifest.resize(4 * 1024 * 1024, b' ');
    assert_eq!(site.put_manifest("a", "large", &manifest).status, 201);
    assert_eq!(site.get("/v2/a/manifests/large").body, manifest);
    manifest.push(b' ');
    refused(&site.put_manifest("a", "larger", &manifest), 413, "MANIFEST_INVALID");
    let headers = [("Transfer-Encoding", "chunked"), ("Connection", "close"), ("Content-Type", IMAGE)];
    let body = [format!("{:x}\r\n", manifest.len()).as_bytes(), &manifest, b"\r\n0\r\n\r\n"].concat();
    let chunked = site.send("PUT", "/v2/a/manifests/larger", &headers, &body).unwrap();
    refused(&chunked, 413, "MANIFEST_INVALID");
}

#[test]
fn a_push_to_a_tag_can_be_a_compare_and_swap() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let one = site.push_image("a", "v1", &[b"1"]);
    let two = image(&site.push("a", b"{}"), [site.push("a", b"2")].into_iter());
    let put = |header: &str, value: &str, body: &[u8]| {
        site.ask("PUT", "/v2/a/manifests/v1", &[("Content-Type", IMAGE), (header, value)], body)
    };
    let is = |digest: &str| format!("\"{digest}\"");
    refused(&put("If-None-Match", "*", &two), 412, "DENIED");
    assert_eq!(site.get("/v2/").header("perennial-conditional-tags"), Some("1"), "clients are told");
    refused(&put("If-Match", &is(&sha256(&two)), &two), 412, "DENIED");
    assert_eq!(site.get("/v2/a/manifests/v1").body, one);
    assert_eq!(put("If-Match", &is(&sha256(&one)), &two).status, 201);
    refused(&put("If-Match", &is(&sha256(&one)), &one), 412, "DENIED");
    assert_eq!(site.get("/v2/a/manifests/v1").body, two);
    let delete = |value: &str| site.ask("DELETE", "/v2/a/manifests/v1", &[("If-Match", value)], b"");
    refused(&delete(&is(&sha256(&one))), 412, "DENIED");
    assert_eq!(delete(&is(&sha256(&two))).status, 202);
}

#[test]
fn of_many_pushes_to_one_tag_that_expect_the_same_one_wins() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    site.push_image("a", "v1", &[b"0"]);
    let config = site.push("a", b"{}");
    for round in 0..3 {
        let before = site.get("/v2/a/manifests/v1").header("etag").unwrap().to_owned();
        let won: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..50)
                .map(|number| {
                    let (site, before, config) = (&site, &before, &config);
                    scope.spawn(move || {
                        let mut manifest = image(config, std::iter::empty());
                        manifest.extend(format!("{:1$}", "", 100 * round + number + 1).bytes());
                        let headers = [("Content-Type", IMAGE), ("If-Match", before.as_str())];
                        let status = site.ask("PUT", "/v2/a/manifests/v1", &headers, &manifest).status;
                        assert!([201, 412].contains(&status), "{status}");
                        usize::from(status == 201)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
    }
}

#[test]
fn tags_are_listed_in_order_and_in_pages() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let manifest = site.push_image("a", "b", &[]);
    for tag in ["c", "a", "B", "_x"] {
        assert_eq!(site.put_manifest("a", tag, &manifest).status, 201);
    }
    let list = |query: &str| site.get(&format!("/v2/a/tags/list{query}"));
    let tags = |answer: &Answer| answer.json()["tags"].clone();
    assert_eq!(list("").json(), json!({"name": "a", "tags": ["B", "_x", "a", "b", "c"]}));
    let mut seen = Vec::new();
    let mut next = Some("/v2/a/tags/list?n=2".to_owned());
    while let Some(path) = next {
        let answer = site.get(&path);
        seen.push(tags(&answer));
        next = answer.header("link").map(|link| {
            assert!(link.ends_with(">; rel=\"next\""), "{link}");
            link[1..].split('>').next().unwrap().to_owned()
        });
    }
    assert_eq!(seen, [json!(["B", "_x"]), json!(["a", "b"]), json!(["c"])]);
    assert_eq!(tags(&list("?last=a")), json!(["b", "c"]));
    let none = list("?n=0");
    assert_eq!((tags(&none), none.header("link")), (json!([]), None));
    assert_eq!(list("?n=x").status, 400);
}

#[test]
fn a_push_by_digest_sets_the_tags_it_names() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let manifest = image(&site.push("a", b"{}"), std::iter::empty());
    let put = site.put_manifest("a", &format!("{}?tag=1&tag=1.2&tag=x", sha256(&manifest)), &manifest);
    let tags: Vec<&str> =
        put.headers.iter().filter(|(name, _)| name == "oci-tag").map(|(_, value)| value.as_str()).collect();
    assert_eq!((put.status, tags), (201, vec!["1", "1.2", "x"]));
    assert_eq!(site.get("/v2/a/manifests/1.2").body, manifest);
    let bad = site.put_manifest("a", &format!("{}?tag=.", sha256(&manifest)), &manifest);
    refused(&bad, 400, "MANIFEST_INVALID");
}

#[test]
fn deleting_a_tag_leaves_the_manifest_and_deleting_the_manifest_takes_its_tags() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let manifest = site.push_image("a", "v1", &[b"1"]);
    site.put_manifest("a", "v2", &manifest);
    let digest = sha256(&manifest);
    assert_eq!(site.ask("DELETE", "/v2/a/manifests/v1", &[], b"").status, 202);
    refused(&site.get("/v2/a/manifests/v1"), 404, "MANIFEST_UNKNOWN");
    assert_eq!(site.get(&format!("/v2/a/manifests/{digest}")).status, 200);
    assert_eq!(site.ask("DELETE", &format!("/v2/a/manifests/{digest}"), &[], b"").status, 202);
    refused(&site.get("/v2/a/manifests/v2"), 404, "MANIFEST_UNKNOWN");
    assert_eq!(site.get("/v2/a/tags/list").json()["tags"], json!([]));
    refused(&site.ask("DELETE", "/v2/a/manifests/v2", &[], b""), 404, "MANIFEST_UNKNOWN");
    refused(&site.ask("DELETE", "/v2/nobody/manifests/v2", &[], b""), 404, "NAME_UNKNOWN");
}

#[test]
fn referrers_are_listed_filtered_and_gone_with_their_manifests() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let subject = site.push_image("a", "v1", &[b"1"]);
    let about = sha256(&subject);
    let list = |query: &str| site.get(&format!("/v2/a/referrers/{about}{query}"));
    let none = list("");
    assert_eq!((none.status, none.header("content-type")), (200, Some(INDEX)));
    assert_eq!(none.json()["manifests"], json!([]));
    let mut digests = Vec::new();
    for (kind, note) in [("application/vnd.x+json", "1"), ("application/vnd.y", "2")] {
        let mut document: Value = serde_json::from_slice(&image(&site.push("a", b"{}"), std::iter::empty())).unwrap();
        document["subject"] = json!({"mediaType": IMAGE, "digest": about, "size": subject.len()});
        document["artifactType"] = json!(kind);
        document["annotations"] = json!({"note": note});
        let manifest = document.to_string().into_bytes();
        let put = site.put_manifest("a", &sha256(&manifest), &manifest);
        assert_eq!((put.status, put.header("oci-subject")), (201, Some(about.as_str())));
        digests.push(sha256(&manifest));
    }
    assert_eq!(list("").json()["manifests"].as_array().unwrap().len(), 2);
    let filtered = list("?artifactType=application/vnd.x+json");
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    let found = &filtered.json()["manifests"][0];
    assert_eq!(found["digest"], json!(digests[0]));
    assert_eq!(
        (&found["artifactType"], &found["annotations"]),
        (&json!("application/vnd.x+json"), &json!({"note": "1"}))
    );
    assert_eq!(site.ask("DELETE", &format!("/v2/a/manifests/{}", digests[0]), &[], b"").status, 202);
    assert_eq!(list("").json()["manifests"].as_array().unwrap().len(), 1);
    refused(&site.get("/v2/a/referrers/nonsense"), 400, "DIGEST_INVALID");
    assert_eq!(site.get(&format!("/v2/nobody/referrers/{about}")).status, 200);
}

#[test]
fn a_compare_and_swap_holds_for_each_tag_that_a_push_by_digest_names() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let [one, two] = ["v1", "other"].map(|tag| site.push_image("a", tag, &[tag.as_bytes()]));
    let put = |query: &str, header: &str, value: &str| {
        let path = format!("/v2/a/manifests/{}{query}", sha256(&two));
        site.ask("PUT", &path, &[("Content-Type", IMAGE), (header, value)], &two)
    };
    let (of_one, of_two) = (format!("\"{}\"", sha256(&one)), format!("\"{}\"", sha256(&two)));
    for (query, header, value) in [
        ("?tag=v1", "If-None-Match", "*"),
        ("?tag=new&tag=v1", "If-None-Match", "*"),
        ("?tag=v1", "If-Match", of_two.as_str()),
        ("?tag=new", "If-Match", "*"),
        ("?tag=v1&tag=other", "If-Match", of_one.as_str()),
    ] {
        refused(&put(query, header, value), 412, "DENIED");
    }
    assert_eq!(site.get("/v2/a/manifests/v1").body, one);
    assert_eq!(site.get("/v2/a/manifests/new").status, 404);
    assert_eq!(put("?tag=new", "If-None-Match", "*").status, 201);
    assert_eq!(put("?tag=v1", "If-Match", &of_one).status, 201);
    for tag in ["v1", "new"] {
        assert_eq!(site.get(&format!("/v2/a/manifests/{tag}")).body, two);
    }
}

#[test]
fn a_manifest_that_an_index_names_can_be_deleted_and_the_index_stays() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let child = sha256(&site.push_image("a", "v1", &[b"1"]));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": IMAGE, "digest": child, "size": 1}]});
    let index = index.to_string().into_bytes();
    assert_eq!(site.ask("PUT", "/v2/a/manifests/all", &[("Content-Type", INDEX)], &index).status, 201);
    let path = format!("/v2/a/manifests/{child}");
    assert_eq!(site.ask("DELETE", &path, &[], b"").status, 202);
    refused(&site.get(&path), 404, "MANIFEST_UNKNOWN");
    assert_eq!(site.get("/v2/a/manifests/all").body, index);
}

#[test]
fn a_compare_and_swap_that_cannot_be_read_or_has_several_lines_holds_all_the_same() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let one = site.push_image("a", "v1", &[b"1"]);
    let two = image(&site.push("a", b"{}"), [site.push("a", b"2")].into_iter());
    let (of_one, of_two) = (format!("\"{}\"", sha256(&one)), format!("\"{}\"", sha256(&two)));
    let put = |conditions: &[(&str, &str)]| {
        site.ask("PUT", "/v2/a/manifests/v1", &[conditions, &[("Content-Type", IMAGE)]].concat(), &two)
    };
    for conditions in [
        &[("If-Match", "\u{e9}")][..],
        &[("If-None-Match", of_two.as_str()), ("If-None-Match", "*")],
        &[("If-None-Match", "\u{e9}"), ("If-None-Match", of_one.as_str())],
    ] {
        refused(&put(conditions), 412, "DENIED");
    }
    assert_eq!(site.get("/v2/a/manifests/v1").body, one);
    assert_eq!(put(&[("If-Match", of_two.as_str()), ("If-Match", of_one.as_str())]).status, 201);
}
