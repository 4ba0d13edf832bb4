//! The documents that describe an image (OCI image-spec 1.1 and Docker's schema 2), and the choice of a platform.

use perennial_core::id::Digest;
use perennial_core::image::ImageConfig;
use perennial_core::spec::HealthCheck;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Longest manifest, index or configuration: what registries accept (distribution-spec, "Pushing Manifests").
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Indexes inside indexes; more than one inside another is unusual.
pub(crate) const INDEX_DEPTH_MAX: u32 = 4;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 8] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
const LAYERS_OTHER: [&str; 2] =
    ["application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"];

/// The kind of machine an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`, … as Go names them.
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, …
    #[serde(default)]
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "loongarch64" => "loong64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        let variant = if architecture == "arm" { Some("v7".to_owned()) } else { None };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }
    }

    /// Returns how well an image for `offered` runs here; 0 is best, `None` is not at all.
    fn rank(&self, offered: &Self) -> Option<u32> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let number = |variant: &Option<String>, absent: u32| match variant {
            None => Some(absent),
            Some(text) => text.strip_prefix('v')?.parse::<u32>().ok(),
        };
        // What a missing variant means (containerd's `platforms.Normalize`): arm is v7, arm64 is v8, amd64 is v1.
        let absent = match self.architecture.as_str() {
            "arm" => 7,
            "arm64" => 8,
            _ => 1,
        };
        let (mine, theirs) = (number(&self.variant, absent)?, number(&offered.variant, absent)?);
        mine.checked_sub(theirs)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform {text:?} is not valid: linux/ARCHITECTURE or linux/ARCHITECTURE/VARIANT is expected")]
pub struct ParsePlatformError {
    text: String,
}

impl FromStr for Platform {
    type Err = ParsePlatformError;
    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (*os, *architecture, None),
            [os, architecture, variant] => (*os, *architecture, Some((*variant).to_owned())),
            _ => return Err(ParsePlatformError { text: text.to_owned() }),
        };
        if os != "linux" || architecture.is_empty() || variant.as_ref().is_some_and(String::is_empty) {
            return Err(ParsePlatformError { text: text.to_owned() });
        }
        Ok(Self { os: os.to_owned(), architecture: architecture.to_owned(), variant })
    }
}

/// A pointer to a document or blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Returns the name given to an image in a layout.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
    }

    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    /// Returns whether it points to an image rather than to statements about one.
    pub(crate) fn is_image(&self) -> bool {
        let is_attestation =
            self.annotations.get("vnd.docker.reference.type").is_some_and(|t| t == "attestation-manifest");
        let is_unknown = self.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
        let is_document = matches!(self.media_type.as_str(), OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST);
        is_document && !is_attestation && !is_unknown
    }
}

/// A list of images, or a manifest of one.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Document {
    #[serde(default)]
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: Option<String>,
    pub(crate) manifests: Option<Vec<Descriptor>>,
    pub(crate) config: Option<Descriptor>,
    pub(crate) layers: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// What a document turned out to be.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Index(Vec<Descriptor>),
    Image { config: Descriptor, layers: Vec<Descriptor>, annotations: BTreeMap<String, String> },
}

/// Why a document describes no image we can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The JSON is not what it should be.
    #[error("{what} is not valid: {reason}")]
    Malformed {
        /// The document.
        what: String,
        /// Why.
        reason: String,
    },
    /// Both a list and a manifest, or of a schema nobody writes any more.
    #[error("manifest is neither an image nor an index of schema 2")]
    Schema,
    /// An OCI artifact that is no image.
    #[error("this is not an image but an artifact of type {media_type:?}")]
    Artifact {
        /// Type of its configuration.
        media_type: String,
    },
    /// A layer of a kind we cannot read.
    #[error("layers of type {media_type:?} are not supported")]
    Layer {
        /// Its type.
        media_type: String,
    },
    /// No image for the platform.
    #[error("there is no image for {wanted}; there are: {available}")]
    Platform {
        /// The platform asked for.
        wanted: String,
        /// The platforms that are there.
        available: String,
    },
    /// The configuration does not fit the manifest.
    #[error("configuration names {diff_ids} layers, the manifest {layers}")]
    LayerCount {
        /// Layers in the configuration.
        diff_ids: usize,
        /// Layers in the manifest.
        layers: usize,
    },
    /// The image is for another operating system.
    #[error("image is for the operating system {os:?}")]
    OperatingSystem {
        /// The system.
        os: String,
    },
}

