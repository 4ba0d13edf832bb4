//! What a registry decides, by the tables of the OCI Distribution Specification.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod access;
mod bounds;
mod claim;
mod collect;
mod requests;
mod share;
mod staged;
