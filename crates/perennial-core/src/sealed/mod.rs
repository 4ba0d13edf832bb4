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
//! - [`object`]: names of objects. [`entry`]: what a tree is made of; [`canonical`]: in which order.
//! - [`groups`]: names of big contents made of the hashes of their parts; [`outboard`]: these hashes, kept; [`extents`]:
//!   which parts of two files are the same blocks.
//! - [`manifest`]: the bytes of a tree. [`erofs`]: the same tree as the kernel reads it. [`io`]: where bytes go to.
//! - [`merge`](mod@merge): several trees as one.
//! - [`order`]: which layers are sealed next.
//! - [`pack`]: objects of older generations, compressed together; [`chunk`]: where contents are
//!   cut for it; [`repack`]: when a pack is written anew; [`cold`]: which objects may go there.

pub mod canonical;
pub mod chunk;
pub mod cold;
pub mod entry;
pub mod erofs;
pub mod extents;
pub mod groups;
pub mod io;
pub mod manifest;
pub mod merge;
pub mod object;
pub mod order;
pub mod outboard;
pub mod pack;
pub mod repack;
