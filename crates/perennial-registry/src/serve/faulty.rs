//! A disk that does not give what is on it, for tests of what becomes of a blob then.

use super::app::App;
use super::storage::directory::Directory;
use super::storage::{BlobReader, BlobStore, Stamp};
use super::{Options, hash::Sum, log::Log, net, open, prepare};
use perennial_core::registry::collect::Grace;
use perennial_core::registry::name::{Algorithm, BlobDigest};
use perennial_core::registry::quota::Quota;
use perennial_core::time::Time;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A directory on a disk that gives nothing from an offset of each file on.
#[derive(Debug)]
struct Faulty {
    directory: Directory,
    fails_from: Arc<AtomicU64>,
}

#[derive(Debug)]
struct FaultyReader {
    reader: Box<dyn BlobReader>,
    fails_from: Arc<AtomicU64>,
}

impl BlobReader for FaultyReader {
    fn stamp(&self) -> &Stamp {
        self.reader.stamp()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        if offset + buffer.len() as u64 > self.fails_from.load(Ordering::Relaxed) {
            return Err(rustix::io::Errno::IO.into());
        }
        self.reader.read_at(offset, buffer)
    }
}

impl BlobStore for Faulty {
    fn publish(&self, staged: &Path, digest: &BlobDigest) -> io::Result<()> {
        self.directory.publish(staged, digest)
    }

    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn BlobReader>>> {
        let Some(reader) = self.directory.open(digest)? else { return Ok(None) };
        Ok(Some(Box::new(FaultyReader { reader, fails_from: Arc::clone(&self.fails_from) })))
    }

    fn delete(&self, digest: &BlobDigest) -> io::Result<()> {
        self.directory.delete(digest)
    }

    fn quarantine(&self, digest: &BlobDigest) -> io::Result<()> {
        self.directory.quarantine(digest)
    }

    fn list(&self, each: &mut dyn FnMut(BlobDigest, Time)) -> io::Result<()> {
        self.directory.list(each)
    }
}

fn options(storage: &Path) -> Options {
    Options {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        storage: storage.to_path_buf(),
        s3: None,
        tls: None,
        public_url: None,
        accounts: None,
        quota: Quota(None),
        is_read_only: false,
        takes_sparse: false,
        grace: Grace { nanos: 3600 * 1_000_000_000 },
        collect_every: None,
        collects_untagged: false,
        collects_strays: false,
        scrub: None,
        patience: Duration::from_secs(10),
        connections_max: 8,
        grace_of_end: Duration::from_secs(1),
        clock: || Time::from_unix_nanos(1_800_000_000_000_000_000),
        log: Log::new(|_| {}),
    }
}

/// A registry on such a disk.
struct Site {
    _runtime: tokio::runtime::Runtime,
    _ending: tokio::sync::watch::Sender<bool>,
    app: Arc<App>,
    address: SocketAddr,
    fails_from: Arc<AtomicU64>,
}

impl Site {
    fn new(storage: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let fails_from = Arc::new(AtomicU64::new(u64::MAX));
        let (_lock, identity) = prepare(&options(storage)).unwrap();
        let mut app = open(options(storage), identity).unwrap();
        let directory = Directory::open(storage).unwrap();
        app.storage = Box::new(Faulty { directory, fails_from: Arc::clone(&fails_from) });
        let app = Arc::new(app);
        let listener = runtime.block_on(tokio::net::TcpListener::bind(app.options.listen)).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, ending) = tokio::sync::watch::channel(false);
        let serving = Arc::clone(&app);
        runtime.spawn(async move { net::accept(&serving, listener, None, ending).await });
        Self { _runtime: runtime, _ending: sender, app, address, fails_from }
    }

    /// Returns the status of an answer, and its body as far as it came.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut all = Vec::new();
        // A connection that is reset has sent what it has sent.
        stream.read_to_end(&mut all).ok();
        let split = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&all[9..12]).unwrap().parse().unwrap();
        (status, all.split_off(split + 4))
    }

    fn push(&self, content: &[u8]) -> String {
        let digest = Sum::of(Algorithm::Sha256, content);
        assert_eq!(self.ask("POST", &format!("/v2/a/blobs/uploads/?digest={digest}"), content).0, 201);
        format!("/v2/a/blobs/{digest}")
    }

    fn health(&self) -> (String, usize) {
        let (_, body) = self.ask("GET", "/healthz", b"");
        let health: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(health["damaged"], serde_json::json!([]), "nothing is known to be damaged");
        (health["status"].as_str().unwrap().to_owned(), health["unreadable"].as_array().unwrap().len())
    }

    /// Waits for a state, which asking for it takes some time.
    fn wait_for(&self, status: &str, unreadable: usize) {
        let is_there = (0..5000).any(|_| self.health() == (status.to_owned(), unreadable));
        assert!(is_there, "{:?}", self.health());
    }

    fn set_aside(&self) -> usize {
        self.app.options.storage.join("quarantine").read_dir().unwrap().count()
    }
}

#[test]
fn a_blob_that_the_disk_does_not_give_is_told_of_and_kept_and_a_push_or_the_disk_mends_it() {
    let storage = tempfile::tempdir().unwrap();
    let site = Site::new(storage.path());
    // Summed at once, and streamed; a stream of a trusted copy, which nothing else reads, and one that is being summed.
    for (bytes, is_trusted) in [(1000_usize, true), (3_000_000, true), (3_000_000, false)] {
        let content: Vec<u8> = (0..bytes).map(|number| number.to_le_bytes()[1]).collect();
        let path = site.push(&content);
        let digest = BlobDigest::parse(path.rsplit('/').next().unwrap()).unwrap();
        if !is_trusted {
            site.app.verdicts.add_unreadable(&digest);
            site.app.verdicts.remove_unreadable(&digest);
        }
        assert_eq!(site.health(), ("ok".to_owned(), 0));
        for mends in ["the disk", "a push"] {
            site.fails_from.store(bytes as u64 / 2, Ordering::Relaxed);
            let (status, got) = site.ask("GET", &path, b"");
            assert!(status == 500 || got.len() < bytes, "{status} {}", got.len());
            site.wait_for("unreadable", 1);
            assert!(site.app.metrics.troubles.get() > 0);
            assert_eq!(site.ask("HEAD", &path, b"").0, 404, "so that a client pushes it again");
            let mount = format!("/v2/b/blobs/uploads/?mount={digest}&from=a");
            assert_eq!(site.ask("POST", &mount, b"").0, 202, "nor is it handed on");
            assert_eq!(site.set_aside(), 0, "its bytes may be sound");
            let stamp = || site.app.storage.open(&digest).unwrap().unwrap().stamp().clone();
            let before = stamp();
            if mends == "a push" {
                site.push(&content);
                assert_ne!(stamp(), before, "the bytes at hand take its place");
                site.wait_for("ok", 0);
                site.fails_from.store(u64::MAX, Ordering::Relaxed);
            } else {
                site.fails_from.store(u64::MAX, Ordering::Relaxed);
            }
            assert!(site.ask("GET", &path, b"").1 == content, "it is asked of the disk again");
            site.wait_for("ok", 0);
            assert_eq!(site.ask("HEAD", &path, b"").0, 200);
        }
        assert_eq!(site.ask("DELETE", &path, b"").0, 202);
    }
}
