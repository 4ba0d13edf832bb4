//! What the crash tests share: roots with a small container, what its generations hold, and what must always be true.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use perennial_core::check::{Finding, Severity, StoreFacts, check};
use perennial_core::container::Container;
use perennial_core::format::{self, Format};
use perennial_core::id::LayerId;
use perennial_core::image::Image;
use perennial_store::records::sqlite::SqliteRecords;
use perennial_store::records::{RecordStore as _, keys};
use perennial_testkit::cli::Perennial;
use perennial_testkit::host::{now, pause, run};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Name of the image in every root.
pub(crate) const IMAGE: &str = "small";
/// Longest time for everything to come to rest after a kill.
const REST: Duration = Duration::from_secs(40);

/// A file system in memory, on which a test makes many roots.
#[derive(Debug)]
pub(crate) struct Scratch {
    home: TempDir,
    next: AtomicU32,
}

impl Scratch {
    /// Mounts it.
    pub(crate) fn new() -> Result<Self> {
        let home = TempDir::with_prefix("perennial-crash-")?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=1g,mode=0700", "crash"]).arg(home.path()))?;
        Ok(Self { home, next: AtomicU32::new(0) })
    }

    /// Returns a path that nothing uses yet.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.path().join(format!("site{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Lazily: a test that has failed may have left something mounted in it, and says so itself.
        drop(run(Command::new("umount").arg("-l").arg(self.home.path())));
    }
}

/// Makes a root file system of a static shell with the few commands the scripts need.
pub(crate) fn small_rootfs(dir: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "keep"] {
        fs::create_dir_all(dir.join(name))?;
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).context("cannot copy busybox (package busybox-static)")?;
    for applet in ["sh", "sleep", "cat", "rm", "mkdir", "mv", "true", "sync", "dd", "touch", "seq"] {
        symlink("busybox", dir.join("bin").join(applet))?;
    }
    perennial_testkit::host::write(dir.join("keep/old"), "of the image\n")
}

/// A root in which a test works.
#[derive(Debug)]
pub(crate) struct World {
    /// The command on this root.
    pub(crate) perennial: Perennial,
}

impl World {
    /// Makes a root with the image at `path`.
    pub(crate) fn with_image(path: &Path) -> Result<Self> {
        let world = Self { perennial: Perennial::new(path)? };
        let rootfs = tempfile::tempdir()?;
        small_rootfs(rootfs.path())?;
        world.ok(&["image", "import", &format!("rootfs:{}", rootfs.path().display()), IMAGE])?;
        Ok(world)
    }

    /// Adds the container `name` with `runs` generations, made by [`script`].
    pub(crate) fn add_container(&self, name: &str, keep: u32, runs: u64) -> Result<()> {
        self.ok(&[
            "create",
            name,
            "--image",
            IMAGE,
            "--seal",
            "never",
            "--keep",
            &keep.to_string(),
            "--",
            "/bin/sh",
            "-c",
            WAIT,
        ])?;
        for number in 1..=runs {
            self.ok(&["start", name, "--", "/bin/sh", "-c", &script(number)])?;
        }
        Ok(())
    }

    /// Copies this root, at rest, to `path`.
    pub(crate) fn copy(&self, path: &Path) -> Result<Self> {
        run(Command::new("cp").arg("-a").arg(self.perennial.root()).arg(path))?;
        Ok(Self { perennial: Perennial::new(path)? })
    }

