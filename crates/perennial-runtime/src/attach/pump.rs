//! The loop of an attached client.

use super::{AttachConfig, AttachError, Attached, DetachKeys, Outcome, SavedTerminal};
use crate::oci::StartFailure;
use crate::signals::Signals;
use crate::supervise::protocol::{DATA_BYTES_MAX, INPUT_WINDOW_BYTES, Reply, Request};
use crate::supervise::socket::{Received, receive_packet, send_packet};
use perennial_core::process::Signal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use std::collections::VecDeque;
use std::io::{stderr, stdin, stdout};

/// Signals passed on to a container without a terminal, and those that end an attachment to one with a terminal.
const SIGNALS: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
/// Replies handled before input and signals have their turn.
const REPLIES_PER_TURN_MAX: usize = 64;

struct Pump<'a> {
    fd: &'a OwnedFd,
    config: AttachConfig,
    terminal: Option<SavedTerminal>,
    keys: DetachKeys,
    outgoing: VecDeque<Vec<u8>>,
    /// Bytes of input that may still be sent.
    window: usize,
    input_ended: bool,
    skipped_bytes: u64,
}

/// Runs until the run is over or the user leaves.
pub(super) fn run(fd: &OwnedFd, config: AttachConfig) -> Result<Attached, AttachError> {
    let mut numbers = SIGNALS.to_vec();
    if config.tty {
        numbers.push(SIGWINCH);
    }
    // Before the terminal becomes raw, so that none of them can leave it so.
    let signals = Signals::listen(&numbers).map_err(AttachError::io("listening to signals"))?;
    let terminal = config.tty.then(SavedTerminal::of_stdin);
    let mut pump = Pump {
        fd,
        config,
        terminal,
        keys: DetachKeys::default(),
        outgoing: VecDeque::new(),
        window: INPUT_WINDOW_BYTES,
        input_ended: !config.interactive,
        skipped_bytes: 0,
    };
    pump.resize();
    pump.queue(&Request::Attach);
    if let Some(terminal) = &pump.terminal {
        terminal.make_raw().map_err(|errno| AttachError::io("making the terminal raw")(errno.into()))?;
    }
    loop {
        let outcome = pump.turn(&signals)?;
        if let Some(outcome) = outcome {
            return Ok(Attached { outcome, skipped_bytes: pump.skipped_bytes });
        }
    }
}

impl Pump<'_> {
    fn turn(&mut self, signals: &Signals) -> Result<Option<Outcome>, AttachError> {
        self.flush();
        let (from_supervisor, from_stdin) = self.wait(signals)?;
        for number in signals.take() {
            if let Some(outcome) = self.take_signal(number) {
                return Ok(Some(outcome));
            }
        }
        if from_supervisor {
            for _ in 0..REPLIES_PER_TURN_MAX {
                match receive_packet(self.fd) {
                    Received::Packet(packet) => {
                        if let Some(outcome) = self.take_reply(&packet)? {
                            return Ok(Some(outcome));
                        }
                    }
                    Received::Nothing => break,
                    Received::Closed => return Ok(Some(Outcome::Lost)),
                }
            }
        }
        match from_stdin {
            true => self.take_input(),
            false => Ok(None),
        }
    }

    fn wait(&self, signals: &Signals) -> Result<(bool, bool), AttachError> {
        let input = stdin();
        let interest = match self.outgoing.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        };
        let mut fds = vec![PollFd::new(self.fd, interest)];
        let reads_input = !self.input_ended && self.window > 0;
        if reads_input {
            fds.push(PollFd::new(&input, PollFlags::IN));
        }
        fds.extend(signals.poll_fds());
        match poll(&mut fds, None) {
            Ok(_) => {
                let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
                Ok((is_ready(0), reads_input && is_ready(1)))
            }
            Err(Errno::INTR) => Ok((false, false)),
            Err(errno) => Err(AttachError::io("waiting for events")(errno.into())),
        }
    }

    fn take_signal(&mut self, number: i32) -> Option<Outcome> {
        match (number, self.config.tty) {
            (SIGWINCH, _) => {
                self.resize();
                None
            }
            (_, true) => Some(Outcome::Detached),
            (_, false) => {
                let signal = u8::try_from(number).ok().and_then(|number| Signal::try_from(number).ok())?;
                self.queue(&Request::Signal(signal));
                None
            }
        }
    }

    fn take_reply(&mut self, packet: &[u8]) -> Result<Option<Outcome>, AttachError> {
        let reply = Reply::decode(packet).map_err(|_| AttachError::NoAnswer)?;
        match reply {
            Reply::Output(bytes) => return write_all(stdout(), &bytes),
            Reply::ErrorOutput(bytes) => return write_all(stderr(), &bytes),
            Reply::Skipped(bytes) => self.skipped_bytes = self.skipped_bytes.saturating_add(bytes),
            Reply::InputTaken(bytes) => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                self.window = self.window.saturating_add(bytes).min(INPUT_WINDOW_BYTES);
            }
            // A signal to a container that has ended meanwhile, at worst; its end is told next.
            Reply::Done | Reply::Refused(_) | Reply::Status(_) | Reply::Started => {}
            Reply::Exit(code) => return Ok(Some(Outcome::Exited(code))),
            Reply::Failed { code, message } => return Ok(Some(Outcome::Failed(StartFailure { code, message }))),
        }
        Ok(None)
    }

    fn take_input(&mut self) -> Result<Option<Outcome>, AttachError> {
        let mut buffer = vec![0_u8; self.window.min(DATA_BYTES_MAX)];
        match rustix::io::read(stdin(), buffer.as_mut_slice()) {
            Ok(0) => {
                self.input_ended = true;
                self.queue(&Request::InputEnd);
            }
            Ok(count) => {
                buffer.truncate(count);
                let (bytes, is_leaving) = match self.config.tty {
                    true => self.keys.feed(&buffer),
                    false => (buffer, false),
                };
                if !bytes.is_empty() {
                    self.window = self.window.saturating_sub(bytes.len());
                    self.queue(&Request::Input(bytes));
                }
                if is_leaving {
                    self.flush();
                    return Ok(Some(Outcome::Detached));
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The terminal has gone.
            Err(_) => self.input_ended = true,
        }
        Ok(None)
    }

    fn resize(&mut self) {
        if let Some((rows, columns)) = self.terminal.as_ref().and_then(SavedTerminal::size) {
            self.queue(&Request::Resize { rows, columns });
        }
    }

    fn queue(&mut self, request: &Request) {
        self.outgoing.push_back(request.encode());
    }

    fn flush(&mut self) {
        while let Some(packet) = self.outgoing.front() {
            match send_packet(self.fd, packet) {
                Ok(true) => drop(self.outgoing.pop_front()),
                Ok(false) => return,
                // It has gone; what it said last is still to be read.
                Err(_) => self.outgoing.clear(),
            }
        }
    }
}

/// Writes all of `bytes`; an outcome if nobody reads them.
fn write_all(fd: impl AsFd, bytes: &[u8]) -> Result<Option<Outcome>, AttachError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&fd, rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(&fd)?,
            Err(Errno::PIPE | Errno::IO) => return Ok(Some(Outcome::OutputClosed)),
            Err(errno) => return Err(AttachError::io("writing output")(errno.into())),
        }
    }
    Ok(None)
}

fn wait_writable(fd: impl AsFd) -> Result<(), AttachError> {
    match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(AttachError::io("waiting for the output")(errno.into())),
    }
}
