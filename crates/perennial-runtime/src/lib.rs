//! One container on the kernel: its root mounted, its process started, watched and ended.
//!
//! This crate knows no store, no generations and no records: its callers hand it directories and settings.
//! It takes its time from [`clock`] alone.
//!
//! - [`mount`]: the union of layers and an upper directory; unmounting it; what is mounted where.
//! - [`probe`]: what this machine can do, found out by trying.
//! - [`user`]: names of users looked up in the container's own files.
//! - [`program`]: whether the kernel would execute a container's program, before it is asked to.
//! - [`bundle`], [`seccomp`], [`capabilities`]: the OCI `config.json` of a run.
//! - [`oci`]: the OCI runtime (`runc`, `crun`) by its command line.
//! - [`cgroup`]: who is left in a container's cgroup, and whether memory ran out.
//! - [`network`]: network namespaces, bridge addresses, `resolv.conf`.
//! - [`memory`]: what a process gives back before it waits.
//! - [`supervise`]: the event loop around one run; [`attach`] is its other end.
//! - [`logs`]: what a container has printed.

pub mod attach;
pub mod background;
pub mod bundle;
pub mod capabilities;
pub mod cgroup;
pub mod clock;
pub mod logs;
pub mod memory;
pub mod mount;
pub mod network;
pub mod oci;
pub mod probe;
pub mod program;
pub mod seccomp;
mod signals;
pub mod supervise;
pub mod user;
pub mod volumes;
