//! A registry of Debian's package, one of ours, and a proxy before it that counts, cuts and refuses.

use anyhow::{Result, ensure};
use perennial_testkit::host::wait_until;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Longest time for a registry to start.
const START: Duration = Duration::from_secs(30);

/// A running registry, ended when dropped.
pub(crate) struct Registry {
    child: Option<Child>,
    pub(crate) port: u16,
    dir: TempDir,
    namespace: Option<String>,
    make: Make,
}

/// Whose registry it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Make {
    Debian,
    Ours,
}

impl Registry {
    pub(crate) fn start() -> Result<Self> {
        Self::start_in(None)
    }

    /// Starts one in a network namespace.
    pub(crate) fn start_in(namespace: Option<&str>) -> Result<Self> {
        Self::start_of(Make::Debian, namespace)
    }

    /// Starts one that compares before it moves a tag.
    pub(crate) fn start_ours() -> Result<Self> {
        Self::start_of(Make::Ours, None)
    }

    fn start_of(make: Make, namespace: Option<&str>) -> Result<Self> {
        let dir = TempDir::with_prefix("perennial-registry-")?;
        let port = free_port()?;
        let mut registry = Self { child: None, port, dir, namespace: namespace.map(str::to_owned), make };
        registry.up()?;
        Ok(registry)
    }

    /// Starts it, again with what it had.
    pub(crate) fn up(&mut self) -> Result<()> {
        if self.make == Make::Ours {
            return self.up_ours();
        }
        let (path, port) = (self.dir.path().display(), self.port);
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\nhttp: {{addr: 0.0.0.0:{port}}}\n"
        );
        let file = self.dir.path().join("config.yml");
        perennial_testkit::host::write(&file, config)?;
        let inside = self.namespace.iter().flat_map(|name| ["ip", "netns", "exec", name.as_str()]);
        let words: Vec<&str> = inside.chain(["docker-registry"]).collect();
        let (program, arguments) = words.split_first().ok_or_else(|| anyhow::anyhow!("no program"))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(command.spawn()?);
        wait_until("the registry answers", START, || self.answers())
    }

    fn up_ours(&mut self) -> Result<()> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perennial"));
        command.args(["registry", "--listen", &self.address(), "--storage"]).arg(self.dir.path().join("ours"));
        self.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        wait_until("our registry answers", START, || self.answers())
    }

    fn answers(&self) -> Result<bool> {
        let Some(namespace) = &self.namespace else {
            return Ok(TcpStream::connect(("127.0.0.1", self.port)).is_ok());
        };
        let mut look = Command::new("ip");
        look.args(["netns", "exec", namespace, "ss", "-Hltn", &format!("sport = :{}", self.port)]);
        Ok(!look.output()?.stdout.is_empty())
    }

    /// Ends it; what it has stays.
    pub(crate) fn down(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the bytes of all blobs it has.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let mut sum = 0;
        for blob in self.blobs()? {
            sum += blob.metadata()?.len();
        }
        Ok(sum)
    }

    /// Returns whether these bytes are anywhere in what it keeps, names of files among it.
    pub(crate) fn contains(&self, bytes: &[u8]) -> Result<bool> {
        let mut all = Vec::new();
        files(self.dir.path(), &mut all)?;
        ensure!(!all.is_empty(), "it keeps nothing");
        for path in all {
            let has = |text: &[u8]| text.windows(bytes.len()).any(|window| window == bytes);
            if has(path.as_os_str().as_encoded_bytes()) || has(&fs::read(&path)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the directory of a repository, as Debian's has it.
    pub(crate) fn repository_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("data/docker/registry/v2/repositories").join(name)
    }

    /// Returns the file of a blob, as Debian's has it.
    pub(crate) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let start = hex.get(..2).unwrap_or_default();
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(start).join(hex).join("data")
    }

    /// Returns the file of the parcel that a tag of a repository leads to, as Debian's has it.
    pub(crate) fn parcel(&self, repository: &str, tag: &str) -> Result<PathBuf> {
        let link = self.repository_dir(repository).join("_manifests/tags").join(tag).join("current/link");
        let manifest: serde_json::Value = serde_json::from_slice(&fs::read(self.blob(&fs::read_to_string(link)?))?)?;
        let digest = manifest.pointer("/config/digest").and_then(serde_json::Value::as_str).unwrap_or_default();
        Ok(self.blob(digest))
    }

    /// Returns the files of all blobs it has.
    pub(crate) fn blobs(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        files(&self.dir.path().join("data/docker/registry/v2/blobs"), &mut found)?;
        Ok(found)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.down().ok();
    }
}

pub(crate) fn files(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Longest time that a proxy holds anything.
const HELD: Duration = Duration::from_secs(120);

pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What a proxy has seen, and what it does.
#[derive(Default)]
pub(crate) struct Counts {
    /// Bytes towards the registry, and from it, on the wire.
    pub(crate) up: AtomicU64,
    pub(crate) down: AtomicU64,
    /// Connections are cut when so many bytes in all have passed; 0 for never.
    pub(crate) cut_at: AtomicU64,
    /// Nothing more passes when so many bytes have come from the registry, until it is 0 again, which is for never.
    pub(crate) hold_at: AtomicU64,
    stop: AtomicBool,
}

/// A proxy before a registry.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    pub(crate) counts: Arc<Counts>,
}

impl Proxy {
    pub(crate) fn before(port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let own = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (from, to, is_up) in [(&client, &server, true), (&server, &client, false)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || pump(from, to, &shared, is_up));
                }
            }
        });
        Ok(Self { port: own, counts })
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns what has passed in both directions since the last call.
    pub(crate) fn take(&self) -> (u64, u64) {
        (self.counts.up.swap(0, Ordering::SeqCst), self.counts.down.swap(0, Ordering::SeqCst))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, counts: &Counts, is_up: bool) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        let counter = if is_up { &counts.up } else { &counts.down };
        counter.fetch_add(count as u64, Ordering::SeqCst);
        let is_free = || {
            let hold_at = counts.hold_at.load(Ordering::SeqCst);
            Ok(hold_at == 0 || counts.down.load(Ordering::SeqCst) < hold_at)
        };
        // Who holds it for longer than that has failed already.
        drop(wait_until("it is let go of", HELD, is_free));
        let cut_at = counts.cut_at.load(Ordering::SeqCst);
        let passed = counts.up.load(Ordering::SeqCst) + counts.down.load(Ordering::SeqCst);
        if count == 0
            || (cut_at > 0 && passed >= cut_at)
            || to.write_all(buffer.get(..count).unwrap_or_default()).is_err()
        {
            break;
        }
    }
    // Either side may be gone.
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

/// Fails unless a number is within a bound.
pub(crate) fn at_most(what: &str, found: u64, max: u64) -> Result<()> {
    ensure!(found <= max, "{what}: {found} bytes, at most {max} were expected");
    Ok(())
}
