//! What must be true of a root whose machine was cut off, once it has come to rest.

use crate::play::{KINDS, Play};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use perennial_testkit::actor::ACTOR;
use perennial_testkit::cli::Perennial;
use perennial_testkit::host::{now, pause};
use perennial_testkit::tree::{Difference, Field, TreeListing, ensure_equal_but};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Longest time for everything to come to rest.
const REST: Duration = Duration::from_secs(60);
/// Longest time for a command, on a machine that also emulates others.
const COMMAND: Duration = Duration::from_secs(120);

/// What the machine found after its restart, before the root was looked at from outside.
pub(crate) type Found = BTreeMap<&'static str, FoundContainer>;

/// The same of one container.
pub(crate) struct FoundContainer {
    /// What `generations` listed once everything had come to rest.
    pub(crate) listed: Value,
    /// What the current one of these then showed to a run.
    pub(crate) shown: TreeListing,
}

/// A root to check.
pub(crate) struct Site<'a> {
    pub(crate) perennial: Perennial,
    pub(crate) play: &'a Play,
    /// How many steps had been carried out for sure.
    pub(crate) done: usize,
    /// Where copies are put.
    pub(crate) scratch: &'a Path,
}

/// What had become of the step that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// Nothing can be seen of it in any queue.
    Undone,
    /// A run was committed whole.
    Done,
    /// What a run had changed was saved as far as it had got.
    Saved,
}

/// A generation as it is listed.
#[derive(Debug, Clone)]
struct Listed {
    seq: u64,
    kind: String,
    is_current: bool,
}

impl Listed {
    /// Reads what `generations` lists, oldest first.
    fn all(listed: &Value) -> Result<Vec<Self>> {
        let items = listed["generations"].as_array().ok_or_else(|| anyhow!("no list of generations in {listed}"))?;
        let mut all = Vec::new();
        for item in items {
            let kind = item["kind"].as_str().unwrap_or_default().to_owned();
            let seq = item["seq"].as_u64().ok_or_else(|| anyhow!("no seq in {item}"))?;
            all.push(Self { seq, kind, is_current: listed["current"] == seq });
        }
        all.sort_by_key(|generation| generation.seq);
        Ok(all)
    }
}

impl<'a> Site<'a> {
    /// Looks at the root in this directory.
    pub(crate) fn new(root: &Path, play: &'a Play, done: usize, scratch: &'a Path) -> Self {
        let perennial = Perennial::at(env!("CARGO_BIN_EXE_perennial"), root).limit(COMMAND);
        Self { perennial, play, done, scratch }
    }

    /// Checks everything and returns what had become of the last step. `found` is there where the containers have run once
    /// since; what became of the step is not looked for then.
    pub(crate) fn check(&self, found: Option<&Found>) -> Result<Fate> {
        let checked = self.check_all(found);
        if checked.is_err() {
            self.perennial.clean_up()?;
        }
        checked
    }

    fn check_all(&self, found: Option<&Found>) -> Result<Fate> {
        let mut fate = Fate::Undone;
        self.perennial.ok(&["ps", "--all"])?;
        self.come_to_rest()?;
        self.check_doctor()?;
        for kind in &KINDS {
            let name = kind.name;
            let mut listed = Listed::all(&self.perennial.json(&["generations", name])?)?;
            let before = match found.and_then(|found| found.get(name)) {
                None => listed.clone(),
                Some(found) => {
                    let before = Listed::all(&found.listed)?;
                    self.check_run(name, found, &before, listed.pop()).context("the run after the restart")?;
                    before
                }
            };
            fate = fate.max(self.check_queue(name, &before)?);
            for generation in &listed {
                self.check_content(name, generation).with_context(|| format!("{name}@{}", generation.seq))?;
            }
        }
        self.perennial.ok(&["verify", "--full"])?;
        for kind in &KINDS {
            let name = kind.name;
            let listed = Listed::all(&self.perennial.json(&["generations", name])?)?;
            let last = listed.last().context("no generation is left")?;
            let current = self.copied(name, last.seq)?;
            let shown = self.perennial.ok(&["start", name, "--", ACTOR, "listing", "/model"])?;
            same(&current, &shown.json()?).with_context(|| format!("the next run of {name}"))?;
        }
        self.come_to_rest()?;
        self.check_doctor()?;
        Ok(fate)
    }

