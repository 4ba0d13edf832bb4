//! `import`.

use super::{Context, image};
use crate::cli::args::ImportArgs;
use crate::cli::output::{self, Style};
use crate::cli::progress::Bars;
use crate::cli::table;
use crate::engine::Engine;
use crate::engine::import::{ImportRequest, ImportedState, Taken};
use crate::failure::{Code, Failure, Result};
use perennial_registry::Source;
use serde_json::{Value, json};

/// Reads an image as a generation.
///
/// # Errors
/// Where the container runs, or the image is not valid or does not lie on the container's.
pub fn import(context: &Context, args: &ImportArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let source = image::source_of(&args.source)?;
    if let Source::Rootfs { .. } = source {
        let message = format!("{source} is a root file system, not an image that was exported");
        return Err(Failure::new(Code::Usage, message)
            .hint("`perennial image import` brings it as an image, on which `perennial create` makes containers"));
    }
    let bars = Bars::new(context.style);
    let request = ImportRequest { name: &name, source: &source, base: args.image.as_deref() };
    let imported = context.engine.import_generation(&request, &bars);
    bars.clear();
    let imported = imported.map_err(|failure| {
        let failure = failure.while_doing(format!("cannot import {source} as a generation of {name}"));
        match failure.hint {
            Some(_) => failure,
            None => failure.hint("nothing has changed; `perennial import --help` lists the kinds of sources"),
        }
    })?;
    context.engine.keep_container_copies();
    context.engine.free_unused()?;
    context.engine.empty_trash();
    match context.style {
        Style::Json => output::json(&as_json(&imported)),
        Style::Text => show(&imported, &source),
    }
    Ok(())
}

fn as_json(imported: &ImportedState) -> Value {
    json!({
        "container": imported.container.name,
        "seq": imported.seq,
        "is_new": imported.is_new,
        "image": imported.container.image,
        "image_name": imported.base,
        "taken": imported.taken,
        "layers": imported.layers,
        "settings_not_taken": imported.settings_not_taken,
        "evicted": imported.evicted,
    })
}

fn show(imported: &ImportedState, source: &Source) {
    let (name, seq, base) = (&imported.container.name, imported.seq, &imported.base);
    let queue = imported.container.queue.as_ref();
    let size = table::bytes(queue.and_then(|queue| queue.get(seq)).map_or(0, |generation| generation.bytes));
    let how = match (imported.taken, imported.layers.len()) {
        (_, 0) => "it shows the same".to_owned(),
        (Taken::Difference, _) => format!("what it shows otherwise is one layer, {size}"),
        (Taken::Layers, 1) => format!("1 layer, {size}"),
        (Taken::Layers, count) => format!("{count} layers, {size}"),
    };
    if imported.is_new {
        output::line(format!("{name} is created"));
    }
    output::line(format!("{name}@{seq} is {source} on image {base}: {how}"));
    if !imported.settings_not_taken.is_empty() {
        let list = imported.settings_not_taken.join(", ");
        output::line(format!("{name} keeps its own settings, where the image has others: {list}"));
    }
    if !imported.evicted.is_empty() {
        let evicted: Vec<String> = imported.evicted.iter().map(ToString::to_string).collect();
        output::line(format!("left the queue for it: {}", evicted.join(", ")));
    }
}
