//! `logs`: what a container has printed, byte for byte, each stream where it came from.

use super::Context;
use crate::cli::args::LogsArgs;
use crate::cli::output::{self, Style};
use crate::clock;
use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::ContainerId;
use perennial_runtime::logs::{LogLine, LogReader, ReadOptions, Stream};
use serde_json::{Value, json};
use std::time::Duration;

/// How often `logs --follow` looks for more.
const FOLLOW_PAUSE: Duration = Duration::from_millis(100);

/// Shows what a container has printed.
///
/// # Errors
/// Where it is unknown or the log cannot be read.
pub fn logs(context: &Context, args: &LogsArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let id = context.engine.id_of(&name)?;
    let since = args
        .since
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(|error: perennial_core::time::ParseTimeError| Failure::new(Code::Usage, error))?;
    let mut reader = LogReader::open(&context.engine.log_dir(&id).join("log"));
    let show = |line: &LogLine| match context.style {
        // One object a line, so that what is followed can be read as it comes.
        Style::Json => output::line(as_json(line)),
        Style::Text => show(line, args),
    };
    for line in reader.read_all(&ReadOptions { tail: args.tail, since })? {
        show(&line);
    }
    if args.follow {
        follow(context, &id, &mut reader, &show)?;
    }
    Ok(())
}

/// Prints what one stream has printed on the same stream.
fn show(line: &LogLine, args: &LogsArgs) {
    let mut bytes = if args.timestamps { format!("{} ", line.at).into_bytes() } else { Vec::new() };
    bytes.extend_from_slice(&line.text);
    match line.stream {
        Stream::Stdout => output::bytes(&bytes),
        Stream::Stderr => output::bytes_beside(&bytes),
    }
}

/// Returns an entry as JSON: its text, with the newline where the line ends there, and its bytes where it is not UTF-8.
fn as_json(line: &LogLine) -> Value {
    let mut value = json!({"at": line.at, "stream": line.stream.as_str(), "text": String::from_utf8_lossy(&line.text)});
    if std::str::from_utf8(&line.text).is_err()
        && let Some(fields) = value.as_object_mut()
    {
        fields.insert("text_bytes".to_owned(), json!(line.text));
    }
    value
}

/// Shows what is appended until the container has ended and everything has been shown.
fn follow(context: &Context, id: &ContainerId, reader: &mut LogReader, show: &dyn Fn(&LogLine)) -> Result<()> {
    loop {
        let is_running = context.engine.container(id)?.value.phase.run().is_some();
        while let Some(line) = reader.next_line()? {
            show(&line);
        }
        if !is_running {
            return Ok(());
        }
        clock::wait(FOLLOW_PAUSE);
    }
}
