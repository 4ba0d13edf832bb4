//! `gc` and `df`.

use super::Context;
use crate::cli::args::GcArgs;
use crate::cli::output::{self, Style};
use crate::cli::table;
use crate::engine::collect::Held;
use crate::engine::usage::DiskUse;
use crate::failure::{Code, Failure, Result};
use perennial_core::collect::{CollectPlan, ObjectCount};
use serde_json::{Value, json};

/// Recovers what dead processes left and frees what nothing needs.
///
/// # Errors
/// Where the records cannot be read, or something resists; everything else is done then.
pub fn gc(context: &Context, args: &GcArgs) -> Result<()> {
    let held = if args.held { Held::Goes } else { Held::Stays };
    if args.dry_run {
        let plan = context.engine.plan_collection(held)?;
        show(context, &plan, false);
        return Ok(());
    }
    let mut done = context.engine.collect(held)?;
    show(context, &done.plan, true);
    let count = done.failures.len();
    for failure in done.failures.drain(1.min(count)..) {
        output::remark(failure.one_line());
    }
    match done.failures.pop() {
        Some(failure) => Err(failure.while_doing("not everything could be freed")),
        None => Ok(()),
    }
}

fn show(context: &Context, plan: &CollectPlan, is_done: bool) {
    if context.style == Style::Json {
        output::json(&json!({"plan": plan, "done": is_done}));
        return;
    }
    let verb = |done: &'static str, planned: &'static str| if is_done { done } else { planned };
    for lost in &plan.recover {
        let what = verb("ended and saved", "would end and save");
        output::line(format!("{what} run {} of {}, whose supervisor is gone", lost.run, lost.container));
    }
    for target in &plan.views {
        output::line(format!("{} the view on {target}, which is not mounted any more", verb("forgot", "would forget")));
    }
    let freed = verb("freed", "would free");
    for layer in &plan.layers {
        output::line(format!("{freed} layer {} ({})", layer.id, table::bytes(layer.bytes)));
    }
    for run in &plan.runs {
        output::line(format!("{freed} what was left of run {run}"));
    }
    for id in &plan.logs {
        output::line(format!("{freed} the logs of container {id}, which is gone"));
    }
    for name in &plan.staging {
        output::line(format!("{freed} staging/{name}, which was being made when its maker died"));
    }
    for name in &plan.trash {
        output::line(format!("{freed} trash/{name}"));
    }
    for id in &plan.sealed_trees {
        output::line(format!("{freed} the tree of layer {id}, which is sealed"));
    }
    if plan.objects.count > 0 {
        let ObjectCount { count, bytes } = plan.objects;
        output::line(format!("{freed} {count} contents that no layer has ({})", table::bytes(bytes)));
    }
    if plan.packs.count > 0 {
        let ObjectCount { count, bytes } = plan.packs;
        let what = verb("freed", "would free");
        output::line(format!("{what} in {count} packs ({}) what no layer has", table::bytes(bytes)));
    }
    for run in &plan.set_aside {
        let upper = context.engine.root.run_dir(run).join("upper");
        output::line(format!("kept the changes of run {run}, which belong to no container: {}", upper.display()));
    }
    if plan.is_empty() {
        output::line("nothing to free");
    }
}

/// Shows what takes space.
///
/// # Errors
/// Where the records cannot be read.
pub fn df(context: &Context) -> Result<()> {
    let disk = context.engine.disk_use()?;
    match context.style {
        Style::Json => output::json(&as_json(context, &disk)?),
        Style::Text => output::text(&as_table(context, &disk)?),
    }
    Ok(())
}

fn as_json(context: &Context, disk: &DiskUse) -> Result<Value> {
    let mut images = Vec::new();
    for image in &disk.usage.images {
        let name = context.engine.name_of_image(&image.of)?;
        images.push(json!({
            "image": image.of, "name": name, "bytes": image.bytes, "shared_bytes": image.shared_bytes,
            "layers": image.layers,
        }));
    }
    let containers: Vec<Value> = disk
        .usage
        .containers
        .iter()
        .map(|share| {
            json!({
                "container": share.of, "bytes": share.bytes, "shared_bytes": share.shared_bytes,
                "layers": share.layers,
            })
        })
        .collect();
    let runs: Vec<Value> =
        disk.runs.iter().map(|(name, run, bytes)| json!({"container": name, "run": run, "bytes": bytes})).collect();
    Ok(json!({
        "images": images,
        "containers": containers,
        "runs": runs,
        "images_bytes": disk.usage.images_bytes,
        "containers_bytes": disk.usage.containers_bytes,
        "other_bytes": disk.usage.other_bytes,
        "objects_bytes": disk.stored.objects_bytes,
        "packs_bytes": disk.stored.packs_bytes,
        "metadata_bytes": disk.stored.metadata_bytes,
        "trash_bytes": disk.trash_bytes,
        "total_bytes": total(disk)?,
        "free_bytes": disk.space.free_bytes,
        "file_system_bytes": disk.space.total_bytes,
    }))
}

fn total(disk: &DiskUse) -> Result<u64> {
    let usage = &disk.usage;
    let runs = disk.runs.iter().filter_map(|(_, _, bytes)| *bytes);
    let packs = disk.stored.packs_bytes;
    let parts = [usage.images_bytes, usage.containers_bytes, usage.other_bytes, packs, disk.trash_bytes];
    parts
        .into_iter()
        .chain(runs)
        .try_fold(0_u64, u64::checked_add)
        .ok_or_else(|| Failure::new(Code::Damaged, "the sizes in the records are not possible"))
}

fn as_table(context: &Context, disk: &DiskUse) -> Result<String> {
    let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["WHAT", "SIZE", "SHARED", "LAYERS"])];
    for image in &disk.usage.images {
        let name = context.engine.name_of_image(&image.of)?;
        let (bytes, shared) = (table::bytes(image.bytes), table::bytes(image.shared_bytes));
        rows.push(row([&format!("image {name}"), &bytes, &shared, &image.layers.to_string()]));
    }
    for container in &disk.usage.containers {
        let (bytes, shared) = (table::bytes(container.bytes), table::bytes(container.shared_bytes));
        rows.push(row([&format!("container {}", container.of), &bytes, &shared, &container.layers.to_string()]));
    }
    for (name, _, bytes) in &disk.runs {
        let bytes = bytes.map_or_else(|| "changing".to_owned(), table::bytes);
        rows.push(row([&format!("present run of {name}"), &bytes, "-", "-"]));
    }
    if disk.stored.packs_bytes > 0 {
        rows.push(row(["packs", &table::bytes(disk.stored.packs_bytes), "-", "-"]));
    }
    rows.push(row(["trash", &table::bytes(disk.trash_bytes), "-", "-"]));
    rows.push(row(["nothing names it", &table::bytes(disk.usage.other_bytes), "-", "-"]));
    let (all, free) = (table::bytes(total(disk)?), table::bytes(disk.space.free_bytes));
    let of = table::bytes(disk.space.total_bytes);
    let stored = &disk.stored;
    let [objects, packs, metadata] =
        [stored.objects_bytes, stored.packs_bytes, stored.metadata_bytes].map(table::bytes);
    Ok(format!(
        "{}{all} in all, each layer counted once; {free} of {of} are free\n\
         on disk, sealed layers are {objects} of contents, {packs} of packs and {metadata} of metadata\n",
        table::render(&rows)
    ))
}
