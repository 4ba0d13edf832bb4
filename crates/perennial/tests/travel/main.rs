//! Containers to a registry and back: rows B7, B8, B15, B25, B29, B31, X3 with Debian's registry, which knows nothing
//! of ours.
//!
//! - [`unattended`]: what is sent by itself.
//! - [`registry`]: the registry, and a proxy that counts and cuts.
//! - [`broken`]: what breaks or is damaged on the way.
//! - [`conflicts`]: two machines, one container.
//! - [`encrypted`]: what the registry cannot read.
//! - [`guide`]: the guide's page, on two machines.
//! - [`marks`]: rollbacks, pins and marks; [`meanwhile`]: what happens here while a pull is on its way.
//! - [`moving`]: what arrives is what was sent, and only what is lacking goes. [`packs`]: how many packs that makes.
//! - [`whole`]: what a push says is there can be fetched.

mod broken;
mod conflicts;
mod encrypted;
mod guide;
mod marks;
mod meanwhile;
mod moving;
mod packs;
mod registry;
#[path = "../stage/mod.rs"]
mod stage;
mod unattended;
mod whole;