/// Reads JSON, telling what it should have been.
pub(crate) fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ManifestError::Malformed { what: what.to_owned(), reason: error.to_string() })
}

impl Document {
    /// Tells an index from a manifest. A document that could be read as both is refused, as clients might differ.
    pub(crate) fn kind(self) -> Result<Kind, ManifestError> {
        let type_is =
            |types: [&str; 2]| self.media_type.as_deref().is_none_or(|own| own.is_empty() || types.contains(&own));
        match (self.manifests, self.config, self.layers) {
            (Some(manifests), None, None) if type_is([OCI_INDEX, DOCKER_LIST]) => Ok(Kind::Index(manifests)),
            (None, Some(config), layers) if type_is([OCI_MANIFEST, DOCKER_MANIFEST]) && self.schema_version == 2 => {
                let layers = layers.unwrap_or_default();
                if !CONFIGS.contains(&config.media_type.as_str()) {
                    return Err(ManifestError::Artifact { media_type: config.media_type });
                }
                let is_known = |layer: &&Descriptor| {
                    !LAYERS.contains(&layer.media_type.as_str()) && !LAYERS_OTHER.contains(&layer.media_type.as_str())
                };
                if let Some(layer) = layers.iter().find(is_known) {
                    return Err(ManifestError::Layer { media_type: layer.media_type.clone() });
                }
                Ok(Kind::Image { config, layers, annotations: self.annotations })
            }
            _ => Err(ManifestError::Schema),
        }
    }
}

/// Chooses the image that fits the platform best. One that states no platform is taken only if it is alone.
pub(crate) fn choose<'a>(offers: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, ManifestError> {
    let images: Vec<&Descriptor> = offers.iter().filter(|offer| offer.is_image()).collect();
    if let [only] = images.as_slice()
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let rank = |offer: &&&Descriptor| match &offer.platform {
        Some(platform) => wanted.rank(platform),
        // An index inside: its images are asked in turn, if nothing else fits.
        None if offer.is_index() => Some(u32::MAX),
        None => None,
    };
    images.iter().filter(|offer| rank(offer).is_some()).min_by_key(|offer| rank(offer)).copied().ok_or_else(|| {
        let name = |offer: &&Descriptor| offer.platform.as_ref().map_or("unstated".to_owned(), Platform::to_string);
        let available: Vec<String> = images.iter().map(name).collect();
        let available = if available.is_empty() { "none".to_owned() } else { available.join(", ") };
        ManifestError::Platform { wanted: wanted.to_string(), available }
    })
}

/// An image's configuration, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigDocument {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<ProcessDocument>,
    rootfs: RootfsDocument,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RootfsDocument {
    #[serde(deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ProcessDocument {
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    stop_signal: String,
    #[serde(deserialize_with = "null_is_default")]
    healthcheck: serde_json::Value,
}

