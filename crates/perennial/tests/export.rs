//! Generations as OCI images: what comes back from them, and that other engines run them.

#![expect(clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod stage;

use anyhow::{Context as _, Result, ensure};
use perennial_testkit::host::{run, wait_until};
use perennial_testkit::loopfs::{FsKind, LoopFs};
use perennial_testkit::traps;
use perennial_testkit::tree::{Difference, Field, TreeListing, ensure_equal_but};
use serde_json::Value;
use stage::trapped::{Podman, Trapped, ensure_complete, is_named, path_of};
use stage::{IDLE, SOON, Stage, write};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Returns whether a difference in another engine is named by the report. The time of the root is when it was unpacked.
fn is_named_for_others(said: &Value, difference: &Difference) -> bool {
    let has = |loss: &str| {
        let list = said["not_said"]["entries"][loss]["paths"].as_array().cloned().unwrap_or_default();
        list.iter().any(|listed| path_of(listed) == [b"/", difference.path.0.as_slice()].concat())
    };
    let is_root = difference.path.0.is_empty();
    match &difference.field {
        Field::Mtime => is_root || has("early_time"),
        Field::Mode | Field::Uid | Field::Gid => is_root && has("root"),
        Field::Xattr(_) if is_root => has("root"),
        Field::Xattr(name) if name.0 == b"security.selinux" => has("label"),
        Field::Xattr(_) => has("empty_attribute") || is_named(said, difference),
        Field::Missing
        | Field::Extra
        | Field::Kind
        | Field::Size
        | Field::Content
        | Field::Target
        | Field::Device
        | Field::Links
        | Field::Holes
        | Field::Flags => is_named(said, difference),
    }
}

/// What the options of a case are, and how many layers it has.
const WAYS: [(&str, &[&str], usize); 4] = [
    ("layered", &[], 3),
    ("flat", &["--flatten"], 1),
    ("gzip", &["--compress", "gzip"], 3),
    ("plain", &["--flatten", "--compress", "none"], 1),
];

fn everything_returns(trapped: &Trapped, ways: &[(&str, &[&str], usize)]) -> Result<()> {
    for (name, options, layers) in ways {
        let (said, found) = trapped.regrow(name, options)?;
        ensure_complete(&said)?;
        ensure_equal_but(&trapped.left, &found, &|difference| is_named(&said, difference))
            .with_context(|| format!("{name}: {:#}", said["not_said"]))?;
        let found = said["layers"].as_array().map_or(0, Vec::len);
        ensure!(found == *layers, "{name} has {found} layers");
    }
    Ok(())
}

#[test]
fn what_is_exported_from_directories_returns_but_for_what_the_report_names() -> Result<()> {
    everything_returns(&Trapped::new("never", traps::capabilities())?, &WAYS)
}

#[test]
fn what_is_exported_from_sealed_layers_returns_but_for_what_the_report_names() -> Result<()> {
    let trapped = Trapped::sealed()?;
    let said = trapped.stage.ok(&["seal"])?.out();
    // Inode flags keep the older layer a directory, so both forms stand in one stack.
    let forms = trapped.stage.generation("web", 2)?;
    ensure!(forms["sealed_layers"] == serde_json::json!([true, false]), "{said}\n{forms:#}");
    everything_returns(&trapped, &WAYS)
}

#[test]
fn layers_that_meant_nothing_alone_are_resolved_and_exported() -> Result<()> {
    let trapped = Trapped::new("auto", traps::capabilities())?;
    everything_returns(&trapped, &WAYS[..2])
}

#[test]
fn podman_sees_the_same_tree_but_for_what_the_report_names() -> Result<()> {
    let trapped = Trapped::sealed()?;
    // Its other driver copies layers with losses of its own.
    let driver = "overlay";
    for (number, options) in [&[][..], &["--flatten", "--compress", "gzip"]].into_iter().enumerate() {
        let archive = trapped.stage.path(&format!("archive-{number}.tar"));
        let destination = format!("oci-archive:{}", archive.display());
        let said: Value = trapped.stage.json(&[&["export", "web", &destination], options].concat())?;
        let podman = Podman::new(trapped.stage.path(&format!("podman-{number}")), driver)?;
        podman.ok(&["load", "--input", archive.to_str().context("UTF-8")?])?;
        let mounted = podman.ok(&["image", "mount", "localhost/web:2"])?;
        let found = TreeListing::of(PathBuf::from(mounted.trim()))?;
        ensure_equal_but(&trapped.left, &found, &|difference| is_named_for_others(&said, difference))
            .with_context(|| format!("{driver} {options:?}"))?;
    }
    Ok(())
}

/// A container whose settings and files the other engines must show.
const SHOW: &str =
    "id -u; pwd; echo $NAME; cat /etc/own; ls /srv; ls /etc/os-release || echo gone; stat -c '%a %u:%g %h' /srv/file";
const SHOWN: &str = "1000\n/srv\nthe container's\nown\na\nfile\nlink\ngone\n6750 1000:2000 2\n";

/// Exports such a container to an archive under a tag, and returns the archive.
fn exported(stage: &Stage, tag: &str, options: &[&str]) -> Result<PathBuf> {
    if !stage.run(&["inspect", "Web"])?.status.success() {
        let settings = ["--user", "1000", "--workdir", "/srv", "--env", "NAME=the container's", "--hostname", "h"];
        stage.ok(&[&["create", "Web", "--image", "box"], &settings[..], &["--", "sh", "-c", SHOW]].concat())?;
        stage.ok(&["start", "Web", "--detach", "--", "sh", "-c", IDLE])?;
        let change = "mkdir -p /srv/a; echo own >/etc/own; echo 1 >/srv/file; ln /srv/file /srv/link; rm /etc/os-release; \
                      chown -R 1000:2000 /srv; chmod 6750 /srv/file";
        stage.ok(&["exec", "--user", "0", "Web", "sh", "-c", change])?;
        stage.ok(&["stop", "Web"])?;
        stage.quiet()?;
    }
    let archive = stage.path(&format!("{tag}.tar"));
    let destination = format!("oci-archive:{}:localhost/web:{tag}", archive.display());
    let said = stage.ok(&[&["export", "Web", &destination], options].concat())?.out();
    ensure!(said.contains("settings of the container: hostname"), "{said}");
    Ok(archive)
}

