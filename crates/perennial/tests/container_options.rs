//! Settings of `create` and `run`: each is seen to take effect from inside or in the kernel, and to stay with the
//! container.

mod stage;

use anyhow::{Context as _, Result, anyhow, ensure};
use perennial_testkit::host::{run, wait_until};
use perennial_testkit::image::{Compression, ImageText, oci_layout};
use serde_json::{Value, json};
use stage::{MODES, SOON, Stage, complains, text, texts, write};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Runs a command in a new container with these options and returns what it printed.
fn said(stage: &Stage, name: &str, options: &[&str], script: &str) -> Result<String> {
    let args = [&["run", name, "--image", "box"], options, &["--", "sh", "-c", script]].concat();
    Ok(stage.ok(&args)?.out())
}

#[test]
fn environment_and_directory_stay_with_the_container() -> Result<()> {
    let stage = Stage::new()?;
    let options = ["--env", "A=1", "--env", "B=two words", "--env", "PATH=/bin", "--workdir", "/var/log"];
    let script = "echo \"$A|$B|$PATH|$container|$HOSTNAME\"; pwd";
    let expected = "1|two words|/bin|perennial|web\n/var/log\n";
    assert_eq!(said(&stage, "web", &options, script)?, expected);
    assert_eq!(stage.run(&["run", "web", "--", "sh", "-c", script])?.ok()?.out(), expected);
    stage.refused_unchanged(&["run", "web", "--env", "A=2", "--", "true"], 4, &["web", "--env"])
}

#[test]
fn user_is_found_by_name_and_by_number() -> Result<()> {
    let stage = Stage::new()?;
    let cases = [
        ("user", "1000:1000:1000 2000"),
        ("1000", "1000:1000:1000 2000"),
        ("user:extra", "1000:2000:2000"),
        ("1000:7", "1000:7:7"),
        ("4000000", "4000000:0:0"),
        ("0", "0:0:0"),
    ];
    for (number, (user, expected)) in cases.into_iter().enumerate() {
        let script = "echo $(id -u):$(id -g):$(id -G)";
        let found = said(&stage, &format!("web{number}"), &["--user", user], script)?;
        assert_eq!(found.trim(), expected, "{user}");
    }
    for (number, user) in ["nobody-here", "user:nobody-here"].into_iter().enumerate() {
        let name = format!("bad{number}");
        stage.ok(&["create", &name, "--image", "box", "--user", user])?;
        stage.refused_with(&["run", &name, "--", "true"], 125, &["nobody-here"])?;
        assert!(stage.seqs(&name)?.is_empty());
        stage.assert_only_generations_left(&name)?;
    }
    Ok(())
}

#[test]
fn volumes_are_the_hosts_and_in_no_generation() -> Result<()> {
    let stage = Stage::new()?;
    let (data, fixed) = (stage.path("data"), stage.path("fixed"));
    fs::create_dir(&data)?;
    write(&fixed, "fixed\n")?;
    let (rw, ro) = (format!("{}:/data", data.display()), format!("{}:/etc/fixed:ro", fixed.display()));
    let script = "cat /etc/fixed; echo 1 >/data/f; echo 2 >/root/f; echo x >/etc/fixed";
    let args = ["run", "web", "--image", "box", "--volume", &rw, "--volume", &ro, "--", "sh", "-c", script];
    let run = stage.run(&args)?.code_is(1)?;
    assert!(run.out() == "fixed\n" && run.err().contains("Read-only"), "{run:?}");
    assert_eq!(fs::read_to_string(data.join("f"))?, "1\n");
    assert_eq!(fs::read_to_string(&fixed)?, "fixed\n");
    let layer = stage.layer(&texts(&stage.generation("web", 1)?, "/layers")?[0])?;
    let held: Vec<String> = layer.entries.keys().map(ToString::to_string).collect();
    assert!(held.contains(&"root/f".to_owned()) && !held.contains(&"data/f".to_owned()), "{held:?}");
    write(data.join("f"), "changed outside\n")?;
    stage.ok(&["run", "web", "--", "true"])?;
    stage.ok(&["rollback", "web", "--to", "1"])?;
    assert_eq!(stage.ok(&["run", "web", "--", "cat", "/data/f"])?.out(), "changed outside\n");
    Ok(())
}

