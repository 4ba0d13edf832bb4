//! The only place of this crate that reads a clock or waits for time to pass.

use perennial_core::time::Time;
use rustix::thread::NanosleepRelativeResult;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// Returns the time since an arbitrary start that never goes back; it does not count time asleep.
#[must_use]
pub fn monotonic() -> Duration {
    duration_of(clock_gettime(ClockId::Monotonic))
}

/// Returns the instant now, for display in logs.
#[must_use]
pub fn wall() -> Time {
    let now = clock_gettime(ClockId::Realtime);
    Time::from_unix_nanos(now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec))
}

/// Returns the identity that the kernel has given to the time since the machine was started: another one each time.
///
/// # Errors
/// If `/proc` does not have it.
pub fn boot() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Waits for `span`, or less if a signal comes in.
pub fn pause(span: Duration) {
    // An interrupted wait is a short wait; every caller looks at its condition again.
    match rustix::thread::nanosleep(&timespec_of(span)) {
        NanosleepRelativeResult::Ok | NanosleepRelativeResult::Interrupted(_) | NanosleepRelativeResult::Err(_) => {}
    }
}

/// Converts a span for system calls.
#[must_use]
pub fn timespec_of(span: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(span.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(span.subsec_nanos()) }
}

fn duration_of(time: Timespec) -> Duration {
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
