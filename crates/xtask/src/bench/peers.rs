//! How each tool starts a run and makes its changes permanent.
//!
//! | peer | start | exit |
//! |---|---|---|
//! | Perennial | `perennial run` | the same command returns once the generation is committed |
//! | bare runtime | `runc run` on an overlay that is already mounted | `runc` returns, the overlay is unmounted, which flushes it |
//! | bare runtime, same bundle | the same with the bundle Perennial writes: its filter of system calls, its capabilities, its mounts | as above |
//! | podman, new container | `podman run` of the image the previous session was committed to | `podman run` returns, `podman commit` |
//! | podman, kept container | `podman start` of the one container that holds everything | it returns, `podman commit` |

use super::command;
use super::session::{Bench, Times};
use crate::files;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What an environment is made from, the same for all peers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ground<'paths> {
    /// The image: a root file system with busybox.
    pub(super) rootfs: &'paths Path,
    /// A directory that holds the tree as `state`.
    pub(super) tree: &'paths Path,
    /// A directory for what the peer keeps.
    pub(super) home: &'paths Path,
}

/// Shell commands that fill a new container; `tree.tar` lies in the benchmark's directory.
pub(super) const FILL_SCRIPT: &str = "cd / && /bin/busybox tar xf /bench/tree.tar\n";

/// A tool with one environment.
pub(super) trait Peer {
    /// Runs one session and saves what it changed.
    fn session(&mut self, bench: &Bench, script: &str) -> anyhow::Result<Times>;

    /// Takes away what the session left and the next does not need; not measured.
    fn clear(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The tools by name, in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Tool {
    Perennial,
    BareRuntime,
    SameBundle,
    PodmanNew,
    PodmanKept,
}

impl Tool {
    /// Returns the name as the report shows it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Perennial => "Perennial",
            Self::BareRuntime => "bare runtime",
            Self::SameBundle => "bare runtime, same bundle",
            Self::PodmanNew => "podman, new container",
            Self::PodmanKept => "podman, kept container",
        }
    }

    /// Makes the environment and fills it.
    pub(super) fn prepare(self, program: &Path, bench: &Bench, ground: Ground<'_>) -> anyhow::Result<Box<dyn Peer>> {
        match self {
            Self::Perennial => Ok(Box::new(Perennial::prepare(program, bench, ground)?)),
            Self::BareRuntime => Ok(Box::new(BareRuntime::prepare(bench, ground)?)),
            Self::SameBundle => Ok(Box::new(BareRuntime::prepare_same(program, bench, ground)?)),
            Self::PodmanNew => Ok(Box::new(PodmanNew::prepare(bench, ground)?)),
            Self::PodmanKept => Ok(Box::new(PodmanKept::prepare(bench, ground)?)),
        }
    }
}

/// Returns `source:/bench` for `--volume`.
fn volume(bench: &Bench) -> OsString {
    let mut text = bench.directory().as_os_str().to_owned();
    text.push(":/bench");
    text
}

struct Perennial {
    program: PathBuf,
    root: PathBuf,
}

impl Perennial {
    fn prepare(program: &Path, bench: &Bench, ground: Ground<'_>) -> anyhow::Result<Self> {
        let peer = Self { program: program.to_owned(), root: ground.home.join("perennial") };
        let mut source = OsString::from("rootfs:");
        source.push(ground.rootfs);
        command::output_of(peer.command(&["image", "import"]).arg(source).arg("bench"))?;
        let mut fill = peer.command(&["run", "bench", "--image", "bench", "--volume"]);
        fill.arg(volume(bench)).arg("--").args(Bench::COMMAND);
        bench.run(FILL_SCRIPT, fill, || Ok(()))?;
        Ok(peer)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(arguments);
        command
    }

    /// Returns the bundle's configuration that a run of the environment gets, and the directory of that run.
    fn bundle(&self) -> anyhow::Result<(String, PathBuf)> {
        let idle = ["run", "bench", "--detach", "--", "/bin/busybox", "sleep", "600"];
        command::output_of(&mut self.command(&idle))?;
        let found = command::output_of(&mut self.command(&["--json", "inspect", "bench"])).and_then(|shown| {
            let shown: Value = serde_json::from_str(&shown).context("cannot read what inspect printed")?;
            let merged = shown.pointer("/run/merged").and_then(Value::as_str).context("inspect shows no run")?;
            let run = Path::new(merged).parent().context("the run has no directory")?.to_owned();
            let path = run.join("bundle/config.json");
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Ok((text, run))
        });
        command::output_of(&mut self.command(&["stop", "bench", "--time", "0"]))?;
        found
    }
}

impl Peer for Perennial {
    fn session(&mut self, bench: &Bench, script: &str) -> anyhow::Result<Times> {
        let mut request = self.command(&["run", "bench", "--"]);
        request.args(Bench::COMMAND);
        bench.run(script, request, || Ok(()))
    }
}

/// `runc` on a root that is mounted before the request, in nothing but the time it takes by itself.
struct BareRuntime {
    lower: OsString,
    home: PathBuf,
}

