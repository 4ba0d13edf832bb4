//! One function for each command: parse what was typed, call the engine, show the result.

mod container;
mod doctor;
mod export;
mod generations;
mod image;
mod import;
mod logs;
mod missing;
mod pack;
mod reference;
mod registry;
mod rollback;
mod run;
mod seal;
mod settings;
mod store;
mod travel;
mod verify;
mod views;

use crate::cli::args::{Cli, Command, ImageCommand};
use crate::cli::output::Style;
use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use clap::CommandFactory as _;
use std::process::ExitCode;

/// What every command gets.
#[derive(Debug)]
pub struct Context {
    /// The open root.
    pub engine: Engine,
    /// How results are shown.
    pub style: Style,
    /// Whether stages are timed.
    pub timings: bool,
}

/// Carries out the command line; returns the exit code.
///
/// # Errors
/// What went wrong, with a hint and the exit code.
pub fn dispatch(cli: Cli) -> Result<ExitCode> {
    let style = if cli.json { Style::Json } else { Style::Text };
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "perennial", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Man { directory } = &cli.command {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(Cli::command(), directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Registry(args) = &cli.command {
        return registry::registry(args, style).map(|()| ExitCode::SUCCESS);
    }
    require_root()?;
    if missing::answer(&cli, style)? == missing::Answer::Listed {
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Doctor(args) = &cli.command
        && args.rebuild
    {
        return doctor::rebuild(cli.root_path(), style, args.dry_run);
    }
    let engine = Engine::open(cli.root_path())?;
    let context = Context { engine, style, timings: cli.timings };
    if let Command::Supervise(args) = cli.command {
        return run::supervise(context, args);
    }
    execute(&context, cli.command)
}

fn execute(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Create(args) => container::create(context, args),
        Command::Run(args) => return run::run(context, args),
        Command::Start(args) => return run::start(context, args),
        Command::Stop(args) => run::stop(context, &args),
        Command::Exec(args) => return run::exec(context, args),
        Command::Attach(args) => return run::attach(context, &args),
        Command::Logs(args) => logs::logs(context, &args),
        Command::Ps(args) => container::ps(context, &args),
        Command::Inspect(args) => container::inspect(context, &args),
        Command::Rm(args) => container::rm(context, &args),
        Command::Set(args) => container::set(context, &args),
        Command::Generations(args) => generations::list(context, &args),
        Command::Rollback(args) => rollback::rollback(context, &args),
        Command::Pin(args) => generations::pin(context, &args, crate::engine::history::Pinned::Yes),
        Command::Unpin(args) => generations::pin(context, &args, crate::engine::history::Pinned::No),
        Command::Mark(args) => generations::mark(context, &args),
        Command::Fork(args) => container::fork(context, &args),
        Command::Rebase(args) => views::rebase(context, &args),
        Command::Diff(args) => views::diff(context, &args),
        Command::Browse(args) => views::browse(context, &args),
        Command::Cp(args) => views::cp(context, &args),
        Command::Export(args) => export::export(context, &args),
        Command::Import(args) => import::import(context, &args),
        Command::Push(args) => travel::push(context, &args),
        Command::Send(args) => travel::send(context, &args),
        Command::Pull(args) => travel::pull(context, &args),
        Command::Remote(command) => travel::remote(context, &command),
        Command::Drill(args) => return generations::drill(context, args),
        Command::Events(args) => container::events(context, &args),
        Command::Image(command) => match command {
            ImageCommand::Import { source, name } => image::import(context, &source, &name),
            ImageCommand::Pull(args) => image::pull(context, &args),
            ImageCommand::Push(args) => travel::push_image(context, &args),
            ImageCommand::Ls => image::list(context),
            ImageCommand::Inspect { image } => image::inspect(context, &image),
            ImageCommand::Rm { image } => image::remove(context, &image),
        },
        Command::Doctor(_) => return doctor::doctor(context),
        Command::Seal(args) => seal::seal(context, &args),
        Command::Pack(args) => pack::pack(context, &args),
        Command::Evict(args) => generations::evict(context, &args),
        Command::Verify(args) => return verify::verify(context, &args),
        Command::Scrub(args) => return verify::scrub(context, &args),
        Command::Gc(args) => store::gc(context, &args),
        Command::Df => store::df(context),
        Command::Completions { .. } | Command::Man { .. } | Command::Registry(_) | Command::Supervise(_) => Ok(()),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Overlayfs with `trusted.*` attributes, device nodes and foreign owners need root; say so before anything else.
fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let uid = rustix::process::geteuid().as_raw();
    Err(Failure::new(Code::Host, format!("perennial needs root, and runs as uid {uid}")).hint("use sudo"))
}
