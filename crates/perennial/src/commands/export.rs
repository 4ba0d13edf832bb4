//! `export`.

use super::views::with_path;
use super::{Context, reference};
use crate::cli::args::ExportArgs;
use crate::cli::output::{self, Style};
use crate::cli::table;
use crate::engine::export::{ExportRequest, Exported, Shape};
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::export::{ExportReport, Lost};
use perennial_registry::export::Destination;
use perennial_store::tree::EntryPath;
use serde_json::{Map, Value, json};

/// Paths of one kind of loss shown to people; `--json` has more.
const PATHS_SHOWN: usize = 20;

/// Writes a generation as an image.
///
/// # Errors
/// Where the generation does not exist or is not whole, or the destination cannot be written.
pub fn export(context: &Context, args: &ExportArgs) -> Result<()> {
    let reference = reference::parse(&args.generation)?;
    let destination = destination_of(args)?;
    let container = context.engine.seen(&reference.name)?.value;
    let generation = context.engine.chosen(&container, reference.selector.as_ref())?.clone();
    if context.style == Style::Text && container.phase.run().is_some() {
        let name = &container.name;
        output::remark(format!("{name} runs: what this run has changed is not in any generation yet"));
    }
    let shape = if args.flatten { Shape::Flat } else { Shape::Layered };
    let request = ExportRequest { destination: &destination, shape, compression: args.compress.into() };
    let exported = context.engine.export(&container, &generation, &request).map_err(|failure| {
        failure.while_doing(format!("cannot export {}@{} to {destination}", container.name, generation.seq))
    })?;
    match context.style {
        Style::Json => output::json(&as_json(&container, &destination, &exported)),
        Style::Text => show(&container, &destination, &exported),
    }
    Ok(())
}

fn destination_of(args: &ExportArgs) -> Result<Destination> {
    match (&args.oci, &args.destination) {
        (Some(path), _) => Ok(Destination::Oci { path: path.clone(), tag: None }),
        (None, Some(text)) => Destination::parse(text).map_err(|error| Failure::new(Code::Usage, error)),
        (None, None) => Err(Failure::new(Code::Usage, "give a destination")),
    }
}

fn as_json(container: &Container, destination: &Destination, exported: &Exported) -> Value {
    let Exported { seq, written, report } = exported;
    let layers: Vec<Value> = written
        .layers
        .iter()
        .map(|layer| json!({ "diff_id": layer.diff_id, "digest": layer.digest, "bytes": layer.bytes }))
        .collect();
    json!({
        "container": container.name, "seq": seq, "destination": destination.to_string(), "tag": written.tag,
        "digest": written.digest, "bytes": written.bytes, "layers": layers,
        "not_said": report_json(report),
    })
}

/// Returns what an image cannot say.
pub fn report_json(report: &ExportReport) -> Value {
    let mut losses = Map::new();
    for (loss, lost) in &report.losses {
        let name = json!(loss).as_str().unwrap_or_default().to_owned();
        losses.insert(name, lost_json(lost));
    }
    json!({ "entries": losses, "settings": report.settings })
}

fn lost_json(lost: &Lost) -> Value {
    let paths: Vec<Value> = lost.paths.iter().map(|path| with_path(path, json!({}))).collect();
    json!({ "count": lost.count, "paths": paths })
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { "/".to_owned() } else { format!("/{}", EntryPath::from_bytes(path.to_vec())) }
}

fn show(container: &Container, destination: &Destination, exported: &Exported) {
    let Exported { seq, written, report } = exported;
    let layers = match written.layers.len() {
        1 => "1 layer".to_owned(),
        count => format!("{count} layers"),
    };
    let size = table::bytes(written.bytes);
    output::line(format!(
        "{}@{seq} is exported to {destination} as {} ({layers}, {size})",
        container.name, written.tag
    ));
    show_report(report);
}

/// Shows what an image cannot say.
pub fn show_report(report: &ExportReport) {
    if !report.losses.is_empty() || !report.settings.is_empty() {
        output::line("an OCI image cannot say:");
    }
    for (loss, lost) in &report.losses {
        output::line(format!("  {} ({})", loss.text(), lost.count));
        for path in lost.paths.iter().take(PATHS_SHOWN) {
            output::line(format!("    {}", shown(path)));
        }
        let more = lost.count.saturating_sub(u64::try_from(lost.paths.len().min(PATHS_SHOWN)).unwrap_or(0));
        if more > 0 {
            output::line(format!("    and {more} more"));
        }
    }
    if !report.settings.is_empty() {
        output::line(format!("  settings of the container: {}", report.settings.join(", ")));
    }
}