impl BareRuntime {
    fn prepare(bench: &Bench, ground: Ground<'_>) -> anyhow::Result<Self> {
        let home = ground.home.join("bare");
        std::fs::create_dir_all(home.join("merged")).with_context(|| format!("cannot create {}", home.display()))?;
        let mut spec = Command::new("runc");
        command::output_of(spec.arg("spec").arg("--bundle").arg(&home))?;
        let path = home.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let config = bundle(&text, &home.join("merged"), bench.directory())?;
        Self::with_bundle(home, &config, ground)
    }

    /// The runtime with the bundle of Perennial's own run, whose environment has been made in the same place.
    fn prepare_same(program: &Path, bench: &Bench, ground: Ground<'_>) -> anyhow::Result<Self> {
        let home = ground.home.join("same");
        std::fs::create_dir_all(home.join("merged")).with_context(|| format!("cannot create {}", home.display()))?;
        let perennial = Perennial { program: program.to_owned(), root: ground.home.join("perennial") };
        let (text, run) = perennial.bundle()?;
        let config = same_bundle(&text, &run, &home)?;
        // The run's own file is gone with it; its content does not matter here.
        files::write_whole(&home.join("resolv.conf"), "")?;
        anyhow::ensure!(
            config.contains(&*bench.directory().to_string_lossy()),
            "the bundle lacks the benchmark's volume"
        );
        Self::with_bundle(home, &config, ground)
    }

    fn with_bundle(home: PathBuf, config: &str, ground: Ground<'_>) -> anyhow::Result<Self> {
        files::write_whole(&home.join("config.json"), config)?;
        let mut lower = ground.tree.as_os_str().to_owned();
        lower.push(":");
        lower.push(ground.rootfs);
        let mut peer = Self { lower, home };
        peer.clear()?;
        Ok(peer)
    }

    fn merged(&self) -> PathBuf {
        self.home.join("merged")
    }

    fn mount(&self) -> anyhow::Result<()> {
        for name in ["upper", "work"] {
            let path = self.home.join(name);
            std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        let mut options = OsString::from("lowerdir=");
        options.push(&self.lower);
        for (name, directory) in [(",upperdir=", "upper"), (",workdir=", "work")] {
            options.push(name);
            options.push(self.home.join(directory));
        }
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o"]).arg(options).arg(self.merged());
        command::output_of(&mut mount).map(drop)
    }
}

impl Peer for BareRuntime {
    fn session(&mut self, bench: &Bench, script: &str) -> anyhow::Result<Times> {
        self.mount()?;
        let mut request = Command::new("runc");
        request.arg("--root").arg(self.home.join("runc")).args(["run", "--bundle"]).arg(&self.home);
        request.arg(format!("perennial-bench-{}", std::process::id()));
        let unmount =
            || rustix::mount::unmount(self.merged(), rustix::mount::UnmountFlags::empty()).context("cannot unmount");
        let times = bench.run(script, request, unmount);
        if times.is_err() {
            // The mount would outlive the benchmark; that it may be gone already is no error.
            rustix::mount::unmount(self.merged(), rustix::mount::UnmountFlags::DETACH).ok();
        }
        times
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        for name in ["upper", "work"] {
            match std::fs::remove_dir_all(self.home.join(name)) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot delete {name}")),
            }
        }
        Ok(())
    }
}

/// Turns the configuration that `runc spec` writes into the benchmark's.
fn bundle(spec: &str, merged: &Path, bench: &Path) -> anyhow::Result<String> {
    let mut config: Value = serde_json::from_str(spec).context("cannot read what runc spec wrote")?;
    *part(&mut config, "/process/terminal")? = false.into();
    *part(&mut config, "/process/args")? = Bench::COMMAND.as_slice().into();
    *part(&mut config, "/root")? = json!({"path": merged.to_string_lossy(), "readonly": false});
    let source = bench.to_string_lossy();
    let mount = json!({"destination": "/bench", "source": source, "type": "bind", "options": ["rbind", "rw"]});
    part(&mut config, "/mounts")?.as_array_mut().context("runc spec wrote no list of mounts")?.push(mount);
    // The network of the host, as for the other tools.
    let namespaces = part(&mut config, "/linux/namespaces")?.as_array_mut();
    let namespaces = namespaces.context("runc spec wrote no list of namespaces")?;
    namespaces.retain(|namespace| namespace.get("type").is_none_or(|kind| kind != "network"));
    Ok(config.to_string())
}

/// Turns the configuration of Perennial's run in the directory `run` into one of the same content for `home`.
fn same_bundle(text: &str, run: &Path, home: &Path) -> anyhow::Result<String> {
    let moved = text.replace(&*run.to_string_lossy(), &home.to_string_lossy());
    let mut config: Value = serde_json::from_str(&moved).context("cannot read the bundle")?;
    *part(&mut config, "/process/args")? = Bench::COMMAND.as_slice().into();
    *part(&mut config, "/linux/cgroupsPath")? = format!("/perennial-bench-{}", std::process::id()).into();
    part(&mut config, "/linux/seccomp")?;
    Ok(config.to_string())
}

