//! What a registry decides, by the OCI Distribution Specification 1.1.
//!
//! - [`name`]: repositories, tags, digests, upload sessions as the specification spells them.
//! - [`route`]: what a request's path means; [`query`]: its parameters.
//! - [`fault`]: the specification's error codes, and the status each is answered with.
//! - [`range`]: parts of a blob that are asked for, and where a chunk of an upload may go.
//! - [`manifest`]: what a manifest refers to; [`precondition`]: when it may take a tag's place.
//! - [`upload`]: what is kept of an upload that is not finished, and of a registry's directory.
//! - [`page`]: a part of a long list.
//! - [`access`]: who may do what; [`quota`]: how much a repository may hold; [`share`]: how much memory a stream.
//! - [`staged`]: what uploads that are not finished take; [`bounds`]: what one client may take of what all share.
//! - [`collect`]: which blobs nothing needs any more; [`claim`]: whose a store is that several registries can reach.

pub mod access;
pub mod bounds;
pub mod claim;
pub mod collect;
pub mod fault;
pub mod manifest;
pub mod name;
pub mod page;
pub mod precondition;
pub mod query;
pub mod quota;
pub mod range;
pub mod route;
pub mod share;
pub mod staged;
pub mod upload;
