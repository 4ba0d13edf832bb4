//! Directories that an image expects to be there: those it declares as volumes.
//!
//! Other engines mount something there, so the directory is always there although no layer need have it. Here it is made
//! in the union and belongs to the generation. Links resolve inside the root, and `..` stops there.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// Why such a directory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the directory {path}, which the image declares as a volume")]
pub struct VolumeError {
    path: String,
    source: std::io::Error,
}

/// Makes those of the directories that are missing below `rootfs`, with those above them. What lies in the way of one,
/// such as a file or a link that leads nowhere, is left alone.
///
/// # Errors
/// If the root cannot be opened, or the file system refuses a directory.
pub fn make_directories(rootfs: &Path, paths: &[String]) -> Result<(), VolumeError> {
    for path in paths {
        make(rootfs, path).map_err(|errno| VolumeError { path: path.clone(), source: errno.into() })?;
    }
    Ok(())
}

fn make(rootfs: &Path, path: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())?;
    let mut reached = PathBuf::from("/");
    let mut directory = open(&root, &reached)?;
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => {
                let mode = Mode::from_raw_mode(0o755);
                match rustix::fs::mkdirat(&directory, name, mode) {
                    // The mode is not left to the mask of whoever types the command.
                    Ok(()) => rustix::fs::chmodat(&directory, name, mode, rustix::fs::AtFlags::empty())?,
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                reached.push(name);
            }
            Component::ParentDir => reached.push(".."),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
        }
        directory = match open(&root, &reached) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        };
    }
    Ok(())
}

fn open(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn what_is_missing_is_made_inside_the_root_and_what_is_in_the_way_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("there")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::set_permissions(root.join("there"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::File::create(root.join("file")).unwrap().write_all(b"x").unwrap();
        symlink("/nowhere", root.join("dangling")).unwrap();
        symlink("/there", root.join("link")).unwrap();
        symlink(&outside, root.join("out")).unwrap();
        let paths =
            ["/data", "a/b", "/there", "/file/x", "/dangling/x", "/link/in", "/out/x", "/../up", "/c/../d", "/"];
        make_directories(&root, &paths.map(str::to_owned)).unwrap();
        for made in ["data", "a/b", "there/in", "up", "d"] {
            let metadata = fs::symlink_metadata(root.join(made)).unwrap();
            assert!(metadata.is_dir() && metadata.permissions().mode() & 0o7777 == 0o755, "{made}");
        }
        assert_eq!(fs::metadata(root.join("there")).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read(root.join("file")).unwrap(), b"x");
        assert!(!root.join("nowhere").exists() && !dir.path().join("up").exists());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
