//! What a supervisor does for its clients: output, input, terminals, slow readers, logs, health.
#![cfg(test)]

mod common;

use common::{Fixture, example, fixture, shell, wait_for};
use perennial_core::spec::HealthCheck;
use perennial_runtime::attach::{AttachError, Connection, DetachKeys, Outcome};
use perennial_runtime::clock;
use perennial_runtime::logs::{LogReader, ReadOptions};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A command in a terminal of its own.
struct InTerminal {
    master: File,
    slave: OwnedFd,
    child: Child,
    seen: String,
}

impl InTerminal {
    fn start(args: &[&str]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let mode = rustix::fs::Mode::empty();
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, mode).unwrap();
        resize(&slave, 24, 80);
        rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK).unwrap();
        let ends = || Stdio::from(slave.try_clone().unwrap());
        // A session of its own, so that the kernel tells it about the terminal's size.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(example("client")).args(args);
        let child = command.stdin(ends()).stdout(ends()).stderr(ends()).spawn().unwrap();
        Self { master: File::from(master), slave, child, seen: String::new() }
    }

    fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the text has been shown, and returns everything up to its end.
    fn expect(&mut self, text: &str) -> String {
        let mut found = String::new();
        wait_for(text, || {
            let mut buffer = [0_u8; 4096];
            if let Ok(count) = self.master.read(&mut buffer) {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
            let end = self.seen.find(text)? + text.len();
            found = self.seen.drain(..end).collect();
            Some(())
        });
        found
    }

    fn wait(mut self) -> i32 {
        let slave = self.slave.try_clone().unwrap();
        let status = wait_for("the client's end", || {
            let mut buffer = [0_u8; 4096];
            drop(self.master.read(&mut buffer));
            self.child.try_wait().unwrap()
        });
        let modes = tcgetattr(slave).unwrap().local_modes;
        assert!(modes.contains(rustix::termios::LocalModes::ECHO), "the terminal was left raw");
        status.code().unwrap()
    }
}

