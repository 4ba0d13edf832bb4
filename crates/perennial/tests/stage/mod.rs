//! A stage for one test: a root of its own with the busybox image in it, and what the tests say about containers.
//!
//! Dropping it ends what the test has left running and removes everything.
#![allow(dead_code, reason = "each test program uses another part of it")]
#![allow(clippy::allow_attributes, reason = "what is unused differs from program to program")]

pub(crate) mod terminal;
pub(crate) mod trapped;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use perennial_testkit::bytes::Bytes;
use perennial_testkit::cli::{Perennial, Run};
use perennial_testkit::host::{self, need_root, wait_until};
use perennial_testkit::image;
use perennial_testkit::tree::{Kind, OverlayXattrs, TreeListing};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

/// How a start gives the run its state; what must hold in both is tested in both.
pub(crate) const MODES: [&str; 2] = ["mount", "unpack"];

/// A process that does nothing and ends with code 0 when asked to.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; sleep 1000 & wait";

/// Longest wait for something that happens by itself.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A root of its own and the command on it.
pub(crate) struct Stage {
    cli: Perennial,
    dir: TempDir,
}

impl Deref for Stage {
    type Target = Perennial;
    fn deref(&self) -> &Perennial {
        &self.cli
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A test that fails leaves containers running; what cannot be ended shows when the directory is removed.
        drop(self.cli.clean_up());
    }
}

impl Stage {
    /// Makes an empty stage: the root does not exist yet.
    pub(crate) fn empty() -> Result<Self> {
        Self::empty_in(&std::env::temp_dir())
    }

    /// Makes an empty stage in a directory, such as the mount of a file system made for the test.
    pub(crate) fn empty_in(dir: &Path) -> Result<Self> {
        need_root()?;
        let dir = TempDir::with_prefix_in("perennial-test-", dir)?;
        let cli = Perennial::at(env!("CARGO_BIN_EXE_perennial"), dir.path().join("root"));
        Ok(Self { cli, dir })
    }

    /// Makes a stage with the busybox image, named `box`.
    pub(crate) fn new() -> Result<Self> {
        let stage = Self::empty()?;
        stage.import(box_tar()?, "box")?;
        Ok(stage)
    }

    /// Returns the command on the same root with another environment.
    pub(crate) fn with_env(&self, name: &str, value: &str) -> Perennial {
        self.cli.clone().env(name, value)
    }

    /// Returns a path beside the root that is removed with the stage.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Imports a root file system and returns the image's digest.
    pub(crate) fn import(&self, rootfs: &Path, name: &str) -> Result<String> {
        self.import_from(&format!("rootfs:{}", rootfs.display()), name)
    }

    /// Imports an image and returns its digest.
    pub(crate) fn import_from(&self, source: &str, name: &str) -> Result<String> {
        let image: Value = self.json(&["image", "import", source, name])?;
        Ok(text(&image, "/digest")?.to_owned())
    }

    /// Makes a root file system of busybox that can be changed before it is imported.
    pub(crate) fn rootfs(&self, name: &str) -> Result<PathBuf> {
        let dir = self.path(name);
        fs::create_dir(&dir)?;
        image::busybox_rootfs(&dir)?;
        Ok(dir)
    }

    /// Runs a script in a container to its end; the container is made on the image `box` if it is new.
    pub(crate) fn sh(&self, name: &str, script: &str) -> Result<Run> {
        self.sh_in("mount", name, script)
    }

    /// Runs a script in a container that starts in this mode.
    pub(crate) fn sh_in(&self, mode: &str, name: &str, script: &str) -> Result<Run> {
        self.run(&["run", name, "--image", "box", "--mode", mode, "--", "sh", "-c", script])
    }

    /// Runs a script that must succeed and returns what it printed.
    pub(crate) fn sh_ok(&self, name: &str, script: &str) -> Result<String> {
        Ok(self.sh(name, script)?.ok()?.out())
    }

    /// Makes a container with these options whose own command idles.
    pub(crate) fn create_idle(&self, name: &str, options: &[&str]) -> Result<()> {
        let args = [&["create", name, "--image", "box"], options, &["--", "sh", "-c", IDLE]].concat();
        self.ok(&args).map(drop)
    }

    /// Makes a container that idles, and starts it.
    pub(crate) fn idle(&self, name: &str, options: &[&str]) -> Result<()> {
        self.create_idle(name, options)?;
        self.ok(&["start", name, "--detach"]).map(drop)
    }

    /// Runs a script in a running container and returns what it printed.
    pub(crate) fn inside(&self, name: &str, script: &str) -> Result<String> {
        Ok(self.ok(&["exec", name, "sh", "-c", script])?.out())
    }

    /// Returns the tree that a running container sees.
    pub(crate) fn seen_in(&self, name: &str) -> Result<TreeListing> {
        TreeListing::of(self.merged(name)?)
    }

