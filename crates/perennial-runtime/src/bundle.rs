//! The OCI bundle of a run: `config.json` made from the process, the settings and where things are.
//!
//! Capabilities, system call filter, masked and read-only paths, devices and the kernel's file systems are those the
//! well-known engines give a container by default. No resource limit is raised: that needs `CAP_SYS_RESOURCE`, which
//! not every host's root has.
//!
//! **What a bind does to a generation.** A volume whose target does not exist in the container gets an empty file or
//! directory there, made by the runtime *inside the union*: it lies in the upper directory afterwards and becomes part
//! of the generation. So does an empty `/etc/resolv.conf` in an image without one, and `/proc`, `/dev`, `/sys` in an
//! image without them. The init program is bound below `/dev`, a memory file system, and leaves no trace.
//! `/etc/hosts` and `/etc/hostname` belong to the container and are never bound.

use crate::{capabilities, seccomp};
use perennial_core::process::Process;
use perennial_core::spec::{Limits, Volume};
use serde_json::{Map, Value, json};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Where the init program appears in the container.
pub const INIT_TARGET: &str = "/dev/init";
/// Period in which a processor quota is counted, in microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Size of `/dev/shm`, as the engines have it.
const SHM_OPTION: &str = "size=65536k";
/// Programs that reap orphans and forward signals, in order of preference, with the arguments before the command.
const INITS: [(&str, &[&str]); 4] = [
    ("/usr/libexec/podman/catatonit", &["--"]),
    ("/usr/bin/catatonit", &["--"]),
    ("/usr/bin/tini-static", &["--"]),
    ("/usr/bin/tini", &["--"]),
];
/// Kernel files that tell about or reach into the host.
const MASKED_PATHS: [&str; 13] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];
/// Kernel files that change the host when written.
const READONLY_PATHS: [&str; 6] =
    ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything `config.json` is made from.
#[derive(Debug, Clone)]
pub struct BundlePlan<'a> {
    /// The process.
    pub process: &'a Process,
    /// The container's root, mounted.
    pub rootfs: &'a Path,
    /// Host name inside.
    pub hostname: &'a str,
    /// Absolute path below every cgroup hierarchy, such as `/perennial/ID`.
    pub cgroups_path: &'a str,
    /// Bounds.
    pub limits: &'a Limits,
    /// What the host can bound.
    pub host: HostFacts,
    /// The network.
    pub network: NetworkPlan,
    /// Host paths shown inside.
    pub volumes: &'a [Volume],
    /// A file to show as `/etc/resolv.conf`.
    pub resolv_conf: Option<&'a Path>,
    /// The init program, found by [`find_init`].
    pub init: Option<&'a Init>,
    /// Lines and columns of the terminal, where they are known already.
    pub console_size: Option<(u16, u16)>,
}

/// What of the host shapes the bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether memory and swap can be bounded together.
    pub swap_accounting: bool,
    /// Whether cgroups are of version 2 only, so that each container gets its own view of them.
    pub cgroup_v2: bool,
    /// Whether the kernel makes a volume read-only with everything mounted below it.
    pub recursive_read_only: bool,
}

/// Which network namespace the process gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkPlan {
    /// The host's.
    Host,
    /// A new one with only a loopback interface.
    Empty,
    /// An existing one, by its file.
    Namespace(PathBuf),
}

/// An init program on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// Its path on the host.
    pub path: PathBuf,
    /// Arguments between it and the command.
    pub args: Vec<String>,
}

/// Why a bundle could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A volume's source is missing.
    #[error("volume source {path} does not exist on the host")]
    VolumeSource {
        /// The path.
        path: String,
    },
    /// A path is not UTF-8, which JSON needs.
    #[error("path {path:?} is not UTF-8")]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// No init program is installed.
    #[error("no init program found: install the package catatonit or tini, or leave out --init")]
    NoInit,
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Returns the init program of the host.
///
/// # Errors
/// If neither catatonit nor tini is installed.
pub fn find_init() -> Result<Init, BundleError> {
    let found = INITS.iter().find(|(path, _)| Path::new(path).is_file());
    let (path, args) = found.ok_or(BundleError::NoInit)?;
    Ok(Init { path: PathBuf::from(path), args: args.iter().map(|arg| (*arg).to_owned()).collect() })
}

/// Returns whether this host's kernel makes a volume read-only with everything mounted below it.
#[must_use]
pub fn has_recursive_read_only() -> bool {
    let name = rustix::system::uname();
    name.release().to_str().is_ok_and(perennial_core::host::has_recursive_read_only)
}

/// Writes `config.json` into `directory`, an existing directory private to this run.
///
/// # Errors
/// If a volume's source is missing, a path is not UTF-8, or writing fails.
pub fn write(plan: &BundlePlan<'_>, directory: &Path) -> Result<(), BundleError> {
    for volume in plan.volumes {
        if std::fs::symlink_metadata(&volume.source).is_err() {
            return Err(BundleError::VolumeSource { path: volume.source.clone() });
        }
    }
    let config = config(plan)?;
    let path = directory.join("config.json");
    let fail = |source| BundleError::Write { path: path.display().to_string(), source };
    // The file lives as long as the run; a crash removes it with the run, so it need not be durable.
    let mut file = std::fs::File::create(&path).map_err(fail)?;
    file.write_all(config.to_string().as_bytes()).map_err(fail)
}

