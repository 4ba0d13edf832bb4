//! The supervisor of a run killed at its system calls, or its container's init, or the command that started it (rows
//! A17, A27, A28): what the run changed is in a generation, or the run had changed nothing.

use crate::world::{IMAGE, Scratch, WAIT, World, script};
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::{pause, wait_until, wait_within};
use perennial_testkit::kill::{self, Fault, Outcome, Point, Points, Scenario, Victim};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Every how many-th system call is hit unless the environment says otherwise.
const EVERY: usize = 16;
/// The same where calls that change nothing are hit too, of which there are five times as many.
const EVERY_OF_ALL: usize = 64;

/// How a run gets its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Mount,
    Unpack,
}

/// What the run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Changes the state and ends.
    Change,
    /// Nothing.
    Nothing,
    /// Its command does not exist.
    Fail,
}

/// A whole run: start, wait, exit, commit with eviction, release, fold.
struct WholeRun {
    scratch: Scratch,
    template: World,
    old: Value,
    mode: Mode,
    does: Does,
}

impl WholeRun {
    fn new(mode: Mode, does: Does, generations: u64) -> Result<Self> {
        let scratch = Scratch::new()?;
        let template = World::with_image(&scratch.path())?;
        template.add_container("c", 3, 3)?;
        if generations > 3 {
            // A fork keeps every layer from being folded, so that the stack grows until it is merged.
            for number in 4..=generations {
                template.ok(&["fork", "c", &format!("f{number}")])?;
                template.ok(&["start", "c", "--", "/bin/sh", "-c", &script(number)])?;
            }
        }
        let old = template.check_at_rest()?;
        Ok(Self { scratch, template, old, mode, does })
    }

    fn next(&self) -> u64 {
        generations(&self.old).last().map_or(1, |(seq, _)| seq + 1)
    }

    fn check_state(&self, site: &World, outcome: &Outcome) -> Result<()> {
        let state = site.check_at_rest()?;
        let (old, found) = (generations(&self.old), generations(&state));
        let next = self.next();
        for (seq, holds) in found.iter().filter(|(seq, _)| *seq < next) {
            ensure!(old.contains(&(*seq, holds.clone())), "generation {seq} has changed: {holds}\nwas {old:?}");
        }
        let added: Vec<_> = found.iter().filter(|(seq, _)| *seq >= next).collect();
        ensure!(added.len() <= 1, "more than one generation for a run: {added:?}");
        let tail = old.last().map(|(_, holds)| holds.clone()).unwrap_or_default();
        match added.first() {
            // Three are kept; a salvage is kept outside them.
            Some(_) => ensure!(found.len() >= 3, "too few generations: {found:?}"),
            None => ensure!(found == old, "a generation went and none came"),
        }
        if outcome.hit.is_none() {
            ensure!(added.len() == usize::from(self.does != Does::Fail), "after an unharmed end there are {found:?}");
        }
        let current = state.pointer("/containers/c/current").and_then(Value::as_u64);
        ensure!(current == found.last().map(|(seq, _)| *seq), "current is {current:?} of {found:?}");
        // The next start shows exactly what the current generation holds.
        let expected = added.first().map_or(tail, |(_, holds)| holds.clone());
        let expected: Value = serde_json::from_str(&expected)?;
        let text = expected.get("/state").and_then(Value::as_str).unwrap_or_default();
        if self.does == Does::Change && added.len() == 1 && outcome.hit.is_none() {
            ensure!(text == format!("{next}\n"), "the run wrote {next}, its generation holds {text}");
        }
        let shown = site.perennial.ok(&["run", "c", "--", "/bin/sh", "-c", "cat /state"])?;
        ensure!(shown.out() == text, "the next run finds {:?} and not {text:?}", shown.out());
        site.come_to_rest()
    }
}

/// The generations of `c`: number and what they hold.
fn generations(state: &Value) -> Vec<(u64, String)> {
    let list = state.pointer("/containers/c/generations").and_then(Value::as_array).cloned().unwrap_or_default();
    let shown = |item: &Value| item.get("holds").map(ToString::to_string).unwrap_or_default();
    list.iter().map(|item| (item.get("seq").and_then(Value::as_u64).unwrap_or_default(), shown(item))).collect()
}

impl Scenario for WholeRun {
    type Site = World;

    fn prepare(&self) -> Result<World> {
        self.template.copy(&self.scratch.path())
    }

