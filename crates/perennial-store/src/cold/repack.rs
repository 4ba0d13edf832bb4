//! Packs written anew without what nothing needs.

use super::archive::Session;
use super::index::{ChunkPlace, Pack};
use super::read::Unread;
use super::{Cold, ColdError, Packer, pack_path};
use crate::layer;
use crate::root::Root;
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{FrameAt, Part};
use perennial_core::sealed::repack::{PackUse, RepackPlan, plan_repack};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What rewriting did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repacked {
    /// Packs that went to the trash, with their lengths in bytes.
    pub removed: Vec<(ObjectId, u64)>,
    /// New packs with their lengths in bytes.
    pub written: Vec<(ObjectId, u64)>,
    /// Packs that should have gone but hold needed things that cannot be read: they stay for whoever can mend them.
    pub damaged: Vec<ObjectId>,
}

/// What is needed of the packs.
struct Needed {
    /// Chunks: the numbers of pack, frame and slot of the copy that is needed.
    chunks: BTreeSet<(u32, u32, u32)>,
    /// Recipes: their object, and the pack whose copy is needed.
    recipes: BTreeMap<ObjectId, u32>,
}

impl Packer {
    /// Returns what [`Packer::repack`] would do with the packs.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn plan_repack(&mut self, is_needed: &mut dyn FnMut(&ObjectId) -> bool) -> Result<RepackPlan, ColdError> {
        let needed = self.cold.needed(is_needed)?;
        Ok(plan_repack(&self.cold.uses(&needed)?))
    }

    /// Removes packs of which nothing is needed, and nothing else; returns them with their lengths in bytes.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn remove_unneeded(
        &mut self,
        root: &Root,
        is_needed: &mut dyn FnMut(&ObjectId) -> bool,
    ) -> Result<Vec<(ObjectId, u64)>, ColdError> {
        let plan = self.plan_repack(is_needed)?;
        let mut repacked = Repacked::default();
        for pack in &plan.remove {
            self.discard(root, pack, &mut repacked)?;
        }
        Ok(repacked.removed)
    }

    /// Removes packs of which nothing is needed, and writes those anew of which little is. `is_needed` tells of an id
    /// whether it is an object that must stay in packs; it is also asked about ids that are no objects. `go_on` is
    /// asked before each pack.
    ///
    /// A pack goes only when what is needed of it was read back from others. It can be stopped or die at any time.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn repack(
        &mut self,
        root: &Root,
        is_needed: &mut dyn FnMut(&ObjectId) -> bool,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Repacked, ColdError> {
        let needed = self.cold.needed(is_needed)?;
        let plan = plan_repack(&self.cold.uses(&needed)?);
        let mut repacked = Repacked::default();
        for pack in &plan.remove {
            if !go_on() {
                return Ok(repacked);
            }
            self.discard(root, pack, &mut repacked)?;
        }
        let mut moved = Vec::new();
        let mut session = Session { cold: &mut self.cold, writer: None, packs: Vec::new() };
        for pack in plan.rewrite {
            if !go_on() {
                break;
            }
            let list = session.cold.listed(&pack, &needed)?;
            if session.rewrite(&list)? {
                moved.push((pack, list));
            } else {
                repacked.damaged.push(pack);
            }
        }
        session.publish()?;
        repacked.written = std::mem::take(&mut session.packs);
        let new: BTreeSet<ObjectId> = repacked.written.iter().map(|(pack, _)| *pack).collect();
        for (pack, list) in moved {
            // A new pack can be the very one that was written anew, byte for byte.
            if new.contains(&pack) {
                continue;
            }
            if self.cold.is_elsewhere(&pack, &list)? {
                self.discard(root, &pack, &mut repacked)?;
            } else {
                repacked.damaged.push(pack);
            }
        }
        Ok(repacked)
    }

    fn discard(&mut self, root: &Root, pack: &ObjectId, repacked: &mut Repacked) -> Result<(), ColdError> {
        let path = pack_path(&self.cold.path, pack);
        let bytes = self.cold.packs().into_iter().find(|(id, _)| id == pack).map_or(0, |(_, bytes)| bytes);
        layer::discard(root, &path, &format!("pack-{pack}")).map_err(ColdError::Discard)?;
        Arc::make_mut(&mut self.cold.places).remove(pack);
        repacked.removed.push((*pack, bytes));
        Ok(())
    }
}

