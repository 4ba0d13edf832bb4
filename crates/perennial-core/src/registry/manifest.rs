//! What a manifest refers to.
//!
//! A manifest is kept byte for byte. What is read of it: what it needs, what it is about, and how it shall be listed.
//! Media types that are not known are taken too; of those the same fields are read where they are there.

use super::fault::{Code, Fault};
use super::name::BlobDigest;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Deserialize;
use serde_json::{Value, json};

/// Largest manifest in bytes: what the specification says every registry should take, and no more.
pub const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most bytes of a list of referrers in one answer; what has more is linked to.
pub const REFERRERS_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest media type (RFC 6838, section 4.2: 127 on either side of the slash).
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// Media type of an OCI image.
pub const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image as docker writes it.
pub const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of an index as docker writes it.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What the media types of docker's first manifests begin with.
const DOCKER_FIRST: &str = "application/vnd.docker.distribution.manifest.v1+";

/// How a manifest refers to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// A blob that must be there.
    Blob,
    /// A blob that may be elsewhere (`nondistributable`, `foreign`).
    Foreign,
    /// Another manifest, which may be missing: an index may be pushed for some platforms only.
    Manifest,
}

/// What is read of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its media type.
    pub media_type: String,
    /// The digest it was pushed by, or that of its bytes.
    pub digest: BlobDigest,
    /// Its length.
    pub bytes: u64,
    /// What it refers to, each once.
    pub links: BTreeMap<BlobDigest, Link>,
    /// The manifest it is about.
    pub subject: Option<BlobDigest>,
    /// What kind of artifact it is, as a list of referrers shows it.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<Value>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<Value>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: i64,
}

/// Reads a manifest that came with this `Content-Type` and has this digest.
///
/// # Errors
/// `MANIFEST_INVALID`; `DIGEST_INVALID` where it refers to something by what is no digest.
pub fn read(bytes: &[u8], content_type: Option<&str>, digest: BlobDigest) -> Result<Facts, Fault> {
    let invalid = |why: String| Fault::new(Code::ManifestInvalid, why);
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("the manifest cannot be read: {error}")))?;
    let told = content_type.map(bare).filter(|text| !text.is_empty());
    let media_type = match (told, document.media_type.as_deref()) {
        (Some(told), Some(own)) if told != own => {
            return Err(invalid(format!("Content-Type is {told}, the manifest says {own}")));
        }
        (Some(media_type), _) | (None, Some(media_type)) => String::from(media_type),
        (None, None) => return Err(invalid(String::from("the manifest has no media type"))),
    };
    if !(1..=MEDIA_TYPE_BYTES_MAX).contains(&media_type.len())
        || !media_type.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(invalid(format!("{media_type:?} is no media type")));
    }
    check_shape(&document, &media_type)?;
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let subject = document.subject.as_ref().map(|subject| BlobDigest::parse(&subject.digest)).transpose()?;
    Ok(Facts {
        links: links(&document)?,
        artifact_type: artifact_type(&document, &media_type),
        annotations: document.annotations.map(|annotations| json!(annotations)),
        media_type,
        digest,
        bytes: length,
        subject,
    })
}

