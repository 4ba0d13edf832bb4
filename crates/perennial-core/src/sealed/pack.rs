//! The bytes of a pack: objects of older generations, cut into chunks, many chunks compressed together.
//!
//! ```text
//!   frame   ┌ section: ids and lengths of chunks ┐┌ payload: one zstd frame of them all ┐
//!   frame   └────────────────────────────────────┘└──────────────────────────────────────┘
//!   recipe    section: the chunks of an object that has several
//!   frame …
//!   index     section: where every chunk and recipe is
//!   trailer   section of fixed length: where the index is
//! ```
//!
//! A section is a *skippable frame* of zstd with a magic, a kind and a checksum of its own, so `zstd -d` reads a whole
//! pack, or a single frame cut out of it, and a reader finds its way again after damage: it looks for the next magic.
//! An object that is one chunk has the chunk's id, and no recipe.
//!
//! This module knows sections; payloads are opaque bytes to it. Nothing here panics, whatever the bytes.

use super::chunk::CONTENT_BYTES_MAX;
use super::object::{OBJECT_ID_BYTES, ObjectId};
use alloc::vec::Vec;

/// The version this release writes, and the newest it reads.
pub const VERSION: u32 = VERSION_BYTE as u32;
/// The same as it stands in a section.
const VERSION_BYTE: u8 = 1;
/// Length of a section without a body, in bytes.
pub const SECTION_BYTES_MIN: usize = HEAD_BYTES + CHECK_BYTES;
/// Largest section, in bytes: the index of the fullest pack and the longest recipe are below it.
pub const SECTION_BYTES_MAX: usize = 64 << 20;
/// Length of the trailer, in bytes.
pub const TRAILER_BYTES: usize = SECTION_BYTES_MIN + 12;
/// Length of the beginning of a section that [`section_bytes`] needs.
pub const HEAD_BYTES: usize = 20;
/// Largest content of one frame, in bytes: what must be decompressed, and kept, to read any chunk of it.
pub const FRAME_CONTENT_BYTES_MAX: u64 = 16 << 20;

/// Magic of zstd's skippable frames, of whose sixteen this is number 12.
const SKIPPABLE: [u8; 4] = 0x184d_2a5c_u32.to_le_bytes();
/// Magic of a section: not text, and damaged by what damages text.
pub const MAGIC: [u8; 8] = *b"\x89Pack\r\n\x00";
/// Length of a checksum: the first half of a BLAKE3.
const CHECK_BYTES: usize = 16;
/// Features a reader must understand; none so far.
const KNOWN_FLAGS: u16 = 0;

/// Checksum of a section or a payload: the first 16 bytes of its BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check([u8; CHECK_BYTES]);

impl Check {
    /// Returns the checksum of bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut check = [0; CHECK_BYTES];
        let hash = blake3::hash(bytes);
        check.iter_mut().zip(hash.as_bytes()).for_each(|(to, from)| *to = *from);
        Self(check)
    }
}

/// A chunk: some consecutive bytes of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// BLAKE3 of the bytes.
    pub id: ObjectId,
    /// How many.
    pub bytes: u32,
}

/// What is said of a payload before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Chunks in the order in which the decompressed payload holds them, without gaps.
    pub chunks: Vec<Chunk>,
    /// Length of the payload, which follows, in bytes.
    pub payload_bytes: u32,
    /// Checksum of the payload.
    pub payload_check: Check,
}

impl Frame {
    /// Returns the length of the decompressed payload, in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum()
    }
}

/// A stretch of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// These bytes.
    Chunk(Chunk),
    /// So many zeros, a hole where the file system knows any.
    Zeros(u64),
}

/// What an object is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// The object.
    pub object: ObjectId,
    /// Its stretches in order.
    pub parts: Vec<Part>,
}

