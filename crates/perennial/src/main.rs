//! The command `perennial`, and the only place where everything is wired together.
//!
//! - [`cli`]: how commands are typed and results shown.
//! - [`commands`]: one function for each command.
//! - [`engine`]: what the commands do.
//! - [`failure`]: how they fail.

#![expect(unreachable_pub, reason = "a program has no outside: public means public in this crate")]
#![expect(clippy::print_stderr, reason = "this crate is the one that talks to people")]

mod cli;
mod clock;
mod commands;
mod engine;
mod failure;

use clap::Parser as _;
use cli::args::Cli;
use cli::output::{self, Style};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let style = if cli.json { Style::Json } else { Style::Text };
    match commands::dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            output::failure(&failure, style);
            ExitCode::from(failure.code.number())
        }
    }
}
