//! Rows A1 to A14 and A21 to A26 of the requirements: a container's life from one exit to the next start.

mod stage;

use anyhow::{Result, anyhow, ensure};
use perennial_core::time::Time;
use perennial_testkit::host::wait_until;
use perennial_testkit::image::{self, Compression, ImageText};
use perennial_testkit::tree::{TreeListing, ensure_equal};
use serde_json::Value;
use stage::{IDLE, MODES, SOON, Stage, complains, text, texts, unix_seconds, write};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A1: leaving saves, then frees.
#[test]
fn leaving_saves_a_generation_and_frees_everything_else() -> Result<()> {
    for mode in MODES {
        let stage = Stage::new()?;
        stage.sh_in(mode, "web", "echo 1 >/root/f")?.ok()?;
        assert_eq!(stage.phase("web")?, "Dormant");
        assert_eq!(stage.seqs("web")?, [1]);
        stage.assert_only_generations_left("web")?;
        stage.sh_in(mode, "web", "cat /root/f >/root/g")?.ok()?;
        assert_eq!(stage.seqs("web")?, [1, 2]);
        stage.assert_only_generations_left("web")?;
        assert_eq!(stage.sh_ok("web", "cat /root/g")?, "1\n");
    }
    Ok(())
}

/// A2: returning regrows every change; the merged root is the one that was left.
#[test]
fn returning_finds_the_very_tree_that_was_left() -> Result<()> {
    for mode in MODES {
        let stage = Stage::new()?;
        stage.idle("web", &["--cap-add", "MKNOD"])?;
        stage.inside("web", CHANGES)?;
        let left = stage.seen_in("web")?;
        stage.ok(&["stop", "web"])?;
        stage.ok(&["start", "web", "--detach", "--mode", mode])?;
        ensure_equal(&left, &stage.seen_in("web")?)?;
        stage.ok(&["stop", "web"])?;
        stage.assert_only_generations_left("web")?;
    }
    Ok(())
}

/// Awkward changes that need no tools but busybox; the whole trap fixture has tests of its own.
const CHANGES: &str = "set -e
    echo changed >>/etc/os-release; rm /etc/group; chmod 4755 /bin/busybox; chown 3000000:7 /home/user
    rm -r /var/log; mkdir -p /var/log/new; rm -rf /usr; mv /home /house; ln -s nowhere /root/link
    echo twice >/root/a; ln /root/a /root/b; mkfifo /root/pipe; mknod /root/null c 1 3; chmod 1755 /
    dd if=/dev/zero of=/root/sparse bs=1 count=1 seek=33554432 2>/dev/null; touch -d 2001-02-03 /root/a
    printf x >\"$(printf '/root/\\377')\"; rm /bin/wget; mkdir /bin/wget; touch / /etc";

/// A2: nothing starts from the bare image when the state is not there.
#[test]
fn state_that_cannot_be_had_is_never_replaced_by_the_bare_image() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "echo mine >/root/f")?;
    let layer = texts(&stage.generation("web", 1)?, "/layers")?.remove(0);
    let tree = stage.root().join("layers").join(&layer).join("tree");
    fs::rename(&tree, stage.path("aside"))?;
    for mode in MODES {
        stage.sh_in(mode, "web", "echo started")?.code_is(6)?;
    }
    fs::rename(stage.path("aside"), &tree)?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "mine\n");
    Ok(())
}

/// A3: state is inherited across any number of stages.
#[test]
fn fifty_runs_each_inherit_the_state_of_the_one_before() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=50 {
        let mode = MODES[usize::from(number % 10 == 7)];
        let install = "printf '#!/bin/sh\\nwc -l </root/log\\n' >/usr/bin/count; chmod +x /usr/bin/count";
        let extra = if number == 20 { install } else { ":" };
        stage.sh_in(mode, "web", &format!("echo {number} >>/root/log; {extra}"))?.ok()?;
    }
    assert_eq!(stage.sh_ok("web", "count")?, "50\n");
    assert_eq!(stage.sh_ok("web", "tail -n 1 /root/log")?, "50\n");
    assert_eq!(stage.seqs("web")?, [48, 49, 50, 51, 52]);
    stage.assert_only_generations_left("web")
}