/// Unmounts what a test has mounted, however it ends.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).ok();
    }
}

#[test]
fn read_only_volume_is_so_with_what_is_mounted_below() -> Result<()> {
    let stage = Stage::new()?;
    let data = stage.path("data");
    let below = data.join("below");
    fs::create_dir_all(&below)?;
    rustix::mount::mount("tmpfs", &below, "tmpfs", rustix::mount::MountFlags::empty(), None)?;
    let _mounted = Mounted(below.clone());
    let volume = format!("{}:/data:ro", data.display());
    let script = "echo x >/data/f; echo x >/data/below/f";
    let run = stage.run(&["run", "web", "--image", "box", "--volume", &volume, "--", "sh", "-c", script])?;
    assert_eq!((run.code(), run.err().matches("Read-only").count()), (1, 2), "{run:?}");
    assert!(!below.join("f").exists());
    write(below.join("host"), "the host still writes\n")?;
    assert_eq!(stage.ok(&["run", "web", "--", "cat", "/data/below/host"])?.out(), "the host still writes\n");
    Ok(())
}

#[test]
fn host_name_is_the_given_one_or_the_containers() -> Result<()> {
    let stage = Stage::new()?;
    assert_eq!(said(&stage, "web", &[], "hostname")?, "web\n");
    assert_eq!(said(&stage, "other", &["--hostname", "garden.example"], "hostname")?, "garden.example\n");
    let longest = "n".repeat(128);
    let expected = format!("{0}\n{0}\n", &longest[..64]);
    assert_eq!(said(&stage, &longest, &[], "hostname; echo $HOSTNAME")?, expected);
    for hostname in ["", "bad host", "a\nb", &longest[..65]] {
        let args = ["run", "bad", "--image", "box", "--hostname", hostname, "--", "true"];
        stage.refused_unchanged(&args, 2, &["--hostname"])?;
    }
    Ok(())
}

/// Reads a file of the cgroup that a process is in, whichever version has it.
fn cgroup_file(pid: i64, controller: &str, names: [&str; 2]) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let unified = [PathBuf::from("/sys/fs/cgroup"), PathBuf::from("/sys/fs/cgroup/unified")];
        let (mounts, name) = match controllers.split(',').any(|name| name == controller) {
            true => (vec![Path::new("/sys/fs/cgroup").join(controllers)], names[0]),
            false if controllers.is_empty() => (unified.to_vec(), names[1]),
            false => continue,
        };
        for mount in mounts {
            let file = mount.join(path.trim_start_matches('/')).join(name);
            if let Ok(value) = fs::read_to_string(file) {
                return Ok(value.trim().to_owned());
            }
        }
    }
    Err(anyhow!("process {pid} has no {names:?}:\n{text}"))
}

#[test]
fn limits_are_in_the_cgroup() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"])?;
    let pid = stage.inspect("web")?["run"]["pid"].as_i64().ok_or_else(|| anyhow!("no pid"))?;
    let memory = cgroup_file(pid, "memory", ["memory.limit_in_bytes", "memory.max"])?;
    assert_eq!(memory, (64 << 20).to_string());
    let quota = cgroup_file(pid, "cpu", ["cpu.cfs_quota_us", "cpu.max"])?;
    assert!(["50000", "50000 100000"].contains(&quota.as_str()), "{quota}");
    assert_eq!(cgroup_file(pid, "pids", ["pids.max", "pids.max"])?, "20");
    let bomb = "i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); done; echo all";
    let run = stage.run(&["exec", "web", "sh", "-c", bomb])?;
    assert!(run.code() != 0 && run.err().contains("fork"), "{run:?}");
    stage.ok(&["stop", "web"])?;
    stage.assert_only_generations_left("web")
}

