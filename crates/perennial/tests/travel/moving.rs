//! What arrives is what was sent, and only what is lacking goes.

use crate::registry::{Proxy, Registry, at_most};
use crate::stage::{MODES, Stage};
use anyhow::{Result, ensure};
use perennial_testkit::tree::ensure_equal;
use serde_json::Value;

/// A stage with a remote.
pub(crate) fn linked(address: &str) -> Result<Stage> {
    let stage = Stage::new()?;
    stage.ok(&["remote", "add", "hub", &format!("{address}/team")])?;
    Ok(stage)
}

/// A stage with a remote and no image.
pub(crate) fn empty_linked(address: &str) -> Result<Stage> {
    let stage = Stage::empty()?;
    stage.ok(&["remote", "add", "hub", &format!("{address}/team")])?;
    Ok(stage)
}

#[test]
fn a_container_regrows_on_another_root_from_the_registry_alone() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.sh_ok(
        "web",
        "mkdir -p /srv/a; echo one > /srv/a/one; dd if=/dev/urandom of=/srv/big bs=1M count=3; rm -rf /etc/motd",
    )?;
    here.sh_ok("web", "echo two > /srv/a/two; ln /srv/big /srv/big2; ln -s one /srv/a/link")?;
    here.sh_ok("web", "rm /srv/a/one; chmod 700 /srv")?;
    let pushed: Value = here.json(&["push", "web"])?;
    ensure!(pushed["new"] == serde_json::json!([1, 2, 3]), "{pushed}");
    let there = empty_linked(&registry.address())?;
    let pulled: Value = there.json(&["pull", "web"])?;
    ensure!(pulled["new"] == serde_json::json!([1, 2, 3]) && pulled["current"] == 3, "{pulled}");
    for field in ["seq", "exited_at", "kind", "health", "exit_code", "parent", "image"] {
        let of = |stage: &Stage| -> Result<Vec<Value>> {
            Ok(stage.generations("web")?.iter().map(|generation| generation[field].clone()).collect())
        };
        ensure!(of(&here)? == of(&there)?, "{field} differs: {:?} {:?}", of(&here)?, of(&there)?);
    }
    for mode in MODES {
        here.ok(&["start", "web", "--detach", "--mode", mode, "--", "sh", "-c", crate::stage::IDLE])?;
        there.ok(&["start", "web", "--detach", "--mode", mode, "--", "sh", "-c", crate::stage::IDLE])?;
        ensure_equal(&here.seen_in("web")?, &there.seen_in("web")?)?;
        here.ok(&["stop", "web"])?;
        there.ok(&["stop", "web"])?;
    }
    for stage in [&here, &there] {
        stage.ok(&["verify", "--full"])?;
        stage.ok(&["gc"])?;
        stage.ok(&["verify", "--full"])?;
    }
    Ok(())
}

/// What a change of 1 MB may cost on the wire.
const SMALL_CHANGE_BYTES_MAX: u64 = 1_200_000;

#[test]
fn a_second_push_after_a_change_of_a_megabyte_moves_little_more_than_that() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let (here, there) = (linked(&proxy.address())?, empty_linked(&proxy.address())?);
    little_more_than_the_change(&registry, &proxy, (&here, &there))
}

pub(crate) fn little_more_than_the_change(
    registry: &Registry,
    proxy: &Proxy,
    (here, there): (&Stage, &Stage),
) -> Result<()> {
    here.sh_ok("web", "dd if=/dev/urandom of=/srv.bin bs=1M count=24; mkdir /many; for i in $(seq 500); do echo $i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i$i > /many/$i; done")?;
    here.ok(&["push", "web"])?;
    let (up, _) = proxy.take();
    ensure!(up > 24_000_000, "{up} bytes went, and there were more");
    let before = registry.bytes()?;
    here.sh_ok("web", "dd if=/dev/urandom of=/srv.bin bs=1000000 count=1 seek=7 conv=notrunc")?;
    proxy.take();
    let pushed: Value = here.json(&["push", "web"])?;
    let (up, down) = proxy.take();
    ensure!(pushed.get("new") == Some(&serde_json::json!([2])), "{pushed}");
    at_most("sent on the wire", up, SMALL_CHANGE_BYTES_MAX)?;
    at_most("received on the wire", down, 20_000)?;
    at_most("growth of the registry", registry.bytes()? - before, SMALL_CHANGE_BYTES_MAX)?;
    let told = pushed.pointer("/traffic/sent_bytes").and_then(Value::as_u64).unwrap_or_default();
    ensure!(told > 990_000 && told <= up, "{told} told, {up} counted");
    // And the way back: the other side has the first generation.
    there.ok(&["pull", "web"])?;
    here.sh_ok("web", "dd if=/dev/urandom of=/srv.bin bs=1000000 count=1 seek=3 conv=notrunc")?;
    here.ok(&["push", "web"])?;
    proxy.take();
    let pulled: Value = there.json(&["pull", "web"])?;
    let (up, down) = proxy.take();
    ensure!(pulled.get("new") == Some(&serde_json::json!([3])), "{pulled}");
    at_most("received on the wire", up + down, SMALL_CHANGE_BYTES_MAX)?;
    let sum = "sha256sum /srv.bin | cut -c 1-64";
    ensure!(here.sh_ok("web", sum)? == there.sh_ok("web", sum)?, "the files differ");
    // Nothing to do moves nothing.
    let again: Value = here.json(&["push", "web@3"])?;
    ensure!(again.get("nothing_to_send") == Some(&Value::Bool(true)), "{again}");
    Ok(())
}

