//! A stack of layers as the kernel alone makes it: each run writes an upper directory that becomes the next run's
//! topmost lower one. It is what Perennial is compared with, and shows what is the kernel's doing.

use crate::bytes::Bytes;
use crate::copy;
use crate::host::{run, wait_until};
use crate::tree::{Kind, OverlayXattrs, TreeListing};
use anyhow::Result;
use rustix::fd::AsFd as _;
use rustix::fs::IFlags;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A lower directory and one upper directory for each mount so far.
#[derive(Debug)]
pub struct Stack {
    dir: PathBuf,
    uppers: u32,
}

impl Stack {
    /// Starts a stack in the directory `dir`, whose subdirectory `lower` is the image.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        for name in ["lower", "merged"] {
            fs::create_dir_all(dir.join(name))?;
        }
        Ok(Self { dir, uppers: 0 })
    }

    /// Returns the image's directory, to be filled before the first mount.
    #[must_use]
    pub fn lower(&self) -> PathBuf {
        self.dir.join("lower")
    }

    /// Mounts all layers, with a fresh upper directory that has the attributes of the topmost one's root.
    pub fn mount(&mut self) -> Result<PathBuf> {
        let uppers = (1..=self.uppers).rev().map(|number| format!("upper-{number}"));
        let below: Vec<String> = uppers.chain(["lower".to_owned()]).collect();
        self.uppers += 1;
        let upper = self.upper();
        fs::create_dir(&upper)?;
        if let Some(top) = below.first() {
            copy::attributes(&self.dir.join(top), &upper)?;
        }
        for own in ["origin", "uuid", "impure"] {
            // Most often there is none.
            rustix::fs::removexattr(&upper, format!("trusted.overlay.{own}")).ok();
        }
        let (below, number) = (below.join(":"), self.uppers);
        fs::create_dir(self.dir.join(format!("work-{number}")))?;
        let options = format!(
            "lowerdir={below},upperdir=upper-{number},workdir=work-{number},\
             metacopy=off,redirect_dir=off,index=off,nfs_export=off"
        );
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "overlay", "none", "merged", "-o", &options]).current_dir(&self.dir))?;
        Ok(self.dir.join("merged"))
    }

    /// Returns the newest upper directory.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join(format!("upper-{}", self.uppers))
    }

    /// Unmounts, and makes the upper directory fit to be a lower one: overlayfs heeds `protattr` of an upper
    /// directory only, and of lower ones the real inode flags.
    pub fn unmount(&self) -> Result<()> {
        // A program that another test is just starting holds every open file for a moment.
        wait_until("unmount", Duration::from_secs(5), || {
            Ok(Command::new("umount").arg(self.dir.join("merged")).output()?.status.success())
        })?;
        realise_protection(&self.upper())
    }
}

/// Sets the inode flags that overlayfs has kept in `trusted.overlay.protattr`.
fn realise_protection(upper: &Path) -> Result<()> {
    let listing = TreeListing::with(File::open(upper)?.as_fd(), OverlayXattrs::All)?;
    for (path, entry) in listing.entries {
        let protected = entry.xattrs.get(&Bytes::from("trusted.overlay.protattr"));
        let Some(protected) = protected.filter(|_| matches!(entry.kind, Kind::File | Kind::Dir)) else { continue };
        let file = File::open(upper.join(OsStr::from_bytes(&path)))?;
        let mut flags = rustix::fs::ioctl_getflags(&file)?;
        flags.set(IFlags::IMMUTABLE, protected.contains(&b'i'));
        flags.set(IFlags::APPEND, protected.contains(&b'a'));
        rustix::fs::ioctl_setflags(&file, flags)?;
    }
    Ok(())
}

impl Drop for Stack {
    fn drop(&mut self) {
        // After a failed test it may still be mounted, and hold files that resist deletion.
        drop(Command::new("umount").arg(self.dir.join("merged")).output());
        drop(Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(&self.dir).output());
    }
}
