//! Older generations in packs, through the command: what it saves, what comes back, what gc and damage do to them.

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use stage::{IDLE, MODES, Stage, names};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// How many generations a container gets.
const GENERATIONS: u64 = 10;

/// Bytes on disk of everything in a directory, each file once.
fn used(path: &Path) -> Result<u64> {
    let mut seen = BTreeSet::new();
    let mut open = vec![path.to_path_buf()];
    let mut bytes = 0;
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = path.symlink_metadata()?;
            if seen.insert(metadata.ino()) {
                bytes += metadata.blocks() * 512;
            }
            if metadata.is_dir() {
                open.push(path);
            }
        }
    }
    Ok(bytes)
}

/// What run `number` changes: one file of 256 KiB, most of which stays the same, is written in place, some small ones are
/// added, one is replaced and one goes.
fn script(number: u64) -> String {
    format!(
        "test -e /data || (i=0; while [ $i -lt 8192 ]; do echo \"line $i of a file that hardly changes\"; i=$((i+1)); \
         done) >/data; echo 'generation {number}!' | dd of=/data bs=4096 seek={number} conv=notrunc 2>/dev/null; \
         mkdir -p /small/{number}; \
         for i in 1 2 3 4 5 6 7 8; do (echo {number} $i; head -c 600 /data) >/small/{number}/$i; done; \
         (echo {number}; head -c 3000 /data) >/replaced; rm -rf /small/{}",
        number.saturating_sub(2)
    )
}

/// A container with ten generations whose layers are sealed, and what each of them shows.
fn ten(stage: &Stage, name: &str) -> Result<Vec<TreeListing>> {
    stage.ok(&["create", name, "--image", "box", "--keep", "20", "--", "sh", "-c", IDLE])?;
    let mut left = Vec::new();
    for number in 1..=GENERATIONS {
        stage.ok(&["start", name, "--detach"])?;
        stage.inside(name, &script(number))?;
        left.push(stage.seen_in(name)?);
        leave(stage, name)?;
    }
    stage.ok(&["seal"])?;
    Ok(left)
}

fn leave(stage: &Stage, name: &str) -> Result<()> {
    stage.ok(&["stop", name])?;
    stage.quiet()
}

fn packs(stage: &Stage) -> Result<Vec<PathBuf>> {
    let directory = stage.root().join("packs");
    Ok(names(&directory)?.into_iter().map(|name| directory.join(name)).collect())
}

fn packed_bytes(stage: &Stage) -> Result<u64> {
    packs(stage)?.iter().map(|pack| Ok(pack.metadata()?.len())).sum()
}

fn cold(stage: &Stage, name: &str) -> Result<Vec<u64>> {
    let generations = stage.generations(name)?.into_iter().filter(|generation| generation["cold"] == true);
    Ok(generations.filter_map(|generation| generation["seq"].as_u64()).collect())
}

/// Starts a generation in a fork of it and compares what it shows.
fn ensure_starts(stage: &Stage, seq: u64, mode: &str, expected: &TreeListing) -> Result<()> {
    let name = format!("look-{seq}-{mode}");
    stage.ok(&["fork", &format!("web@{seq}"), &name])?;
    stage.ok(&["start", &name, "--detach", "--mode", mode])?;
    let seen = stage.seen_in(&name)?;
    stage.ok(&["rm", "--force", &name])?;
    ensure_equal(expected, &seen).with_context(|| format!("generation {seq}, {mode}"))
}

#[test]
fn older_generations_take_less_and_come_back_the_same() -> Result<()> {
    let stage = Stage::new()?;
    let left = ten(&stage, "web")?;
    let before = used(stage.root())?;
    let packed: Value = stage.json(&["pack", "web", "--hot", "2"])?;
    let after = used(stage.root())?;
    assert_eq!(cold(&stage, "web")?, [1, 2, 3, 4, 5, 6, 7, 8], "{packed}");
    println!("{before} bytes before, {after} after: {packed}");
    ensure!(before - after > 7 * 256 << 10, "{before} bytes became {after}");
    assert_eq!(stage.json::<Value>(&["pack", "web"])?["objects"], 0, "nothing is left to pack");
    // What is hot starts as it is.
    let frozen = packs(&stage)?;
    fs::rename(stage.root().join("packs"), stage.path("aside"))?;
    for seq in [9, 10] {
        for mode in MODES {
            ensure_starts(&stage, seq, mode, &left[usize::try_from(seq - 1)?])?;
        }
    }
    let refused = stage.run(&["fork", "web@3", "lost"])?.ok().and_then(|_| Ok(stage.run(&["start", "lost"])?));
    ensure!(refused?.code() != 0, "it was started without what it shows");
    stage.ok(&["rm", "lost"])?;
    fs::remove_dir_all(stage.root().join("packs"))?;
    fs::rename(stage.path("aside"), stage.root().join("packs"))?;
    assert_eq!(packs(&stage)?, frozen);
    assert_eq!(stage.run(&["verify", "--full"])?.code(), 0);
    // Each alone: packed again in between.
    for seq in 1..=GENERATIONS {
        for mode in MODES {
            ensure_starts(&stage, seq, mode, &left[usize::try_from(seq - 1)?])?;
        }
        stage.quiet()?;
        stage.ok(&["pack", "--hot", "2"])?;
    }
    let whole: Value = stage.json(&["pack", "--hot", "0"])?;
    ensure!(whole["objects"].as_u64().is_some_and(|objects| objects > 0), "{whole}");
    ensure!(used(stage.root())? < after, "the image is packed too");
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&left[9], &stage.seen_in("web")?)?;
    leave(&stage, "web")?;
    assert_eq!(stage.ok(&["doctor"])?.out().lines().last(), Some("nothing is wrong"));
    Ok(())
}
