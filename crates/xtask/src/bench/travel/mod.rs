//! `cargo xtask bench travel`: a container of some size goes to another machine, changes there is one hundredth, and goes
//! again: bytes and time beside `podman push` with `podman pull`, restic to a server that speaks S3, and rsync.
//!
//! Both machines and the servers (Debian's registry, s3rver) lie on one file system. All bytes are counted by a proxy
//! before each server; rsync's are those it tells. The tools take turns in each round, in changing order, and each gets
//! the same change. What only one side can do is not timed: the change itself, and for podman the commit of the container
//! as an image. Perennial's push seals what the run has changed, which counts. After the last round, what has arrived is
//! compared with what was sent.
//!
//! ```text
//! servers  the registry and the S3 server, and the proxy that counts
//! tree     what travels, and its changes
//! table    the tools, their order, and the tables
//! ```

mod servers;
mod table;
mod tree;

use super::command::{self, output_of};
use super::leave_and_return::{build, remove_mounts_below};
use super::scratch::{Kind, Scratch};
use crate::clock::now;
use anyhow::Context as _;
use servers::{BUCKET, Server};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use table::{Leg, Sample, Table, Tool};
use tree::Tree;

/// What must be installed, and how it is. Tests need the first ones too.
const PROGRAMS: [(&str, &str); 5] = [
    ("docker-registry", "./setup --test"),
    ("podman", "./setup --test"),
    ("s3rver", "./setup --test"),
    ("restic", "apt-get install restic"),
    ("rsync", "apt-get install rsync"),
];

/// Space for all tools, in trees; each round takes one more, for what podman leaves in the registry.
const TREES: u64 = 16;
const BASE_BYTES: u64 = 4 << 30;
const INODES: u64 = 400_000;

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Size of the container's own state, in MiB; a quarter of it is one large file
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(32..))]
    mib: u64,
    /// How often it is changed and goes again
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Measures this program instead of building the release binary
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Everything the tools stand on.
struct Ground<'scratch> {
    scratch: &'scratch Scratch,
    registry: Server,
    s3: Server,
    program: PathBuf,
    tree: Tree,
}

impl Ground<'_> {
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

    /// Sends or fetches by a server, and counts.
    fn by(&self, server: &Server, work: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<Leg> {
        // What came before is not of this leg.
        server.passed();
        let seconds = self.timed(|| work().map(drop))?;
        Ok(Leg { seconds, bytes: server.passed() })
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
        output_of(copy.arg(format!("{}/", self.tree.path().display())).arg(format!("{}/", to.display())))
    }

    fn podman(&self, machine: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut run = Command::new("podman");
        run.arg("--root").arg(self.path(&format!("podman-{machine}")));
        run.arg("--runroot").arg(self.path(&format!("podman-run-{machine}")));
        output_of(run.args(["--storage-driver", "overlay"]).args(arguments))
    }

    fn restic(&self, machine: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let mut run = Command::new("restic");
        run.arg("--cache-dir").arg(self.path(&format!("restic-{machine}")));
        run.arg("--repo").arg(format!("s3:http://127.0.0.1:{}/{BUCKET}/saved", self.s3.port()));
        run.env("RESTIC_PASSWORD", "bench").current_dir(self.tree.path());
        // Without a name it looks for one wherever clouds give them out. Behind a proxy that is not there it ends at once.
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"] {
            run.env_remove(name);
        }
        run.env("HOME", self.path("nobody")).env("HTTP_PROXY", "http://127.0.0.1:9").env("NO_PROXY", "127.0.0.1");
        output_of(run.args(arguments))
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
        let address = format!("127.0.0.1:{}", self.registry.port());
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
        self.restic("one", &["init"])?;
        std::fs::create_dir_all(self.path("mirror"))?;
        Ok(())
    }

    /// Moves what has changed with one tool; returns what each way has cost.
    fn measure(&self, tool: Tool) -> anyhow::Result<(Leg, Option<Leg>)> {
        match tool {
            Tool::Perennial => {
                self.save()?;
                let there = self.by(&self.registry, || self.perennial("one", &["push", "c"]))?;
                Ok((there, Some(self.by(&self.registry, || self.perennial("other", &["pull", "c"]))?)))
            }
            Tool::Podman => self.measure_podman(),
            Tool::Restic => {
                let there = self.by(&self.s3, || self.restic("one", &["backup", "-q", "."]))?;
                let restored = self.path("restored").to_string_lossy().into_owned();
                let restore = ["restore", "-q", "latest", "--target", &restored];
                Ok((there, Some(self.by(&self.s3, || self.restic("other", &restore))?)))
            }
            Tool::Rsync => Ok((self.measure_rsync()?, None)),
        }
    }

    fn measure_podman(&self) -> anyhow::Result<(Leg, Option<Leg>)> {
        let mounted = self.podman("one", &["mount", "c"])?;
        self.copy(&Path::new(mounted.trim()).join("t"), &[])?;
        self.podman("one", &["umount", "c"])?;
        self.podman("one", &["commit", "-q", "c", "saved"])?;
        let reference = self.saved();
        let there =
            self.by(&self.registry, || self.podman("one", &["push", "-q", "--tls-verify=false", "saved", &reference]))?;
        let back =
            self.by(&self.registry, || self.podman("other", &["pull", "-q", "--tls-verify=false", &reference]))?;
        // The images of the round before only take space: each has the whole tree in a layer of its own.
        for machine in ["one", "other"] {
            self.podman(machine, &["image", "prune", "-f"])?;
        }
        Ok((there, Some(back)))
    }

    /// Returns podman's name of the container as an image.
    fn saved(&self) -> String {
        format!("127.0.0.1:{}/podman/saved:latest", self.registry.port())
    }

    fn measure_rsync(&self) -> anyhow::Result<Leg> {
        let mut told = String::new();
        let options = ["--no-whole-file", "--stats", "--no-human-readable", "-z"];
        let seconds = self.timed(|| {
            told = self.copy(&self.path("mirror"), &options)?;
            Ok(())
        })?;
        let number = |what: &str| {
            let line = told.lines().find_map(|line| line.strip_prefix(what)?.trim().parse::<u64>().ok());
            line.with_context(|| format!("rsync does not tell {what:?}"))
        };
        Ok(Leg { seconds, bytes: number("Total bytes sent:")? + number("Total bytes received:")? })
    }

    /// Compares what has arrived with what was sent.
    fn compare(&self) -> anyhow::Result<()> {
        let arrived = self.path("arrived");
        self.perennial("other", &["cp", "c:/t", &arrived.to_string_lossy()])?;
        let image = self.podman("other", &["image", "mount", &self.saved()])?;
        let (restored, mirror) = (self.path("restored"), self.path("mirror"));
        for (tool, copy) in [
            (Tool::Perennial, &arrived),
            (Tool::Podman, &Path::new(image.trim()).join("t")),
            (Tool::Restic, &restored),
            (Tool::Rsync, &mirror),
        ] {
            let mut compare = Command::new("diff");
            let same = output_of(compare.args(["-rq", "--no-dereference"]).arg(self.tree.path()).arg(copy));
            same.with_context(|| format!("{} has not brought what was sent", tool.title()))?;
        }
        self.podman("other", &["image", "umount", "--all"])?;
        self.podman("one", &["rm", "-f", "c"]).map(drop)
    }
}

