//! Pulls an image from a registry: its documents first, then the blobs the store lacks, then the import of them.
//!
//! Tasks: one thread, one runtime; up to `PARALLEL` blobs at once, each into a file in the staging directory that is
//! named by its digest. A transfer that breaks goes on where it stopped, also in a later process. A tag is resolved
//! once: everything after it goes by digest.

pub(crate) mod blob;
mod error;

pub use error::PullError;

use crate::blobs::{Blob, BlobName, Blobs, Section};
use crate::credentials::{self, Credentials};
use crate::digest;
use crate::import::{self, Described, ImportOptions, Imported, LayerTarget, Place, chain, describe};
use crate::manifest::{DOCKER_LIST, DOCKER_MANIFEST, DOCUMENT_BYTES_MAX, Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::progress::Progress;
use crate::trust::Trust;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use perennial_core::id::Digest;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Blobs on their way at once: what docker and podman use is 3 and 6.
const PARALLEL: usize = 4;
/// A registry that takes longer to take a connection is not there.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transfer in which nothing comes for so long is broken.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// How to import what was pulled; its `scratch` is where blobs are staged.
    pub import: ImportOptions,
    /// The login.
    pub credentials: Credentials,
    /// Whether to speak HTTP without TLS. A registry on this machine's loopback is spoken to so where there are no
    /// certificates for it.
    pub plain_http: bool,
    /// Where certificates of registries are: [`crate::trust::directories`].
    pub certificates: Vec<PathBuf>,
    /// Failures in a row without a byte of progress after which a transfer is given up.
    pub tries_max: u32,
}

impl PullOptions {
    /// Returns options with the given import options, no login, and TLS.
    #[must_use]
    pub fn new(import: ImportOptions) -> Self {
        let credentials = Credentials::Anonymous;
        Self { import, credentials, plain_http: false, certificates: Vec::new(), tries_max: 6 }
    }
}

/// A registry and what is asked of it.
struct Session {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
    tries_max: u32,
}

/// Pulls an image into a store. `reference` is `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`; without a host it is Docker's.
///
/// # Errors
/// When the reference is not valid, the registry cannot be reached or refuses, what it sends is damaged, or the import
/// fails. Blobs that arrived, whole or in part, stay in the staging directory for the next try.
pub fn pull(
    reference: &str,
    options: &PullOptions,
    target: &mut dyn LayerTarget,
    progress: &dyn Progress,
) -> Result<Imported, PullError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PullError::Runtime)?;
    let mut session = Session::new(reference, options)?;
    let top = runtime.block_on(session.resolve())?;
    let source = session.reference.to_string();
    let described = session.describe(&runtime, &top, options)?;
    let layers_max = options.import.limits.layers_max;
    if described.layers.len() > layers_max {
        let layers = described.layers.len();
        return Err(import::ImportError::TooManyLayers { layers, layers_max }.into());
    }
    let wanted = missing(&described, target);
    let files = runtime.block_on(session.download(&wanted, &options.import.scratch, progress))?;
    drop(runtime);
    let blobs = StagedBlobs { files };
    let place = Place { blobs: &blobs, source: &source };
    let imported = import::import_described(&place, described, &options.import, target, progress);
    if imported.as_ref().err().is_none_or(is_damage) {
        for digest in blobs.files.keys() {
            blob::discard(&options.import.scratch, digest)?;
        }
    }
    Ok(imported?)
}

/// Returns whether an import failed because of what is in the staged blobs, so that they are of no use any more.
fn is_damage(error: &import::ImportError) -> bool {
    use import::ImportError as Error;
    matches!(error, Error::Digest { .. } | Error::Size { .. } | Error::Apply { .. })
}

/// Returns the blobs of layers the store lacks: number of the layer, digest and size.
fn missing(described: &Described, target: &dyn LayerTarget) -> Vec<Wanted> {
    let keys = chain(described.layers.iter().map(|layer| layer.diff_id.clone()));
    let mut wanted: Vec<Wanted> = Vec::new();
    for (layer, (key, described)) in keys.iter().zip(&described.layers).enumerate() {
        let BlobName::Digest(digest) = &described.blob else {
            continue;
        };
        if target.find(key).is_none() && !wanted.iter().any(|other| other.digest == *digest) {
            wanted.push(Wanted { layer, digest: digest.clone(), size: described.size.unwrap_or(0) });
        }
    }
    wanted
}

/// A blob to be downloaded.
#[derive(Debug, Clone)]
struct Wanted {
    layer: usize,
    digest: Digest,
    size: u64,
}

/// Blobs that have arrived, held open so that another pull of the same blob cannot take them away.
struct StagedBlobs {
    files: BTreeMap<Digest, Rc<File>>,
}

impl Blobs for StagedBlobs {
    fn open(&self, name: &BlobName) -> io::Result<Option<Blob>> {
        let BlobName::Digest(digest) = name else {
            return Ok(None);
        };
        let Some(file) = self.files.get(digest) else {
            return Ok(None);
        };
        let length = file.metadata()?.len();
        Ok(Some((Box::new(Section::new(file.clone(), 0, length)), length)))
    }
}

