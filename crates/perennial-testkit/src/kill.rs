//! Kills a command at every one of its system calls, one run for each, and lets the caller check what is left; or
//! makes each system call fail once.
//!
//! `strace` does the injecting. It traces the process it is given and none of its children, so what the command
//! has started (a supervisor, a container) lives on, as it would after a real `kill -9`. A supervisor is the victim
//! by its process id ([`Victim::Running`]) or started directly.
//!
//! strace counts each kind of call by itself: its `when=3` is the third `rename` *or* the third `openat`, whichever
//! comes first, not the third call. So an undisturbed run is recorded first, and each of its calls, as "the n-th of
//! its kind", is one [`Point`].
//!
//! A kill comes before the call is made. Kills before two calls without a change between them leave the same behind;
//! [`Fault::KillBeforeChanges`] therefore leaves out the calls that change nothing outside the process.
//!
//! `PERENNIAL_KILL_EVERY=k` takes every k-th point only (1: all), from a start that `PERENNIAL_KILL_OFFSET` gives,
//! else the process id, so that repeated runs take different points. `PERENNIAL_KILL_ONLY=renameat2:3` repeats one.

use crate::host::{now, wait_until, wait_within};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::NamedTempFile;

/// What happens to the process at the chosen system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is killed before any call but those that only manage memory.
    Kill,
    /// It is killed before any call that may change something outside the process.
    KillBeforeChanges,
    /// The call is not made and fails with this error, such as `EIO`.
    Fail {
        /// The name of the error.
        errno: &'static str,
        /// The calls that can fail, as `strace -e trace=` takes them.
        calls: &'static str,
    },
}

/// Calls that change nothing another process or a later one could see.
const HARMLESS: &[&str] = &[
    "access",
    "arch_prctl",
    "capget",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "close",
    "dup",
    "dup2",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fcntl",
    "fgetxattr",
    "flistxattr",
    "fstat",
    "fstatfs",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getrlimit",
    "getrusage",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "getxattr",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "lseek",
    "lstat",
    "nanosleep",
    "newfstatat",
    "pidfd_open",
    "pipe",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "select",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "signalfd4",
    "socketpair",
    "stat",
    "statfs",
    "statx",
    "sysinfo",
    "timerfd_create",
    "timerfd_settime",
    "umask",
    "uname",
    "wait4",
    "waitid",
];

/// Calls whose number varies from run to run with the layout of memory; a kill before one of them leaves the same
/// behind as a kill before the call that follows. (Nor has anything of the command run before its `execve`.)
const MEMORY: &[&str] = &["brk", "futex", "madvise", "mmap", "mprotect", "mremap", "munmap"];

impl Fault {
    /// The calls strace shall show while it records.
    fn traced(self) -> &'static str {
        match self {
            Self::Kill | Self::KillBeforeChanges => "all",
            Self::Fail { errno: _, calls } => calls,
        }
    }

    /// Tells whether a recorded call is a point.
    fn takes(self, call: &str, line: &str) -> bool {
        match self {
            Self::Kill => call != "execve" && !MEMORY.contains(&call),
            Self::Fail { .. } => true,
            Self::KillBeforeChanges => {
                let opens = call.starts_with("open");
                let writes = ["O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|flag| line.contains(flag));
                Self::Kill.takes(call, line) && !HARMLESS.contains(&call) && (!opens || writes)
            }
        }
    }

    fn inject(self, point: &Point) -> String {
        let what = match self {
            Self::Kill | Self::KillBeforeChanges => "signal=KILL".to_owned(),
            Self::Fail { errno, calls: _ } => format!("error={errno}"),
        };
        format!("inject={}:{what}:when={}", point.call, point.nth)
    }
}

/// One moment of a command: before the n-th system call of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// The kind of call.
    pub call: String,
    /// Which of its kind, from 1.
    pub nth: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.call, self.nth)
    }
}

impl Point {
    /// Reads `CALL:N`, as [`fmt::Display`] writes it.
    pub fn parse(text: &str) -> Result<Self> {
        let (call, nth) = text.split_once(':').ok_or_else(|| anyhow!("point {text} is not CALL:N"))?;
        Ok(Self { call: call.to_owned(), nth: nth.parse().with_context(|| format!("point {text}"))? })
    }
}

/// Which of the recorded points are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Points {
    /// This one.
    Only(Point),
    /// Every `every`-th from the one after `offset`.
    Stride {
        /// The distance from each point to the next.
        every: usize,
        /// The points left out at the beginning, less than `every`.
        offset: usize,
    },
}

impl Points {
    /// Every point.
    pub const ALL: Self = Self::Stride { every: 1, offset: 0 };

