//! An open repository, and what its packs have.

use super::Order;
use super::fetch::{Unsealing, Wanted};
use super::keys::keys_of;
use crate::engine::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::Digest;
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{Index, Section};
use perennial_core::travel::artifact::Artifact;
use perennial_core::travel::cipher::{Dropping, Readers, Recipient, Secrecy, readers};
use perennial_core::travel::remote::Remote;
use perennial_core::travel::{PackAt, Parcel};
use perennial_registry::credentials::Credentials;
use perennial_registry::encryption::{EncryptionError, Keys};
use perennial_registry::progress::Silent;
use perennial_registry::repository::{Access, Repository, RepositoryError, RepositoryOptions, Tagged};
use perennial_store::atomic;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

/// Longest parcel, in bytes: what a record may have.
const PARCEL_BYTES_MAX: u64 = perennial_core::format::RECORD_BYTES_MAX as u64;
/// What encryption adds to it, in bytes, at most: a head for each key, and 16 bytes for each 64 KiB.
const CIPHER_BYTES_MAX: u64 = 64 << 10;

/// Name of the directory of indexes in `travel/`.
pub(super) const INDEXES: &str = "indexes";

/// A parcel in a registry.
pub(super) struct Found {
    pub(super) tagged: Tagged,
    pub(super) parcel: Parcel,
}

/// A manifest whose parcel is lost: it is not there, or no longer what its name says.
pub(super) struct Lost {
    pub(super) tagged: Tagged,
    why: RepositoryError,
}

impl Lost {
    /// Says that nothing can be read there.
    pub(super) fn failure(self, repository: &Repository) -> Failure {
        Failure::from(self.why)
            .code(Code::Damaged)
            .while_doing(format!("what {} has cannot be read, since its record is lost there", repository.name()))
            .hint(
                "nothing was changed; `perennial push --whole` on the machine that has the container sends everything \
                 again",
            )
    }
}

/// What a tag leads to.
pub(super) enum Look {
    Nothing,
    Found(Box<Found>),
    Lost(Lost),
}

/// How to open repositories of one remote.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) remote: Remote,
    pub(super) credentials: Credentials,
    pub(super) tries_max: u32,
    /// The keys, where everything there is encrypted.
    pub(super) keys: Option<Keys>,
    pub(super) dropping: Dropping,
}

impl Link {
    pub(super) fn new(remote: Remote, order: &Order) -> Result<Self> {
        let keys = keys_of(&remote)?;
        let Order { tries_max, dropping, .. } = *order;
        Ok(Self { remote, credentials: order.credentials.clone(), tries_max, keys, dropping })
    }

    pub(super) fn open(&self, repository: String, access: Access) -> Result<Repository> {
        let options = RepositoryOptions {
            registry: self.remote.registry.clone(),
            repository,
            credentials: self.credentials.clone(),
            plain_http: self.remote.plain_http,
            certificates: super::certificates(),
            tries_max: self.tries_max,
        };
        Ok(Repository::open(&options, access)?)
    }

    pub(super) fn secrecy(&self) -> Secrecy {
        if self.keys.is_some() { Secrecy::Encrypted } else { Secrecy::Plain }
    }

    /// Returns the keys that what is sent is encrypted for.
    pub(super) fn recipients(&self) -> Vec<Recipient> {
        self.keys.as_ref().map(Keys::recipients).unwrap_or_default()
    }

    /// Never takes what is not encrypted for what is, and never the other way round.
    fn refuse_other_secrecy(&self, repository: &Repository, there: Secrecy) -> Result<()> {
        let (name, remote) = (repository.name(), &self.remote.name);
        let (message, hint) = match (self.secrecy(), there) {
            (Secrecy::Plain, Secrecy::Plain) | (Secrecy::Encrypted, Secrecy::Encrypted) => return Ok(()),
            (Secrecy::Encrypted, Secrecy::Plain) => (
                format!("what {name} has is not encrypted, and everything at remote {remote} is to be"),
                "nothing was changed or sent; whoever can write there may have put it there; what was sent before the \
                 remote was set to encrypt is readable for others: fetch it by a remote without --encrypt, and send it \
                 to another path or name",
            ),
            (Secrecy::Plain, Secrecy::Encrypted) => (
                format!("what {name} has is encrypted, and remote {remote} has no key"),
                "nothing was changed or sent; `perennial remote set NAME --encrypt --identity FILE` gives it the key",
            ),
        };
        Err(Failure::new(Code::Conflict, message).hint(hint.replace("NAME", remote)))
    }

