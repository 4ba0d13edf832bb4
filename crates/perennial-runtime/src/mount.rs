//! The union of read-only layers and one writable directory, by overlayfs (row A6).
//!
//! ```text
//!   upper  ─┐                      the only place that is written
//!   newest  ├─ lowers ── merged    what the container sees as `/`
//!   …       │
//!   oldest ─┘
//! ```
//!
//! Options are pinned explicitly, never left to the module's defaults, because what lies in an upper directory
//! depends on them: no metadata-only copies, no directory redirects, no index, nothing volatile. An option the kernel
//! does not know is left out only because a feature it does not have is off anyway. Layers whose files have their
//! content in a directory of data ([`OverlayPlan::data`], Linux 6.15 with an upper) need the first two *on*; what they
//! then leave in the upper is the store's to understand.
//!
//! Layers are handed over one by one through the file-system context (`fsconfig(2)`, `lowerdir+`, Linux 6.5), so that
//! neither their number nor the length of their paths meets the page-sized bound of `mount(2)`; [`MountApi::Legacy`] serves older
//! kernels within that bound.

mod legacy;
mod plan;
mod table;

pub use plan::{Lower, OverlayPlan, Upper};
pub use table::{MountEntry, is_mounted, mounts_under, parse_mountinfo};

use crate::clock;
use rustix::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most layers overlayfs stacks (`OVL_MAX_STACK` in the kernel).
pub const LOWERS_MAX: usize = 500;
/// Longest text `fsconfig(2)` takes, without its NUL.
const FSCONFIG_BYTES_MAX: usize = 255;
/// Time between two tries to unmount: an exiting process needs about this long to let go.
const UNMOUNT_RETRY: Duration = Duration::from_millis(2);
/// Most kernel messages read for one error.
const MESSAGES_MAX: usize = 16;

/// Which way to mount; [`mount`] chooses by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountApi {
    /// File-system contexts (`fsopen(2)`), Linux 6.5 for what is needed here.
    Context,
    /// One call with all options in a page (`mount(2)`).
    Legacy,
}

/// Why a union could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No layers at all.
    #[error("cannot mount {target}: no layers are given")]
    NoLayers {
        /// Where to.
        target: String,
    },
    /// More layers than the kernel stacks.
    #[error("cannot mount {target}: {count} layers, at most {LOWERS_MAX} can be stacked")]
    TooManyLayers {
        /// Where to.
        target: String,
        /// How many there are.
        count: usize,
    },
    /// The options do not fit into the page that old kernels allow.
    #[error(
        "cannot mount {target}: {count} layers need {bytes} bytes of options, this kernel takes {bytes_max}; \
         merge layers, use a shorter root, or run Linux 6.5 or newer"
    )]
    OptionsTooLong {
        /// Where to.
        target: String,
        /// How many layers there are.
        count: usize,
        /// Bytes they need.
        bytes: usize,
        /// Bytes the kernel takes.
        bytes_max: usize,
    },
    /// A path that the kernel's option text cannot carry.
    #[error("cannot mount {target}: the path {path:?} contains a NUL byte or a newline")]
    Path {
        /// Where to.
        target: String,
        /// The path.
        path: PathBuf,
    },
    /// Layers or options that only file-system contexts can set.
    #[error("cannot mount {target}: sealed layers need a kernel whose file-system contexts take layers by descriptor")]
    NeedsContext {
        /// Where to.
        target: String,
    },
    /// The kernel refused.
    #[error("cannot mount {target}: {step}{}", detail(messages))]
    Kernel {
        /// Where to.
        target: String,
        /// What was being done.
        step: String,
        /// What the kernel said about it.
        messages: Vec<String>,
        /// The error number.
        source: Errno,
    },
    /// Still in use at the deadline.
    #[error("{target} is still in use and could not be unmounted")]
    Busy {
        /// Where.
        target: String,
    },
    /// Unmounting failed for another reason.
    #[error("cannot unmount {target}")]
    Unmount {
        /// Where.
        target: String,
        /// The error number.
        source: Errno,
    },
    /// The table of mounts cannot be read.
    #[error("cannot read the table of mounts")]
    Table(#[source] std::io::Error),
}

impl MountError {
    fn has_messages(&self) -> bool {
        matches!(self, Self::Kernel { messages, .. } if !messages.is_empty())
    }
}

fn detail(messages: &[String]) -> String {
    match messages {
        [] => String::new(),
        _ => format!(" ({})", messages.join("; ")),
    }
}

