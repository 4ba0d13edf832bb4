//! The files of a sealed layer's directory: written under other names, synced, and renamed when both are complete.

use super::error::{SealError, Unsealable};
use super::mount::IMAGE;
use crate::root::Secret;
use crate::tree::EntryPath;
use perennial_core::sealed::canonical::Fault;
use perennial_core::sealed::erofs::{self, EncodeError, Identity, PlanError};
use perennial_core::sealed::io::{ReadAt, Sink, Source};
use perennial_core::sealed::manifest::{ReadError, Reader, Summary, WriteError};
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat, renameat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Name of the manifest in a layer's directory.
pub const MANIFEST: &str = "manifest";
/// Bytes of the checksum at the end of a manifest, and read at a time for it.
const CHECKSUM_BYTES: u64 = 32;
const HASH_BUFFER_BYTES: usize = 256 << 10;
/// Names while they are written; what is there by these names is a rest of an attempt that was cut off.
pub const TEMPORARY: [&str; 2] = [".manifest.new", ".meta.erofs.new"];

/// A file as the codecs take it. What it gives and takes is not buffered: the codecs do that.
#[derive(Debug)]
pub struct DiskFile(pub File);

impl Sink for DiskFile {
    type Error = std::io::Error;
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes)
    }
}

impl Source for DiskFile {
    type Error = std::io::Error;
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

impl ReadAt for DiskFile {
    type Error = std::io::Error;
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn size(&self) -> std::io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

/// Compares what would be written with what is there.
#[derive(Debug)]
struct Same {
    file: DiskFile,
    buffer: Vec<u8>,
    differs: bool,
}

impl Sink for Same {
    type Error = std::io::Error;
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.buffer.resize(bytes.len(), 0);
        match self.file.0.read_exact(&mut self.buffer) {
            Ok(()) => self.differs |= self.buffer != bytes,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => self.differs = true,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The open directory of a layer.
#[derive(Debug)]
pub struct LayerFiles {
    dir: OwnedFd,
    path: PathBuf,
}

impl LayerFiles {
    /// Opens the directory of a layer.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn open(path: &Path) -> Result<Self, SealError> {
        let dir = crate::atomic::open_directory(path);
        let dir = dir.map_err(|source| SealError::Io { action: "open", path: path.to_path_buf(), source })?;
        Ok(Self { dir, path: path.to_path_buf() })
    }

    /// Returns the open directory.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(super) fn io(&self, action: &'static str, name: &str, error: impl Into<std::io::Error>) -> SealError {
        SealError::Io { action, path: self.path.join(name), source: error.into() }
    }

    /// Opens the manifest; `None` where the layer is not sealed.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn manifest(&self) -> Result<Option<DiskFile>, SealError> {
        self.read(MANIFEST)
    }