impl Session {
    fn new(text: &str, options: &PullOptions) -> Result<Self, PullError> {
        let reference: Reference =
            text.parse().map_err(|error| PullError::Reference { text: text.to_owned(), reason: format!("{error}") })?;
        let login = credentials::find(&options.credentials, reference.registry(), reference.repository())?;
        let auth = login.map_or(RegistryAuth::Anonymous, |login| RegistryAuth::Basic(login.user, login.password));
        let trust = Trust::of(reference.resolve_registry(), options.plain_http, &options.certificates)?;
        let protocol = if trust.is_plain { ClientProtocol::Http } else { ClientProtocol::Https };
        // Fails only where another provider is installed already, which then serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("perennial/", env!("CARGO_PKG_VERSION")),
            extra_root_certificates: trust.for_login(),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|source| PullError::Client { source })?;
        Ok(Self { client, auth, reference, tries_max: options.tries_max.max(1) })
    }

    /// Logs in, and resolves the reference to a document, which is returned with its descriptor.
    async fn resolve(&mut self) -> Result<(Descriptor, Vec<u8>), PullError> {
        self.retried(async || self.client.auth(&self.reference, &self.auth, RegistryOperation::Pull).await.map(drop))
            .await?;
        let (bytes, digest) = self.manifest(&self.reference).await?;
        let digest: Digest = digest.parse().map_err(|_| import::ImportError::DigestKind { digest: digest.clone() })?;
        let found = digest::of_bytes(&bytes);
        if found != digest {
            let name = digest.to_string();
            return Err(import::ImportError::Digest { what: "manifest", name, found, stated: digest }.into());
        }
        let descriptor = Descriptor {
            media_type: String::new(),
            digest: digest.to_string(),
            size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            platform: None,
            annotations: BTreeMap::new(),
        };
        Ok((descriptor, bytes))
    }

    async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, String), PullError> {
        let accepted = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        let (bytes, digest) =
            self.retried(async || self.client.pull_manifest_raw(reference, &self.auth, &accepted).await).await?;
        self.check_length("manifest", &digest, u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        Ok((bytes.to_vec(), digest))
    }

    fn check_length(&self, what: &'static str, name: &str, bytes: u64) -> Result<(), PullError> {
        if bytes > DOCUMENT_BYTES_MAX {
            let (name, bytes_max) = (name.to_owned(), DOCUMENT_BYTES_MAX);
            return Err(import::ImportError::DocumentTooLong { what, name, bytes, bytes_max }.into());
        }
        Ok(())
    }

    /// Fetches the documents from `top` to the configuration.
    fn describe(
        &self,
        runtime: &tokio::runtime::Runtime,
        (top, top_bytes): &(Descriptor, Vec<u8>),
        options: &PullOptions,
    ) -> Result<Described, PullError> {
        // The walk over documents is shared with imports; what goes wrong on the network is carried around it.
        let network_error = std::cell::RefCell::new(None);
        let fetch = |descriptor: &Descriptor, what: &'static str| {
            if descriptor.digest == top.digest {
                return Ok(top_bytes.clone());
            }
            let stated = import::digest_of(descriptor)?;
            let bytes = runtime.block_on(self.document(descriptor, what)).map_err(|error| {
                network_error.replace(Some(error));
                import::ImportError::Missing { what, name: descriptor.digest.clone() }
            })?;
            let found = digest::of_bytes(&bytes);
            if found != stated {
                return Err(import::ImportError::Digest { what, name: stated.to_string(), found, stated });
            }
            Ok(bytes)
        };
        let described = describe(&fetch, top, &options.import);
        match (described, network_error.into_inner()) {
            (Ok(described), _) => Ok(described),
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(error.into()),
        }
    }

    async fn document(&self, descriptor: &Descriptor, what: &'static str) -> Result<Vec<u8>, PullError> {
        self.check_length(what, &descriptor.digest, descriptor.size)?;
        if what == "manifest" {
            let reference = self.reference.clone_with_digest(descriptor.digest.clone());
            return self.manifest(&reference).await.map(|(bytes, _)| bytes);
        }
        let digest = descriptor.digest.as_str();
        let work = async || {
            let mut stream = self.client.pull_blob_stream(&self.reference, digest).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk?);
                if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > descriptor.size {
                    break;
                }
            }
            Ok(bytes)
        };
        self.retried(work).await.map_err(|error| error.about_blob(digest))
    }

    async fn download(
        &self,
        wanted: &[Wanted],
        staging: &std::path::Path,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<Digest, Rc<File>>, PullError> {
        let downloads = wanted.iter().map(|wanted| async move {
            let file = blob::Download { session: self, wanted, staging, progress }.run().await?;
            Ok::<_, PullError>((wanted.digest.clone(), Rc::new(file)))
        });
        stream::iter(downloads).buffer_unordered(PARALLEL).try_collect().await
    }

    /// Tries until it works, the failure is final, or it has failed too often.
    async fn retried<T>(
        &self,
        work: impl AsyncFn() -> Result<T, oci_client::errors::OciDistributionError>,
    ) -> Result<T, PullError> {
        let mut tries = 0;
        loop {
            let error = match work().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            tries += 1;
            if tries >= self.tries_max.min(3) || !error::is_passing(&error) {
                return Err(PullError::from_client(error, &self.reference));
            }
            tokio::time::sleep(blob::pause(tries)).await;
        }
    }
}