/// Mounts the union at `target`, an existing directory, and returns the options that were set, for the record.
///
/// # Errors
/// If the kernel refuses; the error carries the kernel's own words.
pub fn mount(plan: &OverlayPlan, target: &Path) -> Result<Vec<String>, MountError> {
    match mount_with(plan, target, MountApi::Context) {
        // Nothing older can do it: what the kernel says about the new way is what there is to know.
        Err(error) if needs_context(plan) => Err(error),
        Err(error) if is_missing_api(&error) => mount_with(plan, target, MountApi::Legacy),
        // Refused without a word: the old way may do, and if it does not, the first refusal is the one to tell.
        Err(error @ MountError::Kernel { source: Errno::INVAL, .. }) if !error.has_messages() => {
            mount_with(plan, target, MountApi::Legacy).map_err(|_| error)
        }
        other => other,
    }
}

/// Mounts as [`mount`], by one way only.
///
/// # Errors
/// As [`mount`], and if the kernel does not have that way.
pub fn mount_with(plan: &OverlayPlan, target: &Path, api: MountApi) -> Result<Vec<String>, MountError> {
    check(plan, target)?;
    match api {
        MountApi::Legacy if needs_context(plan) => {
            Err(MountError::NeedsContext { target: target.display().to_string() })
        }
        MountApi::Legacy => legacy::mount(plan, target),
        MountApi::Context => {
            let (mounted, options) = context(plan, target)?;
            move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|errno| kernel(target, "attaching the union", Vec::new(), errno))?;
            Ok(options)
        }
    }
}

/// Makes the union without attaching it anywhere: reachable through the returned descriptor, gone when that closes.
///
/// # Errors
/// As [`mount`]; needs Linux 6.5.
pub fn mount_detached(plan: &OverlayPlan) -> Result<OwnedFd, MountError> {
    let target = Path::new("a detached view");
    check(plan, target)?;
    context(plan, target).map(|(mounted, _)| mounted)
}

fn needs_context(plan: &OverlayPlan) -> bool {
    plan.data.is_some() || plan.lowers.iter().any(|lower| lower.path().is_none())
}

/// What the layers of a union need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerNeeds {
    /// All of their content is in them.
    Nothing,
    /// A directory of data, as in [`OverlayPlan::data`].
    Data,
}

/// Returns the options that [`mount`] pins on this kernel, as `name=value`, without the layers.
#[must_use]
pub fn recorded_options(needs: LayerNeeds) -> Vec<String> {
    let pinned = pinned(needs);
    let Ok(fs) = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) else {
        return pinned
            .iter()
            .filter_map(|(name, values)| values.last().map(|value| format!("{name}={value}")))
            .collect();
    };
    let mut options = Vec::new();
    for (name, values) in pinned {
        let accepted = values.iter().find(|value| fsconfig_set_string(&fs, *name, **value).is_ok());
        options.extend(accepted.map(|value| format!("{name}={value}")));
    }
    options
}

/// Unmounts `target`, trying again while it is busy, for at most `deadline`. Never lazily: when this returns `Ok`, the
/// union is gone and its upper directory at rest. Whoever keeps it busy is the caller's to end, through the cgroup.
///
/// # Errors
/// [`MountError::Busy`] at the deadline. A target where nothing is mounted is no error.
pub fn unmount(target: &Path, deadline: Duration) -> Result<(), MountError> {
    let end = clock::monotonic().saturating_add(deadline);
    loop {
        match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) => {
                if !is_mounted(target).map_err(MountError::Table)? {
                    return Ok(());
                }
            }
            // Not a mount point, or not there: nothing to do.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::AGAIN | Errno::INTR) => {
                if clock::monotonic() >= end {
                    return Err(MountError::Busy { target: target.display().to_string() });
                }
                clock::pause(UNMOUNT_RETRY);
            }
            Err(source) => return Err(MountError::Unmount { target: target.display().to_string(), source }),
        }
    }
}

/// Makes everything written to the file system of `directory` durable.
///
/// # Errors
/// If the directory cannot be opened or the file system reports a failed write.
pub fn syncfs(directory: &Path) -> std::io::Result<()> {
    let fd = rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(fd)?)
}

/// Name of the option that lets the upper get metadata-only files.
const METACOPY: &str = "metacopy";
/// Its recorded value where it does.
const METACOPY_ON: &str = "metacopy=on";

/// Returns whether a union with these recorded options can leave metadata-only files and redirects in its upper.
#[must_use]
pub fn leaves_redirects(recorded: &[String]) -> bool {
    recorded.iter().any(|option| option == METACOPY_ON)
}

