//! Places that hold the documents and layers of an image: a layout directory, or a tar archive read by offsets.

use crate::compression::{Packing, unpacked};
use crate::tarball::{Kind, Tar, TarError, lossy};
use perennial_core::id::Digest;
use rustix::fs::{self, CWD, Mode, OFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Entries of an image archive: a few for every layer.
const MEMBERS_MAX: usize = 100_000;
/// Links from one entry to another that are followed.
const LINKS_MAX: u32 = 8;

/// Where a blob lies in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BlobName {
    /// By what is in it.
    Digest(Digest),
    /// By its path in the archive.
    Path(String),
}

impl std::fmt::Display for BlobName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Digest(digest) => digest.fmt(f),
            Self::Path(path) => path.fmt(f),
        }
    }
}

/// An open blob and its length.
pub(crate) type Blob = (Box<dyn Read>, u64);

/// A place that holds blobs.
pub(crate) trait Blobs {
    /// Opens a blob, or returns `None` where it is not there.
    fn open(&self, name: &BlobName) -> io::Result<Option<Blob>>;
}

/// A directory in OCI image layout.
pub(crate) struct DirectoryBlobs {
    pub(crate) root: PathBuf,
}

impl Blobs for DirectoryBlobs {
    fn open(&self, name: &BlobName) -> io::Result<Option<Blob>> {
        let path = match name {
            BlobName::Digest(digest) => self.root.join("blobs/sha256").join(digest.hex()),
            BlobName::Path(path) => self.root.join(path),
        };
        match File::open(&path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                if !metadata.is_file() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("{} is not a file", path.display()),
                    ));
                }
                Ok(Some((Box::new(file), metadata.len())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

enum Entry {
    Data { offset: u64, length: u64 },
    Link(Vec<u8>),
}

/// A tar archive whose entries can be opened in any order.
pub(crate) struct ArchiveBlobs {
    file: Rc<File>,
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl ArchiveBlobs {
    /// Opens an archive and lists its entries. One that is packed is unpacked into an unnamed file in `scratch` first.
    pub(crate) fn open(path: &Path, scratch: &Path, bytes_max: u64) -> Result<Self, TarError> {
        let file = File::open(path)?;
        let (mut reader, packing) = unpacked(&file)?;
        let file = if packing == Packing::Plain {
            drop(reader);
            file
        } else {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let scratch = fs::openat(CWD, scratch, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
            let mut scratch = File::from(scratch);
            let copied = io::copy(&mut reader.by_ref().take(bytes_max), &mut scratch)?;
            if copied == bytes_max {
                return Err(
                    io::Error::new(io::ErrorKind::FileTooLarge, "the unpacked archive is beyond the limit").into()
                );
            }
            scratch
        };
        Self::list(file)
    }

    fn list(file: File) -> Result<Self, TarError> {
        let length = file.metadata()?.len();
        let file = Rc::new(file);
        let mut archive = Tar::new(Section { file: file.clone(), at: 0, end: length });
        let mut entries = BTreeMap::new();
        while let Some(member) = archive.next_member()? {
            let offset = archive.get_ref().at;
            let name = clean(b"", &member.name);
            match member.kind {
                Kind::File if member.extents.is_none() => {
                    if offset.checked_add(member.size).is_none_or(|end| end > length) {
                        return Err(TarError::Truncated { entry: lossy(&member.name) });
                    }
                    entries.insert(name, Entry::Data { offset, length: member.size });
                }
                Kind::Symlink => {
                    let directory = crate::beneath::split(&name).0.to_vec();
                    entries.insert(name, Entry::Link(clean(&directory, &member.link)));
                }
                Kind::Hardlink => {
                    entries.insert(name, Entry::Link(clean(b"", &member.link)));
                }
                Kind::File | Kind::Directory | Kind::Char | Kind::Block | Kind::Fifo => {}
            }
            if entries.len() > MEMBERS_MAX {
                return Err(TarError::HeadersTooLong { after: lossy(&member.name) });
            }
            archive.skip_by(|section, bytes| section.at = section.at.saturating_add(bytes).min(section.end));
        }
        Ok(Self { file, entries })
    }
}

impl Blobs for ArchiveBlobs {
    fn open(&self, name: &BlobName) -> io::Result<Option<Blob>> {
        let path = match name {
            BlobName::Digest(digest) => format!("blobs/sha256/{}", digest.hex()),
            BlobName::Path(path) => path.clone(),
        };
        let mut path = clean(b"", path.as_bytes());
        for _ in 0..LINKS_MAX {
            match self.entries.get(&path) {
                None => return Ok(None),
                Some(Entry::Link(target)) => path.clone_from(target),
                Some(Entry::Data { offset, length }) => {
                    let end = offset.saturating_add(*length);
                    return Ok(Some((Box::new(Section { file: self.file.clone(), at: *offset, end }), *length)));
                }
            }
        }
        Ok(None)
    }
}

/// Joins and tidies a path inside an archive. `..` at the top stays at the top: nothing is opened by these paths.
fn clean(directory: &[u8], path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in directory.split(|byte| *byte == b'/').chain(path.split(|byte| *byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(b"/".as_slice())
}

/// A part of a file.
pub(crate) struct Section {
    file: Rc<File>,
    at: u64,
    end: u64,
}

impl Section {
    pub(crate) fn new(file: Rc<File>, at: u64, end: u64) -> Self {
        Self { file, at, end }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(buffer.get_mut(..left).unwrap_or_default(), self.at)?;
        self.at = self.at.saturating_add(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}

/// Returns the first components of the first names in an archive; none where it cannot be read.
pub(crate) fn top_names(path: &Path) -> Vec<String> {
    /// Names looked at: enough to see what an archive is.
    const NAMES_MAX: usize = 5000;
    let mut names = Vec::new();
    let Ok((reader, _)) = File::open(path).and_then(unpacked) else {
        return names;
    };
    let mut archive = Tar::new(reader);
    for _ in 0..NAMES_MAX {
        let Ok(Some(member)) = archive.next_member() else {
            break;
        };
        let name = clean(b"", &member.name);
        let top = lossy(name.split(|byte| *byte == b'/').next().unwrap_or_default());
        if !names.contains(&top) {
            names.push(top);
        }
    }
    names
}
