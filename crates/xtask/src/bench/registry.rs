//! The registry beside Debian's docker-registry, over the loopback device, with blobs on a file system made for it.
//!
//! Both run at once and idle while the other works; samples alternate. The client is this program: it speaks to both in
//! the same words, and reads into one buffer. CPU and memory are those of the servers' processes.

use super::command;
use super::scratch::{Kind, Scratch};
use crate::clock;
use anyhow::{Context as _, ensure};
use sha2::Digest as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections on which small blobs are pushed at once, as a client does.
const PUSHERS: usize = 8;
/// Bytes of a small blob.
const SMALL_BYTES: usize = 1024;
/// Bytes of the blob that many pull at once.
const SHARED_BYTES: usize = 4 << 20;
/// Longest wait for a server to listen, and for an answer.
const LIMIT: Duration = Duration::from_secs(120);

/// Options of `cargo xtask bench registry`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Samples of each operation
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Bytes of the large blob, in MiB
    #[arg(long, default_value_t = 200)]
    large_mib: usize,
    /// Pulls at once
    #[arg(long, default_value_t = 1000)]
    pulls: usize,
    /// Small blobs in a sample
    #[arg(long, default_value_t = 20_000)]
    small: usize,
    /// Measures this program instead of building the release binary
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

struct Server {
    name: &'static str,
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already where it failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
struct Used {
    cpu_s: f64,
    peak_mib: f64,
}

impl Server {
    fn start(name: &'static str, place: &Path, program: &Path) -> anyhow::Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let storage = place.join(name);
        let mut command = Command::new(program);
        if name == "docker-registry" {
            let config = place.join("config.yml");
            let text = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {storage:?}}}}}\nhttp: {{addr: {address:?}}}\n"
            );
            std::fs::File::create(&config)?.write_all(text.as_bytes())?;
            command.arg("serve").arg(config);
        } else {
            command.args(["registry", "--listen", &address, "--storage"]).arg(&storage);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self { name, child: child.with_context(|| format!("cannot run {name}"))?, port };
        let begin = clock::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(begin.elapsed() < LIMIT, "{name} does not listen");
            clock::wait(Duration::from_millis(20));
        }
        Ok(server)
    }

    fn used(&self) -> anyhow::Result<Used> {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id()));
        let stat = read("stat")?;
        let fields: Vec<&str> = stat.rsplit_once(')').context("a stat line")?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).context("a number of ticks");
        let peak = read("status")?;
        let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a peak")?;
        let peak_kib: f64 = peak.trim().trim_end_matches("kB").trim().parse()?;
        // The kernel counts in hundredths of a second for programs.
        Ok(Used { cpu_s: (ticks(11)? + ticks(12)?) / 100.0, peak_mib: peak_kib / 1024.0 })
    }

    fn connect(&self) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Connection { reader: BufReader::with_capacity(16 * 1024, stream) })
    }

    /// Pushes a blob as clients do: POST, then PUT.
    fn push(&self, connection: &mut Connection, content: &[u8]) -> anyhow::Result<()> {
        let (status, location, _) = connection.ask("POST", "/v2/bench/blobs/uploads/", b"")?;
        ensure!(status == 202, "{}: POST is answered with {status}", self.name);
        let location = location.context("a place to push to")?;
        let path = match location.strip_prefix("http://") {
            Some(rest) => rest.split_once('/').map_or(String::new(), |(_, path)| format!("/{path}")),
            None => location,
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        let (status, ..) = connection.ask("PUT", &format!("{path}{separator}digest={}", digest(content)), content)?;
        ensure!(status == 201, "{}: PUT is answered with {status}", self.name);
        Ok(())
    }

    fn pull(&self, digest: &str, bytes: usize) -> anyhow::Result<()> {
        let (status, _, came) = self.connect()?.ask("GET", &format!("/v2/bench/blobs/{digest}"), b"")?;
        ensure!(status == 200 && came == bytes, "{}: {status}, {came} of {bytes} bytes", self.name);
        Ok(())
    }
}

struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Sends a request; returns the status, the location and the number of bytes that came.
    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<(u16, Option<String>, usize)> {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {length}\r\n\r\n");
        self.reader.get_mut().write_all(head.as_bytes())?;
        self.reader.get_mut().write_all(body)?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|text| text.parse().ok()).context("a status")?;
        let (mut location, mut left) = (None, 0_usize);
        loop {
            line.clear();
            self.reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "location" => location = Some(value.to_owned()),
                "content-length" => left = value.parse()?,
                _ => {}
            }
        }
        let mut buffer = vec![0; (1 << 20).min(left)];
        let mut came = 0;
        while came < left {
            let count = self.reader.read(&mut buffer)?;
            ensure!(count > 0, "the answer ended after {came} of {left} bytes");
            came += count;
        }
        Ok((status, location, came))
    }
}

