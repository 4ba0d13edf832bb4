//! `cargo xtask bench`: Perennial beside its peers, in one run, on a file system made for it.
//!
//! Samples of all tools and sizes are interleaved and the order turns from round to round, so that what else the machine
//! does falls on all of them alike; ratios are what to read. Everything is measured from outside, in the same way for
//! every tool (see [`session`]).
//!
//! ```text
//! leave_and_return  the benchmark: environments, rounds, targets
//! session           one run in a container and its two times
//! peers             how each tool starts a run and saves it
//! scratch           the journaled file system everything lies on
//! changed_file      the seal of a big file of which little was changed, beside hashing it
//! keeping           Perennial as one more tool of the peers' harness
//! seal              sealing a first layer beside a walk and BLAKE3
//! environment       the trees of 1 k, 100 k, 1 M entries and the changes of a session
//! registry          the registry beside docker-registry: pulls, pushes, small blobs, memory
//! memory            what a supervisor holds while its container idles
//! unpack            mode `unpack` beside zstd and tar
//! travel            a container to another machine, again after a change of 1 %
//! report            medians, ratios, Markdown
//! ```

mod changed_file;
mod command;
mod environment;
mod keeping;
mod leave_and_return;
mod memory;
mod peers;
mod registry;
mod report;
mod scratch;
mod seal;
mod session;
mod travel;
mod unpack;

use std::path::Path;
use std::process::ExitCode;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, clap::Subcommand)]
enum Benchmark {
    /// Exit and start of a container that changed 50 files, at several sizes, beside podman and the bare OCI runtime.
    LeaveAndReturn(leave_and_return::Options),
    /// Saving, keeping and bringing back trees, in the peers' own harness.
    Keeping(keeping::Options),
    /// The seal of a big file of which a few pages were changed, beside hashing all of it.
    ChangedFile(changed_file::Options),
    /// Sealing a first layer beside its bound, a walk and BLAKE3, and the memory it holds.
    Seal(seal::Options),
    /// The registry beside docker-registry.
    Registry(registry::Options),
    /// A start in mode `unpack` from a sealed generation, beside `zstd -d` and `tar -x` of the same tree.
    Unpack(unpack::Options),
    /// A container to another machine, and again after a change of 1 %, beside podman, restic and rsync.
    Travel(travel::Options),
}

/// Runs the chosen benchmark.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    match &options.benchmark {
        Benchmark::LeaveAndReturn(options) => leave_and_return::run(root, options),
        Benchmark::Keeping(options) => keeping::run(root, options),
        Benchmark::ChangedFile(options) => changed_file::run(root, options),
        Benchmark::Seal(options) => seal::run(root, options),
        Benchmark::Registry(options) => registry::run(root, options),
        Benchmark::Travel(options) => travel::run(root, options),
        Benchmark::Unpack(options) => unpack::run(root, options),
    }
}
