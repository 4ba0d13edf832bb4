//! `image import`, `pull`, `ls`, `inspect`, `rm`.

use super::Context;
use crate::cli::args::PullArgs;
use crate::cli::output::{self, Style};
use crate::cli::progress::Bars;
use crate::cli::table;
use crate::engine::images::Removed;
use crate::failure::{Code, Failure, Result};
use perennial_core::image::Image;
use perennial_registry::{ImportError, Source};
use serde_json::{Value, json};

/// Imports an image from this machine.
///
/// # Errors
/// Where the source is not valid or cannot be read.
pub fn import(context: &Context, source: &str, name: &str) -> Result<()> {
    let source = source_of(source)?;
    let bars = Bars::new(context.style);
    let doc =
        context.engine.import_image(&source, name, &bars).map_err(|failure| hint(failure, &source.to_string()))?;
    bars.clear();
    show_brought(context, name, &doc.value);
    Ok(())
}

/// Reads a source as it was typed.
///
/// # Errors
/// Where it is none, or not there.
pub fn source_of(text: &str) -> Result<Source> {
    let exists = |path: &std::path::Path| path.exists();
    let source = Source::parse(text, &exists).map_err(|error| Failure::new(Code::Usage, error))?;
    if !source.path().exists() {
        let message = format!("there is no {}", source.path().display());
        return Err(Failure::new(Code::NotFound, message).hint(format!("look whether {source} is spelled right")));
    }
    Ok(source)
}

fn hint(failure: Failure, source: &str) -> Failure {
    let is_missing = failure.error.chain().any(|cause| {
        matches!(cause.downcast_ref::<ImportError>(), Some(ImportError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound)
    });
    let failure = failure.while_doing(format!("cannot import {source}"));
    match (is_missing, &failure.hint) {
        (true, _) => failure.code(Code::NotFound).hint(format!("look whether {source} is spelled right")),
        (false, None) => {
            failure.hint("nothing was imported; `perennial image import --help` lists the kinds of sources")
        }
        (false, Some(_)) => failure,
    }
}

fn show_brought(context: &Context, name: &str, image: &Image) {
    match context.style {
        Style::Json => output::json(&image_json(image, &[name.to_owned()])),
        Style::Text => {
            let layers = match image.layers.len() {
                1 => "1 layer".to_owned(),
                count => format!("{count} layers"),
            };
            output::line(format!("{name} is {} ({layers}, {})", image.digest, table::bytes(image.bytes)));
        }
    }
}

/// Pulls an image from a registry.
///
/// # Errors
/// Where the reference is not valid, or the registry does not give the image.
pub fn pull(context: &Context, args: &PullArgs) -> Result<()> {
    let name = args.name.clone().unwrap_or_else(|| args.reference.clone());
    let bars = Bars::new(context.style);
    let doc = context.engine.pull_image(args, &name, &bars)?;
    bars.clear();
    show_brought(context, &name, &doc.value);
    Ok(())
}

fn image_json(image: &Image, names: &[String]) -> Value {
    json!({
        "names": names,
        "digest": image.digest,
        "layers": image.layers,
        "diff_ids": image.diff_ids,
        "bytes": image.bytes,
        "imported_at": image.imported_at,
        "source": image.source,
        "believed": image.believed,
        "config": image.config,
    })
}

/// Lists images.
///
/// # Errors
/// Where the records cannot be read.
pub fn list(context: &Context) -> Result<()> {
    let tags = context.engine.tags()?;
    let names = |image: &Image| -> Vec<String> {
        tags.iter().filter(|(_, digest)| *digest == image.digest).map(|(name, _)| name.clone()).collect()
    };
    let images = context.engine.images()?;
    if context.style == Style::Json {
        let list = images.iter().map(|doc| image_json(&doc.value, &names(&doc.value))).collect();
        output::json(&Value::Array(list));
        return Ok(());
    }
    let now = context.engine.now();
    let mut rows = vec![["NAME", "DIGEST", "LAYERS", "SIZE", "IMPORTED"].map(str::to_owned).to_vec()];
    for doc in &images {
        let image = &doc.value;
        let short = image.digest.hex().get(..12).unwrap_or_default().to_owned();
        let names = names(image);
        let shown = if names.is_empty() { vec!["(no name)".to_owned()] } else { names };
        for name in shown {
            let (layers, size) = (image.layers.len().to_string(), table::bytes(image.bytes));
            rows.push(vec![name, short.clone(), layers, size, table::age(image.imported_at, now)]);
        }
    }
    output::text(&table::render(&rows));
    Ok(())
}

/// Shows everything about an image.
///
/// # Errors
/// Where it is unknown.
pub fn inspect(context: &Context, text: &str) -> Result<()> {
    let digest = context.engine.resolve_image(text)?;
    let image = context.engine.image(&digest)?.value;
    let tags = context.engine.tags()?;
    let names: Vec<String> = tags.into_iter().filter(|(_, of)| *of == digest).map(|(name, _)| name).collect();
    output::json(&image_json(&image, &names));
    Ok(())
}

/// Removes an image's name, and the image when it has no other.
///
/// # Errors
/// Where it is unknown, or something needs it.
pub fn remove(context: &Context, text: &str) -> Result<()> {
    let removed = context.engine.remove_image(text)?;
    context.engine.free_image_layers()?;
    context.engine.empty_trash();
    match (context.style, removed) {
        (Style::Json, removed) => output::json(&json!({"name": text, "image_removed": removed != Removed::Name})),
        (Style::Text, Removed::Name) => {
            output::line(format!("{text} is no longer a name of this image; it has others"));
        }
        (Style::Text, Removed::Image(digest)) => output::line(format!("image {digest} is removed")),
    }
    Ok(())
}
