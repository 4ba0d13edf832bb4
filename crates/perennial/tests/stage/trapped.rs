//! A container with every trap, and what a report of an export says of a difference; podman with a store of its own.

#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

use super::{IDLE, Stage, write};
use anyhow::{Context as _, Result, ensure};
use perennial_store::tree::remove_tree;
use perennial_testkit::actor::{self, ACTOR};
use perennial_testkit::host::run;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::traps;
use perennial_testkit::tree::{Difference, Field, TreeListing};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// Bytes of the file systems that the tests run on; the files are sparse.
pub(crate) const DISK_BYTES: u64 = 2 << 30;

/// A container with every trap in two runs, and what its last run has left.
pub(crate) struct Trapped {
    pub(crate) stage: Stage,
    actor: String,
    capabilities: Vec<&'static str>,
    pub(crate) left: TreeListing,
    _disk: LoopFs,
}

impl Trapped {
    pub(crate) fn new(seal: &str, capabilities: Vec<&'static str>) -> Result<Self> {
        Self::without(&[], seal, capabilities)
    }

    /// Without some of the cases.
    pub(crate) fn without(cases: &[&str], seal: &str, capabilities: Vec<&'static str>) -> Result<Self> {
        let disk = LoopFs::new(FsKind::Ext4, DISK_BYTES)?;
        let stage = Stage::empty_in(&disk.path())?;
        let rootfs = stage.rootfs("rootfs")?;
        let actor = actor::fill_trapped_rootfs(&rootfs, ACTOR)?;
        for case in cases {
            let dir = rootfs.join(traps::DIR).join(case);
            remove_tree(&dir)?;
            fs::create_dir(&dir)?;
            // What cannot be is left alone in the later stages.
            write(dir.join("impossible"), "left out")?;
        }
        stage.import(&rootfs, "box")?;
        fs::remove_dir_all(&rootfs)?;
        let actor = actor.display().to_string();
        let mut trapped = Self { stage, actor, capabilities, left: TreeListing::default(), _disk: disk };
        trapped.create("web", "box", seal)?;
        for number in 1..=2 {
            trapped.stage.ok(&["start", "web", "--detach"])?;
            trapped.stage.ok(&["exec", "web", ACTOR, "stage", &number.to_string()])?;
            trapped.left = trapped.stage.seen_in("web")?;
            trapped.stage.ok(&["stop", "web"])?;
            trapped.stage.quiet()?;
        }
        Ok(trapped)
    }

    /// With all traps but those that keep a layer from being sealed.
    pub(crate) fn sealed() -> Result<Self> {
        let mut capabilities = traps::capabilities();
        capabilities.retain(|capability| !capability.contains("IMMUTABLE"));
        Self::new("auto", capabilities)
    }

    pub(crate) fn create(&self, name: &str, image: &str, seal: &str) -> Result<()> {
        let volume = format!("{}:{ACTOR}:ro", self.actor);
        let mut args = vec!["create", name, "--image", image, "--volume", &volume, "--seal", seal];
        for capability in &self.capabilities {
            args.extend(["--cap-add", capability]);
        }
        args.extend(["--", "sh", "-c", IDLE]);
        self.stage.ok(&args).map(drop)
    }

    /// Exports the container, and brings the image back as that of a new container, whose tree is returned.
    pub(crate) fn regrow(&self, name: &str, options: &[&str]) -> Result<(Value, TreeListing)> {
        let directory = self.stage.path(name);
        let destination = format!("oci:{}", directory.display());
        let said: Value = self.stage.json(&[&["export", "web", &destination], options].concat())?;
        self.stage.import_from(&destination, name)?;
        self.create(name, name, "never")?;
        self.stage.ok(&["start", name, "--detach"])?;
        let found = self.stage.seen_in(name)?;
        self.stage.ok(&["stop", name])?;
        Ok((said, found))
    }
}

/// Returns a path of a report, which is given as bytes too where it is not text.
pub(crate) fn path_of(value: &Value) -> Vec<u8> {
    match value["path_bytes"].as_array() {
        Some(bytes) => bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect(),
        None => value["path"].as_str().unwrap_or_default().as_bytes().to_vec(),
    }
}

/// Returns whether a difference is named by the report.
pub(crate) fn is_named(said: &Value, difference: &Difference) -> bool {
    let path = [b"/", difference.path.0.as_slice()].concat();
    let paths = |loss: &str| -> Vec<Vec<u8>> {
        let list = said["not_said"]["entries"][loss]["paths"].as_array().cloned().unwrap_or_default();
        list.iter().map(path_of).collect()
    };
    let has = |loss: &str| paths(loss).contains(&path);
    let is_below =
        |loss: &str| paths(loss).iter().any(|top| path == *top || path.starts_with(&[top.as_slice(), b"/"].concat()));
    match &difference.field {
        Field::Missing => has("socket") || is_below("whiteout_name") || is_below("path_too_long"),
        Field::Flags => has("inode_flags"),
        Field::Xattr(_) => has("union_attribute") || has("attribute"),
        Field::Holes => has("holes"),
        Field::Extra
        | Field::Kind
        | Field::Mode
        | Field::Uid
        | Field::Gid
        | Field::Size
        | Field::Mtime
        | Field::Content
        | Field::Target
        | Field::Device
        | Field::Links => false,
    }
}

/// Fails where a report is cut short, since what is not listed could not be told from what is not named.
pub(crate) fn ensure_complete(said: &Value) -> Result<()> {
    for (loss, lost) in said["not_said"]["entries"].as_object().into_iter().flatten() {
        let listed = lost["paths"].as_array().map_or(0, Vec::len) as u64;
        ensure!(lost["count"].as_u64() == Some(listed), "{loss}: {lost}");
    }
    Ok(())
}

/// Another engine with a store of its own, which is gone with this.
pub(crate) struct Podman<'a> {
    root: PathBuf,
    driver: &'a str,
    /// It takes no longer path for what it runs.
    run_root: TempDir,
}

impl<'a> Podman<'a> {
    pub(crate) fn new(root: PathBuf, driver: &'a str) -> Result<Self> {
        Ok(Self { root, driver, run_root: TempDir::with_prefix_in("podman-", "/tmp")? })
    }

    pub(crate) fn ok(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("podman");
        command.arg("--root").arg(&self.root).arg("--runroot").arg(self.run_root.path());
        command.args([
            "--storage-driver",
            self.driver,
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "file",
            "--runtime",
            "runc",
        ]);
        let done = run(command.args(args)).context("podman (Debian package podman)")?;
        Ok(String::from_utf8(done.stdout)?)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // Mounts and all; what cannot be removed shows when the directory is.
        drop(self.ok(&["image", "unmount", "--all"]));
        drop(self.ok(&["system", "reset", "--force"]));
    }
}
