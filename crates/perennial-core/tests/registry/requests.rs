//! Names, paths, ranges, preconditions and manifests.

use perennial_core::registry::fault::{Code, Fault};
use perennial_core::registry::manifest::{
    IMAGE, INDEX, Link, REFERRERS_BYTES_MAX, Referrer, ReferrersRead, read, referrers_page,
};
use perennial_core::registry::name::{Algorithm, BlobDigest, Reference, Repository, Tag, UploadId};
use perennial_core::registry::page::{Page, TAGS_MAX};
use perennial_core::registry::precondition::{Precondition, is_range_meant};
use perennial_core::registry::query::{Query, encode};
use perennial_core::registry::quota::Quota;
use perennial_core::registry::range::{ChunkRange, Part, chunk_bytes, requested, upload_range};
use perennial_core::registry::route::Route;
use serde_json::{Value, json};

fn digest(byte: u8) -> BlobDigest {
    BlobDigest::from_sum(Algorithm::Sha256, &[byte; 32]).unwrap()
}

fn name(text: &str) -> Repository {
    Repository::parse(text).unwrap()
}

#[test]
fn names_of_repositories_are_those_of_the_grammar() {
    for good in ["a", "0", "a/b/c", "a.b", "a_b", "a__b", "a-b", "a---b", "a1/b2.c3", "library/debian"] {
        assert_eq!(Repository::parse(good).unwrap().as_str(), good);
    }
    let long = format!("a/{}", "b".repeat(254));
    for bad in [
        "", "/", "a/", "/a", "a//b", "A", "a.", ".a", "a..b", "a___b", "a._b", "a-_b", "-a", "a-", "_a", "..",
        "a/../b", "a/./b", "a b", "a\0", "a%2fb", "ä", "a\\b", "a:b", "a@b", &long,
    ] {
        assert_eq!(Repository::parse(bad).unwrap_err().code, Code::NameInvalid, "{bad:?}");
    }
}

#[test]
fn tags_are_those_of_the_grammar() {
    for good in ["a", "_a", "1.2-3_4", "LATEST", &"a".repeat(128)] {
        assert!(Tag::parse(good).is_some(), "{good:?}");
    }
    for bad in ["", ".a", "-a", "a/b", "a:b", "a b", "ä", &"a".repeat(129)] {
        assert!(Tag::parse(bad).is_none(), "{bad:?}");
    }
}

#[test]
fn digests_have_a_known_algorithm_and_its_length_in_lower_case() {
    let (short, long) = ("ab".repeat(32), "ab".repeat(64));
    for good in [format!("sha256:{short}"), format!("sha512:{long}")] {
        let parsed = BlobDigest::parse(&good).unwrap();
        assert_eq!(parsed.as_str(), good);
        assert!(parsed.path().starts_with(&good[..6]) && parsed.path().contains("/ab/"), "{}", parsed.path());
    }
    for bad in [
        String::new(),
        short.clone(),
        format!("sha256:{long}"),
        format!("sha512:{short}"),
        format!("md5:{short}"),
        format!("sha256:{}", short.to_uppercase()),
        format!("sha256:{}", "/.".repeat(32)),
        format!("sha256:sha256:{}", &short[7..]),
    ] {
        assert_eq!(BlobDigest::parse(&bad).unwrap_err().code, Code::DigestInvalid, "{bad:?}");
    }
}

