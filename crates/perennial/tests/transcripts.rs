//! Commented scripts with what the commands print: `testdata/transcripts/*.txt`.
//!
//! A line `$ perennial …` is run by a shell, with its standard error after its output, and `? CODE` where the code is not
//! 0; lines beginning with `#` are for the reader; the rest is what it printed. What differs from run to run is written
//! as `<time>`, `<age>`, `<id>`, `<digest>` and `<size>`. With `PERENNIAL_TRANSCRIPTS=write` the files are written anew.

mod stage;

use anyhow::{Context as _, Result, ensure};
use stage::Stage;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn first_steps() -> Result<()> {
    play("first-steps")
}

#[test]
fn rollback() -> Result<()> {
    play("rollback")
}

#[test]
fn fork_pin_and_mark() -> Result<()> {
    play("fork-pin-mark")
}

#[test]
fn export_and_import() -> Result<()> {
    play("export-import")
}

/// Plays a transcript and compares what is printed.
fn play(name: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/transcripts").join(format!("{name}.txt"));
    let golden = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let stage = Stage::empty()?;
    let mut played = String::new();
    for line in golden.lines().filter(|line| line.starts_with(['#', '$']) || line.is_empty()) {
        played.push_str(line);
        played.push('\n');
        if let Some(command) = line.strip_prefix("$ ") {
            played.push_str(&normal(&shell(&stage, command)?));
        }
    }
    if std::env::var_os("PERENNIAL_TRANSCRIPTS").is_some_and(|value| value == "write") {
        return stage::write(&path, played);
    }
    let differing = golden.lines().zip(played.lines()).find(|(golden, played)| golden != played);
    ensure!(golden == played, "{name}: first difference {differing:?}; all that was printed:\n{played}");
    Ok(())
}

/// Runs a line as its reader would, and returns what it printed.
fn shell(stage: &Stage, line: &str) -> Result<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_perennial"));
    let line = line.replace("box.tar", &stage::box_tar()?.display().to_string());
    let mut command = Command::new("sh");
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", program.parent().unwrap_or(Path::new("/")).display());
    command.args(["-c", &line]).current_dir(stage.path(".")).env("PATH", path).env("PERENNIAL_ROOT", stage.root());
    command.env("SUDO_USER", "ada").env("SUDO_UID", "1000").env_remove("COLUMNS");
    let output = command.output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !output.status.success() {
        text.push_str(&format!("? {}\n", output.status.code().unwrap_or(-1)));
    }
    stage.quiet()?;
    Ok(text)
}

/// Replaces what differs from run to run, and the runs of blanks whose length depends on it.
fn normal(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut shown: Vec<String> = Vec::new();
        let mut rest = words.as_slice();
        while let Some((word, tail)) = rest.split_first() {
            let (replaced, used) = match tail {
                [unit, ago, ..] if ["s", "min", "h"].contains(unit) && *ago == "ago" => ("<age>".to_owned(), 2),
                [unit, ..] if ["B", "kB", "MB"].contains(&unit.trim_end_matches([',', ')'])) => {
                    (format!("{}<size>{}", opening(word), closing(unit)), 1)
                }
                _ => (normal_word(word), 0),
            };
            shown.push(replaced);
            rest = tail.get(used..).unwrap_or_default();
        }
        let indent = if line.starts_with("  ") { "  " } else { "" };
        out.push_str(format!("{indent}{}", shown.join("  ").replace("  ", " ")).trim_end());
        out.push('\n');
    }
    out
}

fn opening(word: &str) -> &str {
    if word.starts_with('(') { "(" } else { "" }
}

fn closing(unit: &str) -> &str {
    unit.trim_start_matches(char::is_alphabetic)
}

fn normal_word(word: &str) -> String {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bare = word.trim_end_matches([',', ')', ';']);
    let tail = word.get(bare.len()..).unwrap_or_default();
    let is_time = bare.len() >= 20 && bare.ends_with('Z') && bare.contains('T');
    match bare {
        _ if bare.starts_with("sha256:") || (bare.len() == 12 && hex(bare)) => format!("<digest>{tail}"),
        _ if is_time => format!("<time>{tail}"),
        _ if bare.len() == 16 && hex(bare) => format!("<id>{tail}"),
        _ => word.to_owned(),
    }
}
