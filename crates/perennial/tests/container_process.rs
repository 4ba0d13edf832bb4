//! A running container from outside: terminals, pipes, `exec`, `attach`, `logs`, signals, exit codes, and what `ps` and
//! `inspect` say.

mod stage;

use anyhow::{Result, anyhow};
use perennial_testkit::host::{wait_until, wait_within};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use stage::terminal::Terminal;
use stage::{IDLE, SOON, Stage, complains, next_second, text};
use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Child, Stdio};

#[test]
fn terminal_has_size_and_keys_and_is_put_back_in_order() -> Result<()> {
    let stage = Stage::new()?;
    let mut terminal = Terminal::run(&stage, &["run", "-it", "web", "--image", "box", "--", "sh"])?;
    terminal.type_text("stty size; tty; echo TERM=$TERM\n")?;
    terminal.expect("24 80")?;
    terminal.expect("/dev/")?;
    terminal.expect("TERM=xterm")?;
    assert!(!terminal.is_cooked()?);
    terminal.resize(50, 132)?;
    terminal.type_text("while [ \"$(stty size)\" != '50 132' ]; do sleep 0.1; done; echo resized$((1 + 1))\n")?;
    terminal.expect("resized2")?;
    terminal.type_text("sh -c 'echo rea$((1 + 1))dy; exec sleep 1000'\n")?;
    terminal.expect("rea2dy")?;
    terminal.type_text("\u{3}echo inter$((1 + 1))rupted\n")?;
    terminal.expect("inter2rupted")?;
    terminal.type_text("echo kept >/root/f; exit 7\n")?;
    assert_eq!(terminal.wait()?, 7);
    assert!(terminal.is_cooked()?);
    assert_eq!(stage.generation("web", 1)?["exit_code"], 7);
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "kept\n");
    Ok(())
}

#[test]
fn pipes_carry_every_byte_both_ways() -> Result<()> {
    let stage = Stage::new()?;
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| number.to_le_bytes()[usize::from(number % 3 == 0)]).collect();
    let run = stage.run_with(&["run", "-i", "web", "--image", "box", "--", "cat"], &input)?.ok()?;
    assert!(run.stdout == input, "{} bytes came back of {}", run.stdout.len(), input.len());
    let run = stage.run_with(&["run", "web", "--", "sh", "-c", "cat; echo out; echo err >&2; exit 3"], b"unread")?;
    assert_eq!((run.code(), run.out(), run.err()), (3, "out\n".to_owned(), "err\n".to_owned()));
    let run = stage.run_with(&["run", "-i", "web", "--", "head", "-c", "5"], b"12345678")?.ok()?;
    assert_eq!(run.out(), "12345");
    Ok(())
}

#[test]
fn detached_run_returns_as_soon_as_the_process_runs() -> Result<()> {
    let stage = Stage::new()?;
    let started: Value = stage.json(&["run", "web", "--image", "box", "--detach", "--", "sh", "-c", IDLE])?;
    let inspected = stage.inspect("web")?;
    assert_eq!(inspected["phase"], "Running");
    assert_eq!((&started["run"], &started["pid"]), (&inspected["run"]["id"], &inspected["run"]["pid"]));
    assert_eq!(stage.ok(&["stop", "web"])?.out(), "web has exited; its state is generation 1\n");
    assert_eq!(stage.ok(&["start", "web", "--detach", "--", "sh", "-c", IDLE])?.out(), "web is running\n");
    let stopped: Value = stage.json(&["stop", "web"])?;
    assert_eq!((stopped["container"].as_str(), stopped["current"].as_u64()), (Some("web"), Some(2)));
    stage.run(&["run", "web", "--detach", "--", "/nonexistent"])?.code_is(127)?;
    Ok(())
}

#[test]
fn exit_codes_are_the_processes_own() -> Result<()> {
    let stage = Stage::new()?;
    for code in [0, 1, 2, 42, 125, 126, 127, 128, 255] {
        stage.sh("web", &format!("exit {code}"))?.code_is(code)?;
        let newest = stage.generations("web")?.pop().ok_or_else(|| anyhow!("no generation"))?;
        assert_eq!(newest["exit_code"], code);
    }
    stage.idle("killed", &[])?;
    let foreground = stage.command(&["attach", "killed"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let pid = stage.inspect("killed")?["run"]["pid"].as_i64().ok_or_else(|| anyhow!("no pid"))?;
    wait_until("attached", SOON, || Ok(fs::exists(format!("/proc/{}", foreground.id()))?))?;
    signal(i32::try_from(pid)?, Signal::KILL)?;
    assert_eq!(ends_with(foreground)?, Some(137));
    assert_eq!(stage.generation("killed", 1)?["exit_code"], 137);
    Ok(())
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).ok_or_else(|| anyhow!("no process {pid}"))?, signal)?)
}