#[test]
fn container_that_runs_out_of_memory_says_so_in_its_generation() -> Result<()> {
    let stage = Stage::new()?;
    let script = "echo before >/root/f; tail /dev/zero";
    let run = stage.run(&["run", "web", "--image", "box", "--memory", "16m", "--", "sh", "-c", script])?;
    assert_eq!(run.code(), 137, "{run:?}");
    let generation = stage.generation("web", 1)?;
    assert_eq!((text(&generation, "/health")?, generation["exit_code"].as_i64()), ("suspect", Some(137)));
    assert!(text(&generation, "/note")?.contains("memory"), "{generation}");
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "before\n");
    Ok(())
}

/// Names of network interfaces as `/proc/net/dev` has them.
fn interfaces(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    names.filter(|name| !name.contains('|')).collect()
}

#[test]
fn network_is_the_hosts_or_none() -> Result<()> {
    let stage = Stage::new()?;
    assert_eq!(interfaces(&said(&stage, "none", &["--network", "none"], "cat /proc/net/dev")?), ["lo"]);
    let own = said(&stage, "host", &["--network", "host"], "readlink /proc/self/ns/net; cat /etc/resolv.conf")?;
    let host = fs::read_link("/proc/self/ns/net")?;
    assert!(own.starts_with(&host.display().to_string()), "{own}");
    assert_eq!(said(&stage, "default", &[], "readlink /proc/self/ns/net")?.trim(), host.display().to_string());
    Ok(())
}

#[test]
fn bridge_gives_an_address_of_its_own_and_takes_it_back() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &["--network", "bridge", "--cap-add", "NET_RAW"])?;
    stage.idle("other", &["--network", "bridge"])?;
    let address = |name: &str| -> Result<String> {
        let listed = stage.inside(name, "ip -4 -o addr show scope global")?;
        let address = listed.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        Ok(address.and_then(|a| a.split('/').next()).ok_or_else(|| anyhow!("no address: {listed}"))?.to_owned())
    };
    let (first, second) = (address("web")?, address("other")?);
    assert_ne!(first, second);
    let said = stage.run(&["exec", "web", "ping", "-c", "1", "-W", "5", &second])?;
    ensure!(said.code() == 0, "no way from {first} to {second}: {}{}", said.out(), said.err());
    assert!(stage.inside("web", "cat /etc/resolv.conf")?.contains("nameserver"));
    stage.ok(&["stop", "web"])?;
    stage.ok(&["stop", "other"])?;
    stage.assert_only_generations_left("web")?;
    stage.assert_only_generations_left("other")?;
    Ok(())
}

/// Returns the effective capabilities that a script sees.
fn effective(said: &str) -> Result<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let digits = line.ok_or_else(|| anyhow!("no capabilities in {said}"))?.trim();
    u64::from_str_radix(digits, 16).with_context(|| digits.to_owned())
}

#[test]
fn capabilities_are_the_usual_ones_more_or_fewer() -> Result<()> {
    const SYS_ADMIN: u64 = 1 << 21;
    const CHOWN: u64 = 1;
    let stage = Stage::new()?;
    let of = |name: &str, options: &[&str]| effective(&said(&stage, name, options, "grep Cap /proc/self/status")?);
    let usual = of("usual", &[])?;
    assert!(usual & CHOWN != 0 && usual & SYS_ADMIN == 0, "{usual:x}");
    assert_eq!(of("less", &["--cap-drop", "CHOWN"])?, usual & !CHOWN);
    assert_eq!(of("more", &["--cap-add", "SYS_ADMIN"])?, usual | SYS_ADMIN);
    assert_eq!(of("none", &["--cap-drop", "ALL"])?, 0);
    assert_eq!(of("one", &["--cap-drop", "all", "--cap-add", "cap_chown"])?, CHOWN);
    let refused = stage.run(&["exec", "usual", "true"])?;
    assert_eq!(refused.code(), 4);
    // In force, not only listed: mounting needs CAP_SYS_ADMIN and a system call that the filter lets through with it.
    stage.run(&["run", "usual", "--", "mount", "-t", "tmpfs", "none", "/tmp"])?.code_is(1)?;
    stage.run(&["run", "more", "--", "mount", "-t", "tmpfs", "none", "/tmp"])?.ok().map(drop)
}