    fn read(&self, name: &str) -> Result<Option<DiskFile>, SealError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(DiskFile(fd.into()))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.io("open", name, errno)),
        }
    }

    /// Returns a reader of the directories of the manifest by this name.
    ///
    /// # Errors
    /// [`SealError::Io`]; [`SealError::Manifest`] where it cannot be used.
    pub fn directories(&self, name: &str) -> Result<Reader<DiskFile>, SealError> {
        let file = self.read(name)?.ok_or_else(|| self.io("open", name, Errno::NOENT))?;
        Reader::new(file).map_err(|error| self.unreadable(name, &error))
    }

    /// Reads the whole manifest of a sealed layer and returns what it adds up to; `None` where it has none.
    ///
    /// # Errors
    /// As [`LayerFiles::directories`].
    pub fn summary(&self) -> Result<Option<Summary>, SealError> {
        use perennial_core::sealed::entry::DirectorySource as _;
        let Some(file) = self.manifest()? else { return Ok(None) };
        let mut reader = Reader::new(file).map_err(|error| self.unreadable(MANIFEST, &error))?;
        while reader.next_directory().map_err(|error| self.unreadable(MANIFEST, &error))?.is_some() {}
        Ok(reader.summary().cloned())
    }

    /// Returns whether the manifest is as it was written, by the checksum at its end; `None` where there is none.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn is_manifest_intact(&self) -> Result<Option<bool>, SealError> {
        let Some(mut file) = self.manifest()? else { return Ok(None) };
        let mut rest = match file.size() {
            Ok(size) => size.checked_sub(CHECKSUM_BYTES),
            Err(error) => return Err(self.io("look at", MANIFEST, error)),
        };
        let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; HASH_BUFFER_BYTES]);
        while let Some(left) = rest.filter(|left| *left > 0) {
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            match file.read(piece) {
                // No file, or one that became shorter.
                Ok(0) | Err(_) => return Ok(Some(false)),
                Ok(length) => {
                    hasher.update(piece.get(..length).unwrap_or_default());
                    rest = left.checked_sub(u64::try_from(length).unwrap_or(left));
                }
            }
        }
        let mut written = [0; 32];
        let is_read = rest.is_some() && file.0.read_exact(&mut written).is_ok();
        Ok(Some(is_read && hasher.finalize() == written))
    }

    /// Returns whether the layer has both files.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn is_sealed(&self) -> Result<bool, SealError> {
        Ok(self.read(MANIFEST)?.is_some() && self.read(IMAGE)?.is_some())
    }

    /// Looks for what is wrong with the files of a sealed layer without reading either whole, for every start: one is
    /// missing or no file, has another length, or the image is not that of this manifest. Other damage is what a
    /// verification finds. Returns it in words that begin with the file's name.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn glance(&self, manifest: ObjectId, manifest_bytes: u64) -> Result<Option<String>, SealError> {
        for name in [MANIFEST, IMAGE] {
            let file = match self.read(name) {
                Ok(Some(file)) => file,
                Ok(None) => return Ok(Some(format!("{name} is missing"))),
                Err(SealError::Io { source, .. }) if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                    return Ok(Some(format!("{name} is no file")));
                }
                Err(error) => return Err(error),
            };
            let metadata = file.0.metadata().map_err(|error| self.io("look at", name, error))?;
            if !metadata.is_file() {
                return Ok(Some(format!("{name} is no file")));
            }
            if name == MANIFEST && metadata.len() != manifest_bytes {
                return Ok(Some(format!("{name} has {} bytes instead of {manifest_bytes}", metadata.len())));
            }
            if name == IMAGE && !is_image_of(&file.0, metadata.len(), &manifest) {
                return Ok(Some(format!("{name} is not the image of its manifest")));
            }
        }
        Ok(None)
    }

    /// Returns the length of the metadata image, in bytes.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn image_bytes(&self) -> Result<u64, SealError> {
        let image = self.read(IMAGE)?.ok_or_else(|| self.io("open", IMAGE, Errno::NOENT))?;
        image.size().map_err(|error| self.io("look at", IMAGE, error))
    }

    /// Creates a file to write.
    ///
    /// # Errors
    /// [`SealError::Io`].
    pub fn create(&self, name: &str) -> Result<DiskFile, SealError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR);
        Ok(DiskFile(created.map_err(|errno| self.io("create", name, errno))?.into()))
    }

    /// Writes the metadata image of the manifest that is complete under its temporary name, and returns its length.
    ///
    /// # Errors
    /// [`SealError::Unsealable`] where EROFS cannot hold the tree; [`SealError::Io`], [`SealError::Manifest`].
    pub fn write_image(&self, manifest: ObjectId, secret: &Secret) -> Result<u64, SealError> {
        let [temporary, image] = TEMPORARY;
        let layout = erofs::plan(&mut self.directories(temporary)?).map_err(|error| match error {
            PlanError::Source(error) => self.unreadable(temporary, &error),
            PlanError::Tree(fault) => limit(&fault),
            PlanError::Unfit(unfit) => {
                let path = EntryPath::from_bytes(unfit.path.clone());
                SealError::Unsealable { path, why: Unsealable::Limit(unfit.reason.to_string()) }
            }
        })?;
        let identity = Identity { secret: secret.for_image(), manifest };
        let written = erofs::write(&layout, &identity, &mut self.directories(temporary)?, self.create(image)?);
        match written {
            Ok(_) => Ok(layout.image_bytes()),
            Err(EncodeError::Sink(error)) => Err(self.io("write", image, error)),
            Err(EncodeError::Source(error)) => Err(self.unreadable(temporary, &error)),
            Err(error @ EncodeError::Changed) => {
                Err(SealError::Manifest { path: self.path.join(temporary), reason: error.to_string() })
            }
        }
    }

    /// Returns whether the metadata image is the one that its manifest makes, byte for byte.
    ///
    /// # Errors
    /// [`SealError::Io`], [`SealError::Manifest`] where one of them cannot be read.
    pub fn image_matches(&self, manifest: ObjectId, secret: &Secret) -> Result<bool, SealError> {
        let Some(image) = self.read(IMAGE)? else { return Ok(false) };
        let Ok(layout) = erofs::plan(&mut self.directories(MANIFEST)?) else { return Ok(false) };
        if image.size().map_err(|error| self.io("look at", IMAGE, error))? != layout.image_bytes() {
            return Ok(false);
        }
        let identity = Identity { secret: secret.for_image(), manifest };
        let same = Same { file: image, buffer: Vec::new(), differs: false };
        match erofs::write(&layout, &identity, &mut self.directories(MANIFEST)?, same) {
            Ok(same) => Ok(!same.differs),
            Err(EncodeError::Sink(error)) => Err(self.io("read", IMAGE, error)),
            Err(EncodeError::Source(error)) => Err(self.unreadable(MANIFEST, &error)),
            Err(EncodeError::Changed) => Ok(false),
        }
    }

    /// Syncs the file system, with everything that was written to it, and gives both files their names: the manifest
    /// first, so that an image has one. A layer that has both is sealed.
    ///
    /// # Errors
    /// [`SealError::Io`]; the call can be repeated.
    pub fn publish(&self) -> Result<(), SealError> {
        rustix::fs::syncfs(&self.dir).map_err(|errno| self.io("sync", "", errno))?;
        for (temporary, name) in TEMPORARY.into_iter().zip([MANIFEST, IMAGE]) {
            renameat(&self.dir, temporary, &self.dir, name).map_err(|errno| self.io("rename to", name, errno))?;
            rustix::fs::fsync(&self.dir).map_err(|errno| self.io("sync", "", errno))?;
        }
        Ok(())
    }

    /// Removes what an attempt that was given up has left.
    pub fn discard(&self) {
        for name in TEMPORARY {
            // What stays is overwritten by the next attempt.
            rustix::fs::unlinkat(&self.dir, name, rustix::fs::AtFlags::empty()).ok();
        }
    }

    pub(super) fn unreadable(&self, name: &str, error: &ReadError<std::io::Error>) -> SealError {
        let reason = match error {
            ReadError::Source(source) => source.to_string(),
            ReadError::Malformed(_) | ReadError::Tree(_) => error.to_string(),
        };
        SealError::Manifest { path: self.path.join(name), reason }
    }

    /// The manifest as it is cannot be used.
    pub(super) fn malformed(&self, reason: String) -> SealError {
        SealError::Manifest { path: self.path.join(MANIFEST), reason }
    }

    pub(super) fn unwritable(&self, error: WriteError<std::io::Error>) -> SealError {
        match error {
            WriteError::Sink(error) => self.io("write", TEMPORARY[0], error),
            WriteError::Tree(fault) => limit(&fault),
        }
    }
}

fn is_image_of(image: &File, size: u64, manifest: &ObjectId) -> bool {
    let mut head = [0; erofs::HEAD_BYTES];
    image.read_exact_at(&mut head, 0).is_ok() && erofs::is_of(&head, size, manifest)
}

fn limit(fault: &Fault) -> SealError {
    let path = EntryPath::from_bytes(fault.path.clone());
    SealError::Unsealable { path, why: Unsealable::Limit(fault.problem.to_string()) }
}