#[test]
fn names_of_uploads_are_random_uuids() {
    let id = UploadId::from_random([0xff; 16]);
    assert_eq!(id.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_eq!(UploadId::parse(id.as_str()), Some(id));
    for bad in ["", "..", "ffffffff-ffff-4fff-bfff-fffffffffff", "ffffffff/ffff-4fff-bfff-ffffffffffff"] {
        assert_eq!(UploadId::parse(bad), None);
    }
}

#[test]
fn paths_are_read_from_their_end() {
    let (sha, id) = (digest(7), "01234567-89ab-4def-8123-456789abcdef");
    let blob = Route::Blob(name("a/blobs/b"), sha.clone());
    for (path, route) in [
        ("/v2/".to_owned(), Some(Route::Base)),
        ("/v2".to_owned(), Some(Route::Base)),
        (format!("/v2/a/blobs/b/blobs/{sha}"), Some(blob.clone())),
        (format!("/v2/a/blobs/b/blobs/{}", sha.as_str().replace(':', "%3A")), Some(blob)),
        ("/v2/a/blobs/uploads/".to_owned(), Some(Route::Uploads(name("a")))),
        ("/v2/a/blobs/uploads".to_owned(), Some(Route::Uploads(name("a")))),
        (format!("/v2/a/blobs/uploads/{id}"), Some(Route::Upload(name("a"), UploadId::parse(id).unwrap()))),
        ("/v2/a/manifests/v1".to_owned(), Some(Route::Manifest(name("a"), Reference::Tag(Tag::parse("v1").unwrap())))),
        (format!("/v2/a/manifests/{sha}"), Some(Route::Manifest(name("a"), Reference::Digest(sha.clone())))),
        (
            "/v2/a/blobs/uploads/manifests/v1".to_owned(),
            Some(Route::Manifest(name("a/blobs/uploads"), Reference::Tag(Tag::parse("v1").unwrap()))),
        ),
        ("/v2/a/tags/list".to_owned(), Some(Route::Tags(name("a")))),
        (format!("/v2/a/referrers/{sha}"), Some(Route::Referrers(name("a"), sha.clone()))),
        ("/v1/".to_owned(), None),
        ("/v2x/a/tags/list".to_owned(), None),
        ("/v2/a/tags/other".to_owned(), None),
        ("/".to_owned(), None),
    ] {
        assert_eq!(Route::parse(&path), Ok(route), "{path}");
    }
}

#[test]
fn what_is_malformed_in_a_path_is_named_by_its_code() {
    let sha = digest(7);
    for (path, code) in [
        ("/v2/../tags/list".to_owned(), Code::NameInvalid),
        ("/v2/%2e%2e/tags/list".to_owned(), Code::NameInvalid),
        ("/v2/a%2f..%2fb/tags/list".to_owned(), Code::NameInvalid),
        ("/v2/a%zz/tags/list".to_owned(), Code::NameInvalid),
        ("/v2/%ff/tags/list".to_owned(), Code::NameInvalid),
        ("/v2/A/tags/list".to_owned(), Code::NameInvalid),
        (format!("/v2//blobs/{sha}"), Code::NameInvalid),
        ("/v2/a/blobs/sha256:../../x".to_owned(), Code::Unsupported),
        ("/v2/a/blobs/sha256:..".to_owned(), Code::DigestInvalid),
        ("/v2/a/referrers/x".to_owned(), Code::DigestInvalid),
        ("/v2/a/manifests/sha256:x".to_owned(), Code::DigestInvalid),
        ("/v2/a/manifests/.x".to_owned(), Code::ManifestUnknown),
        ("/v2/a/blobs/uploads/x".to_owned(), Code::BlobUploadUnknown),
        ("/v2/a/blobs/uploads/..%2f..%2fx".to_owned(), Code::Unsupported),
    ] {
        match Route::parse(&path) {
            Err(fault) => assert_eq!(fault.code, code, "{path}"),
            // What has no meaning at all is simply not there.
            Ok(route) => assert_eq!((route, code), (None, Code::Unsupported), "{path}"),
        }
    }
}

#[test]
fn every_code_has_the_status_of_the_table_and_its_own_name() {
    let codes: Vec<(String, u16)> =
        Code::ALL.iter().map(|code| (json!(code).as_str().unwrap().to_owned(), code.status())).collect();
    let table = [
        ("BLOB_UNKNOWN", 404),
        ("BLOB_UPLOAD_INVALID", 400),
        ("BLOB_UPLOAD_UNKNOWN", 404),
        ("DIGEST_INVALID", 400),
        ("MANIFEST_BLOB_UNKNOWN", 400),
        ("MANIFEST_INVALID", 400),
        ("MANIFEST_UNKNOWN", 404),
        ("NAME_INVALID", 400),
        ("NAME_UNKNOWN", 404),
        ("SIZE_INVALID", 400),
        ("UNAUTHORIZED", 401),
        ("DENIED", 403),
        ("UNSUPPORTED", 405),
        ("TOOMANYREQUESTS", 429),
    ];
    assert_eq!(codes, table.map(|(code, status)| (code.to_owned(), status)));
    let body: Value = serde_json::from_str(&Fault::new(Code::Denied, "no \"way\"").body()).unwrap();
    assert_eq!(body, json!({"errors": [{"code": "DENIED", "message": "no \"way\""}]}));
}

#[test]
fn parameters_are_decoded_and_a_plus_in_a_media_type_stays() {
    let query = Query::parse("artifactType=application/vnd.x.v1+json&n=3&tag=a&tag=b%2Bc&bad=%f&flag&x=a+%20b");
    assert_eq!(query.get("artifactType"), Some("application/vnd.x.v1+json"));
    assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b+c"]);
    assert_eq!((query.get("bad"), query.get("flag"), query.get("none")), (None, Some(""), None));
    assert_eq!(query.get("x"), Some("a  b"));
    assert_eq!(encode("a+b c/d:é"), "a%2Bb%20c/d:%C3%A9");
}

#[test]
fn ranges_are_those_of_the_rfc() {
    let part = |first, last| Part::Some { first, last };
    for (header, bytes, expected) in [
        (None, 10, Part::Whole),
        (Some("bytes=0-"), 10, part(0, 9)),
        (Some("bytes=0-0"), 10, part(0, 0)),
        (Some("bytes=3-5"), 10, part(3, 5)),
        (Some("bytes=3-99"), 10, part(3, 9)),
        (Some("bytes=9-"), 10, part(9, 9)),
        (Some("bytes=10-"), 10, Part::Beyond),
        (Some("bytes=10-12"), 10, Part::Beyond),
        (Some("bytes=0-"), 0, Part::Beyond),
        (Some("bytes=-3"), 10, part(7, 9)),
        (Some("bytes=-30"), 10, part(0, 9)),
        (Some("bytes=-0"), 10, Part::Beyond),
        (Some("bytes=5-3"), 10, Part::Whole),
        (Some("bytes=0-1,4-5"), 10, Part::Whole),
        (Some("bytes=x-5"), 10, Part::Whole),
        (Some("bytes=-"), 10, Part::Whole),
        (Some("bytes=+1-5"), 10, Part::Whole),
        (Some("bytes=0-99999999999999999999999"), 10, Part::Whole),
        (Some("items=0-5"), 10, Part::Whole),
    ] {
        assert_eq!(requested(header, bytes), expected, "{header:?} of {bytes}");
    }
}

#[test]
fn a_chunk_goes_where_the_upload_stands_or_nowhere() {
    let range = |text| ChunkRange::parse(text).ok();
    assert_eq!(chunk_bytes(0, range("0-9"), Some(10)), Ok(Some(10)));
    assert_eq!(chunk_bytes(10, range("10-10"), None), Ok(Some(1)));
    assert_eq!(chunk_bytes(10, None, Some(7)), Ok(Some(7)));
    assert_eq!(chunk_bytes(10, None, None), Ok(None));
    for (stored, text, length, code, status) in [
        (10, "0-9", Some(10), Code::BlobUploadInvalid, 416),
        (10, "11-12", Some(2), Code::BlobUploadInvalid, 416),
        (10, "10-12", Some(2), Code::SizeInvalid, 400),
    ] {
        let fault = chunk_bytes(stored, range(text), length).unwrap_err();
        assert_eq!((fault.code, fault.status), (code, status), "{text} at {stored}");
    }
    for bad in ["", "-", "0-", "-9", "9-0", "bytes 0-9/10", "0-9/10", "a-b", "0-18446744073709551615", "+0-9"] {
        assert_eq!(ChunkRange::parse(bad).unwrap_err().code, Code::BlobUploadInvalid, "{bad:?}");
    }
    assert_eq!([upload_range(0), upload_range(1), upload_range(10)], ["0-0", "0-0", "0-9"]);
}

#[test]
fn preconditions_make_a_push_a_compare_and_swap() {
    let (mine, other) = (digest(1), digest(2));
    let quoted = format!("\"{mine}\"");
    let list = format!("\"{other}\", W/\"{mine}\"");
    for (if_match, if_none_match, present, holds) in [
        (None, None, None, true),
        (None, None, Some(&mine), true),
        (Some(quoted.as_str()), None, Some(&mine), true),
        (Some(mine.as_str()), None, Some(&mine), true),
        (Some(list.as_str()), None, Some(&mine), true),
        (Some(quoted.as_str()), None, Some(&other), false),
        (Some(quoted.as_str()), None, None, false),
        (Some("*"), None, Some(&other), true),
        (Some("*"), None, None, false),
        (None, Some("*"), None, true),
        (None, Some("*"), Some(&mine), false),
        (None, Some(quoted.as_str()), Some(&mine), false),
        (None, Some(quoted.as_str()), Some(&other), true),
    ] {
        let checked = Precondition::new(if_match, if_none_match).check(present);
        assert_eq!(checked.map_err(|fault| fault.status), if holds { Ok(()) } else { Err(412) }, "{if_match:?}");
    }
}

#[test]
fn a_range_is_meant_for_what_the_client_has_a_part_of() {
    let (mine, other) = (digest(1), digest(2));
    for (if_range, is_meant) in [
        (None, true),
        (Some(format!("\"{mine}\"")), true),
        (Some(format!(" \"{mine}\" ")), true),
        (Some(format!("\"{other}\"")), false),
        (Some(format!("W/\"{mine}\"")), false),
        (Some("Sun, 29 Nov 2026 00:00:00 GMT".to_owned()), false),
    ] {
        assert_eq!(is_range_meant(if_range.as_deref(), &mine), is_meant, "{if_range:?}");
    }
}

#[test]
fn a_page_of_tags_is_bounded_and_linked() {
    let page = |text: &str| Page::parse(&Query::parse(text));
    assert_eq!(page("").unwrap(), Page { count_max: TAGS_MAX, after: None });
    assert_eq!(page("n=0").unwrap().count_max, 0);
    assert_eq!(page("n=99999999").unwrap().count_max, TAGS_MAX);
    assert_eq!(page("n=2&last=b").unwrap().after.as_deref(), Some("b"));
    assert_eq!(page("n=2").unwrap().next(&name("a/b"), "v1"), "</v2/a/b/tags/list?n=2&last=v1>; rel=\"next\"");
    for bad in ["n=-1", "n=x", "n=99999999999999999999999"] {
        assert_eq!(page(bad).unwrap_err().status, 400);
    }
}

#[test]
fn a_quota_bounds_what_a_repository_holds() {
    assert!(Quota(None).check(u64::MAX, u64::MAX).is_ok());
    assert!(Quota(Some(10)).check(4, 6).is_ok());
    assert!(Quota(Some(10)).check(40, 0).is_ok(), "lowered since");
    assert!(Quota(Some(10)).check(40, 1).is_err());
    assert_eq!(Quota(Some(10)).check(4, 7).unwrap_err().code, Code::Denied);
}

fn parse(content_type: Option<&str>, document: &Value) -> Result<perennial_core::registry::manifest::Facts, Fault> {
    read(document.to_string().as_bytes(), content_type, digest(0))
}

fn descriptor(media_type: &str, byte: u8) -> Value {
    json!({"mediaType": media_type, "digest": digest(byte).as_str(), "size": 3})
}

#[test]
fn a_manifest_is_read_for_what_it_needs_and_is_about() {
    let image = json!({
        "schemaVersion": 2, "mediaType": IMAGE, "config": descriptor("application/vnd.example", 1),
        "layers": [
            descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 2),
            descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", 3),
            descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", 4),
            descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", 2),
        ],
        "subject": descriptor(IMAGE, 9), "annotations": {"a": "b"}, "unknown": [1, 2],
    });
    let facts = parse(Some(&format!("{IMAGE}; charset=utf-8")), &image).unwrap();
    assert_eq!(facts.media_type, IMAGE);
    let links: Vec<(BlobDigest, Link)> = facts.links.into_iter().collect();
    let expected = [(1, Link::Blob), (2, Link::Blob), (3, Link::Foreign), (4, Link::Foreign)];
    assert_eq!(links, expected.map(|(byte, link)| (digest(byte), link)));
    assert_eq!((facts.subject, facts.artifact_type.as_deref()), (Some(digest(9)), Some("application/vnd.example")));
    assert_eq!(facts.annotations, Some(json!({"a": "b"})));
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(IMAGE, 5)]});
    let facts = parse(Some(INDEX), &index).unwrap();
    assert_eq!(facts.links.into_iter().collect::<Vec<_>>(), [(digest(5), Link::Manifest)]);
    assert_eq!(facts.artifact_type, None);
    let artifact = json!({"mediaType": "application/vnd.new", "artifactType": "x", "blobs": [descriptor("y", 6)]});
    let facts = parse(None, &artifact).unwrap();
    assert_eq!((facts.media_type.as_str(), facts.artifact_type.as_deref()), ("application/vnd.new", Some("x")));
    assert_eq!(facts.links.into_iter().collect::<Vec<_>>(), [(digest(6), Link::Blob)]);
}

