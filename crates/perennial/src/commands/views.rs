//! `diff`, `browse`, `cp`, `rebase`: use single generations.

use super::{Context, reference};
use crate::cli::args::{BrowseArgs, CpArgs, DiffArgs, RebaseArgs};
use crate::cli::output::{self, Style};
use crate::engine::Engine;
use crate::engine::copy_out::Copied;
use crate::engine::rebase::{Carry, LayersPlan, Rebased};
use crate::engine::views::Opened;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::Container;
use perennial_core::generations::Generation;
use perennial_core::generations::choose::Selector;
use perennial_core::id::{ContainerName, Seq};
use perennial_core::rebase::{Conflict, Difference};
use perennial_store::tree::EntryPath;
use perennial_store::tree::diff::{Change, ChangeKind};
use serde_json::{Value, json};

/// What a generation is compared with.
enum Other {
    Generation(Seq),
    Image,
}

impl Other {
    fn text(&self) -> String {
        match self {
            Self::Generation(seq) => format!("generation {seq}"),
            Self::Image => "its image".to_owned(),
        }
    }
}

/// Lists what differs between two generations, or between one and its image.
///
/// # Errors
/// Where one of them does not exist or is not whole.
pub fn diff(context: &Context, args: &DiffArgs) -> Result<()> {
    let reference = reference::parse(&args.generation)?;
    let container = context.engine.seen(&reference.name)?.value;
    let to = context.engine.chosen(&container, reference.selector.as_ref())?.clone();
    let from = other(context, &container, &to, args.other.as_deref())?;
    let held = context.engine.hold_layers(&container.name, to.seq)?;
    let before = match &from {
        Other::Generation(seq) => context.engine.hold_layers(&container.name, *seq)?,
        Other::Image => context.engine.hold_image(held.image.clone())?,
    };
    let (before, after): (Opened, Opened) = (context.engine.open_view(before)?, context.engine.open_view(held)?);
    let changes = context.engine.differences(&before, &after)?;
    match context.style {
        Style::Json => {
            let from = match &from {
                Other::Generation(seq) => json!({"seq": seq}),
                Other::Image => json!({"image": to.image}),
            };
            let list: Vec<Value> = changes.iter().map(change_json).collect();
            output::json(&json!({"container": container.name, "from": from, "to": {"seq": to.seq}, "changes": list}));
        }
        Style::Text => {
            warn_of_run(&container);
            let text: String = changes.iter().map(change_line).collect();
            output::text(&text);
            if changes.is_empty() {
                output::remark(format!("{}@{} is the same as {}", container.name, to.seq, from.text()));
            }
        }
    }
    Ok(())
}

/// What runs may have changed more than any generation holds.
fn warn_of_run(container: &Container) {
    if container.phase.run().is_some() {
        output::remark(format!("{} runs: what this run has changed is not in any generation yet", container.name));
    }
}

fn other(context: &Context, container: &Container, to: &Generation, typed: Option<&str>) -> Result<Other> {
    let seq = match (typed, to.parent) {
        (Some("image"), _) | (None, None) => return Ok(Other::Image),
        (Some(text), _) => reference::parse_seq(text)?,
        (None, Some(parent)) => {
            let is_there = container.queue.as_ref().is_some_and(|queue| queue.get(parent).is_some());
            if !is_there {
                let message = format!("generation {parent}, which {}@{} comes from, has left", container.name, to.seq);
                return Err(Failure::new(Code::NotFound, message)
                    .hint("name a generation to compare with, or `image`; `perennial generations` lists them"));
            }
            Selector::Seq(parent)
        }
    };
    Ok(Other::Generation(context.engine.chosen(container, Some(&seq))?.seq))
}

fn change_line(change: &Change) -> String {
    let path = EntryPath::from_bytes(change.path.clone());
    let path = if change.path.is_empty() { String::new() } else { path.to_string() };
    match change.kind {
        ChangeKind::Added => format!("A /{path}\n"),
        ChangeKind::Removed => format!("D /{path}\n"),
        ChangeKind::TypeChanged => format!("T /{path}\n"),
        ChangeKind::Modified { content: true, .. } => format!("M /{path}\n"),
        ChangeKind::Modified { content: false, .. } => format!("M /{path} (metadata)\n"),
    }
}

/// A path as JSON: as text, and as bytes where it is not UTF-8.
fn path_json(path: &[u8]) -> (Value, Value) {
    let text = format!("/{}", String::from_utf8_lossy(path));
    let bytes = std::str::from_utf8(path).is_err().then(|| json!([b"/", path].concat()));
    (Value::String(text), bytes.unwrap_or(Value::Null))
}

/// Adds a path to an object: as text, and as bytes where it is not UTF-8.
pub(super) fn with_path(path: &[u8], mut value: Value) -> Value {
    let (text, bytes) = path_json(path);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("path".to_owned(), text);
        if !bytes.is_null() {
            fields.insert("path_bytes".to_owned(), bytes);
        }
    }
    value
}

