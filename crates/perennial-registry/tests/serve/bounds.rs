//! Bounds: slow clients, quotas, read-only, many at once, directories that are not a registry's.

use super::site::{Answer, Site, noise, options, refused, sha256, wait_until};
use perennial_core::registry::quota::Quota;
use perennial_core::registry::staged::UPLOADS_PER_REPOSITORY_MAX;
use perennial_registry::serve::{Options, ServeError, serve};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

#[test]
fn a_client_that_sends_nothing_more_is_let_go_of() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { patience: Duration::from_millis(300), ..options(storage.path()) });
    let path = site.begin("a");
    let mut slow = site.open("PATCH", &path, &[("Content-Length", "10")]).unwrap();
    slow.write_all(b"abc").unwrap();
    let answer = Answer::read(slow, "PATCH");
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 400));
    assert_eq!(site.get(&path).header("range"), Some("0-2"), "what came is kept");
}

#[test]
fn a_client_that_sends_a_little_now_and_then_is_let_go_of() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { patience: Duration::from_secs(1), ..options(storage.path()) });
    let path = site.begin("a");
    let mut slow = site.open("PATCH", &path, &[("Content-Length", "10000")]).unwrap();
    // Some fifty bytes in a second.
    wait_until("the end of the connection", || slow.write_all(b"x").is_err());
    let range = site.get(&path).header("range").unwrap().to_owned();
    let kept: usize = range.trim_start_matches("0-").parse().unwrap();
    assert!((1..500).contains(&kept), "what came is kept: {range}");
}

#[test]
fn where_an_upload_stands_is_told_while_it_goes_on() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { patience: Duration::from_secs(60), ..options(storage.path()) });
    let path = site.begin("a");
    let mut sending = site.open("PATCH", &path, &[("Content-Length", "3000000")]).unwrap();
    sending.write_all(&noise(2_000_000)).unwrap();
    wait_until("some of it", || site.get(&path).header("range").is_some_and(|range| range.len() > "0-99999".len()));
    refused(&site.get(&path.replace("/a/", "/b/")), 404, "BLOB_UPLOAD_UNKNOWN");
    drop(sending);
    wait_until("the rest", || site.get(&path).header("range") == Some("0-1999999"));
}

#[test]
fn large_manifests_wait_for_each_other_and_small_ones_do_not() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { patience: Duration::from_secs(20), ..options(storage.path()) });
    let config = site.push("a", b"{}");
    let small = super::site::image(&config, std::iter::empty());
    let mut large = small.clone();
    large.resize(20_000, b' ');
    let announce = |_| site.open("PUT", "/v2/a/manifests/v0", &[("Content-Length", "4194304")]).unwrap();
    let many: Vec<TcpStream> = (0..8).map(announce).collect();
    let connections = |count: &str| site.get("/metrics").text().contains(&format!("_connections {count}\n"));
    wait_until("all of them", || connections("9"));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| site.put_manifest("a", "large", &large).status);
        wait_until("one more", || connections("10"));
        assert_eq!(site.put_manifest("a", "small", &small).status, 201);
        assert!(!waiting.is_finished(), "memory is bounded");
        drop(many);
        assert_eq!(waiting.join().unwrap(), 201);
    });
}

#[test]
fn a_client_that_takes_nothing_more_is_let_go_of() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { patience: Duration::from_millis(300), ..options(storage.path()) });
    let digest = site.push("a", &noise(30_000_000));
    let mut slow = site.open("GET", &format!("/v2/a/blobs/{digest}"), &[]).unwrap();
    let streams = |count: &str| site.get("/metrics").text().contains(&format!("perennial_registry_streams {count}\n"));
    wait_until("the stream", || streams("1"));
    wait_until("its end", || streams("0"));
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).ok();
    assert!(rest.len() < 30_000_000);
}

#[test]
fn more_connections_than_allowed_wait_for_their_turn() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { connections_max: 2, ..options(storage.path()) });
    let mut kept: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(site.address).unwrap()).collect();
    // Both are served, so both have their turn.
    for stream in &mut kept {
        stream.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
    let mut waiting = site.open("GET", "/v2/", &[("Connection", "close")]).unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let kind = waiting.read(&mut [0]).unwrap_err().kind();
    assert_eq!(kind, std::io::ErrorKind::WouldBlock, "a third one is not answered");
    waiting.set_read_timeout(Some(super::site::LIMIT)).unwrap();
    kept.pop();
    assert_eq!(Answer::read(waiting, "GET").unwrap().status, 200);
}

