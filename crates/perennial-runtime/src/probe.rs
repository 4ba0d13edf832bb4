//! What this machine can do, found out by trying, never by version; `doctor` shows it.

use crate::cgroup::{self, CgroupVersion};
use crate::mount::{self, Handing, LayerNeeds, Lower, MountError, OverlayPlan, Upper};
use crate::{bundle, network, oci};
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, mknodat};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for a trial union to be unmounted.
const UNMOUNT_MAX: Duration = Duration::from_secs(2);

/// Whether something works, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// It works.
    Works,
    /// It does not; in the words of whoever refused.
    Fails(String),
}

/// What a directory's file system can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryProbe {
    /// A union can be mounted with its upper directory here, written to and unmounted.
    pub overlay: Ability,
    /// `trusted.*` attributes can be set: without them, replaced directories cannot be told.
    pub trusted_xattrs: Ability,
    /// Character devices 0/0 can be made: without them, deletions cannot be told.
    pub whiteouts: Ability,
    /// Reading a directory tells the types of its entries, which overlayfs needs.
    pub d_type: Ability,
    /// Files can share blocks, so that a first write to a big file is quick.
    pub reflink: Ability,
}

/// What the host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostProbe {
    /// Release of the kernel.
    pub kernel: String,
    /// Version of the cgroups.
    pub cgroups: CgroupVersion,
    /// Whether memory and swap can be bounded together.
    pub swap_accounting: bool,
    /// The OCI runtime's first line about itself.
    pub runtime: Result<String, String>,
    /// Where netavark is, for `--network bridge`.
    pub netavark: Option<PathBuf>,
    /// Where an init program is, for `--init`.
    pub init: Option<PathBuf>,
    /// Options that unions are mounted with here.
    pub mount_options: Vec<String>,
}

/// Tries what the host can do, with the OCI runtime of that name.
#[must_use]
pub fn host(runtime: &str) -> HostProbe {
    let version = oci::OciRuntime::by_path(runtime, Path::new("/nonexistent")).and_then(|runtime| runtime.version());
    HostProbe {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        cgroups: cgroup::version(),
        swap_accounting: cgroup::has_swap_accounting(),
        runtime: version.map_err(|error| error.to_string()),
        netavark: network::find_netavark(),
        init: bundle::find_init().ok().map(|init| init.path),
        mount_options: mount::recorded_options(LayerNeeds::Nothing),
    }
}

/// Tries what the file system of `directory` can do, in a new directory named `name` in it that is removed afterwards.
///
/// # Errors
/// If the new directory cannot be made or removed.
pub fn directory(directory: &Path, name: &str) -> io::Result<DirectoryProbe> {
    let trial = directory.join(name);
    std::fs::create_dir(&trial)?;
    let probe = DirectoryProbe {
        overlay: ability(try_overlay(&trial)),
        trusted_xattrs: ability(try_xattr(&trial)),
        whiteouts: ability(try_whiteout(&trial)),
        d_type: ability(try_d_type(&trial)),
        reflink: ability(try_reflink(&trial)),
    };
    std::fs::remove_dir_all(&trial)?;
    Ok(probe)
}

/// Tries whether unions can have sealed layers, and how these reach overlayfs: mounts one, with contents from `data`, in
/// a new directory `trial` that is removed afterwards. `layer` opens the root of a layer that is attached nowhere.
///
/// # Errors
/// What the kernel said, or why there is no such layer or directory.
pub fn sealed<E>(layer: impl Fn() -> Result<OwnedFd, E>, data: &Path, trial: &Path) -> Result<Handing, E>
where
    E: From<io::Error> + From<MountError>,
{
    std::fs::create_dir(trial)?;
    let tried = try_sealed(layer, data, trial);
    // A rest is a leftover like any other; what was tried was tried.
    std::fs::remove_dir_all(trial).ok();
    tried
}

fn try_sealed<E>(layer: impl Fn() -> Result<OwnedFd, E>, data: &Path, trial: &Path) -> Result<Handing, E>
where
    E: From<io::Error> + From<MountError>,
{
    let path = |name: &str| trial.join(name);
    for name in ["upper", "work"] {
        std::fs::create_dir(path(name))?;
    }
    let by = |handing| -> Result<Handing, E> {
        let upper = Some(Upper { upper: path("upper"), work: path("work") });
        let (lowers, data) = (vec![Lower::of_fd(layer()?)], Some(data.to_path_buf()));
        let plan = OverlayPlan { lowers, data, upper, read_only: false };
        // Attached nowhere: whatever ends this process, no mount is left.
        drop(mount::mount_detached_with(&plan, handing)?);
        Ok(handing)
    };
    by(Handing::Descriptor).or_else(|_| by(Handing::Attached))
}

fn ability<E: std::error::Error>(result: Result<(), E>) -> Ability {
    match result {
        Ok(()) => Ability::Works,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            Ability::Fails(format!("{error}{cause}"))
        }
    }
}

fn try_overlay(trial: &Path) -> Result<(), io::Error> {
    let path = |name: &str| trial.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(path(name))?;
    }
    put(&path("lower/file"), "lower")?;
    let upper = Some(Upper { upper: path("upper"), work: path("work") });
    let plan = OverlayPlan { lowers: vec![path("lower").into()], data: None, upper, read_only: false };
    mount::mount(&plan, &path("merged")).map_err(with_causes)?;
    let used = put(&path("merged/file"), "upper").and_then(|()| match std::fs::read(path("lower/file"))?.as_slice() {
        b"lower" => Ok(()),
        _ => Err(io::Error::other("a write reached the read-only layer")),
    });
    mount::unmount(&path("merged"), UNMOUNT_MAX).map_err(with_causes)?;
    used
}

fn with_causes(error: mount::MountError) -> io::Error {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    io::Error::other(format!("{error}{cause}"))
}

fn try_xattr(trial: &Path) -> io::Result<()> {
    Ok(rustix::fs::setxattr(trial, "trusted.perennial.probe", b"y", XattrFlags::empty())?)
}

fn try_whiteout(trial: &Path) -> io::Result<()> {
    Ok(mknodat(CWD, trial.join("whiteout"), FileType::CharacterDevice, Mode::empty(), 0)?)
}

fn try_d_type(trial: &Path) -> io::Result<()> {
    let fd = rustix::fs::open(trial, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in rustix::fs::Dir::new(fd)? {
        if entry?.file_type() == FileType::Unknown {
            return Err(io::Error::other("the file system does not tell the types of directory entries"));
        }
    }
    Ok(())
}

fn try_reflink(trial: &Path) -> io::Result<()> {
    let path = trial.join("reflink");
    put(&path, "content")?;
    let (from, to) = (File::open(&path)?, File::create(trial.join("reflink-copy"))?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
}

fn put(path: &Path, text: &str) -> io::Result<()> {
    File::create(path)?.write_all(text.as_bytes())
}
