//! `rollback`.

use super::{Context, reference, run};
use crate::cli::args::{RollbackArgs, TargetArgs};
use crate::cli::output::{self, Style};
use crate::engine::Engine;
use crate::engine::history::Target;
use crate::failure::{Code, Failure, Result};
use perennial_core::container::{Container, Given, Phase, StartMode};
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

/// Rolls a container back. One that runs is stopped and its exit saved first, and it is started again after, as the run
/// was that was stopped (A21).
///
/// # Errors
/// Where the target means no whole generation or the run could not be started again as it was; nothing has changed then,
/// and what ran still runs. Also where it is rolled back but could not be started; that is said, and what was done shown.
pub fn rollback(context: &Context, args: &RollbackArgs) -> Result<()> {
    let name = Engine::parse_name(&args.name)?;
    let target = target(&args.target)?;
    // Planned under the container's lock: without it a layer that is folded meanwhile would look lost.
    let (lock, before) = context.engine.locked(&name)?;
    let planned = context.engine.plan_rollback(&before.value, &target)?;
    drop(lock);
    let again = if args.no_start { None } else { start_of(&before.value)? };
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
    let started = again.map(|again| run::start_again(context, &name, again));
    show(context, &name, &done, Tense::Did { is_started: matches!(started, Some(Ok(()))) });
    match started {
        Some(Err(failure)) => Err(not_started(failure, &name, done.target)),
        Some(Ok(())) | None => Ok(()),
    }
}

/// Returns how the present run was started, where there is one.
fn start_of(container: &Container) -> Result<Option<(StartMode, Given)>> {
    let name = &container.name;
    match &container.phase {
        Phase::Running { run, .. } if run.can_be_repeated() => Ok(Some((run.mode, run.given(&container.spec)))),
        Phase::Running { .. } => {
            let message = format!("container {name} runs a command that an older release was given and did not keep");
            let hint =
                format!("`perennial rollback {name} --no-start` leaves it stopped; start it with its command then");
            Err(Failure::new(Code::Conflict, message).hint(hint))
        }
        Phase::Created | Phase::Starting { .. } | Phase::Exiting { .. } | Phase::Dormant => Ok(None),
    }
}

/// Says of a failed start that the rollback before it is done.
fn not_started(failure: Failure, name: &ContainerName, target: Seq) -> Failure {
    failure
        .while_doing(format!("container {name} is rolled back to generation {target}, but could not be started"))
        .hint(format!(
            "`perennial rollback {name} --undo` takes the rollback back; a start with the same command tries again"
        ))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tense {
    Would,
    Did { is_started: bool },
}

fn show(context: &Context, name: &ContainerName, plan: &RollbackPlan, tense: Tense) {
    let is_done = matches!(tense, Tense::Did { .. });
    if context.style == Style::Json {
        let started = tense == Tense::Did { is_started: true };
        output::json(&json!({"container": name, "plan": plan, "done": is_done, "started": started}));
        return;
    }
    let list = |seqs: &[Seq]| seqs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let verb = if is_done { "now starts" } else { "would start" };
    output::line(format!("{name} {verb} from generation {}", plan.target));
    if !plan.quarantine.is_empty() {
        output::line(format!("quarantined, not deleted: {}", list(&plan.quarantine)));
    }
    if !plan.release.is_empty() {
        output::line(format!("released from quarantine: {}", list(&plan.release)));
    }
    if is_done {
        output::line(format!("`perennial rollback {name} --undo` takes it back"));
    }
}
