//! Lines of a log, for whoever prints them.

use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What happens.
    Info,
    /// What somebody should look at.
    Warning,
    /// What did not work.
    Error,
}

impl Level {
    /// Returns its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One line: what happened, and its particulars.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// How much it matters.
    pub level: Level,
    /// What happened, in one word.
    pub event: &'a str,
    /// Particulars, in the order in which they are printed.
    pub fields: Vec<(&'a str, Value)>,
}

/// Where lines go.
#[derive(Clone)]
pub struct Log(Arc<dyn Fn(&Line<'_>) + Send + Sync>);

impl Log {
    /// Makes one that calls `print`.
    #[must_use]
    pub fn new(print: impl Fn(&Line<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(print))
    }

    /// Prints a line.
    pub(crate) fn line(&self, level: Level, event: &str, fields: Vec<(&str, Value)>) {
        (self.0)(&Line { level, event, fields });
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Log")
    }
}
