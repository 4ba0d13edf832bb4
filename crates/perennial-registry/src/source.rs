//! Where an image comes from, as people write it.

use std::fmt;
use std::path::{Path, PathBuf};

/// The forms a source can have, for error texts and help.
pub const FORMS: &str = "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REFERENCE], rootfs:DIR-or-TAR";

/// An image on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory in OCI image layout.
    Oci {
        /// The directory.
        path: PathBuf,
        /// Which image, where there are several.
        tag: Option<String>,
    },
    /// A tar archive of an OCI image layout, plain or packed by gzip or zstd.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// Which image, where there are several.
        tag: Option<String>,
    },
    /// What `docker save` writes, plain or packed by gzip or zstd.
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which image, where there are several.
        reference: Option<String>,
    },
    /// A root file system: a directory, or a tar archive, plain or packed by gzip or zstd.
    Rootfs {
        /// The directory or file.
        path: PathBuf,
    },
}

/// Why a text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Of no known form.
    #[error("image source {text:?} is not understood; use one of {FORMS}")]
    Form {
        /// The text as given.
        text: String,
    },
    /// A form without a path.
    #[error("image source {text:?} names no path")]
    NoPath {
        /// The text as given.
        text: String,
    },
    /// A path could be more than one thing, or nothing known.
    #[error("{path:?} could be {candidates}; say which by one of {FORMS}")]
    Ambiguous {
        /// The path as given.
        path: PathBuf,
        /// What it could be.
        candidates: String,
    },
}

impl Source {
    /// Reads a source. `exists` tells whether a path is there: it decides whether a colon belongs to the path.
    /// A text without a form is left to [`Source::find`].
    ///
    /// # Errors
    /// When the text is of none of the [`FORMS`].
    pub fn parse(text: &str, exists: &dyn Fn(&Path) -> bool) -> Result<Self, SourceError> {
        let Some((form, rest)) = text.split_once(':') else {
            return Err(SourceError::Form { text: text.to_owned() });
        };
        let make: fn(PathBuf, Option<String>) -> Self = match form {
            "oci" => |path, tag| Self::Oci { path, tag },
            "oci-archive" => |path, tag| Self::OciArchive { path, tag },
            "docker-archive" => |path, reference| Self::DockerArchive { path, reference },
            "rootfs" => |path, _| Self::Rootfs { path },
            _ => return Err(SourceError::Form { text: text.to_owned() }),
        };
        let (path, tag) = match rest.split_once(':') {
            _ if form == "rootfs" || exists(Path::new(rest)) => (rest, None),
            Some((path, tag)) if !tag.is_empty() => (path, Some(tag.to_owned())),
            Some((path, _)) => (path, None),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(SourceError::NoPath { text: text.to_owned() });
        }
        Ok(make(PathBuf::from(path), tag))
    }

    /// Reads a source as [`Source::parse`] does; a text that is only an existing path is looked at, and taken for what
    /// it plainly is.
    ///
    /// # Errors
    /// When it is none of the [`FORMS`], or could be several.
    pub fn find(text: &str) -> Result<Self, SourceError> {
        let exists = |path: &Path| path.symlink_metadata().is_ok();
        let path = Path::new(text);
        if exists(path) { Self::guess(path) } else { Self::parse(text, &exists) }
    }

    /// Returns what an existing path plainly is.
    fn guess(path: &Path) -> Result<Self, SourceError> {
        let path_buf = path.to_path_buf();
        let ambiguous = |candidates: &str| {
            Err(SourceError::Ambiguous { path: path.to_path_buf(), candidates: candidates.to_owned() })
        };
        let marks: Vec<String> = if path.is_dir() {
            let listing = path.read_dir().into_iter().flatten().flatten();
            listing.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        } else {
            crate::blobs::top_names(path)
        };
        let has = |name: &str| marks.iter().any(|mark| mark == name);
        let is_rootfs = ["bin", "sbin", "usr", "etc", "lib"].iter().filter(|name| has(name)).count() >= 2;
        let (is_layout, is_docker) = (has("oci-layout") && has("index.json"), has("manifest.json"));
        match (is_layout || is_docker, is_rootfs, path.is_dir()) {
            (true, true, _) => ambiguous("an image or a root file system"),
            (true, false, true) if is_layout => Ok(Self::Oci { path: path_buf, tag: None }),
            // `docker save` writes both descriptions of the same image.
            (true, false, false) if is_docker => Ok(Self::DockerArchive { path: path_buf, reference: None }),
            (true, false, false) => Ok(Self::OciArchive { path: path_buf, tag: None }),
            (false, true, _) => Ok(Self::Rootfs { path: path_buf }),
            (true, false, true) | (false, false, _) => ambiguous("an image or a root file system, or neither"),
        }
    }

    /// Returns the path.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Oci { path, .. }
            | Self::OciArchive { path, .. }
            | Self::DockerArchive { path, .. }
            | Self::Rootfs { path } => path,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (form, tag) = match self {
            Self::Oci { tag, .. } => ("oci", tag.as_ref()),
            Self::OciArchive { tag, .. } => ("oci-archive", tag.as_ref()),
            Self::DockerArchive { reference, .. } => ("docker-archive", reference.as_ref()),
            Self::Rootfs { .. } => ("rootfs", None),
        };
        write!(f, "{form}:{}", self.path().display())?;
        tag.map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}
