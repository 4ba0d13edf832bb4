//! `cargo xtask bench travel`: a container of some size goes to another machine, changes there is one hundredth, and goes
//! again: bytes and time beside `podman push` with `podman pull`, and beside rsync.
//!
//! Both machines and the registry (Debian's, on this machine) lie on one file system. All bytes are counted by a proxy
//! before the registry; rsync's are those it tells of. What only one side can do is not timed: the change itself, and for
//! podman the commit of the container as an image. Perennial's push seals what the run has changed, which counts.

use super::command::{self, output_of};
use super::scratch::{Kind, Scratch};
use crate::clock::now;
use anyhow::{Context as _, ensure};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bytes of a small file, and of a piece that is changed in the large one.
const SMALL_BYTES: u64 = 128 << 10;
const PIECE_BYTES: u64 = 64 << 10;
/// Of a piece of 4 KiB, so many bytes are noise; the rest is the same everywhere.
const BLOCK_BYTES: usize = 4096;
const NOISE_BYTES: usize = 2048;
/// Longest time for a registry to start.
const START: Duration = Duration::from_secs(30);

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Size of the container's own state, in MiB; a quarter of it is one large file
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// How often it is changed and goes again
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Measures this program instead of building the release binary
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// What one way has cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    there_s: f64,
    back_s: f64,
    bytes: u64,
}

/// Noise that is the same in each run.
struct Noise(u64);

impl Noise {
    fn block(&mut self) -> Vec<u8> {
        let mut block = vec![b'x'; BLOCK_BYTES];
        for chunk in block.iter_mut().take(NOISE_BYTES) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *chunk = self.0.to_be_bytes()[0];
        }
        block
    }

    fn fill(&mut self, file: &mut File, bytes: u64) -> anyhow::Result<()> {
        for _ in 0..bytes / BLOCK_BYTES as u64 {
            file.write_all(&self.block())?;
        }
        Ok(())
    }
}

/// The tree that travels.
struct Tree {
    path: PathBuf,
    files: u64,
    large_bytes: u64,
    noise: Noise,
}

impl Tree {
    fn make(path: PathBuf, mib: u64) -> anyhow::Result<Self> {
        let (large_bytes, small_bytes) = ((mib << 20) / 4, (mib << 20) / 4 * 3);
        let mut tree = Self { path, files: small_bytes / SMALL_BYTES, large_bytes, noise: Noise(42) };
        std::fs::create_dir_all(&tree.path)?;
        tree.noise.fill(&mut File::create(tree.path.join("large"))?, large_bytes)?;
        for number in 0..tree.files {
            tree.small(number)?;
        }
        Ok(tree)
    }

    fn small(&mut self, number: u64) -> anyhow::Result<()> {
        let directory = self.path.join(format!("{}", number / 100));
        std::fs::create_dir_all(&directory)?;
        self.noise.fill(&mut File::create(directory.join(format!("{number}")))?, SMALL_BYTES)
    }

    /// Changes a hundredth: whole small files, and pieces all over the large one.
    fn change(&mut self, round: u64) -> anyhow::Result<()> {
        for number in (0..self.files).skip(usize::try_from(round)?).step_by(100) {
            self.small(number)?;
        }
        let mut large = File::options().write(true).open(self.path.join("large"))?;
        let mut at = round * PIECE_BYTES;
        while at + PIECE_BYTES <= self.large_bytes {
            large.seek(SeekFrom::Start(at))?;
            self.noise.fill(&mut large, PIECE_BYTES)?;
            at += PIECE_BYTES * 100;
        }
        Ok(())
    }
}

/// A registry and a proxy before it that counts.
struct Registry {
    child: Child,
    port: u16,
    bytes: Arc<AtomicU64>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().and_then(|()| self.child.wait().map(drop)).ok();
    }
}

