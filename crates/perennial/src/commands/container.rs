//! `create`, `rm`, `set`, `fork`, `ps`, `inspect`, `events`.

use super::{Context, generations, reference, run, settings};
use crate::cli::args::{CreateArgs, ForkArgs, NameArg, PolicyArgs, PsArgs, RmArgs, SetArgs};
use crate::cli::output::{self, Style};
use crate::cli::table;
use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{ConditionKind, Container, Phase};
use perennial_core::generations::Queue;
use serde_json::{Value, json};

/// Makes a container.
///
/// # Errors
/// Where an option is not valid, the name is taken or the image unknown.
pub fn create(context: &Context, args: CreateArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let Some(image) = args.settings.image.clone() else {
        return Err(Failure::new(Code::Usage, format!("container {name} needs an image"))
            .hint("add --image IMAGE; `perennial image ls` lists them"));
    };
    let spec = settings::spec(&args.settings, args.terminal, args.command)?;
    let doc = context.engine.create(&name, &image, spec, settings::policy(&args.settings)?)?;
    match context.style {
        Style::Json => output::json(&json!({"container": name, "id": doc.value.id})),
        Style::Text => output::line(format!("{name} is created")),
    }
    Ok(())
}

/// Removes containers with their generations.
///
/// # Errors
/// Where one is unknown, or runs and `--force` is not given; those before it are removed.
pub fn rm(context: &Context, args: &RmArgs) -> Result<()> {
    for text in &args.names {
        let name = Engine::parse_name(text)?;
        if args.force && context.engine.seen(&name)?.value.phase.run().is_some() {
            run::stop_and_wait(context, &name, Some(0))?;
        }
        context.engine.remove(&name)?;
        match context.style {
            Style::Json => output::json(&json!({"removed": name})),
            Style::Text => output::line(format!("{name} is removed")),
        }
    }
    Ok(())
}

/// Changes a container's retention.
///
/// # Errors
/// Where it is unknown or the policy is not possible.
pub fn set(context: &Context, args: &SetArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let PolicyArgs { keep, keep_bytes, good_after, seal, hot, push } = &args.policy;
    let is_given =
        [keep.is_some(), keep_bytes.is_some(), good_after.is_some(), seal.is_some(), hot.is_some(), push.is_some()];
    if !is_given.contains(&true) {
        return Err(Failure::new(Code::Usage, "nothing to set")
            .hint("give --keep, --keep-bytes, --good-after, --seal, --hot or --push"));
    }
    settings::change_policy(&mut perennial_core::generations::Policy::default(), &args.policy)?;
    let policy = context.engine.set_policy(&name, |policy| {
        // What was typed has been checked just above.
        settings::change_policy(policy, &args.policy).ok();
    })?;
    match context.style {
        Style::Json => output::json(&json!({"container": name, "policy": policy})),
        Style::Text => {
            let bytes =
                policy.keep_bytes.map_or_else(String::new, |bytes| format!(" and at most {}", table::bytes(bytes)));
            let sent = match (push, &policy.push) {
                (None, _) => String::new(),
                (Some(_), Some(remote)) => format!(", and each is sent to {remote}"),
                (Some(_), None) => ", and none is sent by itself".to_owned(),
            };
            output::line(format!("{name} keeps {} generations{bytes}, from its next exit on{sent}", policy.keep));
        }
    }
    Ok(())
}

/// Makes a container from a generation of another.
///
/// # Errors
/// Where the source or its generation are unknown, or the new name is taken.
pub fn fork(context: &Context, args: &ForkArgs) -> Result<()> {
    let source = reference::parse(&args.source)?;
    let name = Engine::parse_name(&args.name)?;
    let is_live = context.engine.seen(&source.name)?.value.phase.run().is_some();
    let doc = context.engine.fork(&source.name, source.selector.as_ref(), &name)?;
    if is_live {
        output::remark(format!("{} runs: what this run has changed is not in the fork", source.name));
    }
    match context.style {
        Style::Json => output::json(&json!({"container": name, "id": doc.value.id, "source": args.source})),
        Style::Text => output::line(format!("{name} is a fork of {}", args.source)),
    }
    Ok(())
}

/// Returns a container's phase as commands show it: an exit that cannot be saved is a phase of its own (A13).
pub fn phase_name(container: &Container) -> &'static str {
    let is_exiting = matches!(container.phase, Phase::Exiting { .. });
    if is_exiting && container.has(ConditionKind::ExitIncomplete) { "ExitIncomplete" } else { container.phase.name() }
}

