//! A pack being written: chunks gathered into frames, then an index; the file gets its name when it is durable.

use super::{ColdError, pack_path};
use crate::atomic;
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{
    Check, Chunk, ChunkAt, Frame, FrameAt, Index, PackError, Recipe, RecipeAt, Section, Trailer,
};
use rustix::fs::{Advice, fadvise};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use zstd::zstd_safe::CParameter;

/// Content of a frame, in bytes, before the chunk that fills it. Files compress better together (4 MiB saves another
/// 0.5 % at most); the price of reading one is decompressing the others, some milliseconds.
const FRAME_CONTENT_BYTES: usize = 2 << 20;
/// Chunks of a frame: bounds its table to 2.4 MB.
const FRAME_CHUNKS_MAX: usize = 1 << 16;
/// Length of a pack, in bytes, before the frame that fills it.
const PACK_BYTES: u64 = 32 << 20;
/// Chunks and recipes of a pack: bounds its index to 12 MB.
const PACK_ENTRIES_MAX: usize = 1 << 18;
/// Level of zstd: 6 takes 2.8 times as long for 6 % less, 1 two thirds for 4 % more (pieces of 64 KiB).
const LEVEL: i32 = 3;
/// Two to this power is how far back zstd looks, in bytes: a whole frame; any `zstd -d` allows it.
const WINDOW_LOG: u32 = 22;
/// Name of the file while it is written. There is one writer, so what is there is left over from a crash.
const INCOMING: &str = ".incoming";

/// A pack being written.
pub(super) struct PackWriter {
    directory: PathBuf,
    file: File,
    bytes: u64,
    hasher: blake3::Hasher,
    compressor: zstd::bulk::Compressor<'static>,
    content: Vec<u8>,
    chunks: Vec<Chunk>,
    index: Index,
    known: HashSet<ObjectId>,
    named: bool,
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        if !self.named {
            discard_incoming(&self.directory).ok();
        }
    }
}

/// Removes what is left of a pack that was not finished: its writer is gone.
pub(super) fn discard_incoming(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(directory.join(INCOMING)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What is read of a pack next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextRead {
    /// All of it, to see whether it is on the disk.
    Checks,
    /// All of it, to be sent.
    Sends,
}

/// A pack that is durable.
pub(super) struct Written {
    pub(super) id: ObjectId,
    pub(super) bytes: u64,
    pub(super) index_offset: u64,
    pub(super) index: Index,
}

impl PackWriter {
    pub(super) fn create(directory: &Path) -> Result<Self, ColdError> {
        let path = directory.join(INCOMING);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(ColdError::io("create", &path))?;
        let compressor = zstd::bulk::Compressor::new(LEVEL).and_then(|mut compressor| {
            compressor.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
            compressor.set_parameter(CParameter::ChecksumFlag(true))?;
            Ok(compressor)
        });
        Ok(Self {
            directory: directory.to_path_buf(),
            file,
            bytes: 0,
            hasher: blake3::Hasher::new(),
            compressor: compressor.map_err(ColdError::io("prepare compression for", &path))?,
            content: Vec::new(),
            chunks: Vec::new(),
            index: Index::default(),
            known: HashSet::new(),
            named: false,
        })
    }

    /// Returns whether this pack has the chunk.
    pub(super) fn has(&self, chunk: &ObjectId) -> bool {
        self.known.contains(chunk)
    }

    /// Returns whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.index.recipes.is_empty()
    }

    /// Returns whether it is to be finished.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= PACK_BYTES || self.known.len().saturating_add(self.index.recipes.len()) >= PACK_ENTRIES_MAX
    }

    /// Adds a chunk that is not in it yet.
    pub(super) fn push(&mut self, id: ObjectId, content: &[u8]) -> Result<(), ColdError> {
        let bytes = u32::try_from(content.len()).map_err(|_| ColdError::Encode(PackError::TooLong))?;
        self.content.extend_from_slice(content);
        self.chunks.push(Chunk { id, bytes });
        self.known.insert(id);
        if self.content.len() >= FRAME_CONTENT_BYTES || self.chunks.len() >= FRAME_CHUNKS_MAX {
            self.end_frame()?;
        }
        Ok(())
    }

    /// Adds a recipe.
    pub(super) fn push_recipe(&mut self, recipe: Recipe) -> Result<(), ColdError> {
        let object = recipe.object;
        let (offset, bytes) = self.section(&Section::Recipe(recipe))?;
        self.index.recipes.push(RecipeAt { object, offset, bytes });
        Ok(())
    }

    /// Ends the pack and gives it its name.
    pub(super) fn finish(mut self, next: NextRead) -> Result<Written, ColdError> {
        self.end_frame()?;
        self.index.chunks.sort_unstable();
        self.index.recipes.sort_unstable();
        let index = std::mem::take(&mut self.index);
        let section = Section::Index(index);
        let (index_offset, index_bytes) = self.section(&section)?;
        self.section(&Section::Trailer(Trailer { index_offset, index_bytes }))?;
        let incoming = self.directory.join(INCOMING);
        self.file.sync_all().map_err(ColdError::io("sync", &incoming))?;
        if next == NextRead::Checks {
            // It shall come from the disk. A file system that keeps it all the same does no harm.
            fadvise(&self.file, 0, None, Advice::DontNeed).ok();
        }
        let id = ObjectId::new(*self.hasher.finalize().as_bytes());
        let path = pack_path(&self.directory, &id);
        std::fs::rename(&incoming, &path).map_err(ColdError::io("rename a pack to", &path))?;
        self.named = true;
        atomic::sync_directory(&self.directory).map_err(ColdError::io("sync", &self.directory))?;
        let Section::Index(index) = section else { return Err(ColdError::Encode(PackError::NotASection)) };
        Ok(Written { id, bytes: self.bytes, index_offset, index })
    }

    /// Writes the chunks gathered so far as a frame.
    pub(super) fn end_frame(&mut self) -> Result<(), ColdError> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        let incoming = self.directory.join(INCOMING);
        let payload = self.compressor.compress(&self.content).map_err(ColdError::io("compress for", &incoming))?;
        self.content.clear();
        let payload_bytes = u32::try_from(payload.len()).map_err(|_| ColdError::Encode(PackError::TooLong))?;
        let chunks = std::mem::take(&mut self.chunks);
        let number = u32::try_from(self.index.frames.len()).map_err(|_| ColdError::Encode(PackError::TooLong))?;
        let places = (0..).zip(&chunks).map(|(slot, chunk)| ChunkAt { id: chunk.id, frame: number, slot });
        self.index.chunks.extend(places);
        let frame = Frame { chunks, payload_bytes, payload_check: Check::of(&payload) };
        let (offset, section_bytes) = self.section(&Section::Frame(frame))?;
        self.write(&payload)?;
        self.index.frames.push(FrameAt { offset, section_bytes, payload_bytes });
        Ok(())
    }

    fn section(&mut self, section: &Section) -> Result<(u64, u32), ColdError> {
        let bytes = section.encode().map_err(ColdError::Encode)?;
        let offset = self.bytes;
        self.write(&bytes)?;
        Ok((offset, u32::try_from(bytes.len()).map_err(|_| ColdError::Encode(PackError::TooLong))?))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ColdError> {
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(ColdError::io("write", &self.directory.join(INCOMING)))?;
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}
