//! What a request's path means.
//!
//! A repository's name may hold the words that the paths are made of (`a/blobs/b` is one), so a path is read from its end.

use super::fault::{Code, Fault};
use super::name::{BlobDigest, Reference, Repository, UploadId};
use super::query::{Plus, decode};
use alloc::string::ToString as _;
use alloc::vec::Vec;

/// What a path below `/v2/` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: whether this is a registry.
    Base,
    /// `/v2/<name>/blobs/<digest>`.
    Blob(Repository, BlobDigest),
    /// `/v2/<name>/blobs/uploads/`.
    Uploads(Repository),
    /// `/v2/<name>/blobs/uploads/<id>`.
    Upload(Repository, UploadId),
    /// `/v2/<name>/manifests/<reference>`.
    Manifest(Repository, Reference),
    /// `/v2/<name>/tags/list`.
    Tags(Repository),
    /// `/v2/<name>/referrers/<digest>`.
    Referrers(Repository, BlobDigest),
}

impl Route {
    /// Parses a path; nothing where it is not below `/v2/`.
    ///
    /// # Errors
    /// A [`Fault`] with the code that fits the part that is malformed.
    pub fn parse(path: &str) -> Result<Option<Self>, Fault> {
        let Some(rest) = path.strip_prefix("/v2") else { return Ok(None) };
        if rest.is_empty() || rest == "/" {
            return Ok(Some(Self::Base));
        }
        let Some(rest) = rest.strip_prefix('/') else { return Ok(None) };
        let rest = decode(rest, Plus::IsPlus)
            .ok_or_else(|| Fault::new(Code::NameInvalid, "the path is not encoded as it should be"))?;
        let mut parts: Vec<&str> = rest.split('/').collect();
        let last = parts.pop().unwrap_or_default();
        let kind = parts.pop().unwrap_or_default();
        let name = || Repository::parse(&parts.join("/"));
        match (kind, last) {
            ("manifests", reference) => Ok(Some(Self::Manifest(name()?, Reference::parse(reference)?))),
            ("tags", "list") => Ok(Some(Self::Tags(name()?))),
            ("referrers", digest) => Ok(Some(Self::Referrers(name()?, BlobDigest::parse(digest)?))),
            ("blobs", "uploads") => Ok(Some(Self::Uploads(name()?))),
            ("blobs", digest) => Ok(Some(Self::Blob(name()?, BlobDigest::parse(digest)?))),
            ("uploads", id) if parts.last() == Some(&"blobs") => {
                parts.pop();
                Self::upload(&parts.join("/"), id).map(Some)
            }
            (_, _) => Ok(None),
        }
    }

    fn upload(name: &str, id: &str) -> Result<Self, Fault> {
        let name = Repository::parse(name)?;
        if id.is_empty() {
            return Ok(Self::Uploads(name));
        }
        let unknown = || Fault::new(Code::BlobUploadUnknown, "there is no upload of this name".to_string());
        Ok(Self::Upload(name, UploadId::parse(id).ok_or_else(unknown)?))
    }

    /// Returns the methods that a path takes, for `Allow`.
    #[must_use]
    pub fn methods(&self, is_read_only: bool) -> &'static str {
        match self {
            Self::Uploads(_) => {
                if is_read_only {
                    ""
                } else {
                    "POST"
                }
            }
            Self::Blob(..) if !is_read_only => "DELETE, GET, HEAD",
            Self::Manifest(..) if !is_read_only => "DELETE, GET, HEAD, PUT",
            Self::Upload(..) if !is_read_only => "DELETE, GET, HEAD, PATCH, PUT",
            Self::Base
            | Self::Tags(_)
            | Self::Referrers(..)
            | Self::Blob(..)
            | Self::Manifest(..)
            | Self::Upload(..) => "GET, HEAD",
        }
    }

    /// Returns the repository that the path is in.
    #[must_use]
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Base => None,
            Self::Blob(name, _)
            | Self::Uploads(name)
            | Self::Upload(name, _)
            | Self::Manifest(name, _)
            | Self::Tags(name)
            | Self::Referrers(name, _) => Some(name),
        }
    }
}
