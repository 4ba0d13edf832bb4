//! What can go wrong with a repository, told apart by what a person would do about it.

use crate::credentials::CredentialsError;
use crate::trust::{self, TrustError};
use oci_client::errors::OciDistributionError;
use perennial_core::id::Digest;
use perennial_core::travel::clean;
use reqwest::StatusCode;
use serde::Deserialize;
use std::io;

/// Why something in a repository cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The address is not valid.
    #[error("{text:?} is no address of a repository: {reason}")]
    Address {
        /// The text.
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
    /// The network client cannot be made.
    #[error("network client cannot be set up: {reason}")]
    Client {
        /// Why.
        reason: String,
    },
    /// The runtime cannot be made.
    #[error("network runtime cannot be set up")]
    Runtime(#[source] io::Error),
    /// The registry wants a login, or another one.
    #[error("the registry refuses access to {repository}")]
    Unauthorized {
        /// The repository.
        repository: String,
    },
    /// The registry does not answer, or stops in the middle.
    #[error("registry {registry} cannot be reached")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What the network said.
        source: reqwest::Error,
    },
    /// What the registry shows of itself is not signed by anybody who is trusted here.
    #[error("the certificate of registry {registry} is not trusted")]
    Untrusted {
        /// The registry.
        registry: String,
        /// What is wrong with it.
        source: reqwest::Error,
    },
    /// The same while logging in.
    #[error("registry of {repository} cannot be logged in to")]
    Login {
        /// The repository.
        repository: String,
        /// What was said.
        source: Box<OciDistributionError>,
    },
    /// The tag is not as it was expected to be.
    #[error("{repository} was changed by somebody else meanwhile")]
    Changed {
        /// The repository.
        repository: String,
    },
    /// Something that a manifest names is not there.
    #[error("{what} is not in {repository}")]
    Missing {
        /// The repository.
        repository: String,
        /// What.
        what: String,
    },
    /// The registry answered something else than it should.
    #[error("the registry of {repository} answers {status}: {message}")]
    Refused {
        /// The repository.
        repository: String,
        /// The status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// What came is not what was asked for.
    #[error("{repository} sent {what} that is not what was asked for")]
    Damaged {
        /// The repository.
        repository: String,
        /// What.
        what: String,
    },
    /// It has something else under the name of what is sent, and keeps it.
    #[error("{repository} has {found} bytes as blob {digest}, which has {bytes}, and does not take it again")]
    Unsound {
        /// The repository.
        repository: String,
        /// The blob.
        digest: Digest,
        /// The length of what is there.
        found: u64,
        /// The length it should have.
        bytes: u64,
    },
    /// What came, or is to go, cannot be written or read here.
    #[error("what is transferred cannot be kept or read")]
    Disk(#[from] io::Error),
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    code: String,
    #[serde(default)]
    message: String,
}

impl RepositoryError {
    /// Returns what a person could do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unauthorized { .. } => {
                Some("log in with `podman login` or `docker login`; the name may be wrong too")
            }
            Self::Unreachable { .. } | Self::Login { .. } => Some(
                "check the host and port, and the network; what was transferred is kept, so trying again goes on where it \
                 was; a registry without TLS needs --plain-http",
            ),
            Self::Untrusted { .. } => Some(trust::UNTRUSTED_HINT),
            Self::Trust(error) => Some(error.hint()),
            Self::Missing { .. } => {
                Some("what is there is not complete; a push from where it is whole sends what has gone")
            }
            Self::Unsound { .. } => Some(
                "nothing leads to what was sent; the registry has damaged that blob: have its keeper remove it, or send to \
                 another path or name; `perennial push --whole` sends a container's contents under other names",
            ),
            Self::Damaged { .. } => {
                Some("the registry or something on the way changed it; try again or from elsewhere")
            }
            Self::Changed { .. } => Some("pull first, or push under another name"),
            Self::Address { .. }
            | Self::Credentials(_)
            | Self::Client { .. }
            | Self::Runtime(_)
            | Self::Refused { .. }
            | Self::Disk(_) => None,
        }
    }

    /// Returns whether the registry could not be spoken to at all, so that it may work later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        is_passing(self)
    }

    pub(super) fn refused(repository: &str, status: StatusCode, text: &[u8]) -> Self {
        let repository = repository.to_owned();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Unauthorized { repository },
            StatusCode::PRECONDITION_FAILED => Self::Changed { repository },
            _ => {
                let said =
                    serde_json::from_slice::<Errors>(text).ok().and_then(|errors| errors.errors.into_iter().next());
                let message = said.map_or_else(
                    || String::from_utf8_lossy(text).into_owned(),
                    |item| format!("{} {}", item.code, item.message),
                );
                let message = clean(&message).chars().take(200).collect();
                Self::Refused { repository, status: status.as_u16(), message }
            }
        }
    }

    /// Makes an error of a request that got no answer.
    pub(super) fn unreachable(registry: String, source: reqwest::Error) -> Self {
        let source = source.without_url();
        if trust::is_untrusted(&source) {
            return Self::Untrusted { registry, source };
        }
        Self::Unreachable { registry, source }
    }

    pub(super) fn from_login(error: OciDistributionError, repository: &str) -> Self {
        let repository = repository.to_owned();
        if matches!(
            error,
            OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. }
        ) {
            return Self::Unauthorized { repository };
        }
        if let OciDistributionError::RequestError(source) = error {
            let registry = repository.split('/').next().unwrap_or_default().to_owned();
            return Self::unreachable(registry, source);
        }
        Self::Login { repository, source: Box::new(error) }
    }
}

/// Returns whether a failure may pass by itself.
pub(super) fn is_passing(error: &RepositoryError) -> bool {
    match error {
        RepositoryError::Unreachable { .. } => true,
        RepositoryError::Refused { status, .. } => matches!(status, 408 | 429 | 500..=599),
        RepositoryError::Address { .. }
        | RepositoryError::Credentials(_)
        | RepositoryError::Trust(_)
        | RepositoryError::Untrusted { .. }
        | RepositoryError::Client { .. }
        | RepositoryError::Runtime(_)
        | RepositoryError::Login { .. }
        | RepositoryError::Unauthorized { .. }
        | RepositoryError::Changed { .. }
        | RepositoryError::Missing { .. }
        | RepositoryError::Damaged { .. }
        | RepositoryError::Unsound { .. }
        | RepositoryError::Disk(_) => false,
    }
}
