//! The event log of a container: who did what, when, why, from which generation to which (row A39).

use crate::id::Seq;
use crate::time::Time;
use alloc::string::String;
use serde::{Deserialize, Serialize};

/// Entries kept for one container; older ones are dropped.
pub const ENTRIES_MAX: u64 = 1000;

/// One entry; its number counts from 1 in each container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Place in the log.
    pub number: u64,
    /// When.
    pub at: Time,
    /// Who, as `user(uid)`, or `perennial` for what the program did by itself.
    pub by: String,
    /// What: `create`, `start`, `exit`, `rollback`, …
    pub action: String,
    /// Particulars, for people.
    pub detail: String,
    /// Generation before, where one matters.
    pub from: Option<Seq>,
    /// Generation after, where one matters.
    pub to: Option<Seq>,
}
