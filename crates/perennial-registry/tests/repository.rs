//! Repositories of a registry that behaves in ways Debian's does not: compares tags, knows no ranges, breaks off.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may fail by a panic"
)]

use perennial_core::id::Digest;
use perennial_registry::credentials::{Credentials, Login};
use perennial_registry::digest::of_bytes;
use perennial_registry::progress::Silent;
use perennial_registry::repository::{
    Access, Expected, Lacking, Part, Repository, RepositoryError, RepositoryOptions, Tagged, Upload, sum,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What the stub holds and does.
#[derive(Default)]
struct State {
    tags: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    log: Vec<String>,
    /// Whether tags are compared.
    compares: bool,
    /// Put just before the next put of a tag is carried out.
    overtaking: Option<Vec<u8>>,
    /// Answers to requests for blobs break off after so many bytes, so often.
    cuts: (usize, u32),
    ignores_ranges: bool,
    /// Where uploads go, as a host and port of their own.
    uploads_at: Option<u16>,
    /// Requests need `u:p`.
    wants_login: bool,
    /// Requests need a token; whoever gives them out answers so.
    token: Option<(u16, &'static str)>,
    holding: Holding,
    /// Every request for a manifest is answered with this.
    says: Option<String>,
}

/// What it does where it has a blob already.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Holding {
    /// Takes what is sent.
    #[default]
    Replaces,
    /// Keeps what it has, as Debian's does.
    Keeps,
    /// The same, and does not say how long blobs are that are only asked for.
    HidesLengths,
}

#[derive(Clone)]
struct Stub {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Stub {
    fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stub = Self { port: listener.local_addr().unwrap().port(), state: Arc::new(Mutex::new(state)) };
        let shared = stub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let stub = shared.clone();
                std::thread::spawn(move || drop(serve(stream, &stub)));
            }
        });
        stub
    }

    fn open(&self, access: Access, credentials: Credentials) -> Result<Repository, RepositoryError> {
        let registry = format!("127.0.0.1:{}", self.port);
        let repository = "some/thing".to_owned();
        let certificates = Vec::new();
        let options =
            RepositoryOptions { registry, repository, credentials, plain_http: false, certificates, tries_max: 3 };
        Repository::open(&options, access)
    }

    fn opened(&self) -> Repository {
        self.open(Access::Push, Credentials::Anonymous).unwrap()
    }

    fn requests(&self, part: &str) -> Vec<String> {
        self.state.lock().unwrap().log.iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

fn answer(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

fn serve(mut stream: TcpStream, stub: &Stub) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut state = stub.state.lock().unwrap();
        let marks = ["authorization", "range", "if-match", "if-none-match"].map(header).join("|");
        state.log.push(format!("{method} {path} {marks}"));
        // `dTpw` is `u:p`.
        if state.wants_login && header("authorization") != "Basic dTpw" {
            answer(&mut stream, "401 No", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"")?;
            continue;
        }
        if let Some((port, status)) = state.token {
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"\r\n");
            let status = if path.starts_with("/token") { status } else { "401 No" };
            answer(&mut stream, status, &challenge, b"{}")?;
            continue;
        }
        let asked = Asked { method, path, headers: &headers, body };
        if !respond(&mut stream, &mut state, asked)? {
            return Ok(());
        }
    }
}

/// A request.
struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    headers: &'a BTreeMap<String, String>,
    body: Vec<u8>,
}

/// Returns the answer to whoever only asks for a blob.
fn asked_for(state: &State, name: &str) -> String {
    match state.blobs.get(name) {
        None => "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
        Some(_) if state.holding == Holding::HidesLengths => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
        Some(blob) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", blob.len()),
    }
}

