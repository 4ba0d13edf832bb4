//! A driver of the command under test: runs it on a root of its own, and finds what it left behind.

use crate::host::{now, pause, run, wait_within};
use anyhow::{Context as _, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Longest a command may take, unless the test says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// How long leftovers may take to vanish after the last command, before they count as leaks.
const SETTLE: Duration = Duration::from_secs(5);

/// The command under test, on one root.
#[derive(Debug, Clone)]
pub struct Perennial {
    binary: PathBuf,
    root: PathBuf,
    limit: Duration,
    env: Vec<(OsString, OsString)>,
}

impl Perennial {
    /// Drives the binary of this build, or the one that `PERENNIAL_BIN` names, on `root`.
    pub fn new(root: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self::at(binary()?, root))
    }

    /// Drives `binary` on `root`.
    #[must_use]
    pub fn at(binary: impl Into<PathBuf>, root: impl Into<PathBuf>) -> Self {
        Self { binary: binary.into(), root: root.into(), limit: LIMIT, env: Vec::new() }
    }

    /// Changes how long a command may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Adds an environment variable to every command.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Returns the directory the commands work on.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the command with its root and arguments, for tests that start it themselves.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root).args(args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command without input to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Run> {
        self.run_with(args, b"")
    }

    /// Runs a command with this input to its end. Fails only if it cannot be run or takes too long.
    pub fn run_with<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Result<Run> {
        let mut command = self.command(args);
        // Files, not pipes: a process that the command leaves running must not keep the test waiting.
        let (mut stdin, stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?, tempfile::tempfile()?);
        stdin.write_all(input)?;
        stdin.rewind()?;
        command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let text = format!("{command:?}");
        let started = now();
        let mut child = command.spawn().with_context(|| format!("cannot run {text}"))?;
        let Some(status) = wait_within(&mut child, self.limit)? else {
            child.kill()?;
            child.wait()?;
            bail!("{text} still ran after {:?}\n{}", self.limit, String::from_utf8_lossy(&all_of(stderr)?))
        };
        Ok(Run { text, status, stdout: all_of(stdout)?, stderr: all_of(stderr)?, took: now() - started })
    }

    /// Runs a command that must succeed.
    pub fn ok<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Run> {
        self.run(args)?.ok()
    }

    /// Runs a command that must fail, and returns what it said.
    pub fn refused<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        let run = self.run(args)?;
        if run.status.success() {
            bail!("{} succeeded, and should have been refused\n{}", run.text, run.out());
        }
        Ok(run.err())
    }

    /// Runs a command that must succeed with `--json` and returns what it printed.
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let args: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        self.ok(&args)?.json()
    }

    /// Starts a command and leaves it running with its output discarded.
    pub fn spawn<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Child> {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().with_context(|| format!("cannot run {command:?}"))
    }

    /// Returns what `generations NAME` lists, oldest first as printed.
    pub fn generations(&self, name: &str) -> Result<Vec<Value>> {
        let listed: Value = self.json(&["generations", name])?;
        let list = listed.get("generations").and_then(Value::as_array);
        Ok(list.ok_or_else(|| anyhow!("no list of generations in {listed}"))?.clone())
    }

    /// Returns the sequence numbers that `generations NAME` lists, in its order.
    pub fn seqs(&self, name: &str) -> Result<Vec<u64>> {
        let seq = |item: &Value| item.get("seq").and_then(Value::as_u64).ok_or_else(|| anyhow!("no seq in {item}"));
        self.generations(name)?.iter().map(seq).collect()
    }

    /// Returns what `inspect NAME` says.
    pub fn inspect(&self, name: &str) -> Result<Value> {
        self.json(&["inspect", name])
    }

    /// Returns where the union of a running container is mounted.
    pub fn merged(&self, name: &str) -> Result<PathBuf> {
        let inspected = self.inspect(name)?;
        let path = inspected.pointer("/run/merged").and_then(Value::as_str);
        Ok(path.ok_or_else(|| anyhow!("{name} has no merged root: {inspected}"))?.into())
    }

    /// Fails with a list of what the commands left behind: mounts below the root, run and staging directories,
    /// processes with the root among their arguments or mounts, and cgroups that bear one of `names` (of containers,
    /// or of runs). Waits a little for what is just ending.
    pub fn assert_no_leaks(&self, names: &[&str]) -> Result<()> {
        let deadline = now() + SETTLE;
        loop {
            let leaks = self.leaks(names)?;
            if leaks.is_empty() {
                return Ok(());
            }
            if now() > deadline {
                bail!("left behind:\n{}", leaks.join("\n"));
            }
            pause(Duration::from_millis(20));
        }
    }

    /// Returns what [`Self::assert_no_leaks`] looks for, as it is now, in words.
    pub fn leaks(&self, names: &[&str]) -> Result<Vec<String>> {
        let root = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        let mut found: Vec<String> =
            mounts_below(&root)?.iter().map(|path| format!("mount {}", path.display())).collect();
        for kind in ["runs", "staging"] {
            for entry in fs::read_dir(root.join(kind)).into_iter().flatten() {
                found.push(format!("directory {}", entry?.path().display()));
            }
        }
        let marks = Marks { root: root.into_os_string().into_encoded_bytes(), names };
        found.extend(processes(&marks)?);
        found.extend(cgroups(&marks)?);
        Ok(found)
    }

    /// Kills what a test left running and unmounts what it left mounted below the root, so that the root can be
    /// removed. For the end of tests that break things on purpose; never a substitute for [`Self::assert_no_leaks`].
    pub fn clean_up(&self) -> Result<()> {
        let root = self.root.canonicalize().unwrap_or_else(|_| self.root.clone());
        let marks = Marks { root: root.as_os_str().as_bytes().to_vec(), names: &[] };
        for pid in pids()? {
            if marks.in_process(pid).is_some()
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                // It may have ended by now.
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
        for path in mounts_below(&root)?.iter().rev() {
            run(Command::new("umount").arg("-l").arg(path))?;
        }
        Ok(())
    }
}