/// Lists containers.
///
/// # Errors
/// Where the records cannot be read.
pub fn ps(context: &Context, args: &PsArgs) -> Result<()> {
    context.engine.recover_all()?;
    context.engine.wake_senders()?;
    let mut containers: Vec<Container> = context.engine.containers()?.into_iter().map(|doc| doc.value).collect();
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    if args.running && !args.all {
        containers.retain(|container| container.phase.run().is_some());
    }
    if context.style == Style::Json {
        let list: Result<Vec<Value>> = containers.iter().map(|container| container_json(context, container)).collect();
        output::json(&Value::Array(list?));
        return Ok(());
    }
    let now = context.engine.now();
    let heading = ["NAME", "PHASE", "IMAGE", "CURRENT", "GENERATIONS", "LAST EXIT", "CONDITIONS"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for container in &containers {
        let queue = container.queue.as_ref();
        let conditions = context.engine.conditions_of(container)?;
        let conditions: Vec<String> = conditions.iter().map(|c| format!("{:?}", c.kind)).collect();
        let last_exit = queue.and_then(|queue| queue.generations.last()).map(|g| table::age(g.exited_at, now));
        rows.push(vec![
            container.name.to_string(),
            phase_name(container).to_owned(),
            container.image_name.clone(),
            queue.and_then(|queue| queue.current).map_or_else(|| "-".to_owned(), |seq| seq.to_string()),
            fill_of(container),
            last_exit.unwrap_or_else(|| "-".to_owned()),
            conditions.join(", "),
        ]);
    }
    output::text(&table::render(&rows));
    Ok(())
}

/// Returns how full a container's queue is; a salvage that does not count is named beside it.
fn fill_of(container: &Container) -> String {
    let queue = container.queue.as_ref();
    let counted = format!("{}/{}", queue.map_or(0, Queue::counted), container.policy.keep);
    match queue.and_then(generations::salvages) {
        Some(salvages) => format!("{counted} + {salvages}"),
        None => counted,
    }
}

/// Returns a container as JSON, as `inspect --json` shows it.
///
/// # Errors
/// Where the records cannot be read.
pub fn container_json(context: &Context, container: &Container) -> Result<Value> {
    let run = match &container.phase {
        Phase::Running { run, pid, started_at } => Some((run, Some(*pid), Some(*started_at))),
        Phase::Starting { run } | Phase::Exiting { run, .. } => Some((run, None, None)),
        Phase::Created | Phase::Dormant => None,
    };
    let run = run.map(|(run, pid, started_at)| {
        json!({
            "id": run.id,
            "pid": pid,
            "merged": context.engine.root.run_dir(&run.id).join("merged"),
            "started_at": started_at,
            "mode": run.mode,
            "origin": run.origin,
            "epoch": run.epoch,
            "mount_options": run.mount_options,
            "layers": run.layers,
        })
    });
    let queue = container.queue.as_ref();
    let unsent = context.engine.unsent(container)?.map(|unsent| {
        json!({
            "remote": unsent.remote,
            "generations": unsent.generations.iter().map(|generation| generation.seq).collect::<Vec<_>>(),
            "bytes": unsent.bytes(),
            "gone": unsent.gone,
            "since": unsent.generations.first().map(|generation| generation.exited_at),
            "tried_at": unsent.tracking.tried_at,
            "failures": unsent.tracking.failures,
            "error": unsent.tracking.error,
        })
    });
    Ok(json!({
        "name": container.name,
        "id": container.id,
        "phase": phase_name(container),
        "image": container.image,
        "image_name": container.image_name,
        "current": queue.and_then(|queue| queue.current),
        "generations": queue.map_or(0, |queue| queue.generations.len()),
        "conditions": context.engine.conditions_of(container)?,
        "not_sent": unsent,
        "run": run,
        "epoch": container.epoch,
        "created_at": container.created_at,
        "policy": container.policy,
        "spec": container.spec,
        "settings_left_out": container.withheld.in_words(),
    }))
}

/// Shows everything about a container.
///
/// # Errors
/// Where it is unknown.
pub fn inspect(context: &Context, args: &NameArg) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let container = context.engine.seen(&name)?.value;
    if context.style == Style::Json {
        output::json(&container_json(context, &container)?);
        return Ok(());
    }
    let value = container_json(context, &container)?;
    let field = |key: &str| value.get(key).map_or_else(String::new, plain);
    for key in ["name", "id", "phase", "image", "image_name", "current", "generations", "epoch", "created_at"] {
        output::line(format!("{key:>12}: {}", field(key)));
    }
    let bytes = context.engine.bytes_of(&container)?;
    output::line(format!("{:>12}: {} of layers, besides the image", "space", table::bytes(bytes)));
    for group in ["run", "policy", "spec"] {
        let Some(Value::Object(fields)) = value.get(group) else { continue };
        output::line(format!("{group:>12}:"));
        for (key, field) in fields {
            output::line(format!("{:>14}{key}: {}", "", plain(field)));
        }
    }
    for condition in context.engine.conditions_of(&container)? {
        output::line(format!("   condition: {:?} since {}: {}", condition.kind, condition.since, condition.message));
    }
    if let Some(generation) = container.queue.as_ref().and_then(Queue::current) {
        output::line(format!("  generation: {}", generations::generation_json(context, generation)?));
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// Shows a container's event log.
///
/// # Errors
/// Where it is unknown.
pub fn events(context: &Context, args: &NameArg) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let entries = context.engine.events(&context.engine.id_of(&name)?)?;
    if context.style == Style::Json {
        let list: Vec<Value> = entries.iter().map(|entry| json!(entry)).collect();
        output::json(&Value::Array(list));
        return Ok(());
    }
    let heading = ["NUMBER", "WHEN", "WHO", "WHAT", "FROM", "TO", "PARTICULARS"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for entry in entries {
        rows.push(vec![
            entry.number.to_string(),
            table::instant(entry.at),
            entry.by,
            entry.action,
            entry.from.map_or_else(|| "-".to_owned(), |seq| seq.to_string()),
            entry.to.map_or_else(|| "-".to_owned(), |seq| seq.to_string()),
            entry.detail,
        ]);
    }
    output::text(&table::render(&rows));
    Ok(())
}
