//! The union by `mount(2)`, for kernels whose file-system contexts do not take layers one by one (before 6.5).
//!
//! All options share one page. Paths are given relative to the longest directory they have in common, which a thread
//! of its own makes its working directory, so that deep stacks fit more often.

use super::{LayerNeeds, Lower, MountError, OverlayPlan, Upper, apart, kernel};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

/// Bytes of options that `mount(2)` takes: a page without the final NUL.
const OPTIONS_BYTES_MAX: usize = 4095;

/// Mounts the union; see [`super::mount`].
pub(super) fn mount(plan: &OverlayPlan, target: &Path) -> Result<Vec<String>, MountError> {
    let base = common_directory(plan);
    let mut pinned = pinned_here();
    let (data, count) = (data_of(plan, &base, &pinned, target)?, plan.lowers.len());
    if data.as_bytes().len() > OPTIONS_BYTES_MAX {
        let (target, bytes) = (target.display().to_string(), data.as_bytes().len());
        return Err(MountError::OptionsTooLong { target, count, bytes, bytes_max: OPTIONS_BYTES_MAX });
    }
    let flags = match plan.read_only || plan.upper.is_none() {
        true => MountFlags::RDONLY,
        false => MountFlags::empty(),
    };
    match mount_in(&base, target, flags, &data) {
        Ok(()) => {}
        Err(Errno::INVAL) => {
            // One text for all options cannot say which one was not known: try the value every kernel accepts.
            pinned =
                pinned.into_iter().map(|option| option.replace("nofollow", "off").replace("null", "off")).collect();
            let data = data_of(plan, &base, &pinned, target)?;
            mount_in(&base, target, flags, &data).map_err(|errno| refused(target, errno))?;
        }
        Err(errno) => return Err(refused(target, errno)),
    }
    Ok(pinned)
}

fn refused(target: &Path, errno: Errno) -> MountError {
    kernel(target, "mounting the union by mount(2); the kernel log says why", Vec::new(), errno)
}

/// Returns the pinned options this kernel has, by the parameters of its module.
fn pinned_here() -> Vec<String> {
    let known = |name: &str| name == "uuid" || Path::new("/sys/module/overlay/parameters").join(name).exists();
    let pinned = super::pinned(LayerNeeds::Nothing);
    pinned
        .iter()
        .filter(|(name, _)| known(name))
        .filter_map(|(name, values)| values.first().map(|value| format!("{name}={value}")))
        .collect()
}

/// The layers' paths; layers without one do not come here.
fn lowers_of(plan: &OverlayPlan) -> impl Iterator<Item = &Path> {
    plan.lowers.iter().filter_map(Lower::path)
}

fn paths_of(plan: &OverlayPlan) -> Vec<&Path> {
    let upper = plan.upper.iter().flat_map(|Upper { upper, work }| [upper.as_path(), work.as_path()]);
    lowers_of(plan).chain(upper).collect()
}

/// Returns the longest directory that all paths have in common.
fn common_directory(plan: &OverlayPlan) -> PathBuf {
    let mut paths = paths_of(plan).into_iter().map(|path| path.parent().unwrap_or(Path::new("/")));
    let mut common: Vec<Component<'_>> = paths.next().map(|path| path.components().collect()).unwrap_or_default();
    for path in paths {
        let same = common.iter().zip(path.components()).take_while(|(a, b)| **a == *b).count();
        common.truncate(same);
    }
    common.iter().collect()
}

fn data_of(plan: &OverlayPlan, base: &Path, pinned: &[String], target: &Path) -> Result<CString, MountError> {
    let mut data: Vec<u8> = b"lowerdir=".to_vec();
    for (at, lower) in lowers_of(plan).enumerate() {
        if at > 0 {
            data.push(b':');
        }
        push_escaped(&mut data, lower.strip_prefix(base).unwrap_or(lower));
    }
    if let Some(Upper { upper, work }) = &plan.upper {
        data.extend_from_slice(b",upperdir=");
        push_escaped(&mut data, upper.strip_prefix(base).unwrap_or(upper));
        data.extend_from_slice(b",workdir=");
        push_escaped(&mut data, work.strip_prefix(base).unwrap_or(work));
    }
    for option in pinned {
        data.push(b',');
        data.extend_from_slice(option.as_bytes());
    }
    CString::new(data).map_err(|_| MountError::Path {
        target: target.display().to_string(),
        path: paths_of(plan).into_iter().find(|path| path.as_os_str().as_bytes().contains(&0)).unwrap_or(base).into(),
    })
}

/// Appends a path with the characters escaped that separate layers and options.
fn push_escaped(data: &mut Vec<u8>, path: &Path) {
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            data.push(b'\\');
        }
        data.push(*byte);
    }
}

/// Mounts with `base` as the working directory of a thread that shares it with no other.
fn mount_in(base: &Path, target: &Path, flags: MountFlags, data: &CString) -> Result<(), Errno> {
    let target = std::path::absolute(target).map_err(|_| Errno::INVAL)?;
    apart::run(UnshareFlags::FS, || {
        rustix::process::chdir(base)?;
        rustix::mount::mount("perennial", target.as_path(), "overlay", flags, data.as_c_str())
    })
}
