//! The registry with clients that other people wrote: skopeo, podman, buildah, containerd and dockerd.

#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod dockerd;
mod guide;
mod tls;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::{run, wait_until};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest wait for a server.
const SOON: Duration = Duration::from_secs(60);
/// Bytes of the file systems that the tests run on; the files are sparse.
const DISK_BYTES: u64 = 1 << 30;

/// The program as a registry, ended when dropped.
struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    fn start(storage: &Path, options: &[&str]) -> Result<Self> {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_perennial")), storage, options)
    }

    fn start_by(mut program: Command, storage: &Path, options: &[&str]) -> Result<Self> {
        let log = fs::File::create(storage.with_extension("log"))?;
        let child = program
            .args(["--json", "registry", "--listen", "127.0.0.1:0", "--storage"])
            .arg(storage)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        // One that does not begin is waited for, so that it has left its directory before another one is started.
        let mut registry = Self { child, address: String::new() };
        let mut line = String::new();
        BufReader::new(registry.child.stdout.take().context("piped")?).read_line(&mut line)?;
        let log = || fs::read_to_string(storage.with_extension("log")).unwrap_or_default();
        let said: Value =
            serde_json::from_str(&line).with_context(|| format!("the registry said {line:?} {}", log()))?;
        said["address"].as_str().context("an address")?.clone_into(&mut registry.address);
        Ok(registry)
    }

    /// Asks it to end, and demands that it ends well.
    fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = perennial_testkit::host::wait_within(&mut self.child, SOON)?.context("it goes on")?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        Ok(body.to_owned())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Gone already where it was stopped.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Place {
    disk: LoopFs,
}