/// A4, A21: damage does not cost the environment.
#[test]
fn environment_that_cannot_start_any_more_comes_back_by_a_rollback() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "printf '#!/bin/sh\\necho works\\n' >/usr/bin/tool; chmod +x /usr/bin/tool")?;
    stage.sh("web", "rm -rf /bin")?.ok()?;
    for mode in MODES {
        let broken = stage.sh_in(mode, "web", "tool")?.code_is(127)?;
        complains(&broken.err(), &["sh"])?;
    }
    assert_eq!(stage.seqs("web")?, [1, 2]);
    assert_eq!(stage.current("web")?, Some(2));
    stage.ok(&["rollback", "web", "--to", "1"])?;
    for mode in MODES {
        assert_eq!(stage.sh_in(mode, "web", "tool")?.ok()?.out(), "works\n");
    }
    assert_eq!(stage.generation("web", 2)?["quarantined"], true);
    stage.assert_only_generations_left("web")
}

/// A5: the first run creates an empty, persistent queue; nothing replaces it.
#[test]
fn queue_is_created_once_and_never_replaced() -> Result<()> {
    let stage = Stage::new()?;
    let mut racers = Vec::new();
    for _ in 0..20 {
        racers.push(stage.spawn(&["create", "web", "--image", "box", "--keep", "3"])?);
    }
    let mut codes = Vec::new();
    for mut racer in racers {
        codes.push(racer.wait()?.code());
    }
    codes.sort();
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == Some(4)).count(), 19, "{codes:?}");
    let listed: Value = stage.json(&["generations", "web"])?;
    assert_eq!(listed["generations"], Value::Array(Vec::new()));
    assert_eq!(listed["capacity"], 3);
    assert!(listed["current"].is_null());
    stage.sh_ok("web", "echo kept >/root/f")?;
    stage.refused_unchanged(&["create", "web", "--image", "box"], 4, &["web exists"])?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "kept\n");
    Ok(())
}

/// A6: the union is the image's layers in order under the run's own, with pinned and recorded options.
#[test]
fn union_has_pinned_options_and_leaves_the_layers_below_alone() -> Result<()> {
    let stage = Stage::empty()?;
    let (base, over) = (stage.rootfs("base")?, stage.path("over"));
    fs::create_dir_all(over.join("etc"))?;
    write(base.join("etc/both"), "lower")?;
    write(over.join("etc/both"), "upper")?;
    write(over.join("etc/.wh.group"), "")?;
    let layout = stage.path("oci");
    image::oci_layout(&layout, &[&base, &over], &ImageText::default(), Compression::Gzip)?;
    stage.import_from(&format!("oci:{}:latest", layout.display()), "box")?;
    let layers = stage.layers()?;
    assert_eq!(layers.len(), 2);
    let before: Vec<TreeListing> = layers.iter().map(|id| stage.layer(id)).collect::<Result<_>>()?;
    for mode in MODES {
        stage.create_idle(mode, &["--seal", "never"])?;
        stage.ok(&["start", mode, "--detach", "--mode", mode])?;
        let change =
            "cat /etc/both; test ! -e /etc/group; rm -r /usr; mv /var /war; echo x >>/etc/both; chmod 600 /bin";
        assert_eq!(stage.inside(mode, change)?, "upper");
        let options = overlay_options(&stage.merged(mode)?.display().to_string())?;
        for wrong in ["index=on", "metacopy=on", "redirect_dir=on", "volatile", "nfs_export=on"] {
            assert!(!options.split(',').any(|option| option == wrong), "{options}");
        }
        stage.ok(&["stop", mode])?;
        let recorded = texts(&stage.generation(mode, 1)?, "/mount_options")?;
        for option in ["metacopy=off", "index=off", "nfs_export=off"] {
            assert!(recorded.iter().any(|recorded| recorded == option), "{recorded:?}");
        }
        assert!(recorded.iter().any(|o| o == "redirect_dir=off" || o == "redirect_dir=nofollow"), "{recorded:?}");
    }
    for (id, before) in layers.iter().zip(&before) {
        ensure_equal(before, &stage.layer(id)?)?;
    }
    Ok(())
}

