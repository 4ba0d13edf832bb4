//! Pulls from Debian's docker-registry and from a stub that misbehaves on purpose.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by a panic, and writes files that need not survive"
)]

mod common;

use common::{Store, Tar, Told, assert_same_tree, layout, listing, run, sha256};
use perennial_registry::credentials::{self, Credentials, Login};
use perennial_registry::{ImportError, Imported, PullError, PullOptions, pull};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

fn options(store: &Store) -> PullOptions {
    PullOptions::new(store.options())
}

fn pull_into(store: &mut Store, reference: &str, change: impl FnOnce(&mut PullOptions)) -> Result<Imported, PullError> {
    let mut options = options(store);
    change(&mut options);
    pull(reference, &options, store, &perennial_registry::progress::Silent)
}

/// A registry of Debian's package on a port of its own, ended when dropped.
struct Registry {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Registry {
    /// Starts one; `auth` is the `auth:` part of its configuration, in which DIR stands for its directory.
    fn start(auth: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = dir.path().display();
        let auth = auth.replace("DIR", &path.to_string());
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n{auth}\n"
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        // The password is `secret`.
        let hash = run(
            "python3",
            &[
                "-W",
                "ignore",
                "-c",
                "import crypt;print(crypt.crypt('secret', crypt.mksalt(crypt.METHOD_BLOWFISH, rounds=16)))",
            ],
        );
        std::fs::write(dir.path().join("htpasswd"), format!("user:{}\n", hash.trim().replacen("$2b$", "$2y$", 1)))
            .unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", dir.path().join("config.yml").to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, port, dir };
        let started = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed().as_secs() < 30, "the registry does not start");
            std::thread::yield_now();
        }
        registry
    }

    fn push(&self, layout: &Path, name: &str, creds: &[&str]) {
        let mut args = vec!["copy", "-q", "--dest-tls-verify=false"];
        args.extend(creds);
        let (source, target) =
            (format!("oci:{}", layout.display()), format!("docker://127.0.0.1:{}/{name}", self.port));
        args.extend([source.as_str(), target.as_str()]);
        run("skopeo", &args);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// An image of three layers, the second of incompressible 3 MB.
fn image(dir: &Path) -> PathBuf {
    let mut seed: u64 = 42;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    })
    .take(3_000_000)
    .collect();
    let layers = [
        Tar::new().dir("d").file("d/f", b"base").file("gone", b"x").end(),
        Tar::new().file("d/noise", &noise).end(),
        Tar::new().file(".wh.gone", b"").file("d/g", b"top").end(),
    ];
    let path = dir.join("image");
    layout(&path, &layers);
    path
}

fn names(store: &Store, imported: &Imported) -> Vec<String> {
    listing(store.mount(imported).path()).into_keys().collect()
}

const NAMES: [&str; 5] = ["", "d", "d/f", "d/g", "d/noise"];

#[test]
fn an_image_is_pulled_by_tag_and_by_digest_and_only_once() {
    let work = tempfile::tempdir().unwrap();
    let image = image(work.path());
    let registry = Registry::start("");
    registry.push(&image, "some/thing:v1", &[]);
    let mut local = Store::new();
    let expected = local.import(&format!("oci:{}", image.display())).unwrap();
    let mut store = Store::new();
    let told = Told::default();
    let host = format!("127.0.0.1:{}", registry.port);
    let imported = pull(&format!("{host}/some/thing:v1"), &options(&store), &mut store, &told).unwrap();
    assert_same_tree(store.mount(&imported).path(), local.mount(&expected).path());
    store.assert_staging_is_empty();
    assert!(told.0.borrow().iter().any(|event| event.contains("Download") && event.contains("Advanced")));
    // skopeo may have written another manifest, so the identity is that of the registry's.
    let by_digest = format!("{host}/some/thing@{}", imported.digest);
    let told = Told::default();
    let again = pull(&by_digest, &options(&store), &mut store, &told).unwrap();
    assert_eq!(again.digest, imported.digest);
    assert!(again.layers.iter().all(|layer| layer.was_known));
    assert!(!told.0.borrow().iter().any(|event| event.contains("Download")), "known layers are not downloaded");
    let error = pull_into(&mut store, &format!("{host}/some/thing:v2"), |_| ()).unwrap_err();
    assert!(matches!(&error, PullError::NotFound { reference, .. } if reference.contains("v2")), "{error:?}");
    assert!(error.hint().unwrap().contains("tag"));
    let error = pull_into(&mut store, &format!("{host}/no/such"), |_| ()).unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
}

