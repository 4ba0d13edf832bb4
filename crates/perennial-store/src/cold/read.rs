//! Chunks and recipes out of packs, with the frames last used kept at hand.

use super::index::{ChunkPlace, Places, RecipePlace};
use super::{Cold, ColdError, LOOKS_MAX, pack_path};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{Check, Chunk, Frame, FrameAt, Part, Recipe, Section};
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Decompressed frames kept, 2 MiB each. What was written in one go is read in the same order, so one frame is enough
/// for it; a file that many generations rewrote in places has a frame of each of them in use at a time.
const FRAMES_KEPT: usize = 16;
/// Tables of frames kept, 600 kB each where all files are as small as objects get.
const TABLES_KEPT: usize = 32;

type FrameKey = (ObjectId, u64);

/// Reads frames.
#[derive(Debug)]
pub(super) struct Reader {
    directory: PathBuf,
    file: Option<(ObjectId, File)>,
    tables: VecDeque<(FrameKey, Arc<Frame>)>,
    contents: VecDeque<(FrameKey, Arc<Loaded>)>,
}

/// A decompressed frame.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) frame: Arc<Frame>,
    content: Vec<u8>,
    /// Where each chunk ends.
    ends: Vec<usize>,
}

impl Loaded {
    fn new(frame: Arc<Frame>, content: Vec<u8>) -> Self {
        let ends = frame.chunks.iter().scan(0_usize, |end, chunk| {
            *end = end.saturating_add(usize::try_from(chunk.bytes).unwrap_or(usize::MAX));
            Some(*end)
        });
        Self { ends: ends.collect(), frame, content }
    }

    /// Returns a chunk, where it is what its id says.
    pub(super) fn chunk(&self, slot: u32) -> Option<(Chunk, &[u8])> {
        let slot = usize::try_from(slot).ok()?;
        let chunk = self.frame.chunks.get(slot)?;
        let start = slot.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        let content = self.content.get(start..*self.ends.get(slot)?)?;
        (ObjectId::of(content) == chunk.id).then_some((*chunk, content))
    }
}

/// Why something cannot be read.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is not what was written.
    Damaged,
    /// The pack is no longer there.
    Gone,
    /// The system says no.
    Failed(ColdError),
}

impl Reader {
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self { directory, file: None, tables: VecDeque::new(), contents: VecDeque::new() }
    }

    fn read(&mut self, pack: ObjectId, offset: u64, length: u32) -> Result<Vec<u8>, Unread> {
        let path = pack_path(&self.directory, &pack);
        if self.file.as_ref().is_none_or(|(open, _)| *open != pack) {
            let file = File::open(&path).map_err(|error| {
                let gone = error.kind() == std::io::ErrorKind::NotFound;
                if gone { Unread::Gone } else { Unread::Failed(ColdError::io("open", &path)(error)) }
            })?;
            self.file = Some((pack, file));
        }
        let Some((_, file)) = &self.file else { return Err(Unread::Gone) };
        let length = usize::try_from(length).map_err(|_| Unread::Damaged)?;
        let room = file.metadata().map_err(|error| Unread::Failed(ColdError::io("examine", &path)(error)))?.len();
        if offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX)) > room {
            return Err(Unread::Damaged);
        }
        let mut bytes = vec![0; length];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            // A sector that cannot be read is damage like any other.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Err(Unread::Damaged),
            Err(error) => Err(Unread::Failed(ColdError::io("read", &path)(error))),
        }
    }

    /// Reads what is in a frame, without its payload.
    pub(super) fn table(&mut self, pack: ObjectId, at: FrameAt) -> Result<Arc<Frame>, Unread> {
        let key = (pack, at.offset);
        if let Some(found) = self.tables.iter().position(|(other, _)| *other == key)
            && let Some(entry) = self.tables.remove(found)
        {
            let frame = Arc::clone(&entry.1);
            self.tables.push_front(entry);
            return Ok(frame);
        }
        let bytes = self.read(pack, at.offset, at.section_bytes)?;
        match Section::decode(&bytes) {
            Ok(Section::Frame(frame)) if frame.payload_bytes == at.payload_bytes => {
                let frame = Arc::new(frame);
                self.tables.truncate(TABLES_KEPT.saturating_sub(1));
                self.tables.push_front((key, Arc::clone(&frame)));
                Ok(frame)
            }
            _ => Err(Unread::Damaged),
        }
    }

    /// Reads and decompresses a frame.
    pub(super) fn frame(&mut self, pack: ObjectId, at: FrameAt) -> Result<Arc<Loaded>, Unread> {
        let key = (pack, at.offset);
        if let Some(found) = self.contents.iter().position(|(other, _)| *other == key)
            && let Some(entry) = self.contents.remove(found)
        {
            let loaded = Arc::clone(&entry.1);
            self.contents.push_front(entry);
            return Ok(loaded);
        }
        let frame = self.table(pack, at)?;
        let payload = self.read(pack, at.offset.saturating_add(at.section_bytes.into()), at.payload_bytes)?;
        let room = usize::try_from(frame.content_bytes()).map_err(|_| Unread::Damaged)?;
        if Check::of(&payload) != frame.payload_check {
            return Err(Unread::Damaged);
        }
        let content = zstd::bulk::decompress(&payload, room).map_err(|_| Unread::Damaged)?;
        if content.len() != room {
            return Err(Unread::Damaged);
        }
        let loaded = Arc::new(Loaded::new(frame, content));
        self.contents.truncate(FRAMES_KEPT.saturating_sub(1));
        self.contents.push_front((key, Arc::clone(&loaded)));
        Ok(loaded)
    }

    /// Reads a recipe.
    pub(super) fn recipe(&mut self, pack: ObjectId, place: &RecipePlace) -> Result<Recipe, Unread> {
        let bytes = self.read(pack, place.offset, place.bytes)?;
        match Section::decode(&bytes) {
            Ok(Section::Recipe(recipe)) if recipe.object == place.object => Ok(recipe),
            _ => Err(Unread::Damaged),
        }
    }

    /// Drops what is kept of packs, so that it is read again from the disk.
    pub(super) fn forget(&mut self) {
        self.file = None;
        self.tables.clear();
        self.contents.clear();
    }
}

