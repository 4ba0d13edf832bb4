//! A terminal that a test holds the other end of.

use anyhow::{Result, bail};
use perennial_testkit::cli::Perennial;
use perennial_testkit::host::{now, wait_within};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::Duration;

/// Longest wait for a text or an end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A command with a terminal as its controlling one.
pub(crate) struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    child: Child,
    seen: String,
}

impl Terminal {
    /// Starts a command of `cli` in a new session on a new terminal of 24 lines and 80 columns.
    pub(crate) fn run(cli: &Perennial, args: &[&str]) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = openat(CWD, name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        tcsetwinsize(&master, size(24, 80))?;
        let inner = cli.command(args);
        // util-linux's setsid makes the terminal the controlling one without unsafe code here.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args());
        let (stdin, stdout, stderr) = (slave.try_clone()?, slave.try_clone()?, slave.try_clone()?);
        let child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn()?;
        Ok(Self { master, slave, child, seen: String::new() })
    }

    /// Types a text.
    pub(crate) fn type_text(&mut self, text: &str) -> Result<()> {
        let mut bytes = text.as_bytes();
        while !bytes.is_empty() {
            let written = rustix::io::write(&self.master, bytes)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Changes the size of the terminal.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        Ok(tcsetwinsize(&self.master, size(rows, columns))?)
    }

    /// Waits until the text has been shown, and forgets what was shown up to it.
    pub(crate) fn expect(&mut self, text: &str) -> Result<String> {
        let deadline = now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return Ok(std::mem::replace(&mut self.seen, rest));
            }
            let left = deadline.saturating_sub(now());
            if left.is_zero() {
                bail!("waited in vain for {text:?}; seen: {:?}", self.seen);
            }
            if !self.read(left)? {
                bail!("the terminal closed before {text:?}; seen: {:?}", self.seen);
            }
        }
    }

    fn read(&mut self, limit: Duration) -> Result<bool> {
        let limit = Timespec::try_from(limit)?;
        if poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&limit))? == 0 {
            return Ok(true);
        }
        let mut buffer = [0; 4096];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::IO) => Ok(false),
            Ok(length) => {
                self.seen.push_str(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()));
                Ok(true)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells whether the terminal is in its usual state, in which lines are edited and echoed.
    pub(crate) fn is_cooked(&self) -> Result<bool> {
        Ok(tcgetattr(&self.slave)?.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO))
    }

    /// Waits for the command's end and returns its exit code.
    pub(crate) fn wait(&mut self) -> Result<i32> {
        match wait_within(&mut self.child, PATIENCE)? {
            Some(status) => Ok(status.code().unwrap_or(-1)),
            None => bail!("the command still runs; seen: {:?}", self.seen),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has ended in a test that passed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