fn change_json(change: &Change) -> Value {
    let value = match change.kind {
        ChangeKind::Added => json!({"kind": "A"}),
        ChangeKind::Removed => json!({"kind": "D"}),
        ChangeKind::TypeChanged => json!({"kind": "T"}),
        ChangeKind::Modified { content, metadata } => json!({"kind": "M", "content": content, "metadata": metadata}),
    };
    with_path(&change.path, value)
}

/// Mounts a generation read-only, or unmounts it.
///
/// # Errors
/// Where the generation is not whole, the directory cannot be used, or the view is in use.
pub fn browse(context: &Context, args: &BrowseArgs) -> Result<()> {
    let (view, is_mounted) = match (&args.generation, &args.directory, &args.unmount) {
        (Some(text), Some(directory), None) => {
            let reference = reference::parse(text)?;
            (context.engine.browse(&reference.name, reference.selector.as_ref(), directory)?, true)
        }
        (_, _, Some(directory)) => (context.engine.unmount_view(directory)?, false),
        (_, _, None) => return Err(Failure::new(Code::Usage, "give a generation and a directory")),
    };
    let (name, seq, target) = (&view.container, view.seq, &view.target);
    match (context.style, is_mounted) {
        (Style::Json, _) => {
            output::json(&json!({"container": name, "seq": seq, "target": target, "mounted": is_mounted}));
        }
        (Style::Text, true) => {
            output::line(format!("{name}@{seq} is mounted read-only on {target}"));
            output::line(format!("`perennial browse --unmount {target}` ends it"));
        }
        (Style::Text, false) => output::line(format!("{name}@{seq} is no longer mounted on {target}")),
    }
    Ok(())
}

/// Copies a file or a tree out of a generation.
///
/// # Errors
/// Where it is not there, or the target cannot be written; what was there is as before.
pub fn cp(context: &Context, args: &CpArgs) -> Result<()> {
    let (reference, path) = reference::parse_path(&args.source)?;
    let container = context.engine.seen(&reference.name)?.value;
    let seq = context.engine.chosen(&container, reference.selector.as_ref())?.seq;
    if context.style == Style::Text {
        warn_of_run(&container);
    }
    let copied: Copied = context.engine.copy_out(&container.name, seq, &path, &args.target)?;
    match context.style {
        Style::Json => output::json(&json!({
            "container": container.name, "seq": seq, "path": path, "target": copied.target,
            "entries": copied.measure.entries, "bytes": copied.measure.bytes,
        })),
        Style::Text => {
            output::line(format!("{}@{seq}:{path} is copied to {}", container.name, copied.target.display()));
        }
    }
    Ok(())
}

/// Puts a container's state on another image.
///
/// # Errors
/// Where it runs, lies on that image already, or something is not whole; nothing has changed then.
pub fn rebase(context: &Context, args: &RebaseArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let carry = if args.dry_run { Carry::Plan } else { Carry::Out };
    let done = context.engine.rebase(&name, &args.image, carry)?;
    match context.style {
        Style::Json => output::json(&rebased_json(&name, &done, carry)),
        Style::Text => show_rebased(&name, &done, args),
    }
    Ok(())
}

fn difference_name(difference: Difference) -> &'static str {
    match difference {
        Difference::Added => "added",
        Difference::Removed => "removed",
        Difference::Content => "changed",
        Difference::Metadata => "changed the metadata of",
        Difference::Type => "changed the type of",
    }
}

fn rebased_json(name: &ContainerName, done: &Rebased, carry: Carry) -> Value {
    let conflict =
        |conflict: &Conflict| with_path(&conflict.path, json!({"container": conflict.ours, "image": conflict.theirs}));
    json!({
        "container": name,
        "done": carry == Carry::Out,
        "from": done.plan.from,
        "seq": done.seq,
        "old_image": done.plan.old,
        "image": done.plan.new,
        "layers": done.plan.layers,
        "conflicts": done.plan.conflicts.iter().map(conflict).collect::<Vec<Value>>(),
        "evicted": done.evicted,
    })
}

fn show_rebased(name: &ContainerName, done: &Rebased, args: &RebaseArgs) {
    for conflict in &done.plan.conflicts {
        let path = EntryPath::from_bytes(conflict.path.clone());
        let ours = conflict.ours.map_or("replaced", difference_name);
        let theirs = difference_name(conflict.theirs);
        output::line(format!("conflict at /{path}: the container {ours} it, the new image {theirs} it"));
    }
    if !done.plan.conflicts.is_empty() {
        output::line("what the container has there stays; the new image's version is hidden");
    }
    let how = match done.plan.layers {
        LayersPlan::Nothing => "nothing has to be put on it",
        LayersPlan::Share => "its layers are shared",
        LayersPlan::Flatten => "its layers are copied into one",
    };
    match (args.dry_run, done.plan.from, done.seq) {
        (true, Some(from), _) => output::line(format!("{name}@{from} would be put on {}; {how}", args.image)),
        (true, None, _) => output::line(format!("{name} would begin from {}", args.image)),
        (false, Some(from), Some(seq)) => {
            output::line(format!("{name}@{seq} is {name}@{from} on {}; {how}", args.image));
            output::line(format!("`perennial rollback {name} --to {from}` takes it back"));
        }
        (false, _, _) => output::line(format!("{name} begins from {}", args.image)),
    }
}
