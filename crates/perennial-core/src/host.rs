//! What `doctor` says about the machine: abilities, space, and what lies in the root beside the records.

use crate::check::{Finding, Severity};
use crate::container::Container;
use crate::id::RunId;
use crate::layers::DEPTH_MAX;
use crate::spec::Network;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

/// Free bytes below which an exit may not fit any more (1 GiB), and free share in percent.
pub const FREE_BYTES_MIN: u64 = 1 << 30;
/// As [`FREE_BYTES_MIN`], in percent of the file system; both must be undercut for a finding.
pub const FREE_PERCENT_MIN: u64 = 10;

/// Which cgroups a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// Only version 2.
    V2,
    /// Controllers in version 1.
    V1,
    /// None.
    None,
}

/// Whether something works, and if not, why.
pub type Ability = Result<(), String>;

/// What a machine and the root's file system can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Unions can be mounted with their upper directory in the root.
    pub overlay: Ability,
    /// `trusted.*` attributes.
    pub trusted_xattrs: Ability,
    /// Character devices 0:0.
    pub whiteouts: Ability,
    /// Types of directory entries.
    pub d_type: Ability,
    /// Cgroups.
    pub cgroups: Cgroups,
    /// Memory and swap can be bounded together.
    pub has_swap_accounting: bool,
    /// OCI runtimes that are used, by name.
    pub runtimes: Vec<(String, Ability)>,
    /// netavark is installed.
    pub has_netavark: bool,
    /// An init program is installed.
    pub has_init: bool,
}

/// What the root's file system has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceFacts {
    /// Bytes it can take.
    pub total_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Inodes it can have; 0 where it does not count them.
    pub total_inodes: u64,
    /// Inodes that are free.
    pub free_inodes: u64,
}

fn finding(severity: Severity, object: &str, message: String, hint: &str) -> Finding {
    Finding { severity, object: object.into(), message, hint: hint.into() }
}

/// Checks a machine against what the containers on it need.
#[must_use]
pub fn check_host(facts: &HostFacts, containers: &[Container]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let another = "put the root on ext4, XFS or btrfs, on a kernel with overlayfs";
    let needed = [
        ("overlayfs", &facts.overlay),
        ("trusted attributes", &facts.trusted_xattrs),
        ("whiteouts", &facts.whiteouts),
        ("types of directory entries", &facts.d_type),
    ];
    for (name, ability) in needed {
        if let Err(why) = ability {
            let message = format!("no {name} in the root: {why}");
            findings.push(finding(Severity::Error, "host", message, another));
        }
    }
    if facts.cgroups == Cgroups::None {
        let message = "no cgroups are mounted, so nothing can run".to_string();
        findings.push(finding(Severity::Error, "host", message, "mount cgroup2 on /sys/fs/cgroup"));
    }
    for (name, ability) in &facts.runtimes {
        if let Err(why) = ability {
            let hint = "install the package runc, or name another with --runtime";
            findings.push(finding(Severity::Error, "host", format!("OCI runtime {name:?} does not work: {why}"), hint));
        }
    }
    let users = |needs: &dyn Fn(&Container) -> bool| {
        containers.iter().filter(|c| needs(c)).map(|c| c.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut wish = |has: bool, what: &str, users: String, hint: &str| {
        let (severity, users) = match users.as_str() {
            "" => (Severity::Note, String::new()),
            _ => (Severity::Error, format!("; needed by {users}")),
        };
        if !has {
            findings.push(finding(severity, "host", format!("{what}{users}"), hint));
        }
    };
    let bridged = users(&|c| c.spec.network == Network::Bridge);
    wish(facts.has_netavark, "`--network bridge` needs netavark", bridged, "install the package netavark");
    let with_init = users(&|c| c.spec.init);
    wish(facts.has_init, "`--init` needs an init program", with_init, "install the package tini or catatonit");
    if !facts.has_swap_accounting {
        let message = "`--memory` bounds memory only: the kernel does not account swap".to_string();
        findings.push(finding(
            Severity::Note,
            "host",
            message,
            "boot with swapaccount=1 if swap should be bounded too",
        ));
    }
    findings
}

/// Whether a kernel of this release makes all mounts below a bind read-only at once: `mount_setattr`(2), since 5.12.
/// A release that cannot be read counts as older.
#[must_use]
pub fn has_recursive_read_only(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= (5, 12),
        (Some(_) | None, _) => false,
    }
}

/// Checks that an exit still fits on the disk.
#[must_use]
pub fn check_space(facts: &SpaceFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let is_short = |free: u64, total: u64| free.saturating_mul(100) < total.saturating_mul(FREE_PERCENT_MIN);
    let hint = "`perennial gc` frees what nothing needs, `perennial df` shows what takes space";
    if is_short(facts.free_bytes, facts.total_bytes) && facts.free_bytes < FREE_BYTES_MIN {
        let message = format!("{} of {} bytes are free", facts.free_bytes, facts.total_bytes);
        findings.push(finding(Severity::Warning, "file system of the root", message, hint));
    }
    if is_short(facts.free_inodes, facts.total_inodes) {
        let message = format!("{} of {} inodes are free", facts.free_inodes, facts.total_inodes);
        findings.push(finding(Severity::Warning, "file system of the root", message, hint));
    }
    findings
}

/// Checks the depth of stacks: deeper ones than the bound start, but each lookup in them costs more.
#[must_use]
pub fn check_depth(containers: &[Container]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for container in containers {
        for generation in container.queue.iter().flat_map(|queue| &queue.generations) {
            let depth = generation.layers.len();
            let is_current = container.queue.as_ref().is_some_and(|queue| queue.current == Some(generation.seq));
            if is_current && depth > DEPTH_MAX.saturating_add(1) {
                let object = format!("generation {}@{}", container.name, generation.seq);
                let message = format!("has {depth} layers, more than {DEPTH_MAX}");
                let hint = "they are merged after the next exit; an exit that finds no space does not";
                findings.push(finding(Severity::Note, &object, message, hint));
            }
        }
    }
    findings
}

/// Names views that are not mounted any more, by their directories.
#[must_use]
pub fn stale_views(targets: &[String]) -> Vec<Finding> {
    let stale = |target: &String| {
        let message = "is recorded but not mounted any more, so its layers are kept for nothing".to_string();
        finding(Severity::Note, &format!("view {target}"), message, "`perennial gc` drops it")
    };
    targets.iter().map(stale).collect()
}

/// Names runs that no record names although they hold changes, with where these are.
#[must_use]
pub fn set_aside(runs: &[(RunId, String)]) -> Vec<Finding> {
    let one = |(run, upper): &(RunId, String)| {
        let message = format!("holds changes that belong to no container; they are set aside in {upper}");
        let hint = format!("copy out what is of use with `cp -a`, then remove {upper} and run `perennial gc`");
        finding(Severity::Warning, &format!("run {run}"), message, &hint)
    };
    runs.iter().map(one).collect()
}

/// Names containers whose supervisor is gone while their run is not finished.
#[must_use]
pub fn unsupervised(containers: &[&Container]) -> Vec<Finding> {
    let one = |container: &&Container| {
        let phase = container.phase.name();
        let message = format!("is recorded as {phase}, but its supervisor is gone");
        let object = format!("container {}", container.name);
        finding(Severity::Warning, &object, message, "`perennial gc` ends the run and saves what it changed")
    };
    containers.iter().map(one).collect()
}
