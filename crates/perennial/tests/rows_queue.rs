//! Rows A15 to A20 and A22 to A40 of the requirements: what the queue keeps, gives back, and lets go.

mod stage;

use anyhow::{Result, anyhow};
use perennial_testkit::host::{pause, run, wait_until};
use perennial_testkit::tree::ensure_equal;
use serde_json::Value;
use stage::{IDLE, MODES, SOON, Stage, next_second, text, texts, write};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// Replaces one big file, so that a generation that goes frees something.
fn replace_big(stage: &Stage, mode: &str, number: u64) -> Result<()> {
    let script = format!("yes {number} | head -c 500000 >/root/big; echo {number} >/root/number");
    stage.sh_in(mode, "web", &script)?.ok().map(drop)
}

/// Sizes of the big file, in bytes; nothing in the image is as large as that.
const BIG_BYTES: [u64; 2] = [500_000, 2_500_000];

/// Counts the copies of the big file on disk, in directories and among the contents of sealed layers.
fn big_files(stage: &Stage) -> Result<usize> {
    let mut inodes = BTreeSet::new();
    for top in ["layers", "objects"] {
        let found = run(Command::new("find").arg(stage.root().join(top)).args(["-type", "f", "-printf", "%i %s\n"]))?;
        for line in String::from_utf8(found.stdout)?.lines() {
            let (inode, size) = line.split_once(' ').ok_or_else(|| anyhow!("{line}"))?;
            if BIG_BYTES.contains(&size.parse()?) {
                inodes.insert(inode.to_owned());
            }
        }
    }
    Ok(inodes.len())
}

/// A15: from a full queue the head goes with its data, and the new element becomes the tail.
#[test]
fn full_queue_lets_its_head_go_and_frees_its_data() -> Result<()> {
    for (mode, keep) in [("mount", 1), ("mount", 3), ("unpack", 2)] {
        let stage = Stage::new()?;
        stage.ok(&["create", "web", "--image", "box", "--keep", &keep.to_string()])?;
        for number in 1..=5 {
            replace_big(&stage, mode, number)?;
            assert_eq!(stage.seqs("web")?.len(), usize::try_from(number.min(keep))?);
        }
        let left: Vec<u64> = (6 - keep..=5).collect();
        assert_eq!(stage.seqs("web")?, left);
        stage.quiet()?;
        assert_eq!(big_files(&stage)?, usize::try_from(keep)?, "{mode} keep {keep}: data of evicted generations");
        for seq in left {
            let twig = format!("twig{seq}");
            stage.ok(&["fork", &format!("web@{seq}"), &twig])?;
            let said = stage.sh_in(mode, &twig, "head -n 1 /root/big; cat /root/number")?.ok()?.out();
            assert_eq!(said, format!("{seq}\n{seq}\n"));
        }
    }
    Ok(())
}

/// A16: a queue that is not full only grows.
#[test]
fn queue_with_room_evicts_nothing() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "3"])?;
    replace_big(&stage, "mount", 1)?;
    replace_big(&stage, "mount", 2)?;
    stage.quiet()?;
    assert_eq!(stage.seqs("web")?, [1, 2]);
    assert_eq!(big_files(&stage)?, 2);
    assert!(!stage.events("web")?.iter().any(|event| event["detail"].to_string().contains("evicted")));
    Ok(())
}

/// A18: a repeated instruction has the result of one.
#[test]
fn repeated_rollback_does_the_same_as_one() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=3 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
    }
    stage.quiet()?;
    stage.ok(&["rollback", "web", "--to", "2"])?;
    let once = stage.generations("web")?;
    stage.ok(&["rollback", "web", "--to", "2"])?;
    assert_eq!(stage.generations("web")?, once);
    stage.ok(&["rollback", "web", "--undo"])?;
    assert_eq!(stage.current("web")?, Some(3));
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "3\n");
    Ok(())
}