/// Returns the options of the union mounted at a path.
fn overlay_options(merged: &str) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(merged));
    let line = line.ok_or_else(|| anyhow!("nothing is mounted at {merged}"))?;
    let (_, tail) = line.split_once(" - ").ok_or_else(|| anyhow!("odd line {line}"))?;
    ensure!(tail.starts_with("overlay "), "{line}");
    Ok(tail.rsplit(' ').next().unwrap_or_default().to_owned())
}

/// A7: the process runs as configured.
#[test]
fn process_has_the_environment_user_directory_and_arguments_it_was_given() -> Result<()> {
    let stage = Stage::new()?;
    let script = "echo $COLOUR; id -u; id -g; id -G; pwd; tr '\\0' ' ' </proc/1/cmdline; echo; echo $HOME";
    let run = ["run", "web", "--image", "box", "--env", "COLOUR=blue", "--user", "user", "--workdir", "/var"];
    let said = stage.ok(&[&run[..], &["--", "sh", "-c", script, "name", "two words"]].concat())?.out();
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said[..3], ["blue", "1000", "1000"]);
    assert_eq!(said[3], "1000 2000");
    assert_eq!(said[4], "/var");
    assert!(said.iter().any(|line| line.ends_with("name two words ")), "{said:?}");
    assert_eq!(said.last(), Some(&"/home/user"));
    Ok(())
}

fn run_locks(locks: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(locks)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    Ok(names.into_iter().filter(|name| name.starts_with("run-")).collect())
}

/// A7: a process that cannot be executed is a failed start and leaves the queue alone.
#[test]
fn failed_start_leaves_no_generation_and_nothing_else() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", "echo 1 >/root/f; echo 'not a program' >/root/data; chmod 755 /root/data")?;
    stage.quiet()?;
    let (layers, queue) = (stage.layers()?, stage.generations("web")?);
    for mode in MODES {
        for (program, code) in [("/nonexistent", 127), ("no-such-name", 127), ("/etc/os-release", 126), ("/etc", 126)] {
            let run = stage.run(&["run", "web", "--mode", mode, "--", program])?.code_is(code)?;
            complains(&run.err(), &[program])?;
        }
    }
    assert_eq!(stage.generations("web")?, queue);
    assert_eq!(stage.layers()?, layers);
    assert_eq!(stage.phase("web")?, "Dormant");
    assert_eq!(stage.conditions("web")?, ["StartFailed"]);
    stage.assert_only_generations_left("web")?;
    let locks = stage.root().join("locks");
    wait_until("the locks of the runs are removed", SOON, || Ok(run_locks(&locks)?.is_empty()))?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "1\n");
    assert!(stage.conditions("web")?.is_empty());
    Ok(())
}

