//! The registry over HTTP: what the specification's tables demand, bad input, restarts, damage, collection, access.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests act like the tests")]

mod access;
mod blobs;
mod bounds;
mod bucket;
mod collection;
mod damage;
mod manifests;
mod record;
mod site;
mod store;
mod uploads;