    fn victim<'a>(&self, site: &'a World) -> Result<Victim<'a>> {
        let change = script(self.next());
        let mut args = vec!["__supervise", "c", "--mode"];
        args.push(if self.mode == Mode::Mount { "mount" } else { "unpack" });
        args.push("--");
        match self.does {
            Does::Change => args.extend(["/bin/sh", "-c", &change]),
            Does::Nothing => args.extend(["/bin/sh", "-c", "true"]),
            Does::Fail => args.push("/bin/nothing"),
        }
        Ok(Victim::Command(site.perennial.command(&args)))
    }

    fn check(&self, site: World, outcome: &Outcome) -> Result<()> {
        let checked = self.check_state(&site, outcome);
        if checked.is_err() {
            site.perennial.clean_up()?;
        }
        std::fs::remove_dir_all(site.perennial.root()).ok();
        checked
    }
}

fn kill_everywhere(what: &str, run: &WholeRun, fault: Fault) -> Result<()> {
    let every = if fault == Fault::Kill { EVERY_OF_ALL } else { EVERY };
    let points = Points::from_env(every)?;
    let report = kill::run(run, fault, &points, 2).context(what.to_owned())?;
    println!(
        "{what}: {} of {} points checked ({points:?}), {} missed, {:?} each",
        report.hits,
        report.recorded,
        report.missed.len(),
        report.per_point()
    );
    Ok(())
}

#[test]
fn a_run_with_eviction_and_fold() -> Result<()> {
    let run = WholeRun::new(Mode::Mount, Does::Change, 3)?;
    kill_everywhere("a run with eviction and fold", &run, Fault::KillBeforeChanges)
}

#[test]
fn a_run_with_a_merge() -> Result<()> {
    let run = WholeRun::new(Mode::Mount, Does::Change, 17)?;
    kill_everywhere("a run with a merge", &run, Fault::KillBeforeChanges)
}

#[test]
fn a_run_that_is_unpacked() -> Result<()> {
    let run = WholeRun::new(Mode::Unpack, Does::Change, 3)?;
    kill_everywhere("a run that is unpacked", &run, Fault::KillBeforeChanges)
}

#[test]
fn an_unpacked_run_that_changes_nothing() -> Result<()> {
    let run = WholeRun::new(Mode::Unpack, Does::Nothing, 3)?;
    kill_everywhere("an unpacked run that changes nothing", &run, Fault::KillBeforeChanges)
}

#[test]
fn a_start_that_fails() -> Result<()> {
    let run = WholeRun::new(Mode::Mount, Does::Fail, 3)?;
    kill_everywhere("a start that fails", &run, Fault::KillBeforeChanges)
}

/// Killed while it waits for the runtime or the container as well: calls that only wait are points, too.
#[test]
fn a_run_killed_at_any_call() -> Result<()> {
    let run = WholeRun::new(Mode::Mount, Does::Change, 3)?;
    kill_everywhere("a run, at any call", &run, Fault::Kill)
}

const FULL: Fault = Fault::Fail {
    errno: "ENOSPC",
    calls: "write,pwrite64,pwritev,mkdir,mkdirat,rename,renameat,renameat2,fallocate,ftruncate,fsync,fdatasync,syncfs,\
            openat,setxattr,fsetxattr,lsetxattr,symlinkat,linkat",
};

/// A step that fails for want of space once: the supervisor tries again by itself, or the start fails.
#[test]
fn a_run_without_space_at_one_step() -> Result<()> {
    let run = WholeRun::new(Mode::Mount, Does::Change, 3)?;
    kill_everywhere("a run without space at one step", &run, FULL)
}

fn kill_hard(pid: i32) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).context("odd process id")?, Signal::KILL)?)
}

fn one_container() -> Result<(Scratch, World)> {
    let scratch = Scratch::new()?;
    let world = World::with_image(&scratch.path())?;
    world.add_container("c", 3, 2)?;
    Ok((scratch, world))
}

fn kinds(world: &World) -> Result<Vec<(u64, String)>> {
    let text = |item: &Value| item.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let listed = world.perennial.generations("c")?;
    Ok(listed.iter().map(|item| (item.get("seq").and_then(Value::as_u64).unwrap_or_default(), text(item))).collect())
}

#[test]
fn what_a_run_changed_is_salvaged_when_its_supervisor_is_killed() -> Result<()> {
    let (_scratch, world) = one_container()?;
    world.ok(&["start", "c", "--detach"])?;
    let merged = world.perennial.merged("c")?;
    wait_until("the run to write", Duration::from_secs(10), || {
        Ok(std::fs::read(merged.join("state")).is_ok_and(|text| text == b"waiting\n"))
    })?;
    // That of the run before may still be at its work in the background.
    let killed = crate::world::kill_supervisors(&world)?;
    ensure!(killed >= 1, "no supervisor");
    world.check_at_rest()?;
    ensure!(kinds(&world)?.last() == Some(&(3, "salvage".into())), "{:?}", kinds(&world)?);
    let shown = world.perennial.ok(&["run", "c", "--", "cat", "/state"])?;
    ensure!(shown.out() == "waiting\n", "{:?}", shown.out());
    Ok(())
}

