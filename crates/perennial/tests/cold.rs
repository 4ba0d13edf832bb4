//! Older generations in packs, through the command: what it saves, what comes back, what gc and damage do to them.

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use stage::terminal::Terminal;
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
    Ok(generations.filter_map(|generation| generation.get("seq")?.as_u64()).collect())
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
fn packs_stay_while_a_manifest_that_names_what_is_in_them_is_away() -> Result<()> {
    let stage = Stage::new()?;
    let left = ten(&stage, "web")?;
    stage.ok(&["pack", "web", "--hot", "2"])?;
    let before = packs(&stage)?;
    ensure!(!before.is_empty());
    let layers = stage.root().join("layers");
    let manifests: Vec<PathBuf> = names(&layers)?.into_iter().map(|id| layers.join(id).join("manifest")).collect();
    let aside = |path: &Path| path.with_file_name("manifest.aside");
    for path in manifests.iter().filter(|path| path.exists()) {
        fs::rename(path, aside(path))?;
    }
    let said = stage.run(&["gc"])?.code_is(6)?;
    ensure!(said.err().contains("manifest is missing"), "{}", said.err());
    assert_eq!(packs(&stage)?, before);
    for path in manifests.iter().filter(|path| aside(path).exists()) {
        fs::rename(aside(path), path)?;
    }
    let oldest = left.first().context("ten")?;
    ensure_starts(&stage, 1, "mount", oldest)
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
    ensure!(before - after > 7 * (256 << 10), "{before} bytes became {after}");
    assert_eq!(stage.json::<Value>(&["pack", "web"])?["objects"], 0, "nothing is left to pack");
    // What is hot starts as it is.
    let frozen = packs(&stage)?;
    fs::rename(stage.root().join("packs"), stage.path("aside"))?;
    for seq in [9, 10] {
        for mode in MODES {
            ensure_starts(&stage, seq, mode, &left[usize::try_from(seq - 1)?])?;
        }
    }
    stage.ok(&["fork", "web@3", "lost"])?;
    stage.refused(&["start", "lost"])?;
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
    let before = used(stage.root())?;
    let whole: Value = stage.json(&["pack", "--hot", "0"])?;
    ensure!(whole["objects"].as_u64().is_some_and(|objects| objects > 0), "{whole}");
    let after = used(stage.root())?;
    ensure!(after < before, "the image is packed too: {before} bytes became {after}, {whole}");
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&left[9], &stage.seen_in("web")?)?;
    leave(&stage, "web")?;
    assert_eq!(stage.ok(&["doctor"])?.out().lines().last(), Some("nothing is wrong"));
    Ok(())
}

#[test]
fn a_cold_generation_is_rolled_back_to_and_read_in_every_way() -> Result<()> {
    let stage = Stage::new()?;
    let left = ten(&stage, "web")?;
    stage.ok(&["pack", "web", "--hot", "1"])?;
    let copy = stage.path("copy");
    stage.ok(&["cp", "web@2:/replaced", copy.to_str().context("UTF-8")?])?;
    ensure!(fs::read(&copy)?.starts_with(b"2\n"));
    let changes = stage.ok(&["diff", "web@3", "5"])?.out();
    ensure!(changes.lines().any(|line| line == "M /data"), "{changes}");
    let view = stage.path("view");
    fs::create_dir(&view)?;
    stage.ok(&["browse", "web@4", view.to_str().context("UTF-8")?])?;
    // A view protects what it shows.
    stage.ok(&["pack", "web", "--hot", "1"]).ok();
    ensure!(fs::read(view.join("replaced"))?.starts_with(b"4\n"));
    stage.ok(&["browse", "--unmount", view.to_str().context("UTF-8")?])?;
    stage.ok(&["pack", "web", "--hot", "1"])?;
    stage.ok(&["rollback", "web", "--to", "6", "--no-start"])?;
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&left[5], &stage.seen_in("web")?)?;
    stage.inside("web", "echo more >/more; mv /small /moved")?;
    let seen = stage.seen_in("web")?;
    leave(&stage, "web")?;
    stage.ok(&["seal"])?;
    stage.ok(&["pack", "web", "--hot", "1"])?;
    stage.ok(&["start", "web", "--detach"])?;
    ensure_equal(&seen, &stage.seen_in("web")?)?;
    leave(&stage, "web")
}

