//! From the place an image lies in to its description: index, manifest, configuration, each checked.

use super::{Described, DescribedLayer, ImportError, ImportOptions};
use crate::blobs::{BlobName, Blobs};
use crate::digest;
use crate::manifest::{self, DOCUMENT_BYTES_MAX, Descriptor, Document, INDEX_DEPTH_MAX, Kind, ManifestError};
use perennial_core::id::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

/// Finds an image in an OCI image layout.
pub(super) fn layout(
    blobs: &dyn Blobs,
    path: &Path,
    tag: Option<&str>,
    options: &ImportOptions,
) -> Result<Described, ImportError> {
    let name = BlobName::Path("index.json".to_owned());
    let index = read(blobs, "index", &name)?.ok_or_else(|| ImportError::NotThat {
        path: path.to_path_buf(),
        expected: "an OCI image layout",
        missing: "index.json",
    })?;
    let index: Document = manifest::parse("index.json", &index)?;
    let offers: Vec<Descriptor> =
        index.manifests.ok_or(ManifestError::Schema)?.into_iter().filter(Descriptor::is_image).collect();
    let offers = tagged(offers, tag)?;
    let chosen = manifest::choose(&offers, &options.platform)?;
    describe(&|descriptor, what| document(blobs, what, descriptor), chosen, options)
}

/// Returns the images of that name; without a name, all of them if they go by one name at most.
fn tagged(offers: Vec<Descriptor>, tag: Option<&str>) -> Result<Vec<Descriptor>, ImportError> {
    let names = || {
        let mut names: Vec<&str> = offers.iter().filter_map(Descriptor::tag).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    match tag {
        Some(tag) => {
            // A name may be a whole reference, or the tag of one.
            let is_it = |offer: &Descriptor| {
                offer.digest == tag
                    || offer
                        .tag()
                        .is_some_and(|name| name == tag || name.rsplit_once(':').is_some_and(|(_, t)| t == tag))
            };
            if !offers.iter().any(is_it) {
                let available = names().join(", ");
                return Err(ImportError::NoSuchTag { wanted: tag.to_owned(), available });
            }
            Ok(offers.into_iter().filter(is_it).collect())
        }
        None if names().len() > 1 => Err(ImportError::SeveralImages { available: names().join(", ") }),
        None => Ok(offers),
    }
}

/// Fetches the document a descriptor points to, checked.
pub(crate) type Fetch<'a> = dyn Fn(&Descriptor, &'static str) -> Result<Vec<u8>, ImportError> + 'a;

/// Follows a descriptor through indexes to a manifest and its configuration.
pub(crate) fn describe(
    fetch: &Fetch<'_>,
    from: &Descriptor,
    options: &ImportOptions,
) -> Result<Described, ImportError> {
    let mut at = from.clone();
    for _ in 0..INDEX_DEPTH_MAX {
        let bytes = fetch(&at, "manifest")?;
        let document: Document = manifest::parse("manifest", &bytes)?;
        match document.kind()? {
            Kind::Index(offers) => at = manifest::choose(&offers, &options.platform)?.clone(),
            Kind::Image { config, layers, annotations } => {
                let config = fetch(&config, "configuration")?;
                let described = image(digest_of(&at)?, &config, &layers)?;
                return Ok(Described { annotations, ..described });
            }
        }
    }
    Err(ImportError::IndexDepth { depth_max: INDEX_DEPTH_MAX })
}

