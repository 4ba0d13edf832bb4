//! The session itself: one loop over everything that can happen to a run.

use super::client::Client;
use super::input::Input;
use super::process::{Checks, Init};
use super::protocol::{Reply, Request};
use super::socket::{Listener, receive_fd};
use super::streams::{Chunk, Streams, read_chunk};
use super::{ExitStatus, Health, SessionConfig, SessionError, SessionEvent, Started};
use crate::cgroup::Cgroup;
use crate::clock;
use crate::logs::{LogWriter, Stream};
use crate::oci::{EXIT_RUNTIME, OciRuntime, RunStdio, StartFailure};
use crate::signals::Signals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::process::{
    Pid, WaitId, WaitIdOptions, WaitOptions, WaitStatus, set_child_subreaper, wait, waitid, waitpid,
};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use std::path::Path;
use std::time::Duration;

/// Most clients at once; each may cost a queue.
const CLIENTS_MAX: usize = 32;
/// Packets taken from one client before the others have their turn.
const PACKETS_PER_TURN_MAX: usize = 16;
/// Longest time for taking what an ended container has printed, if somebody else keeps writing into its streams.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Longest time for telling clients how it ended.
const FAREWELL_MAX: Duration = Duration::from_secs(5);
/// Longest time for init to become a child of this process after the runtime has ended.
const ADOPT_MAX: Duration = Duration::from_secs(10);
/// How often the supervisor looks for that.
const ADOPT_LOOK: Duration = Duration::from_millis(1);
/// Orphans reaped before other events have their turn.
const ORPHANS_PER_TURN_MAX: usize = 64;
/// How often the loop looks whether a slow client still holds up the output.
const STALL_LOOK: Duration = Duration::from_millis(100);

/// A run and everything connected to it.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    signals: Signals,
    listener: Listener,
    clients: Vec<Client>,
    log: LogWriter,
    log_has_failed: bool,
    streams: Option<Streams>,
    input: Input,
    clients_seen: u64,
    init: Option<Init>,
    cgroup: Option<Cgroup>,
    checks: Option<Checks>,
    /// Size the terminal is to have, as the last client said.
    size: Option<(u16, u16)>,
    /// A stop that came before the start.
    stop_wanted: Option<Option<u32>>,
}

/// What a polled descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Listener,
    Client(usize),
    Stdout,
    Stderr,
    Input,
}

