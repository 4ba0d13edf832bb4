//! Objects into packs.

use super::content::{self, Stretch};
use super::write::{NextRead, PackWriter};
use super::{Cold, ColdError, HotObjects, Packer};
use perennial_core::sealed::chunk::{Cuts, Neighbour};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{Chunk, PackError, Part, Recipe};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;

/// Times an object is written: once more where what is in packs of it already turns out to be damaged.
const ROUNDS: u32 = 2;

/// An object that is to be in packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The object.
    pub object: ObjectId,
    /// A path it has in a tree. What lies side by side, or is of one kind, compresses well together.
    pub path: Vec<u8>,
    /// The object of another version of the same file, older or newer, where there is one.
    pub neighbour: Option<ObjectId>,
}

/// Why an object is not in packs; it stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be opened or read.
    #[error("the object cannot be read")]
    Unreadable(#[source] std::io::Error),
    /// Its content is not what its name says.
    #[error("the object is damaged: its content is not what its name says")]
    Damaged,
    /// It is larger than what is ever packed.
    #[error("the object is too large for packs")]
    TooLarge,
    /// It was written, but what is read from the packs is not the object: the disk loses data.
    #[error("the object was written to packs, but cannot be read back")]
    NotReadBack(#[source] ColdError),
}

/// What archiving did.
#[derive(Debug, Default)]
pub struct Archived {
    /// Objects that were read back from durable packs: they may be removed elsewhere.
    pub safe: Vec<ObjectId>,
    /// Objects that stay where they are, and why.
    pub refused: Vec<(ObjectId, Refusal)>,
    /// New packs with their lengths in bytes.
    pub packs: Vec<(ObjectId, u64)>,
}

/// Why one object could not be written.
enum Failure {
    Refused(Refusal),
    Fatal(ColdError),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Refused(Refusal::Unreadable(error))
    }
}

impl From<ColdError> for Failure {
    fn from(error: ColdError) -> Self {
        Self::Fatal(error)
    }
}

impl Packer {
    /// Writes objects to packs, as far as `go_on` lets it, which is asked before each. It may be stopped or die at any
    /// time: what is in packs then need not be written again.
    ///
    /// # Errors
    /// [`ColdError`] where packs cannot be written or read; nothing is safe then that was not before.
    pub fn archive(
        &mut self,
        objects: &impl HotObjects,
        mut requests: Vec<Request>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Archived, ColdError> {
        requests.sort_by(|one, other| order(&one.path).cmp(&order(&other.path)));
        let mut seen = BTreeSet::new();
        requests.retain(|request| seen.insert(request.object));
        drop(seen);
        let mut archived = Archived::default();
        for round in 1..=ROUNDS {
            requests = self.round(objects, requests, go_on, &mut archived)?;
            let mut again = Vec::new();
            for request in requests {
                match self.cold.check(&request.object) {
                    Ok(()) => archived.safe.push(request.object),
                    Err(ColdError::Damaged { .. } | ColdError::Unknown { .. }) if round < ROUNDS => {
                        self.cold.distrust(&request.object)?;
                        again.push(request);
                    }
                    Err(error @ (ColdError::Damaged { .. } | ColdError::Unknown { .. })) => {
                        archived.refused.push((request.object, Refusal::NotReadBack(error)));
                    }
                    Err(error) => return Err(error),
                }
            }
            requests = again;
        }
        Ok(archived)
    }

    /// Writes what is not in packs; returns the objects that should then be in durable ones.
    fn round(
        &mut self,
        objects: &impl HotObjects,
        requests: Vec<Request>,
        go_on: &mut dyn FnMut() -> bool,
        archived: &mut Archived,
    ) -> Result<Vec<Request>, ColdError> {
        let mut session = Session { cold: &mut self.cold, writer: None, packs: Vec::new() };
        let mut written = Vec::new();
        for request in requests {
            if !go_on() {
                break;
            }
            match session.object(objects, &request) {
                Ok(()) => written.push(request),
                Err(Failure::Refused(refusal)) => archived.refused.push((request.object, refusal)),
                Err(Failure::Fatal(error)) => return Err(error),
            }
        }
        session.publish()?;
        archived.packs.append(&mut session.packs);
        Ok(written)
    }
}

/// Packs being written one after another.
pub(super) struct Session<'a> {
    pub(super) cold: &'a mut Cold,
    pub(super) writer: Option<PackWriter>,
    pub(super) packs: Vec<(ObjectId, u64)>,
}

