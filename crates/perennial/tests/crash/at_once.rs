//! Many commands on one container at once (row A26): one wins each time, the others wait or say why not; and background
//! work that goes on while containers run.
//!
//! `PERENNIAL_ROUNDS` sets the number of mixed rounds, `PERENNIAL_SEED` repeats one series.

use crate::world::{IMAGE, Scratch, WAIT, World, script};
use anyhow::{Context as _, Result, bail, ensure};
use perennial_testkit::cli::Perennial;
use perennial_testkit::host::{pause, wait_within};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Child, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Commands in one round.
const AT_ONCE: usize = 20;
/// Mixed rounds unless the environment says otherwise.
const ROUNDS: u64 = 12;
/// Longest one command may take; a stop waits for other stops.
const LIMIT: Duration = Duration::from_secs(90);
/// Deepest stack that may be left: what is merged beyond (`perennial_core::layers::DEPTH_MAX`) and the newest layer.
const DEPTH_MAX: usize = 17;

/// How a command ended and what it said.
#[derive(Debug)]
struct Ended {
    args: Vec<String>,
    code: i32,
    err: String,
}

/// Starts all commands before it waits for any.
fn at_once(perennial: &Perennial, commands: &[Vec<String>]) -> Result<Vec<Ended>> {
    let dir = tempfile::tempdir()?;
    let start = |number: usize, args: &Vec<String>| -> Result<Child> {
        let errors = File::create(dir.path().join(number.to_string()))?;
        let mut command = perennial.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        command.spawn().context("cannot start a command")
    };
    let children: Vec<Child> = commands.iter().enumerate().map(|(n, args)| start(n, args)).collect::<Result<_>>()?;
    let mut ended = Vec::new();
    for (number, (mut child, args)) in children.into_iter().zip(commands).enumerate() {
        let status = wait_within(&mut child, LIMIT)?;
        let err = std::fs::read_to_string(dir.path().join(number.to_string()))?;
        let Some(status) = status else { bail!("{args:?} still runs after {LIMIT:?}: {err}") };
        let code = status.code().unwrap_or(-1);
        let is_stopped = matches!(code, 137 | 143);
        ensure!(code == 0 || is_stopped || err.contains("error:"), "{args:?}: code {code} without a word: {err}");
        ended.push(Ended { args: args.clone(), code, err });
    }
    Ok(ended)
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn same(args: &[&str]) -> Vec<Vec<String>> {
    vec![words(args); AT_ONCE]
}

/// No upper directory may be in two unions: the kernel does not prevent it.
fn ensure_no_double_mount() -> Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut uppers = BTreeMap::new();
    for line in table.lines() {
        let Some(upper) = line.split(',').find_map(|option| option.strip_prefix("upperdir=")) else { continue };
        ensure!(uppers.insert(upper.to_owned(), line.to_owned()).is_none(), "mounted twice: {upper}\n{table}");
    }
    Ok(())
}

/// How often the kernel said that an upper directory is in two unions, where its log can be read. (It says the same of a
/// *lower* directory while another namespace that is just being made has a copy of an unmounted union.)
fn kernel_complaints() -> usize {
    let output = std::process::Command::new("dmesg").output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).matches("upperdir is in-use").count())
        .unwrap_or_default()
}

fn world() -> Result<(Scratch, World)> {
    let scratch = Scratch::new()?;
    let world = World::with_image(&scratch.path())?;
    Ok((scratch, world))
}

#[test]
fn first_commands_on_a_new_root_all_find_it() -> Result<()> {
    let scratch = Scratch::new()?;
    for _ in 0..5 {
        let perennial = Perennial::new(scratch.path())?;
        for ended in at_once(&perennial, &same(&["create", "c", "--image", "nothing"]))? {
            ensure!(ended.code == 3 && ended.err.contains("there is no image"), "{ended:?}");
        }
    }
    Ok(())
}