/// Answers a request; returns whether the connection goes on.
fn respond(stream: &mut TcpStream, state: &mut State, asked: Asked<'_>) -> std::io::Result<bool> {
    let Asked { method, path, headers, body } = asked;
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap().to_owned();
    match (method, path) {
        (_, "/v2/") => {
            let flag = if state.compares { "Perennial-Conditional-Tags: 1\r\n" } else { "" };
            answer(stream, "200 OK", flag, b"")?;
        }
        ("GET", path) if path.contains("/manifests/") && state.says.is_some() => {
            let said = state.says.clone().unwrap_or_default();
            answer(stream, "400 No", "", said.as_bytes())?;
        }
        ("GET", path) if path.contains("/manifests/") => match state.tags.get(&name) {
            Some(bytes) => answer(stream, "200 OK", &format!("ETag: \"{}\"\r\n", of_bytes(bytes)), bytes)?,
            None => answer(stream, "404 No", "", b"{}")?,
        },
        ("PUT", path) if path.contains("/manifests/") => {
            if let Some(other) = state.overtaking.take() {
                state.tags.insert(name.clone(), other);
            }
            let now = state.tags.get(&name).map(|bytes| format!("\"{}\"", of_bytes(bytes)));
            let (wanted, none) = (header("if-match"), header("if-none-match") == "*");
            if state.compares && ((none && now.is_some()) || (!wanted.is_empty() && now != Some(wanted))) {
                answer(stream, "412 No", "", b"")?;
            } else {
                state.tags.insert(name, body);
                answer(stream, "201 Created", "", b"")?;
            }
        }
        ("HEAD", _) => {
            stream.write_all(asked_for(state, &name).as_bytes())?;
        }
        ("POST", _) => {
            let host = state.uploads_at.map_or_else(String::new, |port| format!("http://127.0.0.1:{port}"));
            let place = format!("Location: {host}/upload?state=1\r\n");
            answer(stream, "202 Accepted", &place, b"")?;
        }
        ("PUT", path) => {
            let digest = path.rsplit("digest=").next().unwrap().replace("%3A", ":");
            assert_eq!(of_bytes(&body).as_str(), digest);
            if !(state.holding != Holding::Replaces && state.blobs.contains_key(&digest)) {
                state.blobs.insert(digest, body);
            }
            answer(stream, "201 Created", "", b"")?;
        }
        _ => {
            let Some(blob) = state.blobs.get(&name).cloned() else {
                answer(stream, "404 No", "", b"{\"errors\":[{\"code\":\"BLOB_UNKNOWN\"}]}")?;
                return Ok(true);
            };
            let range = header("range").replace("bytes=", "");
            let range = range.split_once('-').filter(|_| !state.ignores_ranges);
            let (status, part) = match range {
                Some((from, to)) => ("206 Partial", &blob[from.parse().unwrap()..=to.parse::<usize>().unwrap()]),
                None => ("200 OK", &blob[..]),
            };
            let (at, left) = state.cuts;
            if left > 0 && part.len() > at {
                state.cuts.1 -= 1;
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", part.len());
                stream.write_all(head.as_bytes())?;
                stream.write_all(&part[..at])?;
                return Ok(false);
            }
            answer(stream, status, "", part)?;
        }
    }
    Ok(true)
}

fn tagged(repository: &Repository) -> Tagged {
    repository.manifest("t").unwrap().unwrap()
}

#[test]
fn a_tag_is_changed_only_where_it_is_as_it_was_read() {
    for compares in [true, false] {
        let stub = Stub::start(State { compares, ..State::default() });
        let repository = stub.opened();
        assert_eq!(repository.has_conditional_tags(), compares);
        repository.put_manifest("t", b"one", &Expected::Nothing).unwrap();
        let one = tagged(&repository);
        assert_eq!((one.bytes.as_slice(), &one.digest), (b"one".as_slice(), &of_bytes(b"one")));
        // What is there already is no conflict: an answer may have been lost.
        repository.put_manifest("t", b"one", &Expected::Nothing).unwrap();
        let changed = |result| matches!(result, Err(RepositoryError::Changed { .. }));
        assert!(changed(repository.put_manifest("t", b"two", &Expected::Nothing)));
        repository.put_manifest("t", b"two", &Expected::This(&one)).unwrap();
        assert!(changed(repository.put_manifest("t", b"three", &Expected::This(&one))));
        assert_eq!(tagged(&repository).bytes, b"two");
        repository.put_manifest("t", b"four", &Expected::Anything).unwrap();
        assert_eq!(tagged(&repository).bytes, b"four");
    }
}

