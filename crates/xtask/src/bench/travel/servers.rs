//! What stands between the two machines: Debian's registry, or a server that speaks S3, and a proxy before it that counts.

use crate::clock;
use anyhow::{Context as _, ensure};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Longest time for a server to start, and between two looks whether it has.
const START: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);
/// Bytes the proxy takes at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The bucket that is there from the beginning.
pub(super) const BUCKET: &str = "bench";

/// A server and the proxy before it.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    port: u16,
    bytes: Arc<AtomicU64>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().and_then(|()| self.child.wait().map(drop)).ok();
    }
}

impl Server {
    /// Starts Debian's registry, which keeps everything in `directory`.
    pub(super) fn registry(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let (port, path) = (free_port()?, directory.display());
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
        );
        std::fs::File::create(directory.join("config.yml"))?.write_all(config.as_bytes())?;
        let mut serve = Command::new("docker-registry");
        serve.arg("serve").arg(directory.join("config.yml"));
        Self::start(serve, port)
    }

    /// Starts the server that speaks S3, which keeps everything in `directory` and knows whoever does not say a name.
    pub(super) fn s3(directory: &Path) -> anyhow::Result<Self> {
        let port = free_port()?;
        let mut serve = Command::new("s3rver");
        serve.args(["--silent", "--no-vhost-buckets", "--address", "127.0.0.1", "--port", &port.to_string()]);
        serve.args(["--configure-bucket", BUCKET, "--directory"]).arg(directory);
        Self::start(serve, port)
    }

    fn start(mut serve: Command, port: u16) -> anyhow::Result<Self> {
        let name = serve.get_program().to_string_lossy().into_owned();
        let child = serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot run {name}"))?;
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen for the clients of a server")?;
        let server = Self { child, port: listener.local_addr()?.port(), bytes: Arc::default() };
        let started = clock::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(started.elapsed() < START, "{name} does not start");
            clock::wait(LOOK);
        }
        let bytes = Arc::clone(&server.bytes);
        std::thread::spawn(move || count(&listener, port, &bytes));
        Ok(server)
    }

    /// Returns the port at which everything is counted.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the bytes that have passed, to the server and from it, since this was last asked.
    pub(super) fn passed(&self) -> u64 {
        self.bytes.swap(0, Ordering::Relaxed)
    }
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Connects each client with the server, and counts what passes.
fn count(listener: &TcpListener, port: u16, bytes: &Arc<AtomicU64>) {
    for client in listener.incoming().flatten() {
        let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            // What comes in small writes goes on at once, as without a proxy. A socket that is gone does not care.
            to.set_nodelay(true).ok();
            let bytes = Arc::clone(bytes);
            std::thread::spawn(move || pump(from, to, &bytes));
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count) = from.read(&mut buffer) {
        bytes.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
        if count == 0 || to.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
            break;
        }
    }
    // Either side may be gone.
    to.shutdown(Shutdown::Both).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_in_both_directions_and_once() {
        let echo = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = echo.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut client = echo.accept().unwrap().0;
            let mut asked = [0; 3];
            client.read_exact(&mut asked).unwrap();
            client.write_all(b"an answer").unwrap();
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let bytes = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&bytes);
        std::thread::spawn(move || count(&listener, port, &counted));
        let mut client = TcpStream::connect(("127.0.0.1", own)).unwrap();
        client.write_all(b"ask").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "an answer");
        assert_eq!(bytes.load(Ordering::Relaxed), 3 + 9);
    }
}