#[test]
fn packs_shrink_when_generations_go() -> Result<()> {
    let stage = Stage::new()?;
    ten(&stage, "web")?;
    stage.ok(&["create", "other", "--image", "box", "--keep", "20", "--", "sh", "-c", IDLE])?;
    for number in 1..=3 {
        // What hardly compresses.
        stage.ok(&["start", "other", "--detach"])?;
        stage.inside("other", &format!("head -c 300000 /dev/urandom >/random; echo {number} >/number"))?;
        leave(&stage, "other")?;
    }
    stage.ok(&["seal"])?;
    stage.ok(&["pack", "--hot", "1"])?;
    let before = packed_bytes(&stage)?;
    ensure!(before > 600_000, "{before}");
    stage.ok(&["rm", "other"])?;
    let planned: Value = stage.json(&["gc", "--dry-run"])?;
    ensure!(planned["plan"]["packs"]["count"].as_u64().is_some_and(|count| count > 0), "{planned}");
    stage.ok(&["gc"])?;
    let after = packed_bytes(&stage)?;
    ensure!(after < 100_000, "{before} bytes became {after}");
    assert_eq!(stage.run(&["verify", "--full"])?.code(), 0);
    assert_eq!(stage.ok(&["gc", "--dry-run"])?.out(), "nothing to free\n");
    Ok(())
}

/// A layer that was made of cold ones is cold as well, whether or not it has anything of what is in packs.
#[test]
fn packs_that_nothing_needs_any_more_are_not_missed() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "c", "--image", "box", "--keep", "2", "--", "sh", "-c", IDLE])?;
    let run = |number: u64| -> Result<()> {
        stage.sh_ok("c", &format!("echo {number} >/state; seq {number} 2000 >/own; echo {number} >/n{number}"))?;
        stage.quiet()
    };
    (1..=2).try_for_each(run)?;
    stage.ok(&["seal"])?;
    stage.ok(&["pack", "--hot", "1"])?;
    ensure!(!packs(&stage)?.is_empty(), "nothing was packed");
    (3..=4).try_for_each(run)?;
    stage.ok(&["gc"])?;
    ensure!(packs(&stage)?.is_empty(), "packs are left: {:?}", packs(&stage)?);
    stage.ok(&["doctor"])?;
    stage.ok(&["verify", "--full"])?;
    Ok(())
}

#[test]
fn a_damaged_pack_costs_the_generations_that_show_what_was_in_it_and_no_others() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "20", "--", "sh", "-c", IDLE])?;
    let mut left = Vec::new();
    for number in 1..=4 {
        stage.ok(&["start", "web", "--detach"])?;
        // More than a frame holds, so that there are several.
        stage.inside("web", &format!("head -c 3000000 /dev/urandom >/random; echo {number} >/number"))?;
        left.push(stage.seen_in("web")?);
        leave(&stage, "web")?;
    }
    stage.ok(&["seal"])?;
    stage.ok(&["pack", "web", "--hot", "1"])?;
    let all = packs(&stage)?;
    let pack = all.first().context("a pack")?;
    let file = fs::OpenOptions::new().read(true).write(true).open(pack)?;
    let mut byte = [0];
    let at = file.metadata()?.len() / 6;
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 0x55], at)?;
    let verified = stage.run(&["verify", "--full"])?;
    ensure!(verified.code() == 6, "{verified:?}");
    let damaged: Vec<u64> = stage
        .generations("web")?
        .iter()
        .filter(|generation| generation["health"] == "damaged")
        .filter_map(|generation| generation["seq"].as_u64())
        .collect();
    assert_eq!(damaged.len(), 1, "{damaged:?}, {}", verified.out());
    ensure!(!damaged.contains(&4));
    for seq in 1..=4 {
        if damaged.contains(&seq) {
            ensure!(stage.run(&["fork", &format!("web@{seq}"), "lost"])?.code() == 6, "a damaged generation is used");
        } else {
            ensure_starts(&stage, seq, "mount", &left[usize::try_from(seq - 1)?])?;
        }
    }
    Ok(())
}

#[test]
fn a_policy_packs_after_each_exit() -> Result<()> {
    let stage = Stage::new()?;
    stage.refused_with(&["create", "web", "--image", "box", "--hot", "0"], 2, &["at least 1"])?;
    stage.ok(&["create", "web", "--image", "box", "--hot", "2", "--keep", "20", "--", "sh", "-c", IDLE])?;
    for number in 1..=4 {
        stage.ok(&["run", "web", "--", "sh", "-c", &format!("(echo {number}; head -c 5000 /dev/zero) >/own")])?;
        stage.quiet()?;
    }
    assert_eq!(cold(&stage, "web")?, [1, 2]);
    assert_eq!(stage.ok(&["run", "web", "--", "sh", "-c", "head -c 2 /own"])?.out(), "4\n");
    stage.quiet()?;
    assert_eq!(cold(&stage, "web")?, [1, 2, 3]);
    stage.ok(&["fork", "web@1", "old"])?;
    assert_eq!(stage.ok(&["run", "old", "--", "sh", "-c", "head -c 2 /own"])?.out(), "1\n");
    stage.ok(&["set", "web", "--hot", "all"])?;
    stage.ok(&["run", "web", "--", "sh", "-c", "echo 6 >/own"])?;
    stage.quiet()?;
    assert_eq!(cold(&stage, "web")?, [1, 2, 3], "nothing more is packed");
    Ok(())
}

