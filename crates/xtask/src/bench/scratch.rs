//! A journaled file system in a sparse file, mounted for the length of a benchmark.
//!
//! Not the machine's own file system: that may have no journal (deleting and making many files is then several times
//! slower), may be full, or may discard. Here every tool stands on the same ground.

use super::command;
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// What is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// ext4 with room for so many files.
    Ext4 {
        /// Number of inodes.
        inodes: u64,
    },
    /// XFS, whose files can share blocks.
    Xfs,
}

/// A mounted file system, unmounted and deleted when dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Holds the image and the mount point; deleted last.
    directory: tempfile::TempDir,
    mounted: bool,
}

impl Scratch {
    /// Makes and mounts a file system of `bytes` in a new directory below `parent`.
    pub(super) fn create(parent: &Path, bytes: u64, kind: Kind) -> anyhow::Result<Self> {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(parent)?;
        let image = directory.path().join("image");
        let file = std::fs::File::create(&image).with_context(|| format!("cannot create {}", image.display()))?;
        file.set_len(bytes).with_context(|| format!("cannot make {} {bytes} bytes long", image.display()))?;
        drop(file);
        let mut scratch = Self { directory, mounted: false };
        let mut mkfs = match kind {
            Kind::Ext4 { inodes } => {
                let mut mkfs = std::process::Command::new("mkfs.ext4");
                // Nothing is left for the kernel to initialise in the background while we measure.
                mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-N", &inodes.to_string()]);
                mkfs
            }
            Kind::Xfs => {
                let mut mkfs = std::process::Command::new("mkfs.xfs");
                mkfs.args(["-q", "-m", "reflink=1"]);
                mkfs
            }
        };
        command::output_of(mkfs.arg(&image))?;
        std::fs::create_dir(scratch.path()).context("cannot create the mount point")?;
        let mut mount = std::process::Command::new("mount");
        command::output_of(mount.args(["-o", "loop"]).arg(&image).arg(scratch.path()))?;
        scratch.mounted = true;
        Ok(scratch)
    }

    /// Returns the mount point.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// Writes everything to the disk that waits to be written, so that no sample pays for the one before it.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        let root = std::fs::File::open(self.path()).context("cannot open the mount point")?;
        rustix::fs::syncfs(&root).context("cannot sync the file system of the benchmark")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = command::run("umount", &[self.path()])
        {
            // Deleting the image under a mount would only hide it.
            eprintln!("{error:#}; unmount it and delete {} by hand", self.directory.path().display());
            self.directory.disable_cleanup(true);
        }
    }
}
