//! Where everything in all packs is: their indexes in memory, 24 bytes a chunk.

use super::{ColdError, EXTENSION, pack_path};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{self, FrameAt, Index, PackError, RecipeAt, Section, TRAILER_BYTES};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes looked through at once for the next section of a pack without an index.
const SCAN_BYTES: usize = 1 << 20;

/// A pack.
#[derive(Debug, Clone)]
pub(super) struct Pack {
    pub(super) id: ObjectId,
    pub(super) bytes: u64,
    pub(super) frames: Vec<FrameAt>,
    /// Its index was damaged.
    pub(super) scanned: bool,
}

/// Where a chunk is; of its id only as much as tells chunks apart in practice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ChunkPlace {
    prefix: u64,
    pub(super) pack: u32,
    pub(super) frame: u32,
    pub(super) slot: u32,
}

/// Where a recipe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RecipePlace {
    pub(super) object: ObjectId,
    pub(super) pack: u32,
    pub(super) offset: u64,
    pub(super) bytes: u32,
}

/// Where everything is.
#[derive(Debug, Default, Clone)]
pub(super) struct Places {
    /// A pack that was removed leaves a gap, so that the numbers of the others stay.
    packs: Vec<Option<Pack>>,
    chunks: Vec<ChunkPlace>,
    recipes: Vec<RecipePlace>,
}