#[test]
fn kernel_is_masked_and_filtered_as_usual() -> Result<()> {
    let stage = Stage::new()?;
    let script = "grep Seccomp: /proc/self/status; grep -E ' (/proc/sys|/sys) ' /proc/self/mounts
        ls -A /sys/firmware /proc/acpi | grep -v :; unshare -m true || echo refused";
    let said = said(&stage, "web", &[], script)?;
    assert!(said.starts_with("Seccomp:\t2\n") && said.ends_with("refused\n"), "{said}");
    let mounts: Vec<&str> =
        said.lines().filter(|line| line.contains(" /proc/sys ") || line.contains(" /sys ")).collect();
    assert!(mounts.len() == 2 && mounts.iter().all(|line| line.contains(" ro,")), "{said}");
    assert_eq!(said.lines().filter(|line| !line.is_empty()).count(), 4, "what is masked is empty: {said}");
    Ok(())
}

#[test]
fn init_is_process_one_and_reaps_orphans() -> Result<()> {
    let stage = Stage::new()?;
    let orphan =
        "(sleep 0.1 &) ; sleep 0.5; cat /proc/1/cmdline | tr '\\0' ' '; echo; ps -o stat | grep -c Z; kill -TERM $$";
    let run = stage.run(&["run", "web", "--image", "box", "--init", "--", "sh", "-c", orphan])?;
    // A shell that is not process 1 dies of its signal, and init passes that on.
    assert_eq!(run.code(), 143, "{run:?}");
    let said = run.out();
    let (first, zombies) = said.trim_end().rsplit_once('\n').unwrap_or((&said, ""));
    assert!(first.contains("init") || first.contains("catatonit"), "{said}");
    assert_eq!(zombies, "0", "{said}");
    Ok(())
}

#[test]
fn health_check_decides_about_condition_and_generation() -> Result<()> {
    let stage = Stage::new()?;
    let check = ["--health-cmd", "test -e /root/ok", "--health-interval", "1s", "--health-retries", "2"];
    stage.idle("web", &[&check[..], &["--good-after", "1s"]].concat())?;
    let unhealthy = || Ok(stage.conditions("web")? == ["Unhealthy"]);
    wait_until("it is unhealthy", SOON, unhealthy)?;
    assert!(stage.ok(&["ps"])?.out().contains("Unhealthy"));
    stage.inside("web", "touch /root/ok")?;
    wait_until("it is healthy again", SOON, || Ok(stage.conditions("web")?.is_empty()))?;
    stage.ok(&["stop", "web"])?;
    assert_eq!(stage.generation("web", 1)?["health"], "good");
    stage.ok(&["start", "web", "--detach"])?;
    stage.inside("web", "rm /root/ok")?;
    wait_until("it is unhealthy", SOON, unhealthy)?;
    stage.ok(&["stop", "web"])?;
    assert_eq!(stage.generation("web", 2)?["health"], "suspect");
    assert!(stage.conditions("web")?.is_empty());
    stage.ok(&["rollback", "web", "--latest-good"])?;
    assert_eq!(stage.current("web")?, Some(1));
    Ok(())
}

#[test]
fn run_that_stays_up_proves_the_generation_it_came_from() -> Result<()> {
    let stage = Stage::new()?;
    stage.create_idle("web", &["--good-after", "1s"])?;
    stage.sh_ok("web", "true")?;
    assert_eq!(stage.generation("web", 1)?["health"], "unknown");
    stage.run(&["run", "web", "--", "sleep", "1.2"])?.ok()?;
    assert_eq!(stage.generation("web", 1)?["health"], "good");
    Ok(())
}

