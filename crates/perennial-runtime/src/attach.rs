//! The other end of a supervisor's control socket: a terminal or pipe attached to a container, and single requests.
//!
//! The terminal is put back in order on every way out: return, error, panic (by unwinding) and the signals that end a
//! program by default. A client that is killed outright leaves it raw; `reset` helps then, as with any other program.

mod keys;
mod pump;
mod terminal;

pub use keys::DetachKeys;
pub use terminal::SavedTerminal;

use crate::clock;
use crate::oci::{EXIT_RUNTIME, StartFailure};
use crate::supervise::protocol::{Reply, Request};
use crate::supervise::socket::{Received, connect_packets, receive_packet, send_packet};
use perennial_core::process::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::cell::OnceCell;
use std::io;
use std::path::Path;
use std::time::Duration;

/// How to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttachConfig {
    /// Whether the container has a terminal; ours becomes raw then, and follows its size.
    pub tty: bool,
    /// Whether our standard input goes to the container.
    pub interactive: bool,
}

/// How an attachment ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The run is over and recorded; its exit code.
    Exited(i32),
    /// The run failed.
    Failed(StartFailure),
    /// The user left with ctrl-p ctrl-q, or our terminal has gone; the container runs on.
    Detached,
    /// Nobody reads our output any more; the container runs on.
    OutputClosed,
    /// The supervisor has gone without a word: it was killed. The next command recovers the run.
    Lost,
}

/// An ended attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes of output left out because we were too slow; the log has them.
    pub skipped_bytes: u64,
}

/// Why a supervisor could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No supervisor listens there: the container does not run.
    #[error("no supervisor listens at {path}")]
    NoSupervisor {
        /// The socket.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It would not do what was asked.
    #[error("the supervisor refused: {message}")]
    Refused {
        /// Why.
        message: String,
    },
    /// It has gone, or speaks another version of the protocol.
    #[error("the supervisor gave no usable answer")]
    NoAnswer,
    /// A call to the kernel failed.
    #[error("attached to a container: {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl AttachError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    /// How the run ended, where that came in answer to something else.
    ended: OnceCell<Outcome>,
}

impl Connection {
    /// Connects to the supervisor that listens at `control_socket`.
    ///
    /// # Errors
    /// If none does.
    pub fn open(control_socket: &Path) -> Result<Self, AttachError> {
        let path = control_socket.display().to_string();
        let fd = connect_packets(control_socket).map_err(|source| AttachError::NoSupervisor { path, source })?;
        Ok(Self { fd, ended: OnceCell::new() })
    }