#[test]
fn a_registry_that_wants_a_login_gets_it_from_where_it_is_stored() {
    let work = tempfile::tempdir().unwrap();
    let image = image(work.path());
    let registry = Registry::start("auth: {htpasswd: {realm: test, path: DIR/htpasswd}}");
    registry.push(&image, "private:v1", &["--dest-creds", "user:secret"]);
    let reference = format!("127.0.0.1:{}/private:v1", registry.port);
    let mut store = Store::new();
    for credentials in [Credentials::Anonymous, Credentials::Login("user:wrong".parse().unwrap())] {
        let error = pull_into(&mut store, &reference, |options| options.credentials = credentials).unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
        assert!(error.hint().unwrap().contains("log in"));
    }
    let login: Login = "user:secret".parse().unwrap();
    assert!(!format!("{login:?}").contains("secret"));
    let imported = pull_into(&mut store, &reference, |o| o.credentials = Credentials::Login(login)).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
    // The files that podman and docker write.
    let auth = registry.dir.path().join("auth.json");
    run(
        "skopeo",
        &[
            "login",
            "--tls-verify=false",
            "--authfile",
            auth.to_str().unwrap(),
            "-u",
            "user",
            "-p",
            "secret",
            &format!("127.0.0.1:{}", registry.port),
        ],
    );
    let mut store = Store::new();
    let files = vec![PathBuf::from("/does/not/exist"), auth];
    let imported = pull_into(&mut store, &reference, |o| o.credentials = Credentials::Files(files)).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
}