    /// Returns the names of the layers on disk.
    pub(crate) fn layers(&self) -> Result<BTreeSet<String>> {
        names(&self.root().join("layers"))
    }

    /// Returns what a layer's tree is kept in, once nothing works in the background: its directory, or its metadata.
    pub(crate) fn body_of(&self, layer: &str) -> Result<PathBuf> {
        self.quiet()?;
        let directory = self.root().join("layers").join(layer);
        let tree = directory.join("tree");
        Ok(if tree.exists() { tree } else { directory.join("meta.erofs") })
    }

    /// Returns what a layer holds, with what overlayfs keeps for itself.
    pub(crate) fn layer(&self, id: &str) -> Result<TreeListing> {
        let tree = File::open(self.root().join("layers").join(id).join("tree"))?;
        TreeListing::with(tree.as_fd(), OverlayXattrs::All)
    }

    /// Returns one generation.
    pub(crate) fn generation(&self, name: &str, seq: u64) -> Result<Value> {
        let found = self.generations(name)?.into_iter().find(|g| g["seq"] == seq);
        found.ok_or_else(|| anyhow!("there is no generation {name}@{seq}"))
    }

    /// Returns the number of the current generation.
    pub(crate) fn current(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.inspect(name)?.get("current").and_then(Value::as_u64))
    }

    /// Returns the phase of a container.
    pub(crate) fn phase(&self, name: &str) -> Result<String> {
        Ok(text(&self.inspect(name)?, "/phase")?.to_owned())
    }

    /// Returns the conditions of a container.
    pub(crate) fn conditions(&self, name: &str) -> Result<Vec<String>> {
        let inspected = self.inspect(name)?;
        let list = inspected.pointer("/conditions").and_then(Value::as_array);
        let list = list.ok_or_else(|| anyhow!("no conditions in {inspected}"))?;
        Ok(list.iter().filter_map(|condition| condition["kind"].as_str().map(str::to_owned)).collect())
    }

    /// Returns the event log of a container, oldest first.
    pub(crate) fn events(&self, name: &str) -> Result<Vec<Value>> {
        self.json(&["events", name])
    }

    /// Returns the ids of all runs a container ever had, by which cgroups are named.
    pub(crate) fn run_ids(&self, name: &str) -> Result<Vec<String>> {
        let detail = |event: &Value| event["detail"].as_str()?.strip_prefix("run ").map(str::to_owned);
        Ok(self.events(name)?.iter().filter_map(detail).collect())
    }

    /// Fails if anything of a container is left but its generations.
    pub(crate) fn assert_only_generations_left(&self, name: &str) -> Result<()> {
        let runs = self.run_ids(name)?;
        let runs: Vec<&str> = runs.iter().map(String::as_str).collect();
        self.assert_no_leaks(&runs)?;
        wait_until("the trash is emptied", SOON, || Ok(names(&self.root().join("trash"))?.is_empty()))
    }

    /// Waits until a container is in this phase.
    pub(crate) fn wait_phase(&self, name: &str, phase: &str) -> Result<()> {
        wait_until(&format!("{name} is {phase}"), SOON, || Ok(self.phase(name)? == phase))
    }

    /// Makes the root where there is none yet, with nothing in it: by a command that makes one and then fails.
    pub(crate) fn make_root(&self) -> Result<()> {
        match self.root().join("format.json").exists() {
            true => Ok(()),
            false => self.run(&["create", "nobody", "--image", "nothing"])?.code_is(3).map(drop),
        }
    }

    /// Waits until nothing works in the background any more: every supervisor stands over a run.
    pub(crate) fn quiet(&self) -> Result<()> {
        self.make_root()?;
        let root = self.root().display().to_string();
        wait_until("supervisors of ended runs have gone", SOON, || {
            let listed: Value = self.json(&["ps"])?;
            let live = listed.as_array().into_iter().flatten().filter(|container| !container["run"].is_null()).count();
            Ok(supervisors(&root)? == live)
        })
    }

    /// Returns everything a command could change: files below the root but locks and the record store's, and all
    /// records as commands show them.
    pub(crate) fn state(&self) -> Result<State> {
        self.quiet()?;
        let mut files = BTreeMap::new();
        for (path, entry) in TreeListing::of(self.root())?.entries {
            let path = path.to_string();
            let is_noise = path.is_empty() || path.starts_with("records.db") || path.starts_with("locks");
            if !is_noise {
                files.insert(path, (entry.kind, entry.mode, entry.content, entry.target));
            }
        }
        let mut records = vec![self.json(&["ps"])?, self.json(&["image", "ls"])?];
        for name in names_of(&records) {
            records.extend([self.json(&["generations", &name])?, self.json(&["events", &name])?]);
        }
        Ok(State { files, records })
    }

    /// Runs a command that must fail with this code, name these things, give a hint, and change nothing.
    pub(crate) fn refused_unchanged(&self, args: &[&str], code: i32, named: &[&str]) -> Result<()> {
        let before = self.state()?;
        self.refused_with(args, code, named)?;
        before.assert_same(&self.state()?).with_context(|| format!("{args:?} changed something"))
    }

    /// Runs a command that must fail with this code, name these things and give a hint.
    pub(crate) fn refused_with(&self, args: &[&str], code: i32, named: &[&str]) -> Result<String> {
        let run = self.run(args)?.code_is(code)?;
        ensure!(run.stdout.is_empty(), "{args:?} printed {:?} and failed", run.out());
        complains(&run.err(), named).with_context(|| format!("{args:?}"))?;
        Ok(run.err())
    }
}

