//! When a manifest may take a tag's place: `If-Match` and `If-None-Match` (RFC 9110, section 13) make a push to a tag a
//! compare-and-swap. The entity tag of a manifest is its digest in quotes.

use super::fault::{Code, Fault};
use super::name::BlobDigest;
use alloc::format;
use alloc::string::String;

/// What a client demands of what is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Precondition {
    if_match: Option<String>,
    if_none_match: Option<String>,
}

impl Precondition {
    /// Takes the two headers.
    #[must_use]
    pub fn new(if_match: Option<&str>, if_none_match: Option<&str>) -> Self {
        Self { if_match: if_match.map(String::from), if_none_match: if_none_match.map(String::from) }
    }

    /// Checks them against what is there now.
    ///
    /// # Errors
    /// 412 where one does not hold; nothing may be changed then.
    pub fn check(&self, present: Option<&BlobDigest>) -> Result<(), Fault> {
        let failed = |header: &str| {
            let found = present.map_or("nothing", BlobDigest::as_str);
            Err(Fault::new(Code::Denied, format!("{header} does not hold: there is {found}")).with_status(412))
        };
        if self.if_match.as_deref().is_some_and(|list| !matches(list, present)) {
            return failed("If-Match");
        }
        if self.is_unchanged(present) {
            return failed("If-None-Match");
        }
        Ok(())
    }

    /// Returns whether a client that reads has already what is there.
    #[must_use]
    pub fn is_unchanged(&self, present: Option<&BlobDigest>) -> bool {
        self.if_none_match.as_deref().is_some_and(|list| matches(list, present))
    }
}

fn matches(list: &str, present: Option<&BlobDigest>) -> bool {
    let Some(present) = present else { return false };
    let bare = |item: &str| String::from(item.trim().trim_start_matches("W/").trim_matches('"'));
    list.split(',').map(bare).any(|item| item == "*" || item == present.as_str())
}

/// Returns whether the range that a client asks for is meant: without `If-Range`, or where it names what is there. Else the
/// client has a part of something else, and gets the whole.
#[must_use]
pub fn is_range_meant(if_range: Option<&str>, present: &BlobDigest) -> bool {
    if_range.is_none_or(|tag| tag.trim() == entity_tag(present))
}

/// Returns the entity tag of a manifest or a blob.
#[must_use]
pub fn entity_tag(digest: &BlobDigest) -> String {
    format!("\"{digest}\"")
}