/// Go writes an empty list or map as `null`.
fn null_is_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Reads Docker's addition `Healthcheck`: `Test` is `["CMD", …]`, `["CMD-SHELL", LINE]`, or anything else for none;
/// times are in nanoseconds, and 0 stands for what Docker does without being told. What is none of this is no check.
fn health(document: &serde_json::Value) -> Option<HealthCheck> {
    let test = document.get("Test")?.as_array()?;
    let words = test.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()?;
    let command = match words.split_first()? {
        (kind, [line]) if kind == "CMD-SHELL" && !line.is_empty() => vec![line.clone()],
        // A single word would go to the shell.
        (kind, [program]) if kind == "CMD" && !program.is_empty() => {
            ["/bin/sh", "-c", "exec \"$0\"", program].map(str::to_owned).to_vec()
        }
        (kind, command) if kind == "CMD" && command.first().is_some_and(|program| !program.is_empty()) => {
            command.to_vec()
        }
        _ => return None,
    };
    let number = |name: &str| document.get(name).and_then(serde_json::Value::as_u64).filter(|number| *number > 0);
    let seconds = |name: &str, otherwise: u32| {
        number(name).map_or(otherwise, |nanos| u32::try_from(nanos.div_ceil(1_000_000_000)).unwrap_or(u32::MAX))
    };
    Some(HealthCheck {
        command,
        interval_s: seconds("Interval", 30),
        timeout_s: seconds("Timeout", 30),
        retries: number("Retries").map_or(3, |retries| u32::try_from(retries).unwrap_or(u32::MAX)),
        start_period_s: seconds("StartPeriod", 0),
    })
}

/// Reads an image's configuration; returns it and the digests of its uncompressed layers, oldest first.
pub(crate) fn config(bytes: &[u8]) -> Result<(ImageConfig, Vec<Digest>), ManifestError> {
    let document: ConfigDocument = parse("image configuration", bytes)?;
    if let Some(os) = document.os.filter(|os| !os.is_empty() && os != "linux") {
        return Err(ManifestError::OperatingSystem { os });
    }
    let process = document.config.unwrap_or_default();
    let some = |text: String| if text.is_empty() { None } else { Some(text) };
    let config = ImageConfig {
        entrypoint: process.entrypoint,
        cmd: process.cmd,
        env: process.env,
        user: some(process.user),
        workdir: some(process.working_dir),
        stop_signal: some(process.stop_signal),
        volumes: process.volumes.into_keys().collect(),
        labels: process.labels.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        architecture: document.architecture.and_then(some),
        health: health(&process.healthcheck),
    };
    Ok((config, document.rootfs.diff_ids))
}

#[cfg(test)]
mod health_tests {
    use super::{HealthCheck, health};
    use serde_json::json;

    #[test]
    fn a_health_check_is_read_as_docker_writes_it() {
        let check = |command: &[&str]| {
            let command = command.iter().map(|word| (*word).to_owned()).collect();
            Some(HealthCheck { command, interval_s: 30, timeout_s: 30, retries: 3, start_period_s: 0 })
        };
        let table = [
            (json!(null), None),
            (json!({}), None),
            (json!({"Test": null}), None),
            (json!({"Test": []}), None),
            (json!({"Test": ["NONE"]}), None),
            (json!({"Test": ["CMD"]}), None),
            (json!({"Test": ["CMD", ""]}), None),
            (json!({"Test": ["CMD", 1]}), None),
            (json!({"Test": "CMD true"}), None),
            (json!({"Test": ["CMD-SHELL", "a && b"]}), check(&["a && b"])),
            (json!({"Test": ["CMD-SHELL", "a", "b"]}), None),
            (json!({"Test": ["CMD", "curl", "-f"], "Interval": 0, "Retries": "x"}), check(&["curl", "-f"])),
            (json!({"Test": ["CMD", "/a b"]}), check(&["/bin/sh", "-c", "exec \"$0\"", "/a b"])),
            (
                json!({"Test": ["CMD-SHELL", "a"], "Interval": 1, "Timeout": 2_000_000_000, "StartPeriod": 5_000_000_000_u64, "Retries": 7}),
                check(&["a"]).map(|check| HealthCheck {
                    interval_s: 1,
                    timeout_s: 2,
                    retries: 7,
                    start_period_s: 5,
                    ..check
                }),
            ),
        ];
        for (document, expected) in table {
            assert_eq!(health(&document), expected, "{document}");
        }
    }
}