    /// Takes the points as the environment says, else every `every`-th.
    pub fn from_env(every: usize) -> Result<Self> {
        if let Ok(only) = std::env::var("PERENNIAL_KILL_ONLY") {
            return Ok(Self::Only(Point::parse(&only)?));
        }
        let every = number("PERENNIAL_KILL_EVERY")?.unwrap_or(every).max(1);
        let own = usize::try_from(std::process::id())?;
        Ok(Self::Stride { every, offset: number("PERENNIAL_KILL_OFFSET")?.unwrap_or(own) % every })
    }

    fn of(&self, recorded: Vec<Point>) -> Vec<Point> {
        match self {
            Self::Only(point) => vec![point.clone()],
            Self::Stride { every, offset } => recorded.into_iter().skip(*offset).step_by((*every).max(1)).collect(),
        }
    }
}

fn number(name: &str) -> Result<Option<usize>> {
    let text = std::env::var(name).ok();
    text.map(|text| text.parse().with_context(|| format!("{name}={text} is no number"))).transpose()
}

/// How one run under the harness ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The call that was hit and its arguments; nothing if the command ended unharmed.
    pub hit: Option<String>,
    /// Its exit code, or 128 and the signal that ended it; nothing if it was somebody else's child.
    pub code: Option<i32>,
    /// What it wrote to standard error; empty if it was already running.
    pub stderr: String,
}

/// What the harness did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Points of the recorded run, before any are left out.
    pub recorded: usize,
    /// Points that were hit and checked.
    pub hits: u32,
    /// Points that were not reached, because the run took another way than the recorded one.
    pub missed: Vec<Point>,
    /// Time of all runs, preparations and checks, over all workers.
    pub took: Duration,
}

impl Report {
    /// Returns the mean time of one point, check and preparation included.
    #[must_use]
    pub fn per_point(&self) -> Duration {
        self.took / self.hits.max(1)
    }
}

/// What gets the fault.
pub enum Victim<'a> {
    /// A command that the harness starts.
    Command(Command),
    /// A process that already runs, and what makes it do the work that the fault disturbs.
    Running {
        /// Its process id.
        pid: u32,
        /// Called once the fault is in force, such as a request to stop. It must not wait for the victim's success.
        then: Box<dyn FnOnce() -> Result<()> + 'a>,
    },
}

impl fmt::Debug for Victim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(command) => command.fmt(f),
            Self::Running { pid, then: _ } => write!(f, "process {pid}"),
        }
    }
}

/// A test of one command: what to prepare, whom to disturb, what to check after the fault.
pub trait Scenario: Sync {
    /// What one run works on, such as a root directory with an image.
    type Site;

    /// Makes a fresh site.
    fn prepare(&self) -> Result<Self::Site>;

    /// Returns whom to disturb.
    fn victim<'a>(&self, site: &'a Self::Site) -> Result<Victim<'a>>;

    /// Checks the site after the fault, and after an undisturbed end.
    fn check(&self, site: Self::Site, outcome: &Outcome) -> Result<()>;
}

/// Longest one disturbed process may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the scenario undisturbed, and then once for each point, on `workers` threads.
pub fn run<S: Scenario>(scenario: &S, fault: Fault, points: &Points, workers: usize) -> Result<Report> {
    let recorded = record(scenario, fault).context("cannot record the undisturbed run")?;
    let report = Report { recorded: recorded.len(), ..Report::default() };
    let taken = points.of(recorded);
    let queue = Mutex::new((taken.into_iter(), report));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(|| work(scenario, fault, &queue))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a check panicked"))?);
        // Every thread is joined before the first error is returned.
        joined.collect::<Vec<Result<()>>>().into_iter().collect::<Result<()>>()
    })?;
    let report = queue.into_inner().map_err(|_| anyhow!("a check panicked"))?.1;
    ensure!(report.hits > 0, "the harness hit none of {} points", report.recorded);
    Ok(report)
}

fn record<S: Scenario>(scenario: &S, fault: Fault) -> Result<Vec<Point>> {
    let site = scenario.prepare().context("cannot prepare")?;
    let (outcome, log) = trace(scenario.victim(&site)?, fault, None)?;
    scenario.check(site, &outcome)?;
    let (mut counts, mut points) = (BTreeMap::<&str, u64>::new(), Vec::new());
    for line in log.lines() {
        let Some((call, _)) = line.split_once('(').filter(|_| !line.starts_with("---")) else { continue };
        let nth = counts.entry(call).or_default();
        *nth += 1;
        if fault.takes(call, line) {
            points.push(Point { call: call.to_owned(), nth: *nth });
        }
    }
    Ok(points)
}

type Queue = Mutex<(std::vec::IntoIter<Point>, Report)>;