fn digest(content: &[u8]) -> String {
    let sum = sha2::Sha256::digest(content);
    format!("sha256:{}", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// Content that is no other's.
fn content(bytes: usize, number: usize) -> Vec<u8> {
    let mut state = u64::try_from(number).unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend(state.to_le_bytes());
    }
    content.truncate(bytes);
    content
}

/// One operation of one server.
struct Sample {
    operation: &'static str,
    server: &'static str,
    seconds: f64,
    cpu_s: f64,
    amount: f64,
    unit: &'static str,
}

struct Bench<'a> {
    options: &'a Options,
    samples: Vec<Sample>,
    number: usize,
}

impl Bench<'_> {
    fn measure(
        &mut self,
        server: &Server,
        (operation, amount, unit): (&'static str, f64, &'static str),
        work: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let before = server.used()?;
        let (result, took) = clock::timed(work);
        result.with_context(|| format!("{operation} of {}", server.name))?;
        let cpu_s = server.used()?.cpu_s - before.cpu_s;
        self.samples.push(Sample { operation, server: server.name, seconds: took.as_secs_f64(), cpu_s, amount, unit });
        Ok(())
    }

    fn round(&mut self, servers: &[&Server], scratch: &Scratch) -> anyhow::Result<()> {
        let (large, options) = (self.options.large_mib << 20, self.options);
        for server in servers {
            self.number += 1;
            let blob = content(large, self.number);
            let name = digest(&blob);
            scratch.settle()?;
            let mib = options.large_mib as f64;
            self.measure(server, ("push", mib, "MiB"), || server.push(&mut server.connect()?, &blob))?;
            self.measure(server, ("get", mib, "MiB"), || server.pull(&name, large))?;
        }
        for server in servers {
            self.number += 1;
            let blob = content(SHARED_BYTES, self.number);
            let name = digest(&blob);
            server.push(&mut server.connect()?, &blob)?;
            let mib = (options.pulls * SHARED_BYTES) as f64 / f64::from(1 << 20);
            self.measure(server, ("pulls at once", mib, "MiB"), || pulls(server, &name, options.pulls))?;
        }
        for server in servers {
            self.number += options.small;
            let first = self.number;
            scratch.settle()?;
            let amount = options.small as f64;
            self.measure(server, ("small blobs", amount, "blobs"), || small(server, first, options.small))?;
        }
        Ok(())
    }
}

fn pulls(server: &Server, name: &str, count: usize) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let thread = std::thread::Builder::new().stack_size(128 * 1024);
                thread.spawn_scoped(scope, || server.pull(name, SHARED_BYTES))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread?.join().unwrap_or_else(|_| anyhow::bail!("a pull panicked")))
    })
}

fn small(server: &Server, first: usize, count: usize) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            let mut connection = server.connect()?;
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return Ok(());
                }
                server.push(&mut connection, &content(SMALL_BYTES, first + at))?;
            }
        };
        let threads: Vec<_> = (0..PUSHERS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a push panicked")))
    })
}

/// Runs the benchmark and prints a table.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?,
        None => {
            command::run("cargo", &["build", "--release", "--locked", "-p", "perennial"])?;
            target.join("release/perennial")
        }
    };
    let scratch = Scratch::create(&target.join("bench"), 24 << 30, Kind::Ext4 { inodes: 2_000_000 })?;
    let ours = Server::start("perennial", &scratch.path(), &program)?;
    let theirs = Server::start("docker-registry", &scratch.path(), Path::new("docker-registry"))?;
    let mut bench = Bench { options, samples: Vec::new(), number: 0 };
    for round in 0..options.rounds {
        // Each is first in every other round.
        let order = if round % 2 == 0 { [&ours, &theirs] } else { [&theirs, &ours] };
        bench.round(&order, &scratch)?;
    }
    print(&bench.samples);
    for server in [&ours, &theirs] {
        println!("\n{}: at most {:.0} MiB resident", server.name, server.used()?.peak_mib);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(samples: &[Sample]) {
    println!("| operation | registry | median per second | best | per CPU second |");
    println!("|---|---|---:|---:|---:|");
    for operation in ["push", "get", "pulls at once", "small blobs"] {
        for server in ["perennial", "docker-registry"] {
            let of: Vec<&Sample> =
                samples.iter().filter(|sample| sample.operation == operation && sample.server == server).collect();
            let Some(unit) = of.first().map(|sample| sample.unit) else { continue };
            let mut rates: Vec<f64> = of.iter().map(|sample| sample.amount / sample.seconds).collect();
            rates.sort_by(f64::total_cmp);
            let (median, best) = (rates.get(rates.len() / 2).copied(), rates.last().copied());
            let amount: f64 = of.iter().map(|sample| sample.amount).sum();
            let cpu: f64 = of.iter().map(|sample| sample.cpu_s).sum();
            let (median, best) = (median.unwrap_or_default(), best.unwrap_or_default());
            println!("| {operation} | {server} | {median:.0} {unit} | {best:.0} | {:.0} |", amount / cpu.max(0.01));
        }
    }
}