/// Returns a media type without its parameters.
fn bare(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn check_shape(document: &Document, media_type: &str) -> Result<(), Fault> {
    let invalid = |why: &str| Err(Fault::new(Code::ManifestInvalid, format!("the {media_type} {why}")));
    let is_image = [IMAGE, DOCKER_IMAGE].contains(&media_type);
    let is_index = [INDEX, DOCKER_INDEX].contains(&media_type);
    // Docker's first schema names its blobs in a place of its own, which would be collected.
    let is_first = document.schema_version == Some(json!(1)) || document.fs_layers.is_some();
    if is_first || media_type.starts_with(DOCKER_FIRST) {
        return invalid("is of docker's schema 1, which is not kept");
    }
    if (is_image || is_index) && document.schema_version != Some(json!(2)) {
        return invalid("has another schemaVersion than 2");
    }
    if is_image && (document.config.is_none() || document.layers.is_none()) {
        return invalid("has no config or no layers");
    }
    if is_index && document.manifests.is_none() {
        return invalid("has no manifests");
    }
    if (is_image && document.manifests.is_some()) || (is_index && document.layers.is_some()) {
        return invalid("is an image and an index at once");
    }
    let mut all =
        document.config.iter().chain(document.layers.iter().flatten()).chain(document.manifests.iter().flatten());
    if all.any(|descriptor| descriptor.size < 0) {
        return invalid("has a descriptor with a negative size");
    }
    Ok(())
}

fn artifact_type(document: &Document, media_type: &str) -> Option<String> {
    let own = document.artifact_type.clone().filter(|text| !text.is_empty());
    let is_index = [INDEX, DOCKER_INDEX].contains(&media_type);
    let of_config = || document.config.as_ref().and_then(|config| config.media_type.clone());
    own.or_else(|| if is_index { None } else { of_config() })
}

fn links(document: &Document) -> Result<BTreeMap<BlobDigest, Link>, Fault> {
    let blobs = document.config.iter().chain(document.layers.iter().flatten()).chain(document.blobs.iter().flatten());
    let blobs = blobs.map(|blob| {
        let is_foreign = blob.media_type.as_deref().is_some_and(is_foreign);
        (blob, if is_foreign { Link::Foreign } else { Link::Blob })
    });
    let manifests = document.manifests.iter().flatten().map(|manifest| (manifest, Link::Manifest));
    let mut links = BTreeMap::new();
    for (descriptor, link) in blobs.chain(manifests) {
        let digest = BlobDigest::parse(&descriptor.digest)?;
        let present = links.entry(digest).or_insert(link);
        // What is needed once is needed.
        *present = (*present).min(link);
    }
    Ok(links)
}

fn is_foreign(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.nondistributable.v1.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
}

/// A manifest as a list of referrers shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length.
    pub bytes: u64,
    /// What kind of artifact it is.
    pub artifact_type: Option<String>,
    /// Its annotations, as JSON.
    pub annotations: Option<String>,
}

impl Referrer {
    fn descriptor(&self) -> Value {
        let mut descriptor = json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes});
        let annotations = self.annotations.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
        if let Some(fields) = descriptor.as_object_mut() {
            fields.extend(self.artifact_type.iter().map(|kind| (String::from("artifactType"), json!(kind))));
            fields.extend(annotations.map(|annotations| (String::from("annotations"), annotations)));
        }
        descriptor
    }
}

/// How much of a list of referrers has to be read for one answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReferrersRead {
    bytes: usize,
}

impl ReferrersRead {
    /// Counts one that was read; returns whether more might fit. What is certainly more than fits is read too, so that the
    /// answer says that it is not all.
    pub fn goes_on_after(&mut self, referrer: &Referrer) -> bool {
        let texts = [Some(&referrer.media_type), Some(&referrer.digest), referrer.artifact_type.as_ref()];
        let annotations = referrer.annotations.as_ref().map_or(0, String::len);
        let least = texts.into_iter().flatten().fold(annotations, |sum, text| sum.saturating_add(text.len()));
        self.bytes = self.bytes.saturating_add(least);
        self.bytes <= REFERRERS_BYTES_MAX
    }
}

/// Returns an index of referrers, and the last digest in it where more follow.
#[must_use]
pub fn referrers_page(referrers: &[Referrer]) -> (String, Option<&str>) {
    let mut list = Vec::new();
    let mut bytes = 0_usize;
    let mut last = None;
    for referrer in referrers {
        let descriptor = format!("{}", referrer.descriptor());
        bytes = bytes.saturating_add(descriptor.len());
        if bytes > REFERRERS_BYTES_MAX && last.is_some() {
            return (index_of(&list), last);
        }
        list.push(descriptor);
        last = Some(referrer.digest.as_str());
    }
    (index_of(&list), None)
}

fn index_of(descriptors: &[String]) -> String {
    format!("{{\"schemaVersion\":2,\"mediaType\":\"{INDEX}\",\"manifests\":[{}]}}", descriptors.join(","))
}