/// Returns the pinned options, each with the values to try; the last one is what every kernel that knows the option
/// accepts. `nofollow` also keeps redirects in foreign layers from being followed, whatever the module's default says.
/// Sealed layers are file systems of their own: `xino` keeps all files of the union on one device for those who look
/// at device numbers, such as `find -xdev`.
fn pinned(needs: LayerNeeds) -> &'static [(&'static str, &'static [&'static str])] {
    match needs {
        LayerNeeds::Nothing => &[
            ("redirect_dir", &["nofollow", "off"]),
            (METACOPY, &["off"]),
            ("index", &["off"]),
            ("nfs_export", &["off"]),
            ("uuid", &["null", "off"]),
        ],
        LayerNeeds::Data => &[
            ("redirect_dir", &["on"]),
            (METACOPY, &["on"]),
            ("index", &["off"]),
            ("nfs_export", &["off"]),
            ("uuid", &["null", "off"]),
            ("xino", &["on"]),
        ],
    }
}

fn check(plan: &OverlayPlan, target: &Path) -> Result<(), MountError> {
    match plan.lowers.len() {
        0 => Err(MountError::NoLayers { target: target.display().to_string() }),
        1..=LOWERS_MAX => Ok(()),
        count => Err(MountError::TooManyLayers { target: target.display().to_string(), count }),
    }
}

fn kernel(target: &Path, step: impl Into<String>, messages: Vec<String>, source: Errno) -> MountError {
    MountError::Kernel { target: target.display().to_string(), step: step.into(), messages, source }
}

/// Tells whether the kernel lacks file-system contexts or `lowerdir+`, so that the old way is worth a try.
fn is_missing_api(error: &MountError) -> bool {
    match error {
        MountError::Kernel { source: Errno::NOSYS, .. } => true,
        MountError::Kernel { messages, source: Errno::INVAL, .. } => {
            // The second one is what kernels before 6.5 say, which check all options only at the end.
            let is_unknown =
                |text: &str| text.contains("nknown parameter") || text.contains("unrecognized mount option");
            messages.iter().any(|message| message.contains("lowerdir+") && is_unknown(message))
        }
        MountError::Kernel { .. }
        | MountError::NoLayers { .. }
        | MountError::TooManyLayers { .. }
        | MountError::OptionsTooLong { .. }
        | MountError::Path { .. }
        | MountError::NeedsContext { .. }
        | MountError::Busy { .. }
        | MountError::Unmount { .. }
        | MountError::Table(_) => false,
    }
}

/// Builds the detached mount.
fn context(plan: &OverlayPlan, target: &Path) -> Result<(OwnedFd, Vec<String>), MountError> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| kernel(target, "opening the file system overlay", Vec::new(), errno))?;
    // The name in the first column of the table of mounts; `findmnt` shows it.
    set(&fs, target, "source", "perennial")?;
    for lower in &plan.lowers {
        set_lower(&fs, target, lower)?;
    }
    if let Some(data) = &plan.data {
        set_path(&fs, target, "datadir+", data)?;
    }
    let is_read_only = plan.read_only || plan.upper.is_none();
    let empty = match &plan.upper {
        Some(Upper { upper, work }) => {
            set_path(&fs, target, "upperdir", upper)?;
            set_path(&fs, target, "workdir", work)?;
            None
        }
        None if plan.lowers.len() == 1 && plan.data.is_none() => Some(set_empty_lower(&fs, target)?),
        None => None,
    };
    let needs = if plan.data.is_some() { LayerNeeds::Data } else { LayerNeeds::Nothing };
    let options = set_pinned(&fs, target, needs)?;
    if is_read_only {
        fsconfig_set_flag(&fs, "ro").map_err(|errno| kernel(target, "setting ro", messages(&fs), errno))?;
    }
    let log = KernelLog::open();
    fsconfig_create(&fs).map_err(|errno| {
        let mut messages = messages(&fs);
        messages.extend(log.overlay_messages());
        kernel(target, "creating the union", messages, errno)
    })?;
    // The union has its own hold on the layers now.
    drop(empty);
    let attributes = if is_read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| kernel(target, "making the mount", messages(&fs), errno))?;
    Ok((mounted, options))
}

fn set_pinned(fs: &OwnedFd, target: &Path, needs: LayerNeeds) -> Result<Vec<String>, MountError> {
    let mut options = Vec::new();
    for (name, values) in pinned(needs) {
        let mut refusal = None;
        let accepted = values.iter().find(|value| match fsconfig_set_string(fs, *name, **value) {
            Ok(()) => true,
            Err(errno) => {
                refusal = Some((errno, messages(fs)));
                false
            }
        });
        match (accepted, refusal) {
            (Some(value), _) => options.push(format!("{name}={value}")),
            (None, Some((errno, messages))) if needs == LayerNeeds::Data || !is_unknown(&messages) => {
                return Err(kernel(target, format!("setting {name}={}", values.join(" or ")), messages, errno));
            }
            (None, _) => {}
        }
    }
    Ok(options)
}

