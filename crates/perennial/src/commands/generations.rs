//! `generations`, `pin`, `unpin`, `mark`, `drill`, `evict`.

use super::{Context, reference};
use crate::cli::args::{DrillArgs, EvictArgs, GenerationArg, HealthArg, MarkArgs, NameArg};
use crate::cli::output::{self, Style};
use crate::cli::table;
use crate::engine::Engine;
use crate::engine::drill::DrillRequest;
use crate::engine::evict::PackFrees;
use crate::engine::history::Pinned;
use crate::failure::Result;
use perennial_core::container::Container;
use perennial_core::generations::choose::{Selector, choose};
use perennial_core::generations::{Generation, Health, Queue};
use perennial_core::layers::Form;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Lists a container's generations.
///
/// # Errors
/// Where the container is unknown.
pub fn list(context: &Context, args: &NameArg) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let doc = context.engine.seen(&name)?;
    match context.style {
        Style::Json => output::json(&as_json(context, &doc.value)?),
        Style::Text => output::text(&as_table(context, &doc.value)),
    }
    Ok(())
}

/// Returns a health as users write it.
pub fn health_name(health: Health) -> &'static str {
    match health {
        Health::Good => "good",
        Health::Unknown => "unknown",
        Health::Suspect => "suspect",
        Health::Damaged => "damaged",
    }
}

fn as_json(context: &Context, container: &Container) -> Result<Value> {
    let queue = container.queue.as_ref();
    let generations = queue.iter().flat_map(|queue| &queue.generations);
    let generations = generations.map(|generation| generation_json(context, generation)).collect::<Result<Vec<_>>>()?;
    Ok(json!({
        "container": container.name.as_str(),
        "current": queue.and_then(|queue| queue.current),
        "capacity": container.policy.keep,
        "counted": queue.map_or(0, Queue::counted),
        "keep_bytes": container.policy.keep_bytes,
        "generations": generations,
    }))
}

/// Returns a generation as JSON, as `generations --json` shows it.
///
/// # Errors
/// Where the records cannot be read.
pub fn generation_json(context: &Context, generation: &Generation) -> Result<Value> {
    let states = context.engine.states(&generation.layers)?;
    let sealed: Vec<bool> = states.iter().map(|layer| layer.form == Form::Sealed).collect();
    Ok(json!({
        "seq": generation.seq,
        "exited_at": generation.exited_at,
        "kind": generation.kind,
        "health": health_name(generation.health),
        "exit_code": generation.exit_code,
        "pinned": generation.pinned,
        "quarantined": generation.quarantined,
        "cold": generation.cold,
        "verified_at": generation.verified_at,
        "bytes": generation.bytes,
        "entries": generation.entries,
        "parent": generation.parent,
        "image": generation.image,
        "layers": generation.layers,
        "sealed": sealed.iter().all(|sealed| *sealed),
        "sealed_layers": sealed,
        "mount_options": generation.mount_options,
        "note": generation.note,
        "by": generation.by,
    }))
}

fn as_table(context: &Context, container: &Container) -> String {
    let Some(queue) = container.queue.as_ref().filter(|queue| !queue.generations.is_empty()) else {
        return format!("{} has no generation yet: it has not exited once\n", container.name);
    };
    let now = context.engine.now();
    let heading = ["", "SEQ", "EXITED", "AGE", "KIND", "CODE", "HEALTH", "CHANGED", "FROM", "NOTE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for generation in queue.generations.iter().rev() {
        let mut remarks = Vec::new();
        if generation.pinned {
            remarks.push("pinned".to_owned());
        }
        if generation.quarantined {
            remarks.push("quarantined".to_owned());
        }
        if let Some(verified_at) = generation.verified_at {
            remarks.push(format!("verified {}", table::age(verified_at, now)));
        }
        remarks.extend(generation.note.clone());
        rows.push(vec![
            if queue.current == Some(generation.seq) { "*" } else { "" }.to_owned(),
            generation.seq.to_string(),
            table::instant(generation.exited_at),
            table::age(generation.exited_at, now),
            format!("{:?}", generation.kind).to_lowercase(),
            generation.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
            health_name(generation.health).to_owned(),
            table::bytes(generation.bytes),
            generation.parent.map_or_else(|| "-".to_owned(), |parent| parent.to_string()),
            remarks.join("; "),
        ]);
    }
    let kept = format!("{} of {} kept", queue.counted(), container.policy.keep);
    let beside = salvages(queue).map_or_else(String::new, |salvages| format!(" and {salvages}"));
    format!("{}{kept}{beside}; * is where the next start begins\n", table::render(&rows))
}

