//! Perennial as one more tool of the peers' harness: what saving, keeping and bringing back costs.
//!
//! The harness is not part of this repository: it is given by its directory, copied beside the trees it works on, and our
//! tool (`keeping.sh`) is added to its list. It measures all tools in turn on the same trees and prints the tables.

use super::command;
use anyhow::{Context as _, ensure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Our tool, in the harness' language.
const TOOL: &str = include_str!("keeping.sh");

/// Options of `cargo xtask bench keeping`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory of the harness: tools.sh, run.py, summarize.py and what they need
    #[arg(long)]
    harness: PathBuf,
    /// Directory for trees and stores, on a file system with a journal and about ten times the trees' space
    #[arg(long)]
    work: PathBuf,
    /// Workloads of the harness
    #[arg(long, value_delimiter = ',', default_value = "w2,w4")]
    workloads: Vec<String>,
    /// Tools to compare
    #[arg(long, value_delimiter = ',', default_value = "perennial,perennial_seal,restic,borg_zstd,tar_zstd1")]
    tools: Vec<String>,
    /// Saves after the first
    #[arg(long, default_value_t = 9)]
    generations: u32,
}

/// Runs the harness with Perennial among its tools.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    command::run("cargo", &["build", "--release", "--locked", "-p", "perennial"])?;
    let perennial = target_directory(root).join("release/perennial");
    ensure!(perennial.is_file(), "{} was not built", perennial.display());
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists());
    let busybox = busybox.context("busybox is missing: apt-get install busybox-static")?;
    let harness = options.work.join("harness");
    std::fs::create_dir_all(&harness).with_context(|| format!("cannot create {}", harness.display()))?;
    for entry in std::fs::read_dir(&options.harness)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            put(&harness.join(entry.file_name()), &std::fs::read(entry.path())?)?;
        }
    }
    let tools = std::fs::read_to_string(harness.join("tools.sh")).context("the harness has no tools.sh")?;
    put(&harness.join("tools.sh"), (tools + TOOL).as_bytes())?;
    let mut results = Vec::new();
    for workload in &options.workloads {
        if workload != "torture" && !options.work.join(workload).join("upper").is_dir() {
            succeed(Command::new("bash").arg(harness.join("mkworkloads.sh")).arg(&options.work))?;
        }
        let result = options.work.join(format!("results-{workload}.jsonl"));
        let mut measure = Command::new("python3");
        measure.arg(harness.join("run.py")).arg(&options.work).args(["--workload", workload]);
        measure.args(["--tools", &options.tools.join(","), "--gens", &options.generations.to_string()]);
        measure.env("PERENNIAL", &perennial).env("BUSYBOX", busybox);
        succeed(&mut measure)?;
        results.push(result);
    }
    succeed(Command::new("python3").arg(harness.join("summarize.py")).args(&results))?;
    Ok(ExitCode::SUCCESS)
}

fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn target_directory(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
