//! Two machines, one container: neither loses anything without being told (rows B29, I1).

use crate::moving::{empty_linked, linked};
use crate::registry::Registry;
use crate::stage::{Stage, text};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

#[test]
fn of_two_machines_that_push_one_container_the_second_is_told() -> Result<()> {
    for registry in [Registry::start()?, Registry::start_ours()?] {
        one_container_by_two(&linked(&registry.address())?, &empty_linked(&registry.address())?)?;
    }
    Ok(())
}

pub(crate) fn one_container_by_two(one: &Stage, other: &Stage) -> Result<()> {
    one.sh_ok("web", "echo one > /a")?;
    one.ok(&["push", "web"])?;
    other.ok(&["pull", "web"])?;
    one.sh_ok("web", "echo by-one > /a")?;
    other.sh_ok("web", "echo by-other > /a")?;
    other.ok(&["push", "web"])?;
    let (one_root, other_root) = (one.root().display().to_string(), other.root().display().to_string());
    one.refused_with(&["push", "web"], 4, &["generation 2", &one_root, &other_root, "--as"])?;
    one.refused_with(&["pull", "web"], 4, &["generation 2", &other_root, "NEW-NAME"])?;
    // Nothing was lost, and both ways out lead on.
    one.ok(&["push", "web", "--as", "web-one"])?;
    one.ok(&["pull", "web", "web-other"])?;
    ensure!(one.sh_ok("web", "cat /a")? == "by-one\n" && one.sh_ok("web-other", "cat /a")? == "by-other\n");
    other.ok(&["pull", "web-one"])?;
    ensure!(other.sh_ok("web-one", "cat /a")? == "by-one\n");
    Ok(())
}

#[test]
fn histories_that_fit_are_joined_whoever_goes_on() -> Result<()> {
    for registry in [Registry::start()?, Registry::start_ours()?] {
        histories_joined(&linked(&registry.address())?, &empty_linked(&registry.address())?)?;
    }
    Ok(())
}

pub(crate) fn histories_joined(one: &Stage, other: &Stage) -> Result<()> {
    one.sh_ok("web", "echo one > /a")?;
    one.ok(&["push", "web"])?;
    other.ok(&["pull", "web"])?;
    other.sh_ok("web", "echo two > /b")?;
    other.ok(&["push", "web"])?;
    one.ok(&["pull", "web"])?;
    ensure!(one.seqs("web")? == [1, 2] && one.current("web")? == Some(2));
    ensure!(one.sh_ok("web", "cat /a /b")? == "one\ntwo\n");
    one.ok(&["push", "web"])?;
    other.ok(&["pull", "web"])?;
    ensure!(other.seqs("web")? == [1, 2, 3]);
    // A rollback travels, too: what was set aside stays.
    other.ok(&["rollback", "web", "--to", "1"])?;
    other.sh_ok("web", "echo four > /c")?;
    other.ok(&["push", "web"])?;
    one.ok(&["pull", "web"])?;
    ensure!(one.seqs("web")? == [1, 2, 3, 4] && one.current("web")? == Some(4));
    for (seq, is_set_aside) in [(1, false), (2, true), (3, true), (4, false)] {
        ensure!(one.generation("web", seq)?.get("quarantined") == Some(&json!(is_set_aside)), "generation {seq}");
    }
    ensure!(one.sh_ok("web", "ls /b 2>/dev/null; cat /a /c")? == "one\nfour\n");
    Ok(())
}

#[test]
fn older_generations_survive_a_push_by_whoever_keeps_fewer() -> Result<()> {
    let registry = Registry::start()?;
    let one = linked(&registry.address())?;
    for number in 1..=4 {
        one.sh_ok("web", &format!("echo {number} > /n"))?;
    }
    one.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    other.ok(&["pull", "web", "--current"])?;
    ensure!(other.seqs("web")? == [4], "only the generation to start from");
    other.sh_ok("web", "echo 5 > /n")?;
    other.ok(&["push", "web"])?;
    let third = empty_linked(&registry.address())?;
    third.ok(&["pull", "web"])?;
    ensure!(third.seqs("web")? == [1, 2, 3, 4, 5]);
    third.ok(&["rollback", "web", "--to", "2"])?;
    ensure!(third.sh_ok("web", "cat /n")? == "2\n");
    Ok(())
}