    /// Waits until nothing of any run is left.
    fn come_to_rest(&self) -> Result<()> {
        let end = now() + REST;
        loop {
            self.perennial.ok(&["gc"])?;
            let leaks = self.perennial.leaks(&[])?;
            if leaks.is_empty() {
                return Ok(());
            }
            if now() > end {
                bail!("not at rest after {REST:?}:\n{}", leaks.join("\n"));
            }
            pause(Duration::from_millis(50));
        }
    }

    fn check_doctor(&self) -> Result<()> {
        let diagnosis: Value = self.perennial.json(&["doctor"])?;
        let findings = diagnosis.get("findings").and_then(Value::as_array).context("no findings")?;
        let bad: Vec<_> = findings.iter().filter(|finding| finding["severity"] != "note").collect();
        ensure!(bad.is_empty(), "the doctor finds {bad:#?}");
        Ok(())
    }

    /// The run after a restart saw what the generation shows that was current then, and ended as an exit.
    fn check_run(
        &self,
        name: &'static str,
        found: &FoundContainer,
        before: &[Listed],
        run: Option<Listed>,
    ) -> Result<()> {
        let (began, run) = (before.last().context("no generation was left")?, run.context("no generation is left")?);
        ensure!(run.kind == "exit" && run.seq == began.seq + 1, "it is {run:?} after {began:?}");
        same(&found.shown, &self.copied(name, run.seq)?)?;
        match self.play.shows.get(&(name, began.seq)) {
            Some(shown) if began.kind == "exit" => same(shown, &found.shown),
            Some(_) | None => Ok(()),
        }
    }

    /// Every generation whose step is done is there, and at most what the next step would have added, whole or saved
    /// as far as it had got.
    fn check_queue(&self, name: &str, listed: &[Listed]) -> Result<Fate> {
        let seqs: Vec<u64> = listed.iter().map(|generation| generation.seq).collect();
        let before = &self.play.queues[self.done][name];
        let after = self.play.queues.get(self.done + 1).map_or(before, |queues| &queues[name]);
        let is_salvage = listed.last().is_some_and(|generation| generation.kind == "salvage");
        let salvaged = before.last().map(|last| [before.as_slice(), &[last + 1]].concat());
        let is_as_meant = &seqs == before || (&seqs == after && !is_salvage);
        let is_saved = before != after && is_salvage && Some(&seqs) == salvaged.as_ref();
        ensure!(is_as_meant || is_saved, "{name} has {seqs:?} (salvage: {is_salvage}), not {before:?} or {after:?}");
        ensure!(listed.last().is_some_and(|last| last.is_current), "{name} begins with another one: {listed:?}");
        Ok(match (is_saved, &seqs == before) {
            (true, _) => Fate::Saved,
            (false, true) => Fate::Undone,
            (false, false) => Fate::Done,
        })
    }

    /// A generation shows what its run had done. What was saved of a run that was cut off can at least be read.
    fn check_content(&self, name: &'static str, generation: &Listed) -> Result<()> {
        let copied = self.copied(name, generation.seq)?;
        match self.play.shows.get(&(name, generation.seq)) {
            Some(shown) if generation.kind == "exit" => same(shown, &copied),
            Some(_) | None => Ok(()),
        }
    }

    /// What a generation shows, read by copying it out.
    fn copied(&self, name: &str, seq: u64) -> Result<TreeListing> {
        let target = self.scratch.join("copy");
        let text = target.to_string_lossy();
        self.perennial.ok(&["cp", &format!("{name}@{seq}:/model"), &text])?;
        let listing = TreeListing::of(&target)?;
        fs::remove_dir_all(&target)?;
        Ok(listing)
    }
}

fn same(expected: &TreeListing, found: &TreeListing) -> Result<()> {
    // When overlayfs copies a file up, it fills the smaller holes.
    let filled = |difference: &Difference| difference.field == Field::Holes;
    ensure_equal_but(expected, found, &filled)
}