/// Runs the benchmark and prints its tables.
pub(super) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    command::require(&PROGRAMS)?;
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?,
        None => build(root)?,
    };
    let bytes = (options.mib << 20) * (TREES + u64::from(options.rounds)) + BASE_BYTES;
    let scratch = Scratch::create(&std::env::temp_dir(), bytes, Kind::Ext4 { inodes: INODES })?;
    let measured = measure(&scratch, program, options);
    if measured.is_err() {
        remove_mounts_below(&scratch.path());
    }
    let (table, loads) = measured?;
    let (least, most) =
        loads.into_iter().fold((f64::MAX, 0.0), |(least, most), load| (load.min(least), load.max(most)));
    println!("`cargo xtask bench travel --mib {} --rounds {}`", options.mib, options.rounds);
    println!("Load of the machine before each turn: {least:.1} to {most:.1}\n");
    print!("{}", table.to_markdown());
    Ok(ExitCode::SUCCESS)
}

/// Lets all tools move everything, and then the change of each round; returns the loads before the turns, too.
fn measure(scratch: &Scratch, program: PathBuf, options: &Options) -> anyhow::Result<(Table, Vec<f64>)> {
    let registry = Server::registry(&scratch.path().join("registry"))?;
    let s3 = Server::s3(&scratch.path().join("s3"))?;
    let tree = Tree::make(scratch.path().join("tree"), options.mib)?;
    let mut ground = Ground { scratch, registry, s3, program, tree };
    ground.prepare()?;
    let (mut table, mut loads) = (Table::default(), Vec::new());
    for (round, order) in (0..=u64::from(options.rounds)).zip(table::orders()) {
        eprintln!("round {round} of {}", options.rounds);
        if round > 0 {
            ground.tree.change(round)?;
        }
        for tool in order {
            loads.push(load()?);
            let (there, back) = ground.measure(tool).with_context(|| format!("{}, round {round}", tool.title()))?;
            table.0.push(Sample { tool, round, there, back });
        }
    }
    ground.compare()?;
    Ok((table, loads))
}

/// Returns how many processes have wanted to run on average during the last minute.
fn load() -> anyhow::Result<f64> {
    let loads = std::fs::read_to_string("/proc/loadavg").context("cannot read /proc/loadavg")?;
    loads.split(' ').next().and_then(|load| load.parse().ok()).context("/proc/loadavg does not begin with a number")
}
