//! Layers on disk and the records about them.
//!
//! ```text
//! <root>/            0700
//!   format.json      what this directory is, and which release may touch it
//!   records.db       containers, images, layers, events (SQLite, durable at each commit)
//!   layers/<id>/     tree/ (an overlay upper that is never written again) and layer.json
//!   packs/           objects of older generations, chunked and compressed together
//!   objects/         file contents, each once, under a secret name
//!   runs/<id>/       upper, work, merged and bundle of one run
//!   oci/             the OCI runtime's own state
//!   logs/<id>/       what a container has printed
//!   reserve          space to give back when the disk is full
//!   locks/           files to lock; their content means nothing
//!   staging/         layers that are being made
//!   trash/           renamed here first, unlinked later
//! ```
//!
//! - [`root`]: the directory itself, its locks, and files that appear whole.
//! - [`records`]: the record store behind one small trait.
//! - [`cold`]: packs of older generations' objects.
//! - [`layer`]: layer directories: publish, describe, discard.
//! - [`objects`]: contents of files, named by what is in them; [`sealed`]: layers made of them.
//! - [`tree`]: trees of files, as overlayfs writes them: walk, measure, materialise, fold, compare.
//!
//! What this crate does not know: containers' lives (that is `perennial-core`) and mounting (`perennial-runtime`).

pub mod atomic;
pub mod cold;
mod crew;
pub mod layer;
pub mod objects;
pub mod records;
pub mod root;
pub mod sealed;
pub mod tree;