/// A supervisor that died leaves an exit to be finished. Where the machine went down as well, nobody knows whether all of
/// what the run had changed was written, and the generation must not say that it is whole.
#[test]
fn an_exit_that_a_power_cut_has_caught_before_its_sync_is_a_salvage() -> Result<()> {
    for (is_power_cut, kind) in [(false, "exit"), (true, "salvage")] {
        let (_scratch, world) = one_container()?;
        let change = script(3);
        let run = world.perennial.command(&["__supervise", "c", "--mode", "mount", "--", "/bin/sh", "-c", &change]);
        let point = Point { call: "syncfs".to_owned(), nth: 1 };
        let outcome = kill::disturb(Victim::Command(run), Fault::KillBeforeChanges, &point)?;
        ensure!(outcome.hit.is_some(), "the exit was not caught: {outcome:?}");
        for run in std::fs::read_dir(world.perennial.root().join("runs"))? {
            let run = run?;
            let noted = run.path().join("boot");
            ensure!(noted.is_file(), "nothing says during which start of the machine the run was");
            if is_power_cut {
                perennial_testkit::host::write(noted, "another start of the machine")?;
                // The runtime syncs nothing.
                let kept = world.perennial.root().join("oci").join(run.file_name());
                std::fs::create_dir_all(&kept)?;
                perennial_testkit::host::write(kept.join("state.json"), "")?;
            }
        }
        world.check_at_rest()?;
        ensure!(kinds(&world)?.last() == Some(&(3, kind.to_owned())), "{kind}: {:?}", kinds(&world)?);
        let shown = world.perennial.ok(&["run", "c", "--", "cat", "/state"])?;
        ensure!(shown.out() == "3\n", "{:?}", shown.out());
    }
    Ok(())
}

#[test]
fn a_killed_init_is_an_exit_like_any_other() -> Result<()> {
    let (_scratch, world) = one_container()?;
    world.ok(&["start", "c", "--detach"])?;
    let inspected = world.perennial.inspect("c")?;
    let pid = inspected.pointer("/run/pid").and_then(Value::as_i64).context("no pid")?;
    kill_hard(i32::try_from(pid)?)?;
    world.wait_phase("c", &["Dormant"], Duration::from_secs(20))?;
    ensure!(kinds(&world)?.last() == Some(&(3, "exit".into())), "{:?}", kinds(&world)?);
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn a_killed_foreground_command_leaves_the_run_to_its_supervisor() -> Result<()> {
    let (_scratch, world) = one_container()?;
    let mut command = world.perennial.command(&["run", "c", "--", "/bin/sh", "-c", WAIT]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    world.wait_phase("c", &["Running"], Duration::from_secs(20))?;
    child.kill()?;
    ensure!(wait_within(&mut child, Duration::from_secs(5))?.is_some(), "it does not die");
    pause(Duration::from_millis(200));
    world.wait_phase("c", &["Running"], Duration::from_secs(1))?;
    world.ok(&["stop", "c"])?;
    ensure!(kinds(&world)?.last() == Some(&(3, "exit".into())), "{:?}", kinds(&world)?);
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn a_killed_runtime_is_a_failed_start() -> Result<()> {
    let (scratch, world) = one_container()?;
    // A runtime that dies while it works, as from `kill -9` or for want of memory.
    let runtime = scratch.path();
    perennial_testkit::host::write(
        &runtime,
        "#!/bin/sh\ncase \" $* \" in *' run '*) kill -9 $$;; esac\nexec runc \"$@\"\n",
    )?;
    perennial_testkit::host::run(Command::new("chmod").arg("755").arg(&runtime))?;
    let path = runtime.to_string_lossy().into_owned();
    world.ok(&["create", "d", "--image", IMAGE, "--runtime", &path, "--", "/bin/sh", "-c", WAIT])?;
    let refused = world.perennial.run(&["start", "d"])?.code_is(125)?;
    ensure!(refused.err().contains("signal"), "{}", refused.err());
    world.check_at_rest()?;
    ensure!(world.perennial.seqs("d")?.is_empty(), "a start that failed made a generation");
    Ok(())
}
