//! Manifests by tag, read and written; a tag is changed only where it is as it was expected to be.

use super::{Repository, RepositoryError};
use crate::digest;
use perennial_core::id::Digest;
use perennial_core::travel::artifact::{MANIFEST, MANIFEST_BYTES_MAX};
use reqwest::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use std::sync::atomic::Ordering;

/// A manifest that a tag leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// Its digest, which was compared with its bytes.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// By what the registry tells whether it was changed, where it says so.
    pub etag: Option<String>,
}

/// What a tag is expected to lead to before it is changed.
#[derive(Debug, Clone)]
pub enum Expected<'a> {
    /// Nothing.
    Nothing,
    /// This.
    This(&'a Tagged),
    /// Whatever there is is replaced, as other tools do.
    Anything,
}

impl Repository {
    /// Returns the manifest that a tag or a digest leads to; `None` where there is none.
    ///
    /// # Errors
    /// [`RepositoryError`].
    pub fn manifest(&self, tag: &str) -> Result<Option<Tagged>, RepositoryError> {
        self.runtime.block_on(self.retried(async || self.get(tag).await))
    }

    async fn get(&self, tag: &str) -> Result<Option<Tagged>, RepositoryError> {
        let request = self.request(Method::GET, self.url(&format!("manifests/{tag}"))?);
        let mut response = self.send(request.header(ACCEPT, MANIFEST)).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let etag = response.headers().get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| self.unreachable(source))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MANIFEST_BYTES_MAX {
                return Err(RepositoryError::Damaged {
                    repository: self.name(),
                    what: format!("a manifest for {tag}"),
                });
            }
        }
        self.counters.received.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
        let digest = digest::of_bytes(&bytes);
        if tag.starts_with("sha256:") && digest.as_str() != tag {
            return Err(RepositoryError::Damaged { repository: self.name(), what: format!("a manifest for {tag}") });
        }
        Ok(Some(Tagged { digest, bytes, etag }))
    }

    /// Has a tag lead to a manifest. Where the registry can compare, it does so; elsewhere the tag is read before and
    /// after, which shows most changes by others, but not one in the same instant.
    ///
    /// # Errors
    /// [`RepositoryError::Changed`] where the tag is not as expected; [`RepositoryError`].
    pub fn put_manifest(&self, tag: &str, bytes: &[u8], expected: &Expected<'_>) -> Result<Digest, RepositoryError> {
        let digest = digest::of_bytes(bytes);
        if matches!(expected, Expected::Anything) {
            self.runtime.block_on(self.retried(async || self.put(tag, bytes, None).await))?;
            return Ok(digest);
        }
        let is_ours = |now: &Option<Tagged>| now.as_ref().is_some_and(|now| now.digest == digest);
        let before = self.manifest(tag)?;
        if is_ours(&before) {
            // An earlier try got through, and its answer did not.
            return Ok(digest);
        }
        let is_expected = match (expected, &before) {
            (Expected::Nothing, None) => true,
            (Expected::This(expected), Some(before)) => expected.digest == before.digest,
            (Expected::Nothing | Expected::Anything, _) | (Expected::This(_), None) => false,
        };
        if !is_expected {
            return Err(RepositoryError::Changed { repository: self.name() });
        }
        let put = self.runtime.block_on(self.retried(async || self.put(tag, bytes, Some(before.as_ref())).await));
        match put {
            // The answer to a try that got through may be lost, and the next is refused.
            Ok(()) | Err(RepositoryError::Changed { .. }) => {}
            Err(error) => return Err(error),
        }
        if is_ours(&self.manifest(tag)?) {
            Ok(digest)
        } else {
            Err(RepositoryError::Changed { repository: self.name() })
        }
    }

    /// `before` is what the tag must lead to still, where that matters.
    async fn put(&self, tag: &str, bytes: &[u8], before: Option<Option<&Tagged>>) -> Result<(), RepositoryError> {
        let mut request = self.request(Method::PUT, self.url(&format!("manifests/{tag}"))?);
        if let Some(before) = before.filter(|_| self.has_conditional_tags) {
            request = match before {
                None => request.header(IF_NONE_MATCH, "*"),
                Some(before) => {
                    let etag = before.etag.clone().unwrap_or_else(|| format!("\"{}\"", before.digest));
                    request.header(IF_MATCH, etag)
                }
            };
        }
        let response = self.send(request.header(CONTENT_TYPE, MANIFEST).body(bytes.to_vec())).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(self.refusal(response).await);
        }
        self.counters.sent.fetch_add(u64::try_from(bytes.len()).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }
}
