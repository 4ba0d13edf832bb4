//! Names of records.

use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId};

/// Prefix of the records of containers.
pub const CONTAINERS: &str = "container/";
/// Prefix of the records that map a container's name to its id.
pub const NAMES: &str = "name/";
/// Prefix of the records of layers.
pub const LAYERS: &str = "layer/";
/// Prefix of the records of images.
pub const IMAGES: &str = "image/";
/// Prefix of the records that map an image's name to its digest.
pub const TAGS: &str = "tag/";
/// Prefix of the records that map an image layer's chain id to the layer.
pub const CHAINS: &str = "chain/";
/// Prefix of the records of read-only views.
pub const VIEWS: &str = "view/";
/// Prefix of the records of places in registries to send containers to.
pub const REMOTES: &str = "remote/";

/// Prefix of the records of what is known of containers at such places.
pub const TRACKINGS: &str = "tracking/";

/// Prefix of the records that hold layers which nothing else names.
pub const HELD: &str = "held/";

/// Returns the key that holds a layer.
#[must_use]
pub fn held(id: &LayerId) -> String {
    format!("{HELD}{id}")
}

/// Returns the key of a place in a registry.
#[must_use]
pub fn remote(name: &str) -> String {
    format!("{REMOTES}{name}")
}

/// Returns the prefix of what is known of a container at remotes.
#[must_use]
pub fn trackings(id: &ContainerId) -> String {
    format!("{TRACKINGS}{id}/")
}

/// Returns the key of what is known of a container at a remote.
#[must_use]
pub fn tracking(id: &ContainerId, remote: &str) -> String {
    format!("{TRACKINGS}{id}/{remote}")
}

/// Returns the key of a container.
#[must_use]
pub fn container(id: &ContainerId) -> String {
    format!("{CONTAINERS}{id}")
}

/// Returns the key of a container's name.
#[must_use]
pub fn name(name: &ContainerName) -> String {
    format!("{NAMES}{name}")
}

/// Returns the key of a layer.
#[must_use]
pub fn layer(id: &LayerId) -> String {
    format!("{LAYERS}{id}")
}

/// Returns the key of an image.
#[must_use]
pub fn image(digest: &Digest) -> String {
    format!("{IMAGES}{digest}")
}

/// Returns the key of an image's name.
#[must_use]
pub fn tag(name: &str) -> String {
    format!("{TAGS}{name}")
}

/// Returns the key of an image layer, by its chain id (OCI image specification, "Layer ChainID").
#[must_use]
pub fn chain(chain_id: &Digest) -> String {
    format!("{CHAINS}{chain_id}")
}

/// Returns the prefix of a container's event log.
#[must_use]
pub fn events(id: &ContainerId) -> String {
    format!("event/{id}/")
}

/// Returns the key of an entry of a container's event log.
#[must_use]
pub fn event(id: &ContainerId, number: u64) -> String {
    format!("event/{id}/{number:012}")
}