    fn other_keys(&self, keys: &Keys, repository: &Repository) -> Failure {
        let remote = &self.remote.name;
        let file = self.remote.encryption.as_ref().map_or("", |encryption| &encryption.identity);
        let message = format!(
            "what {} has is encrypted for other keys than that of remote {remote}, {} in {file}",
            repository.name(),
            listed(&keys.own())
        );
        Failure::new(Code::Host, message).hint(format!(
            "nothing was changed; `perennial remote set {remote} --identity FILE` names the file with the right key, or \
             whoever has it lets this one in: `perennial remote set {remote} --recipient {}` there, and a push",
            listed(&keys.own())
        ))
    }

    /// Refuses to lock somebody out who can read what is there; returns whether it is to be written for others.
    pub(super) fn has_other_readers(&self, repository: &Repository, there: &Parcel) -> Result<bool> {
        let Some(keys) = &self.keys else { return Ok(false) };
        match readers(&there.recipients, &keys.recipients(), self.dropping) {
            Readers::Same => Ok(false),
            Readers::Other => Ok(true),
            Readers::LockedOut(lost) => {
                let (name, remote) = (repository.name(), &self.remote.name);
                let message = format!(
                    "what {name} has can be read by {}, too, and remote {remote} does not name that key",
                    listed(&lost)
                );
                Err(Failure::new(Code::Conflict, message).hint(format!(
                    "nothing was sent; where you know the key, `perennial remote set {remote} --recipient {}` names it; \
                     `perennial push --drop-recipients` leaves it out from now on",
                    lost.iter().map(Recipient::as_str).collect::<Vec<_>>().join(" --recipient ")
                )))
            }
        }
    }

    /// Sends a parcel, encrypted where the remote is; returns the manifest around it, which no tag leads to yet.
    pub(super) fn send_parcel(
        &self,
        repository: &Repository,
        mut parcel: Parcel,
        annotations: BTreeMap<String, String>,
    ) -> Result<Vec<u8>> {
        let (bytes, annotations) = match &self.keys {
            None => (parcel.encode(), annotations),
            Some(keys) => {
                parcel.recipients = keys.recipients();
                // It is read as whoever fetches it will, so that nothing goes that is encrypted only in part.
                let bytes = parcel.encode();
                Parcel::decode(&bytes)?;
                (keys.encrypt(&bytes)?, BTreeMap::new())
            }
        };
        let blob = repository.send_document(&bytes)?;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let blobs: Vec<_> = parcel.packs.iter().map(|pack| (pack.digest.clone(), pack.blob_bytes())).collect();
        Ok(Artifact::new(self.secrecy(), (blob, length), &blobs, annotations).encode())
    }
}

fn listed(recipients: &[Recipient]) -> String {
    recipients.iter().map(Recipient::as_str).collect::<Vec<_>>().join(", ")
}

/// Fetches the parcel that a tag or a digest leads to.
pub(super) fn find(link: &Link, repository: &Repository, tag: &str) -> Result<Option<Found>> {
    match look(link, repository, tag)? {
        Look::Nothing => Ok(None),
        Look::Found(found) => Ok(Some(*found)),
        Look::Lost(lost) => Err(lost.failure(repository)),
    }
}

