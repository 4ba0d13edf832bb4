//! Packs that are somewhere else and of which only what is needed is fetched.
//!
//! Each has a file here of its whole length, with holes where nothing was fetched. What is in it is told by its own
//! checksums: an attempt that was cut off is taken up by looking. Nothing of it is trusted, whoever wrote it: sections
//! and payloads are compared with their checksums before they are used, objects with their names after that.

use super::{Cold, ColdError, EXTENSION, pack_path};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{Check, FrameAt, PackError, Part, Recipe, RecipeAt, Section, TRAILER_BYTES};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Bytes between two needed stretches that are fetched along: a request costs about as much as they do.
const TOGETHER_BYTES: u64 = 64 << 10;

/// Files that are kept open while they are written.
const OPEN_MAX: usize = 8;

/// A pack that is somewhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackPlace {
    /// Its name.
    pub id: ObjectId,
    /// Its length, in bytes.
    pub bytes: u64,
    /// Where its index begins.
    pub index_offset: u64,
}

/// A stretch of a pack that is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Number of the pack, as they were given.
    pub pack: usize,
    /// Its bytes.
    pub range: Range<u64>,
}

/// Why packs from elsewhere cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IncomingError {
    /// A file here cannot be read or written.
    #[error(transparent)]
    Cold(#[from] ColdError),
    /// What came is not what a pack has there.
    #[error("pack {pack} that came is damaged")]
    Damaged {
        /// The pack.
        pack: ObjectId,
        /// What is wrong.
        source: PackError,
    },
    /// No pack has an object that is needed.
    #[error("object {object} is in none of the packs")]
    Missing {
        /// The object.
        object: ObjectId,
    },
    /// An object would have another length than whoever names it says.
    #[error("object {object} has another length than the {bytes} bytes that are said")]
    Length {
        /// The object.
        object: ObjectId,
        /// The length that is said.
        bytes: u64,
    },
}

/// Where something is: number of the pack, and its place there.
type At<T> = (usize, T);

/// Packs on their way here.
#[derive(Debug)]
pub struct Incoming {
    directory: PathBuf,
    packs: Vec<PackPlace>,
    chunks: HashMap<ObjectId, At<FrameAt>>,
    recipes: HashMap<ObjectId, At<RecipeAt>>,
    /// Files written last, by the number of the pack: so many packs come at once.
    open: RefCell<VecDeque<(usize, File)>>,
}

