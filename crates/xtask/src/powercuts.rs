//! `cargo xtask powercuts`: the test of power cuts as a long run.
//!
//! The test itself makes a few cuts at each `cargo test`; this is the same test with many, in sessions long enough to
//! fold, merge, evict and pack. What fails names the seed and keeps its disks.

use anyhow::Context as _;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Options of `cargo xtask powercuts`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How many cuts to make and check.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    cuts: u32,
    /// What to draw steps and cuts from; another one at each run where it is not given.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs the test and passes on how it ended.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let mut test = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    test.args(["test", "--locked", "--package", "perennial", "--test", "powercut", "--", "--nocapture"]);
    test.env("PERENNIAL_CUTS", options.cuts.to_string()).current_dir(root);
    if let Some(seed) = options.seed {
        test.env("PERENNIAL_CUTS_SEED", seed.to_string());
    }
    let status = test.status().context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
