//! `verify` and `scrub`.

use super::{Context, reference};
use crate::cli::args::{ScrubArgs, VerifyArgs};
use crate::cli::output::{self, Style};
use crate::cli::table;
use crate::engine::verify::{Pace, Verified};
use crate::failure::{Code, Failure, Result};
use perennial_core::generations::choose::{Selector, choose};
use perennial_core::process::parse_bytes;
use perennial_core::verify::Depth;
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// Faults shown for one layer; `--json` has all.
const FAULTS_SHOWN: usize = 5;

/// Verifies generations; code 6 says that something is damaged.
///
/// # Errors
/// Where container or generation are unknown, or nothing can be read.
pub fn verify(context: &Context, args: &VerifyArgs) -> Result<ExitCode> {
    let depth = if args.full { Depth::Full } else { Depth::Existence };
    let pace = Pace { bytes_per_s: args.rate.as_deref().map(rate).transpose()?, at_most: None };
    let engine = &context.engine;
    let found = match &args.generation {
        None => engine.verify(None, depth, pace)?,
        Some(text) => {
            let reference = reference::parse(text)?;
            let container = engine.seen(&reference.name)?.value;
            let queue = container.queue.clone().unwrap_or_default();
            let generations = match &reference.selector {
                None => queue.generations,
                // One that is marked damaged is verified again.
                Some(Selector::Seq(seq)) if queue.get(*seq).is_some() => queue.get(*seq).cloned().into_iter().collect(),
                Some(selector) => queue.get(choose(&queue, selector)?).cloned().into_iter().collect(),
            };
            engine.verify(Some((&container, generations)), depth, pace)?
        }
    };
    Ok(show(context, &found, depth))
}

/// Reads contents again for a while; code 6 says that something is damaged.
///
/// # Errors
/// Where nothing can be read.
pub fn scrub(context: &Context, args: &ScrubArgs) -> Result<ExitCode> {
    let pace = Pace { bytes_per_s: Some(rate(&args.rate)?), at_most: args.seconds.map(Duration::from_secs) };
    let found = context.engine.scrub(pace)?;
    Ok(show(context, &found, Depth::Full))
}

fn rate(text: &str) -> Result<u64> {
    parse_bytes(text).map_err(|error| Failure::new(Code::Usage, format!("--rate: {error}")))
}

fn show(context: &Context, found: &Verified, depth: Depth) -> ExitCode {
    match context.style {
        Style::Json => {
            let damaged: Vec<_> = found
                .damaged
                .iter()
                .map(|(container, generations)| json!({"container": container, "generations": generations}))
                .collect();
            output::json(&json!({
                "intact": found.faults.is_empty(),
                "full": depth == Depth::Full,
                "complete": found.is_complete,
                "layers": found.layers.len(),
                "unsealed": found.unsealed,
                "objects": found.objects,
                "bytes": found.bytes,
                "faults": found.faults.values().flatten().collect::<Vec<_>>(),
                "damaged": damaged,
            }));
        }
        Style::Text => show_text(found, depth),
    }
    if found.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(Code::Damaged.number()) }
}

fn show_text(found: &Verified, depth: Depth) {
    for faults in found.faults.values() {
        faults.iter().take(FAULTS_SHOWN).for_each(|fault| output::line(format!("damaged: {fault}")));
        if faults.len() > FAULTS_SHOWN {
            output::line(format!("damaged: … and {} more in this layer", faults.len().saturating_sub(FAULTS_SHOWN)));
        }
    }
    for (container, generations) in &found.damaged {
        for generation in generations {
            let hint = match generation.nearest_intact {
                Some(seq) => format!("`perennial rollback {container} --to {seq}` goes to the nearest intact one"),
                None => "none before or after it is intact; a backup or a remote copy may be".to_owned(),
            };
            output::line(format!("generation {container}@{} is damaged\n  hint: {hint}", generation.seq));
        }
    }
    let read = match depth {
        Depth::Full => format!(", {} read", table::bytes(found.bytes)),
        Depth::Existence => String::new(),
    };
    let end = if found.is_complete { "" } else { "; the rest is for the next time" };
    output::line(format!("{} layers, {} contents{read}{end}", found.layers.len(), found.objects));
    if !found.unsealed.is_empty() {
        output::line(format!(
            "{} layers are not sealed, so only their being there was seen; `perennial seal` seals them",
            found.unsealed.len()
        ));
    }
    output::line(if found.faults.is_empty() { "all intact" } else { "something is damaged: see above" });
}
