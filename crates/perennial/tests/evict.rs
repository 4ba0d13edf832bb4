//! `evict`: what an eviction frees is known to the byte before, and what others show stays.

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::run;
use serde_json::Value;
use stage::{Stage, texts};
use std::process::Command;

/// Bytes that all contents take on disk.
fn contents(stage: &Stage) -> Result<u64> {
    let output = run(Command::new("find").arg(stage.root().join("objects")).args(["-type", "f", "-printf", "%b\n"]))?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|blocks| Ok(blocks.parse::<u64>()? * 512)).sum()
}

/// Four sealed generations: a file replaced by each, one made by the first and removed by the third, one that stays.
fn four_generations() -> Result<Stage> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "9"])?;
    let random = "head -c 700000 /dev/urandom";
    for number in 1..=4 {
        let more = match number {
            1 => format!("{random} >/root/until3; {random} >/root/stays"),
            3 => "rm /root/until3".to_owned(),
            _ => String::new(),
        };
        stage.sh_ok("web", &format!("{random} >/root/replaced; {more}"))?;
    }
    stage.ok(&["seal"])?;
    stage.quiet()?;
    stage.ok(&["gc"])?;
    Ok(stage)
}

fn told(stage: &Stage, reference: &str) -> Result<u64> {
    let told: Value = stage.json(&["evict", reference, "--dry-run"])?;
    told.pointer("/frees/bytes").and_then(Value::as_u64).with_context(|| told.to_string())
}

#[test]
fn what_an_eviction_frees_is_told_before_to_the_byte() -> Result<()> {
    let stage = four_generations()?;
    // The first shows a content of its own, and shares two with the second; and so on.
    for (seq, at_least) in [(2, 700_000), (1, 1_400_000), (3, 700_000)] {
        let reference = format!("web@{seq}");
        let before = contents(&stage)?;
        let bytes = told(&stage, &reference)?;
        assert_eq!(contents(&stage)?, before, "a dry run freed something");
        ensure!((at_least..at_least + 100_000).contains(&bytes), "{reference} frees {bytes}");
        stage.ok(&["evict", &reference])?;
        assert_eq!(before - contents(&stage)?, bytes, "{reference}");
        stage.ok(&["verify", "--full"])?;
    }
    assert_eq!(stage.seqs("web")?, [4]);
    assert_eq!(stage.sh_ok("web", "ls /root; wc -c </root/stays")?, "replaced\nstays\n700000\n");
    stage.ok(&["doctor"])?;
    Ok(())
}

#[test]
fn what_another_container_shows_is_not_freed() -> Result<()> {
    let stage = four_generations()?;
    stage.ok(&["fork", "web@1", "twig"])?;
    stage.quiet()?;
    let before = contents(&stage)?;
    assert_eq!(told(&stage, "web@1")?, 0);
    stage.ok(&["evict", "web@1"])?;
    assert_eq!(contents(&stage)?, before);
    assert_eq!(stage.sh_ok("twig", "wc -c </root/until3")?, "700000\n");
    Ok(())
}

#[test]
fn a_protected_generation_is_not_evicted() -> Result<()> {
    let stage = four_generations()?;
    stage.ok(&["pin", "web@2"])?;
    stage.refused_unchanged(&["evict", "web@2"], 4, &["web@2", "pinned", "unpin"])?;
    stage.refused_unchanged(&["evict", "web@4"], 4, &["web@4", "current"])?;
    stage.refused_unchanged(&["evict", "web@9"], 3, &["9"])?;
    Ok(())
}

#[test]
fn the_byte_bound_counts_each_content_once() -> Result<()> {
    let stage = four_generations()?;
    // All four generations take 6 contents of 700 kB and some metadata; the bound asks for one less.
    let before = contents(&stage)?;
    stage.ok(&["set", "web", "--keep-bytes", "4200000"])?;
    stage.sh_ok("web", "echo 5 >/root/number")?;
    stage.quiet()?;
    let seqs = stage.seqs("web")?;
    ensure!(seqs.first() == Some(&2) && seqs.last() == Some(&5), "{seqs:?}");
    let left = before - contents(&stage)?;
    ensure!((700_000..800_000).contains(&left), "{left} bytes were freed");
    Ok(())
}

