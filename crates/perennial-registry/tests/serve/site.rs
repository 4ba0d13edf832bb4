//! A registry in this process, and a client that sends what it is told to, byte for byte.

#![expect(unreachable_pub, reason = "a test has no outside")]
use perennial_core::registry::collect::Grace;
use perennial_core::registry::quota::Quota;
use perennial_core::time::Time;
use perennial_registry::serve::log::Log;
use perennial_registry::serve::{BLOCKING_THREADS, Options, serve};
use serde_json::Value;
use sha2::Digest as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Returns options for a registry in `storage`, with times short enough for tests.
pub fn options(storage: &Path) -> Options {
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
        patience: Duration::from_secs(2),
        connections_max: 64,
        grace_of_end: Duration::from_secs(5),
        clock: now,
        log: Log::new(|_| {}),
    }
}

pub fn now() -> Time {
    #[expect(clippy::disallowed_methods, reason = "the tests are the edge that reads the clock")]
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Time::from_unix_nanos(i64::try_from(since.as_nanos()).unwrap())
}

/// A registry that runs until this is dropped.
pub struct Site {
    pub address: SocketAddr,
    pub storage: PathBuf,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Site {
    pub fn start(options: Options) -> Self {
        let storage = options.storage.clone();
        let (ready, started) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime =
                builder.worker_threads(2).max_blocking_threads(BLOCKING_THREADS).enable_all().build().unwrap();
            let end = async {
                stopped.await.ok();
            };
            runtime.block_on(serve(options, |address| ready.send(address).unwrap(), end)).unwrap();
        });
        let address = started.recv_timeout(LIMIT).expect("the registry starts");
        Self { address, storage, stop: Some(stop), thread: Some(thread) }
    }

    pub fn new(storage: &Path) -> Self {
        Self::start(options(storage))
    }

    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let length = body.len().to_string();
        let mut all = vec![("Content-Length", length.as_str()), ("Connection", "close")];
        all.extend(headers);
        self.send(method, path, &all, body).unwrap()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    /// Sends a request with exactly these headers, and reads what comes until the end.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
        let mut stream = self.open(method, path, headers)?;
        stream.write_all(body)?;
        Answer::read(stream, method)
    }

    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        Ok(stream)
    }

    /// Pushes a blob and returns its digest.
    pub fn push(&self, name: &str, content: &[u8]) -> String {
        let digest = sha256(content);
        let answer = self.ask("POST", &format!("/v2/{name}/blobs/uploads/?digest={digest}"), &[], content);
        assert_eq!(answer.status, 201, "{}", answer.text());
        digest
    }

    /// Begins an upload and returns its path.
    pub fn begin(&self, name: &str) -> String {
        let answer = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"");
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.header("location").unwrap().to_owned()
    }

    /// Pushes an image of one config and some layers as `reference`; returns its manifest.
    pub fn push_image(&self, name: &str, reference: &str, layers: &[&[u8]]) -> Vec<u8> {
        let manifest = image(&self.push(name, b"{}"), layers.iter().map(|layer| self.push(name, layer)));
        let answer = self.put_manifest(name, reference, &manifest);
        assert_eq!(answer.status, 201, "{}", answer.text());
        manifest
    }

    pub fn put_manifest(&self, name: &str, reference: &str, manifest: &[u8]) -> Answer {
        self.ask("PUT", &format!("/v2/{name}/manifests/{reference}"), &[("Content-Type", IMAGE)], manifest)
    }

    /// Files below a directory of the storage.
    pub fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.storage.join(below)];
        while let Some(directory) = todo.pop() {
            for entry in directory.read_dir().unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { todo.push(path) } else { found.push(path) }
            }
        }
        found
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.stop.take());
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking(), "the registry ends well");
    }
}

pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub fn image(config: &str, layers: impl Iterator<Item = String>) -> Vec<u8> {
    let descriptor = |kind: &str, digest: &str| serde_json::json!({"mediaType": kind, "digest": digest, "size": 2});
    let layers: Vec<Value> =
        layers.map(|digest| descriptor("application/vnd.oci.image.layer.v1.tar", &digest)).collect();
    serde_json::json!({
        "schemaVersion": 2, "mediaType": IMAGE, "layers": layers,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
    })
    .to_string()
    .into_bytes()
}

pub fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex(&sha2::Sha256::digest(content)))
}

pub fn sha512(content: &[u8]) -> String {
    format!("sha512:{}", hex(&sha2::Sha512::digest(content)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that do not repeat soon.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[0]
        })
        .collect()
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether all came that was announced.
    pub is_whole: bool,
}

impl Answer {
    pub fn read(mut stream: TcpStream, method: &str) -> std::io::Result<Self> {
        let mut bytes = Vec::new();
        // A connection that is reset has sent what it has sent.
        let ended = stream.read_to_end(&mut bytes);
        let split = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let Some(split) = split else {
            return Err(ended.err().unwrap_or_else(|| std::io::ErrorKind::UnexpectedEof.into()));
        };
        let head = String::from_utf8_lossy(&bytes[..split]).into_owned();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: bytes[split + 4..].to_vec(), is_whole: true };
        let length = answer.header("content-length").map(|text| text.parse::<usize>().unwrap());
        answer.is_whole = method == "HEAD" || length.is_none_or(|length| length == answer.body.len());
        Ok(answer)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// The status and the specification's code.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
    }
}

/// Puts a file where a test wants one.
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    std::fs::File::create(path).unwrap().write_all(content.as_ref()).unwrap();
}

/// Waits for a state.
pub fn wait_until(what: &str, mut is_there: impl FnMut() -> bool) {
    let until = now().unix_nanos() + i64::try_from(LIMIT.as_nanos()).unwrap();
    while !is_there() {
        assert!(now().unix_nanos() < until, "waited too long for {what}");
        #[expect(clippy::disallowed_methods, reason = "the tests are the edge that waits")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.refusal(), (status, code.to_owned()), "{}", answer.text());
}
