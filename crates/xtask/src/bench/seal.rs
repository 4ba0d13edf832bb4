//! What sealing a first layer costs beside what it cannot do without: a walk of the tree and BLAKE3 of its bytes.
//!
//! Both are measured in turn, in processes of their own (`perennial-store/examples/seal_cost.rs`), on a tree that is in
//! memory, and the order turns from round to round. What is made durable is part of sealing and not of the bound.

use super::command;
use super::scratch::{Kind, Scratch};
use anyhow::Context as _;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The tree of the target: design 12.
const TARGET: Tree = Tree { name: "600 MB, 30 k files", files: 30_000, bytes: 600_000_000 };
/// The tree for the target of memory, a hundred files to a directory; each is long enough to be an object.
const MANY: Tree = Tree { name: "1 M entries", files: 990_000, bytes: 297_000_000 };
/// Times the bound that sealing may take, and memory that it may hold, in KiB.
const RATIO_MAX: f64 = 2.0;
const PEAK_KIB_MAX: u64 = 128 * 1024;

/// Options of `cargo xtask bench seal`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Directory for the file system of the benchmark
    #[arg(long, default_value = "target/bench")]
    work: PathBuf,
    /// Measurements of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Leave out the tree of a million entries
    #[arg(long)]
    short: bool,
}

#[derive(Debug, Clone, Copy)]
struct Tree {
    name: &'static str,
    files: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Sample {
    seconds: f64,
    cpu_seconds: f64,
    peak_kib: u64,
}

/// Measures, and prints a table.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    command::run("cargo", &["build", "--release", "--locked", "-p", "perennial-store", "--example", "seal_cost"])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = target.join("release/examples/seal_cost");
    println!("| tree | | seconds | CPU seconds | memory, MiB |\n|---|---|---:|---:|---:|");
    let mut all_good = true;
    let trees = [TARGET, MANY];
    for tree in trees.iter().take(if options.short { 1 } else { trees.len() }) {
        all_good &= measure(&program, tree, options)?;
    }
    Ok(if all_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(program: &Path, tree: &Tree, options: &Options) -> anyhow::Result<bool> {
    let scratch = Scratch::create(&options.work, 12 << 30, Kind::Ext4 { inodes: 3_000_000 })?;
    let place = scratch.path().join("root");
    let call = |what: &str| {
        let mut command = Command::new(program);
        command.arg(what).arg(&place);
        command
    };
    command::output_of(call("make").args([tree.files.to_string(), tree.bytes.to_string()]))?;
    let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
    for round in 0..options.rounds {
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            scratch.settle()?;
            let said = command::output_of(&mut call(["bound", "seal"].get(which).copied().unwrap_or_default()))?;
            let sample = serde_json::from_str(&said).with_context(|| format!("seal_cost said {said:?}"))?;
            if let Some(samples) = samples.get_mut(which) {
                samples.push(sample);
            }
        }
    }
    let [bound, seal] = samples;
    let row = |name: &str, of: &[Sample]| {
        let (seconds, cpu) = (median(of, |sample| sample.seconds), median(of, |sample| sample.cpu_seconds));
        println!("| {} | {name} | {seconds:.2} | {cpu:.2} | {} |", tree.name, peak(of) / 1024);
        (seconds, cpu)
    };
    let ((bound_s, bound_cpu), (seal_s, seal_cpu)) = (row("walk and BLAKE3", &bound), row("seal", &seal));
    let (ratio, ratio_cpu) = (seal_s / bound_s, seal_cpu / bound_cpu);
    println!("| {} | ratio | {ratio:.2} | {ratio_cpu:.2} | |", tree.name);
    let is_timed = tree.files == TARGET.files;
    Ok((!is_timed || ratio <= RATIO_MAX) && peak(&seal) <= PEAK_KIB_MAX)
}

fn median(samples: &[Sample], of: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn peak(samples: &[Sample]) -> u64 {
    samples.iter().map(|sample| sample.peak_kib).max().unwrap_or(0)
}
