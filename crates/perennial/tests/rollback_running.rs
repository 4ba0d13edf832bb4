//! A21: a rollback of a container that runs: it is started again as it was, or it is said that it could not be.

mod stage;

use anyhow::{Result, anyhow};
use perennial_testkit::host::wait_until;
use serde_json::Value;
use stage::{SOON, Stage, complains};
use std::io::Write as _;
use std::process::Stdio;

/// The container's own command is none, and neither is the image's: only the run knows what it ran.
#[test]
fn a_run_with_its_own_command_comes_back_with_that_command() -> Result<()> {
    for (mode, options) in [("mount", "-d"), ("unpack", "-dit")] {
        let stage = Stage::new()?;
        stage.ok(&["create", "web", "--image", "box", "--user", "user", "--env", "A=1", "--stop-signal", "KILL"])?;
        stage.ok(&["run", "web", "--", "sh", "-c", "echo good >/tmp/f"])?;
        stage.ok(&[
            "start",
            "web",
            "--mode",
            mode,
            options,
            "--",
            "sh",
            "-c",
            "sleep 1000; echo \"$0\"",
            "two words",
        ])?;
        stage.inside("web", "echo bad >/tmp/f")?;
        let shown = stage.ok(&["rollback", "web", "--to", "1"])?.out();
        assert!(shown.starts_with("web now starts from generation 1\nquarantined, not deleted: 2\n"), "{shown}");
        let inspected = stage.inspect("web")?;
        assert_eq!(inspected["phase"], "Running");
        assert_eq!((inspected["run"]["origin"].as_u64(), inspected["run"]["mode"].as_str()), (Some(1), Some(mode)));
        assert_eq!(stage.inside("web", "cat /tmp/f; id -un; echo $A")?, "good\nuser\n1\n");
        let command = stage.inside("web", "tr '\\0' '|' </proc/1/cmdline")?;
        assert_eq!(command, "sh|-c|sleep 1000; echo \"$0\"|two words|");
        let has_terminal = stage.inside("web", "[ -t 0 ] </proc/1/fd/0; echo $?")? == "0\n";
        assert_eq!(has_terminal, mode == "unpack");
    }
    Ok(())
}

#[test]
fn a_run_that_was_given_input_has_it_again() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--stop-signal", "KILL"])?;
    stage.ok(&["run", "web", "--", "true"])?;
    stage.ok(&["start", "web", "-di", "--", "sh", "-c", "read line; echo got $line >/root/f; sleep 1000"])?;
    let shown: Value = stage.json(&["rollback", "web", "--to", "1"])?;
    assert_eq!((&shown["done"], &shown["started"]), (&Value::Bool(true), &Value::Bool(true)));
    let mut client = stage.command(&["attach", "web"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut input = client.stdin.take().ok_or_else(|| anyhow!("no input"))?;
    input.write_all(b"hello\n")?;
    wait_until("the line has arrived", SOON, || {
        Ok(stage.run(&["exec", "web", "cat", "/root/f"])?.out() == "got hello\n")
    })?;
    stage.ok(&["stop", "web"])?;
    client.wait()?;
    Ok(())
}

/// The program is in the newer generation only.
#[test]
fn a_restart_that_fails_says_that_the_rollback_is_done() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "--stop-signal", "KILL"])?;
    stage.ok(&["run", "web", "--", "true"])?;
    stage.ok(&["run", "web", "--", "cp", "/bin/busybox", "/root/sleep"])?;
    for json in [false, true] {
        stage.ok(&["start", "web", "--detach", "--", "/root/sleep", "1000"])?;
        let args = ["--json", "rollback", "web", "--to", "1"];
        let run = stage.run(if json { &args } else { &args[1..] })?.code_is(127)?;
        let said = [
            "container web is rolled back to generation 1, but could not be started",
            "/root/sleep",
            "rollback web --undo",
        ];
        complains(&run.err(), &said)?;
        assert!(!run.err().contains("nothing has changed"), "{}", run.err());
        if json {
            let shown: Value = serde_json::from_slice(&run.stdout)?;
            assert_eq!((&shown["done"], &shown["started"]), (&Value::Bool(true), &Value::Bool(false)));
            assert_eq!(shown["plan"]["target"], 1);
        } else {
            assert!(run.out().starts_with("web now starts from generation 1\nquarantined"), "{}", run.out());
        }
        assert_eq!((stage.phase("web")?.as_str(), stage.current("web")?), ("Dormant", Some(1)));
        assert_eq!(stage.conditions("web")?, ["StartFailed"]);
        stage.ok(&["rollback", "web", "--undo"])?;
    }
    Ok(())
}