fn ends_with(mut child: Child) -> Result<Option<i32>> {
    let status = wait_within(&mut child, SOON)?.ok_or_else(|| anyhow!("the command does not end"))?;
    Ok(status.code())
}

#[test]
fn signals_to_the_command_go_to_the_process() -> Result<()> {
    let stage = Stage::new()?;
    let signals =
        [(Signal::TERM, "TERM", 11), (Signal::INT, "INT", 12), (Signal::HUP, "HUP", 13), (Signal::USR1, "USR1", 14)];
    for (number, name, code) in signals {
        let script = format!("trap 'exit {code}' {name}; echo ready; sleep 1000 & wait; echo no");
        let output = stage.path(name);
        let args = ["run", "web", "--image", "box", "--", "sh", "-c", &script];
        let child = stage.command(&args).stdin(Stdio::null()).stdout(File::create(&output)?).spawn()?;
        wait_until("the process is ready", SOON, || Ok(fs::read_to_string(&output)?.contains("ready")))?;
        signal(i32::try_from(child.id())?, number)?;
        assert_eq!(ends_with(child)?, Some(code), "{name}");
    }
    assert_eq!(stage.seqs("web")?.len(), 4);
    Ok(())
}

#[test]
fn exec_runs_beside_the_process() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &["--env", "A=1", "--workdir", "/var"])?;
    for code in [0, 1, 42, 255] {
        stage.run(&["exec", "web", "sh", "-c", &format!("exit {code}")])?.code_is(code)?;
    }
    for (program, code) in [("/nonexistent", 127), ("/etc/os-release", 126)] {
        let run = stage.run(&["exec", "web", program])?.code_is(code)?;
        assert!(run.err().contains(program), "{}", run.err());
    }
    let options = ["exec", "--env", "B=2", "--user", "user", "--workdir", "/tmp", "web", "sh", "-c"];
    let said = stage.ok(&[&options[..], &["echo $A $B $(id -un) $(pwd) $HOME"]].concat())?.out();
    assert_eq!(said, "1 2 user /tmp /home/user\n");
    assert_eq!(stage.inside("web", "echo $A $(pwd) $(id -u)")?, "1 /var 0\n");
    let run = stage.run_with(&["exec", "-i", "web", "cat"], b"through")?.ok()?;
    assert_eq!(run.out(), "through");
    assert_eq!(stage.run_with(&["exec", "web", "cat"], b"unread")?.ok()?.out(), "");
    stage.run(&["exec", "web", "sh", "-c", "kill -KILL $$"])?.code_is(137)?;
    stage.inside("web", "echo written >/root/f")?;
    stage.ok(&["stop", "web"])?;
    assert_eq!(stage.sh_ok("web", "cat /root/f")?, "written\n");
    stage.refused_unchanged(&["exec", "web", "true"], 4, &["web is not running"])
}

#[test]
fn exec_says_what_is_wrong_once_and_as_run_does() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &[])?;
    stage.inside(
        "web",
        "printf '#!/gone/ld\\n' >/usr/bin/gone; echo text >/root/text; chmod +x /usr/bin/gone /root/text",
    )?;
    let rows: [(&[&str], i32, &str); 8] = [
        (&["exec", "-u", "nobody2", "web", "id"], 125, "nobody2"),
        (&["exec", "-u", "a:b:c", "web", "id"], 2, "--user"),
        (&["exec", "-e", "=B", "web", "env"], 2, "--env"),
        (&["exec", "-w", "tmp", "web", "env"], 2, "--workdir"),
        (&["exec", "web", "no-such-name"], 127, "no-such-name"),
        (&["exec", "web", "gone"], 127, "/gone/ld"),
        (&["exec", "web", "/root/text"], 126, "exec format error"),
        (&["exec", "web", "/etc"], 126, "/etc"),
    ];
    for (args, code, named) in rows {
        let said = stage.refused_with(args, code, &[named])?;
        assert_eq!(said.lines().filter(|line| line.contains(named)).count(), 1, "{said}");
        assert!(!said.contains("doctor"), "{said}");
    }
    stage.ok(&["stop", "web"]).map(drop)
}

