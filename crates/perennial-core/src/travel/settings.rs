//! Which settings of a container from elsewhere reach into this host. They are not taken unasked: whoever can write to
//! the registry could otherwise have a program run here as root. They are kept, though, and go along when the container is
//! sent on.

use super::clean;
use crate::spec::{ContainerSpec, Volume};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Settings that reach into the host and are not taken here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Withheld {
    /// Host directories and files.
    pub volumes: Vec<Volume>,
    /// Capabilities added to the default set.
    pub cap_add: Vec<String>,
    /// Path or name of the OCI runtime.
    pub runtime: Option<String>,
}

impl Withheld {
    /// Takes the settings away that reach into the host.
    #[must_use]
    pub fn take(spec: &mut ContainerSpec) -> Self {
        Self {
            volumes: core::mem::take(&mut spec.volumes),
            cap_add: core::mem::take(&mut spec.cap_add),
            runtime: spec.runtime.take(),
        }
    }

    /// Puts them back. What was chosen here since stays.
    pub fn restore(self, spec: &mut ContainerSpec) {
        if spec.volumes.is_empty() {
            spec.volumes = self.volumes;
        }
        if spec.cap_add.is_empty() {
            spec.cap_add = self.cap_add;
        }
        spec.runtime = spec.runtime.take().or(self.runtime);
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns them in words, without what would steer the terminal they are shown on.
    #[must_use]
    pub fn in_words(&self) -> Vec<String> {
        let volumes = self.volumes.iter().map(|volume| format!("volume {}:{}", volume.source, volume.target));
        let capabilities = self.cap_add.iter().map(|capability| format!("capability {capability}"));
        let runtime = self.runtime.iter().map(|runtime| format!("runtime {runtime}"));
        let words = volumes.chain(capabilities).chain(runtime);
        words.map(|word| clean(&word)).collect()
    }
}