/// A4, A7: so is one that the kernel refuses only when the container is there, by whatever name and with whatever init.
#[test]
fn program_that_the_kernel_refuses_is_a_failed_start() -> Result<()> {
    let stage = Stage::new()?;
    let make = "cd /usr/bin; printf '#!/gone/ld\\n' >gone; printf '#!/usr/bin/gone\\n' >deep; echo 'no program' >text; \
                printf '#!/usr/bin/loop\\n' >loop; chmod +x gone deep text loop";
    stage.ok(&["create", "init", "--image", "box", "--init"])?;
    for name in ["web", "init"] {
        stage.sh_ok(name, make)?;
    }
    let rows = [
        (("web", "gone"), 127, "\"gone\": its interpreter \"/gone/ld\" is missing"),
        (("web", "/usr/bin/deep"), 127, "\"/usr/bin/gone\": its interpreter \"/gone/ld\" is missing"),
        (("web", "/usr/bin/text"), 126, "\"/usr/bin/text\": exec format error"),
        (("web", "loop"), 126, "interpreters"),
        (("init", "gone"), 127, "\"/gone/ld\" is missing"),
        (("init", "no-such-name"), 127, "\"no-such-name\": there is no such program"),
    ];
    for mode in MODES {
        for ((name, program), code, reason) in rows {
            let run = stage.run(&["run", name, "--mode", mode, "--", program])?.code_is(code)?;
            complains(&run.err(), &[reason])?;
            assert_eq!(stage.conditions(name)?, ["StartFailed"]);
        }
    }
    assert_eq!((stage.seqs("web")?, stage.seqs("init")?), (vec![1], vec![1]));
    stage.assert_only_generations_left("web")?;
    stage.sh_ok("web", "true")?;
    Ok(())
}

/// A7, A22: only the container's own command says something about the state it could not start from.
#[test]
fn failed_start_of_the_own_command_makes_the_generation_suspect() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--", "/root/service"])?;
    stage.sh_ok("web", "echo nothing >/root/f")?;
    stage.run(&["run", "web", "--", "/nonexistent"])?.code_is(127)?;
    assert_eq!(stage.generation("web", 1)?["health"], "unknown");
    stage.run(&["start", "web"])?.code_is(127)?;
    assert_eq!(stage.generation("web", 1)?["health"], "suspect");
    assert_eq!(stage.seqs("web")?, [1]);
    Ok(())
}

/// A8: the first run starts from the image and an empty upper; an empty queue must be a fact that was read.
#[test]
fn first_run_sees_the_image_and_a_queue_that_cannot_be_read_stops_the_start() -> Result<()> {
    let stage = Stage::new()?;
    let rootfs = stage.rootfs("rootfs")?;
    stage.import(&rootfs, "mine")?;
    stage.ok(&["run", "new", "--image", "mine", "--detach", "--", "sh", "-c", IDLE])?;
    let (image, seen) = (TreeListing::of(&rootfs)?, stage.seen_in("new")?);
    // The runtime may have made mount points; everything of the image is there as it was.
    for (path, entry) in image.entries.iter().filter(|(path, _)| !path.is_empty()) {
        let mut seen = seen.entries.get(path).cloned().ok_or_else(|| anyhow!("{path} is missing"))?;
        seen.allocated = entry.allocated;
        let touched = ["dev", "etc", "proc", "sys", "run"].contains(&path.to_string().as_str());
        assert!(touched || seen == *entry, "{path}: {seen:?}, not {entry:?}");
    }
    stage.ok(&["stop", "new"])?;
    stage.sh_ok("web", "echo 1 >/root/f")?;
    stage.sh_ok("web", "echo 2 >/root/f")?;
    stage.quiet()?;
    for garbage in [&b""[..], &[b'x'; 8192]] {
        let aside = stage.path("aside");
        fs::create_dir(&aside)?;
        move_records(stage.root(), &aside)?;
        write(stage.root().join("records.db"), garbage)?;
        let run = stage.sh("web", "echo started")?.code_is(6)?;
        complains(&run.err(), &["records.db"])?;
        assert_eq!(run.out(), "");
        move_records(&aside, stage.root())?;
        fs::remove_dir(aside)?;
    }
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "2\n");
    Ok(())
}

/// Moves the files of the record store to another directory, over those that are there.
fn move_records(from: &Path, to: &Path) -> Result<()> {
    for name in ["records.db", "records.db-wal", "records.db-shm"] {
        drop(fs::remove_file(to.join(name)));
        if from.join(name).exists() {
            fs::rename(from.join(name), to.join(name))?;
        }
    }
    Ok(())
}