#[test]
fn a_malformed_manifest_is_refused() {
    let config = descriptor("c", 1);
    let bad_digest = json!({"mediaType": "c", "digest": "sha256:../x", "size": 1});
    for (content_type, document, code) in [
        (Some(IMAGE), json!([]), Code::ManifestInvalid),
        (Some(IMAGE), json!({}), Code::ManifestInvalid),
        (None, json!({"schemaVersion": 2}), Code::ManifestInvalid),
        // What no header can say could not be sent back.
        (None, json!({"mediaType": "a/b\r\nX: y"}), Code::ManifestInvalid),
        (None, json!({"mediaType": "a/\u{e9}"}), Code::ManifestInvalid),
        (None, json!({"mediaType": ""}), Code::ManifestInvalid),
        (None, json!({"mediaType": format!("a/{}", "b".repeat(254))}), Code::ManifestInvalid),
        (Some("application/vnd.docker.distribution.manifest.v1+json"), json!({"name": "a"}), Code::ManifestInvalid),
        (Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), json!({}), Code::ManifestInvalid),
        (Some("application/json"), json!({"schemaVersion": 1, "history": []}), Code::ManifestInvalid),
        (Some("application/json"), json!({"fsLayers": [{"blobSum": "sha256:0"}]}), Code::ManifestInvalid),
        (Some(IMAGE), json!({"schemaVersion": 1, "config": config, "layers": []}), Code::ManifestInvalid),
        (Some(IMAGE), json!({"schemaVersion": 2, "layers": []}), Code::ManifestInvalid),
        (Some(IMAGE), json!({"schemaVersion": 2, "config": config}), Code::ManifestInvalid),
        (Some(INDEX), json!({"schemaVersion": 2}), Code::ManifestInvalid),
        (Some(INDEX), json!({"schemaVersion": 2, "manifests": [], "layers": []}), Code::ManifestInvalid),
        (Some(IMAGE), json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}), Code::ManifestInvalid),
        (Some(IMAGE), json!({"schemaVersion": 2, "config": bad_digest, "layers": []}), Code::DigestInvalid),
        (Some(INDEX), json!({"schemaVersion": 2, "manifests": [{"digest": "x", "size": -1}]}), Code::ManifestInvalid),
    ] {
        assert_eq!(parse(content_type, &document).unwrap_err().code, code, "{document}");
    }
    let cut = read(b"{\"schemaVersion\":2,", Some(IMAGE), digest(0)).unwrap_err();
    assert_eq!(cut.code, Code::ManifestInvalid);
}