impl Place {
    fn new() -> Result<Self> {
        Ok(Self { disk: LoopFs::new(FsKind::Ext4, DISK_BYTES)? })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// An image of two layers as an OCI layout, made by umoci from files.
    fn image(&self) -> Result<String> {
        let layout = self.path("layout");
        let text = layout.display().to_string();
        run(Command::new("umoci").args(["init", "--layout", &text]))?;
        let reference = format!("{text}:v1");
        run(Command::new("umoci").args(["new", "--image", &reference]))?;
        for (name, bytes) in [("small", 1000_usize), ("large", 3_000_000)] {
            let file = self.path(name);
            let content: Vec<u8> = (0..bytes).map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
            fs::File::create(&file)?.write_all(&content)?;
            let file = file.display().to_string();
            run(Command::new("umoci").args(["insert", "--image", &reference, &file, &format!("/{name}")]))?;
        }
        Ok(format!("oci:{reference}"))
    }
}

fn ok(program: &str, args: &[&str]) -> Result<String> {
    let done = run(Command::new(program).args(args)).with_context(|| format!("{program} {args:?}"))?;
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn digests(reference: &str, options: &[&str]) -> Result<Value> {
    let text = ok("skopeo", &[&["inspect", "--raw"], options, &[reference]].concat())?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn skopeo_copies_an_image_in_and_out_and_deletes_it() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let registry = Registry::start(&place.path("storage"), &[])?;
    let there = format!("docker://{}/garden/web:v1", registry.address);
    ok("skopeo", &["copy", "--dest-tls-verify=false", &image, &there])?;
    let tags = ok("skopeo", &["list-tags", "--tls-verify=false", there.trim_end_matches(":v1")])?;
    ensure!(tags.contains("\"v1\""), "{tags}");
    let back = format!("oci:{}:v1", place.path("back").display());
    ok("skopeo", &["copy", "--src-tls-verify=false", &there, &back])?;
    ensure!(digests(&image, &[])? == digests(&back, &[])?, "the image has changed on the way");
    // To another repository: its blobs are mounted, not sent again.
    let other = format!("docker://{}/garden/copy:v1", registry.address);
    ok("skopeo", &["copy", "--src-tls-verify=false", "--dest-tls-verify=false", &there, &other])?;
    ok("skopeo", &["delete", "--tls-verify=false", &there])?;
    let gone = run(Command::new("skopeo").args(["inspect", "--tls-verify=false", &there]));
    ensure!(gone.is_err(), "a deleted image is still there");
    ok("skopeo", &["inspect", "--tls-verify=false", &other])?;
    registry.stop()
}

#[test]
fn what_was_pushed_is_there_after_a_restart() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let storage = place.path("storage");
    let registry = Registry::start(&storage, &[])?;
    let there = format!("docker://{}/garden/web:v1", registry.address);
    ok("skopeo", &["copy", "--dest-tls-verify=false", &image, &there])?;
    registry.stop()?;
    let registry = Registry::start(&storage, &["--read-only"])?;
    let there = format!("docker://{}/garden/web:v1", registry.address);
    ensure!(digests(&image, &[])? == digests(&there, &["--tls-verify=false"])?);
    let refused = run(Command::new("skopeo").args(["copy", "--dest-tls-verify=false", &image, &format!("{there}x")]));
    ensure!(refused.is_err(), "a read-only registry took an image");
    ensure!(registry.get("/metrics")?.contains("perennial_registry_requests_total{method=\"GET\",status=\"200\"}"));
    ensure!(registry.get("/healthz")?.contains("\"read_only\":true"));
    registry.stop()
}

#[test]
fn a_registry_that_is_told_to_end_while_it_scrubs_ends_well() -> Result<()> {
    let place = Place::new()?;
    let (image, storage) = (place.image()?, place.path("storage"));
    // A second for each KiB: it is still at the first blob when the end comes.
    let registry = Registry::start(&storage, &["--scrub", "--scrub-every", "1s", "--scrub-rate", "1k"])?;
    let there = format!("docker://{}/garden/web:v1", registry.address);
    ok("skopeo", &["copy", "--dest-tls-verify=false", &image, &there])?;
    let scrubs = || Ok(!registry.get("/metrics")?.contains("perennial_registry_scrubbed_bytes_total 0\n"));
    wait_until("the scrub", SOON, scrubs)?;
    registry.stop()?;
    let log = fs::read_to_string(storage.with_extension("log"))?;
    ensure!(!log.contains("panicked") && log.contains("\"ended\""), "{log}");
    Ok(())
}

#[test]
fn a_registry_that_could_not_take_a_connection_takes_it_when_it_can() -> Result<()> {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let place = Place::new()?;
    let storage = place.path("storage");
    let registry = Registry::start(&storage, &[])?;
    let pid = Pid::from_child(&registry.child);
    let none = Rlimit { current: Some(3), ..getrlimit(Resource::Nofile) };
    let before = prlimit(Some(pid), Resource::Nofile, none)?;
    let mut stream = TcpStream::connect(&registry.address)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let has_failed =
        || fs::read_to_string(storage.with_extension("log")).is_ok_and(|log| log.contains("accept_failed"));
    wait_until("the refusal", SOON, || Ok(has_failed()))?;
    prlimit(Some(pid), Resource::Nofile, before)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    registry.stop()
}

#[test]
fn a_registry_takes_no_more_connections_than_it_can_open_files_for() -> Result<()> {
    let place = Place::new()?;
    let storage = place.path("storage");
    let mut program = Command::new("prlimit");
    program.args(["--nofile=300:700", env!("CARGO_BIN_EXE_perennial")]);
    let registry = Registry::start_by(program, &storage, &[])?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", registry.child.id()))?;
    let files = limits.lines().find(|line| line.starts_with("Max open files")).context("a limit")?;
    ensure!(files.split_whitespace().filter(|word| *word == "700").count() == 2, "{files}");
    let log = fs::read_to_string(storage.with_extension("log"))?;
    let said: Value = serde_json::from_str(log.lines().next().context("a line")?)?;
    ensure!((&said["event"], &said["connections"]) == (&"connections_fewer".into(), &222.into()), "{log}");
    registry.stop()
}

#[test]
fn options_that_do_not_fit_are_refused_before_anything_is_made() -> Result<()> {
    let place = tempfile::TempDir::new()?;
    let storage = place.path().join("storage");
    let file = |name: &str, content: &str| -> Result<String> {
        let path = place.path().join(name);
        fs::File::create(&path)?.write_all(content.as_bytes())?;
        Ok(path.display().to_string())
    };
    let passwords = file("passwords", "ann:$2y$05$abc")?;
    let rule = |user: &str, repositories: &str| {
        format!(r#"{{"rules": [{{"user": "{user}", "repositories": "{repositories}", "actions": ["pull"]}}]}}"#)
    };
    let (unknown, pattern) = (file("unknown", &rule("eve", "*"))?, file("pattern", &rule("ann", "garden*"))?);
    let with_policy = |policy| ["--auth", "token", "--htpasswd", &passwords, "--policy", policy];
    for (options, said) in [
        (&with_policy(&unknown)[..], "unknown: a rule is for eve, who has no password"),
        (&with_policy(&pattern), "pattern: \"garden*\" can be no repositories"),
        (&["--gc-grace", "0s"], "--gc-grace is at least 1m"),
        (&["--gc-grace", "59s"], "--gc-grace is at least 1m"),
        (&["--connections", "0"], "--connections are at least 1"),
        (&["--auth", "basic"], "--auth needs the passwords"),
    ] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_perennial"));
        let program = program.args(["registry", "--listen", "127.0.0.1:0", "--storage"]).arg(&storage).args(options);
        let done = program.output()?;
        let text = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(2) && text.contains(said), "{options:?}: {} {text}", done.status);
        ensure!(!storage.exists(), "{options:?}: the directory was made");
    }
    Ok(())
}

