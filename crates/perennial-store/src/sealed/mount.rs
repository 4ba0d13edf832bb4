//! The metadata image of a sealed layer as a tree: a detached mount that nobody else sees and that ends with its
//! descriptor.

use super::error::SealError;
use super::files::LayerFiles;
use crate::root::Root;
use perennial_core::sealed::entry::{Directory, DirectorySource};
use perennial_core::sealed::erofs::{self, EncodeError, Identity};
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

/// Name of the metadata image in a layer's directory.
pub const IMAGE: &str = "meta.erofs";
/// Most kernel messages read for one error.
const MESSAGES_MAX: usize = 16;
/// Longest kernel message read, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Why a metadata image could not be mounted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the metadata image{}{messages}", if messages.is_empty() { "" } else { ": " })]
pub struct MountImageError {
    /// What was to be done, as a verb.
    pub action: &'static str,
    /// What the kernel said about it, if anything.
    pub messages: String,
    /// The kernel's answer.
    pub source: Errno,
}

/// Mounts the metadata image of a sealed layer, whose open directory this is, and returns its root.
///
/// The descriptor holds the mount: it has to stay open until whatever is mounted over it is mounted. It refers to the
/// root only (`O_PATH`), as overlayfs and the functions of [`crate::tree`] take it. Files with an object have no content
/// there.
///
/// # Errors
/// [`MountImageError`], with what the kernel said.
pub fn open_tree(layer: BorrowedFd<'_>) -> Result<OwnedFd, MountImageError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let image = openat(layer, IMAGE, flags, Mode::empty());
    let image = image.map_err(|source| MountImageError { action: "open", messages: String::new(), source })?;
    mount_image(&image)
}

/// Tries whether this host can mount metadata images that lie in the root's file system, and returns the mounted tree of
/// a layer without entries, as [`open_tree`] does.
///
/// # Errors
/// [`SealError`]: what stands in the way.
pub fn probe(root: &Root) -> Result<OwnedFd, SealError> {
    let path = root.staging_dir();
    let files = LayerFiles::open(&path)?;
    let name = format!(".probe-{}", rustix::process::getpid().as_raw_nonzero());
    let written = write_empty(&files, &name, root);
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let image = openat(files.fd(), &name, flags, Mode::empty());
    rustix::fs::unlinkat(files.fd(), &name, rustix::fs::AtFlags::empty()).ok();
    written?;
    let image = image.map_err(|errno| files.io("open", &name, errno))?;
    mount_image(&image).map_err(|source| SealError::Mount { path, source })
}

/// Writes the metadata image of a layer without entries.
fn write_empty(files: &LayerFiles, name: &str, root: &Root) -> Result<(), SealError> {
    struct Alone(Option<Directory>);
    impl DirectorySource for Alone {
        type Error = std::convert::Infallible;
        fn next_directory(&mut self) -> Result<Option<Directory>, Self::Error> {
            Ok(self.0.take())
        }
    }
    let empty = || Alone(Some(Directory::default()));
    let layout = erofs::plan(&mut empty()).map_err(|error| files.io("plan", name, std::io::Error::other(error)))?;
    let identity = Identity { secret: root.secret().for_image(), manifest: ObjectId::of(b"") };
    match erofs::write(&layout, &identity, &mut empty(), files.create(name)?) {
        Ok(_) => Ok(()),
        Err(EncodeError::Sink(error)) => Err(files.io("write", name, error)),
        Err(error @ (EncodeError::Source(_) | EncodeError::Changed)) => {
            Err(files.io("write", name, std::io::Error::other(error.to_string())))
        }
    }
}

/// Mounts an open metadata image.
pub(crate) fn mount_image(image: &OwnedFd) -> Result<OwnedFd, MountImageError> {
    let plain = |action| move |source| MountImageError { action, messages: String::new(), source };
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(plain("prepare to mount"))?;
    let told = |action| {
        let messages = messages(&context);
        move |source| MountImageError { action, messages, source }
    };
    // The kernel takes 255 bytes of path here, and a root may be longer.
    let source = format!("/proc/self/fd/{}", image.as_raw_fd());
    fsconfig_set_string(&context, "source", &source).map_err(|errno| told("name")(errno))?;
    fsconfig_set_flag(&context, "ro").map_err(|errno| told("name")(errno))?;
    fsconfig_create(&context).map_err(|errno| told("mount")(errno))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(|errno| told("mount")(errno))
}

/// Reads what the kernel has to say about a context.
fn messages(context: &OwnedFd) -> String {
    let mut said = Vec::new();
    let mut buffer = [0_u8; MESSAGE_BYTES_MAX];
    while said.len() < MESSAGES_MAX
        && let Ok(length) = rustix::io::read(context, &mut buffer)
        && length > 0
    {
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        said.push(text.trim().to_owned());
    }
    said.join("; ")
}
