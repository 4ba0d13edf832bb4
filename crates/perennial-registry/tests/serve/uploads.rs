//! Uploads: whole, in chunks, resumed, cancelled, and everything that can be wrong with them.

use super::site::{Answer, Site, noise, refused, sha256, wait_until};
use std::io::Write as _;

#[test]
fn a_blob_is_uploaded_in_chunks_that_are_in_order() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(10_000);
    let path = site.begin("a");
    let status = site.get(&path);
    assert_eq!((status.status, status.header("range")), (204, Some("0-0")));
    let first = site.ask("PATCH", &path, &[("Content-Range", "0-3999")], &content[..4000]);
    assert_eq!((first.status, first.header("range")), (202, Some("0-3999")));
    for wrong in ["0-3999", "4001-8000", "3999-7998"] {
        let answer = site.ask("PATCH", &path, &[("Content-Range", wrong)], &content[..4000]);
        refused(&answer, 416, "BLOB_UPLOAD_INVALID");
        assert_eq!(answer.header("range"), Some("0-3999"), "it says where the upload stands");
    }
    assert_eq!(site.get(&path).header("range"), Some("0-3999"));
    // Without a range: what comes is appended.
    let second = site.send(
        "PATCH",
        &path,
        &[("Transfer-Encoding", "chunked"), ("Connection", "close")],
        &[b"fa0\r\n", &content[4000..8000], b"\r\n0\r\n\r\n"].concat(),
    );
    assert_eq!(second.unwrap().header("range"), Some("0-7999"));
    let digest = sha256(&content);
    let close = format!("{path}?digest={digest}");
    let wrong = site.ask("PUT", &close, &[("Content-Range", "7000-8999")], &content[7000..9000]);
    refused(&wrong, 416, "BLOB_UPLOAD_INVALID");
    let closed = site.ask("PUT", &close, &[("Content-Range", "8000-9999")], &content[8000..]);
    assert_eq!((closed.status, closed.header("location")), (201, Some(format!("/v2/a/blobs/{digest}").as_str())));
    assert_eq!(site.get(&format!("/v2/a/blobs/{digest}")).body, content);
    refused(&site.get(&path), 404, "BLOB_UPLOAD_UNKNOWN");
    assert!(site.files("uploads").is_empty());
}

#[test]
fn an_upload_goes_on_after_a_restart_where_it_stood() {
    let storage = tempfile::tempdir().unwrap();
    let content = noise(1_500_000);
    let path = {
        let site = Site::new(storage.path());
        let path = site.begin("a");
        assert_eq!(site.ask("PATCH", &path, &[], &content[..700_000]).status, 202);
        path
    };
    let digest = sha256(&content);
    {
        let site = Site::new(storage.path());
        assert_eq!(site.get(&path).header("range"), Some("0-699999"));
        refused(&site.get(&path.replace("/v2/a/", "/v2/b/")), 404, "BLOB_UPLOAD_UNKNOWN");
        assert_eq!(
            site.ask("PATCH", &path, &[("Content-Range", "700000-799999")], &content[700_000..800_000]).status,
            202
        );
    }
    let site = Site::new(storage.path());
    let closed = site.ask("PUT", &format!("{path}?digest={digest}"), &[], &content[800_000..]);
    assert_eq!(closed.status, 201, "{}", closed.text());
    assert_eq!(site.get(&format!("/v2/a/blobs/{digest}")).body, content);
}

#[test]
fn what_came_before_a_connection_broke_is_kept() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(900_000);
    let path = site.begin("a");
    let mut broken = site.open("PATCH", &path, &[("Content-Length", "900000")]).unwrap();
    broken.write_all(&content[..600_000]).unwrap();
    drop(broken);
    let mut stands = 0;
    wait_until("what has come", || {
        let range = site.get(&path).header("range").unwrap().to_owned();
        stands = range[2..].parse::<usize>().unwrap() + 1;
        stands == 600_000
    });
    let digest = sha256(&content);
    assert_eq!(site.ask("PUT", &format!("{path}?digest={digest}"), &[], &content[stands..]).status, 201);
}

