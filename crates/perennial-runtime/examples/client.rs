//! The other end of the example `supervisor`: what a command would do in a terminal.
//!
//! ```text
//! client attach SOCKET [t][i]
//! client exec RUNTIME STATE ID [t][i] COMMAND…
//! ```

use perennial_core::image::ImageConfig;
use perennial_core::process::{ExecSettings, ProcessFacts, ResolvedUser, resolve, resolve_exec};
use perennial_core::spec::ContainerSpec;
use perennial_runtime::attach::{AttachConfig, Connection};
use perennial_runtime::oci::{ExecPlan, OciRuntime};
use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let texts: Vec<&str> = args.iter().map(String::as_str).collect();
    let code = match texts.as_slice() {
        ["attach", socket, flags] => {
            let config = AttachConfig { tty: flags.contains('t'), interactive: flags.contains('i') };
            let attached = Connection::open(Path::new(socket))?.attach(config)?;
            writeln!(std::io::stderr(), "{:?} skipped {}", attached.outcome, attached.skipped_bytes)?;
            attached.outcome.code()
        }
        ["exec", runtime, state, id, flags, command @ ..] => {
            let runtime = OciRuntime::by_path(runtime, Path::new(state))?;
            let facts = ProcessFacts { user: ResolvedUser::default(), hostname: "box".to_owned() };
            let spec = ContainerSpec { command: vec!["none".to_owned()], ..Default::default() };
            let settings = ExecSettings {
                command: command.iter().map(|arg| (*arg).to_owned()).collect(),
                tty: flags.contains('t'),
                interactive: flags.contains('i'),
                ..Default::default()
            };
            let base = resolve(&spec, &ImageConfig::default(), None, &facts)?;
            let process = resolve_exec(&base, &settings)?;
            match runtime.exec(&ExecPlan { id, process: &process, pid_file: None }) {
                Ok(code) => code,
                Err(failure) => failure.code,
            }
        }
        _ => return Err("attach SOCKET FLAGS, or exec RUNTIME STATE ID FLAGS COMMAND…".into()),
    };
    Ok(ExitCode::from(u8::try_from(code)?))
}
