//! The registry killed before its system calls: what it has acknowledged is there, and nothing is there in part.
//!
//! It has many threads, and strace counts the calls of each by itself, so a point is "the n-th call of its kind in any
//! thread". Some points are taken, from a start that differs from run to run; `PERENNIAL_KILL_EVERY=1` takes all.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "helpers of tests act like the tests")]
#![expect(clippy::print_stdout, reason = "a test tells how many points it has taken")]

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::kill::Points;
use serde_json::{Value, json};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Calls that change something on the disk.
const CALLS: &str = "write,pwrite64,fsync,fdatasync,rename,unlink,ftruncate";
/// As before, without those that only wake a thread or log where nothing is uploaded.
const CALLS_OF_COLLECTION: &str = "pwrite64,fsync,fdatasync,rename,unlink,ftruncate";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

struct Registry {
    child: Child,
    /// Nothing where it was killed before it listened.
    address: Option<String>,
}

impl Registry {
    fn start(mut command: Command, storage: &Path, options: &[&str]) -> Result<Self> {
        command.arg(env!("CARGO_BIN_EXE_perennial"));
        command.args(["--json", "registry", "--listen", "127.0.0.1:0", "--storage"]).arg(storage).args(options);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let address =
            serde_json::from_str::<Value>(&line).ok().and_then(|said| Some(said["address"].as_str()?.to_owned()));
        Ok(Self { child, address })
    }

    fn plain(storage: &Path, options: &[&str]) -> Result<Self> {
        Self::start(Command::new("env"), storage, options)
    }

    /// Sends a request; nothing where the registry has died.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Option<Answer> {
        let mut stream = TcpStream::connect(self.address.as_ref()?).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        // A registry that refuses does not read on.
        stream.write_all(body).ok()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).ok()?;
        let split = all.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(all[..split].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Answer { status, head, body: all[split + 4..].to_vec() })
    }

    fn end(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        ensure!(self.child.wait()?.success(), "it ended badly");
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Gone already where it was killed or ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

fn sha256(content: &[u8]) -> String {
    let sum = sha2::Sha256::digest(content);
    format!("sha256:{}", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

fn manifest(layers: &[&[u8]]) -> Vec<u8> {
    let descriptor = |content: &[u8]| json!({"mediaType": "x/y", "digest": sha256(content), "size": content.len()});
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(layer)).collect();
    let config = descriptor(b"{}");
    json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers}).to_string().into_bytes()
}

/// What has been acknowledged, and what might be.
#[derive(Default)]
struct Ledger {
    blobs: BTreeMap<String, Vec<u8>>,
    /// What the tag may name: nothing at first.
    tag: Vec<Option<Vec<u8>>>,
    /// An upload and where it stood.
    upload: Option<(String, usize)>,
    /// Blobs that collection may free.
    is_collecting: bool,
}

/// Bytes that do not repeat soon.
fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

struct Contents {
    one: Vec<u8>,
    two: Vec<u8>,
    half: Vec<u8>,
}

impl Contents {
    fn new() -> Self {
        Self { one: noise(700_000, 1), two: noise(2000, 2), half: noise(300_000, 3) }
    }

    fn all(&self) -> [&[u8]; 4] {
        [b"{}", &self.one, &self.two, &self.half]
    }
}

/// Pushes, replaces and deletes until the registry dies or all is done; tells whether all was done.
fn work(registry: &Registry, contents: &Contents, ledger: &mut Ledger) -> Option<()> {
    let push = |content: &[u8], ledger: &mut Ledger| {
        let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(content));
        let answer = registry.ask("POST", &path, "", content)?;
        assert_eq!(answer.status, 201, "{}", answer.head);
        ledger.blobs.insert(sha256(content), content.to_vec());
        Some(())
    };
    let begin = || {
        let answer = registry.ask("POST", "/v2/a/blobs/uploads/", "", b"")?;
        assert_eq!(answer.status, 202, "{}", answer.head);
        Some(answer.header("location")?.to_owned())
    };
    push(b"{}", ledger)?;
    push(&contents.two, ledger)?;
    let path = begin()?;
    for (at, chunk) in contents.one.chunks(400_000).enumerate() {
        let first = at * 400_000;
        let range = format!("Content-Range: {first}-{}\r\n", first + chunk.len() - 1);
        let answer = registry.ask("PATCH", &path, &range, chunk)?;
        assert_eq!(answer.status, 202, "{}", answer.head);
        ledger.upload = Some((path.clone(), first + chunk.len()));
    }
    ledger.upload = None;
    let answer = registry.ask("PUT", &format!("{path}?digest={}", sha256(&contents.one)), "", b"")?;
    assert_eq!(answer.status, 201, "{}", answer.head);
    ledger.blobs.insert(sha256(&contents.one), contents.one.clone());
    for layers in [vec![contents.one.as_slice()], vec![contents.one.as_slice(), &contents.two]] {
        let content = manifest(&layers);
        if ledger.tag.is_empty() {
            ledger.tag.push(None);
        }
        ledger.tag.push(Some(content.clone()));
        let answer = registry.ask("PUT", "/v2/a/manifests/v1", &format!("Content-Type: {IMAGE}\r\n"), &content)?;
        assert_eq!(answer.status, 201, "{}", answer.head);
        ledger.tag = vec![Some(content)];
    }
    let path = begin()?;
    let answer = registry.ask("PATCH", &path, "", &contents.half)?;
    assert_eq!(answer.status, 202, "{}", answer.head);
    ledger.upload = Some((path, contents.half.len()));
    let gone = sha256(&manifest(&[&contents.one, &contents.two]));
    ledger.tag.push(None);
    let answer = registry.ask("DELETE", &format!("/v2/a/manifests/{gone}"), "", b"")?;
    assert_eq!(answer.status, 202, "{}", answer.head);
    ledger.tag = vec![None];
    let digest = sha256(&contents.two);
    let held = ledger.blobs.remove(&digest);
    let answer = registry.ask("DELETE", &format!("/v2/a/blobs/{digest}"), "", b"")?;
    assert_eq!(answer.status, 202, "{}", answer.head);
    drop(held);
    Some(())
}

