//! What can go wrong with a registry, told apart by what a person would do about it.

use crate::credentials::CredentialsError;
use crate::import::ImportError;
use crate::trust::{self, TrustError};
use oci_client::Reference;
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use std::io;
use std::path::PathBuf;

/// Why an image cannot be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The reference is not valid.
    #[error("image reference {text:?} is not valid: {reason}")]
    Reference {
        /// The text as given.
        text: String,
        /// Why.
        reason: String,
    },
    /// The login cannot be found.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Certificates cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// What the registry shows of itself is not signed by anybody who is trusted here.
    #[error("the certificate of registry {registry} is not trusted")]
    Untrusted {
        /// The registry.
        registry: String,
        /// What is wrong with it.
        source: Box<OciDistributionError>,
    },
    /// The registry wants a login, or another one.
    #[error("registry {registry} refuses access to {repository}")]
    Unauthorized {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// What it said.
        source: Box<OciDistributionError>,
    },
    /// The registry has no such image.
    #[error("image {reference} is not in the registry")]
    NotFound {
        /// The image.
        reference: String,
        /// What the registry said.
        source: Box<OciDistributionError>,
    },
    /// The registry has the image but not all of it.
    #[error("blob {digest} of image {reference} is not in the registry")]
    BlobMissing {
        /// The image.
        reference: String,
        /// The blob.
        digest: String,
        /// What the registry said.
        source: Box<OciDistributionError>,
    },
    /// The registry sent a document that does not have the digest asked for.
    #[error("registry {registry} sent something else than it was asked for")]
    Damaged {
        /// The registry.
        registry: String,
        /// Which digests.
        source: Box<OciDistributionError>,
    },
    /// The registry does not answer.
    #[error("registry {registry} cannot be reached")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What the network said.
        source: Box<OciDistributionError>,
    },
    /// A transfer broke too often.
    #[error("blob {digest} stopped after {bytes} of {bytes_total} bytes, {tries} times in a row")]
    Interrupted {
        /// The blob.
        digest: String,
        /// Bytes that have arrived, and are kept.
        bytes: u64,
        /// Its length.
        bytes_total: u64,
        /// Tries without progress.
        tries: u32,
        /// The last failure.
        source: Box<OciDistributionError>,
    },
    /// The registry answered something else than it should.
    #[error("registry {registry} gave an answer that is no use for {reference}")]
    Registry {
        /// The registry.
        registry: String,
        /// The image.
        reference: String,
        /// The answer.
        source: Box<OciDistributionError>,
    },
    /// Another process downloads the same blob and does not come to an end.
    #[error("blob {digest} is being downloaded by another process")]
    Busy {
        /// The blob.
        digest: String,
    },
    /// A staged blob cannot be written or read.
    #[error("staged blob {} cannot be used", path.display())]
    Staging {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The network client cannot be made.
    #[error("network client cannot be set up")]
    Client {
        /// Why.
        source: OciDistributionError,
    },
    /// The runtime cannot be made.
    #[error("network runtime cannot be set up")]
    Runtime(#[source] io::Error),
    /// What arrived cannot be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl PullError {
    /// Returns what a person could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unauthorized { .. } => Some(
                "log in with `podman login` or `docker login`, or give a name and password; the name may be wrong too",
            ),
            Self::NotFound { .. } => Some("check the name and the tag; some registries say so of private images too"),
            Self::Unreachable { .. } => {
                Some("check the host and port, and the network; a registry without TLS needs plain HTTP to be allowed")
            }
            Self::Untrusted { .. } => Some(trust::UNTRUSTED_HINT),
            Self::Trust(error) => Some(error.hint()),
            Self::BlobMissing { .. } => Some("the image is incomplete in the registry; push it again"),
            Self::Interrupted { .. } => Some("pull again: it goes on where it stopped"),
            Self::Damaged { .. } | Self::Import(ImportError::Digest { .. } | ImportError::Size { .. }) => {
                Some("the registry or something on the way changed it; pull again or from elsewhere")
            }
            Self::Busy { .. } => Some("wait for the other pull, or end it"),
            Self::Import(_)
            | Self::Reference { .. }
            | Self::Credentials(_)
            | Self::Registry { .. }
            | Self::Staging { .. }
            | Self::Client { .. }
            | Self::Runtime(_) => None,
        }
    }

    pub(super) fn from_client(error: OciDistributionError, reference: &Reference) -> Self {
        let registry = reference.resolve_registry().to_owned();
        let source = Box::new(error);
        match status(&source) {
            Status::Unauthorized => {
                Self::Unauthorized { registry, repository: reference.repository().to_owned(), source }
            }
            Status::NotFound => Self::NotFound { reference: reference.to_string(), source },
            Status::Untrusted => Self::Untrusted { registry, source },
            Status::Unreachable => Self::Unreachable { registry, source },
            Status::Damaged => Self::Damaged { registry, source },
            Status::Busy | Status::Other => Self::Registry { registry, reference: reference.to_string(), source },
        }
    }

    pub(super) fn from_blob(error: OciDistributionError, reference: &Reference, digest: &str) -> Self {
        Self::from_client(error, reference).about_blob(digest)
    }

    /// Says that it was a blob that is not there, not the image.
    pub(super) fn about_blob(self, digest: &str) -> Self {
        if let Self::NotFound { reference, source } = self {
            return Self::BlobMissing { reference, digest: digest.to_owned(), source };
        }
        self
    }
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Unauthorized,
    NotFound,
    /// No answer at all.
    Unreachable,
    /// An answer from whom nobody knows.
    Untrusted,
    /// Try again later.
    Busy,
    /// Not what was asked for.
    Damaged,
    Other,
}