#[test]
fn a_cancelled_upload_is_gone() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let path = site.begin("a");
    assert_eq!(site.ask("PATCH", &path, &[], b"abc").status, 202);
    assert_eq!(site.ask("DELETE", &path, &[], b"").status, 204);
    refused(&site.ask("PATCH", &path, &[], b"abc"), 404, "BLOB_UPLOAD_UNKNOWN");
    refused(&site.ask("DELETE", &path, &[], b""), 404, "BLOB_UPLOAD_UNKNOWN");
    assert!(site.files("uploads").is_empty());
}

#[test]
fn bad_uploads_are_refused_by_their_codes_and_leave_nothing() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let digest = sha256(b"right");
    let post =
        |digest: &str, body: &[u8]| site.ask("POST", &format!("/v2/a/blobs/uploads/?digest={digest}"), &[], body);
    refused(&post(&digest, b"wrong"), 400, "DIGEST_INVALID");
    refused(&post("sha256:xyz", b"right"), 400, "DIGEST_INVALID");
    refused(&post("md5:abc", b"right"), 400, "DIGEST_INVALID");
    refused(&site.ask("POST", "/v2/../blobs/uploads/", &[], b""), 400, "NAME_INVALID");
    let path = site.begin("a");
    refused(&site.ask("PUT", &path, &[], b"right"), 400, "DIGEST_INVALID");
    refused(&site.ask("PATCH", &path, &[("Content-Range", "bytes 0-4/5")], b"right"), 400, "BLOB_UPLOAD_INVALID");
    refused(&site.ask("PATCH", &path, &[("Content-Range", "0-5")], b"right"), 400, "SIZE_INVALID");
    // The range says more than comes, and no length is announced.
    let chunked = [("Transfer-Encoding", "chunked"), ("Connection", "close"), ("Content-Range", "0-9")];
    let short = site.send("PATCH", &path, &chunked, b"5\r\nright\r\n0\r\n\r\n").unwrap();
    refused(&short, 400, "SIZE_INVALID");
    assert_eq!(site.get(&path).header("range"), Some("0-0"), "nothing of it is kept");
    let closed = site.ask("PUT", &format!("{path}?digest={digest}"), &[], b"wrong");
    refused(&closed, 400, "DIGEST_INVALID");
    refused(&site.get(&path), 404, "BLOB_UPLOAD_UNKNOWN");
    let nowhere = "/v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000";
    refused(&site.ask("PATCH", nowhere, &[], b"x"), 404, "BLOB_UPLOAD_UNKNOWN");
    assert!(site.files("uploads").is_empty(), "{:?}", site.files("uploads"));
    assert!(site.files("blobs").is_empty());
}

#[test]
fn a_body_that_is_cut_off_never_becomes_a_blob() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let digest = sha256(b"right");
    let path = format!("/v2/a/blobs/uploads/?digest={digest}");
    let mut broken = site.open("POST", &path, &[("Content-Length", "6")]).unwrap();
    broken.write_all(b"right").unwrap();
    broken.shutdown(std::net::Shutdown::Write).unwrap();
    // The answer may be an error or none; it is no success.
    let answer = Answer::read(broken, "POST");
    assert!(answer.as_ref().is_err() || answer.is_ok_and(|answer| answer.status == 400));
    wait_until("the end of the upload", || site.files("uploads").is_empty());
    refused(&site.get(&format!("/v2/a/blobs/{digest}")), 404, "BLOB_UNKNOWN");
}

#[test]
fn two_uploads_of_one_blob_at_once_both_succeed() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(400_000);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (site, content) = (&site, &content);
            scope.spawn(move || site.push(&format!("a{}", number % 3), content));
        }
    });
    assert_eq!(site.files("blobs").len(), 1);
    for name in ["a0", "a1", "a2"] {
        assert_eq!(site.get(&format!("/v2/{name}/blobs/{}", sha256(&content))).body, content);
    }
}

