//! `rollback`.

use super::{Context, reference, run};
use crate::cli::args::{RollbackArgs, TargetArgs};
use crate::cli::output::{self, Style};
use crate::engine::Engine;
use crate::engine::history::Target;
use crate::failure::{Code, Result};
use perennial_core::container::Phase;
use perennial_core::generations::choose::Selector;
use perennial_core::generations::rollback::RollbackPlan;
use perennial_core::id::{ContainerName, Seq};
use serde_json::json;

fn target(args: &TargetArgs) -> Result<Target> {
    Ok(match (&args.to, &args.at, args.undo) {
        (Some(seq), _, _) => Target::To(reference::parse_seq(seq)?),
        (None, Some(at), _) => Target::To(reference::parse_at(at)?),
        (None, None, true) => Target::Undo,
        (None, None, false) => Target::To(Selector::LatestGood),
    })
}

/// Rolls a container back. One that runs is stopped and its exit saved first, and it is started again after (A21).
///
/// # Errors
/// Where the target means no whole generation; nothing has changed then, and what ran still runs.
pub fn rollback(context: &Context, args: &RollbackArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let target = target(&args.target)?;
    // Planned under the container's lock: without it a layer that is folded meanwhile would look lost.
    let (lock, before) = context.engine.locked(&name)?;
    let planned = context.engine.plan_rollback(&before.value, &target)?;
    drop(lock);
    let was_running = matches!(before.value.phase, Phase::Running { .. });
    if args.dry_run {
        show(context, &name, &planned, Tense::Would);
        return Ok(());
    }
    let mut target = target;
    if before.value.phase.run().is_some() {
        let held = context.engine.hold(&name, &target)?;
        // What was meant is settled now: the exit of the present run must not change what `--at` or `--latest-good`
        // means.
        if target != Target::Undo {
            target = Target::To(Selector::Seq(held));
        }
        match run::stop_and_wait(context, &name, None) {
            // It may have ended by itself meanwhile.
            Err(failure) if failure.code == Code::Conflict => {}
            other => drop(other?),
        }
    }
    let (done, _) = context.engine.rollback(&name, &target)?;
    if was_running && !args.no_start {
        run::start_detached(context, &name)?;
    }
    show(context, &name, &done, Tense::Did);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tense {
    Would,
    Did,
}

fn show(context: &Context, name: &ContainerName, plan: &RollbackPlan, tense: Tense) {
    if context.style == Style::Json {
        output::json(&json!({"container": name, "plan": plan, "done": tense == Tense::Did}));
        return;
    }
    let list = |seqs: &[Seq]| seqs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let verb = if tense == Tense::Did { "now starts" } else { "would start" };
    output::line(format!("{name} {verb} from generation {}", plan.target));
    if !plan.quarantine.is_empty() {
        output::line(format!("quarantined, not deleted: {}", list(&plan.quarantine)));
    }
    if !plan.release.is_empty() {
        output::line(format!("released from quarantine: {}", list(&plan.release)));
    }
    if tense == Tense::Did {
        output::line(format!("`perennial rollback {name} --undo` takes it back"));
    }
}
