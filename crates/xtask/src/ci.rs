//! `cargo xtask ci`: the one entry point for "is this commit good?".
//!
//! Steps run in order of cost, and stop at the first that fails unless `--keep-going` is given. Each step's duration
//! is printed at the end, so that a slow one is seen when it becomes slow.

use crate::{clock, tidy};
use anyhow::Context as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Options of `cargo xtask ci`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs the remaining steps after one has failed.
    #[arg(long)]
    keep_going: bool,
    /// Runs only these steps, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<String>,
}

/// What a step runs.
enum Action {
    /// `cargo` with these arguments, and with these variables set.
    Cargo(&'static [&'static str], &'static [(&'static str, &'static str)]),
    /// A command that is run where it is installed; its name is looked up in `PATH`.
    IfInstalled(&'static str, &'static [&'static str]),
    /// The checks of [`tidy`].
    Tidy,
}

struct Step {
    name: &'static str,
    action: Action,
}

/// All steps, the cheap ones first.
const STEPS: &[Step] = &[
    Step { name: "fmt", action: Action::Cargo(&["fmt", "--all", "--check"], &[]) },
    Step { name: "tidy", action: Action::Tidy },
    Step { name: "typos", action: Action::IfInstalled("typos", &[]) },
    Step {
        name: "deny",
        action: Action::IfInstalled("cargo-deny", &["--locked", "check", "bans", "licenses", "sources"]),
    },
    Step {
        name: "clippy",
        action: Action::Cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[]),
    },
    Step { name: "test", action: Action::Cargo(&["test", "--workspace", "--locked"], &[]) },
    Step {
        name: "doc",
        action: Action::Cargo(
            &["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"],
            &[("RUSTDOCFLAGS", "-D warnings")],
        ),
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    NotInstalled,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotInstalled => "not installed",
        }
    }

    fn from_success(success: bool) -> Self {
        if success { Self::Passed } else { Self::Failed }
    }
}

/// Runs the steps and prints a table of outcomes and durations.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    for name in &options.only {
        anyhow::ensure!(
            STEPS.iter().any(|step| step.name == name),
            "there is no step {name:?}; the steps are {}",
            STEPS.iter().map(|step| step.name).collect::<Vec<_>>().join(", ")
        );
    }
    let mut report = Vec::new();
    for step in STEPS {
        if !options.only.is_empty() && !options.only.iter().any(|name| name == step.name) {
            continue;
        }
        println!("── {}", step.name);
        let (outcome, took) = clock::timed(|| run_step(root, step));
        let outcome = outcome.with_context(|| format!("cannot run the step {}", step.name))?;
        report.push((step.name, outcome, took));
        if outcome == Outcome::Failed && !options.keep_going {
            break;
        }
    }
    print_report(&report);
    let failed = report.iter().any(|(_, outcome, _)| *outcome == Outcome::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn run_step(root: &Path, step: &Step) -> anyhow::Result<Outcome> {
    match step.action {
        Action::Tidy => Ok(Outcome::from_success(tidy::check_and_print(root)?)),
        Action::Cargo(arguments, variables) => {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut command = Command::new(cargo);
            command.args(arguments).envs(variables.iter().copied()).current_dir(root);
            Ok(Outcome::from_success(command.status()?.success()))
        }
        Action::IfInstalled(program, arguments) => {
            match Command::new(program).args(arguments).current_dir(root).status() {
                Ok(status) => Ok(Outcome::from_success(status.success())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Outcome::NotInstalled),
                Err(error) => Err(error.into()),
            }
        }
    }
}

fn print_report(report: &[(&str, Outcome, Duration)]) {
    println!();
    for (name, outcome, took) in report {
        println!("{name:8} {:14} {:8.1} s", outcome.word(), took.as_secs_f64());
    }
    let total: Duration = report.iter().map(|(_, _, took)| *took).sum();
    println!("{:8} {:14} {:8.1} s", "total", "", total.as_secs_f64());
}