/// Returns the content of `config.json`.
///
/// # Errors
/// If a path is not UTF-8.
pub fn config(plan: &BundlePlan<'_>) -> Result<Value, BundleError> {
    let mut process = process_object(plan.process);
    if let (Some(init), Some(object)) = (plan.init, process.as_object_mut()) {
        let prefix = std::iter::once(INIT_TARGET.to_owned()).chain(init.args.iter().cloned());
        object.insert("args".to_owned(), prefix.chain(plan.process.args.iter().cloned()).collect());
    }
    if let (true, Some((rows, columns)), Some(object)) = (plan.process.tty, plan.console_size, process.as_object_mut())
    {
        object.insert("consoleSize".to_owned(), json!({ "height": rows, "width": columns }));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": { "path": text(plan.rootfs)?, "readonly": false },
        "hostname": plan.hostname,
        "mounts": mounts(plan)?,
        "annotations": {},
        "linux": linux(plan)?,
    }))
}

/// Returns the `process` object, as `config.json` and `exec --process` take it.
#[must_use]
pub fn process_object(process: &Process) -> Value {
    json!({
        "terminal": process.tty,
        "user": {
            "uid": process.user.uid,
            "gid": process.user.gid,
            "additionalGids": process.user.additional_gids,
        },
        "args": process.args,
        "env": process.env,
        "cwd": process.cwd,
        "capabilities": capabilities::object_of(process),
        "noNewPrivileges": false,
    })
}

fn text(path: &Path) -> Result<&str, BundleError> {
    path.to_str().ok_or_else(|| BundleError::NotUtf8 { path: path.to_owned() })
}

fn mounts(plan: &BundlePlan<'_>) -> Result<Vec<Value>, BundleError> {
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", SHM_OPTION]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    if let Some(init) = plan.init {
        mounts.push(bind(text(&init.path)?, INIT_TARGET, &["ro"]));
    }
    if let Some(resolv_conf) = plan.resolv_conf {
        mounts.push(bind(text(resolv_conf)?, "/etc/resolv.conf", &["rw"]));
    }
    // Parents before children, whatever order they were given in; equal targets keep theirs.
    let mut volumes: Vec<&Volume> = plan.volumes.iter().collect();
    volumes.sort_by_key(|volume| Path::new(&volume.target).components().count());
    let access = |volume: &Volume| -> &[&str] {
        match (volume.read_only, plan.host.recursive_read_only) {
            (false, _) => &["rw"],
            // What is mounted below it on the host comes along, and `ro` alone leaves that writable. Runtimes that do not
            // know `rro` pass it to the kernel, which does not look at such a text with a bind.
            (true, true) => &["ro", "rro"],
            (true, false) => &["ro"],
        }
    };
    mounts.extend(volumes.into_iter().map(|volume| bind(&volume.source, &volume.target, access(volume))));
    Ok(mounts)
}

fn mount(target: &str, kind: &str, options: &[&str]) -> Value {
    json!({ "destination": target, "type": kind, "source": kind, "options": options })
}

fn bind(source: &str, target: &str, access: &[&str]) -> Value {
    // Private: what is mounted below it later on one side does not show on the other, and cannot keep it busy.
    let options = [&["rbind", "rprivate"], access].concat();
    json!({ "destination": target, "type": "bind", "source": source, "options": options })
}

fn linux(plan: &BundlePlan<'_>) -> Result<Value, BundleError> {
    let mut namespaces =
        vec![json!({ "type": "pid" }), json!({ "type": "ipc" }), json!({ "type": "uts" }), json!({ "type": "mount" })];
    if plan.host.cgroup_v2 {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    match &plan.network {
        NetworkPlan::Host => {}
        NetworkPlan::Empty => namespaces.push(json!({ "type": "network" })),
        NetworkPlan::Namespace(path) => namespaces.push(json!({ "type": "network", "path": text(path)? })),
    }
    let mut linux = Map::new();
    linux.insert("namespaces".to_owned(), Value::Array(namespaces));
    linux.insert("cgroupsPath".to_owned(), json!(plan.cgroups_path));
    linux.insert("resources".to_owned(), resources(plan));
    linux.insert("maskedPaths".to_owned(), json!(MASKED_PATHS));
    linux.insert("readonlyPaths".to_owned(), json!(READONLY_PATHS));
    linux.insert("seccomp".to_owned(), seccomp::profile(seccomp::Arch::native(), &plan.process.capabilities));
    if plan.network != NetworkPlan::Host {
        // As containers.conf has it: only root opens ICMP sockets without a capability.
        linux.insert("sysctl".to_owned(), json!({ "net.ipv4.ping_group_range": "0 0" }));
    }
    Ok(Value::Object(linux))
}

fn resources(plan: &BundlePlan<'_>) -> Value {
    let mut resources = Map::new();
    // Everything is denied; the runtime adds null, zero, full, random, urandom, tty, console, ptmx and pts.
    resources.insert("devices".to_owned(), json!([{ "allow": false, "access": "rwm" }]));
    let limits = plan.limits;
    if let Some(bytes) = limits.memory_bytes {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        let mut memory = json!({ "limit": bytes });
        if let (true, Some(object)) = (plan.host.swap_accounting, memory.as_object_mut()) {
            // Memory and swap together: twice the memory, as the engines have it.
            object.insert("swap".to_owned(), json!(bytes.saturating_mul(2)));
        }
        resources.insert("memory".to_owned(), memory);
    }
    if let Some(milli) = limits.cpus_milli {
        let quota = i64::try_from(milli.saturating_mul(CPU_PERIOD_US) / 1000).unwrap_or(i64::MAX);
        resources.insert("cpu".to_owned(), json!({ "quota": quota, "period": CPU_PERIOD_US }));
    }
    if let Some(pids) = limits.pids {
        resources.insert("pids".to_owned(), json!({ "limit": i64::try_from(pids).unwrap_or(i64::MAX) }));
    }
    Value::Object(resources)
}