/// Demands of what the registry left that everything acknowledged is there, and nothing in part.
fn check(storage: &Path, contents: &Contents, ledger: &Ledger) -> Result<()> {
    let registry = Registry::plain(storage, &[])?;
    let ask = |path: &str| registry.ask("GET", path, "", b"").context("it answers");
    for content in contents.all() {
        let digest = sha256(content);
        let got = ask(&format!("/v2/a/blobs/{digest}"))?;
        let is_demanded = ledger.blobs.contains_key(&digest) && !ledger.is_collecting;
        ensure!(got.status == 200 || (!is_demanded && got.status == 404), "{digest}: {}", got.head);
        ensure!(got.status == 404 || got.body == content, "{digest} is not what it was");
    }
    let got = ask("/v2/a/manifests/v1")?;
    let found = (got.status == 200).then_some(got.body);
    let may = if ledger.tag.is_empty() { &vec![None] } else { &ledger.tag };
    ensure!(may.contains(&found), "the tag names {:?}", found.map(String::from_utf8));
    if let Some(manifest) = found {
        let manifest: Value = serde_json::from_slice(&manifest)?;
        for layer in manifest["layers"].as_array().context("layers")? {
            let digest = layer["digest"].as_str().context("a digest")?;
            ensure!(ask(&format!("/v2/a/blobs/{digest}"))?.status == 200, "{digest} of the manifest is gone");
        }
    }
    if let Some((path, bytes)) = &ledger.upload {
        let range = ask(path)?.header("range").map(str::to_owned);
        let stands = range.and_then(|range| range.strip_prefix("0-")?.parse::<usize>().ok()).context("a range")?;
        ensure!(stands + 1 >= *bytes, "the upload stood at {bytes} and stands at {}", stands + 1);
    }
    for file in files(&storage.join("blobs")) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        ensure!(sha256(&fs::read(&file)?) == format!("sha256:{name}"), "{name} is there in part");
    }
    // And it all works again.
    work(&registry, contents, &mut Ledger::default()).context("it works after the kill")?;
    registry.end()
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Counts the calls of each kind in the thread that makes most of them.
fn recorded(log: &Path, calls: &str) -> Result<Vec<(String, usize)>> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log)?.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((call, _)) =
            call.trim_start().split_once('(').filter(|(call, _)| calls.split(',').any(|known| known == *call))
        else {
            continue;
        };
        *counts.entry((call.to_owned(), thread.to_owned())).or_default() += 1;
    }
    let mut most: BTreeMap<String, usize> = BTreeMap::new();
    for ((call, _), count) in counts {
        let entry = most.entry(call).or_default();
        *entry = (*entry).max(count);
    }
    Ok(most.into_iter().flat_map(|(call, count)| (1..=count).map(move |nth| (call.clone(), nth))).collect())
}

fn strace(log: &Path, calls: &str, inject: Option<&str>) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(log).args(["-e", &format!("trace={calls}")]);
    if let Some(inject) = inject {
        command.args(["-e", inject]);
    }
    command.arg("--");
    command
}

struct Scenario<'a> {
    /// What the storage is before.
    prepare: &'a dyn Fn(&Path) -> Result<Ledger>,
    options: &'a [&'a str],
    /// Before which calls it may die, and every how manieth is taken.
    calls: &'a str,
    every: usize,
    /// What is done while it may die.
    act: &'a dyn Fn(&Registry, &mut Ledger),
}

