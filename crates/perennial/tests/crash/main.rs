//! Nothing is ever lost: kills at every system call, full disks, many commands at once.
//!
//! - [`world`]: a small root, and what must always be true of it.
//! - [`commands`]: every command killed.
//! - [`supervisor`]: the supervisor of a run killed, and the processes around it.
//! - [`seal`]: sealing killed, and runs over sealed layers.
//! - [`travel`]: sending to a registry and fetching killed.
//! - [`space`]: no space left.
//! - [`at_once`]: many commands at once, background work under load, strays, a clock set back.
//!
//! By default a few points of each are taken, other ones at each run; `PERENNIAL_KILL_EVERY=1` takes all.

#![expect(clippy::print_stdout, reason = "a test tells how many points it has taken, and the seed")]

mod at_once;
mod commands;
mod pack;
#[allow(dead_code, clippy::allow_attributes, reason = "the tests of travelling use more of it")]
#[path = "../travel/registry.rs"]
mod registry;
mod seal;
mod space;
mod supervisor;
mod travel;
mod world;
