//! Whose a store of blobs is that several registries can reach: one that collects what its own record does not know would
//! delete the blobs of another.
//!
//! A registry that finds no claim in a store puts its own there, in a way that fails where another one was quicker. Not
//! every store that speaks S3 knows that condition: some ignore it, some refuse it. So a claim that was made is made a
//! second time, which changes nothing and has to fail, and in the end the store is read again.

/// What a registry that has read a store's claim does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It uses the store, whose claim is its own.
    Use,
    /// It lays claim to the store, which is nobody's.
    Lay,
    /// It leaves the store alone.
    Refuse(&'static str),
}

/// Decides by the name in the store's claim (`None` without a claim) and the registry's own. `has_strays` says that the
/// registry's record is new and that the store has blobs nevertheless.
#[must_use]
pub fn claim(owner: Option<Option<&str>>, own: Option<&str>, has_strays: bool) -> Claim {
    match owner {
        Some(owner) if owner == own => Claim::Use,
        Some(_) => Claim::Refuse("its blobs belong to another registry"),
        None if has_strays => Claim::Refuse("there are blobs that the record does not know"),
        None => Claim::Lay,
    }
}

/// What came of putting a claim where there shall be none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was put.
    Made,
    /// There was one.
    WasThere,
    /// The store does not do this.
    Refused,
}

/// Whether two registries that lay claim to a store at the same moment are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// The store does it.
    Store,
    /// Nobody does; both may go on, until the one that was overwritten looks again.
    Nobody,
}

/// Decides by what came of putting a claim, and of putting it once more where the first was made.
#[must_use]
pub fn guard(first: Put, again: Option<Put>) -> Guard {
    match (first, again) {
        (Put::WasThere, _) | (Put::Made, Some(Put::WasThere)) => Guard::Store,
        (Put::Made, None | Some(Put::Made | Put::Refused)) | (Put::Refused, _) => Guard::Nobody,
    }
}
