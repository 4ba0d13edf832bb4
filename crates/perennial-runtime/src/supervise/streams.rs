//! The standard streams of a container, as its supervisor holds them.

use crate::oci::RunStdio;
use crate::supervise::protocol::DATA_BYTES_MAX;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use std::io;

/// What reading from a stream gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Bytes.
    Data(Vec<u8>),
    /// Nothing now.
    Nothing,
    /// It has ended.
    End,
}

/// The supervisor's ends.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// Where input goes; taken by [`super::input::Input`].
    pub(super) stdin: Option<OwnedFd>,
    /// The terminal once more, for its size.
    terminal: Option<OwnedFd>,
}

impl Streams {
    /// Makes pipes; returns the supervisor's and the container's ends.
    pub(super) fn pipes(interactive: bool) -> io::Result<(Self, RunStdio)> {
        let (stdout, stdout_container) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_container) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdin_container, stdin) = match interactive {
            true => pipe_with(PipeFlags::CLOEXEC).map(|(reader, writer)| (Some(reader), Some(writer)))?,
            false => (None, None),
        };
        // Only this side: the container's programs do not expect it on theirs.
        for fd in [Some(&stdout), Some(&stderr), stdin.as_ref()].into_iter().flatten() {
            set_nonblocking(fd)?;
        }
        let own = Self { stdout: Some(stdout), stderr: Some(stderr), stdin, terminal: None };
        let container =
            RunStdio::Streams { stdin: stdin_container, stdout: stdout_container, stderr: stderr_container };
        Ok((own, container))
    }

    /// Takes the master side of a terminal.
    pub(super) fn terminal(master: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&master)?;
        let (writer, sizer) = (master.try_clone()?, master.try_clone()?);
        Ok(Self { stdout: Some(master), stderr: None, stdin: Some(writer), terminal: Some(sizer) })
    }

    /// Tells the terminal its size; the kernel tells the programs in it.
    pub(super) fn resize(&self, rows: u16, columns: u16) {
        if let Some(terminal) = &self.terminal {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal without programs has no size to set.
            tcsetwinsize(terminal, size).ok();
        }
    }
}

/// Reads what is there, at most one packet's worth.
pub(super) fn read_chunk(fd: &OwnedFd) -> Chunk {
    let mut bytes = vec![0_u8; DATA_BYTES_MAX];
    match rustix::io::read(fd, bytes.as_mut_slice()) {
        Ok(0) => Chunk::End,
        Ok(count) => {
            bytes.truncate(count);
            Chunk::Data(bytes)
        }
        Err(Errno::AGAIN | Errno::INTR) => Chunk::Nothing,
        // EIO: the last program of a terminal has closed it.
        Err(_) => Chunk::End,
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