#[test]
fn login_files_are_found_as_other_tools_find_them() {
    let env = |vars: &'static [(&str, &str)]| {
        credentials::files(&move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).into()))
    };
    assert_eq!(env(&[("REGISTRY_AUTH_FILE", "/a"), ("HOME", "/h")]), [PathBuf::from("/a")]);
    let all = env(&[("XDG_RUNTIME_DIR", "/run/user/0"), ("HOME", "/h")]);
    assert_eq!(all.first().unwrap(), Path::new("/run/user/0/containers/auth.json"));
    assert_eq!(all.last().unwrap(), Path::new("/h/.docker/config.json"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    let find = |text: &str, registry: &str, repository: &str| {
        std::fs::write(&file, text).unwrap();
        credentials::find(&Credentials::Files(vec![file.clone()]), registry, repository)
    };
    // `dTpw` is `u:p`, `djpx` is `v:q`.
    let text = r#"{"auths":{"r.example":{"auth":"dTpw"},"r.example/team":{"auth":"djpx"},"https://index.docker.io/v1/":{"auth":"dTpw"},"e":{}}}"#;
    let user = |registry, repository| find(text, registry, repository).unwrap().map(|login| login.user);
    assert_eq!(user("r.example", "other/image").as_deref(), Some("u"));
    assert_eq!(user("r.example", "team/image").as_deref(), Some("v"));
    assert_eq!(user("docker.io", "library/debian").as_deref(), Some("u"));
    assert_eq!(user("elsewhere", "x"), None);
    assert_eq!(user("e", "x"), None);
    find("{", "r.example", "x").unwrap_err();
    find(r#"{"auths":{"r.example":{"auth":"!"}}}"#, "r.example", "x").unwrap_err();
    let error = find(r#"{"credHelpers":{"r.example":"not-installed-here"}}"#, "r.example", "x").unwrap_err();
    assert!(error.to_string().contains("docker-credential-not-installed-here"), "{error}");
}

/// What the stub does wrong.
#[derive(Default)]
struct Manners {
    /// Blob answers longer than this are cut there, so often.
    cut_at: usize,
    cuts: AtomicUsize,
    /// Whether requests need the bearer token.
    wants_token: bool,
    /// Answers to requests for this blob have a byte changed.
    flip: Mutex<Option<String>>,
    /// This blob is not there.
    lacks: Mutex<Option<String>>,
    ignores_range: bool,
    /// Requests that answer 503 before anything works.
    busy: AtomicUsize,
}

/// An HTTP server of one OCI layout.
struct Stub {
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
    manners: Arc<Manners>,
    stop: Arc<AtomicBool>,
}

impl Stub {
    fn start(layout: &Path, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (log, stop, manners) = (Arc::default(), Arc::new(AtomicBool::new(false)), Arc::new(manners));
        let stub = Self { port, log: Arc::clone(&log), manners: Arc::clone(&manners), stop: Arc::clone(&stop) };
        let layout = layout.to_path_buf();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (layout, log, manners) = (layout.clone(), Arc::clone(&log), Arc::clone(&manners));
                std::thread::spawn(move || drop(serve(stream.unwrap(), port, &layout, &log, &manners)));
            }
        });
        stub
    }

    fn reference(&self) -> String {
        format!("127.0.0.1:{}/some/image:tag", self.port)
    }

    fn requests(&self, part: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn serve(
    stream: TcpStream,
    port: u16,
    layout: &Path,
    log: &Mutex<Vec<String>>,
    manners: &Manners,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let path = line.split(' ').nth(1).unwrap().to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        log.lock().unwrap().push(format!("{path} {} {}", header("range"), header("authorization")));
        if manners.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")?;
            continue;
        }
        if path.starts_with("/token") {
            // `dTpw` is `u:p`.
            let answer =
                if header("authorization") == "Basic dTpw" && path.contains("scope=repository%3Asome%2Fimage%3Apull") {
                    "HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"token\":\"the-token\"}\r\n".to_owned()
                } else {
                    "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n".to_owned()
                };
            stream.write_all(answer.as_bytes())?;
            continue;
        }
        if manners.wants_token && header("authorization") != "Bearer the-token" {
            let challenge = format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"stub\"");
            stream.write_all(
                format!("HTTP/1.1 401 No\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
            )?;
            continue;
        }
        let is_blob = path.contains("/blobs/");
        let Some(mut body) = content(layout, &path, manners) else {
            let code = if is_blob { "BLOB_UNKNOWN" } else { "MANIFEST_UNKNOWN" };
            let body = format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"no\"}}]}}");
            stream.write_all(format!("HTTP/1.1 404 No\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
            continue;
        };
        let total = body.len();
        let mut status = "200 OK".to_owned();
        if let Some(from) = header("range").strip_prefix("bytes=").filter(|_| !manners.ignores_range) {
            let from: usize = from.trim_end_matches('-').parse().unwrap();
            body.drain(..from);
            status = format!("206 Part\r\nContent-Range: bytes {from}-{}/{total}", total - 1);
        }
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        let is_cut = is_blob && manners.cut_at > 0 && body.len() > manners.cut_at;
        if is_cut && manners.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            stream.write_all(&body[..manners.cut_at])?;
            stream.flush()?;
            return stream.shutdown(std::net::Shutdown::Both);
        }
        stream.write_all(&body)?;
    }
}

fn content(layout: &Path, path: &str, manners: &Manners) -> Option<Vec<u8>> {
    if path == "/v2/" {
        return Some(b"{}".to_vec());
    }
    let name = path.rsplit('/').next()?;
    let digest = if name == "tag" {
        let index = std::fs::read_to_string(layout.join("index.json")).unwrap();
        let at = index.find("sha256:")?;
        index[at..at + 71].to_owned()
    } else {
        name.to_owned()
    };
    if manners.lacks.lock().unwrap().as_ref() == Some(&digest) {
        return None;
    }
    let mut body = std::fs::read(layout.join("blobs/sha256").join(digest.strip_prefix("sha256:")?)).ok()?;
    if manners.flip.lock().unwrap().as_ref() == Some(&digest) {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    }
    Some(body)
}

