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
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let style = if cli.json { Style::Json } else { Style::Text };
    match commands::dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            output::failure(&failure, style);
            ExitCode::from(failure.code.number())
        }
    }
}

/// Says what the parser has to say: help, the version, or what is wrong with the command line.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_json = std::env::args_os().take_while(|argument| argument != "--").any(|argument| argument == "--json");
    if is_json && error.use_stderr() {
        let failure = Failure::of_command_line(error);
        output::failure(&failure, Style::Json);
        return ExitCode::from(failure.code.number());
    }
    // What cannot be printed because nobody reads is no other error.
    error.print().ok();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
