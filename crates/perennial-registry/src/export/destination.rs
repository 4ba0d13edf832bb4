//! Where an image goes, as people write it.

use std::fmt;
use std::path::PathBuf;

/// The forms a destination can have, for error texts and help.
pub const FORMS: &str = "oci:DIR[:TAG], oci-archive:FILE[:TAG]";

/// A place for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A directory in OCI image layout, new or with other images in it.
    Oci {
        /// The directory.
        path: PathBuf,
        /// The name of the image in it.
        tag: Option<String>,
    },
    /// A new tar archive of an OCI image layout.
    OciArchive {
        /// The file.
        path: PathBuf,
        /// The name of the image in it.
        tag: Option<String>,
    },
}

/// Why a text is not a destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DestinationError {
    /// Of no known form.
    #[error("destination {text:?} is not understood; use one of {FORMS}")]
    Form {
        /// The text as given.
        text: String,
    },
    /// A form without a path.
    #[error("destination {text:?} names no path")]
    NoPath {
        /// The text as given.
        text: String,
    },
    /// A name that the layout cannot have.
    #[error(
        "tag {tag:?} is not valid: use letters and digits with single `.`, `_`, `-`, `:`, `/` and `@` between them"
    )]
    Tag {
        /// The name as given.
        tag: String,
    },
}

impl Destination {
    /// Reads a destination; the first colon after the form ends the path.
    ///
    /// # Errors
    /// When the text is of none of the [`FORMS`].
    pub fn parse(text: &str) -> Result<Self, DestinationError> {
        let unknown = || DestinationError::Form { text: text.to_owned() };
        let (form, rest) = text.split_once(':').ok_or_else(unknown)?;
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(DestinationError::NoPath { text: text.to_owned() });
        }
        if let Some(tag) = tag.as_ref().filter(|tag| !is_tag(tag)) {
            return Err(DestinationError::Tag { tag: tag.clone() });
        }
        let path = PathBuf::from(path);
        match form {
            "oci" => Ok(Self::Oci { path, tag }),
            "oci-archive" => Ok(Self::OciArchive { path, tag }),
            _ => Err(unknown()),
        }
    }

    /// Returns the name that was given for the image.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Oci { tag, .. } | Self::OciArchive { tag, .. } => tag.as_deref(),
        }
    }
}

/// Returns whether a layout may have an image of that name (image-spec, `annotations.md`, "ref.name").
fn is_tag(tag: &str) -> bool {
    /// Longest name: a reference's 255 bytes and a tag's 128.
    const TAG_BYTES_MAX: usize = 384;
    let is_separator = |byte: u8| b"-._:@/+".contains(&byte);
    let ends_well = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = tag.as_bytes();
    let is_known = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || is_separator(*byte));
    let is_spaced = bytes.windows(2).all(|pair| pair == b"--" || !pair.iter().all(|byte| is_separator(*byte)));
    is_known && is_spaced && ends_well(bytes.first()) && ends_well(bytes.last()) && bytes.len() <= TAG_BYTES_MAX
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (form, path, tag) = match self {
            Self::Oci { path, tag } => ("oci", path, tag),
            Self::OciArchive { path, tag } => ("oci-archive", path, tag),
        };
        write!(f, "{form}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_are_shown() {
        for text in
            ["oci:dir", "oci:/a/b:tag", "oci-archive:x.tar", "oci-archive:x.tar:web:3", "oci:d:r.example/a--b:1"]
        {
            assert_eq!(Destination::parse(text).unwrap().to_string(), text);
        }
        let form = |text: &str| matches!(Destination::parse(text), Err(DestinationError::Form { .. }));
        assert!(form("dir") && form("docker-archive:x") && form(""));
        assert!(matches!(Destination::parse("oci:"), Err(DestinationError::NoPath { .. })));
        for text in ["oci:d:", "oci:d:-a", "oci:d:a b", "oci:d:a..b", "oci:d:a/", "oci:d:\u{e4}"] {
            assert!(matches!(Destination::parse(text), Err(DestinationError::Tag { .. })), "{text}");
        }
    }
}
