//! File systems of a chosen kind and size, mounted from a sparse file: for tests that need a journal, reflinks, or a
//! disk that is full.

use crate::host::{need_root, now, pause, run, wait_until};
use anyhow::{Context as _, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Kinds of file systems a test can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsKind {
    /// ext4 with a journal, without blocks reserved for root.
    Ext4,
    /// XFS with reflinks; at least [`FsKind::bytes_min`].
    Xfs,
    /// btrfs; at least [`FsKind::bytes_min`].
    Btrfs,
}

impl FsKind {
    /// Every kind, for tests that run on all of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Smallest size its maker accepts.
    #[must_use]
    pub fn bytes_min(self) -> u64 {
        match self {
            Self::Ext4 => 8 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 128 << 20,
        }
    }

    /// Its name as `mount` knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Makes one that fills the file `image`.
    pub fn make(self, image: &Path) -> Result<()> {
        let (program, options): (&str, &[&str]) = match self {
            Self::Ext4 => ("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"]),
            Self::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
        };
        run(Command::new(program).args(options).arg(image))?;
        Ok(())
    }
}

/// A mounted file system; dropping it unmounts it and removes its file.
#[derive(Debug)]
pub struct LoopFs {
    home: TempDir,
    image: PathBuf,
    mounted: bool,
}

/// Longest time for the host to let go of a file system that was unmounted.
const LETTING_GO: Duration = Duration::from_secs(60);

/// Size of the file system that [`LoopFs::small`] makes.
pub const SMALL_BYTES: u64 = 64 << 20;

impl LoopFs {
    /// Makes and mounts a file system of at least `bytes`.
    pub fn new(kind: FsKind, bytes: u64) -> Result<Self> {
        need_root()?;
        let home = TempDir::with_prefix("perennial-loopfs-")?;
        let image = home.path().join("image");
        File::create(&image)?.set_len(bytes.max(kind.bytes_min()))?;
        kind.make(&image)?;
        Self::mount(home, &image)
    }

    /// Mounts the file system in a file that stays when this is dropped.
    pub fn of(image: &Path) -> Result<Self> {
        need_root()?;
        Self::mount(TempDir::with_prefix("perennial-loopfs-")?, image)
    }

    fn mount(home: TempDir, image: &Path) -> Result<Self> {
        let mut made = Self { home, image: image.to_owned(), mounted: false };
        fs::create_dir(made.path())?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(made.path()))?;
        made.mounted = true;
        Ok(made)
    }

    /// Makes a small ext4 that a test can fill.
    pub fn small() -> Result<Self> {
        Self::new(FsKind::Ext4, SMALL_BYTES)
    }

    /// Returns where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    /// Returns how many bytes are free.
    pub fn bytes_free(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(self.path())?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Takes all but `leave` of the free bytes, by a file; [`Filler::release`] gives them back.
    pub fn fill(&self, leave: u64) -> Result<Filler> {
        let path = self.path().join("filler");
        let file = File::create(&path)?;
        rustix::fs::syncfs(&file)?;
        // Metadata of the filler itself takes blocks too, so the last bytes are taken in ever smaller steps.
        let (mut length, mut step) = (0, self.bytes_free()?.saturating_sub(leave));
        while step >= 4096 && self.bytes_free()? > leave {
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, step) {
                Ok(()) => length += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => return Err(error).context("cannot fill the file system"),
            }
            step = step.min(self.bytes_free()?.saturating_sub(leave));
        }
        rustix::fs::syncfs(&file)?;
        Ok(Filler { path })
    }

    /// Unmounts it and waits until all of it is in its file: other mount namespaces, such as those of containers that
    /// started meanwhile, may have it mounted for a while.
    pub fn unmount(mut self) -> Result<()> {
        self.detach()?;
        wait_until("the file system is unmounted everywhere", LETTING_GO, || {
            Ok(run(Command::new("losetup").arg("-j").arg(&self.image))?.stdout.is_empty())
        })
    }

    fn detach(&mut self) -> Result<()> {
        if self.mounted {
            run(Command::new("umount").arg(self.path()))?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // Processes that a test has just killed may hold it for a moment.
        let deadline = now() + Duration::from_secs(5);
        while self.detach().is_err() && now() < deadline {
            pause(Duration::from_millis(20));
        }
        if self.mounted {
            // Detaching at least keeps the file system from piling up on the host; the test has failed before this.
            drop(run(Command::new("umount").args(["-R", "-l"]).arg(self.path())));
        }
    }
}

/// The file that fills a file system.
#[derive(Debug)]
pub struct Filler {
    path: PathBuf,
}

impl Filler {
    /// Gives the space back.
    pub fn release(self) -> Result<()> {
        let file = File::open(&self.path)?;
        fs::remove_file(&self.path)?;
        Ok(rustix::fs::syncfs(&file)?)
    }
}