/// A server that speaks S3.
struct S3(Child);

impl Drop for S3 {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn blobs_are_kept_in_an_object_store() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let objects = place.path("objects");
    let mut server = Command::new("s3rver");
    server.args(["--address", "127.0.0.1", "--port", &port, "--configure-bucket", "garden", "--directory"]);
    let server = server.arg(&objects).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _server = S3(server.context("s3rver (npm package s3rver)")?);
    let endpoint = format!("http://127.0.0.1:{port}");
    let options =
        ["--s3", "s3://garden/web", "--s3-endpoint", &endpoint, "--s3-key-id", "S3RVER", "--s3-secret", "S3RVER"];
    let storage = place.path("storage");
    let registry = Registry::start(&storage, &options)?;
    let there = format!("docker://{}/garden/web:v1", registry.address);
    ok("skopeo", &["copy", "--dest-tls-verify=false", &image, &there])?;
    registry.stop()?;
    ensure!(!storage.join("blobs").exists(), "blobs are in the directory too");
    ensure!(Registry::start(&storage, &[]).is_err(), "the directory was opened without its bucket");
    let registry = Registry::start(&storage, &options)?;
    let there = format!("docker://{}/garden/web:v1", registry.address);
    let back = format!("oci:{}:v1", place.path("back").display());
    ok("skopeo", &["copy", "--src-tls-verify=false", &there, &back])?;
    ensure!(digests(&image, &[])? == digests(&back, &[])?, "the image has changed on the way");
    registry.stop()
}

/// podman or buildah, with a store of its own.
struct Engine<'a> {
    program: &'a str,
    root: PathBuf,
    run_root: tempfile::TempDir,
}

impl<'a> Engine<'a> {
    fn new(program: &'a str, place: &Place) -> Result<Self> {
        let root = place.path(program);
        Ok(Self { program, root, run_root: tempfile::TempDir::with_prefix_in("engine-", "/tmp")? })
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let root = self.root.display().to_string();
        let run_root = self.run_root.path().display().to_string();
        ok(self.program, &[&["--root", &root, "--runroot", &run_root, "--storage-driver", "vfs"], args].concat())
    }
}

#[test]
fn podman_and_buildah_push_what_the_other_pulls() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let registry = Registry::start(&place.path("storage"), &[])?;
    let (podman, buildah) = (Engine::new("podman", &place)?, Engine::new("buildah", &place)?);
    let first = format!("{}/by/skopeo:1", registry.address);
    ok("skopeo", &["copy", "--dest-tls-verify=false", &image, &format!("docker://{first}")])?;
    let loaded = podman.ok(&["pull", "--quiet", "--tls-verify=false", &first])?;
    let by_podman = format!("{}/by/podman:1", registry.address);
    podman.ok(&["push", "--quiet", "--tls-verify=false", loaded.trim(), &format!("docker://{by_podman}")])?;
    let pulled = buildah.ok(&["pull", "--quiet", "--tls-verify=false", &by_podman])?;
    let by_buildah = format!("{}/by/buildah:1", registry.address);
    buildah.ok(&["push", "--quiet", "--tls-verify=false", pulled.trim(), &format!("docker://{by_buildah}")])?;
    podman.ok(&["pull", "--quiet", "--tls-verify=false", &by_buildah])?;
    let config = |name: &str| -> Result<Value> {
        Ok(digests(&format!("docker://{name}"), &["--tls-verify=false"])?["config"]["digest"].clone())
    };
    ensure!(config(&by_podman)? == config(&by_buildah)?, "the image has changed on the way");
    registry.stop()
}

struct Containerd(Child);

