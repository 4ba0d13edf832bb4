//! An open repository, and what its packs have.

use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::Digest;
use perennial_core::sealed::pack::{Index, Section};
use perennial_core::travel::artifact::Artifact;
use perennial_core::travel::remote::Remote;
use perennial_core::travel::{PackAt, Parcel};
use perennial_registry::credentials::Credentials;
use perennial_registry::progress::Silent;
use perennial_registry::repository::{Access, Part, Repository, RepositoryOptions, Tagged};
use perennial_store::atomic;
use std::cell::RefCell;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

/// Longest parcel, in bytes: what a record may have.
const PARCEL_BYTES_MAX: u64 = perennial_core::format::RECORD_BYTES_MAX as u64;

/// Name of the directory of indexes in `travel/`.
pub(super) const INDEXES: &str = "indexes";

/// A parcel in a registry.
pub(super) struct Found {
    pub(super) tagged: Tagged,
    pub(super) parcel: Parcel,
}

/// How to open repositories of one remote.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) remote: Remote,
    pub(super) credentials: Credentials,
    pub(super) tries_max: u32,
}

impl Link {
    pub(super) fn open(&self, repository: String, access: Access) -> Result<Repository> {
        let options = RepositoryOptions {
            registry: self.remote.registry.clone(),
            repository,
            credentials: self.credentials.clone(),
            plain_http: self.remote.plain_http,
            tries_max: self.tries_max,
        };
        Ok(Repository::open(&options, access)?)
    }
}

/// Fetches the parcel that a tag or a digest leads to.
pub(super) fn find(repository: &Repository, tag: &str) -> Result<Option<Found>> {
    let Some(tagged) = repository.manifest(tag)? else { return Ok(None) };
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Damaged, format!("what {} has as {tag} cannot be used: {error}", repository.name()))
            .hint("nothing was changed; it may have been written by a newer release, or by somebody else")
    };
    let artifact = Artifact::decode(&tagged.bytes).map_err(|error| unusable(&error))?;
    if artifact.config.size > PARCEL_BYTES_MAX {
        return Err(unusable(&"its parcel is too long"));
    }
    let bytes = repository.document(&artifact.config.digest, artifact.config.size)?;
    let parcel = Parcel::decode(&bytes).map_err(|error| unusable(&error))?;
    let named: Vec<&Digest> = artifact.layers.iter().map(|blob| &blob.digest).collect();
    if !parcel.packs.iter().all(|pack| named.contains(&&pack.digest)) {
        return Err(unusable(&"its manifest does not name all of its packs"));
    }
    Ok(Some(Found { tagged, parcel }))
}

impl Engine {
    /// Returns where indexes of packs in registries are kept, as remarks: each is told by its own checksum.
    pub(super) fn index_dir(&self) -> Result<PathBuf> {
        let kept = self.root.travel_dir().join(INDEXES);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&kept)?;
        Ok(kept)
    }

    /// Returns what packs of a repository have: as was kept here, else as the registry says.
    pub(super) fn indexes(&self, repository: &Repository, packs: &[PackAt]) -> Result<Vec<Index>> {
        let kept = self.index_dir()?;
        let mut indexes = Vec::new();
        let mut missing = Vec::new();
        for pack in packs {
            match std::fs::read(kept.join(pack.id.to_string())).ok().and_then(|bytes| decode(&bytes)) {
                Some(index) => indexes.push(index),
                None => missing.push(pack),
            }
        }
        let parts: Vec<Part> = missing
            .iter()
            .map(|pack| Part {
                digest: pack.digest.clone(),
                range: pack.index_offset..pack.bytes,
                name: format!("index {}", pack.id),
            })
            .collect();
        let fetched = RefCell::new(vec![Vec::new(); parts.len()]);
        let sink = |number: usize, _: u64, bytes: &[u8]| {
            if let Some(buffer) = fetched.borrow_mut().get_mut(number) {
                buffer.extend_from_slice(bytes);
            }
            Ok(())
        };
        repository.read(&parts, &sink, &Silent)?;
        let directory = atomic::open_directory(&kept)?;
        for (pack, bytes) in missing.iter().zip(fetched.into_inner()) {
            let index = decode(&bytes).ok_or_else(|| {
                let message = format!("pack {} in {} has no index", pack.id, repository.name());
                Failure::new(Code::Damaged, message).hint("nothing was changed; `perennial push --whole` on a machine that has it whole sends everything again")
            })?;
            // Only so that it need not be asked for again.
            atomic::write_unsynced(directory.as_fd(), &pack.id.to_string(), &bytes).ok();
            indexes.push(index);
        }
        Ok(indexes)
    }
}

fn decode(bytes: &[u8]) -> Option<Index> {
    match Section::decode(bytes) {
        Ok(Section::Index(index)) => Some(index),
        Ok(Section::Frame(_) | Section::Recipe(_) | Section::Trailer(_)) | Err(_) => None,
    }
}
