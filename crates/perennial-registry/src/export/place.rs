//! A layout on disk while an image is written into it.
//!
//! A new directory or archive is made under another name beside its own and renamed when it is complete. In a layout
//! that exists, blobs are added and the index is replaced last; it is locked meanwhile against other exports.

use super::documents::REF_NAME;
use super::tar::{Header, padding_of};
use super::{Destination, ExportError};
use crate::manifest::OCI_INDEX;
use perennial_core::id::Digest;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Longest index of a layout that is added to.
const INDEX_BYTES_MAX: u64 = 4 << 20;
const BLOCK_BYTES: u64 = 512;

/// Where a blob is written to.
pub(super) type BlobFile = File;

/// A layout on disk.
#[derive(Debug)]
pub(super) struct Place {
    /// The name it is to have.
    target: PathBuf,
    /// Where it is being made: beside its target, or the target itself where images are added.
    at: PathBuf,
    kind: Kind,
    /// Digests of the blobs written or found.
    known: BTreeSet<Digest>,
    /// Files made so far that are to go after an error.
    made: Vec<PathBuf>,
    is_done: bool,
}

#[derive(Debug)]
enum Kind {
    New,
    /// With its lock, and the index as it was.
    Existing {
        _lock: File,
        index: Value,
    },
    /// With its end, in bytes.
    Archive {
        file: File,
        end: u64,
    },
}

impl Place {
    pub(super) fn begin(destination: &Destination, nonce: &str) -> Result<Self, ExportError> {
        let (Destination::Oci { path, .. } | Destination::OciArchive { path, .. }) = destination;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        if !parent.is_dir() {
            return Err(ExportError::NoParent { path: parent.to_path_buf() });
        }
        let beside = parent.join(format!(".perennial-{nonce}"));
        let (at, kind) = match (destination, state_of(path)?) {
            (Destination::Oci { .. }, State::Layout) => (path.clone(), existing(path)?),
            (Destination::Oci { .. }, State::Absent | State::EmptyDirectory) => {
                fs::create_dir(&beside).map_err(ExportError::io("make", &beside))?;
                (beside, Kind::New)
            }
            (Destination::OciArchive { .. }, State::Absent) => {
                let opened = OpenOptions::new().write(true).create_new(true).open(&beside);
                (beside.clone(), Kind::Archive { file: opened.map_err(ExportError::io("make", &beside))?, end: 0 })
            }
            (Destination::Oci { .. }, State::Other(what)) | (Destination::OciArchive { .. }, State::Other(what)) => {
                return Err(ExportError::Exists { path: path.clone(), what });
            }
            (Destination::OciArchive { .. }, State::EmptyDirectory | State::Layout) => {
                return Err(ExportError::Exists { path: path.clone(), what: "a directory" });
            }
        };
        let (known, made) = (BTreeSet::new(), Vec::new());
        let place = Self { target: path.clone(), at, kind, known, made, is_done: false };
        if !matches!(place.kind, Kind::Archive { .. }) {
            let blobs = place.blobs();
            fs::create_dir_all(&blobs).map_err(ExportError::io("make", &blobs))?;
        }
        Ok(place)
    }

    /// Returns the destination, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.target
    }

    fn blobs(&self) -> PathBuf {
        self.at.join("blobs/sha256")
    }

    fn part(&self) -> PathBuf {
        self.blobs().join(format!(".part-{}", std::process::id()))
    }

    /// Opens a blob whose name is not known yet.
    pub(super) fn begin_blob(&mut self) -> Result<BlobFile, ExportError> {
        let part = self.part();
        match &mut self.kind {
            Kind::New | Kind::Existing { .. } => {
                let file = File::create(&part).map_err(ExportError::io("make", &part))?;
                self.made.push(part);
                Ok(file)
            }
            // The header is written when name and length are known.
            Kind::Archive { file, end } => {
                let failed = |source| ExportError::io("write", &self.target)(source);
                file.seek(SeekFrom::Start(end.saturating_add(BLOCK_BYTES))).map_err(failed)?;
                file.try_clone().map_err(|source| ExportError::io("write", &self.target)(source))
            }
        }
    }

    /// Gives a blob its name.
    pub(super) fn end_blob(&mut self, blob: BlobFile, digest: &Digest, bytes: u64) -> Result<(), ExportError> {
        let is_new = self.known.insert(digest.clone());
        let name = format!("blobs/sha256/{}", digest.hex());
        let part = self.part();
        match &mut self.kind {
            Kind::New | Kind::Existing { .. } => {
                self.made.retain(|path| *path != part);
                let path = self.at.join(name);
                if path.symlink_metadata().is_ok_and(|found| found.is_file() && found.len() == bytes) {
                    return fs::remove_file(&part).map_err(ExportError::io("remove", &part));
                }
                blob.sync_data().map_err(ExportError::io("write", &part))?;
                fs::rename(&part, &path).map_err(ExportError::io("write", &path))?;
                self.made.push(path);
                Ok(())
            }
            Kind::Archive { file, end } => {
                if !is_new {
                    return Ok(());
                }
                end_member(file, end, &name, bytes).map_err(ExportError::io("write", &self.target))
            }
        }
    }

    /// Writes the index with this entry, and gives everything its name.
    pub(super) fn finish(mut self, entry: &Value, tag: &str) -> Result<(), ExportError> {
        let index = match &self.kind {
            Kind::New | Kind::Archive { .. } => json!({
                "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry],
            }),
            Kind::Existing { index, .. } => added(index, entry, tag),
        };
        let index = index.to_string();
        let failed = |path: &Path| ExportError::io("write", path);
        if let Kind::Archive { file, end } = &mut self.kind {
            let target = &self.target;
            (|| {
                add_member(file, end, "oci-layout", LAYOUT)?;
                add_member(file, end, "index.json", index.as_bytes())?;
                file.seek(SeekFrom::Start(*end))?;
                file.write_all(&[0; 1024])?;
                // What a blob that was known already has left behind it.
                file.set_len(end.saturating_add(1024))?;
                file.sync_all()
            })()
            .map_err(failed(target))?;
            let cwd = rustix::fs::CWD;
            renameat_with(cwd, &self.at, cwd, target, RenameFlags::NOREPLACE)
                .map_err(|errno| failed(target)(errno.into()))?;
        } else {
            self.finish_directory(index.as_bytes())?;
        }
        self.is_done = true;
        let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_directory(parent).map_err(failed(parent))
    }

    fn finish_directory(&mut self, index: &[u8]) -> Result<(), ExportError> {
        let layout = self.at.join("oci-layout");
        let failed = |path: &Path| ExportError::io("write", path);
        if let Kind::New = self.kind {
            write_synced(&layout, LAYOUT).map_err(failed(&layout))?;
        }
        sync_directory(&self.blobs()).map_err(failed(&self.target))?;
        let (part, path) = (self.at.join(format!(".index-{}", std::process::id())), self.at.join("index.json"));
        self.made.push(part.clone());
        write_synced(&part, index).map_err(failed(&part))?;
        fs::rename(&part, &path).map_err(failed(&path))?;
        sync_directory(&self.at).map_err(failed(&self.target))?;
        if let Kind::New = self.kind {
            // An empty directory of that name is replaced.
            fs::rename(&self.at, &self.target).map_err(failed(&self.target))?;
        }
        Ok(())
    }
}