#[test]
fn a_client_that_sends_everything_before_it_reads_gets_the_refusal() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let (path, content) = (site.begin("a"), noise(20_000_000));
    let answer = site.ask("PATCH", &path, &[("Content-Range", "5-20000004")], &content);
    refused(&answer, 416, "BLOB_UPLOAD_INVALID");
    assert_eq!(answer.header("location"), Some(path.as_str()), "and learns where to go on");
    let unknown = path.replace("/a/", "/b/");
    refused(&site.ask("PATCH", &unknown, &[], &content), 404, "BLOB_UPLOAD_UNKNOWN");
    // On a connection that is kept, the next request is served.
    let length = content.len().to_string();
    let mut stream = site.open("PATCH", &unknown, &[("Content-Length", &length)]).unwrap();
    stream.write_all(&content).unwrap();
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answers = Answer::read(stream, "PATCH").unwrap();
    assert!(answers.status == 404 && answers.text().contains("HTTP/1.1 200 OK"), "{}", answers.text());
}

/// Changes the file of an upload behind the registry's back.
fn behind(site: &Site, path: &str, change: impl Fn(&std::fs::File)) {
    let file = site.storage.join("uploads").join(path.rsplit('/').next().unwrap());
    change(&std::fs::OpenOptions::new().write(true).open(file).unwrap());
}

#[test]
fn an_upload_never_stands_beyond_what_the_disk_has() {
    let storage = tempfile::tempdir().unwrap();
    let content = noise(900_000);
    let digest = sha256(&content);
    // As a power cut leaves it, and as nothing should; with the sum in memory, and without.
    for restarts in [false, true] {
        let mut site = Site::new(storage.path());
        let path = site.begin("a");
        assert_eq!(site.ask("PATCH", &path, &[], &content[..700_000]).status, 202);
        behind(&site, &path, |file| file.set_len(500_000).unwrap());
        if restarts {
            drop(site);
            site = Site::new(storage.path());
        }
        assert_eq!(site.get(&path).header("range"), Some("0-499999"));
        let beyond = site.ask("PATCH", &path, &[("Content-Range", "700000-899999")], &content[700_000..]);
        refused(&beyond, 416, "BLOB_UPLOAD_INVALID");
        assert_eq!(beyond.header("range"), Some("0-499999"), "it says from where to go on");
        let on = site.ask("PATCH", &path, &[("Content-Range", "500000-899999")], &content[500_000..]);
        assert_eq!((on.status, on.header("range")), (202, Some("0-899999")));
        assert_eq!(site.ask("PUT", &format!("{path}?digest={digest}"), &[], b"").status, 201);
        assert!(site.get(&format!("/v2/a/blobs/{digest}")).body == content);
        assert_eq!(site.ask("DELETE", &format!("/v2/a/blobs/{digest}"), &[], b"").status, 202);
    }
}

#[test]
fn an_upload_that_lost_bytes_never_becomes_a_blob_unless_they_come_again() {
    let storage = tempfile::tempdir().unwrap();
    let (content, other) = (noise(900_000), noise(900_001));
    // Sent without ranges, so that the client does not notice.
    let site = Site::new(storage.path());
    let (whole, cut, gone) = (site.begin("a"), site.begin("a"), site.begin("a"));
    assert_eq!(site.ask("PATCH", &whole, &[], &content).status, 202);
    assert_eq!(site.ask("PATCH", &cut, &[], &content[..700_000]).status, 202);
    assert_eq!(site.ask("PATCH", &gone, &[], &content[..700_000]).status, 202);
    behind(&site, &whole, |file| file.set_len(899_999).unwrap());
    behind(&site, &cut, |file| file.set_len(500_000).unwrap());
    std::fs::remove_file(site.storage.join("uploads").join(gone.rsplit('/').next().unwrap())).unwrap();
    let digest = sha256(&content);
    let close = |path: &str, rest: &[u8]| site.ask("PUT", &format!("{path}?digest={digest}"), &[], rest);
    refused(&close(&whole, b""), 400, "DIGEST_INVALID");
    refused(&close(&cut, &content[700_000..]), 400, "DIGEST_INVALID");
    refused(&site.get(&gone), 404, "BLOB_UPLOAD_UNKNOWN");
    refused(&close(&gone, &content[700_000..]), 404, "BLOB_UPLOAD_UNKNOWN");
    drop(site);
    // A file system that knew the length before the bytes has zeros in their place after a power cut.
    let site = Site::new(storage.path());
    let path = site.begin("a");
    assert_eq!(site.ask("PATCH", &path, &[], &other[..700_000]).status, 202);
    behind(&site, &path, |file| {
        file.set_len(400_000).unwrap();
        file.set_len(700_000).unwrap();
    });
    drop(site);
    let site = Site::new(storage.path());
    let closed = site.ask("PUT", &format!("{path}?digest={}", sha256(&other)), &[], &other[700_000..]);
    refused(&closed, 400, "DIGEST_INVALID");
    assert!(site.files("uploads").is_empty(), "{:?}", site.files("uploads"));
    assert!(site.files("blobs").is_empty());
}