impl Recipe {
    /// Returns the object's length, in bytes; `None` where it is more than can be.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.parts.iter().try_fold(0_u64, |sum, part| {
            sum.checked_add(match part {
                Part::Chunk(chunk) => u64::from(chunk.bytes),
                Part::Zeros(bytes) => *bytes,
            })
        })
    }

    /// Returns whether all chunks but the last have the same length: it was cut at fixed places.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        let mut lengths = self.parts.iter().filter_map(|part| match part {
            Part::Chunk(chunk) => Some(chunk.bytes),
            Part::Zeros(_) => None,
        });
        let Some(first) = lengths.next() else { return false };
        let mut last = first;
        // The stretch before a hole may be cut short too, at most by what a block has.
        let mut others = 0_u32;
        let mut equal = 0_u32;
        for length in lengths {
            last = last.max(length);
            others = others.saturating_add(1);
            equal = equal.saturating_add(u32::from(length == first));
        }
        last == first && others > 0 && equal.saturating_mul(2) >= others
    }
}

/// Where a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameAt {
    /// Where its section begins.
    pub offset: u64,
    /// Length of the section, after which the payload begins.
    pub section_bytes: u32,
    /// Length of the payload.
    pub payload_bytes: u32,
}

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkAt {
    /// Its id.
    pub id: ObjectId,
    /// Number of the frame.
    pub frame: u32,
    /// Number of the chunk in the frame.
    pub slot: u32,
}

/// Where a recipe is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecipeAt {
    /// The object.
    pub object: ObjectId,
    /// Where its section begins.
    pub offset: u64,
    /// Length of the section.
    pub bytes: u32,
}

/// Where everything in a pack is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    /// Frames by their place.
    pub frames: Vec<FrameAt>,
    /// Chunks by their ids.
    pub chunks: Vec<ChunkAt>,
    /// Recipes by their objects.
    pub recipes: Vec<RecipeAt>,
}

/// Where the index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Where its section begins.
    pub index_offset: u64,
    /// Length of the section.
    pub index_bytes: u32,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Section {
    /// A payload follows.
    Frame(Frame),
    /// An object.
    Recipe(Recipe),
    /// Everything.
    Index(Index),
    /// The end.
    Trailer(Trailer),
}

/// Why bytes are not a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Something else is here.
    #[error("there is no section of a pack here")]
    NotASection,
    /// It goes on behind the end.
    #[error("the section is cut short")]
    Short,
    /// Its checksum does not fit.
    #[error("the section is damaged: its checksum does not fit")]
    Damaged,
    /// Its checksum fits, its content makes no sense.
    #[error("the section is malformed: {0}")]
    Malformed(&'static str),
    /// Written by a newer release.
    #[error("the pack has version {0}, this release knows up to {VERSION}: use a newer release")]
    NewerVersion(u8),
    /// It needs features this release does not have.
    #[error("the pack needs the features {0:#06x}, which this release does not know: use a newer release")]
    UnknownFlags(u16),
    /// More than a section can hold.
    #[error("the section would be too long")]
    TooLong,
}

/// Returns the place of the first magic of a section in `bytes`, counted to the beginning of the section.
#[must_use]
pub fn find_section(bytes: &[u8]) -> Option<usize> {
    let marks = bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
    let starts = marks.filter_map(|(at, _)| at.checked_sub(SKIPPABLE.len() + size_of::<u32>()));
    starts.into_iter().find(|at| bytes.get(*at..).is_some_and(|rest| rest.starts_with(&SKIPPABLE)))
}

/// Returns the length of the section that begins with `head`, of which the first [`HEAD_BYTES`] are enough.
///
/// # Errors
/// [`PackError::NotASection`], [`PackError::Short`].
pub fn section_bytes(head: &[u8]) -> Result<usize, PackError> {
    let mut head = Cursor(head);
    if head.array()? != SKIPPABLE {
        return Err(PackError::NotASection);
    }
    let length = usize::try_from(head.u32()?).map_err(|_| PackError::NotASection)?;
    if head.array()? != MAGIC {
        return Err(PackError::NotASection);
    }
    match length.checked_add(SKIPPABLE.len() + size_of::<u32>()) {
        Some(length) if (SECTION_BYTES_MIN..=SECTION_BYTES_MAX).contains(&length) => Ok(length),
        _ => Err(PackError::NotASection),
    }
}