#[test]
fn whoever_is_overtaken_in_between_is_told_and_overwrites_nothing_where_the_registry_compares() {
    let stub = Stub::start(State { compares: true, ..State::default() });
    let repository = stub.opened();
    for (before, expected_header) in [(None, "*"), (Some(b"one".as_slice()), "sha256:")] {
        let mut state = stub.state.lock().unwrap();
        state.tags.clear();
        state.tags.extend(before.map(|bytes| ("t".to_owned(), bytes.to_vec())));
        state.overtaking = Some(b"theirs".to_vec());
        drop(state);
        let was = repository.manifest("t").unwrap();
        let expected = was.as_ref().map_or(Expected::Nothing, Expected::This);
        let put = repository.put_manifest("t", b"ours", &expected);
        assert!(matches!(put, Err(RepositoryError::Changed { .. })), "{put:?}");
        assert_eq!(tagged(&repository).bytes, b"theirs");
        assert!(stub.requests("PUT").last().unwrap().contains(expected_header));
    }
}

#[test]
fn a_part_that_breaks_off_goes_on_where_it_stopped() {
    let blob: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    for ignores_ranges in [false, true] {
        // Without ranges nothing new comes before the cut.
        let cuts = (30_000, if ignores_ranges { 2 } else { 3 });
        let stub = Stub::start(State { cuts, ignores_ranges, ..State::default() });
        let digest: Digest = of_bytes(&blob);
        stub.state.lock().unwrap().blobs.insert(digest.to_string(), blob.clone());
        let repository = stub.opened();
        let received = RefCell::new(vec![0; 200_000]);
        let parts = [Part { digest: digest.clone(), range: 100_000..300_000, name: "part".into() }];
        let sink = |number: usize, offset: u64, bytes: &[u8]| {
            assert_eq!(number, 0);
            let at = usize::try_from(offset).unwrap() - 100_000;
            received.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
            Ok(())
        };
        repository.read(&parts, &sink, &Silent).unwrap();
        assert!(*received.borrow() == blob[100_000..300_000], "ignores ranges: {ignores_ranges}");
        let asked = stub.requests("bytes=");
        assert!(asked[0].contains("bytes=100000-299999"), "{asked:?}");
        if !ignores_ranges {
            assert!(asked[1].contains("bytes=130000-299999") && asked.len() == 4, "{asked:?}");
        }
        assert_eq!(repository.document(&digest, 400_000).unwrap(), blob);
        assert!(matches!(repository.document(&digest, 399_999), Err(RepositoryError::Damaged { .. })));
    }
}

#[test]
fn what_is_not_there_or_not_what_was_asked_for_is_told_apart() {
    let stub = Stub::start(State::default());
    let (there, other) = (of_bytes(b"there"), of_bytes(b"other"));
    stub.state.lock().unwrap().blobs.insert(there.to_string(), b"changed".to_vec());
    let repository = stub.opened();
    assert!(matches!(repository.document(&other, 100), Err(RepositoryError::Missing { .. })));
    assert!(matches!(repository.document(&there, 100), Err(RepositoryError::Damaged { .. })));
    assert_eq!(repository.manifest("t").unwrap(), None);
    stub.state.lock().unwrap().tags.insert(there.to_string(), b"changed".to_vec());
    assert!(matches!(repository.manifest(there.as_str()), Err(RepositoryError::Damaged { .. })));
    let parts = [Part { digest: other, range: 0..10, name: "part".into() }];
    let read = repository.read(&parts, &|_, _, _| Ok(()), &Silent);
    assert!(matches!(read, Err(RepositoryError::Missing { .. })), "{read:?}");
}

