//! What is sent by itself: an exit waits for nothing, what is not there yet shows, and goes when it can (row X3).

use crate::moving::{empty_linked, linked};
use crate::registry::Registry;
use crate::stage::text;
use anyhow::{Result, ensure};
use perennial_testkit::host::{now, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

/// Longest time until something has been sent, tries at a distance of 5 and 10 s among them.
const SENT: Duration = Duration::from_secs(60);

#[test]
fn a_generation_is_sent_after_each_exit() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.refused_with(&["create", "web", "--image", "box", "--push", "nowhere"], 3, &["nowhere", "remote ls"])?;
    here.ok(&["create", "web", "--image", "box", "--push", "hub"])?;
    for number in 1..=2 {
        here.sh_ok("web", &format!("echo {number} > /n"))?;
    }
    wait_until("everything is sent", SENT, || Ok(here.inspect("web")?["not_sent"].is_null()))?;
    let there = empty_linked(&registry.address())?;
    let pulled: Value = there.json(&["pull", "web"])?;
    ensure!(pulled["new"] == json!([1, 2]), "{pulled}");
    ensure!(there.inspect("web")?["policy"]["push"].is_null(), "sending by itself is this machine's affair");
    here.refused_with(&["remote", "rm", "hub"], 4, &["web", "--push none"])?;
    here.ok(&["set", "web", "--push", "none"])?;
    here.ok(&["remote", "rm", "hub"])?;
    Ok(())
}

#[test]
fn an_unreachable_registry_delays_no_exit_and_gets_everything_when_it_is_back() -> Result<()> {
    let mut registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.ok(&["create", "web", "--image", "box", "--push", "hub"])?;
    here.sh_ok("web", "echo 1 > /n")?;
    wait_until("the first is sent", SENT, || Ok(here.inspect("web")?["not_sent"].is_null()))?;
    registry.down()?;
    here.sh_ok("web", "dd if=/dev/urandom of=/big bs=1M count=2")?;
    wait_until("a try has failed", SENT, || Ok(here.inspect("web")?["not_sent"]["failures"].as_u64() > Some(0)))?;
    let shown = here.inspect("web")?;
    ensure!(shown["not_sent"]["generations"] == json!([2]) && shown["not_sent"]["bytes"].as_u64() > Some(2_000_000));
    ensure!(shown["not_sent"]["since"] == here.generation("web", 2)?["exited_at"], "{shown}");
    ensure!(here.conditions("web")? == ["NotSent"], "{shown}");
    let message = text(&shown, "/conditions/0/message")?;
    ensure!(message.contains("1 generation (2.") && message.contains("cannot be reached"), "{message}");
    ensure!(here.ok(&["ps"])?.out().contains("NotSent"));
    let doctor: Value = here.json(&["doctor"])?;
    ensure!(doctor["findings"].to_string().contains("not yet at hub") && doctor["ok"] == true, "{doctor}");
    registry.up()?;
    wait_until("the rest is sent", SENT, || Ok(here.inspect("web")?["not_sent"].is_null()))?;
    ensure!(here.conditions("web")?.is_empty());
    let there = empty_linked(&registry.address())?;
    there.ok(&["pull", "web"])?;
    ensure!(there.seqs("web")? == [1, 2]);
    Ok(())
}

#[test]
fn an_exit_takes_as_long_with_a_registry_that_swallows_everything_as_without_one() -> Result<()> {
    // Connections are taken, and nothing ever comes.
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let here = linked(&silent.local_addr()?.to_string())?;
    let took = |name: &str, options: &[&str]| -> Result<Duration> {
        here.ok(&[&["create", name, "--image", "box"], options].concat())?;
        let started = now();
        here.sh_ok(name, "echo 1 > /n")?;
        here.sh_ok(name, "echo 2 > /n")?;
        Ok(now() - started)
    };
    let without = took("without", &[])?;
    let with = took("with", &["--push", "hub"])?;
    // A single wait for that registry would take 10 s at least.
    ensure!(with < without + Duration::from_secs(5), "{with:?} with, {without:?} without");
    let shown = here.inspect("with")?;
    ensure!(shown["not_sent"]["generations"] == json!([1, 2]), "{shown}");
    here.ok(&["rm", "with"])?;
    Ok(())
}

#[test]
fn what_has_arrived_is_known_to_have_once_another_machine_has_gone_on() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.sh_ok("web", "echo 1 > /n")?;
    here.ok(&["push", "web"])?;
    let there = empty_linked(&registry.address())?;
    there.ok(&["pull", "web"])?;
    there.sh_ok("web", "echo 2 > /n")?;
    there.ok(&["push", "web"])?;
    // As after a crash between the tag and the record: nothing is known of what was sent.
    here.ok(&["remote", "rm", "hub"])?;
    here.ok(&["remote", "add", "hub", &format!("{}/team", registry.address())])?;
    here.ok(&["set", "web", "--push", "hub"])?;
    here.ok(&["push", "web"])?;
    ensure!(here.inspect("web")?["not_sent"].is_null(), "{}", here.inspect("web")?);
    // And what came meanwhile is still to come.
    here.ok(&["pull", "web"])?;
    ensure!(here.seqs("web")? == [1, 2]);
    Ok(())
}

#[test]
fn what_was_let_go_before_it_was_sent_is_told() -> Result<()> {
    let mut registry = Registry::start()?;
    let here = linked(&registry.address())?;
    registry.down()?;
    here.ok(&["create", "web", "--image", "box", "--keep", "2", "--push", "hub"])?;
    for number in 1..=4 {
        here.sh_ok("web", &format!("echo {number} > /n"))?;
    }
    let shown = here.inspect("web")?;
    ensure!(shown["not_sent"]["generations"] == json!([3, 4]) && shown["not_sent"]["gone"] == json!(2), "{shown}");
    let message = text(&shown, "/conditions/0/message")?;
    ensure!(message.contains("2 more were let go and were never there"), "{message}");
    Ok(())
}
