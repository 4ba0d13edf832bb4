//! What a container's process finds, and how its end is told (rows A7, A17): against a real runtime.
#![cfg(test)]

mod common;

use common::{fixture, shell, wait_for};
use perennial_core::spec::{Network, Volume};
use perennial_runtime::attach::Connection;
use perennial_runtime::cgroup::Cgroup;
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn exit_code_and_both_streams_are_taken() {
    let ran = shell("echo out; echo err >&2; exit 42").run();
    assert_eq!((ran.code, ran.signal), (42, None));
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
    assert!(!ran.oom && !ran.stopped_by_request && ran.events.is_empty());
}

#[test]
fn programs_that_cannot_run_have_the_usual_codes() {
    for (program, code) in [("/nonexistent", 127), ("nonexistent", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let (found, message) = fixture(&[program]).fail();
        assert_eq!(found, code, "{program}: {message}");
    }
}

#[test]
fn a_failed_start_leaves_nothing_behind() {
    let mut container = fixture(&["/nonexistent"]);
    container.fail();
    assert_eq!(container.runtime.state(&container.id).unwrap(), None);
    assert_eq!(Cgroup::at(&container.cgroups_path()).unwrap().pids().unwrap(), Vec::<i32>::new());
}

#[test]
fn a_signal_gives_128_and_its_number() {
    for (signal, code) in [(Signal::KILL, 137), (Signal::TERM, 143)] {
        let mut container = shell("trap 'trap - TERM; kill -TERM $$' TERM; echo up; while :; do sleep 0.05; done");
        // A process 1 without a handler ignores signals from outside; under an init, the shell is not process 1.
        container.spec.init = true;
        let (child, pid) = container.start();
        container.wait_for_output("up");
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        assert_eq!(container.wait(child).code, code);
    }
}

#[test]
fn stop_sends_the_stop_signal_and_kills_after_the_time_out() {
    let mut polite = shell("trap 'echo bye; exit 3' USR1; echo up; while :; do sleep 0.05; done");
    polite.spec.stop_signal = Some("SIGUSR1".to_owned());
    let (child, _) = polite.start();
    polite.wait_for_output("up");
    Connection::open(&polite.path("control.sock")).unwrap().stop(None).unwrap();
    let ran = polite.wait(child);
    assert_eq!((ran.code, ran.stopped_by_request, ran.stdout.as_str()), (3, true, "up\nbye\n"));
    assert_eq!(ran.events, ["StopRequested"]);

    let mut deaf = shell("trap '' TERM; echo up; while :; do sleep 0.05; done");
    let (child, _) = deaf.start();
    deaf.wait_for_output("up");
    Connection::open(&deaf.path("control.sock")).unwrap().stop(Some(1)).unwrap();
    let ran = deaf.wait(child);
    assert_eq!((ran.code, ran.signal, ran.stopped_by_request), (137, Some(9), true));
    assert_eq!(ran.events, ["StopRequested", "Killed"]);
}

#[test]
fn sigterm_to_the_supervisor_stops_the_container() {
    let mut container = shell("trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done");
    let (child, _) = container.start();
    container.wait_for_output("up");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ran = container.wait(child);
    assert_eq!((ran.code, ran.stopped_by_request), (5, true));
}

#[test]
fn user_workdir_environment_and_hostname_are_as_configured() {
    let mut container = shell("id -u; id -g; id -G; pwd; echo $HOME $A $container; hostname; echo $PATH");
    container.spec.user = Some("alice".to_owned());
    container.spec.workdir = Some("/tmp/new".to_owned());
    container.spec.env = vec!["A=b=c".to_owned()];
    container.spec.hostname = Some("attic".to_owned());
    let path = perennial_core::process::PATH_DEFAULT;
    let expected = format!("1000\n1000\n1000 29 50\n/tmp/new\n/home/alice b=c perennial\nattic\n{path}\n");
    assert_eq!(container.stdout(), expected);
}

#[test]
fn users_come_by_name_or_number_and_unknown_names_are_refused() {
    for (user, expected) in
        [("1000", "1000 1000 29 50"), ("alice:staff", "1000 50"), ("1234", "1234 0"), ("7:8", "7 8"), ("root", "0 0")]
    {
        let mut container = shell("echo $(id -u) $(id -G)");
        container.spec.user = Some(user.to_owned());
        assert_eq!(container.stdout().trim(), expected, "{user}");
    }
}

/// podman's set, as containers.conf(5) documents it; numbers in linux/capability.h.
const DEFAULT_CAPABILITIES: &str = "00000000800405fb";

#[test]
fn default_capabilities_are_the_documented_eleven() {
    let status = shell("cat /proc/self/status").stdout();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(field(name), DEFAULT_CAPABILITIES, "{name}");
    }
    for name in ["CapInh:", "CapAmb:"] {
        assert_eq!(field(name), "0000000000000000", "{name}");
    }
    assert_eq!(u64::from_str_radix(DEFAULT_CAPABILITIES, 16).unwrap().count_ones(), 11);
    assert_eq!(field("Seccomp:"), "2");
}

#[test]
fn another_user_holds_only_added_capabilities() {
    let mut container = shell("grep Cap /proc/self/status");
    container.spec.user = Some("alice".to_owned());
    container.spec.cap_add = vec!["net_raw".to_owned()];
    container.spec.cap_drop = vec!["CAP_CHOWN".to_owned()];
    let raw = "0000000000002000";
    assert_eq!(
        container.stdout().split_whitespace().collect::<Vec<_>>(),
        ["CapInh:", raw, "CapPrm:", raw, "CapEff:", raw, "CapBnd:", "00000000800425fa", "CapAmb:", raw]
    );
}