/// What is needed of one pack: chunks in the order of the pack, and recipes.
struct Listed {
    chunks: Vec<ObjectId>,
    recipes: Vec<ObjectId>,
}

impl Session<'_> {
    /// Copies what is needed of a pack; `false` where some of it cannot be read.
    fn rewrite(&mut self, list: &Listed) -> Result<bool, ColdError> {
        let mut whole = true;
        for id in &list.chunks {
            match self.cold.chunk(id)? {
                Some(_) if self.writer.as_ref().is_some_and(|writer| writer.has(id)) => {}
                Some(content) => self.push(*id, &content)?,
                None => whole = false,
            }
        }
        for object in &list.recipes {
            match self.cold.recipe(object)? {
                Some(recipe) => self.writer()?.push_recipe(recipe)?,
                None => whole = false,
            }
        }
        Ok(whole)
    }
}

impl Cold {
    /// Returns how much of each pack is needed. `is_needed` is asked as by [`Packer::repack`].
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn pack_uses(&mut self, is_needed: &mut dyn FnMut(&ObjectId) -> bool) -> Result<Vec<PackUse>, ColdError> {
        let needed = self.needed(is_needed)?;
        self.uses(&needed)
    }

    /// Finds out what is needed: of several copies of a chunk the first that can be read.
    fn needed(&mut self, is_needed: &mut dyn FnMut(&ObjectId) -> bool) -> Result<Needed, ColdError> {
        let mut needed = Needed { chunks: BTreeSet::new(), recipes: BTreeMap::new() };
        for (_, _, pack, at) in self.frames() {
            let Some(frame) = known(self.reader.table(pack, at))? else { continue };
            for chunk in frame.chunks.iter().filter(|chunk| is_needed(&chunk.id)) {
                self.mark(&chunk.id, &mut needed)?;
            }
        }
        for place in self.places.all_recipes().to_vec() {
            if !is_needed(&place.object) || needed.recipes.contains_key(&place.object) {
                continue;
            }
            let Some(pack) = self.places.pack(place.pack).map(|pack| pack.id) else { continue };
            let Some(recipe) = known(self.reader.recipe(pack, &place))? else { continue };
            needed.recipes.insert(place.object, place.pack);
            for part in &recipe.parts {
                match part {
                    Part::Chunk(chunk) => self.mark(&chunk.id, &mut needed)?,
                    Part::Zeros(_) => {}
                }
            }
        }
        Ok(needed)
    }

    fn mark(&mut self, id: &ObjectId, needed: &mut Needed) -> Result<(), ColdError> {
        let several = self.places.chunks(id).nth(1).is_some();
        let place = if several { self.find_readable(id, None)? } else { None };
        let place = if place.is_some() { place } else { self.find_chunk(id)? };
        needed.chunks.extend(place.map(|place| (place.pack, place.frame, place.slot)));
        Ok(())
    }

