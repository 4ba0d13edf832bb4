//! Rows A2, A9, A11, A19 to A21: every known trap, made by real processes inside real containers in three runs, is
//! there again after each way back, without one difference: whether the layers are directories, sealed, or some of each.
//!
//! The tree of a running container is listed just before its exit and compared with the tree of a run that starts from
//! the generation which that exit made. Both are listed through the mounted union, so what is deleted must be absent.
//! What the file system at hand cannot make is printed and must be exactly what is expected of it.

#![expect(clippy::print_stdout, clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

#[allow(dead_code, clippy::allow_attributes, reason = "the tests of travelling use more of it")]
#[path = "travel/registry.rs"]
mod registry;
mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::actor::{self, ACTOR};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::traps::{self, CASES, Outcome, Performed, STAGES};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use stage::{MODES, Stage, texts};
use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;

/// Bytes of the file systems that the tests run on; the files are sparse.
const DISK_BYTES: u64 = 1 << 30;

/// Deepest stack that is left as it is; see `perennial_core::layers`.
const DEPTH_MAX: usize = perennial_core::layers::DEPTH_MAX;

/// Containers with this in their name do not set inode flags, so that all their layers can be sealed.
fn may_flag(name: &str) -> bool {
    !name.contains("plain")
}

/// A stage on a file system of its own, with an image of the traps as they are before any run.
struct Traps {
    stage: Stage,
    /// The image's tree as it was imported.
    source: TreeListing,
    actor: String,
    kind: FsKind,
    // Unmounted when the stage is gone.
    _disk: LoopFs,
}