#[test]
fn a_container_of_the_same_name_that_has_nothing_in_common_is_left_alone() -> Result<()> {
    let registry = Registry::start()?;
    let one = linked(&registry.address())?;
    one.sh_ok("web", "echo one > /a")?;
    one.ok(&["push", "web"])?;
    let other = linked(&registry.address())?;
    other.sh_ok("web", "echo other > /a")?;
    other.refused_with(&["push", "web"], 4, &["nothing in common"])?;
    let repository = format!("{}/team/web", registry.address());
    let one_root = one.root().display().to_string();
    let said = ["container web here", &repository, &one_root, "nothing in common", "pull web NEW-NAME", "--as"];
    other.refused_with(&["pull", "web"], 4, &said)?;
    ensure!(other.sh_ok("web", "cat /a")? == "other\n");
    // One that never ran has nothing to lose but its settings, and is another one all the same.
    let third = linked(&registry.address())?;
    third.ok(&["create", "web", "--image", "box"])?;
    let before: Value = third.inspect("web")?;
    third.refused_with(&["pull", "web"], 4, &["container web here", &repository, "never ran", "pull web NEW-NAME"])?;
    third.refused_with(&["push", "web"], 4, &[&repository, "nothing in common", "--as"])?;
    ensure!(third.inspect("web")? == before);
    // Where it was sent there before, it is the same one.
    third.ok(&["create", "db", "--image", "box"])?;
    third.ok(&["push", "db"])?;
    let fourth = empty_linked(&registry.address())?;
    fourth.ok(&["pull", "db"])?;
    fourth.sh_ok("db", "echo 1 > /n")?;
    fourth.ok(&["push", "db"])?;
    third.ok(&["pull", "db"])?;
    ensure!(third.sh_ok("db", "cat /n")? == "1\n");
    let pulled: Value = empty_linked(&registry.address())?.json(&["pull", "web"])?;
    ensure!(pulled["new"] == json!([1]), "{pulled}");
    Ok(())
}

#[test]
fn an_image_that_came_with_a_container_is_nobody_elses() -> Result<()> {
    let registry = Registry::start()?;
    let one = linked(&registry.address())?;
    one.sh_ok("web", "echo one > /a")?;
    one.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    other.ok(&["pull", "web"])?;
    let digest = text(&other.inspect("web")?, "/image")?.to_owned();
    let shown: Value = other.json(&["image", "inspect", &digest])?;
    ensure!(shown["believed"] == true && shown["names"] == json!([]), "{shown}");
    for args in [&["create", "mine", "--image", &digest][..], &["run", "mine", "--image", &digest, "--", "true"]] {
        other.refused_with(args, 3, &[&digest, "image pull", "fork"])?;
    }
    other.ok(&["fork", "web@1", "twig"])?;
    ensure!(other.sh_ok("twig", "cat /a")? == "one\n");
    // Made again from what lies there, it still leads nobody to its layers.
    let layers = shown["layers"].clone();
    for name in ["records.db", "records.db-wal", "records.db-shm"] {
        std::fs::remove_file(other.root().join(name)).ok();
    }
    other.ok(&["doctor", "--rebuild"])?;
    other.refused_with(&["rebase", "web", "--image", &digest], 3, &[&digest])?;
    ensure!(other.import(crate::stage::box_tar()?, "box")? == digest, "the same image, compared this time");
    let shown: Value = other.json(&["image", "inspect", &digest])?;
    ensure!(shown["believed"] == false && shown["layers"] != layers, "{shown}");
    other.ok(&["create", "mine", "--image", &digest])?;
    ensure!(other.sh_ok("web", "cat /a")? == "one\n");
    Ok(())
}

#[test]
fn settings_that_reach_into_the_host_are_not_taken_unasked() -> Result<()> {
    let registry = Registry::start()?;
    let one = linked(&registry.address())?;
    let volume = format!("{}:/data", one.root().display());
    one.create_idle("web", &["--volume", &volume, "--cap-add", "CAP_SYS_ADMIN", "--env", "A=b", "--memory", "64m"])?;
    one.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    let pulled: Value = other.json(&["pull", "web"])?;
    let left_out = pulled["settings_left_out"].clone();
    ensure!(left_out == json!([format!("volume {volume}"), "capability CAP_SYS_ADMIN"]), "{left_out}");
    let wary: Value = other.inspect("web")?;
    ensure!(wary["spec"]["volumes"] == json!([]) && wary["spec"]["cap_add"] == json!([]), "{wary}");
    ensure!(wary["spec"]["env"] == json!(["A=b"]) && wary["spec"]["limits"]["memory_bytes"] == 67_108_864, "{wary}");
    other.ok(&["pull", "web", "trusting", "--trust-settings"])?;
    let trusting: Value = other.inspect("trusting")?;
    ensure!(text(&trusting, "/spec/volumes/0/target")? == "/data", "{trusting}");
    // Who does not take them does not lose them for others, here or at a name where they never were.
    ensure!(wary["settings_left_out"] == left_out, "{wary}");
    other.sh_ok("web", "echo one > /a")?;
    other.ok(&["push", "web"])?;
    other.ok(&["push", "web", "--as", "copy"])?;
    let third = empty_linked(&registry.address())?;
    for name in ["web", "copy"] {
        let pulled: Value = third.json(&["pull", name, &format!("wary-{name}")])?;
        ensure!(pulled["settings_left_out"] == left_out, "{pulled}");
        third.ok(&["pull", name, "--trust-settings"])?;
        let trusting: Value = third.inspect(name)?;
        ensure!(text(&trusting, "/spec/volumes/0/target")? == "/data", "{trusting}");
        ensure!(trusting["spec"]["cap_add"] == json!(["CAP_SYS_ADMIN"]), "{trusting}");
    }
    Ok(())
}
