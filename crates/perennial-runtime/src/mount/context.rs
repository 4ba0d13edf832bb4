//! The union by a file-system context (`fsopen(2)`), layer by layer.
//!
//! Layers that are mounts attached nowhere are handed over by descriptor, which takes Linux 6.15. Before that, overlayfs
//! takes only what is attached in the namespace of whoever makes the union ([`Handing::Attached`]): a thread with a
//! namespace of its own attaches them there and names them by their descriptors. The union holds on to the layers
//! itself, so the thread and its namespace go at once, and nobody else sees the layers. Layers attached so serve one
//! union only.

use super::{LayerNeeds, Lower, MountError, OverlayPlan, Upper, apart, kernel, pinned};
use rustix::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};
use rustix::thread::UnshareFlags;
use std::path::Path;

/// Longest text `fsconfig(2)` takes, without its NUL.
const FSCONFIG_BYTES_MAX: usize = 255;
/// Most kernel messages read for one error.
const MESSAGES_MAX: usize = 16;
/// Where layers are attached, one over the other, in a namespace that only one thread sees: a directory that every
/// kernel has and through which no path of a layer leads.
const ATTACH_AT: &str = "/proc/fs";

/// The option that adds a layer below those before it, Linux 6.8 (by descriptor 6.13).
const LOWER: &str = "lowerdir+";

/// How layers that are mounts attached nowhere reach overlayfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handing {
    /// By descriptor, Linux 6.15.
    Descriptor,
    /// Attached in a mount namespace that lives as long as the call.
    Attached,
}

/// Makes the union without attaching it, and returns it with the options that were set.
pub(super) fn make(plan: &OverlayPlan, target: &Path, handing: Handing) -> Result<(OwnedFd, Vec<String>), MountError> {
    match handing {
        Handing::Descriptor => build(plan, target, handing),
        Handing::Attached => apart::run(UnshareFlags::NEWNS, || {
            // What is attached below must not reach the namespace this one was copied from.
            mount_change("/proc", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            Ok(build(plan, target, handing))
        })
        .map_err(|errno| kernel(target, "making a mount namespace for its layers", Vec::new(), errno))?,
    }
}

fn build(plan: &OverlayPlan, target: &Path, handing: Handing) -> Result<(OwnedFd, Vec<String>), MountError> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| kernel(target, "opening the file system overlay", Vec::new(), errno))?;
    // The name in the first column of the table of mounts; `findmnt` shows it.
    set(&fs, target, "source", "perennial")?;
    for lower in &plan.lowers {
        set_lower(&fs, target, lower, handing)?;
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
        None if needs_empty_lower(plan) => Some(set_empty_lower(&fs, target, handing)?),
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

/// Whether an empty layer has to go below the only one: overlayfs wants two where there is no upper directory.
pub(super) fn needs_empty_lower(plan: &OverlayPlan) -> bool {
    plan.upper.is_none() && plan.lowers.len() == 1 && plan.data.is_none()
}

fn set_lower(fs: &OwnedFd, target: &Path, lower: &Lower, handing: Handing) -> Result<(), MountError> {
    match lower {
        Lower::Dir(path) => set_path(fs, target, LOWER, path),
        Lower::Fd(fd) => set_unattached(fs, fd.as_fd(), handing)
            .map_err(|errno| kernel(target, format!("setting {LOWER} to {}", lower.name()), messages(fs), errno)),
    }
}

/// Adds a layer that is a mount attached nowhere.
fn set_unattached(fs: &OwnedFd, fd: BorrowedFd<'_>, handing: Handing) -> Result<(), Errno> {
    match handing {
        Handing::Descriptor => fsconfig_set_fd(fs, LOWER, fd),
        Handing::Attached => {
            move_mount(fd, "", CWD, ATTACH_AT, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            fsconfig_set_string(fs, LOWER, name_in_proc(fd))
        }
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
    fsconfig_set_string(fs, key, name_in_proc(fd))
}

fn name_in_proc(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Adds an empty directory below a single layer: the root of a tmpfs that is attached nowhere and lives as long as the
/// union.
///
/// The returned descriptor must stay open until the union has been created.
fn set_empty_lower(fs: &OwnedFd, target: &Path, handing: Handing) -> Result<OwnedFd, MountError> {
    let fail = |errno| kernel(target, "adding an empty layer", messages(fs), errno);
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail)?;
    fsconfig_set_string(&tmpfs, "size", "4096").map_err(fail)?;
    fsconfig_create(&tmpfs).map_err(fail)?;
    let empty = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).map_err(fail)?;
    set_unattached(fs, empty.as_fd(), handing).map_err(fail)?;
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
