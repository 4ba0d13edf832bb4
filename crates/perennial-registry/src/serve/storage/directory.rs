//! Blobs as files: `blobs/sha256/ab/abcd…`, each renamed to its name when it is whole and synced.

use super::{BlobReader, BlobStore, Stamp};
use perennial_core::registry::name::{Algorithm, BlobDigest};
use perennial_core::time::Time;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Blobs in a directory.
#[derive(Debug)]
pub(crate) struct Directory {
    blobs: PathBuf,
    quarantine: PathBuf,
}

impl Directory {
    /// Opens the blobs below `storage`, making the directories that are missing.
    pub(crate) fn open(storage: &Path) -> io::Result<Self> {
        let (blobs, quarantine) = (storage.join("blobs"), storage.join("quarantine"));
        std::fs::create_dir_all(&quarantine)?;
        for algorithm in Algorithm::ALL {
            let directory = blobs.join(algorithm.as_str());
            // All at once, so that no publication has to wait until a directory's name is durable.
            for byte in 0..=255_u8 {
                std::fs::create_dir_all(directory.join(format!("{byte:02x}")))?;
            }
            sync_directory(&directory)?;
        }
        sync_directory(&blobs)?;
        sync_directory(storage)?;
        Ok(Self { blobs, quarantine })
    }

    fn path(&self, digest: &BlobDigest) -> PathBuf {
        self.blobs.join(digest.path())
    }
}

/// Syncs a directory, so that the names in it are durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Returns when a file came here: renaming changes the second of its times only, and a copy may keep the first.
fn put_at(meta: &std::fs::Metadata) -> Time {
    let nanos = |s: i64, nanos: i64| s.saturating_mul(1_000_000_000).saturating_add(nanos);
    let times = (nanos(meta.mtime(), meta.mtime_nsec()), nanos(meta.ctime(), meta.ctime_nsec()));
    Time::from_unix_nanos(times.0.max(times.1))
}

impl BlobStore for Directory {
    fn publish(&self, staged: &Path, digest: &BlobDigest) -> io::Result<()> {
        File::open(staged)?.sync_all()?;
        let path = self.path(digest);
        std::fs::rename(staged, &path)?;
        path.parent().map_or(Ok(()), sync_directory)
    }

    fn open(&self, digest: &BlobDigest) -> io::Result<Option<Box<dyn BlobReader>>> {
        let file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let meta = file.metadata()?;
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        let stamp = Stamp { bytes: meta.len(), tag: format!("{} {times:?}", meta.ino()) };
        Ok(Some(Box::new(FileReader { file, stamp })))
    }

    fn delete(&self, digest: &BlobDigest) -> io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn quarantine(&self, digest: &BlobDigest) -> io::Result<()> {
        let name = format!("{}-{}", digest.algorithm().as_str(), digest.hex());
        match std::fs::rename(self.path(digest), self.quarantine.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn list(&self, each: &mut dyn FnMut(BlobDigest, Time)) -> io::Result<()> {
        for algorithm in Algorithm::ALL {
            for byte in 0..=255_u8 {
                let directory = self.blobs.join(algorithm.as_str()).join(format!("{byte:02x}"));
                for entry in std::fs::read_dir(directory)? {
                    let entry = entry?;
                    let name = entry.file_name();
                    let digest = name.to_str().map(|hex| BlobDigest::parse(&format!("{}:{hex}", algorithm.as_str())));
                    if let Some(Ok(digest)) = digest {
                        match entry.metadata() {
                            Ok(meta) => each(digest, put_at(&meta)),
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
struct FileReader {
    file: File,
    stamp: Stamp,
}

impl BlobReader for FileReader {
    fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    fn read_at(&mut self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_the_contract_of_a_store() {
        let storage = tempfile::tempdir().unwrap();
        let staging = storage.path().join("uploads");
        std::fs::create_dir(&staging).unwrap();
        super::super::conformance(&Directory::open(storage.path()).unwrap(), &staging);
    }
}