/// A10: the tail is read by its pointer; where that leads nowhere the start stops and says so.
#[test]
fn missing_layer_of_the_tail_stops_the_start_and_names_generation_and_layer() -> Result<()> {
    for mode in MODES {
        let stage = Stage::new()?;
        stage.sh_ok("web", "echo 1 >/root/f")?;
        stage.sh_ok("web", "echo 2 >/root/f")?;
        let layer = texts(&stage.generation("web", 2)?, "/layers")?.remove(0);
        fs::remove_dir_all(stage.root().join("layers").join(&layer).join("tree"))?;
        let start = ["start", "web", "--mode", mode, "--", "echo", "started"];
        stage.refused_unchanged(&start, 6, &["web@2", &layer, "damaged"])?;
        stage.assert_only_generations_left("web")?;
        stage.ok(&["rollback", "web", "--to", "1"])?;
        assert_eq!(stage.sh_in(mode, "web", "cat /root/f")?.ok()?.out(), "1\n");
    }
    Ok(())
}

/// A9, A12: every run has a directory of its own, and each step of a start comes after the one before.
#[test]
fn each_start_takes_its_steps_in_order_in_a_new_directory() -> Result<()> {
    let stage = Stage::new()?;
    for _ in 0..2 {
        let run = stage.ok(&["run", "web", "--image", "box", "--timings", "--", "true"])?;
        let said = run.err();
        let stages: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let stages: Vec<&str> = stages.iter().map(|line| text(line, "/stage")).collect::<Result<_>>()?;
        assert_eq!(stages, ["admitted", "mounted", "runtime", "started", "committed"]);
    }
    let runs = stage.run_ids("web")?;
    assert_eq!(runs.len(), 2);
    assert_ne!(runs[0], runs[1]);
    Ok(())
}

/// A14: an exit makes an element with its time.
#[test]
fn generations_are_numbered_in_order_and_bear_the_time_of_the_exit() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=3_usize {
        let before = unix_seconds();
        stage.sh_ok("web", &format!("echo {number} >/root/f; date +%s >/root/end"))?;
        let after = unix_seconds();
        let listed = stage.generations("web")?;
        let generation = listed.last().ok_or_else(|| anyhow!("no generation"))?;
        assert_eq!(generation["seq"], number);
        let at = text(generation, "/exited_at")?.parse::<Time>()?.unix_nanos() / 1_000_000_000;
        assert!(before <= at && at <= after && after - before <= 10, "{before} {at} {after}");
        let end: i64 = stage.sh_ok("reader", "true").and_then(|_| end_of(&stage, number))?;
        assert!(at - end <= 2, "exited_at is {} s after the end of the process", at - end);
        assert_eq!(generation["exit_code"], 0);
        assert_eq!(generation["kind"], "exit");
    }
    assert_eq!(stage.seqs("web")?, [1, 2, 3]);
    Ok(())
}

/// Reads what the run of a generation noted as its last act, as `cp` shows it.
fn end_of(stage: &Stage, seq: usize) -> Result<i64> {
    let copy = stage.path("end");
    stage.ok(&["cp", &format!("web@{seq}:/root/end"), copy.to_str().ok_or_else(|| anyhow!("not UTF-8"))?])?;
    Ok(fs::read_to_string(copy)?.trim().parse()?)
}

/// A21: after recovery a container that ran goes on running, from the chosen generation.
#[test]
fn rollback_of_a_running_container_saves_its_state_and_starts_it_again() -> Result<()> {
    let stage = Stage::new()?;
    stage.create_idle("web", &[])?;
    stage.sh_ok("web", "echo good >/root/f")?;
    stage.ok(&["start", "web", "--detach"])?;
    stage.inside("web", "echo bad >/root/f")?;
    let lost = stage.run_ids("web")?.pop();
    stage.ok(&["rollback", "web", "--to", "1"])?;
    let inspected = stage.inspect("web")?;
    assert_eq!(inspected["phase"], "Running");
    assert_eq!(inspected["run"]["origin"], 1);
    assert_ne!(inspected["run"]["id"].as_str(), lost.as_deref());
    assert_eq!(stage.inside("web", "cat /root/f")?, "good\n");
    let saved = stage.generation("web", 2)?;
    assert_eq!((saved["quarantined"].as_bool(), text(&saved, "/kind")?), (Some(true), "salvage"));
    stage.ok(&["rollback", "web", "--to", "2", "--no-start"])?;
    assert_eq!(stage.phase("web")?, "Dormant");
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "bad\n");
    stage.assert_only_generations_left("web")
}