#[test]
fn one_of_many_creates_wins() -> Result<()> {
    let (_scratch, world) = world()?;
    let ended = at_once(&world.perennial, &same(&["create", "c", "--image", IMAGE]))?;
    ensure!(ended.iter().filter(|ended| ended.code == 0).count() == 1, "{ended:?}");
    ensure!(
        ended.iter().filter(|ended| ended.code == 4 && ended.err.contains("exists")).count() == AT_ONCE - 1,
        "{ended:?}"
    );
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn one_of_many_starts_wins_and_all_stops_end() -> Result<()> {
    let (_scratch, world) = world()?;
    world.add_container("c", 3, 1)?;
    let complaints = kernel_complaints();
    for round in 2..6 {
        let ended = at_once(&world.perennial, &same(&["start", "c", "--detach"]))?;
        ensure_no_double_mount()?;
        ensure!(ended.iter().filter(|ended| ended.code == 0).count() == 1, "{ended:?}");
        ensure!(ended.iter().all(|ended| ended.code == 0 || ended.code == 4), "{ended:?}");
        let ended = at_once(&world.perennial, &same(&["stop", "c"]))?;
        ensure!(ended.iter().any(|ended| ended.code == 0), "{ended:?}");
        ensure!(ended.iter().all(|ended| ended.code == 0 || ended.code == 4), "{ended:?}");
        ensure!(world.perennial.seqs("c")?.last() == Some(&round), "{:?}", world.perennial.seqs("c")?);
    }
    ensure!(kernel_complaints() == complaints, "the kernel complains of a double mount");
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn many_runs_of_a_new_container_make_one() -> Result<()> {
    let (_scratch, world) = world()?;
    let ended =
        at_once(&world.perennial, &same(&["run", "c", "--image", IMAGE, "--", "/bin/sh", "-c", "echo 1 >> /n"]))?;
    let won = ended.iter().filter(|ended| ended.code == 0).count();
    ensure!(won >= 1 && ended.iter().all(|ended| ended.code == 0 || ended.code == 4), "{ended:?}");
    let shown = world.perennial.ok(&["run", "c", "--", "cat", "/n"])?;
    ensure!(shown.out().lines().count() == won, "{won} runs succeeded and left {:?}", shown.out());
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn many_rollbacks_forks_and_removals_agree() -> Result<()> {
    let (_scratch, world) = world()?;
    world.add_container("c", 5, 4)?;
    let mut commands = same(&["rollback", "c", "--to", "2"]);
    commands.truncate(10);
    commands.extend((0..10).map(|number| words(&["fork", "c", &format!("f{}", number % 5)])));
    let ended = at_once(&world.perennial, &commands)?;
    ensure!(ended.iter().all(|ended| ended.code == 0 || ended.code == 4), "{ended:?}");
    ensure!(
        ended.iter().filter(|ended| ended.code == 0 && ended.args.first().is_some_and(|a| a == "fork")).count() == 5
    );
    let ended = at_once(&world.perennial, &same(&["rm", "c"]))?;
    ensure!(ended.iter().filter(|ended| ended.code == 0).count() == 1, "{ended:?}");
    ensure!(ended.iter().all(|ended| ended.code == 0 || ended.code == 3), "{ended:?}");
    world.check_at_rest()?;
    for number in 0..5 {
        let shown = world.perennial.ok(&["run", &format!("f{number}"), "--", "cat", "/state"])?;
        ensure!(shown.out() == "2\n" || shown.out() == "4\n", "{:?}", shown.out());
    }
    world.check_at_rest()?;
    Ok(())
}

/// A small generator of numbers (xorshift), so that a round can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn command(&mut self) -> Vec<String> {
        let (number, seq) = (self.below(3), 1 + self.below(6));
        let seq = seq.to_string();
        match self.below(12) {
            0 | 1 => words(&["start", "c", "--detach"]),
            2 | 3 => words(&["stop", "c", "--time", "0"]),
            4 => words(&["rollback", "c", "--to", &seq]),
            5 => words(&["run", "c", "--", "/bin/sh", "-c", &script(self.below(9) + 1)]),
            6 => words(&["fork", "c", &format!("f{number}")]),
            7 => words(&["rm", "--force", &format!("f{number}")]),
            8 => words(&["run", &format!("f{number}"), "--", "/bin/sh", "-c", &script(self.below(9) + 1)]),
            9 => words(&["pin", &format!("c@{seq}")]),
            10 => words(&["unpin", &format!("c@{seq}")]),
            _ => words(&["gc"]),
        }
    }
}

fn number(name: &str, otherwise: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{name}={text}")))
}

#[test]
fn mixed_commands_leave_a_whole_store() -> Result<()> {
    let (_scratch, world) = world()?;
    world.add_container("c", 4, 3)?;
    let rounds = number("PERENNIAL_ROUNDS", ROUNDS)?;
    let seed = number("PERENNIAL_SEED", u64::from(std::process::id()))?;
    println!("seed {seed}, {rounds} rounds of {AT_ONCE} commands");
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let complaints = kernel_complaints();
    let mut codes: BTreeMap<(String, i32), u32> = BTreeMap::new();
    for round in 0..rounds {
        let commands: Vec<Vec<String>> = (0..AT_ONCE).map(|_| dice.command()).collect();
        for ended in at_once(&world.perennial, &commands)? {
            let verb = ended.args.first().cloned().unwrap_or_default();
            // A run that another command stops ends as its process does.
            let is_stopped = verb == "run" && matches!(ended.code, 137 | 143);
            ensure!(matches!(ended.code, 0 | 3 | 4) || is_stopped, "round {round}, seed {seed}: {ended:?}");
            ensure!(!ended.err.contains("changed by somebody else"), "round {round}, seed {seed}: {ended:?}");
            *codes.entry((verb, ended.code)).or_default() += 1;
        }
        ensure_no_double_mount()?;
        world.check_at_rest().with_context(|| format!("round {round}, seed {seed}"))?;
    }
    println!("{codes:?}");
    ensure!(kernel_complaints() == complaints, "the kernel complains of a double mount");
    Ok(())
}

fn depth(world: &World, name: &str) -> Result<usize> {
    let containers = world.containers()?;
    let container = containers.iter().find(|container| container.name.as_str() == name).context("no container")?;
    Ok(container.queue.as_ref().and_then(|queue| queue.current()).map_or(0, |generation| generation.layers.len()))
}

/// Makes `runs` generations while forks run on the same layers, and checks depth and content.
fn long_life(keep: u32, runs: u64) -> Result<()> {
    let (_scratch, world) = world()?;
    world.add_container("c", keep, 2)?;
    let mut fork: Option<(String, TreeListing)> = None;
    let mut deepest = 0;
    for number in 3..=runs {
        if number % 7 == 0 {
            if let Some((name, before)) = fork.take() {
                // What it sees must not have changed by what happened to the layers below it.
                ensure_equal(&before, &TreeListing::of(world.perennial.merged(&name)?)?)?;
                world.ok(&["rm", "--force", &name])?;
            }
            let name = format!("f{number}");
            world.ok(&["fork", "c", &name])?;
            world.ok(&["start", &name, "--detach", "--", "/bin/sh", "-c", WAIT])?;
            pause(Duration::from_millis(300));
            let listing = TreeListing::of(world.perennial.merged(&name)?)?;
            fork = Some((name, listing));
        }
        world.ok(&["run", "c", "--", "/bin/sh", "-c", &script(number)])?;
        let shown = world.perennial.ok(&["run", "c", "--", "/bin/sh", "-c", "cat /state /d/f* /opaque/*"])?;
        ensure!(shown.out() == format!("{number}\n{number}\n{number}\n"), "run {number} left {:?}", shown.out());
        deepest = deepest.max(depth(&world, "c")?);
    }
    let state = world.check_at_rest()?;
    let depth = depth(&world, "c")?;
    println!("keep {keep}, {runs} runs: at most {deepest} layers, {depth} at rest");
    // While a run starts before the settling of the last one, one more layer can be there.
    ensure!(depth <= DEPTH_MAX && deepest <= DEPTH_MAX + 3, "the stack is {deepest} deep, {depth} at rest");
    let list = state.pointer("/containers/c/generations").and_then(Value::as_array).cloned().unwrap_or_default();
    ensure!(list.len() <= usize::try_from(keep)?, "{} generations are kept", list.len());
    for generation in &list {
        let text = generation.pointer("/holds/~1state").and_then(Value::as_str).unwrap_or_default().trim().to_owned();
        let number = generation.get("seq").and_then(Value::as_u64).unwrap_or_default();
        // Two runs for each number: one that changes something, and one that looks.
        let expected = if number <= 2 { number } else { (number + 3) / 2 };
        ensure!(text == expected.to_string(), "generation {number} holds {text}, not {expected}");
    }
    Ok(())
}

#[test]
fn a_short_queue_stays_shallow_and_right_over_many_runs() -> Result<()> {
    long_life(3, number("PERENNIAL_ROUNDS", ROUNDS)?.clamp(15, 30))
}

#[test]
fn a_long_queue_stays_shallow_and_right_over_many_runs() -> Result<()> {
    long_life(100, number("PERENNIAL_ROUNDS", ROUNDS)?.clamp(24, 60))
}

/// Makes a library that shifts the wall clock of every program that loads it.
fn clock_shim(dir: &TempDir) -> Result<String> {
    let (source, library) = (dir.path().join("shift.c"), dir.path().join("shift.so"));
    let text = "#define _GNU_SOURCE\n#include <stdlib.h>\n#include <sys/syscall.h>\n#include <time.h>\n#include <unistd.h>\n\
        int clock_gettime(clockid_t id, struct timespec *t) {\n\
        long r = syscall(SYS_clock_gettime, id, t); const char *s = getenv(\"CLOCK_SHIFT_S\");\n\
        if (r == 0 && id == CLOCK_REALTIME && s) t->tv_sec += atol(s);\n return (int)r; }\n";
    perennial_testkit::host::write(&source, text)?;
    let mut cc = std::process::Command::new("cc");
    perennial_testkit::host::run(cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source))?;
    Ok(library.to_string_lossy().into_owned())
}

