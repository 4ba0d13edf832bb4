//! Which settings of a container from elsewhere reach into this host. They are not taken unasked: whoever can write to
//! the registry could otherwise have a program run here as root.

use crate::spec::ContainerSpec;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Takes the settings away that reach into the host, and returns them in words.
pub fn disarm(spec: &mut ContainerSpec) -> Vec<String> {
    let mut taken = Vec::new();
    for volume in core::mem::take(&mut spec.volumes) {
        taken.push(format!("volume {}:{}", volume.source, volume.target));
    }
    for capability in core::mem::take(&mut spec.cap_add) {
        taken.push(format!("capability {capability}"));
    }
    if let Some(runtime) = spec.runtime.take() {
        taken.push(format!("runtime {runtime}"));
    }
    taken
}