/// The exported image runs unchanged: command, user, environment and directory are the container's.
#[test]
fn podman_runs_what_is_exported() -> Result<()> {
    let stage = Stage::new()?;
    for (tag, options) in [("layered", &[][..]), ("flat", &["--flatten"])] {
        let archive = exported(&stage, tag, options)?;
        let podman = Podman::new(stage.path(tag), "vfs")?;
        podman.ok(&["load", "--input", archive.to_str().context("UTF-8")?])?;
        let image = format!("localhost/web:{tag}");
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let said = podman.ok(&[&["run", "--rm", "--network", "none"], &limits[..], &[&image]].concat())?;
        ensure!(said == SHOWN, "{tag}: {said}");
    }
    Ok(())
}

/// A containerd of its own, which ends with this.
struct Containerd {
    dir: TempDir,
    server: Child,
}

impl Containerd {
    fn start() -> Result<Self> {
        let dir = TempDir::with_prefix_in("containerd-", "/tmp")?;
        let at = dir.path().display();
        let config = format!(
            "version = 2\nroot = \"{at}/root\"\nstate = \"{at}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{at}/socket\"\n"
        );
        write(dir.path().join("config.toml"), config)?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(dir.path().join("config.toml")).stdout(Stdio::null()).stderr(Stdio::null());
        let server = command.spawn().context("containerd (Debian package containerd)")?;
        let started = Self { dir, server };
        wait_until("containerd answers", SOON, || Ok(started.ok(&["version"]).is_ok()))?;
        Ok(started)
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let done = run(Command::new("ctr").arg("--address").arg(self.dir.path().join("socket")).args(args))?;
        Ok(String::from_utf8(done.stdout)?)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It ends at once and leaves nothing mounted: its snapshots are plain directories, its containers have ended.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

#[test]
fn containerd_runs_what_is_exported() -> Result<()> {
    let stage = Stage::new()?;
    let containerd = Containerd::start()?;
    for (tag, options) in [("layered", &[][..]), ("flat", &["--flatten", "--compress", "gzip"])] {
        let archive = exported(&stage, tag, options)?;
        containerd.ok(&["images", "import", "--snapshotter", "native", archive.to_str().context("UTF-8")?])?;
        let image = format!("localhost/web:{tag}");
        let runtime = ["--snapshotter", "native", "--runc-binary", "runc"];
        let said = containerd.ok(&[&["run", "--rm"], &runtime[..], &[&image, tag]].concat())?;
        ensure!(said == SHOWN, "{tag}: {said}");
    }
    Ok(())
}

/// Nothing half-written stays, and nothing of somebody else's is touched.
#[test]
fn destinations_that_cannot_be_used_are_left_as_they_are() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "head -c 20000000 /dev/urandom >/noise")?;
    stage.quiet()?;
    let directory = stage.path("other");
    fs::create_dir(&directory)?;
    write(directory.join("mine"), "mine")?;
    write(stage.path("file"), "mine")?;
    let at = |form: &str, name: &str| format!("{form}:{}", stage.path(name).display());
    for (code, generation, destination, named) in [
        (4, "web", at("oci", "other"), "without an image layout"),
        (4, "web", at("oci", "file"), "a file"),
        (4, "web", at("oci-archive", "file"), "a file"),
        (4, "web", at("oci-archive", "other"), "other"),
        (3, "web", at("oci", "missing/layout"), "missing"),
        (3, "web@7", at("oci", "new"), "7"),
        (3, "none", at("oci", "new"), "none"),
        (2, "web", at("docker-archive", "new"), "docker-archive"),
        (2, "web", at("oci", "new:bad tag"), "bad tag"),
    ] {
        stage.refused_unchanged(&["export", generation, &destination], code, &[named])?;
    }
    let disk = LoopFs::new(FsKind::Ext4, 8 << 20)?;
    for form in ["oci", "oci-archive"] {
        let destination = format!("{form}:{}", disk.path().join("new").display());
        let error = stage.refused_with(&["export", "web", &destination], 1, &["free some space"])?;
        ensure!(error.contains("No space"), "{error}");
        let left = fs::read_dir(disk.path())?.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>();
        ensure!(left == ["lost+found"], "{left:?}");
    }
    ensure!(fs::read(directory.join("mine"))? == b"mine" && fs::read_dir(&directory)?.count() == 1);
    // A layout gets more images; a name goes to the newest.
    for (tag, images) in [("one", 1), ("two", 2), ("one", 2)] {
        stage.ok(&["export", "web", &format!("{}:{tag}", at("oci", "layout"))])?;
        let index: Value = serde_json::from_slice(&fs::read(stage.path("layout/index.json"))?)?;
        ensure!(index["manifests"].as_array().map_or(0, Vec::len) == images, "{index:#}");
    }
    let error = stage.refused_with(&["image", "import", &at("oci", "layout"), "x"], 1, &["one", "two"])?;
    ensure!(error.contains("several images"), "{error}");
    stage.import_from(&format!("{}:two", at("oci", "layout")), "x")?;
    Ok(())
}
