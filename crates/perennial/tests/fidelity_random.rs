//! Rows A2, A3, A11: random file system operations inside a container lead to the same tree as on a plain directory,
//! after every exit, in both modes, with some of the layers sealed between runs.
//!
//! `PERENNIAL_FIDELITY_CASES` changes how many scripts are tried.

#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::actor::{self, ACTOR};
use perennial_testkit::copy;
use perennial_testkit::image;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::model::{self, Applied};
use perennial_testkit::tree::{Difference, Field, TreeListing, ensure_equal_but};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use stage::{MODES, Stage, write};
use std::cell::Cell;
use std::fs;
use std::path::Path;

/// Scripts tried where nothing else is asked for.
const CASES: u32 = 20;

/// Runs of each script, and random operations of each run.
const RUNS: usize = 3;
const OPS_MAX: usize = 40;
/// After which exits layers are sealed: some scripts after every one, some after none, some after the first or second.
const PATTERN: usize = 4;
const SEALED: [usize; 2] = [1, 2];

/// The directory that scripts act in, as `trap-actor` has it.
const MODEL: &str = "model";

struct Theatre {
    stage: Stage,
    actor: String,
    // Unmounted when the stage is gone.
    disk: LoopFs,
}

impl Theatre {
    fn new() -> Result<Self> {
        let disk = LoopFs::new(FsKind::Ext4, 1 << 30)?;
        let stage = Stage::empty_in(&disk.path())?;
        let rootfs = stage.rootfs("rootfs")?;
        let actor = actor::trap_actor()?;
        image::add_program(&rootfs, &actor, ACTOR)?;
        write(rootfs.join(ACTOR.trim_start_matches('/')), "")?;
        fs::create_dir(rootfs.join(MODEL))?;
        stage.import(&rootfs, "box")?;
        Ok(Self { stage, actor: actor.display().to_string(), disk })
    }

    /// Starts a container and compares the directory of the script with the plain one.
    fn start_and_compare(&self, name: &str, mode: &str, plain: &Path) -> Result<()> {
        self.stage.ok(&["start", name, "--detach", "--mode", mode])?;
        let found = TreeListing::of(self.stage.merged(name)?.join(MODEL))?;
        // When overlayfs copies a file up, it fills the smaller holes.
        let filled = |difference: &Difference| difference.field == Field::Holes;
        ensure_equal_but(&TreeListing::of(plain)?, &found, &filled).with_context(|| format!("mode {mode}"))
    }

    /// Plays a script on both sides, and compares after every exit; returns how many operations were done, and how many
    /// refused.
    fn play(&self, number: usize, script: &[model::Stage]) -> Result<(usize, usize)> {
        let (name, plain) = (format!("case-{number}"), self.disk.path().join(format!("plain-{number}")));
        let volume = format!("{}:{ACTOR}:ro", self.actor);
        let keep = (1 + number % 3).to_string();
        // One script in four with work in the background, as by default.
        let seal = if number.is_multiple_of(4) { "auto" } else { "never" };
        self.stage.create_idle(&name, &["--volume", &volume, "--keep", &keep, "--seal", seal])?;
        fs::create_dir(&plain)?;
        let mut counts = (0, 0);
        for (run, stage) in script.iter().enumerate() {
            if run == 0 {
                self.stage.ok(&["start", &name, "--detach"])?;
                copy::attributes(&self.stage.merged(&name)?.join(MODEL), &plain)?;
            } else {
                let mode = MODES[(run + number) % MODES.len()];
                self.start_and_compare(&name, mode, &plain).with_context(|| format!("after run {run}"))?;
            }
            let there = self.stage.ok(&["exec", &name, ACTOR, "script", &serde_json::to_string(stage)?])?.out();
            let there: Vec<Applied> = serde_json::from_str(&there).context("report")?;
            let here = model::apply(&plain, stage)?;
            let done = |applied: &[Applied]| applied.iter().map(|one| one.done()).collect::<Vec<_>>();
            ensure!(done(&here) == done(&there), "results differ: {here:?} {there:?}");
            counts.0 += here.iter().filter(|one| one.done()).count();
            counts.1 += here.iter().filter(|one| !one.done()).count();
            self.stage.ok(&["stop", &name])?;
            if SEALED.contains(&((number + run) % PATTERN)) {
                // Of the older layers some stay directories, since nothing seals them but this.
                self.stage.quiet()?;
                self.stage.ok(&["seal", &name])?;
            }
        }
        let mode = MODES[(script.len() + number) % MODES.len()];
        self.start_and_compare(&name, mode, &plain).context("after the last run")?;
        self.stage.ok(&["rm", "--force", &name])?;
        fs::remove_dir_all(&plain)?;
        Ok(counts)
    }
}

#[test]
fn random_operations_in_a_container_are_those_on_a_plain_directory() -> Result<()> {
    let theatre = Theatre::new()?;
    let cases = std::env::var("PERENNIAL_FIDELITY_CASES").map_or(Ok(CASES), |cases| cases.parse())?;
    let (number, counts) = (Cell::new(0), Cell::new((0, 0)));
    // A case that fails is made smaller a few times only, since each try starts containers.
    let config = Config { cases, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
    let played = TestRunner::new(config).run(&model::script(RUNS, OPS_MAX), |script| {
        number.set(number.get() + 1);
        let (done, refused) = theatre
            .play(number.get(), &script)
            .map_err(|error| TestCaseError::fail(format!("case {}: {error:#}", number.get())))?;
        counts.set((counts.get().0 + done, counts.get().1 + refused));
        Ok(())
    });
    ensure!(played.is_ok(), "{}", played.err().map(|error| error.to_string()).unwrap_or_default());
    let (done, refused) = counts.get();
    println!("{cases} scripts: {done} operations done, {refused} refused");
    ensure!(done > refused / 3, "scripts that are refused show nothing");
    Ok(())
}