#[test]
fn referrers_are_listed_in_parts_that_fit() {
    let referrer = |number: u8, annotation: String| Referrer {
        media_type: IMAGE.into(),
        digest: digest(number).to_string(),
        bytes: 7,
        artifact_type: Some("x".into()),
        annotations: Some(json!({"a": annotation}).to_string()),
    };
    let small = [referrer(1, "b".into())];
    let (index, more) = referrers_page(&small);
    let descriptor = json!({
        "mediaType": IMAGE, "digest": digest(1).as_str(), "size": 7, "artifactType": "x", "annotations": {"a": "b"},
    });
    let expected = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]});
    assert_eq!((serde_json::from_str::<Value>(&index).unwrap(), more), (expected, None));
    let large: Vec<Referrer> = (1..=3).map(|number| referrer(number, "b".repeat(REFERRERS_BYTES_MAX / 2))).collect();
    let (index, more) = referrers_page(&large);
    assert_eq!(more, Some(digest(1).as_str()));
    assert!(index.len() < REFERRERS_BYTES_MAX);
    let mut read = ReferrersRead::default();
    let goes_on: Vec<bool> = large.iter().map(|referrer| read.goes_on_after(referrer)).collect();
    assert_eq!(goes_on, [true, false, false], "the one that does not fit is read, and none after it");
}