impl Session {
    /// Begins to listen: on the control socket, to signals, and for orphans of the container.
    ///
    /// # Errors
    /// If the log or the socket cannot be made.
    pub fn open(mut config: SessionConfig) -> Result<Self, SessionError> {
        set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| SessionError::Io { what: "becoming a subreaper", source: errno.into() })?;
        let signals = Signals::listen(&[SIGCHLD, SIGTERM, SIGINT, SIGHUP]);
        let signals = signals.map_err(SessionError::io("listening to signals"))?;
        let listener = Listener::open(&config.control_socket, SocketType::SEQPACKET)
            .map_err(SessionError::io("making the control socket"))?;
        let log = LogWriter::open(config.log.clone())?;
        let clients = config.first_client.take().map(|fd| Client::attached(fd, 0)).into_iter().collect();
        let input = Input::new(config.interactive);
        Ok(Self {
            config,
            signals,
            listener,
            clients,
            log,
            log_has_failed: false,
            streams: None,
            input,
            clients_seen: 1,
            init: None,
            cgroup: None,
            checks: None,
            size: None,
            stop_wanted: None,
        })
    }

    /// Returns the size (lines, columns) that a waiting client's terminal has, for the bundle.
    pub fn console_size(&mut self) -> Option<(u16, u16)> {
        self.read_clients(&mut |_| {});
        self.size
    }

    /// Starts the container of `bundle`. Its cgroup is asked at the end whether memory ran out.
    ///
    /// # Errors
    /// If the process cannot be started; the failure has the exit code that says why.
    pub fn start(
        &mut self,
        runtime: &OciRuntime,
        id: &str,
        bundle: &Path,
        cgroups_path: &str,
    ) -> Result<Started, StartFailure> {
        let fail = |what: &str, error: &dyn std::fmt::Display| StartFailure {
            code: EXIT_RUNTIME,
            message: format!("{what}: {error}"),
        };
        let pid_file = bundle.join("init.pid");
        let (streams, pid) = if self.config.tty {
            let console = Listener::open(&bundle.join("console.sock"), SocketType::STREAM)
                .map_err(|error| fail("making the console socket", &error))?;
            let pid = runtime.run_detached(id, bundle, &pid_file, RunStdio::Console(console.short_path()))?;
            let master = take_console(&console).map_err(|error| fail("receiving the terminal", &error));
            (master.and_then(|fd| Streams::terminal(fd).map_err(|error| fail("the terminal", &error))), pid)
        } else {
            let (own, container) =
                Streams::pipes(self.config.interactive).map_err(|error| fail("making pipes", &error))?;
            (Ok(own), runtime.run_detached(id, bundle, &pid_file, container)?)
        };
        let init = Pid::from_raw(pid).ok_or_else(|| fail("the runtime gave no process id", &pid))?;
        let mut streams = match streams {
            Ok(streams) => streams,
            Err(failure) => {
                // It runs and nobody could talk to it.
                runtime.delete(id, true).ok();
                return Err(failure);
            }
        };
        if let Some((rows, columns)) = self.size {
            streams.resize(rows, columns);
        }
        adopt(init).map_err(|error| fail("waiting for the container's process", &error))?;
        self.input.connect(streams.stdin.take(), self.config.tty);
        self.streams = Some(streams);
        self.give_input();
        self.init = Some(Init::new(id, init, runtime));
        self.cgroup = Cgroup::at(cgroups_path).ok();
        let now = clock::monotonic();
        self.checks = self.config.health.take().map(|plan| Checks::new(plan, bundle, now));
        self.clients.iter_mut().filter(|client| client.is_attached).for_each(|client| client.tell(&Reply::Started));
        Ok(Started { pid })
    }

    /// Returns how the container is, as its checks say.
    #[must_use]
    pub fn health(&self) -> Health {
        self.checks.as_ref().map_or(Health::Unknown, |checks| checks.tracker.health())
    }

    /// Serves until the container's init has ended and everything it printed has been taken.
    ///
    /// # Errors
    /// If nothing was started, or the kernel refuses to wait.
    pub fn wait(&mut self, on_event: &mut dyn FnMut(SessionEvent)) -> Result<ExitStatus, SessionError> {
        let Some(pid) = self.init.as_ref().map(|init| init.pid) else { return Err(SessionError::NotStarted) };
        if let Some(timeout_s) = self.stop_wanted.take() {
            // It may just have ended; then there is nothing to ask for.
            self.stop(timeout_s, on_event).ok();
        }
        let status = loop {
            if let Some(status) = reap(pid, self.checks.as_ref().is_some_and(Checks::is_running))? {
                break status;
            }
            let now = clock::monotonic();
            if let Some(event) = self.init.as_mut().and_then(|init| init.kill_if_due(now)) {
                on_event(event);
            }
            if let (Some(checks), Some(init)) = (&mut self.checks, &self.init)
                && let Some(event) = checks.step(init, now)
            {
                on_event(event);
            }
            self.turn(on_event)?;
        };
        if let Some(init) = &mut self.init {
            init.has_ended = true;
        }
        if let Some(checks) = &mut self.checks {
            checks.abort();
        }
        self.drain(on_event);
        let signal = status.terminating_signal();
        let by_signal = || signal.map(|signal| signal.saturating_add(128));
        Ok(ExitStatus {
            code: status.exit_status().or_else(by_signal).unwrap_or(EXIT_RUNTIME),
            signal,
            oom: self.cgroup.as_ref().is_some_and(|cgroup| cgroup.oom_kills() > 0),
            stopped_by_request: self.init.as_ref().is_some_and(|init| init.is_stopping),
        })
    }

    /// Tells every client how it ended, for at most a few seconds, and ends the session. The caller has committed what
    /// is to be committed.
    pub fn finish(mut self, outcome: Result<i32, StartFailure>) {
        self.listener.hide();
        self.accept();
        // A packet socket that is closed with something unread takes what it has sent back from the other side.
        self.read_clients(&mut |_| {});
        let reply = match outcome {
            Ok(code) => Reply::Exit(code),
            Err(failure) => Reply::Failed { code: failure.code, message: failure.message },
        };
        self.clients.iter_mut().for_each(|client| client.tell(&reply));
        let end = clock::monotonic().saturating_add(FAREWELL_MAX);
        loop {
            self.read_clients(&mut |_| {});
            self.clients.retain(|client| !client.is_drained());
            let now = clock::monotonic();
            if self.clients.is_empty() || now >= end {
                return;
            }
            let mut fds: Vec<_> = self.clients.iter().map(|client| PollFd::new(client.fd(), PollFlags::OUT)).collect();
            let left = clock::timespec_of(end.saturating_sub(now));
            if poll(&mut fds, Some(&left)).is_err_and(|errno| errno != Errno::INTR) {
                return;
            }
            drop(fds);
            self.clients.iter_mut().for_each(Client::flush);
        }
    }

    /// Waits for something to happen, and handles it.
    fn turn(&mut self, on_event: &mut dyn FnMut(SessionEvent)) -> Result<(), SessionError> {
        let now = clock::monotonic();
        // Each one is asked, because each one's patience runs.
        let is_held = self.clients.iter_mut().filter_map(|client| client.holds_output(now).then_some(())).count() > 0;
        let ready = self.poll_ready(is_held, now)?;
        for source in ready {
            match source {
                Source::Signals => self.take_signals(on_event),
                Source::Listener => self.accept(),
                Source::Client(at) => {
                    if let Some(client) = self.clients.get_mut(at) {
                        client.flush();
                    }
                    self.read_client(at, on_event);
                }
                Source::Stdout => self.take_output(Stream::Stdout, on_event),
                Source::Stderr => self.take_output(Stream::Stderr, on_event),
                Source::Input => self.give_input(),
            }
        }
        self.clients.retain(|client| !client.is_gone());
        Ok(())
    }

    fn poll_ready(&self, is_held: bool, now: Duration) -> Result<Vec<Source>, SessionError> {
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        for fd in self.signals.poll_fds() {
            sources.push(Source::Signals);
            fds.push(fd);
        }
        if self.clients.len() < CLIENTS_MAX {
            sources.push(Source::Listener);
            fds.push(PollFd::new(self.listener.fd(), PollFlags::IN));
        }
        for (at, client) in self.clients.iter().enumerate() {
            sources.push(Source::Client(at));
            fds.push(PollFd::new(client.fd(), client.interest()));
        }
        if let Some(streams) = &self.streams {
            let outputs = [(Source::Stdout, &streams.stdout), (Source::Stderr, &streams.stderr)];
            for (source, fd) in outputs.into_iter().filter(|_| !is_held) {
                if let Some(fd) = fd {
                    sources.push(source);
                    fds.push(PollFd::new(fd, PollFlags::IN));
                }
            }
        }
        if let Some(fd) = self.input.pending_fd() {
            sources.push(Source::Input);
            fds.push(PollFd::new(fd, PollFlags::OUT));
        }
        let deadlines = [
            self.init.as_ref().and_then(Init::deadline),
            self.checks.as_ref().map(Checks::deadline),
            is_held.then(|| now.saturating_add(STALL_LOOK)),
        ];
        let next = deadlines.into_iter().flatten().min();
        let timeout = next.map(|at| clock::timespec_of(at.saturating_sub(now)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(vec![Source::Signals]),
            Err(errno) => return Err(SessionError::Io { what: "waiting for events", source: errno.into() }),
        }
        let is_ready = |(source, fd): (&Source, &PollFd<'_>)| (!fd.revents().is_empty()).then_some(*source);
        Ok(sources.iter().zip(&fds).filter_map(is_ready).collect())
    }

    fn take_signals(&mut self, on_event: &mut dyn FnMut(SessionEvent)) {
        // The loop looks for ended children in every turn; a hang-up of a terminal that started us is no reason to end.
        if self.signals.take().iter().any(|number| matches!(*number, SIGTERM | SIGINT)) {
            // It may just have ended; then the next look finds that.
            self.stop(None, on_event).ok();
        }
    }

    fn stop(&mut self, timeout_s: Option<u32>, on_event: &mut dyn FnMut(SessionEvent)) -> Result<(), String> {
        let timeout = timeout_s.map_or(self.config.stop_timeout, |seconds| Duration::from_secs(u64::from(seconds)));
        match &mut self.init {
            Some(init) => {
                on_event(SessionEvent::StopRequested);
                init.stop(self.config.stop_signal, timeout)
            }
            None => {
                self.stop_wanted = Some(timeout_s);
                Ok(())
            }
        }
    }

    fn accept(&mut self) {
        while self.clients.len() < CLIENTS_MAX {
            match self.listener.accept() {
                Ok(Some(fd)) => {
                    self.clients.push(Client::new(fd, self.clients_seen));
                    self.clients_seen = self.clients_seen.saturating_add(1);
                }
                // Out of descriptors or memory: the client waits or gives up.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn read_clients(&mut self, on_event: &mut dyn FnMut(SessionEvent)) {
        (0..self.clients.len()).for_each(|at| self.read_client(at, on_event));
    }

    fn read_client(&mut self, at: usize, on_event: &mut dyn FnMut(SessionEvent)) {
        for _ in 0..PACKETS_PER_TURN_MAX {
            let Some(packet) = self.clients.get_mut(at).and_then(Client::receive) else { return };
            let reply = match Request::decode(&packet) {
                Ok(request) => self.handle(at, request, on_event),
                Err(error) => Some(Reply::Refused(error.to_string())),
            };
            if let (Some(client), Some(reply)) = (self.clients.get_mut(at), reply) {
                client.tell(&reply);
            }
        }
    }

    fn handle(&mut self, at: usize, request: Request, on_event: &mut dyn FnMut(SessionEvent)) -> Option<Reply> {
        let done = |result: Result<(), String>| Some(result.map_or_else(Reply::Refused, |()| Reply::Done));
        match request {
            Request::Attach => {
                self.clients.get_mut(at)?.is_attached = true;
                self.init.is_some().then_some(Reply::Started)
            }
            Request::Input(bytes) => self.take_input(at, &bytes),
            Request::InputEnd => {
                self.input.end();
                self.give_input();
                None
            }
            Request::Resize { rows, columns } => {
                self.size = Some((rows, columns));
                if let Some(streams) = &self.streams {
                    streams.resize(rows, columns);
                }
                None
            }
            Request::Signal(signal) => match &self.init {
                Some(init) => done(init.signal(signal)),
                // Whoever signals a container that is only being started does not want it to start.
                None => done(self.stop(None, on_event)),
            },
            Request::Stop { timeout_s } => done(self.stop(timeout_s, on_event)),
            Request::Status => Some(Reply::Status(self.status())),
        }
    }

    fn status(&self) -> String {
        let attached = self.clients.iter().filter(|client| client.is_attached).count();
        serde_json::json!({
            "pid": self.init.as_ref().map(|init| init.pid.as_raw_nonzero().get()),
            "health": self.health().as_str(),
            "stopping": self.init.as_ref().is_some_and(|init| init.is_stopping),
            "attached": attached,
        })
        .to_string()
    }

    fn take_input(&mut self, at: usize, bytes: &[u8]) -> Option<Reply> {
        let number = self.clients.get(at)?.number;
        let is_taken = self.input.push(number, bytes);
        self.give_input();
        (!is_taken).then(|| Reply::Refused("more input than allowed is on the way".to_owned()))
    }

    fn give_input(&mut self) {
        for (number, bytes) in self.input.flush() {
            let reply = Reply::InputTaken(u32::try_from(bytes).unwrap_or(u32::MAX));
            if let Some(client) = self.clients.iter_mut().find(|client| client.number == number) {
                client.tell(&reply);
            }
        }
    }

    fn take_output(&mut self, stream: Stream, on_event: &mut dyn FnMut(SessionEvent)) {
        let Some(streams) = &mut self.streams else { return };
        let slot: &mut Option<OwnedFd> = match stream {
            Stream::Stdout => &mut streams.stdout,
            Stream::Stderr => &mut streams.stderr,
        };
        match slot.as_ref().map(read_chunk) {
            Some(Chunk::Data(bytes)) => self.spread(stream, bytes, on_event),
            Some(Chunk::End) => *slot = None,
            Some(Chunk::Nothing) | None => {}
        }
    }

    fn spread(&mut self, stream: Stream, bytes: Vec<u8>, on_event: &mut dyn FnMut(SessionEvent)) {
        if let Err(error) = self.log.append(stream, &bytes, clock::wall())
            && !std::mem::replace(&mut self.log_has_failed, true)
        {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            on_event(SessionEvent::LogFailed { message: format!("{error}: {cause}") });
        }
        let count = bytes.len();
        let reply = match stream {
            Stream::Stdout => Reply::Output(bytes),
            Stream::Stderr => Reply::ErrorOutput(bytes),
        };
        self.clients.iter_mut().filter(|client| client.is_attached).for_each(|client| client.offer(&reply, count));
    }

    /// Takes what is left in the streams of an ended container. Its processes are gone with its init, so what can be
    /// read without waiting is all; somebody else who holds the other end is not waited for.
    fn drain(&mut self, on_event: &mut dyn FnMut(SessionEvent)) {
        let end = clock::monotonic().saturating_add(DRAIN_MAX);
        for stream in [Stream::Stdout, Stream::Stderr] {
            while clock::monotonic() < end {
                let fd = self.streams.as_ref().and_then(|streams| match stream {
                    Stream::Stdout => streams.stdout.as_ref(),
                    Stream::Stderr => streams.stderr.as_ref(),
                });
                match fd.map(read_chunk) {
                    Some(Chunk::Data(bytes)) => self.spread(stream, bytes, on_event),
                    Some(Chunk::Nothing | Chunk::End) | None => break,
                }
            }
        }
        self.streams = None;
    }
}

/// Waits until init is a child of this process: `crun` has a helper that ends a moment after it.
fn adopt(init: Pid) -> std::io::Result<()> {
    let end = clock::monotonic().saturating_add(ADOPT_MAX);
    loop {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(init), options) {
            Ok(_) => return Ok(()),
            Err(Errno::CHILD | Errno::INTR) if clock::monotonic() < end => clock::pause(ADOPT_LOOK),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Accepts the runtime's connection, which waits in the queue when the runtime has ended, and takes the terminal.
fn take_console(console: &Listener) -> std::io::Result<OwnedFd> {
    let connection = console.accept()?.ok_or(std::io::ErrorKind::NotConnected)?;
    receive_fd(connection)
}

/// Reaps the container's init if it has ended, and its orphans; the latter only while no check runs, whose process
/// has somebody else to wait for it.
fn reap(init: Pid, check_runs: bool) -> Result<Option<WaitStatus>, SessionError> {
    let fail = |errno: Errno| SessionError::Io { what: "waiting for the container", source: errno.into() };
    match waitpid(Some(init), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => return Ok(Some(status)),
        Ok(None) | Err(Errno::INTR) => {}
        Err(errno) => return Err(fail(errno)),
    }
    for _ in 0..ORPHANS_PER_TURN_MAX {
        if check_runs {
            break;
        }
        match wait(WaitOptions::NOHANG) {
            Ok(Some((ended, status))) if ended == init => return Ok(Some(status)),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    Ok(None)
}