#[test]
fn a_clock_set_back_does_not_change_the_order() -> Result<()> {
    let (_scratch, world) = world()?;
    let dir = tempfile::tempdir()?;
    let library = clock_shim(&dir)?;
    world.ok(&["create", "c", "--image", IMAGE, "--keep", "3"])?;
    let shifts = ["0", "-86400", "-86000", "-172800", "0"];
    for (number, shift) in shifts.iter().enumerate() {
        let shifted = world.perennial.clone().env("LD_PRELOAD", &library).env("CLOCK_SHIFT_S", *shift);
        shifted.ok(&["run", "c", "--", "/bin/sh", "-c", &script(number as u64 + 1)])?;
    }
    let listed = world.perennial.generations("c")?;
    let times: Vec<&str> = listed.iter().filter_map(|item| item.get("exited_at").and_then(Value::as_str)).collect();
    ensure!(world.perennial.seqs("c")? == [3, 4, 5], "{listed:?}");
    ensure!(times.get(1) < times.first(), "the clock was not set back: {times:?}");
    let shown = world.perennial.ok(&["run", "c", "--", "cat", "/state"])?;
    ensure!(shown.out() == "5\n", "the newest is not the last: {:?}", shown.out());
    // Between the third and the fourth by the clock: the fourth came later but is dated earlier.
    let at = times.get(1).context("no time")?;
    let said = world.perennial.run(&["rollback", "c", "--at", at])?;
    let current = world.perennial.inspect("c")?.get("current").and_then(Value::as_u64);
    match said.code() {
        0 => ensure!(current == Some(4), "--at {at} chose {current:?} of {listed:?}"),
        2 => ensure!(said.err().contains("ambiguous") || said.err().contains("clock"), "{}", said.err()),
        code => bail!("--at {at}: code {code}: {}", said.err()),
    }
    world.check_at_rest()?;
    Ok(())
}