impl Drop for Containerd {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn containerd_pulls_and_pushes() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let registry = Registry::start(&place.path("storage"), &[])?;
    let there = format!("{}/garden/web:v1", registry.address);
    ok("skopeo", &["copy", "--dest-tls-verify=false", &image, &format!("docker://{there}")])?;
    let short = tempfile::TempDir::with_prefix_in("containerd-", "/tmp")?;
    let socket = short.path().join("socket").display().to_string();
    let config = short.path().join("config.toml");
    let text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
        place.path("containerd"),
        short.path().join("state"),
    );
    fs::File::create(&config)?.write_all(text.as_bytes())?;
    let log = fs::File::create(place.path("containerd.log"))?;
    let child = Command::new("containerd").arg("--config").arg(&config).stdout(Stdio::null()).stderr(log).spawn();
    let _server = Containerd(child.context("containerd (Debian package containerd)")?);
    let ctr = |args: &[&str]| ok("ctr", &[&["--address", socket.as_str()], args].concat());
    wait_until("containerd", SOON, || Ok(ctr(&["version"]).is_ok()))?;
    ctr(&["images", "pull", "--plain-http", "--snapshotter", "native", &there])?;
    let copy = format!("{}/garden/by-ctr:v1", registry.address);
    ctr(&["images", "tag", &there, &copy])?;
    ctr(&["images", "push", "--plain-http", &copy])?;
    let raw = |name: &str| digests(&format!("docker://{name}"), &["--tls-verify=false"]);
    ensure!(raw(&there)? == raw(&copy)?, "the image has changed on the way");
    registry.stop()
}

/// A certificate of its own for 127.0.0.1, and a file of passwords.
fn secrets(place: &Place) -> Result<(String, String, String)> {
    let path = |name: &str| place.path(name).display().to_string();
    let (key, certificate, passwords) = (path("key.pem"), path("cert.pem"), path("htpasswd"));
    // As the guide says: not one that says of itself that it is an authority.
    let subject = ["-subj", "/CN=perennial", "-addext", "subjectAltName=IP:127.0.0.1"];
    let subject = [&subject[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat();
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
    ok("openssl", &[&new[..], &subject, &["-keyout", &key, "-out", &certificate]].concat())?;
    ok("htpasswd", &["-Bbc", &passwords, "ann", "secret"])?;
    ok("htpasswd", &["-Bb", &passwords, "bob", "secret"])?;
    Ok((key, certificate, passwords))
}

#[test]
fn skopeo_and_podman_log_in_with_tls_by_password_and_by_token() -> Result<()> {
    let place = Place::new()?;
    let image = place.image()?;
    let (key, certificate, passwords) = secrets(&place)?;
    let certificates = place.path("certs");
    fs::create_dir(&certificates)?;
    fs::copy(&certificate, certificates.join("ca.crt"))?;
    let certificates = certificates.display().to_string();
    let policy = place.path("policy.json");
    let rules = r#"{"rules": [{"user": "ann", "repositories": "*", "actions": ["pull", "push", "delete"]},
        {"user": "bob", "repositories": "shared/*", "actions": ["pull"]}]}"#;
    fs::File::create(&policy)?.write_all(rules.as_bytes())?;
    let policy = policy.display().to_string();
    let podman = Engine::new("podman", &place)?;
    for scheme in ["basic", "token"] {
        let tls = ["--tls-cert", &certificate, "--tls-key", &key];
        let access = ["--auth", scheme, "--htpasswd", &passwords, "--policy", &policy];
        let registry = Registry::start(&place.path(scheme), &[&tls[..], &access].concat())?;
        let address = registry.address.as_str();
        let auth = place.path(&format!("auth-{scheme}.json")).display().to_string();
        let known = ["--authfile", &auth, "--cert-dir", &certificates];
        let login = |user: &str, password: &str| {
            ok("skopeo", &[&["login"], &known[..], &["-u", user, "-p", password, address]].concat())
        };
        ensure!(login("ann", "wrong").is_err(), "{scheme}: a wrong password is taken");
        login("ann", "secret")?;
        let there = format!("docker://{address}/shared/web:v1");
        let to = ["copy", "--authfile", &auth, "--dest-cert-dir", &certificates];
        ok("skopeo", &[&to[..], &[&image, &there]].concat())?;
        podman.ok(&[&["login"], &known[..], &["-u", "bob", "-p", "secret", address]].concat())?;
        podman.ok(&[&["pull", "--quiet"], &known[..], &[&format!("{address}/shared/web:v1")]].concat())?;
        let refused = |reference: &str| ok("skopeo", &[&to[..], &[&image, reference]].concat()).is_err();
        ensure!(refused(&there), "{scheme}: bob may push");
        ensure!(refused(&format!("docker://{address}/other/web:v1")), "{scheme}: bob may push elsewhere");
        login("ann", "secret")?;
        ok("skopeo", &[&["delete"], &known[..], &[&there]].concat())?;
        registry.stop()?;
    }
    Ok(())
}