impl Deref for Traps {
    type Target = Stage;
    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl Traps {
    fn on(kind: FsKind) -> Result<Self> {
        let disk = LoopFs::new(kind, DISK_BYTES)?;
        let stage = Stage::empty_in(&disk.path())?;
        let rootfs = stage.rootfs("rootfs")?;
        let actor = actor::fill_trapped_rootfs(&rootfs, ACTOR)?;
        stage.import(&rootfs, "box")?;
        let source = TreeListing::of(&rootfs)?;
        fs::remove_dir_all(&rootfs)?;
        Ok(Self { stage, source, actor: actor.display().to_string(), kind, _disk: disk })
    }

    /// What cannot be made: ext4 and btrfs keep the xattrs of an inode in one block, and XFS takes symlinks of at most
    /// 1,024 bytes.
    fn cannot_make(&self, name: &str) -> Result<BTreeSet<&str>> {
        let mut cannot = BTreeSet::from([match self.kind {
            FsKind::Ext4 | FsKind::Btrfs => "xattr-large",
            FsKind::Xfs => "symlinks",
        }]);
        // Overlayfs asks the file it would copy up, and no file of an EROFS takes an access list or has inode flags
        // (Linux 6.18, `ovl_set_acl`, `ovl_fileattr_get`); one that is in the upper already does.
        if texts(&self.inspect(name)?, "/run/mount_options")?.iter().any(|option| option == "metacopy=on") {
            cannot.insert("acl");
            cannot.extend(traps::FLAGGED);
        }
        Ok(cannot)
    }

    /// Makes a container that keeps so many generations and may do what the cases need.
    fn create(&self, name: &str, keep: usize) -> Result<()> {
        self.create_sealing(name, keep, "auto")
    }

    /// Makes such a container whose layers are sealed, or stay directories.
    fn create_sealing(&self, name: &str, keep: usize, seal: &str) -> Result<()> {
        self.create_with(name, &["--keep", &keep.to_string(), "--seal", seal])
    }

    fn create_with(&self, name: &str, options: &[&str]) -> Result<()> {
        let volume = format!("{}:{ACTOR}:ro", self.actor);
        let mut options = [&["--volume", volume.as_str()], options].concat();
        for capability in traps::capabilities() {
            options.extend(["--cap-add", capability]);
        }
        self.create_idle(name, &options)
    }

    /// Seals a container's layers; returns how many stay directories, and checks that this is for the only reason there
    /// is: inode flags.
    fn seal(&self, name: &str) -> Result<usize> {
        let report: Value = self.json(&["seal", name])?;
        let kept = report["kept"].as_array().cloned().unwrap_or_default();
        for one in &kept {
            let why = one["reason"].as_str().unwrap_or_default();
            let is_flag = ["immutable or append-only", "inode flags"].iter().any(|words| why.contains(words));
            ensure!(is_flag, "{:?}: {name}: {why}", self.kind);
        }
        ensure!(report["busy"].as_array().is_some_and(Vec::is_empty), "{report}");
        Ok(kept.len())
    }

    /// Whether each own layer of the current generation is sealed, newest first.
    fn forms(&self, name: &str) -> Result<Vec<bool>> {
        let current = self.current(name)?.unwrap_or_default();
        let generation = self.generation(name, current)?;
        let list = generation["sealed_layers"].as_array().cloned().unwrap_or_default();
        Ok(list.iter().filter_map(Value::as_bool).collect())
    }

    /// Starts a container and returns the tree it finds.
    fn start(&self, name: &str, mode: &str) -> Result<TreeListing> {
        self.ok(&["start", name, "--detach", "--mode", mode])?;
        self.seen_in(name)
    }

    /// Ends a run and waits until the work after its exit is done.
    fn stop(&self, name: &str) -> Result<()> {
        self.ok(&["stop", name])?;
        self.quiet()
    }

    /// Performs a stage of all cases inside a running container, and returns the tree that is left.
    fn perform(&self, name: &str, number: u32) -> Result<TreeListing> {
        let flagged = may_flag(name);
        let stage = if flagged { "stage" } else { "stage-of-plain" };
        let said = self.ok(&["exec", name, ACTOR, stage, &number.to_string()])?.out();
        let performed: Vec<Performed> =
            said.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>().context("report")?;
        let expected = CASES.len() - if flagged { 0 } else { traps::FLAGGED.len() };
        ensure!(performed.len() == expected, "only {} cases reported", performed.len());
        let refused: Vec<&Performed> = performed.iter().filter(|one| one.outcome != Outcome::Done).collect();
        let cannot = self.cannot_make(name)?;
        for one in &refused {
            println!("{:?}: not made: {one:?}", self.kind);
            ensure!(cannot.contains(one.case.as_str()), "{one:?} should have been possible");
        }
        let left = self.seen_in(name)?;
        ensure!(traps::stage_done(&self.merged(name)?) == Some(number), "stage {number} is not done");
        Ok(left)
    }

    /// Starts a container in a mode, compares, and ends the run.
    fn returns(&self, name: &str, mode: &str, left: &TreeListing) -> Result<()> {
        let found = self.start(name, mode)?;
        ensure_equal(left, &found).with_context(|| format!("{:?}: {name} in mode {mode}", self.kind))?;
        self.stop(name)
    }

    /// Performs all stages in consecutive runs of a mode, comparing after every exit; returns the tree of each exit.
    fn live(&self, name: &str, mode: &str) -> Result<Vec<TreeListing>> {
        let mut left: Vec<TreeListing> = Vec::new();
        for number in 1..=STAGES {
            let found = self.start(name, mode)?;
            let before = left.last().unwrap_or(&self.source);
            ensure_equal(before, &found).with_context(|| format!("{:?}: {name} before stage {number}", self.kind))?;
            left.push(self.perform(name, number)?);
            self.stop(name)?;
        }
        Ok(left)
    }

    /// Returns how many layers the current generation is made of.
    fn depth(&self, name: &str) -> Result<usize> {
        let current = self.current(name)?.unwrap_or_default();
        Ok(texts(&self.generation(name, current)?, "/layers")?.len())
    }
}

/// Exit, both ways to start, forks of every generation and rollbacks to every generation.
fn every_way_back(kind: FsKind) -> Result<()> {
    let traps = Traps::on(kind)?;
    traps.create("web", 100)?;
    let left = traps.live("web", "mount")?;
    let last = left.last().context("no stages")?;
    for mode in MODES {
        traps.returns("web", mode, last)?;
    }
    for (seq, left) in (1..).zip(&left) {
        let twin = format!("twin-{seq}");
        traps.ok(&["fork", &format!("web@{seq}"), &twin])?;
        traps.returns(&twin, MODES[seq % MODES.len()], left)?;
        traps.ok(&["rollback", "web", "--to", &seq.to_string()])?;
        for mode in MODES {
            traps.returns("web", mode, left)?;
        }
    }
    // None of these runs changed anything, so none of them, unpacked or not, has added a layer.
    ensure!(traps.depth("web")? == left.len(), "there are {} layers", traps.depth("web")?);
    Ok(())
}

#[test]
fn nothing_differs_after_start_unpack_fork_and_rollback_on_ext4() -> Result<()> {
    every_way_back(FsKind::Ext4)
}

#[test]
fn nothing_differs_after_start_unpack_fork_and_rollback_on_xfs() -> Result<()> {
    every_way_back(FsKind::Xfs)
}

#[test]
fn nothing_differs_after_start_unpack_fork_and_rollback_on_btrfs() -> Result<()> {
    every_way_back(FsKind::Btrfs)
}

/// Eviction folds layers: two at each exit, and all of them at once.
#[test]
fn nothing_differs_after_eviction_has_folded_layers() -> Result<()> {
    let traps = Traps::on(FsKind::Ext4)?;
    for (name, keep) in [("one", 1), ("two", 2), ("all", 100)] {
        // Directories are folded; what is protected keeps a layer one, so not all of these could be sealed.
        traps.create_sealing(name, keep, "never")?;
        let left = traps.live(name, "mount")?;
        let last = left.last().context("no stages")?;
        ensure!(traps.depth(name)? == keep.min(left.len()), "{name} has not been folded as far as expected");
        // An unchanged run evicts one more generation, and with it the next layer.
        traps.ok(&["set", name, "--keep", "1"])?;
        traps.returns(name, "unpack", last)?;
        ensure!(traps.depth(name)? == 1, "{name} still has {} layers", traps.depth(name)?);
        for mode in MODES {
            traps.returns(name, mode, last)?;
        }
    }
    Ok(())
}

/// Runs of the container whose stack gets so deep that its layers are merged.
const RUNS: u32 = 18;

/// Layers that generations still need one by one are merged by links when there are too many of them.
#[test]
fn nothing_differs_after_a_deep_stack_has_been_merged() -> Result<()> {
    let traps = Traps::on(FsKind::Ext4)?;
    traps.create_sealing("web", 100, "never")?;
    let mut left = vec![traps.source.clone()];
    for run in 1..=RUNS {
        let found = traps.start("web", "mount")?;
        ensure_equal(left.last().context("no tree")?, &found).with_context(|| format!("before run {run}"))?;
        left.push(match run {
            1 | 7 | 13 => traps.perform("web", run / 6 + 1)?,
            _ => {
                traps.inside("web", &format!("echo {run} >>/root/log; rm -f /root/{}; echo >/root/{run}", run - 1))?;
                traps.seen_in("web")?
            }
        });
        traps.stop("web")?;
        ensure!(traps.depth("web")? <= DEPTH_MAX, "the stack has {} layers", traps.depth("web")?);
    }
    let current = RUNS as usize;
    ensure!(traps.depth("web")? < current, "nothing has been merged");
    for mode in MODES {
        traps.returns("web", mode, &left[current])?;
    }
    for seq in [1, 8, 13, 16, 17] {
        traps.ok(&["rollback", "web", "--to", &seq.to_string()])?;
        traps.returns("web", MODES[seq % MODES.len()], &left[seq])?;
    }
    // Evicting all but one folds into the merged layer.
    traps.ok(&["rollback", "web", "--to", &RUNS.to_string()])?;
    traps.ok(&["set", "web", "--keep", "1"])?;
    for mode in MODES {
        traps.returns("web", mode, &left[current])?;
    }
    Ok(())
}

/// Runs that start by copying leave a generation that is as good as any.
#[test]
fn nothing_differs_where_every_run_is_unpacked() -> Result<()> {
    let traps = Traps::on(FsKind::Ext4)?;
    traps.create("web", 100)?;
    let left = traps.live("web", "unpack")?;
    for mode in MODES {
        traps.returns("web", mode, left.last().context("no stages")?)?;
    }
    Ok(())
}

/// Sealed by hand after each exit, after none, and after all; every generation in both modes and as a fork.
fn every_way_back_sealed(kind: FsKind) -> Result<()> {
    let traps = Traps::on(kind)?;
    for name in ["plain", "plain-mixed", "plain-late"] {
        traps.create_with(name, &["--keep", "100", "--seal", "never"])?;
        let mut left: Vec<TreeListing> = Vec::new();
        for number in 1..=STAGES {
            let found = traps.start(name, "mount")?;
            let before = left.last().unwrap_or(&traps.source);
            ensure_equal(before, &found).with_context(|| format!("{kind:?}: {name} before stage {number}"))?;
            left.push(traps.perform(name, number)?);
            traps.stop(name)?;
            if name == "plain" || (name == "plain-mixed" && number == 1) {
                ensure!(traps.seal(name)? == 0, "{name}: a layer stays a directory");
            }
        }
        let expected: &[bool] = match name {
            "plain" => &[true; 3],
            "plain-mixed" => &[false, false, true],
            _ => &[false; 3],
        };
        ensure!(traps.forms(name)? == expected, "{kind:?}: {name}: {:?}", traps.forms(name)?);
        let last = left.last().context("no stages")?;
        for mode in MODES {
            traps.returns(name, mode, last)?;
        }
        sealed_ways_back(&traps, name, &left)?;
    }
    traps.ok(&["gc"])?;
    traps.ok(&["verify", "--full"])?;
    traps.ok(&["doctor"])?;
    Ok(())
}

/// Seals whatever is left, and takes every way back.
fn sealed_ways_back(traps: &Traps, name: &str, left: &[TreeListing]) -> Result<()> {
    ensure!(traps.seal(name)? == 0, "{name}: a layer stays a directory");
    ensure!(traps.forms(name)? == [true; 3], "{name}: {:?}", traps.forms(name)?);
    for (seq, left) in (1..).zip(left) {
        let twin = format!("{name}-twin-{seq}");
        traps.ok(&["fork", &format!("{name}@{seq}"), &twin])?;
        traps.ok(&["rollback", name, "--to", &seq.to_string()])?;
        for mode in MODES {
            traps.returns(&twin, mode, left)?;
            traps.returns(name, mode, left)?;
        }
    }
    ensure!(traps.depth(name)? == left.len(), "there are {} layers", traps.depth(name)?);
    Ok(())
}

#[test]
fn nothing_differs_in_sealed_and_mixed_stacks_on_ext4() -> Result<()> {
    every_way_back_sealed(FsKind::Ext4)
}

#[test]
fn nothing_differs_in_sealed_and_mixed_stacks_on_xfs() -> Result<()> {
    every_way_back_sealed(FsKind::Xfs)
}

#[test]
fn nothing_differs_in_sealed_and_mixed_stacks_on_btrfs() -> Result<()> {
    every_way_back_sealed(FsKind::Btrfs)
}

/// Layers with inode flags stay directories, those below and above them need not, and nothing is lost.
#[test]
fn layers_with_inode_flags_stay_directories_and_lose_nothing() -> Result<()> {
    let traps = Traps::on(FsKind::Ext4)?;
    traps.create("web", 100)?;
    let left = traps.live("web", "mount")?;
    let kept = traps.seal("web")?;
    let forms = traps.forms("web")?;
    ensure!(kept == forms.iter().filter(|sealed| !**sealed).count(), "{kept} are kept of {forms:?}");
    // The last stage clears every flag, but for what it has not touched.
    ensure!(forms.get(1..) == Some(&[false, false]), "{forms:?}");
    for (seq, left) in (1..).zip(&left) {
        traps.ok(&["rollback", "web", "--to", &seq.to_string()])?;
        for mode in MODES {
            traps.returns("web", mode, left)?;
        }
    }
    Ok(())
}

/// All generations go to a registry and grow again on another root of another machine's making.
fn every_way_back_after_travelling(kind: FsKind) -> Result<()> {
    let (here, registry) = (Traps::on(kind)?, registry::Registry::start()?);
    here.create("plain", 100)?;
    let left = here.live("plain", "mount")?;
    let address = registry.address();
    here.ok(&["remote", "add", "hub", &address])?;
    here.ok(&["push", "plain"])?;
    let disk = LoopFs::new(kind, DISK_BYTES)?;
    let stage = Stage::empty_in(&disk.path())?;
    let (source, actor) = (here.source.clone(), here.actor.clone());
    let there = Traps { stage, source, actor, kind, _disk: disk };
    there.ok(&["remote", "add", "hub", &address])?;
    there.ok(&["pull", "plain", "--trust-settings"])?;
    for (seq, left) in (1..).zip(&left) {
        there.ok(&["rollback", "plain", "--to", &seq.to_string()])?;
        for mode in MODES {
            there.returns("plain", mode, left)?;
        }
    }
    there.ok(&["gc"])?;
    there.ok(&["verify", "--full"])?;
    there.ok(&["doctor"])?;
    Ok(())
}

#[test]
fn nothing_differs_on_another_root_after_a_registry_on_ext4() -> Result<()> {
    every_way_back_after_travelling(FsKind::Ext4)
}

#[test]
fn nothing_differs_on_another_root_after_a_registry_on_xfs() -> Result<()> {
    every_way_back_after_travelling(FsKind::Xfs)
}

#[test]
fn nothing_differs_on_another_root_after_a_registry_on_btrfs() -> Result<()> {
    every_way_back_after_travelling(FsKind::Btrfs)
}
