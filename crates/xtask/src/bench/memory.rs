//! What a supervisor holds while its container idles.

use super::command;
use crate::clock;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Command;

/// Memory of one process, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Memory {
    /// Resident pages, shared ones included.
    pub(super) rss_kib: u64,
    /// Resident pages, shared ones divided among those who share them.
    pub(super) pss_kib: u64,
}

#[derive(Deserialize)]
struct Inspected {
    run: Option<Run>,
}

#[derive(Deserialize)]
struct Run {
    pid: u32,
}

/// Starts a container that does nothing from the image `bench` of the root, and measures the parent of its process.
pub(super) fn of_idle_supervisor(program: &Path, root: &Path) -> anyhow::Result<Memory> {
    let perennial = |arguments: &[&str]| {
        let mut command = Command::new(program);
        command::output_of(command.arg("--root").arg(root).args(arguments))
    };
    perennial(&["run", "idle", "--image", "bench", "--detach", "--", "/bin/busybox", "sleep", "1000000"])?;
    // What the start itself needed is given back within moments; the idle state is what counts.
    clock::wait(std::time::Duration::from_secs(2));
    let measured = perennial(&["--json", "inspect", "idle"]).and_then(|json| {
        let inspected: Inspected = serde_json::from_str(&json).context("cannot read what inspect printed")?;
        let pid = inspected.run.context("the container does not run")?.pid;
        of_process(parent(pid)?)
    });
    perennial(&["rm", "--force", "idle"])?;
    measured
}

fn parent(pid: u32) -> anyhow::Result<u32> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let parent = field(&status, "PPid:")?;
    u32::try_from(parent).with_context(|| format!("process {pid} has no parent"))
}

fn of_process(pid: u32) -> anyhow::Result<Memory> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"))?;
    Ok(Memory { rss_kib: field(&status, "VmRSS:")?, pss_kib: field(&rollup, "Pss:")? })
}

fn read(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// Returns the first number after a label at the beginning of a line.
fn field(text: &str, label: &str) -> anyhow::Result<u64> {
    let value =
        text.lines().find_map(|line| line.strip_prefix(label)).with_context(|| format!("there is no {label}"))?;
    let number = value.split_whitespace().next().unwrap_or_default();
    number.parse().with_context(|| format!("{label} is {value:?}, which is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_a_parent() {
        let pid = std::process::id();
        let memory = of_process(pid).unwrap();
        assert!(memory.rss_kib >= memory.pss_kib && memory.pss_kib > 0, "{memory:?}");
        assert_eq!(parent(pid).unwrap(), std::os::unix::process::parent_id());
    }
}
