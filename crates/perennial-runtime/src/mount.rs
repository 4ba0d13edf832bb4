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
//! content in a directory of data ([`OverlayPlan::data`]) need the first two *on*; what they
//! then leave in the upper is the store's to understand.
//!
//! Layers are handed over one by one through the file-system context (`fsconfig(2)`, `lowerdir+`, Linux 6.8), so that
//! neither their number nor the length of their paths meets the page-sized bound of `mount(2)`; [`MountApi::Legacy`] serves older
//! kernels within that bound.

mod apart;
mod context;
mod legacy;
mod plan;
mod table;

pub use context::Handing;
pub use plan::{Lower, OverlayPlan, Upper};
pub use table::{MountEntry, is_mounted, mounts_under, parse_mountinfo};

use crate::clock;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MoveMountFlags, UnmountFlags, fsconfig_set_string, fsopen, move_mount};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Most layers overlayfs stacks (`OVL_MAX_STACK` in the kernel).
pub const LOWERS_MAX: usize = 500;
/// Time between two tries to unmount: an exiting process needs about this long to let go.
const UNMOUNT_RETRY: Duration = Duration::from_millis(2);

/// Which way to mount; [`mount`] chooses by trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountApi {
    /// File-system contexts (`fsopen(2)`), Linux 6.8 for what is needed here; layers that are attached nowhere are handed
    /// over in this way.
    Context(Handing),
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
    #[error("cannot mount {target}: sealed layers need a kernel whose file-system contexts take layers one by one")]
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
    check(plan, target)?;
    match by_context(plan, target) {
        Ok((mounted, options)) => attach(&mounted, target).map(|()| options),
        // Nothing older can do it: what the kernel says about the new way is what there is to know.
        Err(error) if needs_context(plan) => Err(error),
        Err(error) if is_missing_api(&error) => mount_with(plan, target, MountApi::Legacy),
        // Refused without a word: the old way may do, and if it does not, the first refusal is the one to tell.
        Err(error @ MountError::Kernel { source: Errno::INVAL, .. }) if !error.has_messages() => {
            mount_with(plan, target, MountApi::Legacy).map_err(|_| error)
        }
        Err(error) => Err(error),
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
        MountApi::Context(handing) => {
            let (mounted, options) = context::make(plan, target, handing)?;
            attach(&mounted, target).map(|()| options)
        }
    }
}

/// Makes the union without attaching it anywhere: reachable through the returned descriptor, gone when that closes.
///
/// # Errors
/// As [`mount`]; needs Linux 6.8.
pub fn mount_detached(plan: &OverlayPlan) -> Result<OwnedFd, MountError> {
    let target = Path::new("a detached view");
    check(plan, target)?;
    by_context(plan, target).map(|(mounted, _)| mounted)
}

/// Makes the union as [`mount_detached`] does, with layers handed over in that way only.
///
/// # Errors
/// As [`mount_detached`].
pub(crate) fn mount_detached_with(plan: &OverlayPlan, handing: Handing) -> Result<OwnedFd, MountError> {
    let target = Path::new("a trial");
    check(plan, target)?;
    context::make(plan, target, handing).map(|(mounted, _)| mounted)
}

/// Makes the union by a context, and hands over its layers in the way this kernel takes.
fn by_context(plan: &OverlayPlan, target: &Path) -> Result<(OwnedFd, Vec<String>), MountError> {
    match context::make(plan, target, Handing::Descriptor) {
        // Kernels that do not take such layers by descriptor say no more than this: BADF before Linux 6.13, INVAL before
        // Linux 6.15.
        Err(MountError::Kernel { source: Errno::INVAL | Errno::BADF, .. }) if has_unattached(plan) => {
            context::make(plan, target, Handing::Attached)
        }
        other => other,
    }
}

fn attach(mounted: &OwnedFd, target: &Path) -> Result<(), MountError> {
    move_mount(mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| kernel(target, "attaching the union", Vec::new(), errno))
}

fn needs_context(plan: &OverlayPlan) -> bool {
    plan.data.is_some() || has_fd(plan)
}

fn has_fd(plan: &OverlayPlan) -> bool {
    plan.lowers.iter().any(|lower| lower.path().is_none())
}

fn has_unattached(plan: &OverlayPlan) -> bool {
    has_fd(plan) || context::needs_empty_lower(plan)
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
