//! Chores of this repository as code: `cargo xtask ci`, `tidy`, `bench`, `powercuts`, `changelog`.
//!
//! Promises: every chore a contributor or a machine runs is here, and prints what it does.
//! Does not know: anything about the crates it checks but their names, their text and their command line.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a chore talks to the person who started it")]

mod bench;
mod changelog;
mod ci;
mod clock;
mod files;
mod powercuts;
mod tidy;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Chores of the repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Runs everything that must hold before a commit lands: fmt, tidy, clippy, test, doc.
    Ci(ci::Options),
    /// Checks what the compiler and clippy cannot: crate edges, lists in documents, file sizes, formats, leftovers.
    Tidy,
    /// Measures Perennial beside its peers, in one run.
    Bench(bench::Options),
    /// Cuts the power of a virtual machine many times and checks what is left.
    Powercuts(powercuts::Options),
    /// Collects the files of `changes/unreleased/` into `CHANGELOG.md` under a version.
    Changelog(changelog::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let root = workspace_root()?;
    match arguments.chore {
        Chore::Ci(options) => ci::run(&root, &options),
        Chore::Tidy => tidy::run(&root),
        Chore::Bench(options) => bench::run(&root, &options),
        Chore::Powercuts(options) => powercuts::run(&root, &options),
        Chore::Changelog(options) => changelog::run(&root, &options),
    }
}

/// Returns the directory that holds the workspace's `Cargo.toml`: two levels above this crate's.
fn workspace_root() -> anyhow::Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").context("run this through cargo: `cargo xtask …`")?;
    PathBuf::from(here)
        .ancestors()
        .nth(2)
        .map(PathBuf::from)
        .context("the crate xtask does not lie two levels below the workspace")
}