fn is_unknown(messages: &[String]) -> bool {
    messages.iter().any(|message| message.contains("nknown parameter"))
}

fn set(fs: &OwnedFd, target: &Path, key: &str, value: &str) -> Result<(), MountError> {
    fsconfig_set_string(fs, key, value).map_err(|errno| kernel(target, format!("setting {key}"), messages(fs), errno))
}

fn set_lower(fs: &OwnedFd, target: &Path, lower: &Lower) -> Result<(), MountError> {
    let key = "lowerdir+";
    match lower {
        Lower::Dir(path) => set_path(fs, target, key, path),
        Lower::Fd(fd) => set_fd(fs, key, fd.as_fd())
            .map_err(|errno| kernel(target, format!("setting {key} to {}", lower.name()), messages(fs), errno)),
    }
}

/// Sets a path: as text where it fits, so that the table of mounts shows it; else by descriptor.
fn set_path(fs: &OwnedFd, target: &Path, key: &str, path: &Path) -> Result<(), MountError> {
    let fail = |messages, errno| kernel(target, format!("setting {key} to {}", path.display()), messages, errno);
    if path.as_os_str().len() <= FSCONFIG_BYTES_MAX {
        return fsconfig_set_string(fs, key, path).map_err(|errno| fail(messages(fs), errno));
    }
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| fail(Vec::new(), errno))?;
    set_fd(fs, key, fd.as_fd()).map_err(|errno| fail(messages(fs), errno))
}

/// Sets a directory by descriptor: directly (Linux 6.13), else through its name in `/proc`.
fn set_fd(fs: &OwnedFd, key: &str, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    if fsconfig_set_fd(fs, key, fd).is_ok() {
        return Ok(());
    }
    let _: Vec<String> = messages(fs);
    fsconfig_set_string(fs, key, format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Adds an empty directory below a single layer: overlayfs wants two where there is no upper directory. It is the root
/// of a tmpfs that is attached nowhere and lives as long as the union.
///
/// The returned descriptor must stay open until the union has been created.
fn set_empty_lower(fs: &OwnedFd, target: &Path) -> Result<OwnedFd, MountError> {
    let fail = |errno| kernel(target, "adding an empty layer", messages(fs), errno);
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    fsconfig_set_string(&tmpfs, "size", "4096").map_err(fail)?;
    fsconfig_create(&tmpfs).map_err(fail)?;
    let empty = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(fail)?;
    set_fd(fs, "lowerdir+", empty.as_fd()).map_err(fail)?;
    Ok(empty)
}

/// Reads what the kernel has said in this context since the last time, one message a line.
fn messages(fs: &OwnedFd) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..MESSAGES_MAX {
        let mut buffer = [0_u8; 1024];
        match rustix::io::read(fs, &mut buffer) {
            Ok(count) if count > 0 => {
                let text = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
                // "e overlay: …": the first letter is the severity.
                let text = text.trim_end();
                texts.push(text.split_once(' ').map_or(text, |(_, rest)| rest).to_owned());
            }
            // ENODATA: nothing more has been said.
            Ok(_) | Err(_) => break,
        }
    }
    texts
}

/// The kernel's log from a moment on: overlayfs says most of its reasons there and not in the context.
struct KernelLog(Option<OwnedFd>);

impl KernelLog {
    fn open() -> Self {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).ok();
        Self(fd.filter(|fd| rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0)).is_ok()))
    }

    /// Returns what overlayfs has said since; some of it may be about somebody else's union.
    fn overlay_messages(&self) -> Vec<String> {
        let Some(fd) = &self.0 else { return Vec::new() };
        let mut texts = Vec::new();
        for _ in 0..MESSAGES_MAX {
            let mut buffer = [0_u8; 4096];
            let Ok(count) = rustix::io::read(fd, &mut buffer) else { break };
            let record = String::from_utf8_lossy(buffer.get(..count).unwrap_or_default());
            // "level,sequence,time,flags;text" and lines of details.
            let text = record.lines().next().and_then(|line| line.split_once(';')).map(|(_, text)| text.to_owned());
            texts.extend(text.filter(|text| text.starts_with("overlayfs:")));
        }
        texts
    }
}
