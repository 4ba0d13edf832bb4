//! The one place that reads the clock and waits.

use perennial_core::time::Time;
use std::time::Duration;

/// Returns the present instant.
#[expect(clippy::disallowed_methods, reason = "this is the clock that everything else takes as an input")]
pub fn now() -> Time {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Time::from_unix_nanos(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
}

/// A point on the clock that cannot be set, for deadlines and measurements.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(std::time::Instant);

impl Stopwatch {
    /// Starts counting.
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else takes as an input")]
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Returns the time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Waits.
#[expect(clippy::disallowed_methods, reason = "this is the clock that everything else takes as an input")]
pub fn wait(duration: Duration) {
    std::thread::sleep(duration);
}