#[test]
fn many_pulls_at_once_all_come_whole() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { connections_max: 300, ..options(storage.path()) });
    let content = noise(1_000_000);
    let path = format!("/v2/a/blobs/{}", site.push("a", &content));
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| assert!(site.get(&path).body == content));
        }
    });
}

#[test]
fn a_repository_holds_no_more_than_its_quota() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { quota: Quota(Some(10_000)), ..options(storage.path()) });
    let (first, second) = (noise(6000), noise(5000));
    let digest = site.push("a", &first);
    let post = |name: &str, content: &[u8]| {
        site.ask("POST", &format!("/v2/{name}/blobs/uploads/?digest={}", sha256(content)), &[], content)
    };
    refused(&post("a", &second), 403, "DENIED");
    // Without an announced length it is noticed when it is too much.
    let path = site.begin("a");
    let body = [b"1388\r\n".as_slice(), &second, b"\r\n0\r\n\r\n"].concat();
    let chunked = site.send("PATCH", &path, &[("Transfer-Encoding", "chunked"), ("Connection", "close")], &body);
    refused(&chunked.unwrap(), 403, "DENIED");
    assert_eq!(site.ask("DELETE", &path, &[], b"").status, 204);
    // What is there counts once, and another repository has a quota of its own.
    assert_eq!(post("a", &first).status, 201);
    assert_eq!(post("b", &second).status, 201);
    let mounted = site.ask("POST", &format!("/v2/b/blobs/uploads/?mount={digest}&from=a"), &[], b"");
    refused(&mounted, 403, "DENIED");
    refused(&site.get(&format!("/v2/b/blobs/{digest}")), 404, "BLOB_UNKNOWN");
    assert_eq!(site.ask("DELETE", &format!("/v2/a/blobs/{digest}"), &[], b"").status, 202);
    assert_eq!(post("a", &second).status, 201);
    assert!(site.files("uploads").is_empty());
}

#[test]
fn uploads_that_are_not_finished_count_against_the_quota() {
    let storage = tempfile::tempdir().unwrap();
    let small = Options { quota: Quota(Some(10_000)), ..options(storage.path()) };
    let site = Site::start(small.clone());
    let patch = |site: &Site, path: &str, bytes: usize| site.ask("PATCH", path, &[], &noise(bytes));
    let paths: Vec<String> = (0..4).map(|_| site.begin("a")).collect();
    assert_eq!(patch(&site, &paths[0], 6000).status, 202);
    refused(&patch(&site, &paths[1], 4001), 403, "DENIED");
    assert_eq!(patch(&site, &paths[1], 3000).status, 202);
    // Without an announced length too; what was refused takes nothing.
    for _ in 0..2 {
        let body = [b"3e9\r\n".as_slice(), &noise(1001), b"\r\n0\r\n\r\n"].concat();
        let headers = [("Transfer-Encoding", "chunked"), ("Connection", "close")];
        refused(&site.send("PATCH", &paths[2], &headers, &body).unwrap(), 403, "DENIED");
    }
    assert_eq!(patch(&site, &site.begin("b"), 9000).status, 202, "another repository has a quota of its own");
    drop(site);
    // After a restart as before.
    let site = Site::start(small);
    refused(&patch(&site, &paths[2], 1001), 403, "DENIED");
    assert_eq!(site.ask("DELETE", &paths[1], &[], b"").status, 204);
    assert_eq!(patch(&site, &paths[2], 4000).status, 202);
    let put = site.ask("PUT", &format!("{}?digest={}", paths[2], sha256(&noise(4000))), &[], b"");
    assert_eq!(put.status, 201, "{}", put.text());
    refused(&patch(&site, &paths[3], 1), 403, "DENIED");
    assert_eq!(site.ask("DELETE", &paths[0], &[], b"").status, 204);
    assert_eq!(patch(&site, &paths[3], 6000).status, 202);
}

