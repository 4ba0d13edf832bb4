//! OCI images: where they come from, and how they become layers of a store.
//!
//! - [`source`]: `oci:`, `oci-archive:`, `docker-archive:` and `rootfs:` as people write them.
//! - [`mod@import`]: brings an image from such a source into a store, which it knows as a [`LayerTarget`].
//! - [`apply`]: writes one layer archive as a directory in overlay form; hostile archives are refused.
//! - [`mod@pull`]: fetches an image from a registry, and imports it; [`credentials`]: the logins it uses.
//! - [`mod@export`]: writes an image as an OCI layout, layer by layer.
//! - [`serve`]: a registry.
//! - [`repository`]: blobs and manifests of one repository of a registry, both ways.
//! - [`encryption`]: what of an owner's lies in a registry unreadable for others.
//! - [`progress`]: what a long import tells while it works.
//!
//! This crate knows no store and no clock.

pub mod apply;
pub mod credentials;
pub mod digest;
pub mod encryption;
pub mod export;
pub mod import;
pub mod manifest;
pub mod progress;
pub mod pull;
pub mod repository;
pub mod rootfs;
pub mod serve;
pub mod source;
pub mod trust;

mod attributes;
mod beneath;
mod blobs;
mod compression;
mod contents;
mod lowers;
mod tarball;

pub use apply::{ApplyError, Limits, LinkReason};
pub use beneath::NameError;
pub use import::{
    ImportError, ImportOptions, Imported, ImportedLayer, LayerKey, LayerTarget, LayerTree, Outline, TargetError,
    import, outline,
};
pub use manifest::{ManifestError, Platform};
pub use progress::{Event, Phase, Progress};
pub use pull::{PullError, PullOptions, pull};
pub use source::{Source, SourceError};
pub use tarball::TarError;