#[test]
fn runtime_is_the_given_one() -> Result<()> {
    let stage = Stage::new()?;
    for (name, runtime) in [("path", "/nonexistent/runtime"), ("name", "no-such-runtime"), ("file", "/etc/passwd")] {
        stage.ok(&["create", name, "--image", "box", "--runtime", runtime, "--", "true"])?;
        let run = stage.run(&["start", name])?;
        assert!([5, 125].contains(&run.code()), "{run:?}");
        complains(&run.err(), &[runtime])?;
        assert!(stage.seqs(name)?.is_empty());
        stage.assert_only_generations_left(name)?;
    }
    let wrapper = stage.path("wrapper");
    write(&wrapper, format!("#!/bin/sh\necho \"$@\" >>{}\nexec runc \"$@\"\n", stage.path("calls").display()))?;
    run(Command::new("chmod").arg("755").arg(&wrapper))?;
    said(&stage, "web", &["--runtime", &wrapper.display().to_string()], "true")?;
    assert!(fs::read_to_string(stage.path("calls"))?.contains(" run "));
    Ok(())
}

#[test]
fn stop_sends_the_chosen_signal_and_kills_in_time() -> Result<()> {
    let stage = Stage::new()?;
    let polite = "trap 'echo asked >/root/f; exit 9' USR1; sleep 1000 & wait";
    let options = ["--stop-signal", "USR1", "--stop-timeout", "30"];
    stage.ok(&[&["create", "web", "--image", "box"], &options[..], &["--", "sh", "-c", polite]].concat())?;
    stage.ok(&["start", "web", "--detach"])?;
    wait_ready(&stage, "web")?;
    stage.ok(&["stop", "web"])?;
    let generation = stage.generation("web", 1)?;
    assert_eq!((generation["exit_code"].as_i64(), text(&generation, "/health")?), (Some(9), "unknown"));
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "asked\n");
    let stubborn = ["--stop-timeout", "1", "--", "sh", "-c", "trap '' TERM; sleep 1000 & wait"];
    stage.ok(&[&["create", "stubborn", "--image", "box"], &stubborn[..]].concat())?;
    for (args, limit) in [(&["stop", "stubborn"][..], 6), (&["stop", "stubborn", "--time", "0"], 5)] {
        stage.ok(&["start", "stubborn", "--detach"])?;
        let stopped = stage.ok(args)?;
        assert!(stopped.took < Duration::from_secs(limit), "{:?}", stopped.took);
    }
    assert!(stage.generations("stubborn")?.iter().all(|g| g["exit_code"] == 137));
    Ok(())
}

/// Waits until the shell of a container has come as far as its `wait`.
fn wait_ready(stage: &Stage, name: &str) -> Result<()> {
    wait_until("its sleep runs", SOON, || Ok(stage.inside(name, "ps")?.contains("sleep 1000")))
}

