//! Why a request is not carried out: the client's fault, or the server's trouble.

use perennial_core::registry::fault::Fault;
use std::io;

/// What stops a request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The request is refused.
    #[error("the request is refused")]
    Fault(#[from] Fault),
    /// The record of what is kept failed.
    #[error("the registry's record")]
    Record(#[from] rusqlite::Error),
    /// The record says something that it cannot say.
    #[error("the registry's record is damaged: {0}")]
    Damaged(String),
    /// Files or the object store failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The client broke off.
    #[error("the client broke off: {0}")]
    Broken(String),
    /// Its turn did not come in time: at the store of blobs, or for a large manifest.
    #[error("the registry is busy")]
    Busy,
    /// The server is ending.
    #[error("the registry is ending")]
    Ending,
}

impl Trouble {
    /// Returns what turns an I/O error into this, with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Returns whether the disk, or what holds the objects, is full.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            Self::Record(error) => error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull),
            Self::Fault(_) | Self::Damaged(_) | Self::Broken(_) | Self::Busy | Self::Ending => false,
        }
    }

    /// Returns the message with its causes on one line.
    pub(crate) fn one_line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}
