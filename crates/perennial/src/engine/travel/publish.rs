//! `image push`: an image as any engine can pull it.
//!
//! The blobs an image came as are not kept, so its layers are written anew: the same each time, so that a registry which
//! has them is sent nothing, but with other digests than those it was pulled by.

use crate::engine::Engine;
use crate::engine::random;
use crate::failure::{Code, Failure, Result};
use perennial_core::export::ExportReport;
use perennial_core::id::{Digest, RunId};
use perennial_core::image::Image;
use perennial_registry::credentials::Credentials;
use perennial_registry::export::Destination;
use perennial_registry::progress::Progress;
use perennial_registry::repository::{
    Access, Expected, Repository, RepositoryOptions, Traffic, Upload, parse_reference, sum,
};
use perennial_store::root::{LockMode, Wait};
use std::fs::File;
use std::path::Path;

/// What was sent.
#[derive(Debug)]
pub struct Published {
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// Digest of the manifest there.
    pub digest: Digest,
    /// What an image cannot say.
    pub report: ExportReport,
    /// What went over the network.
    pub traffic: Traffic,
}

/// Where to, and how.
#[derive(Debug)]
pub struct PublishOrder<'a> {
    /// `[HOST[:PORT]/]NAME[:TAG]`.
    pub reference: &'a str,
    /// Whether to speak HTTP without TLS.
    pub plain_http: bool,
    /// The login.
    pub credentials: Credentials,
}

impl Engine {
    /// Sends an image.
    ///
    /// # Errors
    /// Where the reference is not valid, the image cannot be read, or the registry does not take it.
    pub fn publish_image(&self, image: &Image, order: &PublishOrder<'_>, progress: &dyn Progress) -> Result<Published> {
        let usage = |error| Failure::from(error).code(Code::Usage);
        let (registry, name, tag) = parse_reference(order.reference).map_err(usage)?;
        let options = RepositoryOptions {
            registry,
            repository: name,
            credentials: order.credentials.clone(),
            plain_http: order.plain_http,
            certificates: super::certificates(),
            tries_max: super::TRIES_ASKED,
        };
        let repository = Repository::open(&options, Access::Push)?;
        // Nothing else says that what lies in `staging/` is needed.
        let _images = self.root.lock_images(LockMode::Shared, Wait::Forever)?;
        let path = self.root.staging_dir().join(format!("publish-{}", RunId::from_random(random()?)));
        let published = self.publish_by(&repository, (image, &path), tag, progress);
        // What cannot be removed now is freed by `gc`.
        std::fs::remove_dir_all(&path).ok();
        published
    }

    fn publish_by(
        &self,
        repository: &Repository,
        (image, path): (&Image, &Path),
        tag: String,
        progress: &dyn Progress,
    ) -> Result<Published> {
        let destination = Destination::Oci { path: path.to_path_buf(), tag: Some("image".to_owned()) };
        let exported = self.export_image(image, &destination)?;
        let blobs = path.join("blobs/sha256");
        let manifest = std::fs::read(blobs.join(exported.written.digest.hex()))?;
        let mut uploads = Vec::new();
        for entry in std::fs::read_dir(&blobs)? {
            let file = File::open(entry?.path())?;
            let (digest, bytes) = sum(&file)?;
            if digest != exported.written.digest {
                let name = digest.to_string();
                uploads.push(Upload { digest, file, bytes, name });
            }
        }
        repository.send_blobs(&uploads, progress)?;
        let digest = repository.put_manifest(&tag, &manifest, &Expected::Anything)?;
        let (report, traffic) = (exported.report, repository.traffic());
        Ok(Published { repository: repository.name(), tag, digest, report, traffic })
    }
}