    /// Runs a command that must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> Result<()> {
        self.perennial.ok(args).map(drop)
    }

    /// Returns the phase of a container, as `ps` shows it.
    pub(crate) fn phases(&self) -> Result<BTreeMap<String, String>> {
        let listed: Value = self.perennial.json(&["ps", "--all"])?;
        let text = |item: &Value, key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(listed.as_array().into_iter().flatten().map(|item| (text(item, "name"), text(item, "phase"))).collect())
    }

    /// Waits until `ps` shows a container in one of these phases.
    pub(crate) fn wait_phase(&self, name: &str, wanted: &[&str], limit: Duration) -> Result<()> {
        let end = now() + limit;
        loop {
            let phases = self.phases()?;
            let phase = phases.get(name).map(String::as_str).unwrap_or_default();
            if wanted.contains(&phase) {
                return Ok(());
            }
            ensure!(now() < end, "{name} is {phase} and not {wanted:?} after {limit:?}");
            pause(Duration::from_millis(50));
        }
    }

    /// Stops what runs, and waits until nothing of any run is left: by recovery, the supervisors and `gc`.
    pub(crate) fn come_to_rest(&self) -> Result<()> {
        let end = now() + REST;
        let runs = self.run_ids()?;
        loop {
            for (name, phase) in self.phases()? {
                if !matches!(phase.as_str(), "Created" | "Dormant") {
                    // One that is just starting or ending refuses; the next look shows what became of it.
                    self.perennial.run(&["stop", &name, "--time", "5"])?;
                }
            }
            self.ok(&["gc"])?;
            let busy = self.phases()?.values().any(|phase| !matches!(phase.as_str(), "Created" | "Dormant"));
            let names: Vec<&str> = runs.iter().map(String::as_str).collect();
            let leaks = self.perennial.leaks(&names)?;
            if !busy && leaks.is_empty() {
                return self.ok(&["gc"]);
            }
            if now() > end {
                bail!("not at rest after {REST:?}: {:?}\n{}", self.phases()?, leaks.join("\n"));
            }
            pause(Duration::from_millis(50));
        }
    }

    /// Returns the records of one kind.
    pub(crate) fn records<T: DeserializeOwned>(&self, format: Format, prefix: &str) -> Result<Vec<T>> {
        let path = self.perennial.root().join("records.db");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let records = SqliteRecords::open_or_create(&path)?;
        let listed = records.list(prefix)?;
        listed.iter().map(|(key, record)| format::decode(format, &record.bytes).with_context(|| key.clone())).collect()
    }

    /// Returns the containers.
    pub(crate) fn containers(&self) -> Result<Vec<Container>> {
        self.records(Format::Container, keys::CONTAINERS)
    }

    /// Returns the ids of all runs that containers ever had, from their event logs.
    pub(crate) fn run_ids(&self) -> Result<Vec<String>> {
        let entries: Vec<perennial_core::event::Entry> = self.records(Format::Event, "event/")?;
        let ids = entries.iter().filter_map(|entry| entry.detail.strip_prefix("run ").map(str::to_owned));
        Ok(ids.collect())
    }

    /// Checks what must be true of a root at rest, and returns what can be seen of its state.
    pub(crate) fn check_at_rest(&self) -> Result<Value> {
        let containers = self.check_whole()?;
        self.state(&containers)
    }

    /// Checks what must be true of a root at rest, whatever form its layers have; returns its containers.
    pub(crate) fn check_whole(&self) -> Result<Vec<Container>> {
        self.come_to_rest()?;
        self.ok(&["doctor"])?;
        let images: Vec<Image> = self.records(Format::Image, keys::IMAGES)?;
        let containers = self.containers()?;
        let findings: Vec<_> = check(&self.facts(&containers, &images)?);
        // What is pinned may hold more than the bound, which is told; that a start failed is told as well. Neither breaks anything.
        let has_pins = containers
            .iter()
            .flat_map(|container| &container.queue)
            .any(|queue| queue.generations.iter().any(|generation| generation.pinned));
        let is_told = |message: &str| {
            message.starts_with("StartFailed since") || has_pins && message.starts_with("RetentionBlocked since")
        };
        let is_bad = |finding: &&Finding| finding.severity > Severity::Note && !is_told(&finding.message);
        let bad: Vec<_> = findings.iter().filter(is_bad).collect();
        ensure!(bad.is_empty(), "broken invariants: {bad:#?}");
        for dir in ["runs", "staging"] {
            let left: Vec<_> = fs::read_dir(self.perennial.root().join(dir))?.flatten().map(|e| e.path()).collect();
            ensure!(left.is_empty(), "left in {dir}: {left:?}");
        }
        Ok(containers)
    }

    fn facts(&self, containers: &[Container], images: &[Image]) -> Result<StoreFacts> {
        let root = self.perennial.root();
        let layers: Vec<perennial_core::layers::LayerRecord> = self.records(Format::Layer, keys::LAYERS)?;
        let named = |dir: &str| -> Result<BTreeSet<String>> {
            Ok(fs::read_dir(root.join(dir))?.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        };
        let trees: BTreeSet<LayerId> =
            named("layers")?.iter().map(|name| name.parse()).collect::<Result<_, _>>().context("layers/")?;
        for id in &trees {
            let directory = root.join("layers").join(id.as_str());
            let is_sealed = directory.join("manifest").is_file() && directory.join("meta.erofs").is_file();
            ensure!(directory.join("tree").is_dir() || is_sealed, "layer {id} has no tree after gc");
        }
        Ok(StoreFacts {
            containers: containers.to_vec(),
            images: images.iter().map(|image| image.digest.clone()).collect(),
            layer_records: layers.iter().map(|layer| layer.id.clone()).collect(),
            image_layers: images.iter().flat_map(|image| image.layers.clone()).collect(),
            layer_trees: trees,
            run_dirs: named("runs")?.iter().map(|name| name.parse()).collect::<Result<_, _>>().context("runs/")?,
            ..StoreFacts::default()
        })
    }

    /// What can be seen of the state, without ids and times: images, containers, generations and what they hold.
    pub(crate) fn state(&self, containers: &[Container]) -> Result<Value> {
        let root = self.perennial.root();
        let tags = match root.join("records.db").exists() {
            true => SqliteRecords::open_or_create(&root.join("records.db"))?.list(keys::TAGS)?,
            false => Vec::new(),
        };
        let mut shown = serde_json::Map::new();
        for container in containers {
            let queue = container.queue.as_ref();
            let mut generations = Vec::new();
            for generation in queue.iter().flat_map(|queue| &queue.generations) {
                generations.push(json!({
                    "seq": generation.seq, "kind": generation.kind, "pinned": generation.pinned,
                    "quarantined": generation.quarantined, "health": generation.health,
                    "holds": self.union(&generation.layers)?,
                }));
            }
            let conditions: Vec<_> = container.conditions.iter().map(|condition| condition.kind).collect();
            let shape = json!({
                "phase": container.phase.name(), "current": queue.and_then(|queue| queue.current),
                "keep": container.policy.keep, "conditions": conditions, "generations": generations,
            });
            shown.insert(container.name.to_string(), shape);
        }
        let tags: Vec<_> = tags.into_iter().map(|(key, _)| key).collect();
        Ok(json!({ "images": tags, "containers": shown }))
    }

    /// What layers hold together, newest first: contents of files by path, without the image below.
    pub(crate) fn union(&self, layers: &[LayerId]) -> Result<BTreeMap<String, String>> {
        let mut shown = BTreeMap::new();
        for id in layers.iter().rev() {
            let tree = self.perennial.root().join("layers").join(id.as_str()).join("tree");
            ensure!(tree.is_dir(), "layer {id} is missing on disk");
            overlay(&tree, "", &mut shown).with_context(|| format!("layer {id}"))?;
        }
        Ok(shown)
    }
}

