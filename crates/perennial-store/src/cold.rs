//! Packs: where the objects of older generations go, cut into chunks and compressed together.
//!
//! ```text
//!   objects/<secret>/ab/cdef…  ──archive──▶  packs/<blake3 of the file>.pack  ──thaw──▶  objects/<secret>/ab/cdef…
//! ```
//!
//! - A pack appears whole: written under another name, synced, renamed. It is named by what is in it and never changed.
//! - [`Packer::archive`] tells of an object that it is safe only after it was read back from packs that are durable.
//!   Removing the object itself is the caller's.
//! - What a crash leaves is packs that nothing needs yet, which the next archiving uses.
//! - Damage to a frame costs the chunks in it, damage to an index costs a scan of the pack.
//! - One process writes at a time ([`Packer`] holds a lock); reading ([`Cold`]) never waits.
//! - The same packs go elsewhere ([`Outgoing`]) and come from there ([`Incoming`]).
//!
//! What is not known here: which objects are needed (the caller says so), and where objects are kept ([`HotObjects`]).

mod archive;
mod content;
mod incoming;
mod index;
mod lent;
mod outgoing;
mod read;
mod repack;
mod verify;
mod write;

pub use archive::{Archived, Refusal, Request};
pub use incoming::{Gap, Incoming, IncomingError, PackPlace};
pub use lent::Lent;
pub use outgoing::{Known, Outgoing, OutgoingError, OutgoingPack};
pub use repack::Repacked;
pub use verify::{PackReport, Unreadable};

use crate::atomic;
use crate::layer::LayerError;
use crate::objects::ObjectError;
use crate::root::{Root, Wait};
use index::Places;
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{PackError, Part};
use read::Reader;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directory of packs in a root.
const DIRECTORY: &str = "packs";
/// End of a pack's name.
const EXTENSION: &str = "pack";
/// Permissions of a thawed object.
const OBJECT_MODE: u32 = 0o400;
/// Times a reader looks again for a pack that was rewritten meanwhile: rewriting takes far longer than looking.
const LOOKS_MAX: u32 = 8;
/// Frames of a run of objects that one thread thaws: 8 MiB of contents, so that few frames are read by two.
const RUN_FRAMES: usize = 4;
/// Packs that are fetched together, as many as there are transfers at once.
const REGION_PACKS: u32 = 4;
/// Zeros to hash, at once.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where objects are kept when they are not in packs.
pub trait HotObjects {
    /// Opens an object for reading.
    ///
    /// # Errors
    /// The system's, `NotFound` where there is no such object.
    fn open(&self, id: &ObjectId) -> std::io::Result<File>;

    /// Makes an object of a file without a name, whose content was checked; one that is there already is no error.
    ///
    /// # Errors
    /// The system's.
    fn adopt(&self, id: &ObjectId, content: &File) -> std::io::Result<()>;
}

impl HotObjects for crate::objects::Objects {
    fn open(&self, id: &ObjectId) -> std::io::Result<File> {
        self.open_object(id).map(File::from).map_err(into_io)
    }

    fn adopt(&self, id: &ObjectId, content: &File) -> std::io::Result<()> {
        let size = content.metadata()?.len();
        self.put_as(content.as_fd(), id, size).map(drop).map_err(into_io)
    }
}

fn into_io(error: ObjectError) -> std::io::Error {
    let kind = match &error {
        ObjectError::System { source, .. } => std::io::Error::from(*source).kind(),
        ObjectError::Hash(_) | ObjectError::Damaged { .. } => std::io::ErrorKind::Other,
    };
    std::io::Error::new(kind, error)
}

/// Why packs cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ColdError {
    /// A system call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A pack cannot be read at all, such as one of a newer release.
    #[error("{}", path.display())]
    Pack {
        /// The pack.
        path: PathBuf,
        /// What is wrong with it.
        source: PackError,
    },
    /// No pack has the object.
    #[error("object {object} is in no pack")]
    Unknown {
        /// The object.
        object: ObjectId,
    },
    /// A part of the object cannot be read from any pack.
    #[error("object {object} is damaged: chunk {chunk} cannot be read from any pack")]
    Damaged {
        /// The object.
        object: ObjectId,
        /// The chunk, or the object itself where its recipe is damaged or its parts do not make it.
        chunk: ObjectId,
    },
    /// A pack that is not needed any more could not be moved to the trash.
    #[error("cannot discard a pack")]
    Discard(#[source] LayerError),
    /// Something is too large for the format, which what this release writes never is.
    #[error("cannot encode a part of a pack")]
    Encode(#[source] PackError),
}

impl ColdError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_path_buf(), source }
    }
}