#[test]
fn a_full_disk_says_so_and_the_thaw_goes_on_later() -> Result<()> {
    let disk = LoopFs::new(FsKind::Ext4, 96 << 20)?;
    let stage = Stage::empty_in(&disk.path())?;
    stage.import(stage::box_tar()?, "box")?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "20", "--", "sh", "-c", IDLE])?;
    let mut left = Vec::new();
    for number in 1..=2 {
        stage.ok(&["start", "web", "--detach"])?;
        // Much to thaw that takes little in packs.
        stage.inside(
            "web",
            &format!("yes 'line {number}' | head -c 20000000 >/much; seq {number}00 1{number}00 >/few"),
        )?;
        left.push(stage.seen_in("web")?);
        leave(&stage, "web")?;
    }
    stage.ok(&["seal"])?;
    stage.ok(&["pack", "web", "--hot", "1"])?;
    assert_eq!(cold(&stage, "web")?, [1]);
    stage.ok(&["fork", "web@1", "old"])?;
    let filler = disk.fill(8 << 20)?;
    let error = stage.refused(&["start", "old", "--detach"])?;
    ensure!(error.contains("nothing is lost"), "{error}");
    ensure!(stage.refused(&["cp", "web@1:/few", "/dev/null"])?.contains("nothing is lost"));
    filler.release()?;
    stage.ok(&["rm", "old"])?;
    ensure_starts(&stage, 1, "mount", left.first().context("a generation")?)?;
    assert_eq!(stage.run(&["verify", "--full"])?.code(), 0);
    drop(stage);
    Ok(())
}

#[test]
fn records_made_again_from_the_layers_know_that_there_are_packs() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--", "sh", "-c", IDLE])?;
    for number in 1..=3 {
        stage.ok(&["run", "web", "--", "sh", "-c", &format!("(echo {number}; head -c 5000 /dev/zero) >/own")])?;
        stage.quiet()?;
    }
    stage.ok(&["seal"])?;
    stage.ok(&["pack", "--hot", "1"])?;
    for name in names(stage.root())?.into_iter().filter(|name| name.starts_with("records.db")) {
        fs::remove_file(stage.root().join(name))?;
    }
    stage.ok(&["doctor", "--rebuild"])?;
    assert_eq!(cold(&stage, "web")?, [1, 2, 3], "whatever may be in packs is looked for");
    let copy = stage.path("copy");
    for seq in 1..=3 {
        stage.ok(&["cp", &format!("web@{seq}:/own"), copy.to_str().context("UTF-8")?])?;
        assert_eq!(fs::read(&copy)?.len(), 5002, "generation {seq}");
    }
    Ok(())
}

/// A start that thaws shows how far it is, and only where somebody looks.
#[test]
fn a_start_that_thaws_shows_it_on_a_terminal_and_nowhere_else() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=3 {
        stage.sh_ok("web", &format!("head -c 300000 /dev/urandom >/own; echo {number} >/number"))?;
    }
    stage.ok(&["seal"])?;
    stage.ok(&["pack", "web", "--hot", "1"])?;
    for (args, end) in [
        (&["run", "look", "--", "cat", "/number"][..], "1"),
        (&["start", "look", "--detach", "--", "sleep", "1000"], "look is running"),
        (&["cp", "web@1:/number", "/dev/null/nowhere"], "not a directory"),
    ] {
        ensure!(cold(&stage, "web")?.contains(&1), "{:?}", cold(&stage, "web")?);
        stage.ok(&["fork", "web@1", "look"])?;
        let mut terminal = Terminal::run(&stage, args)?;
        terminal.expect("taking contents out of packs")?;
        terminal.expect(end)?;
        terminal.wait()?;
        stage.ok(&["rm", "--force", "look"])?;
        stage.quiet()?;
        stage.ok(&["pack", "web", "--hot", "1"])?;
    }
    stage.ok(&["fork", "web@1", "look"])?;
    let silent = stage.ok(&["run", "look", "--", "cat", "/number"])?;
    ensure!((silent.out().as_str(), silent.err().as_str()) == ("1\n", ""), "{:?} {:?}", silent.out(), silent.err());
    Ok(())
}
