//! Packs that are written to be kept elsewhere: only what is not there yet goes into them.
//!
//! A directory holds the packs of one undertaking until they have arrived. What an earlier attempt finished is taken
//! over, not written again: whoever is cut off goes on with the next pack. The caller sees to it that there is one
//! undertaking in a directory at a time, and that what is known elsewhere is the same at each attempt: packs rely on it.

use super::content::{self, Stretch};
use super::index::RecipePlace;
use super::read::{Reader, Unread};
use super::write::{NextRead, PackWriter, Written, discard_incoming};
use super::{ColdError, EXTENSION, index, pack_path};
use perennial_core::sealed::chunk::Cuts;
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{Chunk, Index, PackError, Part, Recipe, RecipeAt, Section, TRAILER_BYTES};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};

/// What is in packs elsewhere.
#[derive(Debug, Default)]
pub struct Known {
    chunks: HashSet<ObjectId>,
    recipes: HashSet<ObjectId>,
}

impl Known {
    /// Adds what a pack has.
    pub fn add(&mut self, index: &Index) {
        self.chunks.extend(index.chunks.iter().map(|at| at.id));
        self.recipes.extend(index.recipes.iter().map(|at| at.object));
    }

    /// Adds the chunks of a pack whose recipes may name chunks that are nowhere any more.
    pub fn add_chunks(&mut self, index: &Index) {
        self.chunks.extend(index.chunks.iter().map(|at| at.id));
    }

    /// Returns whether an object is there.
    #[must_use]
    pub fn has(&self, object: &ObjectId) -> bool {
        self.recipes.contains(object) || self.chunks.contains(object)
    }
}

/// A pack that is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingPack {
    /// Its name.
    pub id: ObjectId,
    /// Where it lies.
    pub path: PathBuf,
    /// Its length, in bytes.
    pub bytes: u64,
    /// Where its index begins.
    pub index_offset: u64,
    /// Bytes of its chunks.
    pub content_bytes: u64,
}

/// Why an object cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    /// It cannot be read.
    #[error("object {object} cannot be read")]
    Unreadable {
        /// The object.
        object: ObjectId,
        /// What the system said.
        source: std::io::Error,
    },
    /// Its content is not what its name says.
    #[error("object {object} is damaged: its content is not what its name says")]
    Damaged {
        /// The object.
        object: ObjectId,
    },
    /// It is larger than what is ever packed.
    #[error("object {object} of {bytes} bytes is too large for packs")]
    TooLarge {
        /// The object.
        object: ObjectId,
        /// Its length.
        bytes: u64,
    },
    /// A pack that is to be taken over is not what was written.
    #[error("pack {pack} is damaged")]
    DamagedPack {
        /// The pack.
        pack: ObjectId,
    },
    /// Packs cannot be written.
    #[error(transparent)]
    Cold(#[from] ColdError),
}

impl From<std::io::Error> for OutgoingError {
    fn from(source: std::io::Error) -> Self {
        Self::Cold(ColdError::Io { action: "read", path: PathBuf::new(), source })
    }
}

/// Packs being written one after another.
pub struct Outgoing {
    directory: PathBuf,
    known: Known,
    writer: Option<PackWriter>,
    /// Bytes of the chunks in the pack being written.
    content_bytes: u64,
    packs: Vec<OutgoingPack>,
    /// What makes these packs other ones than any before.
    salt: Option<Vec<u8>>,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Outgoing {
    /// Opens a directory, making it where it is missing, and takes over the packs an earlier attempt has left whole.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn open(directory: &Path, mut known: Known) -> Result<Self, ColdError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(ColdError::io("create", directory))?;
        discard_incoming(directory).map_err(ColdError::io("remove what a crash left in", directory))?;
        let (mut packs, mut indexes, mut is_whole) = (Vec::new(), Vec::new(), true);
        for entry in std::fs::read_dir(directory).map_err(ColdError::io("list", directory))? {
            let path = entry.map_err(ColdError::io("list", directory))?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            match left_over(&path)? {
                Some((pack, index)) => {
                    indexes.push(index);
                    packs.push(pack);
                }
                None => {
                    is_whole = false;
                    std::fs::remove_file(&path).map_err(ColdError::io("remove", &path))?;
                }
            }
        }
        if !is_whole {
            // The others may rely on what was in it.
            for pack in packs.drain(..) {
                std::fs::remove_file(&pack.path).map_err(ColdError::io("remove", &pack.path))?;
            }
            indexes.clear();
        }
        indexes.iter().for_each(|index| known.add(index));
        packs.sort_by_key(|pack| pack.id);
        Ok(Self { directory: directory.to_path_buf(), known, writer: None, content_bytes: 0, packs, salt: None })
    }

    /// Puts some bytes that nobody needs into each pack, so that it has another name than any that was sent before: a
    /// registry that has one of the same name takes no other, even where its own is damaged.
    #[must_use]
    pub fn salted(self, salt: Vec<u8>) -> Self {
        Self { salt: Some(salt), ..self }
    }

    /// Returns whether an object needs not be packed.
    #[must_use]
    pub fn has(&self, object: &ObjectId) -> bool {
        self.known.has(object)
    }