impl Section {
    const fn kind(&self) -> u8 {
        match self {
            Self::Frame(_) => 1,
            Self::Recipe(_) => 2,
            Self::Index(_) => 3,
            Self::Trailer(_) => 4,
        }
    }

    /// Returns the section's bytes.
    ///
    /// # Errors
    /// [`PackError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, PackError> {
        let mut bytes = Vec::new();
        bytes.extend(SKIPPABLE);
        bytes.extend([0; size_of::<u32>()]);
        bytes.extend(MAGIC);
        bytes.push(self.kind());
        bytes.push(VERSION_BYTE);
        bytes.extend(KNOWN_FLAGS.to_le_bytes());
        match self {
            Self::Frame(frame) => frame.encode(&mut bytes)?,
            Self::Recipe(recipe) => recipe.encode(&mut bytes),
            Self::Index(index) => index.encode(&mut bytes)?,
            Self::Trailer(trailer) => {
                bytes.extend(trailer.index_offset.to_le_bytes());
                bytes.extend(trailer.index_bytes.to_le_bytes());
            }
        }
        let total = bytes.len().saturating_add(CHECK_BYTES);
        if total > SECTION_BYTES_MAX {
            return Err(PackError::TooLong);
        }
        let rest = count(total.saturating_sub(SKIPPABLE.len() + size_of::<u32>()))?;
        bytes.iter_mut().skip(SKIPPABLE.len()).zip(rest.to_le_bytes()).for_each(|(to, from)| *to = from);
        let check = Check::of(&bytes);
        bytes.extend(check.0);
        Ok(bytes)
    }

    /// Reads the section at the beginning of `bytes`; [`section_bytes`] says how many of them it has.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PackError> {
        let length = section_bytes(bytes)?;
        let bytes = bytes.get(..length).ok_or(PackError::Short)?;
        let (checked, check) = bytes.split_at(length.saturating_sub(CHECK_BYTES));
        if Check::of(checked).0 != *check {
            return Err(PackError::Damaged);
        }
        let mut body = Cursor(checked.get(SKIPPABLE.len() + size_of::<u32>() + MAGIC.len()..).unwrap_or_default());
        let [kind, version] = body.array()?;
        let flags = u16::from_le_bytes(body.array()?);
        if version > VERSION_BYTE {
            return Err(PackError::NewerVersion(version));
        }
        if flags & !KNOWN_FLAGS != 0 {
            return Err(PackError::UnknownFlags(flags & !KNOWN_FLAGS));
        }
        let section = match kind {
            1 => Self::Frame(Frame::decode(&mut body)?),
            2 => Self::Recipe(Recipe::decode(&mut body)?),
            3 => Self::Index(Index::decode(&mut body)?),
            4 => Self::Trailer(Trailer { index_offset: body.u64()?, index_bytes: body.u32()? }),
            _ => return Err(PackError::Malformed("unknown kind")),
        };
        if version == 0 || !body.0.is_empty() {
            return Err(PackError::Malformed("bytes are left over"));
        }
        Ok(section)
    }
}

impl Frame {
    fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), PackError> {
        bytes.extend(self.payload_bytes.to_le_bytes());
        bytes.extend(self.payload_check.0);
        bytes.extend(count(self.chunks.len())?.to_le_bytes());
        for chunk in &self.chunks {
            chunk.encode(bytes);
        }
        Ok(())
    }

    fn decode(body: &mut Cursor<'_>) -> Result<Self, PackError> {
        let payload_bytes = body.u32()?;
        let payload_check = Check(body.array()?);
        let chunks = body.list(Chunk::BYTES, Chunk::decode)?;
        let frame = Self { chunks, payload_bytes, payload_check };
        if frame.content_bytes() > FRAME_CONTENT_BYTES_MAX {
            return Err(PackError::Malformed("the frame is too large"));
        }
        Ok(frame)
    }
}

impl Chunk {
    const BYTES: usize = OBJECT_ID_BYTES + size_of::<u32>();

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.bytes.to_le_bytes());
        bytes.extend(self.id.as_bytes());
    }

    fn decode(body: &mut Cursor<'_>) -> Result<Self, PackError> {
        Ok(Self { bytes: body.u32()?, id: ObjectId::new(body.array()?) })
    }
}