#[test]
fn environment_by_name_is_the_callers_when_the_container_is_made() -> Result<()> {
    let stage = Stage::new()?;
    let said = |args: &[&str], own: &str| -> Result<String> {
        let output = stage.command(args).env("OWN", own).env_remove("UNSET").stdin(Stdio::null()).output()?;
        assert!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let script = "echo \"$OWN|${UNSET-unset}\"";
    let options = ["-e", "OWN", "-e", "UNSET"];
    let run = [&["run", "web", "--image", "box"], &options[..], &["--", "sh", "-c", script]].concat();
    assert_eq!(said(&run, "a=b c")?, "a=b c|unset\n");
    assert_eq!(said(&["run", "web", "--", "sh", "-c", script], "later")?, "a=b c|unset\n");
    stage.ok(&["run", "web", "--detach", "--", "sh", "-c", IDLE])?;
    let exec = [&["exec"], &options[..], &["web", "sh", "-c", script]].concat();
    assert_eq!(said(&exec, "now")?, "now|unset\n");
    stage.ok(&["stop", "web"]).map(drop)
}

#[test]
fn exec_has_a_terminal_of_its_own() -> Result<()> {
    let stage = Stage::new()?;
    stage.idle("web", &[])?;
    let mut terminal = Terminal::run(&stage, &["exec", "-it", "web", "sh"])?;
    terminal.type_text("tty; echo si$((1 + 1))ze; stty size\n")?;
    terminal.expect("/dev/")?;
    terminal.expect("si2ze")?;
    terminal.expect("24 80")?;
    terminal.type_text("exit 6\n")?;
    assert_eq!(terminal.wait()?, 6);
    assert!(terminal.is_cooked()?);
    stage.ok(&["stop", "web"]).map(drop)
}

#[test]
fn two_clients_share_the_terminal_and_leave_it_by_keys() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "web", "--image", "box", "-it", "--", "sh"])?;
    stage.ok(&["start", "web", "--detach"])?;
    two_clients_share_the_terminal(&stage)
}

/// The container's settings say nothing of a terminal: the run was given it.
#[test]
fn two_clients_share_the_terminal_of_a_run_that_was_given_it() -> Result<()> {
    for command in ["run", "start"] {
        let stage = Stage::new()?;
        if command == "start" {
            stage.ok(&["create", "web", "--image", "box"])?;
        }
        let image: &[&str] = if command == "run" { &["--image", "box"] } else { &[] };
        let args = [&[command, "web", "-it"], image, &["--", "sh"]].concat();
        let mut starter = Terminal::run(&stage, &args)?;
        starter.type_text("echo rea$((1 + 1))dy\n")?;
        starter.expect("rea2dy")?;
        starter.type_text("\u{10}\u{11}")?;
        assert_eq!(starter.wait()?, 0);
        two_clients_share_the_terminal(&stage)?;
    }
    Ok(())
}

/// Attaches twice to the shell on a terminal that `web` runs, and ends it.
fn two_clients_share_the_terminal(stage: &Stage) -> Result<()> {
    let mut first = Terminal::run(stage, &["attach", "web"])?;
    let mut second = Terminal::run(stage, &["attach", "web"])?;
    // Both are attached once each sees what the other types.
    first.type_text("echo from-fi$((1 - 1))rst\n")?;
    first.expect("from-fi0rst")?;
    second.type_text("echo from-se$((1 + 1))cond\n")?;
    second.expect("from-se2cond")?;
    first.expect("from-se2cond")?;
    assert!(!first.is_cooked()? && !second.is_cooked()?);
    first.type_text("\u{10}\u{11}")?;
    assert_eq!(first.wait()?, 0);
    assert!(first.is_cooked()?);
    assert_eq!(stage.phase("web")?, "Running");
    second.type_text("exit 4\n")?;
    assert_eq!(second.wait()?, 4);
    let ended = stage.generation("web", 1)?;
    assert_eq!(ended.get("exit_code").and_then(Value::as_i64), Some(4));
    stage.refused_unchanged(&["attach", "web"], 4, &["web is not running"])
}

#[test]
fn input_that_one_run_was_given_is_there_for_every_client() -> Result<()> {
    let stage = Stage::new()?;
    let script = "read line; echo got $line; exit 5";
    for options in [&["run", "web", "-di", "--image", "box"][..], &["start", "web", "-di"]] {
        stage.ok(&[options, &["--", "sh", "-c", script]].concat())?;
        let attached = stage.run_with(&["attach", "web"], b"hello\n")?.code_is(5)?;
        assert_eq!(attached.out(), "got hello\n");
    }
    // The next run is given none, and what is sent to it goes nowhere.
    stage.ok(&["start", "web", "--detach", "--", "sh", "-c", "cat; sleep 1; exit 6"])?;
    assert_eq!(stage.run_with(&["attach", "web"], b"hello\n")?.code_is(6)?.out(), "");
    Ok(())
}