impl Session<'_> {
    fn object(&mut self, objects: &impl HotObjects, request: &Request) -> Result<(), Failure> {
        let object = request.object;
        if self.writer.as_ref().is_some_and(|writer| writer.has(&object)) || self.cold.contains(&object)? {
            return Ok(());
        }
        let file = objects.open(&object)?;
        let size = file.metadata()?.len();
        let neighbour = self.neighbour(objects, request, &file)?;
        let cuts = Cuts::choose(size, neighbour).ok_or(Failure::Refused(Refusal::TooLarge))?;
        let mut parts = Vec::new();
        let id = content::cut(&file, size, &cuts, &mut |stretch| match stretch {
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
                self.chunk(id, content).map_err(Failure::Fatal)
            }
        })?;
        if id != object {
            return Err(Failure::Refused(Refusal::Damaged));
        }
        if !matches!(parts.as_slice(), [Part::Chunk(_)]) {
            self.writer()?.push_recipe(Recipe { object, parts })?;
        }
        Ok(())
    }

    /// Writes a chunk unless it is in a pack.
    fn chunk(&mut self, id: ObjectId, content: &[u8]) -> Result<(), ColdError> {
        if self.writer.as_ref().is_some_and(|writer| writer.has(&id)) || self.cold.has_chunk(&id)? {
            return Ok(());
        }
        self.push(id, content)
    }

    /// Writes a chunk.
    pub(super) fn push(&mut self, id: ObjectId, content: &[u8]) -> Result<(), ColdError> {
        if self.writer.as_ref().is_some_and(PackWriter::is_full) {
            self.publish()?;
        }
        self.writer()?.push(id, content)
    }

    /// Returns the pack being written.
    pub(super) fn writer(&mut self) -> Result<&mut PackWriter, ColdError> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none @ None => Ok(none.insert(PackWriter::create(&self.cold.path)?)),
        }
    }

    /// Ends the pack being written: it is durable then, and known.
    pub(super) fn publish(&mut self) -> Result<(), ColdError> {
        let Some(writer) = self.writer.take_if(|writer| !writer.is_empty()) else { return Ok(()) };
        let written = writer.finish(NextRead::Checks)?;
        self.packs.push((written.id, written.bytes));
        Arc::make_mut(&mut self.cold.places).add(written.id, written.bytes, written.index);
        Ok(())
    }

    fn neighbour(
        &mut self,
        objects: &impl HotObjects,
        request: &Request,
        file: &File,
    ) -> Result<Option<Neighbour>, Failure> {
        let Some(neighbour) = &request.neighbour else { return Ok(None) };
        if let Some(recipe) = self.cold.recipe(neighbour)? {
            return Ok(Some(Neighbour::Packed { fixed: recipe.is_fixed() }));
        }
        let Ok(other) = objects.open(neighbour) else { return Ok(None) };
        let (blocks, equal) = content::compare(file, &other)?;
        Ok(Some(Neighbour::Compared { blocks, equal }))
    }
}

impl Cold {
    /// Forgets where the damaged parts of an object are, so that they are written again.
    fn distrust(&mut self, object: &ObjectId) -> Result<(), ColdError> {
        let parts = match self.recipe(object)? {
            Some(recipe) => recipe.parts,
            None => vec![Part::Chunk(Chunk { id: *object, bytes: 0 })],
        };
        let mut made = blake3::Hasher::new();
        for part in parts {
            match part {
                Part::Zeros(bytes) => super::hash_zeros(&mut made, bytes),
                Part::Chunk(chunk) => match self.chunk(&chunk.id)? {
                    Some(content) => {
                        made.update(&content);
                    }
                    None => {
                        let places: Vec<_> = self.places.chunks(&chunk.id).collect();
                        let known = Arc::make_mut(&mut self.places);
                        places.iter().for_each(|place| known.forget_frame(place.pack, place.frame));
                    }
                },
            }
        }
        if ObjectId::new(*made.finalize().as_bytes()) != *object {
            Arc::make_mut(&mut self.places).forget_recipes(object);
        }
        Ok(())
    }
}

/// Order in which objects are packed: by kind, which is what a name ends in, then by path.
fn order(path: &[u8]) -> (&[u8], &[u8]) {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let kind = name.iter().rposition(|byte| *byte == b'.').and_then(|dot| name.get(dot..)).unwrap_or_default();
    (kind, path)
}
