//! What breaks on the way, and what is damaged there: nothing is sent or fetched twice, and nothing damaged gets in
//! (row B25).

use crate::moving::{empty_linked, linked};
use crate::registry::{Proxy, Registry, at_most};
use crate::stage::Stage;
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::wait_until;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A container of so many packs of 32 MiB that do not compress.
pub(crate) fn heavy(here: Stage) -> Result<Stage> {
    here.sh_ok("web", "dd if=/dev/urandom of=/a bs=1M count=40; dd if=/dev/urandom of=/b bs=1M count=40")?;
    here.ok(&["seal", "web"])?;
    Ok(here)
}

#[test]
fn a_push_that_is_killed_in_the_middle_goes_on_with_what_is_not_there() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let here = heavy(linked(&proxy.address())?)?;
    killed_push(&registry, &here, &empty_linked(&registry.address())?)
}

pub(crate) fn killed_push(registry: &Registry, here: &Stage, there: &Stage) -> Result<()> {
    let mut child = here.spawn(&["push", "web"])?;
    wait_until("a whole pack has gone", Duration::from_secs(60), || Ok(registry.bytes()? > 40_000_000))?;
    child.kill()?;
    child.wait()?;
    let before = registry.bytes()?;
    // What the proxy still has of the first is on its way meanwhile, so the second is asked what it has sent.
    let pushed: Value = here.json(&["push", "web"])?;
    let sent = pushed.pointer("/traffic/sent_bytes").and_then(Value::as_u64).unwrap_or(u64::MAX);
    // All in all 84 MB.
    at_most("sent by the second push", sent, 88_000_000 - before)?;
    there.ok(&["pull", "web"])?;
    let sum = "sha256sum /a /b";
    ensure!(here.sh_ok("web", sum)? == there.sh_ok("web", sum)?);
    Ok(())
}

#[test]
fn a_pull_that_is_killed_in_the_middle_goes_on_with_what_is_not_here() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    heavy(linked(&registry.address())?)?.ok(&["push", "web"])?;
    killed_pull(&proxy, &empty_linked(&proxy.address())?)
}

/// Bytes that a pull has brought here so far.
fn kept(there: &Stage) -> Result<u64> {
    let spool = there.root().join("travel/pull-hub-web");
    let mut kept = 0;
    if spool.exists() {
        for entry in fs::read_dir(spool)? {
            kept += entry?.metadata()?.blocks() * 512;
        }
    }
    Ok(kept)
}

pub(crate) fn killed_pull(proxy: &Proxy, there: &Stage) -> Result<()> {
    proxy.take();
    // It comes no further than that, however long it takes until somebody looks.
    proxy.counts.hold_at.store(30_000_000, Ordering::SeqCst);
    let mut child = there.spawn(&["pull", "web"])?;
    wait_until("some of it is here", Duration::from_secs(60), || Ok(kept(there)? > 25_000_000))?;
    child.kill()?;
    child.wait()?;
    let kept = kept(there)?;
    ensure!((25_000_000..40_000_000).contains(&kept), "{kept} bytes are kept");
    proxy.counts.hold_at.store(0, Ordering::SeqCst);
    proxy.take();
    there.ok(&["pull", "web"])?;
    // Frames of 2 MiB that had not come whole, four on their way at once, come again.
    at_most("received by the second pull", proxy.take().1, 86_000_000 - kept + 10_000_000)?;
    there.ok(&["verify", "--full"])?;
    Ok(())
}

#[test]
fn a_connection_that_breaks_now_and_then_costs_only_time() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let here = heavy(linked(&registry.address())?)?;
    here.ok(&["push", "web"])?;
    let there = empty_linked(&proxy.address())?;
    proxy.take();
    proxy.counts.cut_at.store(30_000_000, Ordering::SeqCst);
    let mut child = there.spawn(&["pull", "web"])?;
    let is_cut = || Ok(proxy.counts.down.load(Ordering::SeqCst) >= 30_000_000);
    wait_until("it was cut", Duration::from_secs(60), is_cut)?;
    proxy.counts.cut_at.store(0, Ordering::SeqCst);
    ensure!(child.wait()?.success(), "it gave up");
    at_most("received in all", proxy.take().1, 100_000_000)?;
    there.ok(&["verify", "--full"])?;
    Ok(())
}

#[test]
fn what_is_damaged_in_the_registry_never_gets_in() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    damages_refused(&registry, &here, &|| empty_linked(&registry.address()))
}