/// A19: a generation is chosen among the times there are, at the precision that is shown.
#[test]
fn rollback_by_time_takes_the_state_as_of_then_or_refuses() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=3 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
        next_second()?;
    }
    let none = "there is no generation as old as";
    stage.refused_unchanged(&["rollback", "web", "--at", "2020-01-01T00:00:00Z"], 3, &[none, "2020"])?;
    let times: Vec<Value> = stage.generations("web")?.iter().map(|g| g["exited_at"].clone()).collect();
    let second = times[1].as_str().ok_or_else(|| anyhow!("no time"))?;
    let (whole, _) = second.split_once('.').unwrap_or((second.trim_end_matches('Z'), ""));
    for at in [second.to_owned(), format!("{whole}Z"), format!("{whole}+00:00")] {
        stage.ok(&["rollback", "web", "--at", &at])?;
        assert_eq!(stage.current("web")?, Some(2), "{at}");
        stage.ok(&["rollback", "web", "--undo"])?;
    }
    stage.ok(&["rollback", "web", "--at", "2100-01-01T00:00:00Z"])?;
    assert_eq!(stage.current("web")?, Some(3));
    Ok(())
}

/// A19, A38: two exits in the time that was named are not told apart by guessing.
#[test]
fn rollback_to_an_ambiguous_time_names_the_candidates() -> Result<()> {
    let stage = Stage::new()?;
    next_second()?;
    for number in 1..=8 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
    }
    let whole = |g: &Value| g["exited_at"].as_str().and_then(|at| at.split_once('.')).map(|(s, _)| s.to_owned());
    let listed = stage.generations("web")?;
    let twins = listed.windows(2).find(|pair| whole(&pair[0]).is_some() && whole(&pair[0]) == whole(&pair[1]));
    // On a machine so slow that no two exits share a second there is nothing to tell apart.
    let Some(twins) = twins else { return Ok(()) };
    let at = format!("{}Z", whole(&twins[0]).unwrap_or_default());
    let named = [twins[0]["seq"].to_string(), twins[1]["seq"].to_string(), "by its number".to_owned()];
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    stage.refused_unchanged(&["rollback", "web", "--at", &at], 2, &named)
}

/// A20: each generation is the tree as it was at its exit, in both modes.
#[test]
fn every_generation_gives_the_tree_of_its_exit() -> Result<()> {
    let stage = Stage::new()?;
    stage.create_idle("web", &["--keep", "50"])?;
    let mut left = Vec::new();
    let changes = [
        "mkdir -p /data/a; echo 1 >/data/a/f; ln /data/a/f /data/hard; rm /etc/os-release",
        "echo 2 >>/data/a/f; mkdir /etc/os-release; rm -r /var; ln -s /data /var",
        "rm -rf /data; mkdir -m 700 /data; echo new >/data/only; rmdir /etc/os-release",
    ];
    for change in changes {
        stage.ok(&["start", "web", "--detach"])?;
        stage.inside("web", change)?;
        left.push(stage.seen_in("web")?);
        stage.ok(&["stop", "web"])?;
    }
    for mode in MODES {
        for (index, listing) in left.iter().enumerate() {
            stage.ok(&["rollback", "web", "--to", &(index + 1).to_string()])?;
            stage.ok(&["start", "web", "--detach", "--mode", mode])?;
            ensure_equal(listing, &stage.seen_in("web")?)?;
            stage.ok(&["stop", "web"])?;
        }
    }
    Ok(())
}

/// A22: a crash loop cannot flush the last state that worked.
#[test]
fn crash_loop_does_not_push_the_last_good_generation_out() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "3"])?;
    stage.sh_ok("web", "echo works >/root/f")?;
    for number in 1..=20 {
        stage.sh("web", &format!("echo broken {number} >/root/f; exit 1"))?.code_is(1)?;
    }
    assert_eq!(stage.seqs("web")?, [1, 20, 21]);
    assert_eq!(stage.generation("web", 21)?["health"], "suspect");
    stage.ok(&["rollback", "web", "--latest-good"])?;
    assert_eq!(stage.current("web")?, Some(1));
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "works\n");
    Ok(())
}