    /// Makes a connection to a supervisor that is about to be started, and the end to hand to it, for instance as its
    /// standard input ([`crate::supervise::SessionConfig::first_client`]).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn pair() -> Result<(Self, OwnedFd), AttachError> {
        let flags = SocketFlags::CLOEXEC;
        let (fd, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| AttachError::Io { what: "making a socket", source: errno.into() })?;
        Ok((Self { fd, ended: OnceCell::new() }, other))
    }

    /// Connects our standard streams with the container's until one side ends it. Signals that come in meanwhile are
    /// the container's, unless it has a terminal: then they are characters anyway.
    ///
    /// # Errors
    /// If the kernel refuses; never because of how the run went.
    pub fn attach(self, config: AttachConfig) -> Result<Attached, AttachError> {
        pump::run(&self.fd, config)
    }

    /// Asks for output, which whoever waits on this connection afterwards passes over.
    ///
    /// # Errors
    /// If the supervisor has gone.
    pub fn request_output(&self) -> Result<(), AttachError> {
        self.send(&Request::Attach)
    }

    /// Tells the size of our terminal; told before the start, it is the container's from the beginning.
    ///
    /// # Errors
    /// If the supervisor has gone.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), AttachError> {
        self.send(&Request::Resize { rows, columns })
    }

    /// Waits until the process of a starting container runs, then leaves it.
    ///
    /// # Errors
    /// If the supervisor has gone; the failure of a start is the inner error.
    pub fn wait_started(self) -> Result<Result<(), StartFailure>, AttachError> {
        self.request_output()?;
        loop {
            match self.receive()? {
                // An exit so soon means that it did start.
                Reply::Started | Reply::Exit(_) => return Ok(Ok(())),
                Reply::Failed { code, message } => return Ok(Err(StartFailure { code, message })),
                Reply::Output(_)
                | Reply::ErrorOutput(_)
                | Reply::Skipped(_)
                | Reply::InputTaken(_)
                | Reply::Done
                | Reply::Refused(_)
                | Reply::Status(_) => {}
            }
        }
    }

    /// Asks the container to end, and kills it after `timeout_s`, or after its own time-out.
    ///
    /// # Errors
    /// If the supervisor refuses or has gone.
    pub fn stop(&self, timeout_s: Option<u32>) -> Result<(), AttachError> {
        self.send(&Request::Stop { timeout_s })?;
        self.done()
    }

    /// Sends a signal to the container's init.
    ///
    /// # Errors
    /// If the supervisor refuses or has gone.
    pub fn signal(&self, signal: Signal) -> Result<(), AttachError> {
        self.send(&Request::Signal(signal))?;
        self.done()
    }

    /// Returns how the container is: an object with `pid`, `health`, `stopping` and `attached`.
    ///
    /// # Errors
    /// If the supervisor has gone.
    pub fn status(&self) -> Result<serde_json::Value, AttachError> {
        self.send(&Request::Status)?;
        loop {
            match self.receive()? {
                Reply::Status(text) => return serde_json::from_str(&text).map_err(|_| AttachError::NoAnswer),
                Reply::Exit(_) | Reply::Failed { .. } => return Err(AttachError::NoAnswer),
                Reply::Output(_)
                | Reply::ErrorOutput(_)
                | Reply::Skipped(_)
                | Reply::InputTaken(_)
                | Reply::Done
                | Reply::Refused(_)
                | Reply::Started => {}
            }
        }
    }

    /// Waits until the run is over and recorded.
    ///
    /// # Errors
    /// If the kernel refuses. That the supervisor has gone is an outcome.
    pub fn wait_exit(self) -> Result<Outcome, AttachError> {
        if let Some(outcome) = self.ended.get() {
            return Ok(outcome.clone());
        }
        loop {
            match self.receive() {
                Ok(Reply::Exit(code)) => return Ok(Outcome::Exited(code)),
                Ok(Reply::Failed { code, message }) => return Ok(Outcome::Failed(StartFailure { code, message })),
                Ok(_) => {}
                Err(AttachError::NoAnswer) => return Ok(Outcome::Lost),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the run is over and recorded or the supervisor has gone, or for as long as `span`; returns whether it
    /// was one of the former.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn wait_exit_for(&self, span: Duration) -> Result<bool, AttachError> {
        let end = clock::monotonic().saturating_add(span);
        while self.ended.get().is_none() {
            match receive_packet(&self.fd) {
                Received::Packet(packet) => match Reply::decode(&packet) {
                    Ok(Reply::Exit(_) | Reply::Failed { .. }) | Err(_) => return Ok(true),
                    Ok(_) => {}
                },
                Received::Closed => return Ok(true),
                Received::Nothing => {
                    let left = end.saturating_sub(clock::monotonic());
                    if left.is_zero() {
                        return Ok(false);
                    }
                    self.poll(PollFlags::IN, Some(left))?;
                }
            }
        }
        Ok(true)
    }

    fn done(&self) -> Result<(), AttachError> {
        loop {
            match self.receive()? {
                Reply::Done => return Ok(()),
                // The run is over: what was asked for has come about, or has no object any more.
                Reply::Exit(code) => {
                    self.ended.get_or_init(|| Outcome::Exited(code));
                    return Ok(());
                }
                Reply::Failed { code, message } => {
                    self.ended.get_or_init(|| Outcome::Failed(StartFailure { code, message }));
                    return Ok(());
                }
                Reply::Refused(message) => return Err(AttachError::Refused { message }),
                Reply::Output(_)
                | Reply::ErrorOutput(_)
                | Reply::Skipped(_)
                | Reply::InputTaken(_)
                | Reply::Status(_)
                | Reply::Started => {}
            }
        }
    }

    fn send(&self, request: &Request) -> Result<(), AttachError> {
        let packet = request.encode();
        loop {
            match send_packet(&self.fd, &packet) {
                Ok(true) => return Ok(()),
                Ok(false) => self.poll(PollFlags::OUT, None)?,
                Err(_) => return Err(AttachError::NoAnswer),
            }
        }
    }

    fn receive(&self) -> Result<Reply, AttachError> {
        loop {
            match receive_packet(&self.fd) {
                Received::Packet(packet) => return Reply::decode(&packet).map_err(|_| AttachError::NoAnswer),
                Received::Nothing => self.poll(PollFlags::IN, None)?,
                Received::Closed => return Err(AttachError::NoAnswer),
            }
        }
    }

    fn poll(&self, flags: PollFlags, span: Option<Duration>) -> Result<(), AttachError> {
        let span = span.map(clock::timespec_of);
        match poll(&mut [PollFd::new(&self.fd, flags)], span.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(AttachError::io("waiting for the supervisor")(errno.into())),
        }
    }
}

impl Outcome {
    /// Returns the exit code of a command that ends so.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Self::Exited(code) => *code,
            Self::Failed(failure) => failure.code,
            Self::Detached => 0,
            // As a program that a closed pipe has ended.
            Self::OutputClosed => 141,
            Self::Lost => EXIT_RUNTIME,
        }
    }
}