/// A26: one run at a time.
#[test]
fn second_start_of_a_running_container_is_refused() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &[])?;
    let run = text(&stage.inspect("web")?, "/run/id")?.to_owned();
    for args in [&["start", "web", "--detach"][..], &["run", "web", "--", "true"], &["rm", "web"]] {
        stage.refused_unchanged(args, 4, &["web", &run])?;
    }
    assert_eq!(stage.phase("web")?, "Running");
    stage.ok(&["stop", "web"])?;
    stage.refused_unchanged(&["stop", "web"], 4, &["web is not running"])?;
    assert_eq!(stage.seqs("web")?, [1]);
    Ok(())
}

/// A26: of two starts at once one wins.
#[test]
fn of_two_starts_at_once_exactly_one_wins() -> Result<()> {
    let stage = Stage::new()?;
    stage.create_idle("web", &["--keep", "100"])?;
    for round in 1..=5 {
        let racers = (0..2).map(|_| stage.spawn(&["start", "web", "--detach"])).collect::<Result<Vec<_>>>()?;
        let mut codes = racers.into_iter().map(|mut r| Ok(r.wait()?.code())).collect::<Result<Vec<_>>>()?;
        codes.sort();
        assert_eq!(codes, [Some(0), Some(4)], "round {round}");
        stage.ok(&["stop", "web"])?;
        assert_eq!(stage.seqs("web")?.len(), round);
    }
    stage.assert_only_generations_left("web")
}

/// A17: what is left in the container's cgroup is ended, the union unmounted, the upper gone.
#[test]
fn processes_beside_the_first_one_do_not_keep_the_exit_waiting() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &[])?;
    let mut beside = stage.spawn(&["exec", "web", "sh", "-c", "cd /root && touch here && exec sleep 1000"])?;
    wait_until("the second process runs", SOON, || Ok(stage.merged("web")?.join("root/here").exists()))?;
    let stopped = stage.ok(&["stop", "web"])?;
    assert!(stopped.took < Duration::from_secs(8), "{:?}", stopped.took);
    assert_ne!(beside.wait()?.code(), Some(0));
    assert_eq!(stage.seqs("web")?, [1]);
    stage.assert_only_generations_left("web")?;
    stage.sh_ok("web", "test -e /root/here").map(drop)
}

/// A36: the layer is at rest before it is frozen.
#[test]
fn writer_that_is_killed_leaves_a_consistent_generation() -> Result<()> {
    let stage = Stage::new()?;
    let writer = "i=0; while :; do i=$((i+1)); echo $i >/root/a; echo $i >/root/b; done";
    stage.ok(&["create", "web", "--image", "box", "--stop-timeout", "0", "--", "sh", "-c", writer])?;
    for _ in 0..5 {
        stage.ok(&["start", "web", "--detach"])?;
        let file = stage.merged("web")?.join("root/b");
        wait_until("it writes", SOON, || Ok(file.metadata().is_ok_and(|m| m.len() > 2)))?;
        stage.ok(&["stop", "web"])?;
        let said = stage.sh_ok("web", "echo $(cat /root/a) $(cat /root/b); rm /root/a /root/b")?;
        let numbers: Vec<u64> = said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        // It may be killed between the two writes, or between the truncation of a file and its writing.
        assert!(numbers.len() < 2 || numbers[0] - numbers[1] <= 1, "{said}");
    }
    Ok(())
}
