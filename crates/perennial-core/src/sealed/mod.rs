//! Sealed layers: a tree as a manifest whose file contents are objects, named by what is in them.
//!
//! ```text
//!   frozen tree ──seal──▶ objects/<secret>/ab/cdef…   raw contents, named by BLAKE3
//!                         manifest                    the tree: canonical, checksummed; what everything else is made from
//!                         meta.erofs                  the same tree for the kernel; files point at their objects
//! ```
//!
//! A sealed layer stands for itself: it holds no metadata-only copies and no directory redirects, which the sealer
//! resolves against the layers below. What it can hold is whiteouts, opaque directories and entries.
//!
//! - [`object`]: names of objects. [`entry`]: what a tree is made of.
//! - [`merge`](mod@merge): several trees as one.

pub mod entry;
pub mod merge;
pub mod object;
