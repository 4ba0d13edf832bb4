//! The harness kills, at every system call, and only the command itself.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use anyhow::{Result, ensure};
use perennial_testkit::host::{now, wait_until};
use perennial_testkit::kill::{self, Fault, Outcome, Point, Points, Scenario, Victim};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

/// A save that is not safe: it removes the old file before it renames the new one.
#[derive(Default)]
struct UnsafeSave {
    seen: Mutex<BTreeSet<(bool, bool)>>,
    strict: bool,
}

impl Scenario for UnsafeSave {
    type Site = TempDir;

    fn prepare(&self) -> Result<TempDir> {
        let dir = tempfile::tempdir()?;
        fs::File::create(dir.path().join("state"))?;
        Ok(dir)
    }

    fn victim<'a>(&self, site: &'a TempDir) -> Result<Victim<'a>> {
        // One process: a shell killed while it waits for a child leaves what the child then makes of it.
        let mut command = Command::new("/usr/bin/perl");
        command.args(["-e", "open F, '>new'; close F; unlink 'state'; rename 'new', 'state'"]).current_dir(site.path());
        command.env("PERL_HASH_SEED", "0");
        Ok(Victim::Command(command))
    }

    fn check(&self, site: TempDir, outcome: &Outcome) -> Result<()> {
        let state = (site.path().join("state").exists(), site.path().join("new").exists());
        self.seen.lock().unwrap().insert(state);
        let unharmed = outcome.hit.is_none() && outcome.code == Some(0) && state == (true, false);
        ensure!(unharmed || outcome.code == Some(137), "code {:?}: {}", outcome.code, outcome.stderr);
        ensure!(!self.strict || state.0, "the state is gone");
        Ok(())
    }
}

const ON_THE_WAY: [(bool, bool); 3] = [(false, true), (true, false), (true, true)];

#[test]
fn every_call_is_hit_and_every_state_on_the_way_is_seen() {
    let save = UnsafeSave::default();
    let started = now();
    let report = kill::run(&save, Fault::Kill, &Points::ALL, 2).unwrap();
    println!("{} points in {:?}, {:?} each", report.hits, now() - started, report.per_point());
    assert_eq!((report.hits as usize, report.missed.as_slice()), (report.recorded, [].as_slice()));
    assert_eq!(save.seen.into_inner().unwrap(), BTreeSet::from(ON_THE_WAY));
}

#[test]
fn kills_before_changes_see_every_state_in_fewer_runs() {
    let save = UnsafeSave::default();
    let report = kill::run(&save, Fault::KillBeforeChanges, &Points::ALL, 2).unwrap();
    println!("{} points", report.hits);
    assert!(report.hits < 12, "{report:?}");
    assert_eq!(save.seen.into_inner().unwrap(), BTreeSet::from(ON_THE_WAY));
}

#[test]
fn strides_from_every_offset_cover_all_points() {
    let hits = |points: Points| kill::run(&UnsafeSave::default(), Fault::KillBeforeChanges, &points, 1).unwrap().hits;
    let parts: u32 = (0..3).map(|offset| hits(Points::Stride { every: 3, offset })).sum();
    assert_eq!(parts, hits(Points::ALL));
}

#[test]
fn harness_finds_the_unsafe_moment_and_says_how_to_repeat_it() {
    let save = UnsafeSave { strict: true, ..UnsafeSave::default() };
    let error = format!("{:#}", kill::run(&save, Fault::KillBeforeChanges, &Points::ALL, 2).unwrap_err());
    assert!(error.contains("the state is gone"), "{error}");
    let repeat = error.split("PERENNIAL_KILL_ONLY=").nth(1).and_then(|rest| rest.split(": ").next()).unwrap();
    let again = kill::run(&save, Fault::KillBeforeChanges, &Points::Only(Point::parse(repeat).unwrap()), 1);
    assert!(format!("{:#}", again.unwrap_err()).contains("the state is gone"));
}

#[test]
fn failing_calls_are_told_from_unharmed_ends() {
    let dir = tempfile::tempdir().unwrap();
    let victim = || {
        let mut command = Command::new("/bin/busybox");
        command.args(["mv", "a", "b"]).current_dir(dir.path());
        Victim::Command(command)
    };
    let fault = Fault::Fail { errno: "EIO", calls: "rename,renameat,renameat2" };
    fs::File::create(dir.path().join("a")).unwrap();
    let first = kill::disturb(victim(), fault, &Point::parse("rename:1").unwrap()).unwrap();
    assert!(first.hit.unwrap().contains("EIO") && first.code == Some(1) && !first.stderr.is_empty());
    let second = kill::disturb(victim(), fault, &Point::parse("rename:2").unwrap()).unwrap();
    assert_eq!((second.hit, second.code), (None, Some(0)));
    assert!(dir.path().join("b").exists());
}

#[test]
fn children_of_the_killed_command_live_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", "(sleep 0.3; : > child) & wait; : > parent"]).current_dir(dir.path());
    let outcome = kill::disturb(Victim::Command(command), Fault::Kill, &Point::parse("wait4:1").unwrap()).unwrap();
    assert_eq!(outcome.code, Some(137), "{outcome:?}");
    wait_until("the child", Duration::from_secs(5), || Ok(dir.path().join("child").exists())).unwrap();
    assert!(!dir.path().join("parent").exists());
}

#[test]
fn running_process_is_killed_in_what_it_is_asked_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap ': > asked; : > done; exit' TERM; : > ready; while :; do sleep 0.01; done";
    let mut child = Command::new("/bin/busybox").args(["sh", "-c", script]).current_dir(dir.path()).spawn().unwrap();
    wait_until("the trap", Duration::from_secs(5), || Ok(dir.path().join("ready").exists())).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let then = || Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?);
    let victim = Victim::Running { pid: child.id(), then: Box::new(then) };
    let outcome = kill::disturb(victim, Fault::Kill, &Point::parse("openat:2").unwrap()).unwrap();
    assert!(outcome.hit.unwrap().contains("done"));
    child.wait().unwrap();
    assert!(dir.path().join("asked").exists() && !dir.path().join("done").exists());
}
