//! What commands do where there is no root yet: those that make something make one; the others leave the place alone.

use crate::cli::args::{Cli, Command, ImageCommand, RemoteCommand};
use crate::cli::output::{self, Style};
use crate::failure::{Code, Failure, Result};
use serde_json::json;
use std::io::ErrorKind;
use std::path::Path;

/// What a command needs of the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// It makes something, and the root for it where there is none.
    Makes,
    /// It looks at the machine as well, and at the file system that the root of the machine lies on.
    Checks,
    /// It lists what there is, which may be nothing.
    Lists,
    /// It is about something that must be there.
    Existing,
}

fn need(command: &Command) -> Need {
    match command {
        Command::Create(_)
        | Command::Run(_)
        | Command::Import(_)
        | Command::Pull(_)
        | Command::Remote(RemoteCommand::Add { .. })
        | Command::Image(ImageCommand::Import { .. } | ImageCommand::Pull(_)) => Need::Makes,
        Command::Doctor(args) if !args.rebuild => Need::Checks,
        Command::Ps(_) | Command::Image(ImageCommand::Ls) | Command::Remote(RemoteCommand::Ls) => Need::Lists,
        Command::Start(_)
        | Command::Stop(_)
        | Command::Exec(_)
        | Command::Attach(_)
        | Command::Logs(_)
        | Command::Inspect(_)
        | Command::Rm(_)
        | Command::Set(_)
        | Command::Generations(_)
        | Command::Rollback(_)
        | Command::Pin(_)
        | Command::Unpin(_)
        | Command::Mark(_)
        | Command::Fork(_)
        | Command::Rebase(_)
        | Command::Diff(_)
        | Command::Browse(_)
        | Command::Cp(_)
        | Command::Export(_)
        | Command::Push(_)
        | Command::Remote(RemoteCommand::Set { .. } | RemoteCommand::Rm { .. })
        | Command::Drill(_)
        | Command::Events(_)
        | Command::Image(ImageCommand::Push(_) | ImageCommand::Inspect { .. } | ImageCommand::Rm { .. })
        | Command::Registry(_)
        | Command::Doctor(_)
        | Command::Evict(_)
        | Command::Verify(_)
        | Command::Scrub(_)
        | Command::Seal(_)
        | Command::Pack(_)
        | Command::Gc(_)
        | Command::Df
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Send(_)
        | Command::Supervise(_) => Need::Existing,
    }
}

/// Whether a command is answered without a root, because there is none and it makes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It goes on, with the root that there is or that is made for it.
    GoesOn,
    /// It has listed nothing.
    Listed,
}

/// Answers a command that makes no root where there is none. The root of the machine may not have been made yet, and
/// then there is nothing to list; one that was named and is not there is a mistake in its name.
///
/// # Errors
/// Where what the command is about cannot be there.
pub fn answer(cli: &Cli, style: Style) -> Result<Answer> {
    let need = need(&cli.command);
    if need == Need::Makes || !is_missing(cli.root_path()) {
        return Ok(Answer::GoesOn);
    }
    match (need, &cli.root) {
        (Need::Makes, _) | (Need::Checks, None) => Ok(Answer::GoesOn),
        (Need::Lists, None) => {
            match style {
                Style::Json => output::json(&json!([])),
                Style::Text => {
                    output::remark(format!("nothing was made yet: there is no {}", cli.root_path().display()));
                }
            }
            Ok(Answer::Listed)
        }
        (Need::Lists | Need::Checks | Need::Existing, Some(_)) => {
            Err(missing(cli, "look whether --root or PERENNIAL_ROOT is spelled right; "))
        }
        (Need::Existing, None) => Err(missing(cli, "nothing was made on this machine yet; ")),
    }
}

fn missing(cli: &Cli, advice: &str) -> Failure {
    Failure::new(Code::NotFound, format!("there is no root in {}", cli.root_path().display())).hint(format!(
        "{advice}`perennial image import`, `image pull`, `create`, `run`, `import`, `pull` and `remote add` make a root \
         where there is none"
    ))
}

/// Whether there is nothing at this path, or an empty directory. Anything else is looked at when it is opened.
fn is_missing(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}
