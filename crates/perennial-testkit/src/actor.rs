//! The program `trap-actor`, built, and images with it inside.

use crate::host::{run, write};
use crate::image::{self, Compression, ImageText};
use crate::traps::{self, Outcome, Performed};
use anyhow::{Context as _, Result, anyhow, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where images made here have the program.
pub const ACTOR: &str = "/trap-actor";

/// Returns the program `trap-actor`: the one that `PERENNIAL_TRAP_ACTOR` names, else it is built.
pub fn trap_actor() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PERENNIAL_TRAP_ACTOR") {
        return Ok(path.into());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--bin", "trap-actor", "--message-format", "json", "--manifest-path", manifest]);
    // What cargo tells a test about its own crate would make build scripts run again, here and after the test.
    for (name, _) in std::env::vars_os() {
        let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_", "LD_LIBRARY_PATH"];
        if told.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            build.env_remove(name);
        }
    }
    let output = run(&mut build)?;
    let text = String::from_utf8(output.stdout)?;
    let program = text.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    program.ok_or_else(|| anyhow!("cargo built no trap-actor"))
}

/// Makes a busybox root file system in the directory `dir`, with the program and stage 0 of every trap case.
pub fn trap_rootfs(dir: &Path) -> Result<Vec<Performed>> {
    image::busybox_rootfs(dir)?;
    image::add_program(dir, &trap_actor()?, ACTOR)?;
    traps::build_lower(dir)
}

/// Fills a root file system that shows the program from outside at `at`: its libraries, the places to mount on, and
/// stage 0 of every trap case, all of which has to be possible here. Returns the program.
pub fn fill_trapped_rootfs(rootfs: &Path, at: &str) -> Result<PathBuf> {
    let actor = trap_actor()?;
    image::add_program(rootfs, &actor, at)?;
    write(rootfs.join(at.trim_start_matches('/')), "")?;
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        write(rootfs.join(name), "")?;
    }
    let performed = traps::build_lower(rootfs)?;
    ensure!(performed.iter().all(|one| one.outcome == Outcome::Done), "{performed:?}");
    Ok(actor)
}

/// Writes an OCI layout of the cached minimal Debian with the program on top into the directory `dir`.
pub fn debian_oci(dir: &Path) -> Result<String> {
    let layer = tempfile::tempdir()?;
    // The image's own libraries serve the program: the cached Debian is of this host's release.
    fs::copy(trap_actor()?, layer.path().join(ACTOR.trim_start_matches('/'))).context("cannot copy trap-actor")?;
    image::oci_layout(dir, &[&image::debian_rootfs()?, layer.path()], &ImageText::default(), Compression::None)
}
