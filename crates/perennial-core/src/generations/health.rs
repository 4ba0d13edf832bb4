//! What a run shows about the health of states (rows A22, A-Q12).

use super::{Generation, Health, Kind};
use crate::container::Exit;
use crate::time::Time;
use alloc::format;
use alloc::string::String;

/// What was observed of a run that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFacts {
    /// When its process began, where it did.
    pub started_at: Option<Time>,
    /// When it ended.
    pub ended_at: Time,
    /// Exit code, 128 + signal for a signal.
    pub code: i32,
    /// Whether somebody asked it to stop.
    pub was_stopped: bool,
    /// Whether the kernel killed it for want of memory.
    pub was_out_of_memory: bool,
    /// Result of the last health check, where one is configured and ran.
    pub last_check_passed: Option<bool>,
}

/// Judges a run: the exit that is recorded for it.
///
/// A run that stayed up at least `good_after_s` with nothing against it proves its origin good; with a passing health
/// check it is good itself. A run that failed early, ran out of memory or ended unhealthy is suspect.
#[must_use]
pub fn judge(facts: &RunFacts, good_after_s: u32) -> Exit {
    let good_after_ns = u64::from(good_after_s).saturating_mul(1_000_000_000);
    let stayed_up = facts.started_at.is_some_and(|started_at| facts.ended_at.nanos_since(started_at) >= good_after_ns);
    let failed_early = facts.code != 0 && !facts.was_stopped && !stayed_up;
    let is_unhealthy = facts.last_check_passed == Some(false);
    let health = if facts.was_out_of_memory || is_unhealthy || failed_early {
        Health::Suspect
    } else if stayed_up && facts.last_check_passed == Some(true) {
        Health::Good
    } else {
        Health::Unknown
    };
    let proves_origin = stayed_up && health != Health::Suspect;
    let clean = (facts.code == 0 || facts.was_stopped) && !facts.was_out_of_memory;
    let note = facts.was_out_of_memory.then(|| String::from("ended by the kernel: out of memory"));
    Exit { at: facts.ended_at, code: Some(facts.code), kind: Kind::Exit, health, clean, proves_origin, note }
}

/// The exit recorded for a run whose end nobody saw (A28).
#[must_use]
pub fn salvage(found_at: Time, reason: &str) -> Exit {
    Exit {
        at: found_at,
        code: None,
        kind: Kind::Salvage,
        health: Health::Suspect,
        clean: false,
        proves_origin: false,
        note: Some(String::from(reason)),
    }
}

/// The exit of a run that was stopped because of a rollback: the state the owner turns away from is kept as a salvage,
/// outside the capacity, and is evidence for nothing (A-Q7).
#[must_use]
pub fn set_aside(exit: Exit) -> Exit {
    let note = exit.note.or_else(|| Some(String::from("stopped for a rollback")));
    Exit { kind: Kind::Salvage, health: Health::Suspect, clean: false, proves_origin: false, note, ..exit }
}

/// Notes with a generation what a drill showed: one that passed is good and verified, one that failed is suspect. What is
/// damaged stays so, whatever ran on it.
pub fn drilled(generation: &mut Generation, passed: bool, because: &str, at: Time) {
    if passed {
        generation.verified_at = Some(at);
    }
    if generation.health != Health::Damaged {
        generation.health = if passed { Health::Good } else { Health::Suspect };
    }
    if !passed {
        generation.note = Some(format!("drill failed: {because}"));
    }
}
