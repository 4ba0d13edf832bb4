//! A full disk (row A34): exits wait for space and complete by themselves, starts are refused, nothing is lost.

use crate::world::{IMAGE, World};
use anyhow::{Result, ensure};
use perennial_testkit::host::wait_until;
use perennial_testkit::loopfs::{Filler, LoopFs};
use serde_json::Value;
use std::time::Duration;

/// Longest time from free space to a saved exit: the supervisor's longest pause and some work.
const BY_ITSELF: Duration = Duration::from_secs(45);
/// What the containers do: change something, and wait.
const WRITE: &str = "echo mine > /state; dd if=/dev/zero of=/big bs=1024 count=200 2>/dev/null; echo done > /done; \
                     trap 'exit 0' TERM; while true; do sleep 0.05; done";

fn world(fs: &LoopFs) -> Result<World> {
    let world = World::with_image(&fs.path().join("root"))?;
    for name in ["a", "b", "c"] {
        world.ok(&["create", name, "--image", IMAGE, "--seal", "never", "--", "/bin/sh", "-c", WRITE])?;
    }
    Ok(world)
}

fn start_all(world: &World) -> Result<()> {
    for name in ["a", "b", "c"] {
        world.ok(&["start", name, "--detach"])?;
        let merged = world.perennial.merged(name)?;
        wait_until("the run to write", Duration::from_secs(20), || Ok(merged.join("done").exists()))?;
    }
    Ok(())
}

fn phase(world: &World, name: &str) -> Result<String> {
    let inspected = world.perennial.inspect(name)?;
    Ok(inspected.get("phase").and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn free_and_complete(world: &World, filler: Filler) -> Result<()> {
    filler.release()?;
    for name in ["a", "b", "c"] {
        let end = perennial_testkit::host::now() + BY_ITSELF;
        // Only looks that change nothing: it completes without the help of a command.
        while world.containers()?.iter().any(|c| c.name.as_str() == name && c.phase.run().is_some()) {
            ensure!(perennial_testkit::host::now() < end, "{name} is still {}", phase(world, name)?);
            perennial_testkit::host::pause(Duration::from_millis(100));
        }
        ensure!(world.perennial.seqs(name)? == [1], "{name} has {:?}", world.perennial.seqs(name)?);
        let shown = world.perennial.ok(&["run", name, "--", "cat", "/state"])?;
        ensure!(shown.out() == "mine\n", "{name} shows {:?}", shown.out());
    }
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn exits_on_a_full_disk_wait_for_space_and_complete_by_themselves() -> Result<()> {
    let fs = LoopFs::small()?;
    let world = world(&fs)?;
    start_all(&world)?;
    let filler = fs.fill(0)?;
    for name in ["a", "b", "c"] {
        let said = world.perennial.run(&["stop", name])?.code_is(7)?;
        ensure!(said.err().contains("not saved yet"), "{}", said.err());
    }
    for name in ["a", "b", "c"] {
        ensure!(phase(&world, name)? == "ExitIncomplete", "{name} is {}", phase(&world, name)?);
        ensure!(world.perennial.seqs(name)?.is_empty(), "{name} has a generation");
        let said = world.perennial.run(&["start", name, "--detach"])?.code_is(7)?;
        ensure!(said.err().contains("not saved yet"), "{}", said.err());
    }
    let listed = world.perennial.ok(&["ps"])?.out();
    ensure!(listed.matches("ExitIncomplete").count() >= 3, "{listed}");
    free_and_complete(&world, filler)
}

#[test]
fn exits_complete_although_the_disk_filled_while_they_ran_and_their_supervisors_died() -> Result<()> {
    let fs = LoopFs::small()?;
    let world = world(&fs)?;
    start_all(&world)?;
    let filler = fs.fill(0)?;
    // As after a crash of the machine's userland: nobody is left to complete the exits but the next command.
    crate::world::kill_supervisors(&world)?;
    for name in ["a", "b", "c"] {
        wait_until("recovery to find it", Duration::from_secs(20), || Ok(phase(&world, name)? == "ExitIncomplete"))?;
        ensure!(world.perennial.seqs(name)?.is_empty(), "{name} has a generation");
    }
    filler.release()?;
    world.ok(&["ps"])?;
    for name in ["a", "b", "c"] {
        ensure!(world.perennial.seqs(name)? == [1], "{name} has {:?}", world.perennial.seqs(name)?);
        let shown = world.perennial.ok(&["run", name, "--", "cat", "/state"])?;
        ensure!(shown.out() == "mine\n", "{name} shows {:?}", shown.out());
    }
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn a_start_on_a_full_disk_is_refused_and_changes_nothing() -> Result<()> {
    let fs = LoopFs::small()?;
    let world = world(&fs)?;
    world.ok(&["run", "a", "--", "/bin/sh", "-c", "echo first > /state"])?;
    world.check_at_rest()?;
    let filler = fs.fill(0)?;
    let said = world.perennial.run(&["start", "a", "--detach"])?;
    ensure!(said.code() != 0, "it started: {}", said.out());
    ensure!(said.err().to_lowercase().contains("no space"), "{}", said.err());
    filler.release()?;
    ensure!(world.perennial.seqs("a")? == [1], "{:?}", world.perennial.seqs("a")?);
    let shown = world.perennial.ok(&["run", "a", "--", "cat", "/state"])?;
    ensure!(shown.out() == "first\n", "{:?}", shown.out());
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn a_foreground_run_on_a_full_disk_ends_with_code_7_and_completes() -> Result<()> {
    let fs = LoopFs::small()?;
    let world = world(&fs)?;
    let full = "echo mine > /state; dd if=/dev/zero of=/filler bs=65536 2>/dev/null; dd if=/dev/zero of=/filler2 bs=512 \
                2>/dev/null; sync; true";
    let said = world.perennial.run(&["run", "a", "--", "/bin/sh", "-c", full])?;
    ensure!(said.code() == 7, "code {}: {}", said.code(), said.err());
    ensure!(phase(&world, "a")? == "ExitIncomplete", "{}", phase(&world, "a")?);
    // The run itself filled the disk; its owner frees space elsewhere. Here only its own files can go.
    let run = world.perennial.inspect("a")?.pointer("/run/id").and_then(Value::as_str).unwrap_or_default().to_owned();
    std::fs::remove_file(fs.path().join("root/runs").join(run).join("upper/filler"))?;
    world.wait_phase("a", &["Dormant"], BY_ITSELF)?;
    let shown = world.perennial.ok(&["run", "a", "--", "cat", "/state"])?;
    ensure!(shown.out() == "mine\n", "{:?}", shown.out());
    world.check_at_rest()?;
    Ok(())
}