impl Places {
    /// Reads the indexes of all packs in a directory.
    pub(super) fn load(directory: &Path) -> Result<Self, ColdError> {
        let entries = std::fs::read_dir(directory).map_err(ColdError::io("list", directory))?;
        let mut ids: Vec<ObjectId> = Vec::new();
        for entry in entries {
            let name = entry.map_err(ColdError::io("list", directory))?.file_name();
            let id = name
                .to_str()
                .and_then(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.')?.parse::<ObjectId>().ok());
            ids.extend(id);
        }
        ids.sort_unstable();
        let mut places = Self::default();
        for id in ids {
            let path = pack_path(directory, &id);
            match Self::read(&path) {
                Ok((bytes, index, scanned)) => places.append(id, bytes, index, scanned),
                // Rewritten by another process since the directory was listed: what it held is in another one.
                Err(ColdError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        places.sort();
        Ok(places)
    }

    /// Adds a pack.
    pub(super) fn add(&mut self, id: ObjectId, bytes: u64, index: Index) {
        self.append(id, bytes, index, false);
        self.sort();
    }

    /// Forgets a pack.
    pub(super) fn remove(&mut self, id: &ObjectId) {
        for (number, pack) in (0_u32..).zip(&mut self.packs) {
            if pack.as_ref().is_some_and(|pack| pack.id == *id) {
                *pack = None;
                self.chunks.retain(|place| place.pack != number);
                self.recipes.retain(|place| place.pack != number);
            }
        }
    }

    /// Forgets the chunks of a frame that cannot be read, so that they are written again.
    pub(super) fn forget_frame(&mut self, pack: u32, frame: u32) {
        self.chunks.retain(|place| (place.pack, place.frame) != (pack, frame));
    }

    /// Forgets a recipe that cannot be used, so that it is written again.
    pub(super) fn forget_recipes(&mut self, object: &ObjectId) {
        self.recipes.retain(|place| place.object != *object);
    }

    pub(super) fn packs(&self) -> impl Iterator<Item = (u32, &Pack)> {
        (0..).zip(&self.packs).filter_map(|(number, pack)| Some((number, pack.as_ref()?)))
    }

    pub(super) fn pack(&self, number: u32) -> Option<&Pack> {
        self.packs.get(usize::try_from(number).ok()?)?.as_ref()
    }

    pub(super) fn frame(&self, place: &ChunkPlace) -> Option<(ObjectId, FrameAt)> {
        let pack = self.pack(place.pack)?;
        Some((pack.id, *pack.frames.get(usize::try_from(place.frame).ok()?)?))
    }

    /// Returns the places where a chunk probably is: the frame there has its whole id.
    pub(super) fn chunks(&self, id: &ObjectId) -> impl Iterator<Item = ChunkPlace> + use<'_> {
        let prefix = prefix(id);
        let start = self.chunks.partition_point(|place| place.prefix < prefix);
        let rest = self.chunks.iter().copied().skip(start);
        rest.take_while(move |place| place.prefix == prefix)
    }

    /// Returns the places of an object's recipe.
    pub(super) fn recipes(&self, object: &ObjectId) -> impl Iterator<Item = RecipePlace> + use<'_> {
        let object = *object;
        let start = self.recipes.partition_point(|place| place.object < object);
        self.recipes.iter().copied().skip(start).take_while(move |place| place.object == object)
    }

    /// Returns the numbers of a pack and a frame in it at or before which an object is.
    pub(super) fn near(&self, object: &ObjectId) -> Option<(u32, usize)> {
        let chunk = |place: ChunkPlace| Some((place.pack, usize::try_from(place.frame).ok()?));
        let recipe = |place: RecipePlace| {
            let frames = &self.pack(place.pack)?.frames;
            Some((place.pack, frames.partition_point(|frame| frame.offset < place.offset)))
        };
        self.recipes(object).next().map_or_else(|| self.chunks(object).next().and_then(chunk), recipe)
    }

    /// Returns the places of all recipes.
    pub(super) fn all_recipes(&self) -> &[RecipePlace] {
        &self.recipes
    }

    fn append(&mut self, id: ObjectId, bytes: u64, index: Index, scanned: bool) {
        let Ok(number) = u32::try_from(self.packs.len()) else { return };
        self.chunks.extend(index.chunks.iter().map(|at| ChunkPlace {
            prefix: prefix(&at.id),
            pack: number,
            frame: at.frame,
            slot: at.slot,
        }));
        let place = |at: RecipeAt| RecipePlace { object: at.object, pack: number, offset: at.offset, bytes: at.bytes };
        self.recipes.extend(index.recipes.into_iter().map(place));
        self.packs.push(Some(Pack { id, bytes, frames: index.frames, scanned }));
    }

    fn sort(&mut self) {
        // Two sorted runs or more, which this sort merges.
        self.chunks.sort();
        self.recipes.sort();
    }

    /// Reads a pack's index: its length, the index, and whether it had to be scanned for it.
    pub(super) fn read(path: &Path) -> Result<(u64, Index, bool), ColdError> {
        let file = File::open(path).map_err(ColdError::io("open", path))?;
        let bytes = file.metadata().map_err(ColdError::io("examine", path))?.len();
        match read_index(&file, bytes) {
            Ok(index) => Ok((bytes, index, false)),
            Err(Unusable::Io(error)) => Err(ColdError::io("read", path)(error)),
            Err(Unusable::Pack(source @ (PackError::NewerVersion(_) | PackError::UnknownFlags(_)))) => {
                Err(ColdError::Pack { path: path.to_path_buf(), source })
            }
            Err(Unusable::Pack(_)) => Ok((bytes, scan(&file, bytes).map_err(ColdError::io("read", path))?, true)),
        }
    }
}

fn prefix(id: &ObjectId) -> u64 {
    id.as_bytes().iter().take(size_of::<u64>()).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

enum Unusable {
    Io(std::io::Error),
    Pack(PackError),
}

fn read_index(file: &File, bytes: u64) -> Result<Index, Unusable> {
    let trailer_bytes = u64::try_from(TRAILER_BYTES).unwrap_or(u64::MAX);
    let start = bytes.checked_sub(trailer_bytes).ok_or(Unusable::Pack(PackError::Short))?;
    let Section::Trailer(trailer) = section_at(file, start, TRAILER_BYTES)? else {
        return Err(Unusable::Pack(PackError::NotASection));
    };
    let length = usize::try_from(trailer.index_bytes).unwrap_or(usize::MAX);
    if trailer.index_offset.saturating_add(trailer.index_bytes.into()) > start || length > pack::SECTION_BYTES_MAX {
        return Err(Unusable::Pack(PackError::Malformed("the index is not in the pack")));
    }
    match section_at(file, trailer.index_offset, length)? {
        Section::Index(index) => Ok(index),
        Section::Frame(_) | Section::Recipe(_) | Section::Trailer(_) => Err(Unusable::Pack(PackError::NotASection)),
    }
}

fn section_at(file: &File, offset: u64, length: usize) -> Result<Section, Unusable> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).map_err(Unusable::Io)?;
    Section::decode(&bytes).map_err(Unusable::Pack)
}

/// Makes an index of the sections that can be found and are whole; payloads are not looked at.
fn scan(file: &File, bytes: u64) -> std::io::Result<Index> {
    let mut index = Index::default();
    let mut at = 0_u64;
    while let Some((offset, section, length)) = next_section(file, at, bytes)? {
        at = offset.saturating_add(u64::from(length));
        match section {
            Section::Frame(frame) => {
                let Ok(number) = u32::try_from(index.frames.len()) else { break };
                let place = FrameAt { offset, section_bytes: length, payload_bytes: frame.payload_bytes };
                index.frames.push(place);
                let chunks = (0..).zip(&frame.chunks);
                index.chunks.extend(chunks.map(|(slot, chunk)| pack::ChunkAt { id: chunk.id, frame: number, slot }));
                at = at.saturating_add(frame.payload_bytes.into());
            }
            Section::Recipe(recipe) => index.recipes.push(RecipeAt { object: recipe.object, offset, bytes: length }),
            Section::Index(_) | Section::Trailer(_) => {}
        }
    }
    index.chunks.sort();
    index.recipes.sort();
    Ok(index)
}

/// Returns the next whole section at or after `at`, where it begins, and its length.
fn next_section(file: &File, mut at: u64, end: u64) -> std::io::Result<Option<(u64, Section, u32)>> {
    let mut window = Vec::new();
    while at < end {
        window.clear();
        let mut limited = ReadAt { file, at }.take(SCAN_BYTES as u64);
        limited.read_to_end(&mut window)?;
        let Some(found) = pack::find_section(&window) else {
            // A magic may straddle the end of the window.
            let step = window.len().saturating_sub(pack::HEAD_BYTES).max(1);
            at = at.saturating_add(u64::try_from(step).unwrap_or(u64::MAX));
            continue;
        };
        at = at.saturating_add(u64::try_from(found).unwrap_or(u64::MAX));
        let length = pack::section_bytes(window.get(found..).unwrap_or_default());
        if let (Ok(length), Ok(short)) = (length, length.map_or(Ok(0), u32::try_from))
            && at.saturating_add(short.into()) <= end
        {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at)?;
            if let Ok(section) = Section::decode(&bytes) {
                return Ok(Some((at, section, short)));
            }
        }
        at = at.saturating_add(1);
    }
    Ok(None)
}

/// A file read from a place on.
struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl std::io::Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at = self.at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        Ok(read)
    }
}
