//! Reading a whole pack to see whether it is still what was written, and naming what is lost where it is not.

use super::index::Places;
use super::read::Unread;
use super::{Cold, ColdError, pack_path};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::Part;
use std::collections::BTreeSet;
use std::fs::File;

/// A stretch of a pack that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Where the frame or recipe begins, in bytes.
    pub offset: u64,
    /// The chunks, or the recipe's object, that were there.
    pub held: Vec<ObjectId>,
}

/// What reading a pack showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackReport {
    /// Whether the file is what its name says, byte for byte.
    pub intact: bool,
    /// Whether its index had to be made anew by a scan.
    pub scanned: bool,
    /// Frames and recipes that were read.
    pub read: u64,
    /// Those that could not.
    pub unreadable: Vec<Unreadable>,
    /// What no pack can give any more, sorted: objects with a recipe, and chunks. The id of a chunk that is a whole
    /// object is that object's; other chunks' ids name no object.
    pub lost: Vec<ObjectId>,
}

impl Cold {
    /// Reads a pack completely.
    ///
    /// # Errors
    /// [`ColdError::Io`], not for damage, which is reported; [`ColdError::Pack`] for a pack of a newer release.
    pub fn verify(&mut self, pack: &ObjectId) -> Result<PackReport, ColdError> {
        let path = pack_path(&self.path, pack);
        self.reader.forget();
        let mut hasher = blake3::Hasher::new();
        let mut file = File::open(&path).map_err(ColdError::io("open", &path))?;
        std::io::copy(&mut file, &mut hasher).map_err(ColdError::io("read", &path))?;
        // The index as it is on the disk now.
        let (_, index, scanned) = Places::read(&path)?;
        let intact = ObjectId::new(*hasher.finalize().as_bytes()) == *pack;
        let mut report = PackReport { intact, scanned, ..PackReport::default() };
        for (number, at) in (0_u32..).zip(&index.frames) {
            let good = match self.reader.frame(*pack, *at) {
                Ok(loaded) => {
                    let slots = 0..u32::try_from(loaded.frame.chunks.len()).unwrap_or(u32::MAX);
                    slots.into_iter().all(|slot| loaded.chunk(slot).is_some())
                }
                Err(Unread::Damaged) => false,
                Err(Unread::Gone) => return Err(ColdError::io("open", &path)(std::io::ErrorKind::NotFound.into())),
                Err(Unread::Failed(error)) => return Err(error),
            };
            let held = || index.chunks.iter().filter(|chunk| chunk.frame == number).map(|chunk| chunk.id).collect();
            report.note(good, at.offset, held);
        }
        for at in &index.recipes {
            let place = self.places.recipes(&at.object).find(|place| place.offset == at.offset);
            let good = match place.map(|place| self.reader.recipe(*pack, &place)) {
                Some(Ok(_)) => true,
                Some(Err(Unread::Failed(error))) => return Err(error),
                Some(Err(Unread::Damaged | Unread::Gone)) | None => false,
            };
            report.note(good, at.offset, || vec![at.object]);
        }
        report.lost = self.lost(&report.unreadable)?;
        Ok(report)
    }

    /// Returns what of these cannot be had from elsewhere, and the objects that need it.
    fn lost(&mut self, unreadable: &[Unreadable]) -> Result<Vec<ObjectId>, ColdError> {
        let mut lost = BTreeSet::new();
        for id in unreadable.iter().flat_map(|unreadable| &unreadable.held) {
            if self.chunk(id)?.is_none() && self.recipe(id)?.is_none() {
                lost.insert(*id);
            }
        }
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        let chunks = lost.clone();
        let objects: Vec<ObjectId> = self.places.all_recipes().iter().map(|place| place.object).collect();
        for object in objects {
            let Some(recipe) = self.recipe(&object)? else { continue };
            let is_lost = |part: &Part| matches!(part, Part::Chunk(chunk) if chunks.contains(&chunk.id));
            if recipe.parts.iter().any(is_lost) {
                lost.insert(object);
            }
        }
        Ok(lost.into_iter().collect())
    }
}

impl PackReport {
    fn note(&mut self, good: bool, offset: u64, held: impl FnOnce() -> Vec<ObjectId>) {
        if good {
            self.read = self.read.saturating_add(1);
        } else {
            self.unreadable.push(Unreadable { offset, held: held() });
        }
    }
}