#[test]
fn two_containers_on_one_image_send_the_image_once() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let here = linked(&proxy.address())?;
    here.sh_ok("one", "echo one > /n")?;
    here.sh_ok("other", "echo other > /n")?;
    here.ok(&["push", "one"])?;
    let (first, _) = proxy.take();
    here.ok(&["push", "other"])?;
    let (second, _) = proxy.take();
    ensure!(first > 500_000, "{first} bytes are no image");
    at_most("sent for the second container", second, 20_000)?;
    // And fetched once.
    let there = empty_linked(&proxy.address())?;
    there.ok(&["pull", "one"])?;
    proxy.take();
    there.ok(&["pull", "other"])?;
    let (_, down) = proxy.take();
    at_most("received for the second container", down, 60_000)?;
    ensure!(there.sh_ok("other", "cat /n")? == "other\n");
    Ok(())
}

#[test]
fn twenty_thousand_small_files_are_a_handful_of_requests() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    let many = "text=$(seq 60); mkdir /many; cd /many; for d in $(seq 200); do mkdir $d; for f in $(seq 100); do \
                echo $d.$f.$text > $d/$f; done; done";
    here.sh_ok("web", many)?;
    let pushed: Value = here.json(&["push", "web"])?;
    let requests = |value: &Value| value["traffic"]["requests"].as_u64().unwrap_or(u64::MAX);
    ensure!(requests(&pushed) <= 40, "{pushed}");
    let there = empty_linked(&registry.address())?;
    let pulled: Value = there.json(&["pull", "web"])?;
    ensure!(requests(&pulled) <= 40, "{pulled}");
    let sum = "cd /many; find . -type f | sort | xargs cat | sha256sum";
    ensure!(here.sh_ok("web", sum)? == there.sh_ok("web", sum)?, "the files differ");
    Ok(())
}

#[test]
fn a_single_generation_can_be_sent_without_the_newer_ones() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    for number in 1..=3 {
        here.sh_ok("web", &format!("echo {number} > /n"))?;
    }
    here.ok(&["push", "web@2"])?;
    let there = empty_linked(&registry.address())?;
    let pulled: Value = there.json(&["pull", "web"])?;
    ensure!(pulled["new"] == serde_json::json!([1, 2]) && pulled["current"] == 2, "{pulled}");
    here.ok(&["push", "web"])?;
    there.ok(&["pull", "web"])?;
    ensure!(there.sh_ok("web", "cat /n")? == "3\n");
    here.refused_with(&["push", "web@9"], 3, &["web@9"])?;
    here.refused_with(&["push", "nothing"], 3, &["nothing"])?;
    there.refused_with(&["pull", "nothing"], 3, &["team/nothing"])?;
    Ok(())
}

#[test]
fn what_is_cold_travels_and_packs_here_are_used_before_anything_is_fetched() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    for number in 1..=3 {
        here.sh_ok("web", &format!("dd if=/dev/urandom of=/big bs=1M count=2; echo {number} > /n"))?;
    }
    let sums: Vec<String> = (1..=3)
        .map(|seq| {
            let out = here.path(&format!("big-{seq}"));
            here.ok(&["cp", &format!("web@{seq}:/big"), &out.to_string_lossy()])?;
            Ok(format!("{:x?}", std::fs::read(out)?))
        })
        .collect::<Result<_>>()?;
    here.quiet()?;
    here.ok(&["pack", "web", "--hot", "1"])?;
    here.ok(&["push", "web"])?;
    let there = empty_linked(&registry.address())?;
    there.ok(&["pull", "web"])?;
    for (seq, sum) in (1..=3).zip(&sums) {
        let out = there.path(&format!("big-{seq}"));
        there.ok(&["cp", &format!("web@{seq}:/big"), &out.to_string_lossy()])?;
        ensure!(format!("{:x?}", std::fs::read(out)?) == *sum, "generation {seq} differs");
    }
    // The same once more under another name: everything is here.
    let again: Value = there.json(&["pull", "web", "twin"])?;
    ensure!(again["traffic"]["received_bytes"].as_u64() < Some(20_000), "{again}");
    there.ok(&["verify", "--full"])?;
    Ok(())
}

#[test]
fn an_image_is_sent_as_any_engine_can_pull_it() -> Result<()> {
    let registry = Registry::start()?;
    let here = Stage::new()?;
    let reference = format!("{}/base/box:v1", registry.address());
    let pushed: Value = here.json(&["image", "push", "box", &reference])?;
    here.ok(&["image", "pull", &reference, "again"])?;
    let again: Value = here.json(&["image", "inspect", "again"])?;
    ensure!(again["digest"] == pushed["digest"], "{again} {pushed}");
    // The same image again is the same blobs.
    let second: Value = here.json(&["image", "push", "box", &reference])?;
    ensure!(second["digest"] == pushed["digest"] && second["traffic"]["sent_bytes"].as_u64() < Some(2000), "{second}");
    for mode in MODES {
        for (name, image) in [("one", "box"), ("two", "again")] {
            let name = format!("{name}-{mode}");
            here.ok(&["create", &name, "--image", image, "--", "sh", "-c", crate::stage::IDLE])?;
            here.ok(&["start", &name, "--detach", "--mode", mode])?;
        }
        // A start writes there.
        let seen = |name: &str| Ok::<_, anyhow::Error>(here.seen_in(&format!("{name}-{mode}"))?.without("etc"));
        ensure_equal(&seen("one")?, &seen("two")?)?;
    }
    let out = here.path("layout");
    let copied = std::process::Command::new("skopeo")
        .args(["copy", "-q", "--src-tls-verify=false", &format!("docker://{reference}")])
        .arg(format!("oci:{}", out.display()))
        .status()?;
    ensure!(copied.success(), "skopeo does not take it");
    Ok(())
}