fn resize(fd: &OwnedFd, rows: u16, columns: u16) {
    tcsetwinsize(fd, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

fn client(container: &Fixture, flags: &str) -> Command {
    let mut command = Command::new(example("client"));
    command.arg("attach").arg(container.path("control.sock")).arg(flags);
    command
}

#[test]
fn a_terminal_is_attached_resized_and_left() {
    let mut container = shell("while read line; do case $line in size) stty size;; end) exit 6;; esac; done");
    container.spec.tty = true;
    container.spec.interactive = true;
    let (child, _) = container.start();
    let socket = container.path("control.sock").display().to_string();
    let mut terminal = InTerminal::start(&["attach", &socket, "ti"]);
    terminal.send("size\r");
    terminal.expect("24 80");
    resize(&terminal.slave, 50, 132);
    // The size reaches the container a moment after the kernel has told the client.
    wait_for("the new size", || {
        terminal.send("size\r");
        clock::pause(Duration::from_millis(50));
        terminal.expect("size\r\n");
        terminal.expect("\r\n").contains("50 132").then_some(())
    });
    terminal.send("\x10\x11");
    assert_eq!(terminal.wait(), 0, "left by ctrl-p ctrl-q");
    let mut again = InTerminal::start(&["attach", &socket, "ti"]);
    again.send("end\r");
    assert_eq!(again.wait(), 6);
    assert_eq!(container.wait(child).code, 6);
}

#[test]
fn the_exit_code_comes_even_if_input_was_left_unread() {
    let mut container = shell("read line; exit 3");
    container.spec.interactive = true;
    let (child, _) = container.start();
    let mut attached = client(&container, "i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let line = [b'x'; 4096].as_slice();
        // Nobody reads the rest; the pipe breaks when the client ends.
        while stdin.write_all(line).and_then(|()| stdin.write_all(b"\n")).is_ok() {}
    });
    assert_eq!(attached.wait().unwrap().code(), Some(3));
    writer.join().unwrap();
    assert_eq!(container.wait(child).code, 3);
}

#[test]
fn stopping_and_waiting_gives_the_exit_code() {
    let mut container = shell("trap 'exit 8' TERM; echo up; while :; do sleep 0.05; done");
    let (child, _) = container.start();
    container.wait_for_output("up");
    let connection = Connection::open(&container.path("control.sock")).unwrap();
    connection.stop(None).unwrap();
    assert_eq!(connection.wait_exit().unwrap(), Outcome::Exited(8));
    container.wait(child);
}

#[test]
fn a_signal_before_the_start_stops_the_container_at_once() {
    let mut container = shell("trap 'exit 0' TERM; while :; do sleep 0.05; done");
    container.spec.stop_timeout_s = Some(1);
    let (connection, end) = Connection::pair().unwrap();
    container.first_client = Some(end);
    let child = container.spawn();
    let pid = Pid::from_child(&child);
    wait_for("the control socket", || container.path("control.sock").exists().then_some(()));
    kill_process(pid, Signal::TERM).unwrap();
    let ran = container.wait(child);
    assert!(ran.stopped_by_request && [0, 137].contains(&ran.code), "{ran:?}");
    assert_eq!(connection.wait_exit().unwrap(), Outcome::Exited(i32::try_from(ran.code).unwrap()));
}

#[test]
fn a_first_client_gives_the_terminal_its_size_from_the_beginning() {
    let mut container = shell("stty size; test -t 0 && test -t 1 && echo terminal $TERM");
    container.spec.tty = true;
    let (connection, end) = Connection::pair().unwrap();
    connection.resize(33, 101).unwrap();
    container.first_client = Some(end);
    assert_eq!(container.stdout(), "33 101\r\nterminal xterm\r\n");
    drop(connection);
}

#[test]
fn input_reaches_the_container_and_its_end_too() {
    let mut container = shell("sleep 0.3; wc -c; echo done");
    container.spec.interactive = true;
    let (connection, end) = Connection::pair().unwrap();
    container.first_client = Some(end);
    let child = container.spawn();
    drop(connection);
    let mut attached = wait_for("the control socket", || {
        container
            .path("control.sock")
            .exists()
            .then(|| client(&container, "i").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    });
    // More than pipe, window and queue together hold.
    let input = vec![b'x'; 3 << 20];
    let mut stdin = attached.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    assert_eq!(container.wait(child).stdout, format!("{}\ndone\n", 3 << 20));
    writer.join().unwrap().unwrap();
    let output = attached.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\ndone\n", 3 << 20));
}

#[test]
fn output_and_exit_code_reach_every_attached_client() {
    let mut container = shell("read line; echo out; echo err >&2; exit 9");
    container.spec.interactive = true;
    let (child, _) = container.start();
    let start = |flags: &str| {
        client(&container, flags).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (first, mut second) = (start(""), start("i"));
    let connection = Connection::open(&container.path("control.sock")).unwrap();
    wait_for("both clients", || (connection.status().unwrap()["attached"] == 2).then_some(()));
    second.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(connection.wait_exit().unwrap(), Outcome::Exited(9));
    for client in [first, second] {
        let output = client.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(9));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("err\n"));
    }
    assert_eq!(container.wait(child).code, 9);
    let error = Connection::open(&container.path("control.sock")).unwrap_err();
    assert!(matches!(error, AttachError::NoSupervisor { .. }));
}

#[test]
fn signals_to_a_client_without_a_terminal_are_the_containers() {
    let mut container = shell("trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done");
    let (child, _) = container.start();
    container.wait_for_output("up");
    let attached = client(&container, "").stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let connection = Connection::open(&container.path("control.sock")).unwrap();
    wait_for("the client", || (connection.status().unwrap()["attached"] == 1).then_some(()));
    kill_process(Pid::from_child(&attached), Signal::USR1).unwrap();
    assert_eq!(container.wait(child).code, 4);
    assert_eq!(attached.wait_with_output().unwrap().status.code(), Some(4));
}

#[test]
fn a_start_that_fails_is_told_to_the_first_client() {
    let mut container = fixture(&["/nonexistent"]);
    let (connection, end) = Connection::pair().unwrap();
    container.first_client = Some(end);
    let mut child = container.spawn();
    let failure = connection.wait_started().unwrap().unwrap_err();
    assert_eq!(failure.code, 127);
    child.wait().unwrap();
}

#[test]
fn a_client_that_does_not_read_holds_nobody_up_and_still_learns_the_end() {
    let mut container = shell(&format!("yes {} | head -c 4000000; echo finished >&2", "0123456789".repeat(100)));
    container.log_bytes_max = 32 << 20;
    let (slow, end) = Connection::pair().unwrap();
    container.first_client = Some(end);
    let child = container.spawn();
    // It attaches, as the first thing it does, and then sleeps.
    let begin = clock::monotonic();
    let reader = std::thread::spawn(move || {
        slow.request_output().unwrap();
        clock::pause(Duration::from_secs(6));
        slow.wait_exit().unwrap()
    });
    container.wait_for_stderr("finished");
    let took = clock::monotonic() - begin;
    assert!(took < Duration::from_secs(5), "the container was held up for {took:?}");
    assert_eq!(reader.join().unwrap(), Outcome::Exited(0));
    let ran = container.wait(child);
    assert_eq!(ran.stdout.len(), 4_000_000, "the log has everything");
}

#[test]
fn a_stranger_who_holds_the_output_open_is_not_waited_for() {
    let mut container = shell("echo up; read line; echo last");
    container.spec.interactive = true;
    let (child, pid) = container.start();
    container.wait_for_output("up");
    // A process outside of the container, with the container's standard output.
    let stdout = File::options().write(true).open(format!("/proc/{pid}/fd/1")).unwrap();
    let mut holder = Command::new("sleep").arg("60").stdout(stdout).spawn().unwrap();
    let begin = clock::monotonic();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert_eq!(container.wait(child).code, 137);
    assert!(clock::monotonic() - begin < Duration::from_secs(10));
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn logs_rotate_without_cutting_lines_and_can_be_followed() {
    // With pauses, so that the reader is never so far behind that what it has yet to read is gone.
    let mut container = shell(
        "i=0; while [ $i -lt 6000 ]; do echo line-$i-0123456789; i=$((i+1)); [ $((i%500)) -ne 0 ] || sleep 0.2; done; \
         printf end",
    );
    container.log_bytes_max = 64 * 1024;
    let child = container.spawn();
    let mut reader = LogReader::open(&container.path("log"));
    let mut followed = Vec::new();
    wait_for("the last line", || {
        while let Some(line) = reader.next_line().unwrap() {
            followed.extend(line.text);
        }
        followed.ends_with(b"end").then_some(())
    });
    let ran = container.wait(child);
    let expected: String = (0..6000).map(|number| format!("line-{number}-0123456789\n")).collect();
    assert_eq!(String::from_utf8(followed).unwrap(), expected.clone() + "end");
    assert!(container.path("log.1").exists() && !container.path("log.3").exists());
    assert!(std::fs::metadata(container.path("log.1")).unwrap().len() < 2 * 64 * 1024 + 32 * 1024 * 4);
    assert!(expected.ends_with(ran.stdout.strip_suffix("end").unwrap()), "what is kept is the end, in whole lines");
    let tail = LogReader::open(&container.path("log"));
    let options = ReadOptions { tail: Some(3), since: None };
    let lines = { tail }.read_all(&options).unwrap();
    let texts: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(&line.text).into_owned()).collect();
    assert_eq!(texts, ["line-5998-0123456789\n", "line-5999-0123456789\n", "end"]);
    let options = ReadOptions { tail: None, since: Some(lines[2].at) };
    let since = LogReader::open(&container.path("log")).read_all(&options).unwrap();
    assert!(!since.is_empty() && since.iter().all(|line| line.at >= lines[2].at));
}

#[test]
fn health_is_checked_inside_the_container() {
    let mut container = shell("touch /ok; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let command = vec!["test -e /ok".to_owned()];
    container.spec.health = Some(HealthCheck { command, interval_s: 1, timeout_s: 5, retries: 2, start_period_s: 0 });
    let (child, _) = container.start();
    let events = || std::fs::read_to_string(container.path("events")).unwrap_or_default();
    wait_for("health", || events().contains("Healthy").then_some(()));
    let connection = Connection::open(&container.path("control.sock")).unwrap();
    assert_eq!(connection.status().unwrap()["health"], "healthy");
    std::fs::remove_file(container.path("rootfs/ok")).unwrap();
    wait_for("sickness", || events().contains("Unhealthy { failures: 2 }").then_some(()));
    assert_eq!(connection.status().unwrap()["health"], "unhealthy");
    connection.stop(None).unwrap();
    assert_eq!(container.wait(child).code, 0);
}

#[test]
fn a_health_check_that_hangs_is_killed_and_counts_as_failed() {
    let mut container = shell("trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let command = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    container.spec.health = Some(HealthCheck { command, interval_s: 1, timeout_s: 1, retries: 1, start_period_s: 0 });
    let (child, _) = container.start();
    let events = || std::fs::read_to_string(container.path("events")).unwrap_or_default();
    wait_for("sickness", || events().contains("Unhealthy").then_some(()));
    let cgroup = perennial_runtime::cgroup::Cgroup::at(&container.cgroups_path()).unwrap();
    let sleepers = || {
        let pids = cgroup.pids().unwrap();
        pids.iter()
            .filter(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.ends_with(b"1000\0")))
            .count()
    };
    wait_for("the check's end", || (sleepers() == 0).then_some(()));
    Connection::open(&container.path("control.sock")).unwrap().stop(None).unwrap();
    assert_eq!(container.wait(child).code, 0);
}

#[test]
fn exec_gives_the_exit_code_and_the_streams() {
    let mut container = shell("trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let (child, _) = container.start();
    let exec = |flags: &str, command: &[&str], input: &str| {
        let mut running = Command::new(example("client"))
            .arg("exec")
            .arg(container.runtime.program())
            .arg(container.path("oci"))
            .args([&container.id, flags])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        running.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = running.wait_with_output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(exec("", &["sh", "-c", "echo $container; exit 11"], ""), (11, "perennial\n".to_owned()));
    assert_eq!(exec("i", &["cat"], "typed"), (0, "typed".to_owned()));
    assert_eq!(exec("", &["cat"], "typed").1, "");
    assert_eq!(exec("", &["/nonexistent"], "").0, 127);
    assert_eq!(exec("", &["/etc/passwd"], "").0, 126);
    assert_eq!(exec("", &["sh", "-c", "kill -9 $$"], "").0, 137);
    let (oci, id) = (container.path("oci").display().to_string(), container.id.clone());
    let program = container.runtime.program().display().to_string();
    let mut terminal = InTerminal::start(&["exec", &program, &oci, &id, "ti", "sh"]);
    terminal.send("stty size; exit 12\r");
    terminal.expect("24 80");
    assert_eq!(terminal.wait(), 12);
    Connection::open(&container.path("control.sock")).unwrap().stop(None).unwrap();
    assert_eq!(container.wait(child).code, 0);
}

#[test]
fn an_idle_supervisor_is_small() {
    let mut container = shell("echo up; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let (child, _) = container.start();
    container.wait_for_output("up");
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim().to_owned();
    let kib: u64 = rss.strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(kib < 10 * 1024, "{kib} KiB");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    container.wait(child);
}

#[test]
fn detach_keys_are_found_across_reads() {
    let feed = |parts: &[&[u8]]| {
        let mut keys = DetachKeys::default();
        let mut passed = Vec::new();
        for part in parts {
            let (bytes, leaves) = keys.feed(part);
            passed.extend(bytes);
            if leaves {
                return (passed, true);
            }
        }
        (passed, false)
    };
    assert_eq!(feed(&[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
    assert_eq!(feed(&[b"ab\x10", b"\x11cd"]), (b"ab".to_vec(), true));
    assert_eq!(feed(&[b"\x10x\x11"]), (b"\x10x\x11".to_vec(), false));
    assert_eq!(feed(&[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
}

impl Fixture {
    fn wait_for_stderr(&self, text: &str) {
        wait_for(text, || self.output().1.contains(text).then_some(()));
    }
}