/// Combines a manifest's layers with the digests its configuration gives them.
fn image(digest: Digest, config: &[u8], layers: &[Descriptor]) -> Result<Described, ImportError> {
    let (config, diff_ids) = manifest::config(config)?;
    if diff_ids.len() != layers.len() {
        return Err(ManifestError::LayerCount { diff_ids: diff_ids.len(), layers: layers.len() }.into());
    }
    let layer = |(layer, diff_id): (&Descriptor, Digest)| {
        Ok(DescribedLayer { blob: BlobName::Digest(digest_of(layer)?), size: Some(layer.size), diff_id })
    };
    let layers = layers.iter().zip(diff_ids).map(layer).collect::<Result<_, ImportError>>()?;
    Ok(Described { digest, config, layers, annotations: BTreeMap::new() })
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl DockerImage {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

/// Finds an image in what `docker save` wrote.
pub(super) fn docker(blobs: &dyn Blobs, path: &Path, reference: Option<&str>) -> Result<Described, ImportError> {
    let name = BlobName::Path("manifest.json".to_owned());
    let list = read(blobs, "manifest", &name)?.ok_or_else(|| ImportError::NotThat {
        path: path.to_path_buf(),
        expected: "an archive of docker save",
        missing: "manifest.json",
    })?;
    let images: Vec<DockerImage> = manifest::parse("manifest.json", &list)?;
    let image = docker_image(&images, reference)?;
    let name = BlobName::Path(image.config.clone());
    let missing = || ImportError::Missing { what: "configuration", name: image.config.clone() };
    let config = read(blobs, "configuration", &name)?.ok_or_else(missing)?;
    let digest = digest::of_bytes(&config);
    check_named_digest(&image.config, &digest)?;
    let (config, diff_ids) = manifest::config(&config)?;
    let paths = image.layers.clone().unwrap_or_default();
    if diff_ids.len() != paths.len() {
        return Err(ManifestError::LayerCount { diff_ids: diff_ids.len(), layers: paths.len() }.into());
    }
    let layer = |(path, diff_id)| DescribedLayer { blob: BlobName::Path(path), size: None, diff_id };
    let layers = paths.into_iter().zip(diff_ids).map(layer).collect();
    Ok(Described { digest, config, layers, annotations: BTreeMap::new() })
}

/// Checks a configuration whose path is its digest, as all writers name it.
fn check_named_digest(path: &str, found: &Digest) -> Result<(), ImportError> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = name.strip_suffix(".json").unwrap_or(name);
    match format!("sha256:{stem}").parse::<Digest>() {
        Ok(stated) if stated != *found => {
            Err(ImportError::Digest { what: "configuration", name: path.to_owned(), found: found.clone(), stated })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn docker_image<'a>(images: &'a [DockerImage], reference: Option<&str>) -> Result<&'a DockerImage, ImportError> {
    let available = || {
        let names: Vec<&str> = images.iter().flat_map(DockerImage::tags).map(String::as_str).collect();
        names.join(", ")
    };
    match (reference, images) {
        (_, []) => Err(ImportError::Missing { what: "image", name: "in manifest.json".to_owned() }),
        (None, [only]) => Ok(only),
        (None, _) => Err(ImportError::SeveralImages { available: available() }),
        (Some(wanted), _) => {
            let full = full_reference(wanted);
            let is_it =
                |image: &&DockerImage| image.tags().iter().any(|tag| tag == wanted || full_reference(tag) == full);
            let missing = || ImportError::NoSuchTag { wanted: wanted.to_owned(), available: available() };
            images.iter().find(is_it).ok_or_else(missing)
        }
    }
}

/// Returns a reference with what people leave out.
fn full_reference(text: &str) -> String {
    let has_tag = text.rsplit('/').next().is_some_and(|name| name.contains(':'));
    let tag = if has_tag { "" } else { ":latest" };
    let has_host = text.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
    let host = match (has_host, text.contains('/')) {
        (true, _) => "",
        (false, true) => "docker.io/",
        (false, false) => "docker.io/library/",
    };
    format!("{host}{text}{tag}")
}

/// Returns the digest of a descriptor.
pub(crate) fn digest_of(descriptor: &Descriptor) -> Result<Digest, ImportError> {
    descriptor.digest.parse().map_err(|_| ImportError::DigestKind { digest: descriptor.digest.clone() })
}

/// Reads a document and checks its length and digest.
fn document(blobs: &dyn Blobs, what: &'static str, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
    let stated = digest_of(descriptor)?;
    let name = stated.to_string();
    let missing = || ImportError::Missing { what, name: name.clone() };
    let bytes = read(blobs, what, &BlobName::Digest(stated.clone()))?.ok_or_else(missing)?;
    let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if found != descriptor.size {
        return Err(ImportError::Size { what, name, found, stated: descriptor.size });
    }
    let found = digest::of_bytes(&bytes);
    if found != stated {
        return Err(ImportError::Digest { what, name, found, stated });
    }
    Ok(bytes)
}

/// Reads a document whole, if it is not too long.
fn read(blobs: &dyn Blobs, what: &'static str, name: &BlobName) -> Result<Option<Vec<u8>>, ImportError> {
    let failed = |source| ImportError::ReadBlob { what, name: name.to_string(), source };
    let Some((mut reader, bytes)) = blobs.open(name).map_err(failed)? else {
        return Ok(None);
    };
    if bytes > DOCUMENT_BYTES_MAX {
        let name = name.to_string();
        return Err(ImportError::DocumentTooLong { what, name, bytes, bytes_max: DOCUMENT_BYTES_MAX });
    }
    let mut content = Vec::new();
    reader.by_ref().take(DOCUMENT_BYTES_MAX).read_to_end(&mut content).map_err(failed)?;
    Ok(Some(content))
}