/// A28, A32: a run that dies after a rollback goes on from its salvage or from the chosen generation, never from the
/// tail that was rolled back.
#[test]
fn run_killed_after_a_rollback_does_not_fall_back_to_the_old_tail() -> Result<()> {
    for changes_something in [true, false] {
        let stage = Stage::new()?;
        stage.create_idle("web", &[])?;
        for number in 1..=5 {
            stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
        }
        stage.ok(&["rollback", "web", "--to", "2"])?;
        let quarantined = |g: &Value| g["quarantined"] == true;
        assert_eq!(stage.generations("web")?.iter().filter(|g| quarantined(g)).count(), 3);
        stage.ok(&["start", "web", "--detach"])?;
        if changes_something {
            stage.inside("web", "echo since >/root/since")?;
        }
        let pid = stage.inspect("web")?["run"]["pid"].as_i64().ok_or_else(|| anyhow!("no pid"))?;
        stage.quiet()?;
        stage.clean_up()?;
        wait_until("the process is gone", SOON, || Ok(!fs::exists(format!("/proc/{pid}"))?))?;
        let said = stage.sh("web", "cat /root/f; cat /root/since")?;
        let (expected, origin) = if changes_something { ("2\nsince\n", 6) } else { ("2\n", 2) };
        assert_eq!(said.out(), expected);
        let newest = stage.generations("web")?.pop().ok_or_else(|| anyhow!("no generation"))?;
        assert_eq!(newest["parent"], origin);
        if changes_something {
            let salvage = stage.generation("web", 6)?;
            assert_eq!((text(&salvage, "/kind")?, text(&salvage, "/health")?), ("salvage", "suspect"));
            assert_eq!(salvage["parent"], 2);
        }
        stage.ok(&["rollback", "web", "--to", "5"])?;
        assert_eq!(stage.sh_ok("web", "cat /root/f")?, "5\n");
        stage.assert_only_generations_left("web")?;
    }
    Ok(())
}

/// A30: the image is part of the state; its name may move.
#[test]
fn container_stays_on_its_image_when_the_name_moves() -> Result<()> {
    let stage = Stage::empty()?;
    let rootfs = stage.rootfs("rootfs")?;
    write(rootfs.join("etc/version"), "old\n")?;
    let old = stage.import(&rootfs, "box")?;
    stage.sh_ok("web", "echo 1 >/root/f")?;
    write(rootfs.join("etc/version"), "new\n")?;
    let new = stage.import(&rootfs, "box")?;
    assert_ne!(old, new);
    for mode in MODES {
        let said = stage.run(&["run", "web", "--mode", mode, "--", "cat", "/etc/version", "/root/f"])?.ok()?.out();
        assert_eq!(said, "old\n1\n");
    }
    assert_eq!(stage.inspect("web")?["image"], old.as_str());
    assert!(stage.generations("web")?.iter().all(|g| g["image"] == old.as_str()));
    assert_eq!(stage.sh_ok("other", "cat /etc/version")?, "new\n");
    stage.refused_unchanged(&["image", "rm", &old], 4, &["web", "needed"])?;
    stage.refused_unchanged(&["image", "rm", "box"], 4, &["other", "needed"])?;
    stage.ok(&["rm", "web"])?;
    stage.ok(&["image", "rm", &old])?;
    stage.quiet()?;
    assert_eq!(stage.layers()?.len(), 1 + 1, "one image and one generation");
    Ok(())
}

/// A30: an image that is needed stays, and says by whom, in order and not without end.
#[test]
fn image_that_many_containers_need_names_the_first_in_order() -> Result<()> {
    let stage = Stage::new()?;
    for name in ["g", "c", "a", "f", "b", "e", "d"] {
        stage.ok(&["create", name, "--image", "box"])?;
    }
    stage.refused_unchanged(&["image", "rm", "box"], 4, &["needed by a, b, c, d, e and 2 more"])
}

/// A31: the bound that cannot be kept is the one that is named.
#[test]
fn a_bound_on_bytes_that_cannot_be_kept_is_named() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["run", "web", "--image", "box", "--keep-bytes", "1", "--", "sh", "-c", "echo 1 >/root/f"])?;
    wait_until("the bound on bytes is looked at", SOON, || Ok(!stage.conditions("web")?.is_empty()))?;
    let message = text(&stage.inspect("web")?, "/conditions/0/message")?.to_owned();
    assert!(message.contains("bytes (1)") && message.ends_with("raise --keep-bytes"), "{message}");
    Ok(())
}

/// A31: where everything is protected the queue grows, and says so.
#[test]
fn pinned_generations_block_retention_visibly() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "3"])?;
    for number in 1..=3 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
        stage.ok(&["pin", &format!("web@{number}")])?;
    }
    assert!(stage.conditions("web")?.is_empty());
    stage.sh_ok("web", "echo 4 >/root/f")?;
    assert_eq!(stage.seqs("web")?, [1, 2, 3, 4]);
    assert_eq!(stage.conditions("web")?, ["RetentionBlocked"]);
    assert!(stage.ok(&["ps"])?.out().contains("RetentionBlocked"));
    stage.ok(&["unpin", "web@1"])?;
    stage.ok(&["unpin", "web@2"])?;
    stage.sh_ok("web", "echo 5 >/root/f")?;
    assert_eq!(stage.seqs("web")?, [3, 4, 5]);
    assert!(stage.conditions("web")?.is_empty());
    assert_eq!(stage.generation("web", 3)?["pinned"], true);
    Ok(())
}

