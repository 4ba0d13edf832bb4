//! `seal`.

use super::Context;
use crate::cli::args::SealArgs;
use crate::cli::output::{self, Style};
use crate::engine::Engine;
use crate::engine::seal::SealReport;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::LayerId;
use serde_json::json;

/// Seals the layers of a container, of an image, or of all, and waits for it.
///
/// # Errors
/// Where the name is unknown, this host cannot use sealed layers, or one could not be sealed.
pub fn seal(context: &Context, args: &SealArgs) -> Result<()> {
    let report = context.engine.seal_stacks(&|| stacks(context, args))?;
    context.engine.empty_trash();
    show(context, &report);
    if report.busy.is_empty() {
        return Ok(());
    }
    let message = format!("{} layers are being sealed by another process", report.busy.len());
    Err(Failure::new(Code::Conflict, message).hint("try again in a moment"))
}

fn stacks(context: &Context, args: &SealArgs) -> Result<Vec<Vec<LayerId>>> {
    let engine = &context.engine;
    if let Some(image) = &args.image {
        return Ok(vec![engine.image(&engine.resolve_image(image)?)?.value.layers]);
    }
    if let Some(name) = &args.name {
        return engine.stacks_of(&engine.seen(&Engine::parse_name(name)?)?.value);
    }
    let mut stacks: Vec<Vec<LayerId>> = engine.images()?.into_iter().map(|doc| doc.value.layers).collect();
    for doc in engine.containers()? {
        stacks.extend(engine.stacks_of(&doc.value)?);
    }
    Ok(stacks)
}

fn show(context: &Context, report: &SealReport) {
    if context.style == Style::Json {
        let kept: Vec<_> = report.kept.iter().map(|(layer, why)| json!({"layer": layer, "reason": why})).collect();
        output::json(&json!({"sealed": report.sealed, "kept": kept, "busy": report.busy}));
        return;
    }
    for layer in &report.sealed {
        output::line(format!("sealed layer {layer}"));
    }
    for (layer, why) in &report.kept {
        output::line(format!("layer {layer} stays a directory: {why}"));
    }
    if report.sealed.is_empty() && report.kept.is_empty() && report.busy.is_empty() {
        output::line("nothing to seal");
    }
}
