//! Images that generations lie on: sent once for all containers of a remote, and written over only where packs of it
//! have gone.

use super::link::{Found, Link, Look, find, look};
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
use perennial_core::travel::{Contents, ImageAt, PackAt, Parcel};
use perennial_registry::repository::{Access, Expected, Lacking, Repository, RepositoryError, Tagged};
use perennial_store::root::Wait;
use std::collections::BTreeMap;

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
        let found = match look(link, &repository, IMAGE_TAG)? {
            Look::Nothing => self.send_new_image(&repository, sending, (image, layers), Before::default()),
            // Nobody needs what is lost to have it anew.
            Look::Lost(lost) => {
                let before = Before { tagged: Some(lost.tagged), ..Before::default() };
                self.send_new_image(&repository, sending, (image, layers), before)
            }
            Look::Found(found) => self.renew_image(&repository, sending, (image, layers), *found),
        };
        let found = self.unless_full(&what, found)?;
        let indexes = self.indexes(&repository, &found.parcel.packs)?;
        add(&mut sending.traffic, repository.traffic());
        Ok((ImageAt { image: image.digest.clone(), parcel: found.tagged.digest, place }, indexes))
    }

    /// Sends again what of an image has gone, or lets other keys read it; most often nothing.
    fn renew_image(
        &self,
        repository: &Repository,
        sending: &Sending<'_>,
        (image, layers): (&Image, &[LayerRecord]),
        found: Found,
    ) -> Result<Found> {
        let Found { tagged, mut parcel } = of_this(found, repository, &image.digest)?;
        let is_for_others = sending.link.has_other_readers(repository, &parcel)?;
        match take_absent(repository, &mut parcel)? {
            Lack::Nothing if !sending.is_whole && is_for_others => {
                self.put_image(repository, sending, (image, parcel), &Expected::This(&tagged))
            }
            Lack::Nothing if !sending.is_whole => Ok(Found { tagged, parcel }),
            lack @ (Lack::Nothing | Lack::Gone | Lack::Unsound) => {
                let before = Before { tagged: Some(tagged), packs: parcel.packs, lack };
                self.send_new_image(repository, sending, (image, layers), before)
            }
        }
    }

    fn send_new_image(
        &self,
        repository: &Repository,
        sending: &Sending<'_>,
        (image, layers): (&Image, &[LayerRecord]),
        before: Before,
    ) -> Result<Found> {
        let Before { tagged, packs: there, lack } = before;
        let is_whole = sending.is_whole;
        let standing = Standing { loses_base: lack != Lack::Nothing, is_whole, has_theirs: false };
        let spool = format!("image-{}-{}", image.digest.hex(), sending.link.remote.name);
        let is_salted = is_whole || lack == Lack::Unsound;
        let (spool_name, elsewhere) = (spool.clone(), &[][..]);
        let consignment = Consignment { repository, spool: spool_name, layers, elsewhere, there, standing, is_salted };
        let packs = self.send_packs(consignment, sending)?;
        let contents = Contents::Image { image: Box::new(image.clone()) };
        let layers = layers.iter().map(|layer| LayerRecord { cold: false, ..layer.clone() }).collect();
        let parcel = Parcel { contents, layers, packs, sent: sending.sender.clone(), recipients: Vec::new() };
        let expected = tagged.as_ref().map_or(Expected::Nothing, Expected::This);
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
        let found = match look(link, &repository, at.parcel.as_str())? {
            // Where some of it has gone, another push may have sent it anew.
            Look::Found(found)
                if is_of(&found, &at.image) && lacking(&repository, &found.parcel)? == Lacking::default() =>
            {
                Some(*found)
            }
            Look::Found(_) | Look::Lost(_) | Look::Nothing => find_image(link, &repository, &at.image)?,
        };
        let found = found.ok_or_else(|| {
            Failure::new(Code::NotFound, format!("image {} is not in {}", at.image, repository.name()))
                .hint("push the container again from a machine that has it")
        })?;
        Ok((repository, found))
    }
}

/// Of an image that is sent anew, what is there.
#[derive(Default)]
struct Before {
    tagged: Option<Tagged>,
    /// Packs that are there still.
    packs: Vec<PackAt>,
    lack: Lack,
}

/// What of packs a registry lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Lack {
    #[default]
    Nothing,
    /// Some are gone, and can be sent again.
    Gone,
    /// Some are there in another length, and a registry may take no other of their names.
    Unsound,
}

/// Takes those packs out of a parcel whose blobs are not there as they should be.
pub(super) fn take_absent(repository: &Repository, parcel: &mut Parcel) -> Result<Lack> {
    let Lacking { gone, unsound } = lacking(repository, parcel)?;
    parcel.packs.retain(|pack| !gone.contains(&pack.digest) && !unsound.contains(&pack.digest));
    Ok(match (unsound.is_empty(), gone.is_empty()) {
        (true, true) => Lack::Nothing,
        (true, false) => Lack::Gone,
        (false, _) => Lack::Unsound,
    })
}

fn lacking(repository: &Repository, parcel: &Parcel) -> Result<Lacking> {
    let blobs: Vec<(Digest, u64)> = parcel.packs.iter().map(|pack| (pack.digest.clone(), pack.blob_bytes())).collect();
    Ok(repository.lacking(&blobs)?)
}

fn repository_of(link: &Link, image: &Digest, place: Option<&ObjectId>) -> String {
    match place {
        Some(place) => of_hidden_image(&link.remote.prefix, place),
        None => of_image(&link.remote.prefix, image),
    }
}

fn find_image(link: &Link, repository: &Repository, image: &Digest) -> Result<Option<Found>> {
    find(link, repository, IMAGE_TAG)?.map(|found| of_this(found, repository, image)).transpose()
}

/// Refuses what is another image.
fn of_this(found: Found, repository: &Repository, image: &Digest) -> Result<Found> {
    if is_of(&found, image) {
        return Ok(found);
    }
    Err(Failure::new(Code::Damaged, format!("what {} has is not image {image}", repository.name()))
        .hint("somebody else has written there; remove it, and push again"))
}

fn is_of(found: &Found, image: &Digest) -> bool {
    matches!(&found.parcel.contents, Contents::Image { image: known } if known.digest == *image)
}
