//! Capabilities: names, the default set, and what adding and dropping makes of it.

use super::Process;
use alloc::borrow::ToOwned as _;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// A capability by its number in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Capability(u8);

/// Names by number (linux/capability.h).
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container may do unless its owner says otherwise: podman's set of eleven (containers.conf(5)).
const DEFAULT: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Why a text is not a capability, or a wish about capabilities contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseCapabilityError {
    /// No such capability.
    #[error("capability {text:?} is not known: use a name such as CAP_NET_ADMIN or NET_ADMIN, or ALL")]
    Unknown {
        /// The text as given.
        text: String,
    },
    /// Added and dropped at once.
    #[error("capability {name} is both added and dropped")]
    AddedAndDropped {
        /// Its name.
        name: String,
    },
    /// Added by name, and not among those the host can give.
    #[error("capability {name} cannot be added: this host does not have it in its bounding set")]
    NotOnHost {
        /// Its name.
        name: String,
    },
}

impl Capability {
    /// Returns its number in the kernel.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Returns its name, with `CAP_`.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.get(usize::from(self.0)).copied().unwrap_or("CAP_UNKNOWN")
    }

    /// Returns every capability known here, by number.
    #[must_use]
    pub fn all() -> Vec<Self> {
        (0..).take(NAMES.len()).map(Self).collect()
    }

    /// Returns the default set, by number.
    #[must_use]
    pub fn default_set() -> Vec<Self> {
        Self::all().into_iter().filter(|capability| DEFAULT.contains(&capability.name())).collect()
    }
}

impl FromStr for Capability {
    type Err = ParseCapabilityError;
    fn from_str(text: &str) -> Result<Self, ParseCapabilityError> {
        let upper = text.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let at = NAMES.iter().position(|name| name.strip_prefix("CAP_") == Some(short));
        at.and_then(|at| u8::try_from(at).ok())
            .map(Self)
            .ok_or_else(|| ParseCapabilityError::Unknown { text: text.to_owned() })
    }
}

impl TryFrom<String> for Capability {
    type Error = ParseCapabilityError;
    fn try_from(text: String) -> Result<Self, ParseCapabilityError> {
        text.parse()
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.name().to_string()
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the set a container gets, and those of it that were added by name, both sorted by number.
///
/// `ALL` dropped starts from nothing, `ALL` added from everything; single names then change that.
///
/// # Errors
/// If a name is unknown, or a name is both added and dropped.
pub fn capabilities(
    add: &[String],
    drop: &[String],
) -> Result<(Vec<Capability>, Vec<Capability>), ParseCapabilityError> {
    let (adds_all, added) = parse_list(add)?;
    let (drops_all, dropped) = parse_list(drop)?;
    if let Some(both) = added.iter().find(|capability| dropped.contains(capability)) {
        return Err(ParseCapabilityError::AddedAndDropped { name: both.to_string() });
    }
    if adds_all && drops_all {
        return Err(ParseCapabilityError::AddedAndDropped { name: "ALL".to_owned() });
    }
    let base = match (adds_all, drops_all) {
        (true, _) => Capability::all(),
        (false, true) => Vec::new(),
        (false, false) => Capability::default_set(),
    };
    let added = if adds_all { Capability::all() } else { added };
    let is_in = |capability: &Capability| {
        (base.contains(capability) || added.contains(capability)) && !dropped.contains(capability)
    };
    let set: Vec<_> = Capability::all().into_iter().filter(is_in).collect();
    let added = set.iter().copied().filter(|capability| added.contains(capability)).collect();
    Ok((set, added))
}

/// Takes from the set that `add` made of a process what this host cannot give: `ALL` is everything there is.
///
/// # Errors
/// If one was added by name that the host does not have.
pub fn bounded(mut process: Process, add: &[String], host: &[Capability]) -> Result<Process, ParseCapabilityError> {
    let (adds_all, named) = parse_list(add)?;
    if let Some(lacking) = named.iter().find(|capability| !host.contains(capability)) {
        return Err(ParseCapabilityError::NotOnHost { name: lacking.to_string() });
    }
    if adds_all {
        process.capabilities.retain(|capability| host.contains(capability));
        process.capabilities_added.retain(|capability| host.contains(capability));
    }
    Ok(process)
}

/// Reads the bounding set out of the text of `/proc/PID/status` (proc_pid_status(5)).
#[must_use]
pub fn parse_bounding(status: &str) -> Option<Vec<Capability>> {
    let text = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    let bits = u64::from_str_radix(text.trim(), 16).ok()?;
    let is_in =
        |capability: &Capability| bits.checked_shr(capability.number().into()).is_some_and(|bits| bits & 1 == 1);
    Some(Capability::all().into_iter().filter(is_in).collect())
}

fn parse_list(texts: &[String]) -> Result<(bool, Vec<Capability>), ParseCapabilityError> {
    let is_all = |text: &String| matches!(text.to_ascii_uppercase().as_str(), "ALL" | "CAP_ALL");
    let named = texts.iter().filter(|text| !is_all(text)).map(|text| text.parse()).collect::<Result<_, _>>()?;
    Ok((texts.iter().any(is_all), named))
}
