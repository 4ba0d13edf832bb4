//! What a session does step by step, and what each container's generations must show after every step: random
//! operations, applied to plain directories as well.

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::copy;
use perennial_testkit::guest::GuestFile;
use perennial_testkit::model::{self, Stage};
use perennial_testkit::tree::TreeListing;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Random operations of each run.
const OPS_MAX: usize = 30;
/// Runs of each container that are there before the session: enough that its first exits evict.
pub(crate) const PREPARED: usize = 3;

/// A container of the session.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) keep: usize,
    pub(crate) seal: &'static str,
    pub(crate) mode: &'static str,
}

/// Sealed and evicted at each exit; sealed with some history; in directories that are folded; unpacked at each start.
pub(crate) const KINDS: [Kind; 4] = [
    Kind { name: "one", keep: 1, seal: "auto", mode: "mount" },
    Kind { name: "three", keep: 3, seal: "auto", mode: "mount" },
    Kind { name: "dirs", keep: 2, seal: "never", mode: "mount" },
    Kind { name: "unpacked", keep: 2, seal: "auto", mode: "unpack" },
];

/// One step.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A run of the container of that number: its exit, and all that follows in the background.
    Run(usize, Stage),
    /// Seals what is not, the image too.
    Seal,
    /// Packs what only older generations show.
    Pack,
    /// Takes out of packs again what an older generation of a container shows.
    Thaw(usize),
    /// Frees what is left over.
    Collect,
}

impl Step {
    /// Returns what the step is, for a report.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Run(_, _) => "run",
            Self::Seal => "seal",
            Self::Pack => "pack",
            Self::Thaw(_) => "thaw",
            Self::Collect => "gc",
        }
    }
}

/// The order of steps; which one a session begins with is drawn.
const ORDER: [Word; 12] = [
    Word::Run(0),
    Word::Run(1),
    Word::Seal,
    Word::Run(2),
    Word::Run(1),
    Word::Pack,
    Word::Run(0),
    Word::Run(3),
    Word::Collect,
    Word::Run(2),
    Word::Thaw(1),
    Word::Run(1),
];

#[derive(Debug, Clone, Copy)]
enum Word {
    Run(usize),
    Seal,
    Pack,
    Thaw(usize),
    Collect,
}

/// The numbers of a container's generations, oldest first.
pub(crate) type Queues = BTreeMap<&'static str, Vec<u64>>;

/// A session as it was meant.
#[derive(Debug)]
pub(crate) struct Play {
    /// The runs that are there before, each container's in a row.
    pub(crate) prepared: Vec<(usize, Stage)>,
    /// The steps; the first has number 1.
    pub(crate) steps: Vec<Step>,
    /// The queues after each step; at 0 those before the first.
    pub(crate) queues: Vec<Queues>,
    /// What each generation shows.
    pub(crate) shows: BTreeMap<(&'static str, u64), TreeListing>,
}

/// Draws from a seed.
pub(crate) fn lot(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

impl Play {
    /// Draws a session of so many steps over an image whose `/model` looks as `origin`; `scratch` is an empty directory.
    pub(crate) fn draw(seed: u64, steps: usize, origin: &Path, scratch: &Path) -> Result<Self> {
        let mut runner = TestRunner::new_with_rng(Config::default(), lot(seed));
        let mut scripts = Vec::new();
        for kind in &KINDS {
            let tree = model::script(PREPARED + steps, OPS_MAX).new_tree(&mut runner);
            scripts.push(tree.ok().context("a script cannot be drawn")?.current().into_iter());
            let plain = scratch.join(kind.name);
            fs::create_dir(&plain)?;
            copy::attributes(origin, &plain)?;
        }
        let mut play = Self { prepared: Vec::new(), steps: Vec::new(), queues: Vec::new(), shows: BTreeMap::new() };
        let mut queues: Queues = KINDS.iter().map(|kind| (kind.name, Vec::new())).collect();
        for (number, script) in scripts.iter_mut().enumerate() {
            for stage in script.by_ref().take(PREPARED) {
                play.ran(number, &stage, &mut queues, scratch)?;
                play.prepared.push((number, stage));
            }
        }
        play.queues.push(queues.clone());
        let first = usize::try_from(seed % ORDER.len() as u64)?;
        for word in ORDER.iter().cycle().skip(first).take(steps) {
            let step = match *word {
                Word::Run(number) => Step::Run(number, scripts[number].next().context("a stage")?),
                Word::Seal => Step::Seal,
                Word::Pack => Step::Pack,
                Word::Thaw(number) => Step::Thaw(number),
                Word::Collect => Step::Collect,
            };
            if let Step::Run(number, stage) = &step {
                play.ran(*number, stage, &mut queues, scratch)?;
            }
            play.steps.push(step);
            play.queues.push(queues.clone());
        }
        Ok(play)
    }

    /// Does what a run does, on a plain directory.
    fn ran(&mut self, number: usize, stage: &Stage, queues: &mut Queues, scratch: &Path) -> Result<()> {
        let kind = &KINDS[number];
        let plain = scratch.join(kind.name);
        let applied = model::apply(&plain, stage)?;
        ensure!(!applied.is_empty(), "a run that does nothing shows nothing");
        let queue = queues.get_mut(kind.name).context("a container")?;
        let seq = queue.last().map_or(1, |seq| seq + 1);
        queue.push(seq);
        queue.drain(..queue.len().saturating_sub(kind.keep));
        self.shows.insert((kind.name, seq), TreeListing::of(&plain)?);
        Ok(())
    }

    /// Returns the script that does the steps, each marked when its command has returned, and the files it needs.
    pub(crate) fn script(&self) -> Result<(String, Vec<GuestFile>)> {
        let (mut script, mut files) = (String::new(), Vec::new());
        for (number, step) in (1..).zip(&self.steps) {
            let command = match step {
                Step::Run(container, stage) => {
                    files.push((number.to_string(), serde_json::to_vec(stage)?));
                    let Kind { name, mode, .. } = &KINDS[*container];
                    format!("start {name} --mode {mode} -- /trap-actor script \"$(cat /files/{number})\"")
                }
                Step::Seal => "seal".to_owned(),
                Step::Pack => "pack --hot 1".to_owned(),
                Step::Thaw(container) => {
                    let name = KINDS[*container].name;
                    let oldest = self.queues[number - 1][name].first().context("a generation")?;
                    script.push_str("rm -rf /data/thawed\n");
                    format!("cp {name}@{oldest}:/model /data/thawed")
                }
                Step::Collect => "gc".to_owned(),
            };
            script.push_str(&format!("step {number} perennial --root /data/root {command}\n"));
        }
        Ok((script, files))
    }
}
