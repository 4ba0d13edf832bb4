//! Every decision of Perennial, and no effect.
//!
//! This crate has no clock, no randomness, no files and no hash maps: facts and `now` go in, values come out.
//! The other crates carry the values out.
//!
//! - [`id`], [`time`]: newtypes for names, digests, sequence numbers and instants.
//! - [`spec`]: what a container should run as; [`image`]: what an image says; [`process`]: the two combined.
//! - [`container`]: one container's record and its state machine (created → starting → running → exiting → dormant).
//! - [`generations`]: the generation queue: append, evict, choose, roll back, protect.
//! - [`layers`]: layers of a store and the decisions when to fold or merge them.
//! - [`sealed`]: layers whose file contents are objects named by what is in them.
//! - [`tree`]: how entries of stacked layers combine (whiteouts, opaque directories).
//! - [`travel`]: containers and images in a registry.
//! - [`event`]: the log of who did what.
//! - [`format`]: the bytes of records that outlive a process.
//! - [`registry`]: what a registry decides.
//! - [`check`]: invariants over all of the above; [`host`]: what the machine lacks.
//! - [`collect`]: what nothing needs any more; [`usage`]: what takes space; [`rebase`]: where two changes meet;
//!   [`rebuild`]: records made again from the layers; [`verify`]: what damage means for generations;
//!   [`export`]: what an image can say of a container.
#![no_std]
extern crate alloc;

pub mod check;
pub mod collect;
pub mod container;
pub mod event;
pub mod export;
pub mod format;
pub mod generations;
pub mod host;
pub mod id;
pub mod image;
pub mod layers;
pub mod process;
pub mod rebase;
pub mod rebuild;
pub mod registry;
pub mod sealed;
pub mod spec;
pub mod time;
pub mod travel;
pub mod tree;
pub mod usage;
pub mod verify;
