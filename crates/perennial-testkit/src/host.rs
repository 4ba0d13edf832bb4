//! What every fixture needs of the host: programs, small files, waiting, and the monotonic clock.

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Fails unless this process is root.
pub fn need_root() -> Result<()> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { bail!("this test needs root") }
}

/// Runs a program to its end and returns its output; fails with its messages if it does.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if output.status.success() {
        return Ok(output);
    }
    bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end())
}

/// Writes a file of a fixture; nothing here outlives a crash, so nothing is synced.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(bytes.as_ref()).with_context(|| format!("cannot write {}", path.display()))
}

/// Waits for a child until it ends; returns nothing if it still runs after `limit`.
pub fn wait_within(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| anyhow!("odd process id"))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch a child")?;
    let deadline = now() + limit;
    loop {
        let rest = Timespec::try_from(deadline.saturating_sub(now()))?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&rest)) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(child.wait()?)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until `ready` says so, looking every few milliseconds; fails with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = now() + limit;
    while !ready()? {
        if now() > deadline {
            bail!("waited {limit:?} in vain: {what}");
        }
        pause(Duration::from_millis(3));
    }
    Ok(())
}

/// Lets a moment pass between two looks at something that cannot be waited for.
pub fn pause(time: Duration) {
    let Ok(time) = Timespec::try_from(time) else { return };
    // A shorter pause after a signal only means one look more.
    poll(&mut [], Some(&time)).ok();
}

/// Returns the time since some moment in the past: for deadlines and for measuring.
#[must_use]
pub fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
