//! What a run shows about the health of states (rows A22, A-Q12).

use super::{Health, Kind};
use crate::container::Exit;
use crate::time::Time;
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
    let up_ns = facts.started_at.map_or(0, |started_at| facts.ended_at.nanos_since(started_at));
    let stayed_up = up_ns >= u64::from(good_after_s).saturating_mul(1_000_000_000);
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
    let note = facts.was_out_of_memory.then(|| String::from("ended by the kernel: out of memory"));
    Exit { at: facts.ended_at, code: Some(facts.code), kind: Kind::Exit, health, proves_origin, note }
}

/// The exit recorded for a run whose end nobody saw (A28).
#[must_use]
pub fn salvage(found_at: Time, reason: &str) -> Exit {
    Exit {
        at: found_at,
        code: None,
        kind: Kind::Salvage,
        health: Health::Suspect,
        proves_origin: false,
        note: Some(String::from(reason)),
    }
}