#[test]
fn a_repository_has_only_so_many_uploads_that_are_not_finished() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let first = site.begin("a");
    for _ in 1..UPLOADS_PER_REPOSITORY_MAX {
        site.begin("a");
    }
    let more = || site.ask("POST", "/v2/a/blobs/uploads/", &[], b"");
    refused(&more(), 429, "TOOMANYREQUESTS");
    assert_eq!(site.files("uploads").len(), 2 * UPLOADS_PER_REPOSITORY_MAX);
    site.begin("b");
    assert_eq!(site.ask("DELETE", &first, &[], b"").status, 204);
    assert_eq!(more().status, 202);
}

#[test]
fn a_read_only_registry_answers_and_changes_nothing() {
    let storage = tempfile::tempdir().unwrap();
    let manifest = Site::new(storage.path()).push_image("a", "v1", &[b"1"]);
    let site = Site::start(Options { is_read_only: true, ..options(storage.path()) });
    assert_eq!(site.get("/v2/a/manifests/v1").body, manifest);
    assert_eq!(site.get(&format!("/v2/a/blobs/{}", sha256(b"1"))).body, b"1");
    for (method, path) in [
        ("POST", "/v2/a/blobs/uploads/".to_owned()),
        ("PUT", "/v2/a/manifests/v2".to_owned()),
        ("DELETE", "/v2/a/manifests/v1".to_owned()),
        ("DELETE", format!("/v2/a/blobs/{}", sha256(b"1"))),
    ] {
        refused(&site.ask(method, &path, &[], b""), 405, "UNSUPPORTED");
    }
}

#[test]
fn an_image_with_missing_blobs_is_taken_where_that_is_wanted() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::start(Options { takes_sparse: true, ..options(storage.path()) });
    let manifest = super::site::image(&sha256(b"missing"), std::iter::empty());
    assert_eq!(site.put_manifest("a", "v1", &manifest).status, 201);
}

#[test]
fn requests_that_make_no_sense_are_answered_and_the_next_one_is_served() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    for garbage in ["\0\0\0\0", "GET\r\n\r\n", "GET /v2/ HTTP/9.9\r\n\r\n", "GET http:// HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(site.address).unwrap();
        stream.write_all(garbage.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(!answer.contains(" 200 "), "{garbage:?}: {answer}");
    }
    let long = format!("/v2/{}/tags/list", "a/".repeat(20_000));
    let answer = site.send("GET", &long, &[("Connection", "close")], b"");
    assert!(answer.is_err() || answer.is_ok_and(|answer| (400..500).contains(&answer.status)));
    let length = site.send("POST", "/v2/a/blobs/uploads/", &[("Content-Length", "x"), ("Connection", "close")], b"");
    assert_eq!(length.unwrap().status, 400);
    assert_eq!(site.get("/v2/").status, 200);
}

#[test]
fn a_directory_that_is_used_or_somebody_elses_is_refused() {
    let run = |options: Options| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve(options, |_| {}, async {})).unwrap_err()
    };
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    assert!(matches!(run(options(storage.path())), ServeError::InUse { .. }));
    drop(site);
    let path = storage.path().join("registry.json");
    let newer = std::fs::read_to_string(&path).unwrap().replace("\"version\":1", "\"version\":2");
    std::fs::File::create(&path).unwrap().write_all(newer.as_bytes()).unwrap();
    assert!(matches!(run(options(storage.path())), ServeError::Foreign { .. }));
    let foreign = tempfile::tempdir().unwrap();
    std::fs::File::create(foreign.path().join("diary")).unwrap();
    assert!(matches!(run(options(foreign.path())), ServeError::Foreign { .. }));
    assert_eq!(foreign.path().read_dir().unwrap().count(), 1, "nothing is added to it");
}

#[test]
fn requests_under_way_are_finished_at_the_end() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    let content = noise(20_000_000);
    let digest = site.push("a", &content);
    let stream = site.open("GET", &format!("/v2/a/blobs/{digest}"), &[("Connection", "close")]).unwrap();
    let is_sending = || site.get("/metrics").text().contains("perennial_registry_streams 1\n");
    wait_until("the stream", is_sending);
    let ending = std::thread::spawn(move || drop(site));
    let answer = Answer::read(stream, "GET").unwrap();
    assert!(answer.body == content);
    ending.join().unwrap();
}

