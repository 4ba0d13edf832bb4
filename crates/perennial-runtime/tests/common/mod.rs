//! A real container on a tiny root made of busybox, supervised by the example `supervisor` in a process of its own.
#![allow(dead_code, unreachable_pub, clippy::allow_attributes, reason = "each test program uses another part")]

use perennial_core::spec::ContainerSpec;
use perennial_runtime::cgroup::Cgroup;
use perennial_runtime::clock;
use perennial_runtime::logs::{LogReader, ReadOptions, Stream};
use perennial_runtime::oci::OciRuntime;
use rustix::fd::OwnedFd;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Far longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A container to be; removed with everything it left when dropped.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub spec: ContainerSpec,
    pub runtime: OciRuntime,
    pub log_bytes_max: u64,
    pub netns: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
    pub first_client: Option<OwnedFd>,
}

/// What a run gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i64,
    pub signal: Option<i64>,
    pub oom: bool,
    pub stopped_by_request: bool,
    pub events: Vec<String>,
    pub stdout: String,
    pub stderr: String,
}

pub fn fixture(command: &[&str]) -> Fixture {
    assert!(rustix::process::geteuid().is_root(), "these tests run real containers and need root");
    let dir = tempfile::tempdir().unwrap();
    let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    // The same tests run against another runtime where the host allows it.
    let runtime = std::env::var("PERENNIAL_TEST_RUNTIME").unwrap_or_else(|_| "runc".to_owned());
    let runtime = OciRuntime::by_path(&runtime, &dir.path().join("oci")).unwrap();
    make_root(&dir.path().join("rootfs"));
    std::fs::create_dir(dir.path().join("bundle")).unwrap();
    let spec = ContainerSpec { command: command.iter().map(|arg| (*arg).to_owned()).collect(), ..Default::default() };
    Fixture { dir, id, spec, runtime, log_bytes_max: 1 << 20, netns: None, resolv_conf: None, first_client: None }
}

pub fn shell(script: &str) -> Fixture {
    fixture(&["/bin/sh", "-c", script])
}

pub fn make_root(root: &Path) {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/alice"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/usr/bin/busybox", root.join("bin/busybox")).expect("the package busybox-static is installed");
    let list = Command::new("/usr/bin/busybox").arg("--list").output().unwrap();
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

/// Waits until `look` finds something.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = clock::monotonic() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::monotonic() < end, "waited in vain for {what}");
        clock::pause(Duration::from_millis(5));
    }
}

/// Path of an example of this crate, which `cargo test` has built.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{path:?} is missing: a filter such as --test needs `cargo build --examples` before");
    path
}

impl Fixture {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn cgroups_path(&self) -> String {
        format!("/perennial-test/{}", self.id)
    }

    /// Starts the supervisor.
    pub fn spawn(&mut self) -> Child {
        let first_client = self.first_client.take();
        let plan = json!({
            "dir": self.dir.path(),
            "id": self.id,
            "spec": self.spec,
            "cgroups_path": self.cgroups_path(),
            "runtime": self.runtime.program(),
            "log_bytes_max": self.log_bytes_max,
            "netns": self.netns,
            "resolv_conf": self.resolv_conf,
            "has_first_client": first_client.is_some(),
        });
        put(&self.path("plan.json"), &plan.to_string());
        let stdin = first_client.map_or_else(Stdio::null, Stdio::from);
        Command::new(example("supervisor")).arg(self.path("plan.json")).stdin(stdin).spawn().unwrap()
    }

    /// Starts the supervisor and waits until the container's process runs; returns its process id too.
    pub fn start(&mut self) -> (Child, i32) {
        let mut child = self.spawn();
        let pid = wait_for("the start", || {
            assert!(child.try_wait().unwrap().is_none_or(|_| self.path("pid").exists()), "{:?}", self.result());
            std::fs::read_to_string(self.path("pid")).ok()
        });
        (child, pid.parse().unwrap())
    }

    fn result(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.path("result.json")).ok()?).ok()
    }

    /// Waits until the supervisor has ended.
    pub fn wait(&self, mut child: Child) -> Ran {
        let status = wait_for("the supervisor's end", || child.try_wait().unwrap());
        assert!(status.success(), "the supervisor failed: {status}");
        let result = self.result().unwrap();
        let (stdout, stderr) = self.output();
        Ran {
            code: result["code"].as_i64().unwrap_or_else(|| panic!("no exit: {result}")),
            signal: result["signal"].as_i64(),
            oom: result["oom"].as_bool().unwrap(),
            stopped_by_request: result["stopped_by_request"].as_bool().unwrap(),
            events: result["events"].as_array().unwrap().iter().map(|e| e.as_str().unwrap().to_owned()).collect(),
            stdout,
            stderr,
        }
    }

    pub fn run(&mut self) -> Ran {
        let child = self.spawn();
        self.wait(child)
    }

    /// Runs what must succeed, and returns what it printed.
    pub fn stdout(&mut self) -> String {
        let ran = self.run();
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout
    }

    /// Runs what cannot start; returns the exit code and the message.
    pub fn fail(&mut self) -> (i64, String) {
        let mut child = self.spawn();
        wait_for("the supervisor's end", || child.try_wait().unwrap());
        let result = self.result().unwrap();
        (result["failure"].as_i64().unwrap(), result["message"].as_str().unwrap().to_owned())
    }

    pub fn output(&self) -> (String, String) {
        let mut both = (Vec::new(), Vec::new());
        for line in LogReader::open(&self.path("log")).read_all(&ReadOptions::default()).unwrap() {
            match line.stream {
                Stream::Stdout => both.0.extend(line.text),
                Stream::Stderr => both.1.extend(line.text),
            }
        }
        (String::from_utf8_lossy(&both.0).into_owned(), String::from_utf8_lossy(&both.1).into_owned())
    }

    pub fn wait_for_output(&self, text: &str) {
        wait_for(text, || self.output().0.contains(text).then_some(()));
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
