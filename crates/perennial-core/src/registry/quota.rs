//! How much a repository may hold.

use super::fault::{Code, Fault};
use alloc::format;

/// The bound on each repository's bytes: blobs, each once, and manifests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota(pub Option<u64>);

impl Quota {
    /// Decides whether a repository that holds `held` bytes may take `more`. What takes nothing is let through even where
    /// the quota was lowered below what is held.
    ///
    /// # Errors
    /// `DENIED`.
    pub fn check(self, held: u64, more: u64) -> Result<(), Fault> {
        match self.0 {
            Some(max) if more > 0 && held.saturating_add(more) > max => {
                let message = format!("the repository holds {held} of {max} bytes; {more} more are too many");
                Err(Fault::new(Code::Denied, message))
            }
            Some(_) | None => Ok(()),
        }
    }
}
