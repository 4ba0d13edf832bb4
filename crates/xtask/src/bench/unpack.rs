//! `cargo xtask bench unpack`: a container started in mode `unpack` from a sealed generation, beside `zstd -d | tar -x` of
//! the same tree.
//!
//! What is measured is the whole of `perennial start --detach --mode unpack`: it verifies the generation, writes it into
//! the run's directory, and starts the container. Each round does so in a fork of its own, so that every run begins with
//! the same sealed generation. Half of each file is noise and half is words.

use super::command;
use super::leave_and_return::{build, make_rootfs};
use super::scratch::{Kind, Scratch};
use crate::clock;
use anyhow::{Context as _, ensure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Files in a directory.
const IN_DIRECTORY: u64 = 100;
/// What the container does until it is stopped.
const IDLE: &str = "trap 'exit 0' TERM; while :; do /bin/busybox sleep 1000 & wait; done";

/// Options of the benchmark.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Files of the tree
    #[arg(long, default_value_t = 45_000)]
    files: u64,
    /// Bytes of all of them together, in MB
    #[arg(long, default_value_t = 570)]
    megabytes: u64,
    /// Measurements of each
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Directory for the file system of the benchmark
    #[arg(long, default_value = "target/bench")]
    work: PathBuf,
    /// Measures this program instead of building the release binary
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

/// Runs the benchmark and prints its table.
pub(super) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    ensure!(options.files > 0 && options.rounds > 0, "at least one file, and one round");
    let program = match &options.program {
        Some(program) => program.canonicalize().with_context(|| format!("cannot find {}", program.display()))?,
        None => build(root)?,
    };
    let bytes = options.megabytes.saturating_mul(5_000_000).saturating_add(4 << 30);
    let inodes = options.files.saturating_mul(5).saturating_add(200_000);
    let scratch = Scratch::create(&options.work, bytes, Kind::Ext4 { inodes })?;
    let stage = Stage { program: &program, base: scratch.path() };
    stage.set_up(options)?;
    let (mut unpack, mut tar) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        let is_even = round % 2 == 0;
        for is_ours in [is_even, !is_even] {
            scratch.settle()?;
            if is_ours {
                unpack.push(stage.unpack(round)?);
            } else {
                tar.push(stage.tar()?);
            }
        }
    }
    Ok(report(options, unpack, tar))
}

struct Stage<'a> {
    program: &'a Path,
    base: PathBuf,
}

impl Stage<'_> {
    fn perennial(&self, arguments: &[&str]) -> anyhow::Result<String> {
        command::output_of(Command::new(self.program).arg("--root").arg(self.base.join("root")).args(arguments))
    }

    /// Makes the tree, the container whose first generation holds it, and the archive.
    fn set_up(&self, options: &Options) -> anyhow::Result<()> {
        let tree = self.base.join("tree");
        make(&tree, options.files, options.megabytes.saturating_mul(1_000_000))?;
        let rootfs = self.base.join("rootfs");
        make_rootfs(&rootfs)?;
        self.perennial(&["image", "import", &format!("rootfs:{}", rootfs.display()), "bench"])?;
        let volume = format!("{}:/from", tree.display());
        let idle = ["--", "/bin/sh", "-c", IDLE];
        let create = ["create", "first", "--image", "bench", "--seal", "never", "--volume", &volume];
        self.perennial(&[create.as_slice(), &idle].concat())?;
        self.perennial(&["run", "first", "--", "/bin/busybox", "cp", "-a", "/from", "/state"])?;
        self.perennial(&["seal", "first"])?;
        let archive = format!("tar -C {} -cf - . | zstd -q -1 -o {}", tree.display(), self.archive().display());
        command::run("sh", &["-ec", &archive]).map(drop)
    }

    fn archive(&self) -> PathBuf {
        self.base.join("tree.tar.zst")
    }

    fn unpack(&self, round: u64) -> anyhow::Result<Duration> {
        let name = format!("round{round}");
        self.perennial(&["fork", "first@1", &name])?;
        let (started, took) = clock::timed(|| self.perennial(&["start", &name, "--detach", "--mode", "unpack"]));
        started?;
        let state = self.perennial(&["exec", &name, "/bin/busybox", "find", "/state", "-type", "f"])?;
        ensure!(state.contains("/state/d000000/f00"), "{name} does not show the generation");
        self.perennial(&["stop", &name])?;
        self.perennial(&["rm", &name])?;
        Ok(took)
    }

    fn tar(&self) -> anyhow::Result<Duration> {
        let target = self.base.join("restored");
        std::fs::create_dir(&target).with_context(|| format!("cannot create {}", target.display()))?;
        let script = format!("zstd -dcq {} | tar -C {} -xf -", self.archive().display(), target.display());
        let (done, took) = clock::timed(|| command::run("sh", &["-ec", &script]));
        done?;
        ensure!(target.join("d000000/f00").is_file(), "tar did not restore the tree");
        std::fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
        Ok(took)
    }
}

fn make(tree: &Path, files: u64, bytes: u64) -> anyhow::Result<()> {
    let each = usize::try_from(bytes / files)?;
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..files {
        let directory = tree.join(format!("d{:06}", number / IN_DIRECTORY));
        if number % IN_DIRECTORY == 0 {
            std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let mut content = Vec::with_capacity(each);
        while content.len() < each / 2 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            content.extend_from_slice(&noise.to_le_bytes());
        }
        let words = format!("line of file {number}, as a program writes its log\n");
        while content.len() < each {
            content.extend_from_slice(words.as_bytes());
        }
        content.truncate(each);
        let path = directory.join(format!("f{:02}", number % IN_DIRECTORY));
        let written = std::fs::File::create(&path).and_then(|mut file| file.write_all(&content));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn report(options: &Options, mut unpack: Vec<Duration>, mut tar: Vec<Duration>) -> ExitCode {
    let Options { files, megabytes, rounds, .. } = options;
    println!("From `cargo xtask bench unpack --files {files} --megabytes {megabytes} --rounds {rounds}`:\n");
    println!("| | least s | median s |\n|---|---:|---:|");
    let row = |title: &str, of: &mut Vec<Duration>| {
        of.sort();
        let at = |index: usize| of.get(index).map_or(f64::NAN, Duration::as_secs_f64);
        println!("| {title} | {:.2} | {:.2} |", at(0), at(of.len() / 2));
        (at(0), at(of.len() / 2))
    };
    let ours = row("start from a sealed generation, mode unpack", &mut unpack);
    let peer = row("zstd -d and tar -x", &mut tar);
    println!("| ratio | {:.2} | {:.2} |", ours.0 / peer.0, ours.1 / peer.1);
    if ours.1 <= peer.1 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
