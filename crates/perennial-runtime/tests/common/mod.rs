//! A real container on a tiny root made of busybox, with everything that a test may change beforehand.
#![allow(dead_code, clippy::allow_attributes, reason = "each test program uses another part")]

use perennial_core::image::ImageConfig;
use perennial_core::process::{Process, ProcessFacts, ResolvedUser, resolve, user_of};
use perennial_core::spec::{ContainerSpec, HealthCheck};
use perennial_runtime::bundle::{self, BundlePlan, HostFacts, NetworkPlan};
use perennial_runtime::cgroup::{self, Cgroup, CgroupVersion};
use perennial_runtime::logs::{LogConfig, LogReader, ReadOptions};
use perennial_runtime::oci::{OciRuntime, StartFailure};
use perennial_runtime::supervise::{ExitStatus, HealthPlan, Session, SessionConfig, SessionEvent};
use rustix::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A container to be; removed with everything it left when dropped.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub spec: ContainerSpec,
    pub runtime: OciRuntime,
    pub network: NetworkPlan,
    pub log_bytes_max: u64,
    pub first_client: Option<OwnedFd>,
    pub health: Option<HealthCheck>,
    pub resolv_conf: Option<PathBuf>,
    pub use_init: bool,
    pub stop_timeout: Duration,
}

/// What a run gave.
pub struct Ran {
    pub status: ExitStatus,
    pub events: Vec<SessionEvent>,
    pub stdout: String,
    pub stderr: String,
}

pub fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "these tests run real containers and need root");
}

pub fn fixture(command: &[&str]) -> Fixture {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let runtime = OciRuntime::by_path("runc", &dir.path().join("oci")).unwrap();
    make_root(&dir.path().join("rootfs"));
    std::fs::create_dir(dir.path().join("bundle")).unwrap();
    let spec = ContainerSpec { command: command.iter().map(|arg| (*arg).to_owned()).collect(), ..Default::default() };
    Fixture {
        dir,
        id,
        spec,
        runtime,
        network: NetworkPlan::Host,
        log_bytes_max: 1 << 20,
        first_client: None,
        health: None,
        resolv_conf: None,
        use_init: false,
        stop_timeout: Duration::from_secs(10),
    }
}

pub fn shell(script: &str) -> Fixture {
    fixture(&["/bin/sh", "-c", script])
}

fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/alice"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/usr/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    let list = std::process::Command::new("/usr/bin/busybox").arg("--list").output().unwrap();
    for name in String::from_utf8(list.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    put(&root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n");
    put(&root.join("etc/group"), "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\naudio:x:29:bob,alice\n");
}

pub fn put(path: &Path, text: &str) {
    use std::io::Write as _;
    std::fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

impl Fixture {
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    pub fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    pub fn control(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub fn log(&self) -> LogConfig {
        LogConfig { path: self.dir.path().join("log"), bytes_max: self.log_bytes_max, files_max: 3 }
    }

    pub fn cgroups_path(&self) -> String {
        format!("/perennial-test/{}", self.id)
    }

    pub fn process(&self) -> Process {
        let image = ImageConfig::default();
        let user_spec = user_of(&self.spec, &image).unwrap();
        let user: ResolvedUser = perennial_runtime::user::lookup(&self.root(), &user_spec).unwrap();
        let facts = ProcessFacts { user, hostname: "box".to_owned() };
        resolve(&self.spec, &image, None, &facts).unwrap()
    }

    /// Opens the session and writes the bundle.
    pub fn open(&mut self) -> Session {
        let process = self.process();
        let health = self.health.take().map(|check| {
            let mut process = process.clone();
            process.args = check.command.clone();
            process.tty = false;
            HealthPlan { check, process }
        });
        let mut session = Session::open(SessionConfig {
            tty: self.spec.tty,
            interactive: self.spec.interactive,
            log: self.log(),
            control_socket: self.control(),
            first_client: self.first_client.take(),
            health,
            stop_signal: process.stop_signal,
            stop_timeout: self.stop_timeout,
        })
        .unwrap();
        let init = self.use_init.then(|| bundle::find_init().unwrap());
        let root = self.root();
        let cgroups_path = self.cgroups_path();
        let plan = BundlePlan {
            process: &process,
            rootfs: &root,
            hostname: "box",
            cgroups_path: &cgroups_path,
            limits: &self.spec.limits,
            host: HostFacts {
                swap_accounting: cgroup::has_swap_accounting(),
                cgroup_v2: cgroup::version() == CgroupVersion::V2,
            },
            network: self.network.clone(),
            volumes: &self.spec.volumes,
            resolv_conf: self.resolv_conf.as_deref(),
            init: init.as_ref(),
            console_size: session.console_size(),
        };
        bundle::write(&plan, &self.bundle()).unwrap();
        session
    }

    pub fn start(&mut self) -> Result<(Session, i32), (Session, StartFailure)> {
        let mut session = self.open();
        match session.start(&self.runtime, &self.id, &self.bundle(), &self.cgroups_path()) {
            Ok(started) => Ok((session, started.pid)),
            Err(failure) => Err((session, failure)),
        }
    }

    pub fn wait(&self, mut session: Session) -> Ran {
        let mut events = Vec::new();
        let status = session.wait(&mut |event| events.push(event)).unwrap();
        let (stdout, stderr) = self.output();
        session.finish(Ok(status.code));
        Ran { status, events, stdout, stderr }
    }

    pub fn run(&mut self) -> Ran {
        let (session, _) = self.start().map_err(|(_, failure)| failure).unwrap();
        self.wait(session)
    }

    pub fn fail(&mut self) -> StartFailure {
        match self.start() {
            Ok(_) => panic!("the start was expected to fail"),
            Err((session, failure)) => {
                session.finish(Err(failure.clone()));
                failure
            }
        }
    }

    pub fn output(&self) -> (String, String) {
        let mut both = (Vec::new(), Vec::new());
        for line in LogReader::open(&self.log().path).read_all(&ReadOptions::default()).unwrap() {
            match line.stream {
                perennial_runtime::logs::Stream::Stdout => both.0.extend(line.text),
                perennial_runtime::logs::Stream::Stderr => both.1.extend(line.text),
            }
        }
        (String::from_utf8(both.0).unwrap(), String::from_utf8(both.1).unwrap())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Ok(cgroup) = Cgroup::at(&self.cgroups_path()) {
            drop(cgroup.kill_all(Duration::from_secs(5)));
            drop(self.runtime.delete(&self.id, true));
            drop(cgroup.remove());
        }
    }
}