impl Registry {
    fn start(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let path = directory.display();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {path}/data}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
        );
        File::create(directory.join("config.yml"))?.write_all(config.as_bytes())?;
        let mut serve = Command::new("docker-registry");
        serve.arg("serve").arg(directory.join("config.yml"));
        let child = serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.context("cannot run docker-registry: apt-get install docker-registry")?;
        let started = now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(started.elapsed() < START, "the registry does not start");
            std::thread::yield_now();
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (own, bytes) = (listener.local_addr()?.port(), Arc::new(AtomicU64::new(0)));
        let shared = Arc::clone(&bytes);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    let bytes = Arc::clone(&shared);
                    std::thread::spawn(move || pump(from, to, &bytes));
                }
            }
        });
        Ok(Self { child, port: own, bytes })
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        bytes.fetch_add(u64::try_from(count).unwrap_or(0), Ordering::Relaxed);
        if count == 0 || to.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
            break;
        }
    }
    // Either side may be gone.
    to.shutdown(Shutdown::Both).ok();
}

/// Everything the tools stand on.
struct Ground {
    scratch: Scratch,
    registry: Registry,
    program: PathBuf,
    tree: Tree,
}

impl Ground {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn timed(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
        self.scratch.settle()?;
        let started = now();
        work()?;
        self.scratch.settle()?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Sends and fetches by a registry, and counts.
    fn by_registry(
        &self,
        there: impl FnOnce() -> anyhow::Result<()>,
        back: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Cost> {
        self.registry.bytes.store(0, Ordering::Relaxed);
        let (there_s, back_s) = (self.timed(there)?, self.timed(back)?);
        Ok(Cost { there_s, back_s, bytes: self.registry.bytes.load(Ordering::Relaxed) })
    }

    fn perennial(&self, machine: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut run = Command::new(&self.program);
        output_of(run.arg("--root").arg(self.path(machine)).args(arguments))
    }

    /// Makes what a container's run has changed of the tree a generation.
    fn save(&self) -> anyhow::Result<()> {
        self.perennial("one", &["start", "c", "--detach"])?;
        let shown: serde_json::Value = serde_json::from_str(&self.perennial("one", &["--json", "inspect", "c"])?)?;
        let merged = shown.pointer("/run/merged").and_then(serde_json::Value::as_str).context("it does not run")?;
        self.copy(&Path::new(merged).join("t"), &[])?;
        self.perennial("one", &["stop", "c"]).map(drop)
    }

    fn copy(&self, to: &Path, options: &[&str]) -> anyhow::Result<String> {
        let mut copy = Command::new("rsync");
        copy.args(["-aHAXS", "--numeric-ids", "--delete"]).args(options);
        output_of(copy.arg(format!("{}/", self.tree.path.display())).arg(format!("{}/", to.display())))
    }

    fn podman(&self, machine: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut run = Command::new("podman");
        run.arg("--root").arg(self.path(&format!("podman-{machine}")));
        run.arg("--runroot").arg(self.path(&format!("podman-run-{machine}")));
        output_of(run.args(["--storage-driver", "overlay"]).args(arguments))
    }

    fn prepare(&self) -> anyhow::Result<()> {
        let rootfs = self.path("rootfs");
        for name in ["bin", "dev", "proc", "sys", "etc", "t"] {
            std::fs::create_dir_all(rootfs.join(name))?;
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists());
        std::fs::copy(
            busybox.context("busybox is missing: apt-get install busybox-static")?,
            rootfs.join("bin/busybox"),
        )?;
        let address = format!("127.0.0.1:{}", self.registry.port);
        self.perennial("one", &["image", "import", &format!("rootfs:{}", rootfs.display()), "box"])?;
        let idle = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 1000 & wait; done";
        self.perennial(
            "one",
            &["create", "c", "--image", "box", "--seal", "never", "--", "/bin/busybox", "sh", "-c", idle],
        )?;
        for machine in ["one", "other"] {
            self.perennial(machine, &["remote", "add", "hub", &format!("{address}/perennial")])?;
        }
        let tar = self.path("rootfs.tar");
        command::run("tar", &["-C".as_ref(), rootfs.as_os_str(), "-cf".as_ref(), tar.as_os_str(), ".".as_ref()])?;
        self.podman("one", &["import", "-q", &tar.to_string_lossy(), "box"])?;
        self.podman("one", &["create", "-q", "--name", "c", "box", "/bin/busybox", "true"])?;
        std::fs::create_dir_all(self.path("mirror"))?;
        Ok(())
    }

    fn measure_perennial(&self) -> anyhow::Result<Cost> {
        self.save()?;
        self.by_registry(
            || self.perennial("one", &["push", "c"]).map(drop),
            || self.perennial("other", &["pull", "c"]).map(drop),
        )
    }

    fn measure_podman(&self) -> anyhow::Result<Cost> {
        let mounted = self.podman("one", &["mount", "c"])?;
        self.copy(&Path::new(mounted.trim()).join("t"), &[])?;
        self.podman("one", &["umount", "c"])?;
        self.podman("one", &["commit", "-q", "c", "saved"])?;
        let reference = format!("127.0.0.1:{}/podman/saved:latest", self.registry.port);
        self.by_registry(
            || self.podman("one", &["push", "-q", "--tls-verify=false", "saved", &reference]).map(drop),
            || self.podman("other", &["pull", "-q", "--tls-verify=false", &reference]).map(drop),
        )
    }

    fn measure_rsync(&self) -> anyhow::Result<Cost> {
        let mut told = String::new();
        let options = ["--no-whole-file", "--stats", "--no-human-readable", "-z"];
        let there_s = self.timed(|| {
            told = self.copy(&self.path("mirror"), &options)?;
            Ok(())
        })?;
        let number = |what: &str| {
            let line = told.lines().find_map(|line| line.strip_prefix(what)?.trim().parse::<u64>().ok());
            line.with_context(|| format!("rsync does not tell {what:?}"))
        };
        Ok(Cost { there_s, back_s: 0.0, bytes: number("Total bytes sent:")? + number("Total bytes received:")? })
    }
}

/// Runs the benchmark and prints its table.
pub(super) fn run(root: &Path, options: &Options) -> anyhow::Result<std::process::ExitCode> {
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?,
        None => {
            command::run("cargo", &["build", "--release", "--locked", "-p", "perennial"])?;
            root.join("target/release/perennial")
        }
    };
    let scratch =
        Scratch::create(&std::env::temp_dir(), (options.mib << 20) * 16 + (4 << 30), Kind::Ext4 { inodes: 400_000 })?;
    let registry = Registry::start(&scratch.path().join("registry"))?;
    let tree = Tree::make(scratch.path().join("tree"), options.mib)?;
    let mut ground = Ground { scratch, registry, program, tree };
    ground.prepare()?;
    println!("| what | tool | there s | back s | both s | MB over the network |");
    println!("|---|---|---:|---:|---:|---:|");
    for round in 0..=u64::from(options.rounds) {
        if round > 0 {
            ground.tree.change(round)?;
        }
        let what = if round == 0 { "first time".to_owned() } else { format!("after a change of 1 %, {round}") };
        let costs = [
            ("Perennial: push, pull", ground.measure_perennial()?),
            ("podman: push, pull", ground.measure_podman()?),
            ("rsync -z", ground.measure_rsync()?),
        ];
        for (tool, Cost { there_s, back_s, bytes }) in costs {
            let megabytes = bytes / 100_000;
            let (whole, tenth) = (megabytes / 10, megabytes % 10);
            println!("| {what} | {tool} | {there_s:.2} | {back_s:.2} | {:.2} | {whole}.{tenth} |", there_s + back_s);
        }
    }
    ground.podman("one", &["rm", "-f", "c"])?;
    Ok(std::process::ExitCode::SUCCESS)
}