    /// Returns the first place, outside one pack, from which a chunk can be read.
    fn find_readable(&mut self, id: &ObjectId, not_in: Option<&ObjectId>) -> Result<Option<ChunkPlace>, ColdError> {
        for place in self.places.chunks(id) {
            let Some((pack, at)) = self.places.frame(&place) else { continue };
            if Some(&pack) == not_in {
                continue;
            }
            let loaded = known(self.reader.frame(pack, at))?;
            if loaded.is_some_and(|loaded| loaded.chunk(place.slot).is_some_and(|(chunk, _)| chunk.id == *id)) {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// Returns all frames: numbers of pack and frame, the pack, the place.
    fn frames(&self) -> Vec<(u32, u32, ObjectId, FrameAt)> {
        let of_pack = |(number, pack): (u32, &Pack)| {
            let id = pack.id;
            (0_u32..).zip(pack.frames.clone()).map(move |(frame, at)| (number, frame, id, at))
        };
        self.places.packs().flat_map(of_pack).collect()
    }

    /// Returns how much of each pack is needed: of a frame as much of its length as of its content.
    fn uses(&mut self, needed: &Needed) -> Result<Vec<PackUse>, ColdError> {
        let mut live: BTreeMap<u32, u64> = BTreeMap::new();
        for (number, frame_number, pack, at) in self.frames() {
            let Some(frame) = known(self.reader.table(pack, at))? else { continue };
            let slots = (0_u32..).zip(&frame.chunks);
            let slots = slots.filter(|(slot, _)| needed.chunks.contains(&(number, frame_number, *slot)));
            let content: u64 = slots.map(|(_, chunk)| u64::from(chunk.bytes)).sum();
            let length = u128::from(at.payload_bytes).saturating_add(at.section_bytes.into());
            let share = length.saturating_mul(content.into()).div_ceil(u128::from(frame.content_bytes().max(1)));
            let sum = live.entry(number).or_default();
            *sum = sum.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
        }
        for place in self.places.all_recipes() {
            if needed.recipes.get(&place.object) == Some(&place.pack) {
                let sum = live.entry(place.pack).or_default();
                *sum = sum.saturating_add(place.bytes.into());
            }
        }
        let use_of = |(number, pack): (u32, &Pack)| PackUse {
            pack: pack.id,
            bytes: pack.bytes,
            live_bytes: live.get(&number).copied().unwrap_or(0),
        };
        Ok(self.places.packs().map(use_of).collect())
    }

    /// Lists what is needed of a pack.
    fn listed(&mut self, pack: &ObjectId, needed: &Needed) -> Result<Listed, ColdError> {
        let mut chunks = Vec::new();
        let frames = self.frames();
        let mut number = None;
        for (pack_number, frame_number, id, at) in frames.into_iter().filter(|(_, _, id, _)| id == pack) {
            number = Some(pack_number);
            let Some(frame) = known(self.reader.table(id, at))? else { continue };
            let slots = (0_u32..).zip(&frame.chunks);
            let slots = slots.filter(|(slot, _)| needed.chunks.contains(&(pack_number, frame_number, *slot)));
            chunks.extend(slots.map(|(_, chunk)| chunk.id));
        }
        let number = number.or_else(|| self.places.packs().find(|(_, other)| other.id == *pack).map(|(n, _)| n));
        let recipes = needed.recipes.iter().filter(|(_, other)| Some(**other) == number);
        Ok(Listed { chunks, recipes: recipes.map(|(object, _)| *object).collect() })
    }

    /// Returns whether all that is listed of a pack can be read from others.
    fn is_elsewhere(&mut self, pack: &ObjectId, list: &Listed) -> Result<bool, ColdError> {
        for id in &list.chunks {
            if self.find_readable(id, Some(pack))?.is_none() {
                return Ok(false);
            }
        }
        for object in &list.recipes {
            let mut found = false;
            for place in self.places.recipes(object) {
                let Some(other) = self.places.pack(place.pack).map(|pack| pack.id) else { continue };
                found = found || (other != *pack && known(self.reader.recipe(other, &place))?.is_some());
            }
            if !found {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Turns damage into nothing; while a packer holds its lock, no pack goes away.
fn known<T>(read: Result<T, Unread>) -> Result<Option<T>, ColdError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(Unread::Damaged | Unread::Gone) => Ok(None),
        Err(Unread::Failed(error)) => Err(error),
    }
}
