//! The error codes of the specification, and the status and the text that go with each.

use alloc::string::{String, ToString as _};
use serde::Serialize;

/// A code of the specification's table "Error Codes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Code {
    /// There is no such blob in the repository.
    BlobUnknown,
    /// A chunk or a request of an upload is malformed.
    BlobUploadInvalid,
    /// There is no such upload session.
    BlobUploadUnknown,
    /// A digest is malformed, of an unknown algorithm, or not that of the content.
    DigestInvalid,
    /// A manifest refers to a blob that the repository does not have.
    ManifestBlobUnknown,
    /// A manifest is malformed or too large.
    ManifestInvalid,
    /// There is no such manifest or tag in the repository.
    ManifestUnknown,
    /// The repository's name is not one.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// More or fewer bytes came than were announced.
    SizeInvalid,
    /// Nobody has logged in.
    Unauthorized,
    /// Who has logged in may not do this.
    Denied,
    /// The registry does not do this.
    Unsupported,
    /// There is too much to do.
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
}

impl Code {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 14] = [
        Self::BlobUnknown,
        Self::BlobUploadInvalid,
        Self::BlobUploadUnknown,
        Self::DigestInvalid,
        Self::ManifestBlobUnknown,
        Self::ManifestInvalid,
        Self::ManifestUnknown,
        Self::NameInvalid,
        Self::NameUnknown,
        Self::SizeInvalid,
        Self::Unauthorized,
        Self::Denied,
        Self::Unsupported,
        Self::TooManyRequests,
    ];

    /// Returns the HTTP status that goes with the code where nothing else is said.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::SizeInvalid => 400,
            Self::Unauthorized => 401,
            Self::Denied => 403,
            Self::BlobUnknown | Self::BlobUploadUnknown | Self::ManifestUnknown | Self::NameUnknown => 404,
            Self::Unsupported => 405,
            Self::TooManyRequests => 429,
        }
    }
}

/// A request that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// The code.
    pub code: Code,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong, for people.
    pub message: String,
}

impl Fault {
    /// Makes a refusal with the code's own status.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, status: code.status(), message: message.into() }
    }

    /// Sets another status, where the specification names one for the case.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Returns the body that the specification demands.
    #[must_use]
    pub fn body(&self) -> String {
        serde_json::json!({"errors": [{"code": self.code, "message": self.message}]}).to_string()
    }
}
