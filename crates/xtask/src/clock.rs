//! The one place of this crate where time is read or waited for.

use std::time::{Duration, Instant};

/// Returns the present instant of the monotonic clock.
#[expect(clippy::disallowed_methods, reason = "a chore measures real time; nothing here is simulated")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns what `work` returns, and how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = now();
    let result = work();
    (result, begin.elapsed())
}

/// Waits.
#[expect(clippy::disallowed_methods, reason = "a benchmark waits for real time; nothing here is simulated")]
pub(crate) fn wait(duration: Duration) {
    std::thread::sleep(duration);
}