/// Returns the digest of the largest blob of a layout.
fn largest(layout: &Path) -> String {
    let entries = layout.join("blobs/sha256").read_dir().unwrap().map(|entry| entry.unwrap());
    let largest = entries.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap();
    format!("sha256:{}", largest.file_name().to_str().unwrap())
}

#[test]
fn a_token_is_asked_for_and_used() {
    let work = tempfile::tempdir().unwrap();
    let image = image(work.path());
    let stub = Stub::start(&image, Manners { wants_token: true, ..Manners::default() });
    let mut store = Store::new();
    let error = pull_into(&mut store, &stub.reference(), |_| ()).unwrap_err();
    assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
    let login = Credentials::Login("u:p".parse().unwrap());
    let imported = pull_into(&mut store, &stub.reference(), |options| options.credentials = login).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
    assert!(stub.requests("/blobs/").iter().all(|request| request.ends_with("Bearer the-token")));
}

#[test]
fn a_cut_connection_costs_only_what_had_not_arrived() {
    let work = tempfile::tempdir().unwrap();
    let image = image(work.path());
    let manners =
        Manners { cut_at: 1_000_000, cuts: AtomicUsize::new(2), busy: AtomicUsize::new(1), ..Manners::default() };
    let stub = Stub::start(&image, manners);
    let mut store = Store::new();
    let told = Told::default();
    let imported = pull(&stub.reference(), &options(&store), &mut store, &told).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
    let ranges: Vec<String> =
        stub.requests(&largest(&image)).into_iter().map(|r| r.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(ranges, ["", "bytes=1000000-", "bytes=2000000-"]);
    assert_eq!(told.0.borrow().iter().filter(|event| event.contains("Retried")).count(), 2);
    // One that cannot continue begins anew.
    let stub = Stub::start(
        &image,
        Manners { cut_at: 1_000_000, cuts: AtomicUsize::new(1), ignores_range: true, ..Manners::default() },
    );
    let mut store = Store::new();
    let imported = pull_into(&mut store, &stub.reference(), |_| ()).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
}

#[test]
fn a_later_pull_goes_on_where_an_earlier_one_was_given_up() {
    let work = tempfile::tempdir().unwrap();
    let image = image(work.path());
    let stub = Stub::start(&image, Manners { cut_at: 1_500_000, cuts: AtomicUsize::new(1), ..Manners::default() });
    let mut store = Store::new();
    let error = pull_into(&mut store, &stub.reference(), |options| options.tries_max = 1).unwrap_err();
    assert!(matches!(error, PullError::Interrupted { bytes: 1_500_000, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("where it stopped"));
    let imported = pull_into(&mut store, &stub.reference(), |_| ()).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
    assert!(stub.requests(&largest(&image))[1].contains("bytes=1500000-"));
    store.assert_staging_is_empty();
    // What an earlier process left is summed too: a damaged partial file is begun anew.
    let mut store = Store::new();
    let hex = largest(&image).replace("sha256:", "");
    std::fs::write(store.staging().join(format!("pull-sha256-{hex}.partial")), vec![9; 70_000]).unwrap();
    let imported = pull_into(&mut store, &stub.reference(), |_| ()).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
    // So is a whole one, when it is imported; the next pull fetches it again.
    let mut store = Store::new();
    std::fs::write(store.staging().join(format!("pull-sha256-{hex}")), vec![9; 70_000]).unwrap();
    let error = pull_into(&mut store, &stub.reference(), |_| ()).unwrap_err();
    assert!(matches!(error, PullError::Import(ImportError::Size { .. })), "{error:?}");
    pull_into(&mut store, &stub.reference(), |_| ()).unwrap();
    store.assert_staging_is_empty();
}

#[test]
fn a_registry_that_lies_or_lacks_is_found_out() {
    let work = tempfile::tempdir().unwrap();
    let image = image(work.path());
    let stub = Stub::start(&image, Manners::default());
    let index = std::fs::read_to_string(image.join("index.json")).unwrap();
    let manifest = index[index.find("sha256:").unwrap()..][..71].to_owned();
    let text = std::fs::read(image.join("blobs/sha256").join(&manifest[7..])).unwrap();
    assert_eq!(sha256(&text).as_str(), manifest);
    let text = String::from_utf8(text).unwrap();
    let config = text[text.find("sha256:").unwrap()..][..71].to_owned();
    let mut store = Store::new();
    for (digest, what) in [(&largest(&image), "layer"), (&config, "configuration"), (&manifest, "manifest")] {
        stub.manners.flip.lock().unwrap().replace(digest.clone());
        let reference =
            if what == "manifest" { stub.reference().replace(":tag", &format!("@{digest}")) } else { stub.reference() };
        let error = pull_into(&mut store, &reference, |_| ()).unwrap_err();
        let is_found = matches!(&error, PullError::Import(ImportError::Digest { name, .. }) if name == digest)
            || matches!(&error, PullError::Damaged { .. });
        assert!(is_found, "{what}: {error:?}");
        assert!(error.hint().unwrap().contains("pull again"), "{error:?}");
    }
    stub.manners.flip.lock().unwrap().take();
    for (digest, is_blob) in [(largest(&image), true), (config, true), (manifest, false)] {
        stub.manners.lacks.lock().unwrap().replace(digest.clone());
        let error = pull_into(&mut store, &stub.reference(), |_| ()).unwrap_err();
        match &error {
            PullError::BlobMissing { digest: missing, .. } if is_blob => assert_eq!(*missing, digest),
            PullError::NotFound { .. } if !is_blob => {}
            _ => panic!("{digest}: {error:?}"),
        }
    }
    stub.manners.lacks.lock().unwrap().take();
    pull_into(&mut store, &stub.reference(), |_| ()).unwrap();
    store.assert_staging_is_empty();
}

#[test]
fn a_registry_that_is_not_there_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut store = Store::new();
    let error = pull_into(&mut store, &format!("127.0.0.1:{port}/x"), |_| ()).unwrap_err();
    assert!(
        matches!(&error, PullError::Unreachable { registry, .. } if registry.ends_with(&port.to_string())),
        "{error:?}"
    );
    assert!(error.hint().is_some());
    for text in ["", "host.example/UPPER", "a b", "x@sha256:short"] {
        let error = pull_into(&mut store, text, |_| ()).unwrap_err();
        assert!(matches!(error, PullError::Reference { .. }), "{text}: {error:?}");
    }
}

/// A real registry behind a proxy that cuts every connection after so many bytes.
#[test]
fn a_pull_through_a_bad_line_ends_well() {
    let work = tempfile::tempdir().unwrap();
    let registry = Registry::start("");
    registry.push(&image(work.path()), "thing:v1", &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, behind) = (listener.local_addr().unwrap().port(), registry.port);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(client) = stream else { break };
            std::thread::spawn(move || {
                let server = TcpStream::connect(("127.0.0.1", behind)).unwrap();
                let (mut up, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || drop(std::io::copy(&mut up, &mut to)));
                drop(std::io::copy(&mut (&server).take(700_000), &mut &client));
                drop(client.shutdown(std::net::Shutdown::Both));
                drop(server.shutdown(std::net::Shutdown::Both));
            });
        }
    });
    let mut store = Store::new();
    let imported = pull_into(&mut store, &format!("127.0.0.1:{port}/thing:v1"), |_| ()).unwrap();
    assert_eq!(names(&store, &imported), NAMES);
}
