//! Packing and thawing killed at their system calls: every generation shows afterwards what it showed before.

use crate::world::{IMAGE, World, small_rootfs};
use anyhow::{Result, ensure};
use perennial_testkit::kill::{self, Fault, Outcome, Points, Scenario, Victim};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

/// Every how many-th system call is hit unless the environment says otherwise.
const EVERY: usize = 12;
/// How many generations there are.
const GENERATIONS: u64 = 3;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// All of a container goes into packs.
    Pack,
    /// A packed generation is read.
    Thaw,
    /// Packs are written anew after a container has gone.
    Collect,
}

/// Where roots are made: not in memory, where the kernel does not mount metadata images from files.
struct Scratch {
    home: TempDir,
    next: AtomicU32,
}

impl Scratch {
    fn new() -> Result<Self> {
        Ok(Self { home: TempDir::with_prefix("perennial-crash-")?, next: AtomicU32::new(0) })
    }

    fn path(&self) -> PathBuf {
        self.home.path().join(format!("site{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

struct Killed {
    work: Work,
    scratch: Scratch,
    template: World,
    left: Vec<TreeListing>,
}

impl Killed {
    fn new(work: Work) -> Result<Self> {
        let (scratch, rootfs) = (Scratch::new()?, tempfile::tempdir()?);
        small_rootfs(rootfs.path())?;
        let template = World::with_image(&scratch.path())?;
        for name in ["c", "gone"] {
            template.ok(&["create", name, "--image", IMAGE, "--seal", "never", "--", "/bin/sh", "-c", "true"])?;
            for number in 1..=GENERATIONS {
                let script =
                    format!("seq {number} 2000 >/state; seq {number}000 {number}900 >/of-{name}; mkdir -p /d/{number}");
                template.ok(&["start", name, "--", "/bin/sh", "-c", &script])?;
            }
        }
        template.ok(&["gc"])?;
        template.ok(&["seal"])?;
        let mut killed = Self { work, scratch, template, left: Vec::new() };
        killed.left = killed.shown(&killed.template)?;
        match work {
            Work::Pack => {}
            Work::Thaw => template_ok(&killed, &[&["pack", "--hot", "0"]])?,
            Work::Collect => template_ok(&killed, &[&["pack", "--hot", "0"], &["rm", "gone"]])?,
        }
        Ok(killed)
    }

    fn target(&self) -> PathBuf {
        self.scratch.path()
    }

    /// What the generations show, read through the command.
    fn shown(&self, world: &World) -> Result<Vec<TreeListing>> {
        let mut shown = Vec::new();
        for seq in 1..=GENERATIONS {
            let target = self.target();
            let text = target.to_string_lossy();
            world.ok(&["cp", &format!("c@{seq}:/"), &text])?;
            shown.push(TreeListing::of(target.clone())?);
            fs::remove_dir_all(&target)?;
        }
        Ok(shown)
    }

    fn check_state(&self, site: &World, outcome: &Outcome) -> Result<()> {
        if outcome.hit.is_none() {
            ensure!(outcome.code == Some(0), "it failed: {}", outcome.stderr);
        }
        ensure!(site.perennial.run(&["verify", "--full"])?.code() == 0, "damage is found");
        let compare = || -> Result<()> {
            for (expected, found) in self.left.iter().zip(self.shown(site)?) {
                ensure_equal(expected, &found)?;
            }
            Ok(())
        };
        compare()?;
        // And it goes on from there.
        site.ok(&["gc"])?;
        let packed: Value = site.perennial.json(&["pack", "--hot", "0"])?;
        ensure!(packed.get("objects").and_then(Value::as_u64).is_some_and(|objects| objects > 0), "{packed}");
        compare()?;
        site.ok(&["doctor"])
    }
}

fn template_ok(killed: &Killed, commands: &[&[&str]]) -> Result<()> {
    commands.iter().try_for_each(|args| killed.template.ok(args))
}

impl Scenario for Killed {
    type Site = World;

    fn prepare(&self) -> Result<World> {
        self.template.copy(&self.scratch.path())
    }

    fn victim<'a>(&self, site: &'a World) -> Result<Victim<'a>> {
        let target = self.target().to_string_lossy().into_owned();
        Ok(Victim::Command(match self.work {
            Work::Pack => site.perennial.command(&["pack", "--hot", "0"]),
            Work::Thaw => site.perennial.command(&["cp", "c@1:/", &target]),
            Work::Collect => site.perennial.command(&["gc"]),
        }))
    }

    fn check(&self, site: World, outcome: &Outcome) -> Result<()> {
        let checked = self.check_state(&site, outcome);
        if checked.is_err() {
            site.perennial.clean_up()?;
        }
        fs::remove_dir_all(site.perennial.root()).ok();
        checked
    }
}

fn kill_everywhere(work: Work) -> Result<()> {
    let killed = Killed::new(work)?;
    let points = Points::from_env(EVERY)?;
    let report = kill::run(&killed, Fault::KillBeforeChanges, &points, 2)?;
    println!(
        "{work:?}: {} of {} kill points checked ({points:?}), {} missed, {:?} each",
        report.hits,
        report.recorded,
        report.missed.len(),
        report.per_point()
    );
    Ok(())
}

#[test]
fn pack() -> Result<()> {
    kill_everywhere(Work::Pack)
}

#[test]
fn thaw() -> Result<()> {
    kill_everywhere(Work::Thaw)
}

#[test]
fn collection_of_packs() -> Result<()> {
    kill_everywhere(Work::Collect)
}
