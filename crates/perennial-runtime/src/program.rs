//! Looks at the program a container would run, in its mounted tree, before anything runs.
//!
//! What to make of it is decided by [`perennial_core::process::judge`]; here paths are looked up. The tree belongs to the
//! container: links are followed inside it only, one component at a time, and what something will be mounted over is
//! not looked at.

use perennial_core::process::{ExecFacts, ExecRefusal, Found, Process, Tree, judge};
use perennial_core::spec::Volume;
use rustix::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Links the kernel follows in one path (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Components of a path that are looked up; a longest path has half as many.
const COMPONENTS_MAX: usize = 4096;
/// Where the runtime mounts something in every container.
const MOUNTED: [&str; 3] = ["/proc", "/dev", "/sys"];
/// Where the kernel lists its handlers of foreign formats.
const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";

/// Checks that the kernel would execute the program of `process` in the tree at `rootfs`; `by_init` says that an init
/// program does it.
///
/// # Errors
/// Where it would certainly refuse. What cannot be told is no error.
pub fn check(rootfs: &Path, process: &Process, volumes: &[Volume], by_init: bool) -> Result<(), ExecRefusal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(rootfs, flags, Mode::empty()) else { return Ok(()) };
    let mut tree = Rootfs { root, mounted: MOUNTED.iter().map(PathBuf::from).collect() };
    for volume in volumes {
        match tree.walk(Path::new(&volume.target)) {
            Walk::There { path, .. } | Walk::Missing { path } => tree.mounted.push(path),
            // It hides nothing that is not hidden already.
            Walk::Hidden => {}
            Walk::Unknown => return Ok(()),
        }
    }
    let facts = ExecFacts { arch: std::env::consts::ARCH, has_handlers: has_handlers(), by_init };
    judge(process, &facts, &tree)
}

fn has_handlers() -> bool {
    let Ok(entries) = std::fs::read_dir(HANDLERS) else { return false };
    entries.flatten().any(|entry| !["register", "status"].iter().any(|own| entry.file_name() == *own))
}

/// A mounted tree, and the real paths in it over which something will be mounted.
struct Rootfs {
    root: OwnedFd,
    mounted: Vec<PathBuf>,
}

/// Where a path leads.
enum Walk {
    /// To something, with its real path.
    There { fd: OwnedFd, path: PathBuf },
    /// To nothing; the path that is missing, as far as it is known.
    Missing { path: PathBuf },
    /// Below a mount.
    Hidden,
    /// It cannot be told.
    Unknown,
}

impl Rootfs {
    /// Follows a path from the root as the kernel does, with links.
    fn walk(&self, path: &Path) -> Walk {
        let mut rest: Vec<OsString> = components(path.as_os_str());
        let mut above: Vec<(OsString, OwnedFd)> = Vec::new();
        let (mut links, mut looked_up) = (0, 0);
        while let Some(name) = rest.pop() {
            looked_up += 1;
            if looked_up > COMPONENTS_MAX {
                return Walk::Unknown;
            }
            if name == ".." {
                above.pop();
                continue;
            }
            let real = real_path(&above).join(&name);
            if self.mounted.contains(&real) {
                return Walk::Hidden;
            }
            let directory = above.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = match rustix::fs::openat(directory, &name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => return self.missing(&real, &rest),
                Err(_) => return Walk::Unknown,
            };
            match kind_of(&fd) {
                Some(FileType::Symlink) => {
                    links += 1;
                    let Ok(target) = rustix::fs::readlinkat(&fd, "", Vec::new()) else { return Walk::Unknown };
                    if links > LINKS_MAX {
                        return Walk::Unknown;
                    }
                    let target = OsString::from_vec(target.into_bytes());
                    if target.as_bytes().first() == Some(&b'/') {
                        above.clear();
                    }
                    rest.extend(components(&target));
                }
                Some(_) => above.push((name, fd)),
                None => return Walk::Unknown,
            }
        }
        let path = real_path(&above);
        above.pop().map_or(Walk::Unknown, |(_, fd)| Walk::There { fd, path })
    }

    /// Says of a path that is missing from `real` on whether the runtime will make it for a mount.
    fn missing(&self, real: &Path, rest: &[OsString]) -> Walk {
        // Where a way back leads from what is not there yet, only the runtime knows.
        if rest.iter().any(|name| name == "..") {
            return Walk::Unknown;
        }
        let path: PathBuf = std::iter::once(real).chain(rest.iter().rev().map(Path::new)).collect();
        match self.mounted.iter().any(|mounted| path.starts_with(mounted)) {
            true => Walk::Hidden,
            false => Walk::Missing { path },
        }
    }
}

/// The names of a path, the first one last.
fn components(path: &OsStr) -> Vec<OsString> {
    let names = path.as_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.rev().map(|name| OsStr::from_bytes(name).to_owned()).collect()
}

fn real_path(above: &[(OsString, OwnedFd)]) -> PathBuf {
    std::iter::once(OsStr::new("/")).chain(above.iter().map(|(name, _)| name.as_os_str())).collect()
}

fn kind_of(fd: &OwnedFd) -> Option<FileType> {
    Some(FileType::from_raw_mode(rustix::fs::fstat(fd).ok()?.st_mode))
}

impl Tree for Rootfs {
    type File = File;

    fn find(&self, path: &[u8]) -> Found<File> {
        let fd = match self.walk(Path::new(OsStr::from_bytes(path))) {
            Walk::There { fd, .. } => fd,
            Walk::Missing { .. } => return Found::Missing,
            Walk::Hidden | Walk::Unknown => return Found::Unknown,
        };
        let Ok(stat) = rustix::fs::fstat(&fd) else { return Found::Unknown };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_mode & 0o111 == 0 {
            return Found::NotExecutable;
        }
        // A regular file, so that opening it neither blocks nor does anything.
        match File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            Ok(file) => Found::File(file),
            Err(_) => Found::Unknown,
        }
    }

    fn read(&self, file: &File, at: u64, bytes_max: usize) -> Option<Vec<u8>> {
        // Beyond what a file's offset can be there is nothing.
        if i64::try_from(at).is_err() {
            return Some(Vec::new());
        }
        let mut bytes = vec![0; bytes_max];
        let mut held = 0;
        while let Some(rest) = bytes.get_mut(held..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, at.checked_add(u64::try_from(held).ok()?)?) {
                Ok(0) => break,
                Ok(read) => held = held.checked_add(read)?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        bytes.truncate(held);
        Some(bytes)
    }
}
