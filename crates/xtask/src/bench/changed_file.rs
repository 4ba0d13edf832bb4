//! `cargo xtask bench changed-file`: a big file of which a few pages were changed, sealed; beside it the bound without
//! sharing blocks, which is reading and hashing all of the file.
//!
//! On XFS, where the copy that overlayfs makes before the first write shares the blocks. What a seal has read is the
//! kernel's count, with everything else the command reads.

use super::command;
use super::leave_and_return::{build, make_rootfs};
use super::scratch::{Kind, Scratch};
use crate::clock;
use anyhow::{Context as _, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

const MIB: u64 = 1 << 20;
const PAGE_BYTES: u64 = 4096;
/// Runs of one container before their layers would be put together.
const ROUNDS_MAX: u64 = 12;

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Length of the file in MiB.
    #[arg(long, default_value_t = 512)]
    mib: u64,
    /// Pages of 4 KiB that each run writes, spread over the file.
    #[arg(long, default_value_t = 64)]
    pages: u64,
    /// Runs that change the file.
    #[arg(long, default_value_t = 9)]
    rounds: u64,
    /// Measures this program instead of building the release binary.
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

struct Sample {
    seal: Duration,
    read_bytes: u64,
    hash: Duration,
}

/// Runs the benchmark and prints its report.
pub(super) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    ensure!((1..=ROUNDS_MAX).contains(&options.rounds), "between 1 and {ROUNDS_MAX} rounds");
    ensure!(options.pages > 0 && options.pages <= options.mib, "at least one page, at most one in each MiB");
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?,
        None => build(root)?,
    };
    let bytes = (options.mib * MIB).saturating_mul(2).saturating_add(1 << 30);
    let scratch = Scratch::create(&root.join("target/bench"), bytes, Kind::Xfs)?;
    let stage = Stage { program: &program, store: scratch.path().join("root"), options };
    stage.set_up(&scratch)?;
    let mut samples = Vec::new();
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        samples.push(stage.sample(&scratch, round)?);
    }
    report(options, &samples);
    Ok(ExitCode::SUCCESS)
}

struct Stage<'a> {
    program: &'a Path,
    store: PathBuf,
    options: &'a Options,
}

impl Stage<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(&self.store).args(arguments);
        command
    }

    fn inside(&self, script: &str) -> anyhow::Result<()> {
        command::output_of(&mut self.command(&["run", "db", "--", "/bin/sh", "-c", script])).map(drop)
    }

    /// Makes the container and seals the first version of the file.
    fn set_up(&self, scratch: &Scratch) -> anyhow::Result<()> {
        let rootfs = scratch.path().join("rootfs");
        make_rootfs(&rootfs)?;
        let source = format!("rootfs:{}", rootfs.display());
        command::output_of(&mut self.command(&["image", "import", &source, "bench"]))?;
        let create = ["create", "db", "--image", "bench", "--seal", "never", "--keep", "20", "--", "/bin/sh"];
        command::output_of(&mut self.command(&create))?;
        self.inside(&format!("/bin/busybox dd if=/dev/urandom of=/file bs=1048576 count={}", self.options.mib))?;
        command::output_of(&mut self.command(&["seal", "db"])).map(drop)
    }

    fn sample(&self, scratch: &Scratch, round: u64) -> anyhow::Result<Sample> {
        let Options { mib, pages, .. } = self.options;
        let step = mib * MIB / PAGE_BYTES / pages;
        let write = format!(
            "/bin/busybox dd if=/dev/urandom of=/file bs={PAGE_BYTES} count=1 seek=$((n * {step} + {round} * 7 % {step})) \
             conv=notrunc 2>/dev/null"
        );
        self.inside(&format!("n=0; while [ $n -lt {pages} ]; do {write}; n=$((n + 1)); done"))?;
        scratch.settle()?;
        let seal = self.command(&["seal", "db"]);
        let mut shell = Command::new("sh");
        // A shell's count has that of the commands it has waited for.
        shell.args(["-c", "\"$@\" >&2 && cat /proc/$$/io", "sh"]).arg(seal.get_program()).args(seal.get_args());
        let (counts, seal) = clock::timed(|| command::output_of(&mut shell));
        let counts = counts?;
        let read = counts.lines().find_map(|line| line.strip_prefix("rchar: ")).context("the kernel counts nothing")?;
        let newest = newest_object(&self.store.join("objects"), mib * MIB)?;
        let (hashed, hash) = clock::timed(|| hash(&newest));
        ensure!(newest.ends_with(&hashed?), "{} has another content", newest.display());
        Ok(Sample { seal, read_bytes: read.parse().context("rchar")?, hash })
    }
}

/// Reads and hashes a file as `b3sum` with one thread does, and returns the end of the path that an object has.
fn hash(path: &Path) -> anyhow::Result<String> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let hash = blake3::Hasher::new().update_reader(file)?.finalize().to_hex();
    Ok(hash.split_at(2).1.to_owned())
}

/// Finds the object of that length that was changed last.
fn newest_object(objects: &Path, bytes: u64) -> anyhow::Result<PathBuf> {
    let mut found = None;
    let mut directories = vec![objects.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = std::fs::read_dir(&directory);
        for entry in entries.with_context(|| format!("cannot read {}", directory.display()))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                directories.push(entry.path());
            } else if metadata.len() == bytes {
                found = found.max(Some((metadata.modified()?, entry.path())));
            }
        }
    }
    Ok(found.context("the file is no object")?.1)
}

fn report(options: &Options, samples: &[Sample]) {
    let Options { mib, pages, rounds, .. } = options;
    println!("From `cargo xtask bench changed-file --mib {mib} --pages {pages} --rounds {rounds}`:\n");
    println!("| | least | median |\n|---|---|---|");
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let row = |title: &str, unit: &str, mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let least = values.first().copied().unwrap_or_default();
        let median = values.get(values.len() / 2).copied().unwrap_or_default();
        println!("| {title} | {least:.2} {unit} | {median:.2} {unit} |");
    };
    row("seal, whole command", "ms", samples.iter().map(|sample| ms(sample.seal)).collect());
    row("hashing the whole file, one thread", "ms", samples.iter().map(|sample| ms(sample.hash)).collect());
    let ratio = |sample: &Sample| sample.seal.as_secs_f64() / sample.hash.as_secs_f64();
    row("seal over hashing", "×", samples.iter().map(ratio).collect());
    let read = |sample: &Sample| f64::from(u32::try_from(sample.read_bytes / 1024).unwrap_or(u32::MAX)) / 1024.0;
    row("read by the seal", "MiB", samples.iter().map(read).collect());
}