/// A33: capacity is policy, and shrinking takes effect at the next exit.
#[test]
fn smaller_capacity_takes_effect_at_the_next_exit() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=5 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
    }
    stage.refused_unchanged(&["set", "web", "--keep", "0"], 2, &["keep"])?;
    stage.ok(&["set", "web", "--keep", "2"])?;
    assert_eq!(stage.seqs("web")?.len(), 5);
    stage.sh_ok("web", "echo 6 >/root/f")?;
    assert_eq!(stage.seqs("web")?, [5, 6]);
    stage.ok(&["set", "web", "--keep", "4"])?;
    for number in 7..=9 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
    }
    assert_eq!(stage.seqs("web")?, [6, 7, 8, 9]);
    Ok(())
}

/// A33: capacity can be in bytes.
#[test]
fn bytes_bound_what_is_kept() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--keep", "50", "--keep-bytes", "6m"])?;
    for _ in 1..=4 {
        stage.sh_ok("web", "head -c 2500000 /dev/urandom >/root/big")?;
    }
    // Work in the background gives way to commands: one that asks all the time would keep it from its work.
    let rarely = || pause(Duration::from_millis(200));
    wait_until("generations are evicted for their bytes", SOON, || {
        rarely();
        Ok(stage.seqs("web")? == [3, 4])
    })?;
    stage.quiet()?;
    wait_until("what only they showed is freed", SOON, || {
        rarely();
        Ok(big_files(&stage)? == 2)
    })?;
    assert!(stage.events("web")?.iter().any(|event| event["action"] == "evict"));
    Ok(())
}

/// A37, A40: a run that changed nothing makes a generation and no layer.
#[test]
fn unchanged_runs_share_their_layers() -> Result<()> {
    for mode in MODES {
        let stage = Stage::new()?;
        stage.ok(&["create", "web", "--image", "box", "--keep", "2"])?;
        stage.sh_in(mode, "web", "echo 1 >/root/f")?.ok()?;
        let layers = stage.layers()?;
        for _ in 0..3 {
            stage.sh_in(mode, "web", "cat /root/f")?.ok()?;
        }
        stage.quiet()?;
        assert_eq!(stage.layers()?, layers, "{mode}");
        let listed = stage.generations("web")?;
        assert_eq!(listed.len(), 2);
        assert_eq!(texts(&listed[0], "/layers")?, texts(&listed[1], "/layers")?);
        assert_eq!(listed[1]["bytes"], 0);
        for other in MODES {
            assert_eq!(stage.sh_in(other, "web", "cat /root/f")?.ok()?.out(), "1\n");
        }
    }
    Ok(())
}

/// A40: what an exit keeps is proportional to the change, not to the image.
#[test]
fn cost_of_a_generation_is_its_change() -> Result<()> {
    let stage = Stage::empty()?;
    let rootfs = stage.rootfs("rootfs")?;
    run(Command::new("dd").args(["if=/dev/urandom", "bs=1M", "count=64"]).arg({
        let mut target = std::ffi::OsString::from("of=");
        target.push(rootfs.join("root/ballast"));
        target
    }))?;
    stage.import(&rootfs, "box")?;
    for (seq, change) in
        ["head -c 1000000 /dev/urandom >/root/new", "echo line >>/root/new", "rm /root/ballast"].into_iter().enumerate()
    {
        stage.sh_ok("web", change)?;
        let bytes = stage.generation("web", u64::try_from(seq)? + 1)?["bytes"].as_u64().unwrap_or(u64::MAX);
        assert!(bytes < 1_200_000, "{change}: {bytes} bytes");
    }
    stage.sh("web", "test -e /root/ballast")?.code_is(1).map(drop)
}