/// The same where a parcel that is lost is no failure.
pub(super) fn look(link: &Link, repository: &Repository, tag: &str) -> Result<Look> {
    let Some(tagged) = repository.manifest(tag)? else { return Ok(Look::Nothing) };
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Damaged, format!("what {} has as {tag} cannot be used: {error}", repository.name()))
            .hint("nothing was changed; it may have been written by a newer release, or by somebody else")
    };
    let artifact = Artifact::decode(&tagged.bytes).map_err(|error| unusable(&error))?;
    link.refuse_other_secrecy(repository, artifact.secrecy())?;
    if artifact.config.size > PARCEL_BYTES_MAX.saturating_add(CIPHER_BYTES_MAX) {
        return Err(unusable(&"its parcel is too long"));
    }
    let bytes = match repository.document(&artifact.config.digest, artifact.config.size) {
        Ok(bytes) => bytes,
        Err(why @ (RepositoryError::Missing { .. } | RepositoryError::Damaged { .. })) => {
            return Ok(Look::Lost(Lost { tagged, why }));
        }
        Err(error) => return Err(error.into()),
    };
    let bytes = match &link.keys {
        None => bytes,
        Some(keys) => keys.decrypt(&bytes, PARCEL_BYTES_MAX).map_err(|error| {
            let is_for_others = matches!(error, EncryptionError::OtherKeys);
            if is_for_others { link.other_keys(keys, repository) } else { unusable(&error) }
        })?,
    };
    let parcel = Parcel::decode(&bytes).map_err(|error| unusable(&error))?;
    if parcel.secrecy() != link.secrecy() {
        return Err(unusable(&"it is not what its manifest says"));
    }
    let named: Vec<&Digest> = artifact.layers.iter().map(|blob| &blob.digest).collect();
    if !parcel.packs.iter().all(|pack| named.contains(&&pack.digest)) {
        return Err(unusable(&"its manifest does not name all of its packs"));
    }
    Ok(Look::Found(Box::new(Found { tagged, parcel })))
}

impl Engine {
    /// Returns where indexes of packs in registries are kept, as remarks: each is told by its own checksum.
    pub(super) fn index_dir(&self) -> Result<PathBuf> {
        let kept = self.root.travel_dir().join(INDEXES);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&kept)?;
        Ok(kept)
    }

    /// Returns the name of the file for the index of a pack: what one registry says is believed of that one only.
    pub(super) fn index_name(repository: &Repository, pack: &PackAt) -> String {
        ObjectId::of(format!("{}\n{}\n{}", repository.name(), pack.digest, pack.id).as_bytes()).to_string()
    }

    /// Returns what packs of a repository have: as was kept here, else as the registry says.
    pub(super) fn indexes(&self, repository: &Repository, packs: &[PackAt]) -> Result<Vec<Index>> {
        let kept = self.index_dir()?;
        let mut indexes = Vec::new();
        let mut missing = Vec::new();
        for pack in packs {
            match std::fs::read(kept.join(Self::index_name(repository, pack))).ok().and_then(|bytes| decode(&bytes)) {
                Some(index) => indexes.push(index),
                None => missing.push(pack),
            }
        }
        let wanted: Vec<Wanted<'_>> =
            missing.iter().map(|pack| Wanted { pack, range: pack.index_offset..pack.bytes }).collect();
        let fetched = RefCell::new(vec![Vec::new(); wanted.len()]);
        let sink = |number: usize, offset: u64, bytes: &[u8]| {
            if let (Some(buffer), Some(wanted)) = (fetched.borrow_mut().get_mut(number), wanted.get(number)) {
                // Of what is encrypted whole chunks come: the first may begin before the index.
                let before = usize::try_from(wanted.range.start.saturating_sub(offset)).unwrap_or(usize::MAX);
                buffer.extend_from_slice(bytes.get(before..).unwrap_or_default());
            }
            Ok(())
        };
        Unsealing::default().read(repository, &wanted, &sink, &Silent)?;
        let directory = atomic::open_directory(&kept)?;
        for (pack, bytes) in missing.iter().zip(fetched.into_inner()) {
            let index = decode(&bytes).ok_or_else(|| {
                let message = format!("pack {} in {} has no index", pack.id, repository.name());
                Failure::new(Code::Damaged, message).hint(
                    "nothing was changed; `perennial push --whole` on a machine that has it whole sends everything again",
                )
            })?;
            // Only so that it need not be asked for again.
            atomic::write_unsynced(directory.as_fd(), &Self::index_name(repository, pack), &bytes).ok();
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
