//! `drill`: a generation is brought up in a shadow, and nothing of the shadow is left but the verdict.

mod stage;

use anyhow::{Result, ensure};
use perennial_testkit::host::wait_until;
use serde_json::{Value, json};
use stage::{SOON, Stage, names};
use std::process::Stdio;

/// A container with two generations, of which only the second has what its checks look for.
fn two_generations(options: &[&str]) -> Result<Stage> {
    let stage = Stage::new()?;
    stage.ok(&[&["create", "web", "--image", "box"], options].concat())?;
    stage.sh_ok("web", "echo 1 >/root/number")?;
    stage.sh_ok("web", "echo 2 >/root/number; echo yes >/root/works")?;
    stage.quiet()?;
    Ok(stage)
}

fn drill(stage: &Stage, args: &[&str], code: i32) -> Result<Value> {
    let run = stage.run(&[&["--json", "drill"], args].concat())?.code_is(code)?;
    run.json()
}

#[test]
fn a_drill_says_by_its_command_whether_a_generation_works() -> Result<()> {
    let stage = two_generations(&[])?;
    let passed = drill(&stage, &["web", "--", "/bin/sh", "-c", "test -f /root/works"], 0)?;
    assert_eq!((&passed["seq"], &passed["passed"]), (&json!(2), &json!(true)));
    let failed = drill(&stage, &["web@1", "--", "/bin/sh", "-c", "echo looking; ls /root/works"], 1)?;
    assert_eq!((&failed["seq"], &failed["passed"]), (&json!(1), &json!(false)));
    ensure!(failed["output"][0] == "looking", "{failed}");
    assert_eq!(stage.seqs("web")?, [1, 2]);
    let (first, second) = (stage.generation("web", 1)?, stage.generation("web", 2)?);
    assert_eq!((&first["health"], &second["health"]), (&json!("suspect"), &json!("good")));
    ensure!(first["verified_at"].is_null() && second["verified_at"].is_string(), "{first} {second}");
    ensure!(names(&stage.root().join("runs"))?.is_empty(), "the shadow's directory is left");
    // What is known to work is what `--latest-good` finds.
    stage.ok(&["rollback", "web", "--latest-good"])?;
    assert_eq!(stage.current("web")?, Some(2));
    Ok(())
}

#[test]
fn what_a_shadow_changes_is_nowhere_afterwards() -> Result<()> {
    let stage = Stage::new()?;
    let volume = stage.path("volume");
    std::fs::create_dir(&volume)?;
    let mapped = format!("{}:/data", volume.display());
    stage.ok(&["create", "web", "--image", "box", "--volume", &mapped])?;
    stage.sh_ok("web", "echo 1 >/root/number")?;
    stage.quiet()?;
    let layers = stage.layers()?;
    drill(&stage, &["web", "--", "/bin/sh", "-c", "echo 9 >/root/number; mkdir -p /data; echo 9 >/data/9"], 0)?;
    ensure!(names(&volume)?.is_empty(), "the shadow has written to the container's volume");
    assert_eq!(stage.layers()?, layers);
    assert_eq!(stage.sh_ok("web", "cat /root/number")?, "1\n");
    Ok(())
}

#[test]
fn without_a_command_the_health_check_of_the_started_service_decides() -> Result<()> {
    let health =
        ["--health-cmd", "test -f /tmp/up && test -f /root/works", "--health-interval", "1", "--health-retries", "2"];
    let service = ["--", "/bin/sh", "-c", "touch /tmp/up; sleep 100"];
    let stage = Stage::new()?;
    stage.ok(&[&["create", "web", "--image", "box"][..], &health, &service].concat())?;
    stage.ok(&["run", "web", "--", "/bin/sh", "-c", "echo 1 >/root/number"])?;
    stage.ok(&["run", "web", "--", "/bin/sh", "-c", "echo yes >/root/works"])?;
    let passed = drill(&stage, &["web"], 0)?;
    assert_eq!(passed["because"], "its health check passed");
    let failed = drill(&stage, &["web@1"], 1)?;
    assert_eq!(failed["because"], "its health check failed 2 times in a row");
    Ok(())
}

#[test]
fn a_drill_has_an_end_and_may_be_killed() -> Result<()> {
    let stage = two_generations(&[])?;
    let late = drill(&stage, &["web", "--timeout", "1", "--", "/bin/sh", "-c", "sleep 100"], 1)?;
    assert_eq!(late["because"], "it was not done within 1 s");
    let mut command = stage.command(&["drill", "web", "--", "/bin/sh", "-c", "touch /root/begun; sleep 100"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let runs = stage.root().join("runs");
    wait_until("the shadow to run", SOON, || {
        Ok(names(&runs)?.iter().any(|run| runs.join(run).join("upper/root/begun").exists()))
    })?;
    child.kill()?;
    child.wait()?;
    stage.ok(&["gc"])?;
    ensure!(names(&runs)?.is_empty(), "a killed drill has left its directory");
    assert_eq!(stage.seqs("web")?, [1, 2]);
    stage.ok(&["doctor"])?;
    Ok(())
}

#[test]
fn a_drill_with_nothing_to_ask_is_refused() -> Result<()> {
    let stage = two_generations(&[])?;
    stage.refused_unchanged(&["drill", "web"], 2, &["web", "health check", "COMMAND"])?;
    stage.refused_unchanged(&["drill", "web@9", "--", "true"], 3, &["9"])?;
    stage.refused_unchanged(&["drill", "nobody", "--", "true"], 3, &["nobody"])?;
    Ok(())
}
