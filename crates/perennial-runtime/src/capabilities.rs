//! Capability sets of a process as the OCI specification wants them.
//!
//! Root holds its set from the start. Another user holds only what its owner added by name, as ambient capabilities;
//! the rest is a bound for what set-user-ID programs may gain. Nothing is inheritable for root (CVE-2022-24769).

use perennial_core::process::{Capability, Process, parse_bounding};
use serde_json::{Value, json};

/// Returns the `capabilities` object of `process`.
#[must_use]
pub fn object_of(process: &Process) -> Value {
    let names = |set: &[Capability]| set.iter().map(|capability| capability.name()).collect::<Vec<_>>();
    let bounding = names(&process.capabilities);
    let (held, ambient) = match process.user.uid {
        0 => (bounding.clone(), Vec::new()),
        _ => (names(&process.capabilities_added), names(&process.capabilities_added)),
    };
    json!({
        "bounding": bounding,
        "effective": held,
        "permitted": held,
        "inheritable": ambient,
        "ambient": ambient,
    })
}

/// Returns what this host can give at all: the bounding set of this process. Where the kernel does not tell, that is
/// taken to be everything, and the runtime finds out.
#[must_use]
pub fn of_host() -> Vec<Capability> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_bounding(&status).unwrap_or_else(Capability::all)
}
