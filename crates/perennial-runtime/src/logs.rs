//! What a container has printed: one text file in the form of the Kubernetes container log, rotated by size.
//!
//! ```text
//! 2026-11-22T18:00:00.123456789Z stdout F a whole line
//! 2026-11-22T18:00:01.000000001Z stderr P the beginning of a line
//! 2026-11-22T18:00:01.000000002Z stderr F  and its end
//! ```
//!
//! `log` is written to; `log.1` is the newest full one. A rotation waits for the end of a line, as long as that
//! does not take as much again as a file is to hold.

mod reader;
mod writer;

pub use reader::{LogLine, LogReader, ReadOptions};
pub use writer::LogWriter;

use std::path::{Path, PathBuf};

/// Where and how much to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The file that is written to; its directory exists.
    pub path: PathBuf,
    /// Bytes at which it is rotated.
    pub bytes_max: u64,
    /// Files kept, the one written to included; at least 1.
    pub files_max: u32,
}

impl LogConfig {
    /// Returns 8 files of 2 MiB at `path`.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, bytes_max: 2 * 1024 * 1024, files_max: 8 }
    }
}

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Returns its name in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} log {path}")]
pub struct LogError {
    what: &'static str,
    path: String,
    source: std::io::Error,
}

impl LogError {
    fn new(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self { what, path: path.display().to_string(), source }
    }
}

/// Returns the path of the n-th newest full file.
fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}
