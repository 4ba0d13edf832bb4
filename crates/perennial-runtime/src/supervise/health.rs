//! When a container counts as healthy: a pure count over the results of its checks.

use super::SessionEvent;
use perennial_core::spec::HealthCheck;
use std::time::Duration;

/// How a container is, as its checks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// No check, or none has ended yet.
    Unknown,
    /// The last check that counted succeeded.
    Healthy,
    /// As many checks in a row failed as the settings allow.
    Unhealthy,
}

impl Health {
    /// Returns the word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Counts results.
#[derive(Debug, Clone)]
pub struct HealthTracker {
    retries: u32,
    start_period: Duration,
    failures: u32,
    health: Health,
}

impl HealthTracker {
    /// Starts with nothing known.
    #[must_use]
    pub fn new(check: &HealthCheck) -> Self {
        Self {
            retries: check.retries.max(1),
            start_period: Duration::from_secs(u64::from(check.start_period_s)),
            failures: 0,
            health: Health::Unknown,
        }
    }

    /// Returns how it is.
    #[must_use]
    pub const fn health(&self) -> Health {
        self.health
    }

    /// Counts a result that came `age` after the start; returns the change it makes, if any.
    /// A failure within the start period does not count until a first success has shown that the start is over.
    pub fn observe(&mut self, succeeded: bool, age: Duration) -> Option<SessionEvent> {
        if succeeded {
            self.failures = 0;
            let was = std::mem::replace(&mut self.health, Health::Healthy);
            return (was != Health::Healthy).then_some(SessionEvent::Healthy);
        }
        if self.health == Health::Unknown && age < self.start_period {
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.retries || self.health == Health::Unhealthy {
            return None;
        }
        self.health = Health::Unhealthy;
        Some(SessionEvent::Unhealthy { failures: self.failures })
    }
}
