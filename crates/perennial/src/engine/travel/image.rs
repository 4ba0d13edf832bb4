//! Images that generations lie on: sent once for all containers of a remote, and written over only where packs of it
//! have gone.

use super::link::{Found, Link, find};
use super::send::Consignment;
use super::{add, push::Sending};
use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::Digest;
use perennial_core::image::Image;
use perennial_core::layers::LayerRecord;
use perennial_core::sealed::pack::Index;
use perennial_core::travel::artifact::Artifact;
use perennial_core::travel::place::{IMAGE_TAG, of_image};
use perennial_core::travel::send::Standing;
use perennial_core::travel::{Contents, ImageAt, Parcel};
use perennial_registry::repository::{Access, Expected, Repository, RepositoryError};
use perennial_store::root::Wait;
use std::collections::BTreeSet;

impl Engine {
    /// Makes sure that an image is at a remote; returns where, and what is in its packs.
    pub(super) fn send_image(
        &self,
        sending: &mut Sending<'_>,
        image: &Image,
        layers: &[LayerRecord],
    ) -> Result<(ImageAt, Vec<Index>)> {
        let link = sending.link;
        let what = format!("image-{}-{}", image.digest.hex(), link.remote.name);
        // Two containers on one image send it once.
        let _lock = self.root.lock_travel(&what, Wait::Forever)?;
        let repository = link.open(of_image(&link.remote.prefix, &image.digest), Access::Push)?;
        let mut there = find_image(&repository, &image.digest)?;
        let is_lacking = match &mut there {
            Some(found) => absent_packs(&repository, &mut found.parcel)?,
            None => false,
        };
        let found = match there {
            Some(found) if !is_lacking && !sending.is_whole => found,
            there => {
                let standing = Standing { loses_base: is_lacking, is_whole: sending.is_whole, has_theirs: false };
                self.send_new_image(&repository, sending, (image, layers), (there, standing))?
            }
        };
        let indexes = self.indexes(&repository, &found.parcel.packs)?;
        add(&mut sending.traffic, repository.traffic());
        Ok((ImageAt { image: image.digest.clone(), parcel: found.tagged.digest }, indexes))
    }

    fn send_new_image(
        &self,
        repository: &Repository,
        sending: &Sending<'_>,
        (image, layers): (&Image, &[LayerRecord]),
        (before, standing): (Option<Found>, Standing),
    ) -> Result<Found> {
        let spool = format!("image-{}-{}", image.digest.hex(), sending.link.remote.name);
        let there = before.as_ref().map(|found| found.parcel.packs.clone()).unwrap_or_default();
        let consignment = Consignment { repository, spool: spool.clone(), layers, elsewhere: &[], there, standing };
        let packs = self.send_packs(consignment, sending.progress)?;
        let contents = Contents::Image { image: Box::new(image.clone()) };
        let layers = layers.iter().map(|layer| LayerRecord { cold: false, ..layer.clone() }).collect();
        let parcel = Parcel { contents, layers, packs, sent: sending.sender.clone() };
        let bytes = parcel.encode();
        let digest = repository.send_document(&bytes)?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let blobs: Vec<_> = parcel.packs.iter().map(|pack| (pack.digest.clone(), pack.bytes)).collect();
        let manifest = Artifact::new((digest, length), &blobs, std::collections::BTreeMap::new()).encode();
        let expected = before.as_ref().map_or(Expected::Nothing, |found| Expected::This(&found.tagged));
        match repository.put_manifest(IMAGE_TAG, &manifest, &expected) {
            // Somebody else has sent it meanwhile: what is there serves as well.
            Ok(_) | Err(RepositoryError::Changed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.clear_spool(&spool);
        find_image(repository, &image.digest)?.ok_or_else(|| {
            Failure::new(Code::Failed, format!("image {} was sent and is not there", image.digest)).hint("try again")
        })
    }

    /// Fetches where an image is: as the container says, else as its tag says.
    pub(super) fn find_sent_image(&self, link: &Link, at: &ImageAt) -> Result<(Repository, Found)> {
        let repository = link.open(of_image(&link.remote.prefix, &at.image), Access::Pull)?;
        let found = match find(&repository, at.parcel.as_str())? {
            // Where some of its packs have gone, another push may have sent it anew.
            Some(found) if is_of(&found, &at.image) && absent(&repository, &found.parcel)?.is_empty() => Some(found),
            Some(_) | None => find_image(&repository, &at.image)?,
        };
        let found = found.ok_or_else(|| {
            Failure::new(Code::NotFound, format!("image {} is not in {}", at.image, repository.name()))
                .hint("push the container again from a machine that has it")
        })?;
        Ok((repository, found))
    }
}

/// Takes those packs out of a parcel whose blobs are gone; returns whether there are any.
pub(super) fn absent_packs(repository: &Repository, parcel: &mut Parcel) -> Result<bool> {
    let absent = absent(repository, parcel)?;
    parcel.packs.retain(|pack| !absent.contains(&pack.digest));
    Ok(!absent.is_empty())
}

fn absent(repository: &Repository, parcel: &Parcel) -> Result<BTreeSet<Digest>> {
    let digests: Vec<Digest> = parcel.packs.iter().map(|pack| pack.digest.clone()).collect();
    Ok(repository.absent(&digests)?)
}

fn find_image(repository: &Repository, image: &Digest) -> Result<Option<Found>> {
    let Some(found) = find(repository, IMAGE_TAG)? else { return Ok(None) };
    if is_of(&found, image) {
        return Ok(Some(found));
    }
    Err(Failure::new(Code::Damaged, format!("what {} has is not image {image}", repository.name()))
        .hint("somebody else has written there; remove it, and push again"))
}

fn is_of(found: &Found, image: &Digest) -> bool {
    matches!(&found.parcel.contents, Contents::Image { image: known } if known.digest == *image)
}