/// Fails unless an error names these things and gives a hint.
pub(crate) fn complains(error: &str, named: &[&str]) -> Result<()> {
    for name in named {
        ensure!(error.contains(name), "the error does not name {name:?}:\n{error}");
    }
    // The parser of the command line has its own words for a hint.
    let has_hint = ["hint: ", "For more information", "\"hint\""].iter().any(|mark| error.contains(mark));
    ensure!(has_hint, "the error has no hint:\n{error}");
    ensure!(!error.contains("panicked"), "{error}");
    Ok(())
}

type Listed = (Kind, u32, Option<String>, Option<Bytes>);

/// What a root holds.
pub(crate) struct State {
    files: BTreeMap<String, Listed>,
    records: Vec<Value>,
}

impl State {
    /// Fails with what differs.
    pub(crate) fn assert_same(&self, after: &Self) -> Result<()> {
        let paths: BTreeSet<&String> = self.files.keys().chain(after.files.keys()).collect();
        let differing: Vec<_> = paths.into_iter().filter(|p| self.files.get(*p) != after.files.get(*p)).collect();
        ensure!(differing.is_empty(), "files differ: {differing:?}");
        for (before, after) in self.records.iter().zip(&after.records) {
            ensure!(before == after, "records differ:\n{before:#}\n{after:#}");
        }
        ensure!(self.records.len() == after.records.len(), "containers came or went");
        Ok(())
    }
}

fn names_of(records: &[Value]) -> Vec<String> {
    let containers = records.first().and_then(Value::as_array).cloned().unwrap_or_default();
    containers.iter().filter_map(|container| container["name"].as_str().map(str::to_owned)).collect()
}

/// Counts the supervisors on a root.
fn supervisors(root: &str) -> Result<usize> {
    let is_ours = |dir: PathBuf| {
        // A process that ends between two looks is none.
        let arguments = fs::read(dir.join("cmdline")).unwrap_or_default();
        let arguments: Vec<_> = arguments.split(|byte| *byte == 0).collect();
        arguments.contains(&root.as_bytes()) && arguments.contains(&"__supervise".as_bytes())
    };
    Ok(fs::read_dir("/proc")?.flatten().filter(|entry| is_ours(entry.path())).count())
}

/// Returns the names in a directory.
pub(crate) fn names(dir: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Returns a text in a JSON value.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    value.pointer(pointer).and_then(Value::as_str).ok_or_else(|| anyhow!("no text at {pointer} of {value:#}"))
}

/// Returns the texts of a list in a JSON value.
pub(crate) fn texts(value: &Value, pointer: &str) -> Result<Vec<String>> {
    let list = value.pointer(pointer).and_then(Value::as_array);
    let list = list.ok_or_else(|| anyhow!("no list at {pointer} of {value:#}"))?;
    Ok(list.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect())
}

/// Returns the busybox root file system as a tar file, made once in each test program.
pub(crate) fn box_tar() -> Result<&'static Path> {
    static TAR: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let made = TAR.get_or_init(|| make_box_tar().map_err(|error| format!("{error:#}")));
    match made {
        Ok(path) => Ok(path),
        Err(error) => bail!("cannot make the busybox image: {error}"),
    }
}

fn make_box_tar() -> Result<PathBuf> {
    let dir = TempDir::new()?;
    image::busybox_rootfs(dir.path())?;
    let program = env!("CARGO_CRATE_NAME");
    let (part, tar) = (cargo_tmp(&format!("{program}.{}", std::process::id())), cargo_tmp(&format!("{program}.tar")));
    image::pack(dir.path(), &part)?;
    fs::rename(part, &tar)?;
    Ok(tar)
}

fn cargo_tmp(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Returns the seconds since 1970 on the clock of this machine.
pub(crate) fn unix_seconds() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec
}

/// Waits until the clock shows another second, so that what follows is told apart by its time.
pub(crate) fn next_second() -> Result<()> {
    let second = unix_seconds();
    wait_until("the next second", SOON, || Ok(unix_seconds() != second))
}

/// Writes a file of a fixture.
pub(crate) fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    host::write(path, bytes)
}