/// Returns the salvages that do not count against the capacity, in words; nothing where there is none.
pub fn salvages(queue: &Queue) -> Option<String> {
    match queue.generations.len().saturating_sub(queue.counted()) {
        0 => None,
        1 => Some("1 salvage".to_owned()),
        count => Some(format!("{count} salvages")),
    }
}

/// Protects a generation against eviction, or ends that.
///
/// # Errors
/// Where container or generation are unknown.
pub fn pin(context: &Context, args: &GenerationArg, pinned: Pinned) -> Result<()> {
    let (name, selector) = reference::parse_generation(&args.generation)?;
    let seq = context.engine.pin(&name, &selector, pinned)?;
    let is_pinned = pinned == Pinned::Yes;
    match context.style {
        Style::Json => output::json(&json!({"container": name, "seq": seq, "pinned": is_pinned})),
        Style::Text => {
            output::line(format!("{name}@{seq} is {}", if is_pinned { "pinned" } else { "no longer pinned" }));
        }
    }
    Ok(())
}

/// Marks a generation's health.
///
/// # Errors
/// Where container or generation are unknown.
pub fn mark(context: &Context, args: &MarkArgs) -> Result<()> {
    let (name, selector) = reference::parse_generation(&args.generation)?;
    let health = match args.health {
        HealthArg::Good => Health::Good,
        HealthArg::Unknown => Health::Unknown,
        HealthArg::Suspect => Health::Suspect,
    };
    let seq = context.engine.mark(&name, &selector, health)?;
    match context.style {
        Style::Json => output::json(&json!({"container": name, "seq": seq, "health": health_name(health)})),
        Style::Text => output::line(format!("{name}@{seq} is marked {}", health_name(health))),
    }
    Ok(())
}

/// Brings a generation up in a shadow and says whether it works; code 1 says that it does not.
///
/// # Errors
/// Where there is nothing to ask, or the shadow cannot be made.
pub fn drill(context: &Context, args: DrillArgs) -> Result<ExitCode> {
    let reference = reference::parse(&args.generation)?;
    let request = DrillRequest {
        name: reference.name.clone(),
        selector: reference.selector,
        command: args.command,
        timeout: Duration::from_secs(args.timeout),
    };
    let drilled = context.engine.drill(&request)?;
    match context.style {
        Style::Json => output::json(&json!({
            "container": reference.name,
            "seq": drilled.seq,
            "passed": drilled.passed,
            "because": drilled.because,
            "output": drilled.output,
        })),
        Style::Text => {
            let verdict = if drilled.passed { "works" } else { "does not work" };
            output::line(format!("{}@{} {verdict}: {}", reference.name, drilled.seq, drilled.because));
            if !drilled.passed {
                drilled.output.iter().for_each(|line| output::line(format!("  | {line}")));
            }
        }
    }
    Ok(if drilled.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Evicts a generation, or says what that would free.
///
/// # Errors
/// Where it is unknown or protected.
pub fn evict(context: &Context, args: &EvictArgs) -> Result<()> {
    let (name, selector) = reference::parse_generation(&args.generation)?;
    let container = context.engine.seen(&name)?.value;
    let queue = container.queue.unwrap_or_default();
    let seq = match selector {
        // One that is damaged may go, too.
        Selector::Seq(seq) => seq,
        Selector::At { .. } | Selector::LatestGood => choose(&queue, &selector)?,
    };
    let frees = if args.dry_run { context.engine.frees(&name, seq)? } else { context.engine.evict(&name, seq)? };
    match context.style {
        Style::Json => {
            output::json(&json!({"container": name, "seq": seq, "dry_run": args.dry_run, "frees": frees}));
        }
        Style::Text => {
            let verb = if args.dry_run { "would free" } else { "freed" };
            output::line(format!(
                "{name}@{seq} {verb} {} in {} contents ({} bytes)",
                table::bytes(frees.bytes),
                frees.objects,
                frees.bytes
            ));
            show_packs(&frees.packs, verb);
            if !frees.directories.is_empty() {
                output::line(format!(
                    "and up to {} of directories, which are not sealed",
                    table::bytes(frees.directory_bytes)
                ));
            }
        }
    }
    Ok(())
}

fn show_packs(packs: &PackFrees, verb: &str) {
    if packs.objects > 0 {
        output::line(format!("{} of these contents are in packs only", packs.objects));
    }
    if packs.removed > 0 {
        let (count, size) = (packs.removed, table::bytes(packs.bytes));
        output::line(format!(
            "{verb} {size} in {count} packs ({} bytes), of which nothing is needed any more",
            packs.bytes
        ));
    }
    if packs.waiting_bytes > 0 {
        let size = table::bytes(packs.waiting_bytes);
        output::line(format!("{size} in packs are needed no more, but stay until `gc` writes those packs anew"));
    }
}