/// The packs of a root, for reading.
#[derive(Debug)]
pub struct Cold {
    path: PathBuf,
    staging: PathBuf,
    /// Shared by those who read the same packs at the same time.
    places: Arc<Places>,
    reader: Reader,
    lent: Lent,
}

/// The packs of a root, for writing: there is one at a time.
#[derive(Debug)]
pub struct Packer {
    cold: Cold,
    _lock: OwnedFd,
}

/// A stretch of an object that is being read.
enum Piece<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

impl Cold {
    /// Reads the indexes of all packs; of a damaged one, what can be found by reading all of it.
    ///
    /// # Errors
    /// [`ColdError::Io`], [`ColdError::Pack`] for one of a newer release.
    pub fn open(root: &Root) -> Result<Self, ColdError> {
        let path = root.path().join(DIRECTORY);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => atomic::sync_directory(root.path()).map_err(ColdError::io("sync", root.path()))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(ColdError::io("create", &path)(error)),
        }
        Self::open_in(&path, &root.staging_dir())
    }

    /// Reads the indexes of all packs in a directory; files without names are made in `staging`.
    fn open_in(path: &Path, staging: &Path) -> Result<Self, ColdError> {
        let places = Arc::new(Places::load(path)?);
        let reader = Reader::new(path.to_path_buf());
        Ok(Self { path: path.to_path_buf(), staging: staging.to_path_buf(), places, reader, lent: Lent::default() })
    }

    /// Returns another one for the same packs, for another thread; what it keeps at hand is its own.
    #[must_use]
    pub fn another(&self) -> Self {
        let Self { path, staging, places, lent, .. } = self;
        let reader = Reader::new(path.clone());
        Self { path: path.clone(), staging: staging.clone(), places: Arc::clone(places), reader, lent: lent.another() }
    }

    /// Takes chunks from files, too.
    pub fn lend(&mut self, lent: Lent) {
        self.lent = lent;
    }

    /// Returns the packs with their lengths in bytes.
    #[must_use]
    pub fn packs(&self) -> Vec<(ObjectId, u64)> {
        self.places.packs().map(|(_, pack)| (pack.id, pack.bytes)).collect()
    }

    /// Returns the packs whose index was damaged, so that they had to be scanned: writing them anew mends that.
    #[must_use]
    pub fn scanned(&self) -> Vec<ObjectId> {
        self.places.packs().filter(|(_, pack)| pack.scanned).map(|(_, pack)| pack.id).collect()
    }

    /// Returns whether packs have the object, judged by their indexes.
    ///
    /// # Errors
    /// [`ColdError`] where what the indexes point at cannot be read.
    pub fn contains(&mut self, object: &ObjectId) -> Result<bool, ColdError> {
        Ok(self.places.recipes(object).next().is_some() || self.has_chunk(object)?)
    }

    /// Sorts objects by where they are, so that thawing one after the other decompresses each frame about once.
    pub fn sort(&self, objects: &mut [ObjectId]) {
        objects.sort_by_cached_key(|object| self.places.near(object));
    }

    /// Sorts objects by where they are, and splits them into runs: those of one run lie in the same few frames, those of two
    /// seldom do, so that runs can be thawed side by side without decompressing much twice.
    pub fn runs(&self, objects: &mut [ObjectId]) -> Vec<Range<usize>> {
        self.sort(objects);
        let place = |object| self.places.near(object).map(|(pack, frame)| (pack, frame.div_euclid(RUN_FRAMES)));
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut before = None;
        for (number, object) in objects.iter().enumerate() {
            let here = place(object);
            match runs.last_mut() {
                Some(run) if before == Some(here) => run.end = number.saturating_add(1),
                Some(_) | None => runs.push(number..number.saturating_add(1)),
            }
            before = Some(here);
        }
        runs
    }

    /// Returns a number for the packs in which an object begins: those with the same lie in the same few packs.
    #[must_use]
    pub fn region(&self, object: &ObjectId) -> u32 {
        self.places.near(object).map_or(0, |(pack, _)| pack.div_euclid(REGION_PACKS))
    }

    /// Reads an object back from packs and compares it with its name.
    ///
    /// # Errors
    /// [`ColdError::Unknown`], [`ColdError::Damaged`], [`ColdError::Io`].
    pub fn check(&mut self, object: &ObjectId) -> Result<(), ColdError> {
        self.rebuild(object, &mut |_| Ok(()))
    }

    /// Puts an object back among the others: rebuilt in a file without a name, compared with its name, then adopted.
    /// It is durable when the caller has synced the file system.
    ///
    /// # Errors
    /// [`ColdError`]; nothing has then changed.
    pub fn thaw(&mut self, object: &ObjectId, objects: &impl HotObjects) -> Result<(), ColdError> {
        let staging = self.staging.clone();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(OBJECT_MODE);
        let file = rustix::fs::open(&staging, flags, mode).map_err(|errno| errno.into());
        let file = File::from(file.map_err(ColdError::io("make a file in", &staging))?);
        let failed = |error| ColdError::io("write a file in", &staging)(error);
        let mut at = 0_u64;
        self.rebuild(object, &mut |piece| match piece {
            Piece::Bytes(bytes) => {
                file.write_all_at(bytes, at).map_err(failed)?;
                at = at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                Ok(())
            }
            Piece::Zeros(bytes) => {
                at = at.saturating_add(bytes);
                Ok(())
            }
        })?;
        file.set_len(at).map_err(failed)?;
        objects.adopt(object, &file).map_err(ColdError::io("adopt a file of", &staging))
    }

    /// Hands the stretches of an object to `sink`; it is the object only where no error is returned.
    fn rebuild(
        &mut self,
        object: &ObjectId,
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ColdError>,
    ) -> Result<(), ColdError> {
        // Most are one chunk, whose name is theirs and was just compared.
        if let Some(content) = self.chunk(object)? {
            return sink(Piece::Bytes(&content));
        }
        let parts = self.parts(object)?;
        self.assemble(object, &parts, sink)
    }

    /// Hands the stretches of an object, which has these parts, to `sink`.
    fn assemble(
        &mut self,
        object: &ObjectId,
        parts: &[Part],
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), ColdError>,
    ) -> Result<(), ColdError> {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            match part {
                Part::Zeros(bytes) => {
                    hash_zeros(&mut hasher, *bytes);
                    sink(Piece::Zeros(*bytes))?;
                }
                Part::Chunk(chunk) => {
                    let content = self.chunk(&chunk.id)?;
                    let content = content.ok_or(ColdError::Damaged { object: *object, chunk: chunk.id })?;
                    hasher.update(&content);
                    sink(Piece::Bytes(&content))?;
                }
            }
        }
        if ObjectId::new(*hasher.finalize().as_bytes()) == *object {
            Ok(())
        } else {
            Err(ColdError::Damaged { object: *object, chunk: *object })
        }
    }
}

