//! Sending and fetching killed at their system calls: the next try completes, and everything is what it was.

use crate::registry::Registry;
use crate::world::{IMAGE, World, small_rootfs};
use anyhow::{Result, ensure};
use perennial_testkit::cli::Perennial;
use perennial_testkit::kill::{self, Fault, Outcome, Points, Scenario, Victim};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// Every how many-th system call is hit unless the environment says otherwise.
const EVERY: usize = 25;
/// How many generations there are.
const GENERATIONS: u64 = 2;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Push,
    Pull,
}

/// What the remote is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remote {
    Plain,
    Encrypted,
}

struct Killed {
    work: Work,
    remote: Remote,
    // Not in memory, where the kernel does not mount metadata images from files.
    home: TempDir,
    next: AtomicU32,
    registry: Registry,
    template: World,
    left: Vec<TreeListing>,
}

/// A root, and where it sends to.
struct Site {
    world: World,
    prefix: String,
}

impl Killed {
    fn new(work: Work, remote: Remote) -> Result<Self> {
        let (home, rootfs) = (TempDir::with_prefix("perennial-crash-")?, tempfile::tempdir()?);
        small_rootfs(rootfs.path())?;
        let template = World::with_image(&home.path().join("template"))?;
        template.ok(&["create", "c", "--image", IMAGE, "--seal", "never", "--", "/bin/sh", "-c", "true"])?;
        for number in 1..=GENERATIONS {
            let script =
                format!("seq {number} 20000 >/state; seq {number}000 {number}900 >/more; mkdir -p /d/{number}");
            template.ok(&["start", "c", "--", "/bin/sh", "-c", &script])?;
        }
        template.ok(&["gc"])?;
        template.ok(&["seal"])?;
        let registry = Registry::start()?;
        let mut killed = Self { work, remote, home, next: AtomicU32::new(0), registry, template, left: Vec::new() };
        // It makes the key that all others use.
        let encrypt: &[&str] = if remote == Remote::Encrypted { &["--encrypt"] } else { &[] };
        let address = format!("{}/source", killed.registry.address());
        killed.template.ok(&[&["remote", "add", "source", &address], encrypt].concat())?;
        killed.template.ok(&["push", "c", "source"])?;
        killed.left = killed.shown(&killed.template.perennial)?;
        Ok(killed)
    }

    fn path(&self) -> (u32, PathBuf) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number, self.home.path().join(format!("site{number}")))
    }

    /// What the generations show, read through the command.
    fn shown(&self, perennial: &Perennial) -> Result<Vec<TreeListing>> {
        let mut shown = Vec::new();
        for seq in 1..=GENERATIONS {
            let (_, target) = self.path();
            perennial.ok(&["cp", &format!("c@{seq}:/"), &target.to_string_lossy()])?;
            shown.push(TreeListing::of(&target)?);
            fs::remove_dir_all(&target)?;
        }
        Ok(shown)
    }

    fn link(&self, perennial: &Perennial, prefix: &str) -> Result<()> {
        let address = format!("{}/{prefix}", self.registry.address());
        let key = self.template.perennial.root().join("keys/source.txt").display().to_string();
        let encrypt: &[&str] = if self.remote == Remote::Encrypted { &["--encrypt", "--identity", &key] } else { &[] };
        perennial.ok(&[&["remote", "add", "hub", &address], encrypt].concat()).map(drop)
    }

    fn empty(&self, path: &Path, prefix: &str) -> Result<Perennial> {
        let perennial = Perennial::new(path)?;
        self.link(&perennial, prefix)?;
        Ok(perennial)
    }

    fn compare(&self, perennial: &Perennial) -> Result<()> {
        for (expected, found) in self.left.iter().zip(self.shown(perennial)?) {
            ensure_equal(expected, &found)?;
        }
        perennial.ok(&["verify", "--full"]).map(drop)
    }

    fn check_site(&self, site: &Site, outcome: &Outcome) -> Result<()> {
        if outcome.hit.is_none() {
            ensure!(outcome.code == Some(0), "it failed: {}", outcome.stderr);
        }
        let here = &site.world.perennial;
        here.ok(&["doctor"])?;
        match self.work {
            Work::Push => {
                self.compare(here)?;
                here.ok(&["push", "c", "hub"])?;
                let again: Value = here.json(&["push", "c", "hub"])?;
                ensure!(again.get("nothing_to_send") == Some(&Value::Bool(true)), "{again}");
                let (_, path) = self.path();
                let there = self.empty(&path, &site.prefix)?;
                there.ok(&["pull", "c"])?;
                self.compare(&there)?;
                fs::remove_dir_all(path)?;
            }
            Work::Pull => {
                here.ok(&["pull", "c"])?;
                self.compare(here)?;
            }
        }
        here.ok(&["gc"])?;
        self.compare(here)?;
        here.ok(&["doctor"]).map(drop)
    }
}

impl Scenario for Killed {
    type Site = Site;

    fn prepare(&self) -> Result<Site> {
        let (number, path) = self.path();
        match self.work {
            Work::Push => {
                let (world, prefix) = (self.template.copy(&path)?, format!("team{number}"));
                self.link(&world.perennial, &prefix)?;
                Ok(Site { world, prefix })
            }
            Work::Pull => {
                let perennial = self.empty(&path, "source")?;
                Ok(Site { world: World { perennial }, prefix: "source".to_owned() })
            }
        }
    }

    fn victim<'a>(&self, site: &'a Site) -> Result<Victim<'a>> {
        Ok(Victim::Command(match self.work {
            Work::Push => site.world.perennial.command(&["push", "c", "hub"]),
            Work::Pull => site.world.perennial.command(&["pull", "c"]),
        }))
    }

    fn check(&self, site: Site, outcome: &Outcome) -> Result<()> {
        let checked = self.check_site(&site, outcome);
        if checked.is_err() {
            site.world.perennial.clean_up()?;
        }
        fs::remove_dir_all(site.world.perennial.root()).ok();
        checked
    }
}

fn kill_everywhere(work: Work, remote: Remote) -> Result<()> {
    let killed = Killed::new(work, remote)?;
    let points = Points::from_env(EVERY)?;
    let report = kill::run(&killed, Fault::KillBeforeChanges, &points, 2)?;
    println!(
        "{work:?} {remote:?}: {} of {} kill points checked ({points:?}), {} missed, {:?} each",
        report.hits,
        report.recorded,
        report.missed.len(),
        report.per_point()
    );
    Ok(())
}

#[test]
fn push() -> Result<()> {
    kill_everywhere(Work::Push, Remote::Plain)
}

#[test]
fn push_encrypted() -> Result<()> {
    kill_everywhere(Work::Push, Remote::Encrypted)
}

#[test]
fn pull() -> Result<()> {
    kill_everywhere(Work::Pull, Remote::Plain)
}

#[test]
fn pull_encrypted() -> Result<()> {
    kill_everywhere(Work::Pull, Remote::Encrypted)
}