#[test]
fn the_system_call_filter_refuses_even_what_capabilities_allow() {
    // swapon(2) of an empty file would say EINVAL to one who may call it.
    let mut container = shell("dd if=/dev/zero of=/swap bs=64k count=1; swapon /swap; hostname other");
    container.spec.cap_add = vec!["SYS_ADMIN".to_owned()];
    let ran = container.run();
    assert!(ran.stderr.contains("swapon: /swap: Operation not permitted"), "{}", ran.stderr);
    assert_eq!(ran.code, 0, "sethostname belongs to the capability: {}", ran.stderr);
    let ran = shell("hostname other").run();
    assert!(ran.stderr.contains("not permitted"), "{}", ran.stderr);
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_refuse_writing() {
    let ran = shell(
        "cat /proc/interrupts | wc -c; ls /sys/firmware | wc -l; cat /proc/keys | wc -c
         echo 1 > /proc/sys/kernel/panic; echo f > /proc/irq/default_smp_affinity; mkdir /sys/x; mknod /dev/sda b 8 0",
    )
    .run();
    assert_eq!(ran.stdout.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0"]);
    assert_eq!(ran.stderr.matches("Read-only file system").count(), 3, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("not permitted").count(), 1, "{}", ran.stderr);
}

#[test]
fn memory_running_out_is_told() {
    let mut container = shell("tail /dev/zero");
    container.spec.limits.memory_bytes = Some(16 << 20);
    let ran = container.run();
    assert!(ran.oom, "{ran:?}");
    assert_eq!(ran.code, 137);
}

#[test]
fn limits_are_in_force() {
    let mut container = shell("for i in $(seq 60); do sleep 9 & done; echo all");
    container.spec.limits.pids = Some(30);
    let ran = container.run();
    assert!(ran.stderr.contains("can't fork") && !ran.stdout.contains("all"), "{ran:?}");

    let mut container = shell("cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null; true");
    container.spec.limits.cpus_milli = Some(1500);
    assert_eq!(container.stdout().split_whitespace().next(), Some("150000"));
}

#[test]
fn an_init_reaps_orphans() {
    let script = "(sleep 0.2 &) ; sleep 0.6; ps -o stat,comm | grep -c '^Z'; ps -o pid,comm | grep -w 1";
    let mut container = shell(script);
    container.spec.init = true;
    let ran = container.run();
    let text = ran.stdout;
    assert!(text.starts_with("0\n"), "{text}");
    assert!(text.contains("catatonit") || text.contains("tini") || text.contains("init"), "{text}");
    let ran = fixture(&["/bin/sh", "-c", "test -e /dev/init && echo there"]).run();
    assert_eq!(ran.stdout, "");
}

#[test]
fn volumes_are_shown_and_read_only_ones_refuse_writing() {
    let host = tempfile::tempdir().unwrap();
    common::put(&host.path().join("file"), "from the host\n");
    let source = host.path().to_str().unwrap().to_owned();
    let volume = |target: &str, read_only| Volume { source: source.clone(), target: target.to_owned(), read_only };
    let mut container = shell("cat /a/file; echo new > /a/new; echo x > /b/x || echo refused; ls /b/c");
    container.spec.volumes = vec![volume("/b/c", false), volume("/b", true), volume("/a", false)];
    std::fs::create_dir(host.path().join("c")).unwrap();
    let ran = container.run();
    assert_eq!(ran.stdout, "from the host\nrefused\nc\nfile\nnew\n", "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(host.path().join("new")).unwrap(), "new\n");

    container = shell("true");
    container.spec.volumes = vec![Volume { source: "/missing".into(), target: "/a".into(), read_only: false }];
    assert!(container.fail().1.contains("/missing"));
}

#[test]
fn network_none_has_only_loopback_and_host_has_the_hosts() {
    let interfaces = "tail -n +3 /proc/net/dev | sed 's/:.*//; s/ //g'";
    let mut container = shell(interfaces);
    container.spec.network = Network::None;
    assert_eq!(container.stdout(), "lo\n");
    let host = std::fs::read_to_string("/proc/net/dev").unwrap().lines().count() - 2;
    assert_eq!(shell(interfaces).stdout().lines().count(), host);
}

#[test]
fn processes_left_by_the_command_end_with_it() {
    let mut container = shell("sleep 1000 & sleep 1000 & echo up");
    let ran = container.run();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "up\n"));
    let cgroup = Cgroup::at(&container.cgroups_path()).unwrap();
    wait_for("an empty cgroup", || cgroup.pids().unwrap().is_empty().then_some(()));
}

#[test]
fn a_whole_cgroup_is_killed_and_removed_and_nothing_wider_can_be_named() {
    let mut container = shell("trap '' TERM; sleep 1000 & sleep 1000 & echo up; wait; while :; do sleep 1; done");
    let (child, _) = container.start();
    container.wait_for_output("up");
    let cgroup = Cgroup::at(&container.cgroups_path()).unwrap();
    assert!(cgroup.pids().unwrap().len() >= 3);
    cgroup.kill_all(std::time::Duration::from_secs(10)).unwrap();
    assert_eq!(cgroup.pids().unwrap(), Vec::<i32>::new());
    assert_eq!(container.wait(child).code, 137);
    cgroup.remove().unwrap();
    cgroup.remove().unwrap();
    for path in ["", "/", "/perennial", "/perennial/", "/perennial/..", "//x", "/./x"] {
        assert!(Cgroup::at(path).is_err(), "{path:?}");
    }
}
