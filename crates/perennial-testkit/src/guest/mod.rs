//! A virtual machine with a disk of its own, whose power can be cut.
//!
//! The machine is emulated whole by QEMU (no acceleration is needed or used), boots an unpacked kernel with an initial
//! root made here, and runs one script over the disk. All it writes and flushes can be recorded ([`crate::writelog`]).

mod kernel;

pub use kernel::{Kernel, Module};

use crate::host::{now, pause, run, write};
use crate::image::add_program;
use crate::loopfs::FsKind;
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// What the guest does first.
const INIT: &str = include_str!("init");
/// What the guest needs of the kernel.
const MODULES: [&str; 6] = ["virtio_pci", "virtio_blk", "ext4", "xfs", "erofs", "overlay"];
/// Longest time for a guest to get to what is waited for; it takes seconds where the machine is not busy.
const LIMIT: Duration = Duration::from_secs(300);

/// How processors are emulated: in turn, by one thread. With a thread for each, QEMU 7.2 now and then runs code that
/// the guest's kernel is just patching (seen: `Oops: int3`).
const EMULATION: &str = "tcg,thread=single";
/// The processor that is emulated. QEMU 7.2 sometimes emulates `cmpxchg16b` wrongly (seen: a double fault of the
/// kernel in its allocator, with a pointer in the flags), so the guest is told there is none.
const PROCESSOR: &str = "max,-cx16";

/// A kernel and an initial root with programs, to boot as often as needed.
#[derive(Debug)]
pub struct Machine {
    /// The kernel.
    pub kernel: Kernel,
    home: TempDir,
}

/// One boot of a machine.
#[derive(Debug)]
pub struct Boot<'a> {
    /// The disk, as a file.
    pub disk: &'a Path,
    /// What is on it.
    pub fs: FsKind,
    /// Where to record what is written.
    pub log: Option<&'a Path>,
    /// Sector that the script's steps mark.
    pub mark: u64,
    /// What to do: lines of a shell, with the function `step`.
    pub script: &'a str,
    /// Files that the script finds in `/files`.
    pub files: &'a [GuestFile],
}

/// A file for a script: its name and its content.
pub type GuestFile = (String, Vec<u8>);

impl Machine {
    /// Makes the initial root with these programs and their libraries.
    pub fn new(programs: &[(&Path, &str)]) -> Result<Self> {
        let (kernel, home) = (Kernel::find()?, TempDir::with_prefix("perennial-guest-")?);
        let (top, root) = (home.path().join("top"), home.path().join("top/root"));
        fs::create_dir_all(root.join("bin"))?;
        fs::create_dir_all(root.join("modules"))?;
        fs::create_dir_all(top.join("bin"))?;
        for dir in [&top, &root] {
            fs::copy("/bin/busybox", dir.join("bin/busybox")).context("package busybox-static")?;
            write(dir.join("init"), INIT)?;
            fs::set_permissions(dir.join("init"), fs::Permissions::from_mode(0o755))?;
        }
        for (program, inside) in programs {
            add_program(&root, program, inside)?;
            // Without what only a debugger reads, which is most of a test's program.
            run(Command::new("strip").arg("--strip-debug").arg(root.join(inside.trim_start_matches('/'))))?;
        }
        let mut order = String::new();
        for module in kernel.modules(&MODULES)? {
            write(root.join("modules").join(&module.name), &module.code)?;
            order.push_str(&module.name);
            order.push('\n');
        }
        write(root.join("modules/order"), order)?;
        archive(&top, &home.path().join("root.cpio"))?;
        fs::remove_dir_all(top)?;
        Ok(Self { kernel, home })
    }

    /// Boots it.
    pub fn boot(&self, boot: &Boot<'_>) -> Result<Guest> {
        let home = TempDir::with_prefix_in("boot-", self.home.path())?;
        let (top, part, initrd) = (home.path().join("top"), home.path().join("part"), home.path().join("initrd"));
        fs::create_dir_all(top.join("files"))?;
        write(top.join("script"), boot.script)?;
        write(top.join("files/mark"), boot.mark.to_string())?;
        write(top.join("files/fs"), boot.fs.name())?;
        for (name, bytes) in boot.files {
            write(top.join("files").join(name), bytes)?;
        }
        archive(&top, &part)?;
        // The kernel unpacks archives one after the other.
        fs::copy(self.home.path().join("root.cpio"), &initrd)?;
        File::options().append(true).open(&initrd)?.write_all(&fs::read(part)?)?;
        let console = home.path().join("console");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", EMULATION, "-cpu", PROCESSOR, "-smp", "2", "-m", "768", "-no-reboot"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&initrd);
        qemu.args(["-append", "console=ttyS0 rdinit=/init panic=-1 quiet"]);
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        // The host's power stays on, so the guest's flushes need not reach the host's disk.
        let file = |name: &str, path: &Path| {
            format!("driver=file,node-name={name},filename={},cache.no-flush=on", path.display())
        };
        qemu.arg("-blockdev").arg(file("file", boot.disk));
        match boot.log {
            Some(log) => {
                qemu.arg("-blockdev").arg(file("log", log));
                qemu.args(["-blockdev", "driver=blklogwrites,node-name=disk,file=file,log=log,log-sector-size=512"]);
            }
            None => drop(qemu.args(["-blockdev", "driver=raw,node-name=disk,file=file"])),
        }
        qemu.args(["-device", "virtio-blk-pci,drive=disk,discard=off,write-zeroes=off"]);
        let errors = File::create(home.path().join("errors"))?;
        qemu.stdin(Stdio::null()).stdout(errors.try_clone()?).stderr(errors);
        let child = qemu.spawn().context("cannot run qemu-system-x86_64 (package qemu-system-x86)")?;
        Ok(Guest { child, console, home })
    }
}

/// A machine that runs; dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    console: PathBuf,
    home: TempDir,
}

impl Guest {
    /// Waits until the guest has said `text`; fails with all it has said if it ends, fails, or takes too long.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let deadline = now() + LIMIT;
        loop {
            let ended = self.child.try_wait()?;
            let said = self.said();
            if said.lines().any(|line| line.trim_end() == text) {
                return Ok(());
            }
            let errors = || fs::read_to_string(self.home.path().join("errors")).unwrap_or_default();
            if ended.is_some() || said.contains("guest: failed") {
                bail!("the guest did not get to {text:?}, {ended:?}\n{}{said}", errors());
            }
            ensure!(now() < deadline, "the guest did not get to {text:?} within {LIMIT:?}\n{}{said}", errors());
            pause(Duration::from_millis(20));
        }
    }

    /// Returns what it has said so far.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits until it has switched itself off.
    pub fn wait_for_end(&mut self) -> Result<()> {
        self.wait_for("guest: over")?;
        ensure!(crate::host::wait_within(&mut self.child, LIMIT)?.is_some(), "the guest does not switch itself off");
        Ok(())
    }

    /// Cuts its power.
    pub fn cut(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Packs a directory as the kernel unpacks it.
fn archive(dir: &Path, target: &Path) -> Result<()> {
    let list = run(Command::new("find").arg(".").current_dir(dir))?.stdout;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--owner=+0:+0", "--quiet"]).current_dir(dir);
    cpio.stdin(Stdio::piped()).stdout(File::create(target)?);
    let mut child = cpio.spawn().context("cannot run cpio (package cpio)")?;
    child.stdin.take().context("no input of cpio")?.write_all(&list)?;
    ensure!(child.wait()?.success(), "cpio failed");
    Ok(())
}