/// Runs it once, and returns the storage, what it should hold, and whether the registry was killed.
fn once(scenario: &Scenario<'_>, inject: Option<&str>) -> Result<(TempDir, Ledger, bool)> {
    let place = TempDir::with_prefix("registry-kill-")?;
    let storage = place.path().join("storage");
    let mut ledger = (scenario.prepare)(&storage)?;
    let log = place.path().join("log");
    let mut registry = Registry::start(strace(&log, scenario.calls, inject), &storage, scenario.options)?;
    (scenario.act)(&registry, &mut ledger);
    // strace ends as its victim has; a victim that lives is ended, and strace with it.
    let ended = registry.child.try_wait()?;
    if ended.is_none() && registry.ask("GET", "/v2/", "", b"").is_some() {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", registry.child.id()))?;
        for pid in children.split_whitespace() {
            let pid = rustix::process::Pid::from_raw(pid.parse()?).context("a process id")?;
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
    }
    registry.child.wait()?;
    let was_killed = fs::read_to_string(&log)?.contains("+++ killed by SIGKILL +++");
    Ok((place, ledger, was_killed))
}

fn kill_everywhere(scenario: &Scenario<'_>, contents: &Contents) -> Result<()> {
    let (place, ledger, _) = once(scenario, None)?;
    check(&place.path().join("storage"), contents, &ledger).context("undisturbed")?;
    let all = recorded(&place.path().join("log"), scenario.calls)?;
    let chosen: Vec<(String, usize)> = match Points::from_env(scenario.every)? {
        Points::Only(point) => vec![(point.call, usize::try_from(point.nth)?)],
        Points::Stride { every, offset } => all.iter().skip(offset).step_by(every).cloned().collect(),
    };
    let mut killed = 0;
    for (call, nth) in &chosen {
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        let (place, ledger, was_killed) = once(scenario, Some(&inject))?;
        killed += u32::from(was_killed);
        check(&place.path().join("storage"), contents, &ledger)
            .with_context(|| format!("repeat it with PERENNIAL_KILL_ONLY={call}:{nth}"))?;
    }
    println!("{killed} kills of {} chosen points, {} recorded", chosen.len(), all.len());
    ensure!(killed > 0, "no point of {} was reached", chosen.len());
    Ok(())
}

#[test]
fn whatever_a_killed_registry_has_acknowledged_is_there_and_nothing_in_part() -> Result<()> {
    let contents = Contents::new();
    let prepare = |storage: &Path| {
        Registry::plain(storage, &[])?.end()?;
        Ok(Ledger::default())
    };
    let act = |registry: &Registry, ledger: &mut Ledger| {
        // How far it came is in the ledger.
        work(registry, &contents, ledger);
    };
    kill_everywhere(&Scenario { prepare: &prepare, options: &[], calls: CALLS, every: 41, act: &act }, &contents)
}

#[test]
fn a_collection_that_is_killed_loses_nothing_that_is_needed() -> Result<()> {
    let contents = Contents::new();
    let prepare = |storage: &Path| {
        let registry = Registry::plain(storage, &[])?;
        let mut ledger = Ledger { is_collecting: true, ..Ledger::default() };
        for content in contents.all() {
            let path = format!("/v2/a/blobs/uploads/?digest={}", sha256(content));
            ensure!(registry.ask("POST", &path, "", content).context("an answer")?.status == 201);
        }
        let content = manifest(&[&contents.one]);
        let put = registry.ask("PUT", "/v2/a/manifests/v1", &format!("Content-Type: {IMAGE}\r\n"), &content);
        ensure!(put.context("an answer")?.status == 201);
        ledger.tag = vec![Some(content)];
        registry.end()?;
        // As after an hour, so that the grace is over.
        let record = rusqlite::Connection::open(storage.join("registry.db"))?;
        let aged = record.execute("UPDATE link SET touched_at = touched_at - 3600000000000", [])?;
        ensure!(aged > 0, "nothing was pushed");
        Ok(ledger)
    };
    let act = |registry: &Registry, _: &mut Ledger| {
        // Until the last of what nothing needs is gone, or the registry is.
        let freed = |answer: Answer| String::from_utf8_lossy(&answer.body).contains("blobs_freed_total 2\n");
        perennial_testkit::host::wait_until("the collection", LIMIT, || {
            Ok(registry.ask("GET", "/metrics", "", b"").is_none_or(freed))
        })
        .unwrap();
    };
    let options = ["--gc-every", "1s", "--gc-grace", "1m"];
    kill_everywhere(
        &Scenario { prepare: &prepare, options: &options, calls: CALLS_OF_COLLECTION, every: 5, act: &act },
        &contents,
    )
}
