//! What uploads that are not finished take: they count against a repository's quota as what it holds does, and there is a
//! bound on how many there are.

use super::fault::{Code, Fault};
use super::name::UploadId;
use super::quota::Quota;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString as _};

/// Most uploads at once.
pub const UPLOADS_MAX: usize = 10_000;
/// Most uploads into one repository at once.
pub const UPLOADS_PER_REPOSITORY_MAX: usize = 1000;

/// The uploads that are not finished, with the bytes that each has, or has been promised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Staged {
    uploads: BTreeMap<UploadId, (String, u64)>,
    repositories: BTreeMap<String, Sum>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    uploads: usize,
    bytes: u64,
}

impl Staged {
    /// Counts one more upload.
    ///
    /// # Errors
    /// `TOOMANYREQUESTS` where there are too many.
    pub fn begin(&mut self, id: &UploadId, repository: &str) -> Result<(), Fault> {
        let here = self.repositories.get(repository).map_or(0, |sum| sum.uploads);
        if self.uploads.len() >= UPLOADS_MAX || here >= UPLOADS_PER_REPOSITORY_MAX {
            let message = format!("{here} uploads into {repository} are not finished: finish or cancel some");
            return Err(Fault::new(Code::TooManyRequests, message));
        }
        self.found(id, repository, 0);
        Ok(())
    }

    /// Counts an upload that is there already.
    pub fn found(&mut self, id: &UploadId, repository: &str, bytes: u64) {
        self.end(id);
        self.uploads.insert(id.clone(), (repository.to_string(), bytes));
        let sum = self.repositories.entry(repository.to_string()).or_default();
        sum.uploads = sum.uploads.saturating_add(1);
        sum.bytes = sum.bytes.saturating_add(bytes);
    }

    /// Promises an upload room for `bytes` bytes in a repository that holds `held` bytes.
    ///
    /// # Errors
    /// `DENIED` where the quota has no room for them; nothing is changed then.
    pub fn hold(&mut self, id: &UploadId, bytes: u64, held: u64, quota: Quota) -> Result<(), Fault> {
        let Some((repository, own)) = self.uploads.get(id) else { return Ok(()) };
        let all = self.repositories.get(repository).map_or(0, |sum| sum.bytes);
        quota.check(held.saturating_add(all.saturating_sub(*own)), bytes)?;
        self.set(id, bytes);
        Ok(())
    }

    /// Counts an upload with this many bytes from now on.
    pub fn set(&mut self, id: &UploadId, bytes: u64) {
        let Some((repository, own)) = self.uploads.get_mut(id) else { return };
        if let Some(sum) = self.repositories.get_mut(repository) {
            sum.bytes = sum.bytes.saturating_sub(*own).saturating_add(bytes);
        }
        *own = bytes;
    }

    /// Counts an upload no more.
    pub fn end(&mut self, id: &UploadId) {
        let Some((repository, bytes)) = self.uploads.remove(id) else { return };
        let Some(sum) = self.repositories.get_mut(&repository) else { return };
        sum.uploads = sum.uploads.saturating_sub(1);
        sum.bytes = sum.bytes.saturating_sub(bytes);
        if sum.uploads == 0 {
            self.repositories.remove(&repository);
        }
    }
}
