//! A part of a list of tags.

use super::fault::{Code, Fault};
use super::name::Repository;
use super::query::{Query, encode};
use alloc::format;
use alloc::string::String;

/// Most tags in one answer, whatever is asked for; more are linked to.
pub const TAGS_MAX: u64 = 10_000;

/// Which tags are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// How many at most.
    pub count_max: u64,
    /// After which.
    pub after: Option<String>,
}

impl Page {
    /// Reads `n` and `last`.
    ///
    /// # Errors
    /// `UNSUPPORTED` with 400 where `n` is no number.
    pub fn parse(query: &Query) -> Result<Self, Fault> {
        let asked = match query.get("n") {
            None => TAGS_MAX,
            Some(text) => text.parse().map_err(|_| {
                Fault::new(Code::Unsupported, format!("n={text} is no number of tags")).with_status(400)
            })?,
        };
        Ok(Self { count_max: asked.min(TAGS_MAX), after: query.get("last").map(String::from) })
    }

    /// Returns the `Link` to what follows `last`.
    #[must_use]
    pub fn next(&self, name: &Repository, last: &str) -> String {
        format!("</v2/{name}/tags/list?n={}&last={}>; rel=\"next\"", self.count_max, encode(last))
    }
}