impl Recipe {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.object.as_bytes());
        for part in &self.parts {
            match part {
                Part::Chunk(chunk) => chunk.encode(bytes),
                // No chunk is empty, so a length of 0 is free for this.
                Part::Zeros(length) => {
                    bytes.extend(0_u32.to_le_bytes());
                    bytes.extend(length.to_le_bytes());
                }
            }
        }
    }

    fn decode(body: &mut Cursor<'_>) -> Result<Self, PackError> {
        let object = ObjectId::new(body.array()?);
        let mut parts = Vec::new();
        while !body.0.is_empty() {
            parts.push(match body.u32()? {
                0 => Part::Zeros(body.u64()?),
                bytes => Part::Chunk(Chunk { bytes, id: ObjectId::new(body.array()?) }),
            });
        }
        let recipe = Self { object, parts };
        let possible = recipe.bytes().is_some_and(|bytes| bytes <= CONTENT_BYTES_MAX);
        if possible { Ok(recipe) } else { Err(PackError::Malformed("the object is too large")) }
    }
}

impl Index {
    fn encode(&self, bytes: &mut Vec<u8>) -> Result<(), PackError> {
        bytes.extend(count(self.frames.len())?.to_le_bytes());
        for frame in &self.frames {
            bytes.extend(frame.offset.to_le_bytes());
            bytes.extend(frame.section_bytes.to_le_bytes());
            bytes.extend(frame.payload_bytes.to_le_bytes());
        }
        bytes.extend(count(self.chunks.len())?.to_le_bytes());
        for chunk in &self.chunks {
            bytes.extend(chunk.id.as_bytes());
            bytes.extend(chunk.frame.to_le_bytes());
            bytes.extend(chunk.slot.to_le_bytes());
        }
        bytes.extend(count(self.recipes.len())?.to_le_bytes());
        for recipe in &self.recipes {
            bytes.extend(recipe.object.as_bytes());
            bytes.extend(recipe.offset.to_le_bytes());
            bytes.extend(recipe.bytes.to_le_bytes());
        }
        Ok(())
    }

    fn decode(body: &mut Cursor<'_>) -> Result<Self, PackError> {
        let frames = body.list(16, |body| {
            Ok(FrameAt { offset: body.u64()?, section_bytes: body.u32()?, payload_bytes: body.u32()? })
        })?;
        let chunks = body.list(OBJECT_ID_BYTES + 8, |body| {
            Ok(ChunkAt { id: ObjectId::new(body.array()?), frame: body.u32()?, slot: body.u32()? })
        })?;
        let recipes = body.list(OBJECT_ID_BYTES + 12, |body| {
            Ok(RecipeAt { object: ObjectId::new(body.array()?), offset: body.u64()?, bytes: body.u32()? })
        })?;
        let known = |chunk: &ChunkAt| usize::try_from(chunk.frame).is_ok_and(|frame| frame < frames.len());
        if !chunks.is_sorted() || !recipes.is_sorted() || !frames.is_sorted_by_key(|frame| frame.offset) {
            return Err(PackError::Malformed("the index is not sorted"));
        }
        if !chunks.iter().all(known) {
            return Err(PackError::Malformed("the index names a frame that is not there"));
        }
        Ok(Self { frames, chunks, recipes })
    }
}

fn count(length: usize) -> Result<u32, PackError> {
    u32::try_from(length).map_err(|_| PackError::TooLong)
}

/// Bytes that are still to be read.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], PackError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(PackError::Short)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u32(&mut self) -> Result<u32, PackError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, PackError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Reads a counted list of elements that have at least `bytes_min` bytes each: so a damaged count reserves nothing.
    fn list<T>(
        &mut self,
        bytes_min: usize,
        element: impl Fn(&mut Self) -> Result<T, PackError>,
    ) -> Result<Vec<T>, PackError> {
        let count = usize::try_from(self.u32()?).map_err(|_| PackError::Short)?;
        if count.checked_mul(bytes_min).is_none_or(|bytes| bytes > self.0.len()) {
            return Err(PackError::Short);
        }
        (0..count).map(|_| element(self)).collect()
    }
}