#[test]
fn a_read_only_registry_changes_nothing_whatever_is_asked_of_it_and_whatever_it_finds() {
    let storage = tempfile::tempdir().unwrap();
    let blob = |digest: &str| storage.path().join("blobs/sha256").join(&digest[7..9]).join(&digest[7..]);
    let (kept, damaged, missing) = {
        let site = Site::new(storage.path());
        site.ask("PATCH", &site.begin("a"), &[], b"not finished");
        let digests = [b"kept".as_slice(), b"damaged", b"missing"].map(|content| site.push("a", content));
        super::site::write(blob(&digests[1]), b"DAMAGED");
        std::fs::remove_file(blob(&digests[2])).unwrap();
        digests.into()
    };
    let touched = || {
        let record = rusqlite::Connection::open(storage.path().join("registry.db")).unwrap();
        let sql = "SELECT max(touched_at) || max(checked_at) || max(is_damaged) FROM link JOIN blob USING (digest)";
        record.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap()
    };
    let before = touched();
    let site = Site::start(Options {
        is_read_only: true,
        grace: perennial_core::registry::collect::Grace { nanos: 1 },
        collect_every: Some(Duration::from_millis(10)),
        ..options(storage.path())
    });
    let uploads = site.files("uploads");
    for _ in 0..10 {
        assert_eq!(site.ask("HEAD", &format!("/v2/a/blobs/{kept}"), &[], b"").status, 200);
        for digest in [&damaged, &missing] {
            assert_eq!(site.get(&format!("/v2/a/blobs/{digest}")).status, 404);
        }
        #[expect(clippy::disallowed_methods, reason = "some rounds of what must do nothing")]
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((site.files("uploads"), site.files("quarantine")), (uploads.clone(), Vec::new()));
    assert_eq!(uploads.len(), 2, "its bytes and what it is for");
    assert!(blob(&damaged).exists());
    assert_eq!(touched(), before);
}

#[test]
fn a_repository_that_holds_more_than_a_lowered_quota_can_still_be_tagged_but_takes_nothing_more() {
    let storage = tempfile::tempdir().unwrap();
    let manifest = Site::new(storage.path()).push_image("a", "v1", &[&noise(5000)]);
    let site = Site::start(Options { quota: Quota(Some(1000)), ..options(storage.path()) });
    assert_eq!(site.put_manifest("a", "v2", &manifest).status, 201);
    let post =
        |content: &[u8]| site.ask("POST", &format!("/v2/a/blobs/uploads/?digest={}", sha256(content)), &[], content);
    refused(&post(b"more"), 403, "DENIED");
    assert_eq!(site.get("/v2/a/manifests/v2").body, manifest);
}

#[test]
fn a_method_that_a_path_does_not_take_is_answered_with_those_it_takes() {
    let storage = tempfile::tempdir().unwrap();
    let digest = sha256(b"x");
    let upload = Site::new(storage.path()).begin("a");
    for (is_read_only, path, methods) in [
        (false, "/v2/a/tags/list".to_owned(), "GET, HEAD"),
        (false, "/v2/a/blobs/uploads/".to_owned(), "POST"),
        (false, format!("/v2/a/blobs/{digest}"), "DELETE, GET, HEAD"),
        (false, format!("/v2/a/manifests/{digest}"), "DELETE, GET, HEAD, PUT"),
        (false, upload.clone(), "DELETE, GET, HEAD, PATCH, PUT"),
        (true, format!("/v2/a/blobs/{digest}"), "GET, HEAD"),
        (true, "/v2/a/blobs/uploads/".to_owned(), ""),
        (true, upload, "GET, HEAD"),
    ] {
        let site = Site::start(Options { is_read_only, ..options(storage.path()) });
        let methods = methods.split(", ").filter(|method| !method.is_empty()).collect::<Vec<_>>();
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
            let answer = site.ask(method, &path, &[], b"");
            assert_eq!(answer.status == 405, !methods.contains(&method), "{method} {path}: {}", answer.status);
            if answer.status == 405 {
                assert_eq!(answer.header("allow"), Some(methods.join(", ").as_str()), "{method} {path}");
            }
        }
    }
}
