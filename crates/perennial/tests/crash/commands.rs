//! Every command that changes state, killed at its system calls (rows A5, A9, A12, A15 to A17, A27): afterwards there is
//! the old state or the new one, never neither, and nothing else is left.
//!
//! `PERENNIAL_KILL_EVERY=1` takes every system call; see `perennial_testkit::kill`.

use crate::world::{IMAGE, Scratch, WAIT, World, script, small_rootfs};
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::cli::Perennial;
use perennial_testkit::kill::{self, Fault, Outcome, Points, Scenario, Victim};
use serde_json::Value;
use std::path::Path;
use std::sync::Mutex;
use tempfile::TempDir;

/// Every how many-th system call is hit unless the environment says otherwise.
const EVERY: usize = 12;

/// What a command finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing, not even a root.
    Nothing,
    /// An image.
    Image,
    /// A container with three generations of at most three.
    Dormant,
    /// That container, rolled back to its second generation.
    RolledBack,
    /// That container, running.
    Running,
    /// A removed container, the space of which has not been freed.
    Garbage,
}

/// What else may be there afterwards besides the state before and the state after the command.
type Also = fn(&Value) -> bool;

struct Killed {
    args: Vec<String>,
    before: Before,
    also: Also,
    scratch: Scratch,
    _rootfs: TempDir,
    template: World,
    old: Value,
    new: Mutex<Option<Value>>,
}

impl Killed {
    fn new(before: Before, args: &[&str], also: Also) -> Result<Self> {
        let (scratch, rootfs) = (Scratch::new()?, tempfile::tempdir()?);
        small_rootfs(rootfs.path())?;
        let source = format!("rootfs:{}", rootfs.path().display());
        let args = args.iter().map(|arg| if *arg == "SOURCE" { source.clone() } else { (*arg).to_owned() }).collect();
        let path = scratch.path();
        let template = match before {
            Before::Nothing => World { perennial: Perennial::new(&path)? },
            Before::Image | Before::Dormant | Before::RolledBack | Before::Running | Before::Garbage => {
                World::with_image(&path)?
            }
        };
        match before {
            Before::Nothing | Before::Image => {}
            Before::Dormant | Before::RolledBack | Before::Running | Before::Garbage => {
                template.add_container("c", 3, 3)?;
            }
        }
        if before == Before::RolledBack {
            template.ok(&["rollback", "c", "--to", "2"])?;
        }
        if before == Before::Garbage {
            template.add_container("gone", 3, 2)?;
            template.ok(&["rm", "gone"])?;
            template.ok(&["image", "import", &source, "other"])?;
        }
        let args = with_exports(args, &template, rootfs.path())?;
        let old = if before == Before::Nothing { Value::Null } else { template.check_at_rest()? };
        Ok(Self { args, before, also, scratch, _rootfs: rootfs, template, old, new: Mutex::new(None) })
    }
}

/// Puts images of the second generation of `c` in the place of the words that stand for them.
fn with_exports(args: Vec<String>, template: &World, place: &Path) -> Result<Vec<String>> {
    let mut replaced = Vec::new();
    for arg in args {
        let options = match arg.as_str() {
            "LAYERED" => &[][..],
            "FLAT" => &["--flatten"],
            _ => {
                replaced.push(arg);
                continue;
            }
        };
        let destination = format!("oci-archive:{}", place.join(&arg).display());
        template.ok(&[&["export", "c@2", &destination], options].concat())?;
        replaced.push(destination);
    }
    Ok(replaced)
}

impl Scenario for Killed {
    type Site = World;

    fn prepare(&self) -> Result<World> {
        let path = self.scratch.path();
        if self.before == Before::Nothing {
            return Ok(World { perennial: Perennial::new(&path)? });
        }
        let world = self.template.copy(&path)?;
        if self.before == Before::Running {
            world.ok(&["start", "c", "--detach"])?;
        }
        Ok(world)
    }

    fn victim<'a>(&self, site: &'a World) -> Result<Victim<'a>> {
        Ok(Victim::Command(site.perennial.command(&self.args)))
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

impl Killed {
    fn check_state(&self, site: &World, outcome: &Outcome) -> Result<()> {
        if self.before == Before::Nothing {
            // What looks at a root makes none, so a command that does comes first, where the killed one came to nothing.
            site.perennial.run(&["create", "nobody", "--image", "nothing"])?.code_is(3)?;
        }
        let state = site.check_at_rest()?;
        if outcome.hit.is_none() {
            ensure!(outcome.code == Some(0), "it failed: {}", outcome.stderr);
            let mut new = self.new.lock().map_err(|_| anyhow::anyhow!("a check panicked"))?;
            let known = new.get_or_insert_with(|| state.clone());
            ensure!(*known == state, "not the same as the first time:\n{known:#}\n{state:#}");
            return Ok(());
        }
        let new = self.new.lock().map_err(|_| anyhow::anyhow!("a check panicked"))?.clone();
        let is_empty = self.old == Value::Null && state == serde_json::json!({"images": [], "containers": {}});
        ensure!(
            is_empty || state == self.old || Some(&state) == new.as_ref() || (self.also)(&state),
            "neither the old state nor the new one:\nold {:#}\nnew {new:#?}\nfound {state:#}",
            self.old
        );
        // And it goes on from there.
        if let Some(container) = state.pointer("/containers/c") {
            site.ok(&["start", "c", "--", "/bin/sh", "-c", "true"])?;
            let held = |value: &Value| value.pointer("/generations").and_then(Value::as_array).cloned();
            ensure!(held(container).is_some(), "no generations in {container}");
        }
        Ok(())
    }
}

