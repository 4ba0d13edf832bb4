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
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::Index;
use perennial_core::travel::place::{IMAGE_TAG, hidden, of_hidden_image, of_image};
use perennial_core::travel::send::Standing;
use perennial_core::travel::{Contents, ImageAt, Parcel};
use perennial_registry::repository::{Access, Expected, Repository, RepositoryError};
use perennial_store::root::Wait;
use std::collections::{BTreeMap, BTreeSet};

impl Engine {
    /// Makes sure that an image is at a remote; returns where, and what is in its packs.
    pub(super) fn send_image(
        &self,
        sending: &mut Sending<'_>,
        (image, layers): (&Image, &[LayerRecord]),
        known: Option<ObjectId>,
    ) -> Result<(ImageAt, Vec<Index>)> {
        let link = sending.link;
        let place = known.or_else(|| link.keys.as_ref().map(|keys| hidden(&keys.secret(), &image.digest)));
        let what = format!("image-{}-{}", image.digest.hex(), link.remote.name);
        // Two containers on one image send it once.
        let _lock = self.root.lock_travel(&what, Wait::Forever)?;
        let repository = link.open(repository_of(link, &image.digest, place.as_ref()), Access::Push)?;
        let mut there = find_image(link, &repository, &image.digest)?;
        let (mut is_lacking, mut is_for_others) = (false, false);
        if let Some(found) = &mut there {
            is_for_others = link.has_other_readers(&repository, &found.parcel)?;
            is_lacking = absent_packs(&repository, &mut found.parcel)?;
        }
        let found = match there {
            Some(found) if !is_lacking && !sending.is_whole && is_for_others => {
                let Found { tagged, parcel } = found;
                self.put_image(&repository, sending, (image, parcel), &Expected::This(&tagged))?
            }
            Some(found) if !is_lacking && !sending.is_whole => found,
            there => {
                let standing = Standing { loses_base: is_lacking, is_whole: sending.is_whole, has_theirs: false };
                self.send_new_image(&repository, sending, (image, layers), (there, standing))?
            }
        };
        let indexes = self.indexes(&repository, &found.parcel.packs)?;
        add(&mut sending.traffic, repository.traffic());
        Ok((ImageAt { image: image.digest.clone(), parcel: found.tagged.digest, place }, indexes))
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
        let packs = self.send_packs(consignment, sending)?;
        let contents = Contents::Image { image: Box::new(image.clone()) };
        let layers = layers.iter().map(|layer| LayerRecord { cold: false, ..layer.clone() }).collect();
        let parcel = Parcel { contents, layers, packs, sent: sending.sender.clone(), recipients: Vec::new() };
        let expected = before.as_ref().map_or(Expected::Nothing, |found| Expected::This(&found.tagged));
        let found = self.put_image(repository, sending, (image, parcel), &expected)?;
        self.clear_spool(&spool);
        Ok(found)
    }

    /// Has the tag of an image lead to a parcel.
    fn put_image(
        &self,
        repository: &Repository,
        sending: &Sending<'_>,
        (image, parcel): (&Image, Parcel),
        expected: &Expected<'_>,
    ) -> Result<Found> {
        let link = sending.link;
        let manifest = link.send_parcel(repository, parcel, BTreeMap::new())?;
        match repository.put_manifest(IMAGE_TAG, &manifest, expected) {
            // Somebody else has sent it meanwhile: what is there serves as well.
            Ok(_) | Err(RepositoryError::Changed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        find_image(link, repository, &image.digest)?.ok_or_else(|| {
            Failure::new(Code::Failed, format!("image {} was sent and is not there", image.digest)).hint("try again")
        })
    }

    /// Fetches where an image is: as the container says, else as its tag says.
    pub(super) fn find_sent_image(&self, link: &Link, at: &ImageAt) -> Result<(Repository, Found)> {
        let repository = link.open(repository_of(link, &at.image, at.place.as_ref()), Access::Pull)?;
        let found = match find(link, &repository, at.parcel.as_str())? {
            // Where some of its packs have gone, another push may have sent it anew.
            Some(found) if is_of(&found, &at.image) && absent(&repository, &found.parcel)?.is_empty() => Some(found),
            Some(_) | None => find_image(link, &repository, &at.image)?,
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

fn repository_of(link: &Link, image: &Digest, place: Option<&ObjectId>) -> String {
    match place {
        Some(place) => of_hidden_image(&link.remote.prefix, place),
        None => of_image(&link.remote.prefix, image),
    }
}

fn find_image(link: &Link, repository: &Repository, image: &Digest) -> Result<Option<Found>> {
    let Some(found) = find(link, repository, IMAGE_TAG)? else { return Ok(None) };
    if is_of(&found, image) {
        return Ok(Some(found));
    }
    Err(Failure::new(Code::Damaged, format!("what {} has is not image {image}", repository.name()))
        .hint("somebody else has written there; remove it, and push again"))
}

fn is_of(found: &Found, image: &Digest) -> bool {
    matches!(&found.parcel.contents, Contents::Image { image: known } if known.digest == *image)
}
