//! The registry over HTTP: what the specification's tables demand, bad input, restarts, damage, collection, access.

mod access;
mod blobs;
mod bounds;
mod damage;
mod manifests;
mod site;
mod uploads;