impl Packer {
    /// Reads the indexes of all packs for writing; `None` where another process writes and `wait` says not to wait.
    ///
    /// # Errors
    /// As [`Cold::open`].
    pub fn open(root: &Root, wait: Wait) -> Result<Option<Self>, ColdError> {
        drop(Cold::open(root)?);
        let path = root.path().join(DIRECTORY);
        let lock = atomic::open_directory(&path).map_err(ColdError::io("open", &path))?;
        let operation = match wait {
            Wait::Forever => FlockOperation::LockExclusive,
            Wait::Never => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(lock.as_fd(), operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(ColdError::io("lock", &path)(errno.into())),
        }
        write::discard_incoming(&path).map_err(ColdError::io("remove what a crash left in", &path))?;
        // Another may have written until now.
        Ok(Some(Self { cold: Cold::open(root)?, _lock: lock }))
    }

    /// Returns the packs for reading.
    pub const fn cold(&mut self) -> &mut Cold {
        &mut self.cold
    }
}

fn hash_zeros(hasher: &mut blake3::Hasher, bytes: u64) {
    let mut left = bytes;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        let written = hasher.write(ZEROS.get(..some).unwrap_or_default()).unwrap_or(0);
        left = left.saturating_sub(u64::try_from(written).unwrap_or(u64::MAX));
    }
}

fn pack_path(directory: &Path, pack: &ObjectId) -> PathBuf {
    directory.join(format!("{pack}.{EXTENSION}"))
}