pub(crate) fn damages_refused(registry: &Registry, here: &Stage, empty: &dyn Fn() -> Result<Stage>) -> Result<()> {
    here.sh_ok("web", "dd if=/dev/urandom of=/a bs=1M count=3")?;
    here.ok(&["push", "web"])?;
    let mut refused = 0;
    for blob in registry.blobs()? {
        let whole = fs::read(&blob)?;
        // A byte near the beginning, in the middle, and near the end.
        for at in [20, whole.len() / 2, whole.len() - 10] {
            let mut damaged = whole.clone();
            damaged.get_mut(at).map(|byte| *byte ^= 1).context("it is longer than that")?;
            crate::stage::write(&blob, &damaged)?;
            let there = empty()?;
            let run = there.run(&["pull", "web"])?;
            if run.code() == 0 {
                // It was in a stretch that is not read, or between two.
                there.ok(&["verify", "--full"])?;
                ensure!(here.sh_ok("web", "sha256sum /a")? == there.sh_ok("web", "sha256sum /a")?);
            } else {
                refused += 1;
                crate::stage::complains(&run.err(), &[])?;
                let listed: Value = there.json(&["ps"])?;
                ensure!(listed.as_array().is_some_and(Vec::is_empty), "{listed}");
                there.ok(&["doctor"])?;
            }
        }
        crate::stage::write(&blob, &whole)?;
    }
    ensure!(refused >= 6, "only {refused} damages were seen");
    empty()?.ok(&["pull", "web"])?;
    Ok(())
}

#[test]
fn a_transfer_that_fills_the_disk_frees_it_again_and_says_so() -> Result<()> {
    let registry = Registry::start()?;
    let here = heavy(linked(&registry.address())?)?;
    here.ok(&["push", "web"])?;
    let disk = LoopFs::new(FsKind::Ext4, 60 << 20)?;
    let there = Stage::empty_in(&disk.path())?;
    there.ok(&["remote", "add", "hub", &format!("{}/team", registry.address())])?;
    let before = disk.bytes_free()?;
    let root = there.root().display().to_string();
    there.refused_with(&["pull", "web"], 5, &[&root, "is full", "removed again", "free some space"])?;
    let after = disk.bytes_free()?;
    ensure!(after + 2_000_000 > before, "{before} bytes were free, and now {after}");
    there.ok(&["doctor"])?;
    let listed: Value = there.json(&["ps"])?;
    ensure!(listed.as_array().is_some_and(Vec::is_empty), "{listed}");
    Ok(())
}

#[test]
fn a_push_that_finds_no_room_to_pack_frees_what_it_has_packed() -> Result<()> {
    let registry = Registry::start()?;
    let disk = LoopFs::new(FsKind::Ext4, 400 << 20)?;
    let here = Stage::empty_in(&disk.path())?;
    here.ok(&["remote", "add", "hub", &format!("{}/team", registry.address())])?;
    here.import(crate::stage::box_tar()?, "box")?;
    here.sh_ok("web", "dd if=/dev/urandom of=/a bs=1M count=40")?;
    here.ok(&["seal", "web"])?;
    let filler = disk.fill(20 << 20)?;
    let before = disk.bytes_free()?;
    here.refused_with(&["push", "web"], 5, &[&here.root().display().to_string(), "is full", "removed again"])?;
    let after = disk.bytes_free()?;
    ensure!(after + 2_000_000 > before, "{before} bytes were free, and now {after}");
    filler.release()?;
    here.ok(&["push", "web"])?;
    Ok(())
}

#[test]
fn a_push_while_it_runs_says_what_does_not_go_and_a_pull_of_one_generation_what_goes() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.sh_ok("web", "echo 1 > /n")?;
    here.ok(&["start", "web", "--detach", "--", "sh", "-c", crate::stage::IDLE])?;
    for _ in 0..2 {
        let told = here.ok(&["push", "web"])?.err();
        ensure!(told.contains("web is running"), "{told}");
    }
    here.ok(&["stop", "web"])?;
    let told = here.ok(&["push", "web"])?.err();
    ensure!(!told.contains("running"), "{told}");
    here.refused_with(&["pull", "web@1"], 2, &["not one of its generations", "perennial pull web"])?;
    here.refused_with(&["push", "web@9"], 3, &["web@9", "perennial generations web"])?;
    Ok(())
}
