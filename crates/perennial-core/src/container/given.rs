//! What one run was started with, beyond the container's settings: whoever attaches to it has to know its streams, and a
//! rollback starts it again as it was.

use super::Run;
use crate::spec::ContainerSpec;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// What a run was started with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// Command given for this run; the container's own where empty.
    pub command: Vec<String>,
    /// Whether its process has a terminal, by the container's settings or for this run.
    pub tty: bool,
    /// Whether its standard input is kept open, by the container's settings or for this run.
    pub interactive: bool,
}

impl Run {
    /// Returns what it was started with. A record of an older release does not say so; its run is taken for one that was
    /// given nothing beyond the settings.
    #[must_use]
    pub fn given(&self, spec: &ContainerSpec) -> Given {
        self.given.clone().unwrap_or_else(|| Given {
            command: Vec::new(),
            tty: spec.tty,
            interactive: spec.interactive,
        })
    }

    /// Tells whether it can be started again as it was: not where an older release did not keep its command.
    #[must_use]
    pub fn can_be_repeated(&self) -> bool {
        self.given.is_some() || !self.command_overridden
    }
}
