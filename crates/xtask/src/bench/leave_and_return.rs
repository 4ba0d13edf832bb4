//! `cargo xtask bench leave-and-return`: exit and start at several sizes, beside podman and the bare runtime.

use super::command;
use super::environment::Entries;
use super::memory;
use super::peers::{Ground, Peer, Tool};
use super::report::{Report, Sample};
use super::scratch::{Kind, Scratch};
use super::session::Bench;
use anyhow::Context as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TOOLS: [Tool; 5] = [Tool::Perennial, Tool::BareRuntime, Tool::SameBundle, Tool::PodmanNew, Tool::PodmanKept];

/// Bytes of the file system for each entry, over all tools: a quarter of a block of content, an inode, a header of the
/// archive, a few times over.
const BYTES_PER_ENTRY: u64 = 12 * 1024;
const BYTES_BASE: u64 = 2 << 30;

/// Inodes for each entry: the tree, and a copy for each of the tools and of their saved states.
const INODES_PER_ENTRY: u64 = 6;
const INODES_BASE: u64 = 200_000;

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Sizes of the environments.
    #[arg(long, value_delimiter = ',', default_value = "1k,100k,1M", value_name = "SIZES")]
    entries: Vec<Entries>,
    /// Sessions of each tool at each size.
    #[arg(long, default_value_t = 11)]
    rounds: u64,
    /// Largest size at which podman takes part; it needs minutes for each session at 1M.
    #[arg(long, default_value = "100k", value_name = "SIZE")]
    podman_entries_max: Entries,
    /// Measures this program instead of building the release binary.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Prints samples as JSON instead of tables.
    #[arg(long)]
    json: bool,
}

struct Contestant {
    tool: Tool,
    entries: Entries,
    peer: Box<dyn Peer>,
}

/// Runs the benchmark and prints its report.
pub(super) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(options.rounds > 0, "at least one round is needed");
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?,
        None => build(root)?,
    };
    let total: u64 = options.entries.iter().map(|entries| entries.0).sum();
    let bytes = BYTES_BASE.saturating_add(total.saturating_mul(BYTES_PER_ENTRY));
    let inodes = INODES_BASE.saturating_add(total.saturating_mul(INODES_PER_ENTRY));
    let scratch = Scratch::create(&root.join("target/bench"), bytes, Kind::Ext4 { inodes })?;
    let report = measure(&scratch, &program, options);
    if report.is_err() {
        remove_mounts_below(&scratch.path());
    }
    let report = report?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.to_markdown());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the release binary and returns its path.
pub(super) fn build(root: &Path) -> anyhow::Result<PathBuf> {
    eprintln!("building the release binary");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--package", "perennial"]).current_dir(root);
    anyhow::ensure!(build.status().context("cannot run cargo")?.success(), "the release binary does not build");
    Ok(root.join("target/release/perennial"))
}

fn measure(scratch: &Scratch, program: &Path, options: &Options) -> anyhow::Result<Report> {
    let base = scratch.path();
    let stage = Stage::set_up(base.clone(), program)?;
    let mut contestants = Vec::new();
    for &entries in &options.entries {
        contestants.extend(stage.prepare(entries, options.podman_entries_max)?);
    }
    let mut samples = Vec::new();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        // Nobody is always first, or always after the same neighbour.
        contestants.rotate_left(1);
        for contestant in &mut contestants {
            scratch.settle()?;
            let script = contestant.entries.session_script(round);
            let times = contestant.peer.session(&stage.bench, &script);
            let times = times.with_context(|| {
                format!("{} at {} entries, round {}", contestant.tool.title(), contestant.entries, round + 1)
            })?;
            contestant.peer.clear()?;
            samples.push(Sample::of(contestant.tool, contestant.entries, round, times));
        }
    }
    let smallest = options.entries.iter().min().context("at least one size is needed")?;
    let idle_supervisor = Some(memory::of_idle_supervisor(program, &home(&base, *smallest).join("perennial"))?);
    Ok(Report { command: command_line(options), samples, idle_supervisor })
}

/// What all environments have in common.
struct Stage<'program> {
    program: &'program Path,
    base: PathBuf,
    rootfs: PathBuf,
    bench: Bench,
}

impl<'program> Stage<'program> {
    fn set_up(base: PathBuf, program: &'program Path) -> anyhow::Result<Self> {
        let rootfs = base.join("rootfs");
        make_rootfs(&rootfs)?;
        let bench = Bench::create(&base.join("bench"))?;
        Ok(Self { program, base, rootfs, bench })
    }

    /// Fills the environment of one size with every tool that takes part in it.
    fn prepare(&self, entries: Entries, podman_entries_max: Entries) -> anyhow::Result<Vec<Contestant>> {
        eprintln!("making the environment of {entries} entries");
        let tree = self.base.join(format!("tree-{}", entries.slug()));
        std::fs::create_dir(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
        entries.build(&tree.join("state"))?;
        let archive = self.bench.directory().join("tree.tar");
        command::output_of(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("state"))?;
        let home = home(&self.base, entries);
        std::fs::create_dir(&home).with_context(|| format!("cannot create {}", home.display()))?;
        let ground = Ground { rootfs: &self.rootfs, tree: &tree, home: &home };
        let mut contestants = Vec::new();
        for tool in TOOLS {
            let is_podman = matches!(tool, Tool::PodmanNew | Tool::PodmanKept);
            if is_podman && entries > podman_entries_max {
                continue;
            }
            eprintln!("  {}", tool.title());
            let peer = tool.prepare(self.program, &self.bench, ground);
            let peer = peer.with_context(|| format!("cannot prepare {} at {entries} entries", tool.title()))?;
            contestants.push(Contestant { tool, entries, peer });
        }
        std::fs::remove_file(&archive).with_context(|| format!("cannot delete {}", archive.display()))?;
        Ok(contestants)
    }
}

fn home(base: &Path, entries: Entries) -> PathBuf {
    base.join(format!("home-{}", entries.slug()))
}

/// Makes a root file system of busybox and nothing else.
pub(super) fn make_rootfs(rootfs: &Path) -> anyhow::Result<()> {
    for directory in ["bin", "bench", "dev", "etc", "proc", "root", "sys", "tmp"] {
        let path = rootfs.join(directory);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).context("cannot copy /bin/busybox (busybox-static)")?;
    symlink("busybox", rootfs.join("bin/sh")).context("cannot link /bin/sh")
}

fn command_line(options: &Options) -> String {
    let sizes: Vec<String> = options.entries.iter().map(|entries| entries.to_string().replace(' ', "")).collect();
    format!("cargo xtask bench leave-and-return --entries {} --rounds {}", sizes.join(","), options.rounds)
}

/// Unmounts what a container of a failed session left below the file system, so that it can be unmounted itself.
pub(super) fn remove_mounts_below(base: &Path) {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let mut below: Vec<&Path> = points.filter(|point| *point != base && point.starts_with(base)).collect();
    below.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in below {
        if let Err(error) = command::run("umount", &[point]) {
            eprintln!("{error:#}");
        }
    }
}
