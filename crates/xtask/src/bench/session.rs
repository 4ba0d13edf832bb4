//! One run in a container and its two times, measured from outside and in the same way for every tool.
//!
//! The container runs `/bin/sh /bench/session`, where `/bench` is a directory of the host. The script opens the FIFO
//! `/bench/pipe` before anything else and every process of the run inherits it, so the host sees
//!
//! ```text
//! request ──start──▶ first byte in the pipe … end of file in the pipe ──exit──▶ everything saved
//!         first process runs                 last process is gone
//! ```

use super::command;
use crate::{clock, files};
use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a run may be silent before the benchmark gives up; the largest environment takes minutes to make.
const SILENCE_S_MAX: u64 = 900;

/// The directory that containers see as `/bench`.
#[derive(Debug)]
pub(super) struct Bench {
    directory: PathBuf,
}

/// The two times of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    /// From the request to the first process.
    pub(super) start: Duration,
    /// From the end of the last process to the moment everything is saved.
    pub(super) exit: Duration,
}

impl Bench {
    /// Arguments of the process in the container.
    pub(super) const COMMAND: [&'static str; 2] = ["/bin/sh", "/bench/session"];

    /// Makes the directory with its FIFO.
    pub(super) fn create(directory: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, directory.join("pipe"), FileType::Fifo, mode, 0).context("cannot make the FIFO")?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Returns the directory on the host.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs `script` in a container that `request` starts, then lets `save` do what is left to make the run's changes
    /// permanent after the requested command has returned.
    pub(super) fn run(
        &self,
        script: &str,
        mut request: Command,
        save: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Times> {
        self.write_script(script)?;
        let mut pipe = self.open_pipe()?;
        let complaints = self.directory.join("stderr");
        let stderr = File::create(&complaints).context("cannot create the file for complaints")?;
        request.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let shown = command::shown(&request);

        let requested = clock::now();
        let mut child = request.spawn().with_context(|| format!("cannot run {shown}"))?;
        let seen = watch(&mut pipe, &mut child);
        let status = child.wait().with_context(|| format!("cannot wait for {shown}"))?;
        let said = || std::fs::read_to_string(&complaints).unwrap_or_default();
        let (first, last) = seen.with_context(|| format!("{shown}: {}", said().trim()))?;
        anyhow::ensure!(status.success(), "{shown} failed ({status}): {}", said().trim());
        save()?;
        Ok(Times { start: first.duration_since(requested), exit: last.elapsed() })
    }

    fn write_script(&self, script: &str) -> anyhow::Result<()> {
        let text = format!("exec 3>/bench/pipe\necho first >&3\nset -e\n{script}");
        files::write_whole(&self.directory.join("session"), &text)
    }

    fn open_pipe(&self) -> anyhow::Result<File> {
        // Non-blocking: an open for reading would otherwise wait for a container that may never start.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = rustix::fs::open(self.directory.join("pipe"), flags, Mode::empty());
        Ok(pipe.context("cannot open the FIFO")?.into())
    }
}

/// Returns when the first byte came and when the last writer closed the pipe.
fn watch(pipe: &mut File, child: &mut Child) -> anyhow::Result<(Instant, Instant)> {
    let mut buffer = [0_u8; 64];
    let mut first = None;
    for _ in 0..SILENCE_S_MAX {
        while wait_for_event(pipe)? {
            match pipe.read(&mut buffer) {
                Ok(0) => match first {
                    Some(first) => return Ok((first, clock::now())),
                    None => break,
                },
                Ok(_) => first = first.or_else(|| Some(clock::now())),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot read the FIFO"),
            }
        }
        let has_ended = child.try_wait().context("cannot wait for the tool")?.is_some();
        anyhow::ensure!(first.is_some() || !has_ended, "the container ran nothing");
    }
    anyhow::bail!("nothing happened for {SILENCE_S_MAX} s");
}

/// Waits up to a second for bytes in the pipe or its end, and returns whether either came.
fn wait_for_event(pipe: &File) -> anyhow::Result<bool> {
    let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error).context("cannot wait for the FIFO"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench() -> (tempfile::TempDir, Bench) {
        let root = tempfile::tempdir().unwrap();
        let bench = Bench::create(&root.path().join("bench")).unwrap();
        (root, bench)
    }

    /// Runs the session on the host, with the pipe where it is there.
    fn on_the_host(bench: &Bench) -> Command {
        let mut command = Command::new("sh");
        let pipe = bench.directory().display();
        command
            .args(["-c", &format!("sleep 0.05; sed s,/bench/,{pipe}/, {pipe}/session >{pipe}/here; sh {pipe}/here")]);
        command
    }

    #[test]
    fn the_exit_begins_when_the_last_process_ends_and_includes_the_saving() {
        let (_root, bench) = bench();
        let mut saved = false;
        let times = bench.run("sleep 0.1 & exit 0", on_the_host(&bench), || {
            saved = true;
            Ok(())
        });
        let times = times.unwrap();
        assert!(saved);
        assert!(times.start >= Duration::from_millis(50), "{times:?}");
        assert!(times.exit < Duration::from_millis(50), "{times:?}");
    }

    #[test]
    fn a_container_that_never_starts_is_an_error_with_its_complaint() {
        let (_root, bench) = bench();
        let mut request = Command::new("sh");
        request.args(["-c", "echo no such image >&2; exit 125"]);
        let error = format!("{:#}", bench.run("", request, || Ok(())).unwrap_err());
        assert!(error.contains("no such image") && error.contains("ran nothing"), "{error}");
    }

    #[test]
    fn a_session_that_fails_is_an_error() {
        let (_root, bench) = bench();
        let error = format!("{:#}", bench.run("false", on_the_host(&bench), || Ok(())).unwrap_err());
        assert!(error.contains("failed"), "{error}");
    }
}