    /// Packs an object, apart from what is elsewhere.
    ///
    /// # Errors
    /// [`OutgoingError`].
    pub fn object(&mut self, object: ObjectId, file: &File) -> Result<(), OutgoingError> {
        if self.has(&object) {
            return Ok(());
        }
        let unreadable = |source| OutgoingError::Unreadable { object, source };
        let size = file.metadata().map_err(unreadable)?.len();
        let cuts = Cuts::choose_for_travel(size).ok_or(OutgoingError::TooLarge { object, bytes: size })?;
        let mut parts = Vec::new();
        let id = content::cut::<OutgoingError>(file, size, &cuts, &mut |stretch| match stretch {
            Stretch::Zeros(bytes) => {
                if let Some(Part::Zeros(before)) = parts.last_mut() {
                    *before = before.saturating_add(bytes);
                } else {
                    parts.push(Part::Zeros(bytes));
                }
                Ok(())
            }
            Stretch::Chunk(content) => {
                let id = ObjectId::of(content);
                let bytes = u32::try_from(content.len()).map_err(|_| ColdError::Encode(PackError::TooLong))?;
                parts.push(Part::Chunk(Chunk { id, bytes }));
                Ok(self.chunk(id, content)?)
            }
        })?;
        if id != object {
            return Err(OutgoingError::Damaged { object });
        }
        if !matches!(parts.as_slice(), [Part::Chunk(_)]) {
            self.writer()?.push_recipe(Recipe { object, parts })?;
            self.known.recipes.insert(object);
        }
        Ok(())
    }

    /// Takes over everything of a pack in some directory, apart from what is elsewhere, so that nothing needs that one any
    /// more. Its chunks are compared with their names.
    ///
    /// # Errors
    /// [`OutgoingError`].
    pub fn take_over(&mut self, directory: &Path, pack: ObjectId) -> Result<(), OutgoingError> {
        let unread = |unread| match unread {
            Unread::Failed(error) => OutgoingError::Cold(error),
            Unread::Damaged | Unread::Gone => OutgoingError::DamagedPack { pack },
        };
        let (_, index, is_scanned) = index::Places::read(&pack_path(directory, &pack))?;
        if is_scanned {
            return Err(OutgoingError::DamagedPack { pack });
        }
        let mut reader = Reader::new(directory.to_path_buf());
        for at in &index.frames {
            let loaded = reader.frame(pack, *at).map_err(unread)?;
            for (slot, _) in (0_u32..).zip(&loaded.frame.chunks) {
                let (chunk, content) = loaded.chunk(slot).ok_or(OutgoingError::DamagedPack { pack })?;
                self.chunk(chunk.id, content)?;
            }
        }
        for RecipeAt { object, offset, bytes } in index.recipes {
            let place = RecipePlace { object, pack: 0, offset, bytes };
            if !self.known.recipes.contains(&object) {
                let recipe = reader.recipe(pack, &place).map_err(unread)?;
                self.writer()?.push_recipe(recipe)?;
                self.known.recipes.insert(object);
            }
        }
        Ok(())
    }

    fn chunk(&mut self, id: ObjectId, content: &[u8]) -> Result<(), ColdError> {
        if !self.known.chunks.insert(id) {
            return Ok(());
        }
        if self.writer.as_ref().is_some_and(PackWriter::is_full) {
            self.end_pack()?;
        }
        self.writer()?.push(id, content)?;
        self.content_bytes = self.content_bytes.saturating_add(u64::try_from(content.len()).unwrap_or(0));
        Ok(())
    }

    /// Ends the frame being written, so that what was packed until now can be fetched without what follows.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn end_frame(&mut self) -> Result<(), ColdError> {
        self.writer.as_mut().map_or(Ok(()), PackWriter::end_frame)
    }

    fn writer(&mut self) -> Result<&mut PackWriter, ColdError> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none @ None => {
                let writer = none.insert(PackWriter::create(&self.directory)?);
                if let Some(salt) = &self.salt {
                    writer.push(ObjectId::of(salt), salt)?;
                }
                Ok(writer)
            }
        }
    }

    fn end_pack(&mut self) -> Result<(), ColdError> {
        let content_bytes = std::mem::take(&mut self.content_bytes);
        let Some(writer) = self.writer.take().filter(|writer| !writer.is_empty()) else { return Ok(()) };
        let Written { id, bytes, index_offset, .. } = writer.finish(NextRead::Sends)?;
        let path = pack_path(&self.directory, &id);
        self.packs.push(OutgoingPack { id, path, bytes, index_offset, content_bytes });
        Ok(())
    }

    /// Ends the last pack and returns all of them.
    ///
    /// # Errors
    /// [`ColdError`].
    pub fn finish(mut self) -> Result<Vec<OutgoingPack>, ColdError> {
        self.end_pack()?;
        Ok(std::mem::take(&mut self.packs))
    }
}

/// Looks at a pack that is there already; `None` where it is not what its name says.
fn left_over(path: &Path) -> Result<Option<(OutgoingPack, Index)>, ColdError> {
    let io = |error| ColdError::io("read", path)(error);
    let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<ObjectId>().ok());
    let Some(id) = name else { return Ok(None) };
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).map_err(io)?).map_err(io)?;
    if ObjectId::new(*hasher.finalize().as_bytes()) != id {
        return Ok(None);
    }
    let (bytes, index, _) = index::Places::read(path)?;
    let file = File::open(path).map_err(io)?;
    let mut content_bytes = 0_u64;
    for at in &index.frames {
        let mut section = vec![0; usize::try_from(at.section_bytes).unwrap_or(0)];
        file.read_exact_at(&mut section, at.offset).map_err(io)?;
        let Ok(Section::Frame(frame)) = Section::decode(&section) else { return Ok(None) };
        content_bytes = content_bytes.saturating_add(frame.content_bytes());
    }
    let length = Section::Index(index.clone()).encode().map_err(ColdError::Encode)?.len();
    let end = u64::try_from(length.saturating_add(TRAILER_BYTES)).unwrap_or(u64::MAX);
    let index_offset = bytes.saturating_sub(end);
    Ok(Some((OutgoingPack { id, path: path.to_path_buf(), bytes, index_offset, content_bytes }, index)))
}