fn kill_everywhere(before: Before, args: &[&str], also: Also) -> Result<()> {
    let killed = Killed::new(before, args, also).with_context(|| format!("preparing {args:?}"))?;
    let points = Points::from_env(EVERY)?;
    let report = kill::run(&killed, Fault::KillBeforeChanges, &points, 2).with_context(|| format!("{args:?}"))?;
    println!(
        "{args:?}: {} of {} kill points checked ({points:?}), {} missed, {:?} each",
        report.hits,
        report.recorded,
        report.missed.len(),
        report.per_point()
    );
    Ok(())
}

fn nothing_else(_: &Value) -> bool {
    false
}

/// The kinds of the generations of `c` after its first three.
fn later(state: &Value) -> Vec<(u64, String, String)> {
    let list = state.pointer("/containers/c/generations").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |item: &Value, path: &str| item.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    list.iter()
        .map(|item| {
            let seq = item.get("seq").and_then(Value::as_u64).unwrap_or_default();
            (seq, text(item, "/kind"), text(item, "/holds/~1state"))
        })
        .filter(|(seq, ..)| *seq > 3)
        .collect()
}

/// The run that the command started or stopped went on without it and was ended by the check: one more generation.
fn ran_to_its_end(state: &Value) -> bool {
    matches!(later(state).as_slice(), [(4, kind, holds)]
        if (kind == "exit" || kind == "salvage") && (holds == "waiting\n" || holds == "4\n" || holds == "3\n"))
}

#[test]
fn create() -> Result<()> {
    kill_everywhere(Before::Image, &["create", "c", "--image", IMAGE, "--", "/bin/sh", "-c", WAIT], nothing_else)
}

#[test]
fn image_import_into_a_new_root() -> Result<()> {
    kill_everywhere(Before::Nothing, &["image", "import", "SOURCE", IMAGE], nothing_else)
}

#[test]
fn image_import_of_another_name() -> Result<()> {
    kill_everywhere(Before::Image, &["image", "import", "SOURCE", "other"], nothing_else)
}

#[test]
fn image_rm() -> Result<()> {
    kill_everywhere(Before::Image, &["image", "rm", IMAGE], nothing_else)
}

#[test]
fn start_detached() -> Result<()> {
    kill_everywhere(Before::Dormant, &["start", "c", "--detach"], ran_to_its_end)
}

#[test]
fn start_in_the_foreground() -> Result<()> {
    let script = script(4);
    kill_everywhere(Before::Dormant, &["start", "c", "--", "/bin/sh", "-c", &script], ran_to_its_end)
}

#[test]
fn run_of_a_new_container() -> Result<()> {
    let script = script(1);
    let args = ["run", "c", "--image", IMAGE, "--", "/bin/sh", "-c", &script];
    kill_everywhere(Before::Image, &args, |state| {
        // Not started yet; or started without its command, and stopped by the check before it had done everything.
        state.pointer("/containers/c/generations").and_then(Value::as_array).is_some_and(|list| list.len() <= 1)
    })
}

#[test]
fn stop() -> Result<()> {
    kill_everywhere(Before::Running, &["stop", "c", "--time", "1"], ran_to_its_end)
}

#[test]
fn rollback() -> Result<()> {
    kill_everywhere(Before::Dormant, &["rollback", "c", "--to", "1"], nothing_else)
}

#[test]
fn rollback_of_a_running_container() -> Result<()> {
    kill_everywhere(Before::Running, &["rollback", "c", "--to", "2", "--no-start"], |state| {
        ran_to_its_end(state) || later(state).len() == 1
    })
}

#[test]
fn rollback_undo() -> Result<()> {
    kill_everywhere(Before::RolledBack, &["rollback", "c", "--undo"], nothing_else)
}

#[test]
fn pin() -> Result<()> {
    kill_everywhere(Before::Dormant, &["pin", "c@1"], nothing_else)
}

#[test]
fn mark() -> Result<()> {
    kill_everywhere(Before::Dormant, &["mark", "c@2", "good"], nothing_else)
}

#[test]
fn set() -> Result<()> {
    kill_everywhere(Before::Dormant, &["set", "c", "--keep", "7"], nothing_else)
}

#[test]
fn fork() -> Result<()> {
    kill_everywhere(Before::Dormant, &["fork", "c@2", "other"], nothing_else)
}

#[test]
fn import_of_layers() -> Result<()> {
    kill_everywhere(Before::Dormant, &["import", "c", "LAYERED"], nothing_else)
}

#[test]
fn import_of_one_layer_into_a_new_container() -> Result<()> {
    kill_everywhere(Before::Dormant, &["import", "other", "FLAT"], nothing_else)
}

#[test]
fn rm() -> Result<()> {
    kill_everywhere(Before::Dormant, &["rm", "c"], nothing_else)
}

#[test]
fn rm_of_a_running_container() -> Result<()> {
    kill_everywhere(Before::Running, &["rm", "--force", "c"], ran_to_its_end)
}

#[test]
fn gc() -> Result<()> {
    kill_everywhere(Before::Garbage, &["gc"], nothing_else)
}
