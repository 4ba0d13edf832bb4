//! Running other programs: fail with what they said.

use anyhow::Context as _;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Runs a program to its end and returns what it printed, or an error with what it complained about.
pub(super) fn run<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    output_of(&mut command)
}

/// As [`run`], of a command that is already put together.
pub(super) fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {shown}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{shown} failed ({}): {}", output.status, complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the command as a person would type it, roughly.
pub(super) fn shown(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    command.get_args().fold(program, |text, argument| format!("{text} {}", argument.to_string_lossy()))
}

/// Fails with all of `programs` that are missing and, by the second of each pair, how they are installed.
pub(super) fn require(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let directories: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let missing = missing(programs, &directories);
    anyhow::ensure!(missing.is_empty(), "{}", missing.join("; "));
    Ok(())
}

fn missing(programs: &[(&str, &str)], directories: &[PathBuf]) -> Vec<String> {
    let is_there = |program: &str| directories.iter().any(|directory| directory.join(program).is_file());
    let missing = programs.iter().filter(|(program, _)| !is_there(program));
    missing.map(|(program, install)| format!("{program} is missing: {install}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_programs_that_are_missing_are_named_with_how_they_come() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::File::create(other.path().join("podman")).unwrap();
        let directories = [one.path().to_owned(), other.path().to_owned()];
        let programs = [("restic", "apt-get install restic"), ("podman", "x"), ("s3rver", "npm install s3rver")];
        let expected = ["restic is missing: apt-get install restic", "s3rver is missing: npm install s3rver"];
        assert_eq!(missing(&programs, &directories), expected);
        assert!(missing(&[("podman", "x")], &directories).is_empty());
    }
}