/// Kills the supervisors of a root, as `kill -9` would, and returns how many there were. A child that a supervisor has
/// just forked still shows its parent's command line until it executes its own: it is killed too, but not counted.
pub(crate) fn kill_supervisors(world: &World) -> Result<usize> {
    let root = world.perennial.root().to_string_lossy().into_owned();
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let text = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = text.split(|byte| *byte == 0);
        if words.any(|word| word == root.as_bytes()) && words.any(|word| word == b"__supervise") {
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<i32>().ok());
            found.insert(pid, parent);
        }
    }
    for pid in found.keys().filter_map(|pid| rustix::process::Pid::from_raw(*pid)) {
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let is_child = |parent: &Option<i32>| parent.is_some_and(|parent| found.contains_key(&parent));
    Ok(found.values().filter(|parent| !is_child(parent)).count())
}

/// Puts a directory of a layer over what is shown.
fn overlay(dir: &Path, at: &str, shown: &mut BTreeMap<String, String>) -> Result<()> {
    let mut value = [0_u8; 4];
    let opaque =
        rustix::fs::lgetxattr(dir, "trusted.overlay.opaque", &mut value).is_ok_and(|n| value.get(..n) == Some(b"y"));
    let hide = |shown: &mut BTreeMap<String, String>, path: &str| {
        let inside = format!("{path}/");
        shown.retain(|other, _| other != path && !other.starts_with(&inside));
    };
    if opaque {
        hide(shown, at);
        shown.insert(format!("{at}/."), "opaque".into());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = format!("{at}/{}", entry.file_name().to_str().ok_or_else(|| anyhow!("odd name"))?);
        let metadata = entry.path().symlink_metadata()?;
        if metadata.is_dir() {
            // A directory over a file hides it.
            shown.remove(&path);
            overlay(&entry.path(), &path, shown)?;
        } else if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            hide(shown, &path);
            // What it hides may be the image's, of which this is no view: only that can be told apart.
            if path.starts_with("/keep") {
                shown.insert(path, "deleted".into());
            }
        } else {
            hide(shown, &path);
            shown.insert(path, fs::read_to_string(entry.path())?);
        }
    }
    Ok(())
}

/// What a container runs that has to be stopped: changes something, and waits.
pub(crate) const WAIT: &str = "echo waiting > /state; trap 'exit 0' TERM; while true; do sleep 0.05; done";

/// What run `number` of a container does: every kind of change that layers can show.
pub(crate) fn script(number: u64) -> String {
    let before = number.saturating_sub(1);
    format!(
        "echo {number} > /state; mkdir -p /d; echo {number} > /d/f{number}; rm -f /d/f{before}; \
         rm -rf /opaque; mkdir /opaque; echo {number} > /opaque/o{number}; \
         if [ {number} = 2 ]; then rm -rf /keep; mkdir /keep; fi"
    )
}