#[test]
fn image_configuration_is_honoured_and_overridden() -> Result<()> {
    let stage = Stage::empty()?;
    let (rootfs, layout) = (stage.rootfs("rootfs")?, stage.path("layout"));
    let of = |command: &mut Command| run(command).map(drop);
    let image = format!("{}:box", layout.display());
    let umoci = |args: &[&str]| of(Command::new("umoci").args(args));
    umoci(&["init", "--layout", &layout.display().to_string()])?;
    umoci(&["new", "--image", &image])?;
    umoci(&["insert", "--image", &image, &rootfs.display().to_string(), "/"])?;
    let config = ["config", "--image", &image, "--config.user", "user", "--config.workingdir", "/home/user"];
    let command = ["--config.env", "GREETING=hello", "--config.entrypoint", "/bin/echo", "--config.entrypoint", "say:"];
    umoci(&[&config[..], &command, &["--config.cmd", "from the image", "--config.stopsignal", "SIGUSR2"]].concat())?;
    stage.import_from(&format!("oci:{image}"), "box")?;
    assert_eq!(stage.ok(&["run", "plain", "--image", "box"])?.out(), "say: from the image\n");
    assert_eq!(stage.ok(&["run", "plain", "--", "other", "words"])?.out(), "say: other words\n");
    let shell = ["--entrypoint", "/bin/sh", "--", "-c", "echo $GREETING $(id -un) $(pwd)"];
    let said = stage.ok(&[&["run", "shell", "--image", "box"][..], &shell].concat())?.out();
    assert_eq!(said, "hello user /home/user\n");
    let over = ["--env", "GREETING=bye", "--user", "root", "--workdir", "/var"];
    let said = stage.ok(&[&["run", "over", "--image", "box"][..], &over, &shell].concat())?.out();
    assert_eq!(said, "bye root /var\n");
    let trap = ["--entrypoint", "/bin/sh", "--", "-c", "trap 'exit 5' USR2; sleep 1000 & wait"];
    stage.ok(&[&["run", "stopped", "--image", "box", "--detach"][..], &trap].concat())?;
    wait_ready(&stage, "stopped")?;
    stage.ok(&["stop", "stopped"])?;
    assert_eq!(stage.generation("stopped", 1)?["exit_code"], 5);
    Ok(())
}

/// Imports busybox under the name `box` with this object as what the image says about running it.
fn import_saying(stage: &Stage, config: Value) -> Result<()> {
    let (rootfs, layout) = (stage.rootfs("rootfs")?, stage.path("layout"));
    fs::create_dir(&layout)?;
    oci_layout(&layout, &[&rootfs], &ImageText(config), Compression::None)?;
    stage.import_from(&format!("oci:{}", layout.display()), "box").map(drop)
}

#[test]
fn volume_of_an_image_is_a_directory_of_the_generations() -> Result<()> {
    for mode in MODES {
        let stage = Stage::empty()?;
        import_saying(&stage, json!({"Volumes": {"/data": {}, "/srv/a/b": {}, "/root": {}}}))?;
        assert_eq!(stage.sh_in(mode, "web", "echo 1 >/data/f; ls -d /srv/a/b")?.ok()?.out(), "/srv/a/b\n");
        assert_eq!(stage.sh_in(mode, "web", "cat /data/f; rm -r /data /srv")?.ok()?.out(), "1\n");
        assert_eq!(stage.sh_in(mode, "web", "ls -d /data /srv; true")?.ok()?.out(), "", "it was removed inside");
        stage.ok(&["rollback", "web", "--to", "1"])?;
        assert_eq!(stage.sh_in(mode, "web", "cat /data/f")?.ok()?.out(), "1\n");
    }
    Ok(())
}

#[test]
fn health_check_of_an_image_is_honoured_and_overridden() -> Result<()> {
    const SECOND: u64 = 1_000_000_000;
    let stage = Stage::empty()?;
    let check = json!({"Test": ["CMD-SHELL", "test -e /ok"], "Interval": SECOND, "Timeout": 5 * SECOND, "Retries": 2});
    import_saying(&stage, json!({"Healthcheck": check}))?;
    let shown = stage.json::<Value>(&["image", "inspect", "box"])?;
    let expected =
        json!({"command": ["test -e /ok"], "interval_s": 1, "timeout_s": 5, "retries": 2, "start_period_s": 0});
    assert_eq!(shown["config"]["health"], expected);
    stage.idle("web", &["--good-after", "1s"])?;
    stage.idle("own", &["--health-cmd", "true", "--health-interval", "1s", "--good-after", "1s"])?;
    stage.idle("off", &["--health-cmd", "none"])?;
    wait_until("it is unhealthy", SOON, || Ok(stage.conditions("web")? == ["Unhealthy"]))?;
    stage.inside("web", "touch /ok")?;
    wait_until("it is healthy again", SOON, || Ok(stage.conditions("web")?.is_empty()))?;
    for (name, health) in [("web", "good"), ("own", "good"), ("off", "unknown")] {
        assert!(stage.conditions(name)?.is_empty(), "{name}");
        stage.ok(&["stop", name])?;
        assert_eq!(text(&stage.generation(name, 1)?, "/health")?, health, "{name}");
    }
    stage.ok(&["drill", "web"])?;
    stage.refused_with(&["drill", "off"], 2, &["off has no health check"])?;
    Ok(())
}