fn stray(world: &World) -> Result<Child> {
    let merged = world.perennial.merged("c")?;
    let mut command = std::process::Command::new("sleep");
    command.arg("1000").current_dir(merged).stdin(Stdio::null()).spawn().context("cannot start sleep")
}

#[test]
fn a_stray_of_the_host_is_waited_for_and_never_killed() -> Result<()> {
    let (_scratch, world) = world()?;
    world.add_container("c", 3, 1)?;
    world.ok(&["start", "c", "--detach"])?;
    let mut child = stray(&world)?;
    let said = world.perennial.run(&["stop", "c"])?;
    let inspected = world.perennial.inspect("c")?;
    let is_alive = child.try_wait()?.is_none();
    let seqs = world.perennial.seqs("c")?;
    child.kill()?;
    child.wait()?;
    ensure!(said.code() == 7, "code {}: {}", said.code(), said.err());
    ensure!(said.err().contains("merged is still in use"), "{}", said.err());
    ensure!(is_alive, "the stray was killed");
    ensure!(inspected.get("phase").and_then(Value::as_str) == Some("ExitIncomplete"), "{inspected}");
    ensure!(seqs == [1], "{seqs:?}");
    world.wait_phase("c", &["Dormant"], Duration::from_secs(45))?;
    ensure!(world.perennial.seqs("c")? == [1, 2], "{:?}", world.perennial.seqs("c")?);
    world.check_at_rest()?;
    Ok(())
}

#[test]
fn a_stray_in_the_containers_cgroup_is_killed() -> Result<()> {
    let (_scratch, world) = world()?;
    world.add_container("c", 3, 1)?;
    world.ok(&["start", "c", "--detach"])?;
    let mut child = stray(&world)?;
    let run = world.perennial.inspect("c")?.pointer("/run/id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut moved = 0;
    for hierarchy in
        std::fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()])
    {
        let list = hierarchy.join("perennial").join(&run).join("cgroup.procs");
        if list.exists() {
            perennial_testkit::host::run(std::process::Command::new("sh").arg("-c").arg(format!(
                "echo {} > {}",
                child.id(),
                list.display()
            )))?;
            moved += 1;
        }
    }
    ensure!(moved > 0, "no cgroup of run {run}");
    let said = world.perennial.run(&["stop", "c"])?;
    let ended = wait_within(&mut child, Duration::from_secs(5))?;
    child.kill().ok();
    child.wait()?;
    ensure!(said.code() == 0, "code {}: {}", said.code(), said.err());
    ensure!(ended.is_some(), "the stray lives on");
    world.check_at_rest()?;
    Ok(())
}