impl Drop for Place {
    /// Removes what an export that did not come to its end has written; what cannot be removed has a name of its own.
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        match &self.kind {
            Kind::New => drop(fs::remove_dir_all(&self.at)),
            Kind::Archive { .. } => drop(fs::remove_file(&self.at)),
            Kind::Existing { .. } => self.made.iter().for_each(|path| drop(fs::remove_file(path))),
        }
    }
}

enum State {
    Absent,
    EmptyDirectory,
    Layout,
    Other(&'static str),
}

fn state_of(path: &Path) -> Result<State, ExportError> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            return Ok(State::Absent);
        }
        Err(error) => return Err(ExportError::io("look at", path)(error)),
    };
    if !found.is_dir() {
        return Ok(State::Other("a file"));
    }
    if path.join("oci-layout").is_file() && path.join("index.json").is_file() {
        return Ok(State::Layout);
    }
    let mut entries = fs::read_dir(path).map_err(ExportError::io("read", path))?;
    Ok(if entries.next().is_some() {
        State::Other("a directory without an image layout")
    } else {
        State::EmptyDirectory
    })
}

fn existing(path: &Path) -> Result<Kind, ExportError> {
    let lock = File::open(path).map_err(ExportError::io("open", path))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|errno| ExportError::io("lock", path)(errno.into()))?;
    let file = path.join("index.json");
    let mut bytes = Vec::new();
    let read = File::open(&file).and_then(|index| index.take(INDEX_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(ExportError::io("read", &file))?;
    let index: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ExportError::io("understand", &file)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    if !index.get("manifests").is_some_and(Value::is_array) {
        return Err(ExportError::Exists {
            path: path.to_path_buf(),
            what: "a layout whose index.json lists no images",
        });
    }
    Ok(Kind::Existing { _lock: lock, index })
}

/// Returns the index with one more image; one that had the name loses it to the new one.
fn added(index: &Value, entry: &Value, tag: &str) -> Value {
    let mut index = index.clone();
    if let Some(images) = index.get_mut("manifests").and_then(Value::as_array_mut) {
        let has_name = |image: &Value| {
            let annotations = image.get("annotations");
            annotations.and_then(|all| all.get(REF_NAME)).and_then(Value::as_str) == Some(tag)
        };
        images.retain(|image| !has_name(image));
        images.push(entry.clone());
    }
    index
}

/// Writes the header of a member whose data is written, and its padding.
fn end_member(file: &mut File, end: &mut u64, name: &str, bytes: u64) -> io::Result<()> {
    let header = Header { name: name.as_bytes(), flag: b'0', mode: 0o644, size: bytes, ..Header::default() };
    file.write_all_at(&header.block(), *end)?;
    let data_end = end.saturating_add(BLOCK_BYTES).saturating_add(bytes);
    let padding = vec![0; padding_of(bytes)];
    file.write_all_at(&padding, data_end)?;
    *end = data_end.saturating_add(u64::try_from(padding.len()).unwrap_or(0));
    Ok(())
}

fn add_member(file: &mut File, end: &mut u64, name: &str, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(bytes, end.saturating_add(BLOCK_BYTES))?;
    end_member(file, end, name, u64::try_from(bytes.len()).unwrap_or(u64::MAX))
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