#[test]
fn a_place_of_a_chunk_that_cannot_be_read_is_not_taken_for_none() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let path = site.begin("a");
    for ranges in [&["\u{e9}"][..], &["0-4", "5-9"], &["0-4", "0-4"]] {
        let headers: Vec<(&str, &str)> = ranges.iter().map(|range| ("Content-Range", *range)).collect();
        refused(&site.ask("PATCH", &path, &headers, b"right"), 400, "BLOB_UPLOAD_INVALID");
        let close = format!("{path}?digest={}", sha256(b"right"));
        refused(&site.ask("PUT", &close, &headers, b"right"), 400, "BLOB_UPLOAD_INVALID");
    }
    assert_eq!(site.get(&path).header("range"), Some("0-0"), "nothing was taken");
}

#[test]
fn a_client_that_waits_to_be_told_to_send_is_refused_without_its_body() {
    let storage = tempfile::tempdir().unwrap();
    let patience = std::time::Duration::from_secs(600);
    let site = Site::start(perennial_registry::serve::Options { patience, ..super::site::options(storage.path()) });
    let path = site.begin("a");
    let headers = [("Content-Length", "5"), ("Content-Range", "5-9"), ("Expect", "100-continue")];
    // It ends long before the patience does, as what comes next on the connection would be taken for the body.
    let refusal = Answer::read(site.open("PATCH", &path, &headers).unwrap(), "PATCH").unwrap();
    refused(&refusal, 416, "BLOB_UPLOAD_INVALID");
    assert_eq!(refusal.header("connection"), Some("close"));
    let headers = [("Content-Length", "5"), ("Expect", "100-continue"), ("Connection", "close")];
    let mut stream = site.open("PATCH", &path, &headers).unwrap();
    stream.write_all(b"right").unwrap();
    let told = Answer::read(stream, "PATCH").unwrap();
    assert!(told.status == 100 && told.text().starts_with("HTTP/1.1 202"), "{} {}", told.status, told.text());
}

#[test]
fn a_request_with_two_lengths_hides_no_other_request() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let path = site.begin("a");
    let hidden = format!("DELETE {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    let chunked = ("Transfer-Encoding", "chunked");
    for headers in [
        &[("Content-Length", "5"), chunked][..],
        &[chunked, ("Content-Length", "5")],
        &[("Content-Length", "0"), ("Content-Length", "5")],
        &[("Transfer-Encoding", "chunked, identity")],
        &[("Transfer-Encoding", "identity")],
    ] {
        let body = [b"0\r\n\r\n", hidden.as_bytes()].concat();
        let answer = site.send("POST", "/v2/b/blobs/uploads/", headers, &body);
        assert!(answer.as_ref().is_ok_and(|answer| !answer.text().contains("HTTP/1.1")), "{headers:?}: {answer:?}");
        assert_eq!(site.get(&path).status, 204, "{headers:?}");
    }
}