fn work<S: Scenario>(scenario: &S, fault: Fault, queue: &Queue) -> Result<()> {
    let lock = || queue.lock().map_err(|_| anyhow!("a check panicked"));
    loop {
        let Some(point) = lock()?.0.next() else { return Ok(()) };
        let started = now();
        let outcome = once(scenario, fault, &point);
        let mut shared = lock()?;
        shared.1.took += now() - started;
        match outcome {
            Ok(true) => shared.1.hits += 1,
            Ok(false) => shared.1.missed.push(point),
            Err(error) => {
                shared.0 = Vec::new().into_iter();
                return Err(error.context(format!("repeat it with PERENNIAL_KILL_ONLY={point}")));
            }
        }
    }
}

/// Disturbs one run and checks it; tells whether the fault hit.
fn once<S: Scenario>(scenario: &S, fault: Fault, point: &Point) -> Result<bool> {
    let site = scenario.prepare().context("cannot prepare")?;
    let outcome = disturb(scenario.victim(&site)?, fault, point)?;
    let hit = outcome.hit.is_some();
    scenario.check(site, &outcome).with_context(|| match &outcome.hit {
        Some(call) => format!("after {fault:?} at {call}"),
        None => format!("after an unharmed end, code {:?}", outcome.code),
    })?;
    Ok(hit)
}

/// Disturbs one process, and waits for its end, not for its children's.
pub fn disturb(victim: Victim<'_>, fault: Fault, point: &Point) -> Result<Outcome> {
    Ok(trace(victim, fault, Some(point))?.0)
}

fn trace(victim: Victim<'_>, fault: Fault, point: Option<&Point>) -> Result<(Outcome, String)> {
    let (log, errors) = (NamedTempFile::new()?, NamedTempFile::new()?);
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-s", "64", "-o"]).arg(log.path());
    match point {
        Some(point) => strace.arg("-e").arg(format!("trace={}", point.call)).arg("-e").arg(fault.inject(point)),
        None => strace.arg("-e").arg(format!("trace={}", fault.traced())),
    };
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.reopen()?);
    let text = format!("{victim:?} under {fault:?} at {}", point.map_or_else(String::new, ToString::to_string));
    let (status, started) = match victim {
        Victim::Command(command) => (start(&mut strace, &command).and_then(|child| finish(child, &text))?, true),
        Victim::Running { pid, then } => {
            let child = attach(&mut strace, pid)?;
            then().context("the request to a running victim failed")?;
            (finish(child, &text)?, false)
        }
    };
    let log = String::from_utf8_lossy(&fs::read(log.path())?).into_owned();
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    let stderr = String::from_utf8_lossy(&fs::read(errors.path())?).into_owned();
    let hit = point.and_then(|_| hit_of(&log, fault));
    Ok((Outcome { hit, code: started.then_some(code), stderr }, log))
}

fn start(strace: &mut Command, command: &Command) -> Result<Child> {
    for (name, value) in command.get_envs() {
        let mut setting = name.to_owned();
        if let Some(value) = value {
            setting.push("=");
            setting.push(value);
        }
        // strace passes it on and does not heed it itself.
        strace.arg("-E").arg(setting);
    }
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    strace.arg("--").arg(command.get_program()).args(command.get_args());
    strace.spawn().context("cannot run strace (package strace)")
}

fn attach(strace: &mut Command, pid: u32) -> Result<Child> {
    let child = strace.arg("-p").arg(pid.to_string()).spawn().context("cannot run strace (package strace)")?;
    let tracer = format!("TracerPid:\t{}\n", child.id());
    wait_until("strace to attach", Duration::from_secs(10), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the victim has ended")?;
        Ok(status.contains(&tracer))
    })?;
    Ok(child)
}

fn finish(mut strace: Child, text: &str) -> Result<ExitStatus> {
    if let Some(status) = wait_within(&mut strace, LIMIT)? {
        return Ok(status);
    }
    // Ending strace kills nothing, it only lets go; so the process it has started goes first.
    let listed = fs::read_to_string(Path::new("/proc").join(format!("{0}/task/{0}/children", strace.id())));
    for pid in listed.unwrap_or_default().split_whitespace() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
    }
    strace.kill()?;
    strace.wait()?;
    bail!("after {LIMIT:?} there still ran {text}")
}

/// Finds the call that was hit in what strace wrote.
fn hit_of(log: &str, fault: Fault) -> Option<String> {
    let call = match fault {
        Fault::Fail { .. } => log.lines().find(|line| line.contains("(INJECTED)")),
        Fault::Kill | Fault::KillBeforeChanges => {
            let killed = log.lines().next_back().is_some_and(|line| line.contains("killed by SIGKILL"));
            log.lines().rev().nth(1).filter(|_| killed)
        }
    };
    call.map(str::to_owned)
}