impl Incoming {
    /// Opens a directory for packs, making it where it is missing; files of other packs in it are removed.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn open(directory: &Path, packs: Vec<PackPlace>) -> Result<Self, ColdError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(ColdError::io("create", directory))?;
        let wanted: BTreeSet<PathBuf> = packs.iter().map(|pack| pack_path(directory, &pack.id)).collect();
        for entry in std::fs::read_dir(directory).map_err(ColdError::io("list", directory))? {
            let path = entry.map_err(ColdError::io("list", directory))?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) && !wanted.contains(&path) {
                std::fs::remove_file(&path).map_err(ColdError::io("remove", &path))?;
            }
        }
        for pack in &packs {
            let path = pack_path(directory, &pack.id);
            let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
            file.and_then(|file| file.set_len(pack.bytes)).map_err(ColdError::io("create", &path))?;
        }
        let (directory, chunks, recipes) = (directory.to_path_buf(), HashMap::new(), HashMap::new());
        Ok(Self { directory, packs, chunks, recipes, open: RefCell::default() })
    }

    /// Writes what came of a pack.
    ///
    /// # Errors
    /// The system's.
    pub fn put(&self, pack: usize, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let place = self.packs.get(pack).ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut open = self.open.borrow_mut();
        if let Some((_, file)) = open.iter().find(|(number, _)| *number == pack) {
            return file.write_all_at(bytes, offset);
        }
        let file = File::options().write(true).open(pack_path(&self.directory, &place.id))?;
        open.truncate(OPEN_MAX.saturating_sub(1));
        open.push_front((pack, file));
        open.front().map_or(Ok(()), |(_, file)| file.write_all_at(bytes, offset))
    }

    /// Reads what came of a pack.
    ///
    /// # Errors
    /// The system's.
    pub fn get(&self, pack: usize, range: Range<u64>) -> std::io::Result<Vec<u8>> {
        let place = self.packs.get(pack).ok_or(std::io::ErrorKind::InvalidInput)?;
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        File::open(pack_path(&self.directory, &place.id))?.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    }

    /// Returns whether a pack has come whole.
    ///
    /// # Errors
    /// [`ColdError`] where its file here cannot be read.
    pub fn is_whole(&self, pack: usize) -> Result<bool, ColdError> {
        let Some(place) = self.packs.get(pack) else { return Ok(false) };
        let path = pack_path(&self.directory, &place.id);
        let mut hasher = blake3::Hasher::new();
        let file = File::open(&path).map_err(ColdError::io("open", &path))?;
        hasher.update_reader(file).map_err(ColdError::io("read", &path))?;
        Ok(ObjectId::new(*hasher.finalize().as_bytes()) == place.id)
    }

    /// Returns the indexes that are still to be fetched.
    ///
    /// # Errors
    /// [`ColdError`] where a file here cannot be read.
    pub fn index_gaps(&self) -> Result<Vec<Gap>, ColdError> {
        let mut gaps = Vec::new();
        for (pack, place) in self.packs.iter().enumerate() {
            if self.index(place)?.is_err() {
                gaps.push(Gap { pack, range: place.index_offset..place.bytes });
            }
        }
        Ok(gaps)
    }

    fn section(&self, place: &PackPlace, range: Range<u64>) -> Result<Result<Section, PackError>, ColdError> {
        let path = pack_path(&self.directory, &place.id);
        if range.end > place.bytes || range.start > range.end {
            return Ok(Err(PackError::Malformed("something is outside the pack")));
        }
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        let file = File::open(&path).map_err(ColdError::io("open", &path))?;
        file.read_exact_at(&mut bytes, range.start).map_err(ColdError::io("read", &path))?;
        Ok(Section::decode(&bytes))
    }

    fn index(&self, place: &PackPlace) -> Result<Result<perennial_core::sealed::pack::Index, PackError>, ColdError> {
        let end = place.bytes.saturating_sub(u64::try_from(TRAILER_BYTES).unwrap_or(u64::MAX));
        let trailer = match self.section(place, end..place.bytes)? {
            Ok(Section::Trailer(trailer)) => trailer,
            Ok(_) => return Ok(Err(PackError::NotASection)),
            Err(error) => return Ok(Err(error)),
        };
        if trailer.index_offset != place.index_offset
            || trailer.index_offset.saturating_add(trailer.index_bytes.into()) != end
        {
            return Ok(Err(PackError::Malformed("the index is not where it is said to be")));
        }
        Ok(match self.section(place, place.index_offset..end)? {
            Ok(Section::Index(index)) => Ok(index),
            Ok(_) => Err(PackError::NotASection),
            Err(error) => Err(error),
        })
    }

    /// Takes the indexes up, all of which were fetched.
    ///
    /// # Errors
    /// [`IncomingError::Damaged`] where what came is no index, [`ColdError`].
    pub fn load(&mut self) -> Result<(), IncomingError> {
        for (pack, place) in self.packs.clone().iter().enumerate() {
            let damaged = |source| IncomingError::Damaged { pack: place.id, source };
            let index = self.index(place)?.map_err(damaged)?;
            for frame in &index.frames {
                let length = u64::from(frame.section_bytes).saturating_add(frame.payload_bytes.into());
                if frame.offset.saturating_add(length) > place.index_offset {
                    return Err(damaged(PackError::Malformed("a frame is outside the pack")));
                }
            }
            for chunk in &index.chunks {
                let frame = usize::try_from(chunk.frame).ok().and_then(|number| index.frames.get(number));
                let frame = frame.ok_or(damaged(PackError::Malformed("the index names a frame that is not there")))?;
                self.chunks.entry(chunk.id).or_insert((pack, *frame));
            }
            for recipe in &index.recipes {
                if recipe.offset.saturating_add(recipe.bytes.into()) > place.index_offset {
                    return Err(damaged(PackError::Malformed("a recipe is outside the pack")));
                }
                self.recipes.entry(recipe.object).or_insert((pack, *recipe));
            }
        }
        Ok(())
    }

    /// Returns which recipes of objects are still to be fetched.
    ///
    /// # Errors
    /// [`IncomingError::Missing`] where no pack has an object, [`ColdError`].
    pub fn recipe_gaps(&self, objects: &BTreeMap<ObjectId, u64>) -> Result<Vec<Gap>, IncomingError> {
        let mut gaps = Vec::new();
        for object in objects.keys() {
            if self.chunks.contains_key(object) {
                continue;
            }
            let (pack, at) = self.recipes.get(object).ok_or(IncomingError::Missing { object: *object })?;
            if self.recipe(object)?.is_err() {
                gaps.push(Gap { pack: *pack, range: at.offset..at.offset.saturating_add(at.bytes.into()) });
            }
        }
        Ok(together(gaps))
    }

    fn recipe(&self, object: &ObjectId) -> Result<Result<Recipe, PackError>, IncomingError> {
        let missing = IncomingError::Missing { object: *object };
        let Some((pack, at)) = self.recipes.get(object) else { return Err(missing) };
        let Some(place) = self.packs.get(*pack) else { return Err(missing) };
        Ok(match self.section(place, at.offset..at.offset.saturating_add(at.bytes.into()))? {
            Ok(Section::Recipe(recipe)) if recipe.object == *object => Ok(recipe),
            Ok(_) => Err(PackError::NotASection),
            Err(error) => Err(error),
        })
    }

    /// Returns the chunks of those among some objects that have several; their recipes were fetched.
    ///
    /// # Errors
    /// [`IncomingError`].
    pub fn chunks_of(&self, objects: &BTreeMap<ObjectId, u64>) -> Result<HashSet<ObjectId>, IncomingError> {
        let mut chunks = HashSet::new();
        for object in objects.keys().filter(|object| !self.chunks.contains_key(*object)) {
            if let Ok(recipe) = self.recipe(object)? {
                chunks.extend(recipe.parts.iter().filter_map(|part| match part {
                    Part::Chunk(chunk) => Some(chunk.id),
                    Part::Zeros(_) => None,
                }));
            }
        }
        Ok(chunks)
    }

    /// Returns which frames are still to be fetched so that objects of these lengths can be put together; their recipes
    /// were fetched. `has` tells of a chunk whether it is here otherwise.
    ///
    /// # Errors
    /// [`IncomingError`].
    pub fn content_gaps(
        &self,
        objects: &BTreeMap<ObjectId, u64>,
        has: &dyn Fn(&ObjectId) -> bool,
    ) -> Result<Vec<Gap>, IncomingError> {
        let mut frames: BTreeMap<(usize, u64), FrameAt> = BTreeMap::new();
        let mut need = |chunk: &ObjectId| {
            if has(chunk) {
                return Ok(());
            }
            let (pack, frame) = self.chunks.get(chunk).ok_or(IncomingError::Missing { object: *chunk })?;
            frames.insert((*pack, frame.offset), *frame);
            Ok::<(), IncomingError>(())
        };
        for (object, bytes) in objects {
            if self.chunks.contains_key(object) {
                need(object)?;
                continue;
            }
            let pack = self.recipes.get(object).and_then(|(pack, _)| self.packs.get(*pack));
            let pack = pack.map_or(*object, |place| place.id);
            let recipe = self.recipe(object)?.map_err(|source| IncomingError::Damaged { pack, source })?;
            if recipe.bytes() != Some(*bytes) {
                return Err(IncomingError::Length { object: *object, bytes: *bytes });
            }
            for part in &recipe.parts {
                match part {
                    Part::Chunk(chunk) => need(&chunk.id)?,
                    Part::Zeros(_) => {}
                }
            }
        }
        let mut gaps = Vec::new();
        for ((pack, offset), frame) in frames {
            let Some(place) = self.packs.get(pack) else { continue };
            if !self.has_frame(place, &frame)? {
                let length = u64::from(frame.section_bytes).saturating_add(frame.payload_bytes.into());
                gaps.push(Gap { pack, range: offset..offset.saturating_add(length) });
            }
        }
        Ok(together(gaps))
    }

    fn has_frame(&self, place: &PackPlace, at: &FrameAt) -> Result<bool, ColdError> {
        let payload = at.offset.saturating_add(at.section_bytes.into());
        let Ok(Section::Frame(frame)) = self.section(place, at.offset..payload)? else { return Ok(false) };
        let path = pack_path(&self.directory, &place.id);
        let mut bytes = vec![0; usize::try_from(at.payload_bytes).unwrap_or(usize::MAX)];
        let file = File::open(&path).map_err(ColdError::io("open", &path))?;
        file.read_exact_at(&mut bytes, payload).map_err(ColdError::io("read", &path))?;
        Ok(Check::of(&bytes) == frame.payload_check)
    }

    /// Returns the packs for reading what was fetched. Files without names are made in `staging`.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn cold(&self, staging: &Path) -> Result<Cold, ColdError> {
        Cold::open_in(&self.directory, staging)
    }
}

/// Joins stretches that lie close to each other.
fn together(mut gaps: Vec<Gap>) -> Vec<Gap> {
    gaps.sort_by_key(|gap| (gap.pack, gap.range.start));
    let mut joined: Vec<Gap> = Vec::new();
    for gap in gaps {
        match joined.last_mut() {
            Some(last) if last.pack == gap.pack && gap.range.start <= last.range.end.saturating_add(TOGETHER_BYTES) => {
                last.range.end = last.range.end.max(gap.range.end);
            }
            Some(_) | None => joined.push(gap),
        }
    }
    joined
}