/// Returns whether a failure may pass by itself.
pub(super) fn is_passing(error: &OciDistributionError) -> bool {
    matches!(status(error), Status::Unreachable | Status::Busy)
}

fn status(error: &OciDistributionError) -> Status {
    use OciDistributionError as Error;
    if let Error::RegistryError { envelope, .. } = error {
        return envelope.errors.first().map_or(Status::Other, |error| code(&error.code));
    }
    if let Error::ServerError { code, .. } = error {
        return match code {
            401 | 403 => Status::Unauthorized,
            404 => Status::NotFound,
            408 | 429 | 500..=599 => Status::Busy,
            _ => Status::Other,
        };
    }
    if matches!(error, Error::UnauthorizedError { .. } | Error::AuthenticationFailure(_)) {
        return Status::Unauthorized;
    }
    if matches!(error, Error::ImageManifestNotFoundError(_)) {
        return Status::NotFound;
    }
    if matches!(error, Error::DigestError(_)) {
        return Status::Damaged;
    }
    if let Error::IoError(error) = error
        && error.get_ref().is_some_and(|inner| inner.is::<DigestError>())
    {
        return Status::Damaged;
    }
    if matches!(error, Error::RequestError(_) | Error::IoError(_)) {
        if trust::is_untrusted(error) {
            return Status::Untrusted;
        }
        return Status::Unreachable;
    }
    Status::Other
}

fn code(code: &OciErrorCode) -> Status {
    match code {
        OciErrorCode::Unauthorized | OciErrorCode::Denied => Status::Unauthorized,
        OciErrorCode::BlobUnknown
        | OciErrorCode::ManifestUnknown
        | OciErrorCode::NameUnknown
        | OciErrorCode::NotFound
        | OciErrorCode::ManifestBlobUnknown => Status::NotFound,
        OciErrorCode::Toomanyrequests => Status::Busy,
        OciErrorCode::BlobUploadInvalid
        | OciErrorCode::BlobUploadUnknown
        | OciErrorCode::DigestInvalid
        | OciErrorCode::ManifestInvalid
        | OciErrorCode::ManifestUnverified
        | OciErrorCode::NameInvalid
        | OciErrorCode::SizeInvalid
        | OciErrorCode::TagInvalid
        | OciErrorCode::Unsupported
        | OciErrorCode::Other(_) => Status::Other,
    }
}