fn part<'config>(config: &'config mut Value, pointer: &str) -> anyhow::Result<&'config mut Value> {
    config.pointer_mut(pointer).with_context(|| format!("the bundle has no {pointer}"))
}

/// A store of podman with the image `bench:0` in it.
struct Podman {
    home: PathBuf,
    /// What podman keeps of running containers; it refuses a path of more than 50 characters.
    run: tempfile::TempDir,
}

impl Podman {
    fn prepare(home: PathBuf, ground: Ground<'_>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
        let archive = home.join("rootfs.tar");
        command::output_of(Command::new("tar").arg("-C").arg(ground.rootfs).arg("-cf").arg(&archive).arg("."))?;
        let podman = Self { home, run: tempfile::tempdir().context("cannot create a directory for podman")? };
        command::output_of(podman.command(&["import", "--quiet"]).arg(&archive).arg("bench:0"))?;
        Ok(podman)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.home.join("root")).arg("--runroot").arg(self.run.path());
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
        command.args(arguments);
        command
    }

    /// Returns `podman run` of an image as the container `bench`.
    fn run(&self, bench: &Bench, image: &str) -> Command {
        // Limits that even a root without CAP_SYS_RESOURCE may set.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let mut command = self.command(&["run", "--name", "bench", "--network", "host"]);
        command.args(limits).arg("--volume").arg(volume(bench)).arg(image).args(Bench::COMMAND);
        command
    }

    fn commit(&self, image: &str) -> anyhow::Result<()> {
        command::output_of(&mut self.command(&["commit", "--quiet", "bench", image])).map(drop)
    }
}

/// Each session runs in a new container of the image that the previous one was committed to.
struct PodmanNew {
    podman: Podman,
    sessions: u64,
}

impl PodmanNew {
    fn prepare(bench: &Bench, ground: Ground<'_>) -> anyhow::Result<Self> {
        let mut peer = Self { podman: Podman::prepare(ground.home.join("podman-new"), ground)?, sessions: 0 };
        peer.session(bench, FILL_SCRIPT)?;
        peer.clear()?;
        Ok(peer)
    }
}

impl Peer for PodmanNew {
    fn session(&mut self, bench: &Bench, script: &str) -> anyhow::Result<Times> {
        let request = self.podman.run(bench, &format!("bench:{}", self.sessions));
        self.sessions += 1;
        bench.run(script, request, || self.podman.commit(&format!("bench:{}", self.sessions)))
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        command::output_of(&mut self.podman.command(&["rm", "bench"])).map(drop)
    }
}

/// All sessions run in one container, whose whole upper directory each commit saves.
struct PodmanKept {
    podman: Podman,
}

impl PodmanKept {
    fn prepare(bench: &Bench, ground: Ground<'_>) -> anyhow::Result<Self> {
        let podman = Podman::prepare(ground.home.join("podman-kept"), ground)?;
        bench.run(FILL_SCRIPT, podman.run(bench, "bench:0"), || Ok(()))?;
        Ok(Self { podman })
    }
}

impl Peer for PodmanKept {
    fn session(&mut self, bench: &Bench, script: &str) -> anyhow::Result<Times> {
        let request = self.podman.command(&["start", "--attach", "bench"]);
        bench.run(script, request, || self.podman.commit("bench:saved"))
    }

    fn clear(&mut self) -> anyhow::Result<()> {
        command::output_of(&mut self.podman.command(&["rmi", "bench:saved"])).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_runs_the_session_on_the_mounted_root_with_the_network_of_the_host() {
        let spec = r#"{"process": {"terminal": true, "args": ["sh"]}, "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}]}}"#;
        let config = bundle(spec, Path::new("/m"), Path::new("/b")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(
            config,
            json!({"process": {"terminal": false, "args": ["/bin/sh", "/bench/session"]},
                "root": {"path": "/m", "readonly": false},
                "mounts": [{"destination": "/proc"},
                    {"destination": "/bench", "source": "/b", "type": "bind", "options": ["rbind", "rw"]}],
                "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}]}})
        );
        assert!(bundle("{}", Path::new("/m"), Path::new("/b")).is_err());
    }

    #[test]
    fn the_same_bundle_differs_in_place_and_command_only() {
        let spec = r#"{"process": {"args": ["sleep"]}, "root": {"path": "/r/runs/1/merged"},
            "mounts": [{"source": "/r/runs/1/resolv.conf"}], "linux": {"cgroupsPath": "/p/1", "seccomp": {"rules": 1}}}"#;
        let config = same_bundle(spec, Path::new("/r/runs/1"), Path::new("/h")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["linux"]["cgroupsPath"].take();
        assert_eq!(
            config,
            json!({"process": {"args": ["/bin/sh", "/bench/session"]}, "root": {"path": "/h/merged"},
                "mounts": [{"source": "/h/resolv.conf"}], "linux": {"cgroupsPath": null, "seccomp": {"rules": 1}}})
        );
        assert!(same_bundle("{}", Path::new("/r"), Path::new("/h")).is_err());
    }
}