#[test]
fn image_made_by_buildah_runs_as_it_says() -> Result<()> {
    let stage = Stage::empty()?;
    let (rootfs, layout, storage) = (stage.rootfs("rootfs")?, stage.path("layout"), stage.path("storage"));
    let buildah = |args: &[&str]| -> Result<String> {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(&storage).arg("--runroot").arg(stage.path("run")).args(["--storage-driver", "vfs"]);
        Ok(String::from_utf8(run(command.args(args))?.stdout)?.trim().to_owned())
    };
    let container = buildah(&["from", "scratch"])?;
    buildah(&["copy", "--quiet", &container, &rootfs.display().to_string(), "/"])?;
    buildah(&["config", "--cmd", "[\"sh\", \"-c\", \"echo made by $MAKER\"]", "--env", "MAKER=buildah", &container])?;
    buildah(&["commit", "--quiet", &container, &format!("oci:{}:box", layout.display())])?;
    stage.import_from(&format!("oci:{}:box", layout.display()), "box")?;
    assert_eq!(stage.ok(&["run", "web", "--image", "box"])?.out(), "made by buildah\n");
    Ok(())
}

#[test]
fn created_container_shows_its_settings() -> Result<()> {
    let stage = Stage::new()?;
    let options = ["--memory", "1g", "--cpus", "1.5", "--pids-limit", "9", "--network", "none", "--init", "-it"];
    let made: Value = stage.json(&[&["create", "web", "--image", "box"], &options[..], &["--", "true"]].concat())?;
    let inspected = stage.inspect("web")?;
    assert_eq!(made["id"], inspected["id"]);
    assert_eq!(inspected["phase"], "Created");
    let limits = &inspected["spec"]["limits"];
    assert_eq!((limits["memory_bytes"].as_u64(), limits["cpus_milli"].as_u64()), (Some(1 << 30), Some(1500)));
    assert_eq!(inspected["spec"]["network"], "none");
    assert_eq!(inspected["spec"]["command"][0], "true");
    Ok(())
}

#[test]
fn all_capabilities_are_those_the_host_has() -> Result<()> {
    let stage = Stage::new()?;
    let own = fs::read_to_string("/proc/self/status")?;
    let bound = |status: &str| status.lines().find_map(|line| Some(line.strip_prefix("CapBnd:")?.trim().to_owned()));
    let inside = said(&stage, "web", &["--cap-add", "ALL"], "cat /proc/self/status")?;
    assert!(bound(&own).is_some());
    assert_eq!(bound(&inside), bound(&own));
    let all = u64::from_str_radix(&bound(&own).unwrap_or_default(), 16)?;
    // SYS_RESOURCE is number 24; where the host has it, there is nothing to refuse.
    let run = stage.run(&["run", "named", "--image", "box", "--cap-add", "SYS_RESOURCE", "--", "true"])?;
    match all >> 24 & 1 {
        1 => drop(run.ok()?),
        _ => complains(&run.code_is(125)?.err(), &["CAP_SYS_RESOURCE"])?,
    }
    stage.idle("beside", &["--cap-add", "ALL"])?;
    assert_eq!(bound(&stage.inside("beside", "cat /proc/self/status")?), bound(&own));
    stage.ok(&["stop", "beside"]).map(drop)
}
