//! Generations as OCI images: what comes back from them, and that other engines run them.

#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_store::tree::EntryPath;
use perennial_testkit::actor::{self, ACTOR};
use perennial_testkit::host::run;
use perennial_testkit::image;
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::traps::{self, Outcome};
use perennial_testkit::tree::{Difference, Field, TreeListing, ensure_equal_but};
use serde_json::Value;
use stage::{IDLE, Stage, names, texts, write};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of the file systems that the tests run on; the files are sparse.
const DISK_BYTES: u64 = 2 << 30;

/// A container with every trap in two runs, and what its last run has left.
struct Trapped {
    stage: Stage,
    actor: String,
    left: TreeListing,
    _disk: LoopFs,
}

impl Trapped {
    fn new(seal: &str) -> Result<Self> {
        let disk = LoopFs::new(FsKind::Ext4, DISK_BYTES)?;
        let stage = Stage::empty_in(&disk.path())?;
        let rootfs = stage.rootfs("rootfs")?;
        let actor = actor::trap_actor()?;
        image::add_program(&rootfs, &actor, ACTOR)?;
        write(rootfs.join(ACTOR.trim_start_matches('/')), "")?;
        for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
            write(rootfs.join(name), "")?;
        }
        let performed = traps::build_lower(&rootfs)?;
        ensure!(performed.iter().all(|one| one.outcome == Outcome::Done), "{performed:?}");
        stage.import(&rootfs, "box")?;
        fs::remove_dir_all(&rootfs)?;
        let actor = actor.display().to_string();
        let mut trapped = Self { stage, actor, left: TreeListing::default(), _disk: disk };
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

    fn create(&self, name: &str, image: &str, seal: &str) -> Result<()> {
        let volume = format!("{}:{ACTOR}:ro", self.actor);
        let mut args = vec!["create", name, "--image", image, "--volume", &volume, "--seal", seal];
        for capability in traps::capabilities() {
            args.extend(["--cap-add", capability]);
        }
        args.extend(["--", "sh", "-c", IDLE]);
        self.stage.ok(&args).map(drop)
    }

    /// Exports the container, and brings the image back as that of a new container, whose tree is returned.
    fn regrow(&self, name: &str, options: &[&str]) -> Result<(Value, TreeListing)> {
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

/// Returns whether a difference is named by the report.
fn is_named(said: &Value, difference: &Difference) -> bool {
    let path = format!("/{}", EntryPath::from_bytes(difference.path.0.clone()));
    let lists = |loss: &str| texts(said, &format!("/not_said/entries/{loss}/paths")).unwrap_or_default();
    let has = |loss: &str| lists(loss).contains(&path);
    let is_below = |loss: &str| lists(loss).iter().any(|top| path == *top || path.starts_with(&format!("{top}/")));
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
fn ensure_complete(said: &Value) -> Result<()> {
    for (loss, lost) in said["not_said"]["entries"].as_object().into_iter().flatten() {
        let listed = lost["paths"].as_array().map_or(0, Vec::len) as u64;
        ensure!(lost["count"].as_u64() == Some(listed), "{loss}: {lost}");
    }
    Ok(())
}

fn everything_returns(seal: &str) -> Result<()> {
    let trapped = Trapped::new(seal)?;
    for (name, options) in [
        ("layered", &[][..]),
        ("flat", &["--flatten"]),
        ("gzip", &["--compress", "gzip"]),
        ("plain", &["--flatten", "--compress", "none"]),
    ] {
        let (said, found) = trapped.regrow(name, options)?;
        ensure_complete(&said)?;
        ensure_equal_but(&trapped.left, &found, &|difference| is_named(&said, difference))
            .with_context(|| format!("{name}, --seal {seal}: {:#}", said["not_said"]))?;
        let layers = said["layers"].as_array().map_or(0, Vec::len);
        let expected = if options.contains(&"--flatten") { 1 } else { 3 };
        ensure!(layers == expected, "{name} has {layers} layers");
    }
    Ok(())
}

#[test]
fn what_is_exported_from_directories_returns_but_for_what_the_report_names() -> Result<()> {
    everything_returns("never")
}

#[test]
fn what_is_exported_from_sealed_layers_returns_but_for_what_the_report_names() -> Result<()> {
    everything_returns("auto")
}
