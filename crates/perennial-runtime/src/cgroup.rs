//! A container's cgroup, in version 1 (one directory in each hierarchy) and version 2 (one directory).
//!
//! Everything here is by path, so that it also works after the runtime and the supervisor are gone.

use crate::clock;
use crate::mount::parse_mountinfo;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time between two looks while processes end.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Deepest nesting of cgroups that is searched; the kernel's own practical bound is far below.
const DEPTH_MAX: usize = 32;

/// Which cgroups the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// Only version 2.
    V2,
    /// Controllers in version 1, perhaps with an empty version 2 beside them.
    V1,
    /// None mounted: containers cannot be run.
    None,
}

/// Why a cgroup could not be read or emptied.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Processes are left at the deadline.
    #[error("{count} processes of cgroup {path} did not end: {pids:?}")]
    Left {
        /// The cgroup.
        path: String,
        /// How many.
        count: usize,
        /// Their ids.
        pids: Vec<i32>,
    },
    /// The path would reach other cgroups than one container's.
    #[error("cgroup path {path:?} is not of the form /PARENT/NAME")]
    Path {
        /// The path.
        path: String,
    },
    /// A file of the cgroup cannot be used.
    #[error("cannot use cgroup {path}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// The directories of one cgroup in all mounted hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: String,
    directories: Vec<PathBuf>,
}

impl Cgroup {
    /// Finds the directories of `path`, such as `/perennial/ID`; those that do not exist count too.
    ///
    /// # Errors
    /// If the path is not at least two levels deep (everything in a cgroup may get killed), or the table of mounts
    /// cannot be read.
    pub fn at(path: &str) -> Result<Self, CgroupError> {
        let relative = path.trim_start_matches('/');
        let is_plain = relative.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !is_plain || relative.split('/').count() < 2 {
            return Err(CgroupError::Path { path: path.to_owned() });
        }
        let directories = hierarchies()?.into_iter().map(|mounted| mounted.join(relative)).collect();
        Ok(Self { path: path.to_owned(), directories })
    }

    /// Returns the ids of all processes in it and below.
    ///
    /// # Errors
    /// If a list cannot be read for another reason than that the cgroup is gone.
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for directory in &self.directories {
            collect_pids(directory, DEPTH_MAX, &mut pids)?;
        }
        Ok(pids.into_iter().collect())
    }

    /// Kills everything in it and waits until nothing is left, for at most `deadline`.
    ///
    /// # Errors
    /// [`CgroupError::Left`] if something is left then, such as a process in an uninterruptible wait.
    pub fn kill_all(&self, deadline: Duration) -> Result<(), CgroupError> {
        let end = clock::monotonic().saturating_add(deadline);
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            self.kill_once(&pids);
            if clock::monotonic() >= end {
                return Err(CgroupError::Left { path: self.path.clone(), count: pids.len(), pids });
            }
            clock::pause(LOOK_AGAIN);
        }
    }

    /// Kills at once where the kernel can (`cgroup.kill`, Linux 5.14), else one by one, again and again by the caller.
    fn kill_once(&self, pids: &[i32]) {
        let own = rustix::process::getpid();
        let killed_at_once =
            self.directories.iter().any(|directory| write(&directory.join("cgroup.kill"), "1").is_ok());
        self.thaw();
        if killed_at_once {
            return;
        }
        for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)).filter(|pid| *pid != own) {
            // A process that has ended meanwhile is what is wanted; the next look shows those that have not.
            kill_process(pid, Signal::KILL).ok();
        }
    }

    /// Thaws it: a frozen process of version 1 does not die.
    fn thaw(&self) {
        for directory in &self.directories {
            write(&directory.join("freezer.state"), "THAWED").ok();
            write(&directory.join("cgroup.freeze"), "0").ok();
        }
    }

    /// Returns how often the kernel killed a process in it for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let count = |file: PathBuf| {
            let text = std::fs::read_to_string(file).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
        };
        let files = self.directories.iter();
        files
            .filter_map(|directory| {
                count(directory.join("memory.events")).or_else(|| count(directory.join("memory.oom_control")))
            })
            .max()
            .unwrap_or(0)
    }

    /// Removes its directories, deepest first. Those that are gone already are no error.
    ///
    /// # Errors
    /// If a directory is still in use.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.directories.iter().try_for_each(|directory| remove_below(directory, DEPTH_MAX))
    }
}

/// Returns which cgroups this machine has.
#[must_use]
pub fn version() -> CgroupVersion {
    let entries = std::fs::read("/proc/self/mountinfo").map(|text| parse_mountinfo(&text)).unwrap_or_default();
    let has_v1 = entries.iter().any(|entry| entry.fs_type == "cgroup" && !entry.has_super_option("name=systemd"));
    match (has_v1, entries.iter().any(|entry| entry.fs_type == "cgroup2")) {
        (true, _) => CgroupVersion::V1,
        (false, true) => CgroupVersion::V2,
        (false, false) => CgroupVersion::None,
    }
}

/// Tells whether memory and swap can be bounded together here.
#[must_use]
pub fn has_swap_accounting() -> bool {
    match version() {
        CgroupVersion::V2 => Path::new("/proc/swaps").exists(),
        CgroupVersion::V1 => hierarchies()
            .map(|mounted| mounted.iter().any(|path| path.join("memory.memsw.limit_in_bytes").exists()))
            .unwrap_or(false),
        CgroupVersion::None => false,
    }
}

/// Returns where the hierarchies are mounted.
fn hierarchies() -> Result<Vec<PathBuf>, CgroupError> {
    let table = "/proc/self/mountinfo";
    let text = std::fs::read(table).map_err(|source| CgroupError::Io { path: table.to_owned(), source })?;
    let mut targets: Vec<PathBuf> = parse_mountinfo(&text)
        .into_iter()
        .filter(|entry| matches!(entry.fs_type.as_str(), "cgroup" | "cgroup2"))
        .map(|entry| entry.target)
        .collect();
    targets.sort();
    targets.dedup();
    Ok(targets)
}

fn io_error(path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io { path: path.display().to_string(), source }
}

/// Tells errors that only mean that the cgroup has gone meanwhile.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn collect_pids(directory: &Path, depth: usize, pids: &mut BTreeSet<i32>) -> Result<(), CgroupError> {
    let file = directory.join("cgroup.procs");
    match std::fs::read_to_string(&file) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok())),
        Err(error) if is_gone(&error) => return Ok(()),
        Err(source) => return Err(io_error(&file, source)),
    }
    let Some(depth) = depth.checked_sub(1) else { return Ok(()) };
    subdirectories(directory)?.iter().try_for_each(|child| collect_pids(child, depth, pids))
}

fn subdirectories(directory: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(source) => return Err(io_error(directory, source)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| io_error(directory, source))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

fn remove_below(directory: &Path, depth: usize) -> Result<(), CgroupError> {
    if let Some(depth) = depth.checked_sub(1) {
        subdirectories(directory)?.iter().try_for_each(|child| remove_below(child, depth))?;
    }
    match std::fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(source) => Err(io_error(directory, source)),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}