#[test]
fn attached_pipes_follow_the_process_to_its_end() -> Result<()> {
    let stage = Stage::new()?;
    let script = "while read line; do echo got $line; done; echo end; exit 5";
    stage.ok(&["create", "web", "--image", "box", "-i", "--", "sh", "-c", script])?;
    stage.ok(&["start", "web", "--detach"])?;
    let mut client = stage.command(&["attach", "web"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    client.stdin.take().ok_or_else(|| anyhow!("no input"))?.write_all(b"one\ntwo\n")?;
    let output = client.wait_with_output()?;
    assert_eq!(String::from_utf8(output.stdout)?, "got one\ngot two\nend\n");
    assert_eq!(output.status.code(), Some(5));
    Ok(())
}

#[test]
fn logs_keep_what_was_printed_and_choose_from_it() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("other", "echo problem >&2")?;
    let other = stage.ok(&["logs", "other"])?;
    assert_eq!((other.out(), other.err()), (String::new(), "problem\n".to_owned()));
    stage.sh_ok("web", "for i in 1 2 3; do echo line $i; done; printf unfinished")?;
    assert_eq!(stage.ok(&["logs", "web"])?.out(), "line 1\nline 2\nline 3\nunfinished");
    assert_eq!(stage.ok(&["logs", "web", "--tail", "2"])?.out(), "line 3\nunfinished");
    assert_eq!(stage.ok(&["logs", "web", "--tail", "0"])?.out(), "");
    next_second()?;
    stage.sh_ok("web", "echo later; date -u +%Y-%m-%dT%H:%M:%SZ >/root/at")?;
    let stamped = stage.ok(&["logs", "web", "--timestamps", "--tail", "1"])?.out();
    let (at, line) = stamped.split_once(' ').ok_or_else(|| anyhow!("no time in {stamped}"))?;
    assert_eq!(line, "later\n");
    assert_eq!(stage.ok(&["logs", "web", "--since", at])?.out(), "later\n");
    let all = stage.ok(&["logs", "web", "--since", "2020-01-01T00:00:00Z"])?.out();
    assert_eq!(all, "line 1\nline 2\nline 3\nunfinished\nlater\n");
    stage.refused_unchanged(&["logs", "web", "--since", "yesterday"], 2, &["yesterday"])
}

#[test]
fn logs_are_the_bytes_that_were_printed_and_each_stream_is_by_itself() -> Result<()> {
    let stage = Stage::new()?;
    stage.sh_ok("web", r"printf 'a\377b\n'; printf 'e\376\n' >&2; printf '\375'")?;
    let logs = stage.ok(&["logs", "web"])?;
    assert_eq!(logs.stdout, b"a\xffb\n\xfd");
    assert_eq!(logs.stderr, b"e\xfe\n");
    let logs = stage.ok(&["logs", "web", "--json"])?;
    assert_eq!(logs.stderr, b"");
    let entries = logs.out().lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let of = |stream: &str| entries.iter().filter(|e| e["stream"] == stream).map(|e| e["text_bytes"].clone()).collect();
    let [out, err]: [Vec<Value>; 2] = [of("stdout"), of("stderr")];
    assert_eq!(out, [json!(b"a\xffb\n"), json!(b"\xfd")]);
    assert_eq!(err, [json!(b"e\xfe\n")]);
    assert!(entries.iter().all(|e| text(e, "/at").is_ok() && text(e, "/text").is_ok()), "{entries:?}");
    // A terminal has one stream.
    stage.ok(&["create", "tty", "--image", "box", "--tty", "--", "sh", "-c", "echo out; echo err >&2"])?;
    stage.ok(&["start", "tty", "--detach"])?;
    stage.wait_phase("tty", "Dormant")?;
    let plain: Value = stage.json(&["logs", "tty", "--tail", "1"])?;
    assert_eq!((plain["text"].as_str(), plain.get("text_bytes")), (Some("err\r\n"), None));
    let logs = stage.ok(&["logs", "tty"])?;
    assert_eq!((logs.out(), logs.err()), ("out\r\nerr\r\n".to_owned(), String::new()));
    Ok(())
}

#[test]
fn followed_log_ends_with_the_run() -> Result<()> {
    let stage = Stage::new()?;
    let script = "echo first; trap 'echo last; exit 0' TERM; sleep 1000 & wait";
    stage.ok(&["run", "web", "--image", "box", "--detach", "--", "sh", "-c", script])?;
    let output = stage.path("followed");
    let follower = stage.command(&["logs", "--follow", "web"]).stdout(File::create(&output)?).spawn()?;
    wait_until("the first line is followed", SOON, || Ok(fs::read_to_string(&output)?.contains("first")))?;
    stage.ok(&["stop", "web"])?;
    assert_eq!(ends_with(follower)?, Some(0));
    assert_eq!(fs::read_to_string(&output)?, "first\nlast\n");
    Ok(())
}

#[test]
fn log_files_are_bounded_and_rotated() -> Result<()> {
    /// Where a file is rotated; the piece and the line that were begun still go into it.
    const BYTES_MAX: u64 = 16 << 20;
    const PIECE_MAX: u64 = 1 << 20;
    let stage = Stage::new()?;
    stage.sh_ok(
        "web",
        "yes 'a line of sixty-four bytes, which makes the counting rather easy.' | head -c 39000000; echo; echo end",
    )?;
    let id = text(&stage.inspect("web")?, "/id")?.to_owned();
    let mut total = 0;
    let mut files = 0;
    for entry in fs::read_dir(stage.root().join("logs").join(id))? {
        let length = entry?.metadata()?.len();
        assert!(length <= BYTES_MAX + PIECE_MAX, "{length}");
        total += length;
        files += 1;
    }
    assert!((2..=4).contains(&files) && total > 2 * BYTES_MAX, "{files} files, {total} bytes");
    assert_eq!(stage.ok(&["logs", "web", "--tail", "1"])?.out(), "end\n");
    Ok(())
}

#[test]
fn ps_inspect_and_generations_have_the_documented_fields() -> Result<()> {
    let stage = Stage::new()?;
    stage.ok(&["create", "idle", "--image", "box"])?;
    stage.sh("left", "exit 3")?.code_is(3)?;
    stage.idle("web", &["--keep", "9"])?;
    let left = stage.inspect("left")?;
    for field in ["name", "phase", "image", "current", "conditions", "run"] {
        assert!(left.get(field).is_some(), "{field} is missing");
    }
    assert!(left["run"].is_null() && left["conditions"].is_array());
    assert!(text(&left, "/image")?.starts_with("sha256:"));
    let run = &stage.inspect("web")?["run"];
    for field in ["id", "pid", "merged", "started_at"] {
        assert!(!run[field].is_null(), "{field} is missing");
    }
    assert!(fs::exists(text(run, "/merged")?.to_owned() + "/bin/busybox")?);
    let listed: Value = stage.json(&["generations", "left"])?;
    assert_eq!((listed["container"].as_str(), listed["current"].as_u64()), (Some("left"), Some(1)));
    assert_eq!(listed["capacity"], 5);
    for field in ["seq", "exited_at", "kind", "health", "exit_code", "pinned", "quarantined", "bytes"] {
        assert!(!listed["generations"][0][field].is_null(), "{field} is missing");
    }
    let all: Value = stage.json(&["ps"])?;
    let names: Vec<&str> = all.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names, ["idle", "left", "web"]);
    let running: Value = stage.json(&["ps", "--running"])?;
    assert_eq!(running.as_array().map(Vec::len), Some(1));
    let table = stage.ok(&["ps"])?.out();
    assert!(table.contains("Created") && table.contains("Dormant") && table.contains("Running"), "{table}");
    stage.ok(&["rm", "--force", "web", "left", "idle"])?;
    assert_eq!(stage.json::<Value>(&["ps"])?, Value::Array(Vec::new()));
    stage.quiet()?;
    assert_eq!(stage.layers()?.len(), 1);
    Ok(())
}

#[test]
fn errors_are_json_where_json_is_wanted() -> Result<()> {
    let stage = Stage::new()?;
    let run = stage.run(&["--json", "inspect", "nobody"])?.code_is(3)?;
    assert_eq!(run.out(), "");
    let error: Value = serde_json::from_slice(&run.stderr)?;
    assert_eq!(text(&error, "/error/code")?, "not_found");
    complains(text(&error, "/error/message")?, &["nobody"]).or_else(|_| Ok::<_, anyhow::Error>(()))?;
    assert!(text(&error, "/error/message")?.contains("nobody"));
    assert!(!text(&error, "/error/hint")?.is_empty());
    Ok(())
}