impl Cold {
    /// Returns whether a chunk is in a pack, judged by the table of its frame.
    pub(super) fn has_chunk(&mut self, id: &ObjectId) -> Result<bool, ColdError> {
        Ok(self.find_chunk(id)?.is_some())
    }

    /// Returns the first place that has a chunk, judged by the table of its frame.
    pub(super) fn find_chunk(&mut self, id: &ObjectId) -> Result<Option<ChunkPlace>, ColdError> {
        self.again(|places, reader| {
            for place in places.chunks(id) {
                let Some((pack, at)) = places.frame(&place) else { continue };
                match reader.table(pack, at) {
                    Ok(frame) if slot_is(&frame, &place, id) => return Ok(Some(place)),
                    Ok(_) | Err(Unread::Damaged) => {}
                    Err(error @ (Unread::Gone | Unread::Failed(_))) => return Err(error),
                }
            }
            Ok(None)
        })
    }

    /// Returns a chunk's content from the first place that still has it.
    pub(super) fn chunk(&mut self, id: &ObjectId) -> Result<Option<Vec<u8>>, ColdError> {
        if let Some(content) = self.lent.read(id) {
            return Ok(Some(content));
        }
        self.again(|places, reader| {
            for place in places.chunks(id) {
                let Some((pack, at)) = places.frame(&place) else { continue };
                match reader.frame(pack, at) {
                    Ok(loaded) => match loaded.chunk(place.slot) {
                        Some((chunk, content)) if chunk.id == *id => return Ok(Some(content.to_vec())),
                        Some(_) | None => {}
                    },
                    Err(Unread::Damaged) => {}
                    Err(error @ (Unread::Gone | Unread::Failed(_))) => return Err(error),
                }
            }
            Ok(None)
        })
    }

    /// Returns what an object is made of. Of several recipes that differ, the one that makes the object: a scan of a
    /// damaged pack can come upon one that somebody has planted in a content.
    pub(super) fn parts(&mut self, object: &ObjectId) -> Result<Vec<Part>, ColdError> {
        let known = self.places.recipes(object).next().is_some() || self.places.chunks(object).next().is_some();
        if self.chunk(object)?.is_some() {
            // Its length is not asked for.
            return Ok(vec![Part::Chunk(Chunk { id: *object, bytes: 0 })]);
        }
        let mut recipes = self.recipes_of(object)?;
        recipes.dedup();
        if let [_] = recipes.as_slice() {
            return Ok(recipes.pop().map(|recipe| recipe.parts).unwrap_or_default());
        }
        for recipe in recipes {
            if self.assemble(object, &recipe.parts, &mut |_| Ok(())).is_ok() {
                return Ok(recipe.parts);
            }
        }
        Err(if known {
            ColdError::Damaged { object: *object, chunk: *object }
        } else {
            ColdError::Unknown { object: *object }
        })
    }

    /// Returns the first recipe of an object that can be read.
    pub(super) fn recipe(&mut self, object: &ObjectId) -> Result<Option<Recipe>, ColdError> {
        Ok(self.recipes_of(object)?.into_iter().next())
    }

    /// Returns the recipes of an object that can be read.
    fn recipes_of(&mut self, object: &ObjectId) -> Result<Vec<Recipe>, ColdError> {
        self.again(|places, reader| {
            let mut recipes = Vec::new();
            for place in places.recipes(object) {
                let Some(pack) = places.pack(place.pack) else { continue };
                match reader.recipe(pack.id, &place) {
                    Ok(recipe) => recipes.push(recipe),
                    Err(Unread::Damaged) => {}
                    Err(error @ (Unread::Gone | Unread::Failed(_))) => return Err(error),
                }
            }
            Ok(recipes)
        })
    }

    /// Does something that reads packs, once more with fresh indexes where a pack was rewritten meanwhile.
    fn again<T>(&mut self, mut action: impl FnMut(&Places, &mut Reader) -> Result<T, Unread>) -> Result<T, ColdError> {
        for _ in 0..LOOKS_MAX {
            match action(&self.places, &mut self.reader) {
                Ok(value) => return Ok(value),
                Err(Unread::Failed(error)) => return Err(error),
                Err(Unread::Gone | Unread::Damaged) => {
                    self.places = Arc::new(Places::load(&self.path)?);
                    self.reader.forget();
                }
            }
        }
        let error = std::io::Error::from(std::io::ErrorKind::NotFound);
        Err(ColdError::io("find the packs listed in", &self.path)(error))
    }
}

fn slot_is(frame: &Frame, place: &ChunkPlace, id: &ObjectId) -> bool {
    usize::try_from(place.slot).ok().and_then(|slot| frame.chunks.get(slot)).is_some_and(|chunk| chunk.id == *id)
}