/// Without any demand for bytes: as soon as what is hidden is worth the metadata, it goes by itself.
#[test]
fn what_newer_layers_hide_comes_back_by_itself() -> Result<()> {
    const LARGE: u64 = 8_000_000;
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "1"])?;
    // So many entries below that size alone merges nothing.
    let many = "mkdir /srv/many; for i in $(seq 200); do echo $i >/srv/many/$i; done";
    let write = format!("head -c {LARGE} /dev/urandom >/srv/large");
    stage.sh_ok("web", &format!("mkdir -p /srv; {many}; {write}"))?;
    stage.quiet()?;
    stage.ok(&["gc"])?;
    let first = contents(&stage)?;
    for run in 2..=4 {
        stage.sh_ok("web", &write)?;
        stage.quiet()?;
        stage.ok(&["gc"])?;
        let now = contents(&stage)?;
        ensure!(now <= first + 100_000, "after run {run} contents take {now} bytes instead of {first}");
    }
    // Removing much of what is below frees it, too; a little is left until it is worth it.
    stage.sh_ok("web", "rm /srv/many/1")?;
    stage.quiet()?;
    ensure!(texts(&stage.generations("web")?[0], "/layers")?.len() == 2);
    stage.sh_ok("web", "rm /srv/large")?;
    stage.quiet()?;
    stage.ok(&["gc"])?;
    let left = first - contents(&stage)?;
    ensure!(left >= LARGE - 100_000, "{left} bytes came back");
    ensure!(stage.sh_ok("web", "ls /srv; ls /srv/many | wc -l")? == "many\n199\n");
    stage.ok(&["verify", "--full"])?;
    stage.ok(&["doctor"]).map(drop)
}

/// Bytes that all packs take on disk.
fn packs(stage: &Stage) -> Result<u64> {
    let output = run(Command::new("find").arg(stage.root().join("packs")).args(["-type", "f", "-printf", "%b\n"]))?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|blocks| Ok(blocks.parse::<u64>()? * 512)).sum()
}

/// What is in packs only: packs go at once when nothing in them is needed, and what waits for `gc` is said.
#[test]
fn what_an_eviction_frees_of_packs_is_told_before_to_the_byte() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "9"])?;
    let random = "head -c 700000 /dev/urandom";
    // The second pack holds what only the second shows, and what the first shows too.
    for script in [
        format!("{random} >/root/own; {random} >/root/two"),
        format!("{random} >/root/own"),
        format!("{random} >/root/own; rm /root/two"),
        "rm /root/own".to_owned(),
    ] {
        stage.sh_ok("web", &script)?;
        stage.ok(&["seal"])?;
        stage.ok(&["pack", "web", "--hot", "1"])?;
    }
    // By what is shown: of these contents the last generation has none.
    let df: Value = stage.json(&["df"])?;
    let size = |pointer: &str| df.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
    ensure!(size("/containers_bytes") < 700_000, "what is in packs only counts as if it were hot: {df:#}");
    ensure!(size("/packs_bytes") == packs(&stage)? && size("/packs_bytes") > 4 * 690_000, "{df:#}");
    ensure!(size("/total_bytes") >= size("/packs_bytes") + size("/images_bytes"), "{df:#}");
    for (seq, objects, removed, waits) in [(2, 1, 0, true), (1, 2, 2, false), (3, 1, 1, false)] {
        let reference = format!("web@{seq}");
        let before = (contents(&stage)?, packs(&stage)?);
        let told: Value = stage.json(&["evict", &reference, "--dry-run"])?;
        ensure!((contents(&stage)?, packs(&stage)?) == before, "a dry run freed something");
        let number = |name: &str| told.pointer(&format!("/frees/{name}")).and_then(Value::as_u64).unwrap_or_default();
        ensure!((number("packs/objects"), number("packs/removed")) == (objects, removed), "{reference}: {told:#}");
        let waiting = number("packs/waiting_bytes");
        ensure!((690_000..720_000).contains(&waiting) == waits && (waits || waiting == 0), "{reference}: {told:#}");
        let done: Value = stage.json(&["evict", &reference])?;
        ensure!(done["frees"] == told["frees"], "{reference}: {told:#}\n{done:#}");
        let after = (contents(&stage)?, packs(&stage)?);
        ensure!(
            (before.0 - after.0, before.1 - after.1) == (number("bytes"), number("packs/bytes")),
            "{reference}: {told:#}"
        );
        stage.ok(&["verify", "--full"])?;
    }
    ensure!(packs(&stage)? == 0);
    ensure!(stage.sh_ok("web", "ls /root")?.is_empty());
    stage.ok(&["doctor"]).map(drop)
}