/// A38: order is by number.
#[test]
fn generations_are_listed_in_the_order_of_their_numbers() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=4 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
    }
    stage.ok(&["rollback", "web", "--to", "1"])?;
    stage.sh_ok("web", "echo 5 >/root/f")?;
    assert_eq!(stage.seqs("web")?, [1, 2, 3, 4, 5]);
    let newest = stage.generation("web", 5)?;
    assert_eq!((newest["parent"].as_u64(), newest["quarantined"].as_bool()), (Some(1), Some(false)));
    let shown = stage.ok(&["generations", "web"])?.out();
    let numbers: Vec<&str> =
        shown.lines().filter_map(|line| line.trim_start_matches(['*', ' ']).split(' ').next()).collect();
    assert_eq!(numbers[..6], ["SEQ", "5", "4", "3", "2", "1"], "{shown}");
    Ok(())
}

/// A39: who did what, when, from which generation to which.
#[test]
fn every_change_is_recorded_with_who_and_from_where_to_where() -> Result<()> {
    let stage = Stage::new()?;
    let ada = stage.with_env("SUDO_USER", "ada").env("SUDO_UID", "1234");
    ada.ok(&["create", "web", "--image", "box"])?;
    for _ in 0..2 {
        ada.ok(&["run", "web", "--", "touch", "/root/f"])?;
    }
    ada.ok(&["pin", "web@1"])?;
    ada.ok(&["mark", "web@1", "good"])?;
    stage.ok(&["set", "web", "--keep", "7"])?;
    stage.ok(&["rollback", "web", "--to", "1"])?;
    stage.ok(&["rollback", "web", "--undo"])?;
    stage.run(&["run", "web", "--", "/nonexistent"])?.code_is(127)?;
    let events = stage.events("web")?;
    let told: Vec<String> = events
        .iter()
        .map(|e| format!("{} {} {}", e["action"].as_str().unwrap_or_default(), e["from"], e["to"]))
        .collect();
    let expected = [
        "create null null",
        "start null null",
        "exit null 1",
        "start 1 null",
        "exit 1 2",
        "pin null 1",
        "mark null 1",
        "set null null",
        "rollback 2 1",
        "undo-rollback 1 2",
        "start 2 null",
        "start-failed 2 null",
    ];
    assert_eq!(told, expected);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["number"], number + 1);
        assert!(text(event, "/at")?.starts_with("20"));
        assert_eq!(text(event, "/by")?.contains("ada(1234)"), number < 7, "{event}");
    }
    assert!(stage.generations("web")?.iter().all(|g| g["by"].as_str().is_some_and(|by| by.contains("ada"))));
    Ok(())
}

/// A39: a process in the container has no way to its own generations.
#[test]
fn container_cannot_reach_the_root() -> Result<()> {
    let stage = Stage::new()?;
    let root = stage.root().display().to_string();
    stage.ok(&["run", "web", "--image", "box", "--detach", "--", "sh", "-c", IDLE])?;
    stage.run(&["exec", "web", "ls", &root])?.code_is(1)?;
    let mode = run(Command::new("stat").args(["-c", "%a %u", &root]))?;
    assert_eq!(String::from_utf8_lossy(&mode.stdout), "700 0\n");
    stage.ok(&["stop", "web"]).map(drop)
}

/// A fork begins with the generation it was made from and goes its own way; nothing is copied.
#[test]
fn fork_shares_layers_and_goes_its_own_way() -> Result<()> {
    let stage = Stage::new()?;
    for number in 1..=3 {
        stage.sh_ok("web", &format!("echo {number} >/root/f"))?;
    }
    stage.quiet()?;
    let layers = stage.layers()?;
    stage.ok(&["fork", "web@2", "twig"])?;
    assert_eq!(stage.layers()?, layers);
    assert_eq!(text(&stage.generation("twig", 1)?, "/kind")?, "fork");
    for mode in MODES {
        assert_eq!(stage.sh_in(mode, "twig", "cat /root/f")?.ok()?.out(), "2\n");
    }
    stage.sh_ok("twig", "echo mine >/root/f")?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "3\n");
    stage.ok(&["rm", "web"])?;
    assert_eq!(stage.sh_ok("twig", "cat /root/f")?, "mine\n");
    stage.ok(&["rollback", "twig", "--to", "1"])?;
    assert_eq!(stage.sh_ok("twig", "cat /root/f")?, "2\n");
    stage.ok(&["rm", "twig"])?;
    stage.quiet()?;
    assert_eq!(stage.layers()?.len(), 1, "only the image is left");
    Ok(())
}