/// Finds the binary under test: `PERENNIAL_BIN`, what cargo says, or the one beside this test program.
fn binary() -> Result<PathBuf> {
    for name in ["PERENNIAL_BIN", "CARGO_BIN_EXE_perennial"] {
        if let Some(path) = std::env::var_os(name) {
            return Ok(path.into());
        }
    }
    let program = std::env::current_exe()?;
    let beside = program.ancestors().skip(1).take(2).map(|dir| dir.join("perennial")).find(|path| path.is_file());
    beside.ok_or_else(|| anyhow!("no binary `perennial` beside {}; set PERENNIAL_BIN", program.display()))
}

fn all_of(mut file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Run {
    /// The command in words.
    pub text: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Run {
    /// Returns its exit code, or 128 and the signal that ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Returns its standard output as text.
    #[must_use]
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns its standard error as text.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails with what it said unless it ended with code 0.
    pub fn ok(self) -> Result<Self> {
        self.code_is(0)
    }

    /// Fails with what it said unless it ended with this code.
    pub fn code_is(self, code: i32) -> Result<Self> {
        if self.code() == code {
            return Ok(self);
        }
        bail!("{}: code {}, not {code}\n{}{}", self.text, self.code(), self.out(), self.err())
    }

    /// Reads its standard output as one JSON text.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.stdout).with_context(|| format!("{} printed {:?}", self.text, self.out()))
    }
}

/// What gives away a process or a cgroup as ours.
struct Marks<'a> {
    root: Vec<u8>,
    names: &'a [&'a str],
}

impl Marks<'_> {
    /// Returns the arguments of a process that is ours: the root is among them, or it lives in a mount namespace
    /// with a mount made of the root's directories. A process that ends between two looks is not.
    fn in_process(&self, pid: i32) -> Option<String> {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if u32::try_from(pid) == Ok(std::process::id()) {
            return None;
        }
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let apart = namespace(&pid.to_string())? != namespace("self")?;
        let mounts = if apart { fs::read(format!("/proc/{pid}/mountinfo")).ok()? } else { Vec::new() };
        let ours = self.in_bytes(&arguments) || mounts.split(|&byte| byte == b'\n').any(|line| self.in_mount(line));
        ours.then(|| String::from_utf8_lossy(&arguments).replace('\0', " "))
    }

    /// Tells whether a mount is made of the root's directories and mounted elsewhere. One that is mounted below the root
    /// is the host's, of which every new namespace has a copy at first, whoever makes it.
    fn in_mount(&self, line: &[u8]) -> bool {
        let point = line.split(|&byte| byte == b' ').nth(4).map(unescaped).unwrap_or_default();
        !point.starts_with(&self.root) && self.in_bytes(line)
    }

    /// Tells whether the root is named as a whole path or as the beginning of one.
    fn in_bytes(&self, text: &[u8]) -> bool {
        let ends = |at: usize| !text.get(at + self.root.len()).is_some_and(|byte| byte.is_ascii_alphanumeric());
        text.windows(self.root.len()).enumerate().any(|(at, window)| window == self.root && ends(at))
    }

    fn in_cgroup(&self, path: &str) -> bool {
        let part = |name: &str| path.split(['/', ':', '-', '.']).any(|part| part == name) || path.ends_with(name);
        self.names.iter().any(|name| part(name))
    }
}

/// Returns every mount point at or below a directory, parents before children.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let mut found = Vec::new();
    for line in text.split(|&byte| byte == b'\n') {
        let point = line.split(|&byte| byte == b' ').nth(4).map(unescaped).unwrap_or_default();
        let path = PathBuf::from(OsStr::from_bytes(&point));
        if path.starts_with(dir) && path != dir {
            found.push(path);
        }
    }
    Ok(found)
}

/// Undoes the octal escapes of mountinfo (space, tab, newline, backslash).
fn unescaped(field: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), field);
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code.filter(|_| byte == b'\\') {
            Some(code) => {
                out.push(code);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

fn pids() -> Result<Vec<i32>> {
    let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

fn processes(marks: &Marks<'_>) -> Result<Vec<String>> {
    let found = |pid| marks.in_process(pid).map(|text| format!("process {pid}: {text}"));
    Ok(pids()?.into_iter().filter_map(found).collect())
}

/// Directories of the cgroup tree that are looked at; a host with more has other troubles.
const CGROUPS_MAX: usize = 20_000;

fn cgroups(marks: &Marks<'_>) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut queue = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut seen = 0;
    while let Some(dir) = queue.pop() {
        seen += 1;
        if seen > CGROUPS_MAX {
            bail!("more than {CGROUPS_MAX} cgroups");
        }
        // A cgroup removed between two looks is none.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            if marks.in_cgroup(&path.to_string_lossy()) {
                found.insert(format!("cgroup {}", path.display()));
            } else {
                queue.push(path);
            }
        }
    }
    Ok(found.into_iter().collect())
}