#[test]
fn a_blob_of_another_length_does_not_count_as_being_there() {
    let (whole, short, gone) = (of_bytes(b"whole"), of_bytes(b"short"), of_bytes(b"gone"));
    for holding in [Holding::Keeps, Holding::HidesLengths] {
        let stub = Stub::start(State { holding, ..State::default() });
        let blobs = [(whole.to_string(), b"whole".to_vec()), (short.to_string(), b"sho".to_vec())];
        stub.state.lock().unwrap().blobs.extend(blobs);
        let repository = stub.opened();
        let lacking = repository.lacking(&[(whole.clone(), 5), (short.clone(), 5), (gone.clone(), 4)]).unwrap();
        // One that does not say a length is believed.
        let unsound = if holding == Holding::HidesLengths { BTreeSet::new() } else { BTreeSet::from([short.clone()]) };
        assert_eq!(lacking, Lacking { gone: BTreeSet::from([gone.clone()]), unsound });
    }
    for holding in [Holding::Keeps, Holding::Replaces] {
        let stub = Stub::start(State { holding, ..State::default() });
        stub.state.lock().unwrap().blobs.insert(short.to_string(), b"sho".to_vec());
        let repository = stub.opened();
        let sent = repository.send_document(b"short");
        if holding == Holding::Keeps {
            let Err(error @ RepositoryError::Unsound { found: 3, bytes: 5, .. }) = sent else { panic!("{sent:?}") };
            assert!(error.hint().unwrap().contains("push --whole") && error.to_string().contains(short.as_str()));
        } else {
            assert_eq!(
                (sent.unwrap(), repository.lacking(&[(short.clone(), 5)]).unwrap()),
                (short.clone(), Lacking::default())
            );
        }
    }
}

#[test]
fn a_login_goes_to_the_registry_and_to_no_other_host() {
    let elsewhere = Stub::start(State::default());
    let stub = Stub::start(State { wants_login: true, uploads_at: Some(elsewhere.port), ..State::default() });
    let refused = stub.open(Access::Push, Credentials::Anonymous);
    assert!(matches!(refused, Err(RepositoryError::Unauthorized { .. })), "{refused:?}");
    let login = Login { user: "u".into(), password: "p".into() };
    let repository = stub.open(Access::Push, Credentials::Login(login)).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"content").unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let (digest, bytes) = sum(&file).unwrap();
    let upload = || Upload { digest: digest.clone(), file: file.try_clone().unwrap(), bytes, name: "blob".into() };
    assert_eq!(repository.send_blobs(&[upload()], &Silent).unwrap(), 1);
    let uploads = elsewhere.requests("PUT /upload");
    assert!(uploads.len() == 1 && uploads[0].ends_with(" |||"), "{uploads:?}");
    assert!(stub.requests("POST").iter().all(|line| line.contains("Basic dTpw")));
    // It is there now, as far as the stub is asked.
    stub.state.lock().unwrap().blobs.insert(digest.to_string(), b"content".to_vec());
    assert_eq!(repository.send_blobs(&[upload()], &Silent).unwrap(), 0);
}

#[test]
fn a_registry_that_is_not_there_is_given_up_after_some_tries() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = Stub { port, state: Arc::default() };
    let started = std::time::Instant::now();
    let opened = gone.open(Access::Pull, Credentials::Anonymous);
    assert!(matches!(&opened, Err(error @ RepositoryError::Unreachable { .. }) if error.is_passing()), "{opened:?}");
    assert!(started.elapsed().as_secs() < 10);
}

#[test]
fn whoever_gives_out_tokens_and_is_in_trouble_is_told_from_one_that_refuses() {
    let stub = Stub::start(State::default());
    for (status, is_trouble) in
        [("503 Later", true), ("500 Oh", true), ("429 Slowly", true), ("401 No", false), ("403 No", false)]
    {
        stub.state.lock().unwrap().token = Some((stub.port, status));
        let opened = stub.open(Access::Push, Credentials::Anonymous);
        let is_refused = matches!(opened, Err(RepositoryError::Unauthorized { .. }));
        let is_passing = matches!(&opened, Err(error) if error.is_passing());
        assert_eq!((is_refused, is_passing), (!is_trouble, is_trouble), "{status}: {opened:?}");
    }
}

#[test]
fn what_a_registry_says_steers_no_terminal() {
    let stub = Stub::start(State::default());
    let repository = stub.opened();
    let said = format!("{{\"errors\": [{{\"code\": \"A\\u001b[2J\", \"message\": \"{}\"}}]}}", "x\\u0007".repeat(500));
    stub.state.lock().unwrap().says = Some(said);
    let error = repository.manifest("tag").unwrap_err().to_string();
    assert!(error.contains("A?[2J x?x?") && !error.contains(char::is_control) && error.len() < 300, "{error:?}");
}
