//! The contents of layers into a repository: only what it lacks, in packs, each sent once.
//!
//! ```text
//! what is there (its indexes) ─▶ pack what is not ─▶ travel/<what>/*.pack ─▶ registry ─▶ parcel, tag ─▶ gone here
//!                                                   └▶ *.age where the remote is encrypted ─▶
//! ```

use super::contents::Contents;
use super::fetch::{Unsealing, Wanted};
use super::keys::Sealer;
use super::push::Sending as Push;
use crate::engine::{Engine, random};
use crate::failure::{Code, Failure, Result};
use perennial_core::layers::LayerRecord;
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{Index, Section};
use perennial_core::travel::PackAt;
use perennial_core::travel::send::{Sending, Standing, plan, to_join};
use perennial_registry::progress::Silent;
use perennial_registry::repository::{Repository, Upload, sum};
use perennial_store::atomic;
use perennial_store::cold::{Incoming, Known, Outgoing, OutgoingError, OutgoingPack, PackPlace};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// What is to be sent, and what is there.
pub(super) struct Consignment<'a> {
    /// Where to.
    pub(super) repository: &'a Repository,
    /// Name of the directory where packs lie until they have arrived.
    pub(super) spool: String,
    /// The layers whose contents are to be there.
    pub(super) layers: &'a [LayerRecord],
    /// What is in repositories of images.
    pub(super) elsewhere: &'a [Index],
    /// Packs that are there.
    pub(super) there: Vec<PackAt>,
    /// What is known of them.
    pub(super) standing: Standing,
    /// Whether packs get names that none was ever sent under.
    pub(super) is_salted: bool,
}

impl Engine {
    pub(super) fn spool_dir(&self, spool: &str) -> PathBuf {
        self.root.travel_dir().join(spool)
    }

    /// Removes what lay ready to be sent, or has arrived.
    pub(super) fn clear_spool(&self, spool: &str) {
        // What stays is used or removed by the next one who sends or fetches the same.
        std::fs::remove_dir_all(self.spool_dir(spool)).ok();
    }

    /// Returns the directory in a spool for packs that rely on some others. What an attempt with other ones has left is
    /// removed: what its packs leave out is not where these go.
    fn bound_spool(&self, spool: &str, basis: &[u8]) -> Result<String> {
        let name = ObjectId::of(basis).to_string();
        let entries = match std::fs::read_dir(self.spool_dir(spool)) {
            Ok(entries) => entries.collect::<std::io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        for entry in entries.iter().filter(|entry| entry.file_name() != name.as_str()) {
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(format!("{spool}/{name}"))
    }

    /// Packs and sends what a repository lacks of layers; returns the packs that hold all of it then.
    pub(super) fn send_packs(&self, consignment: Consignment<'_>, sending: &Push<'_>) -> Result<Vec<PackAt>> {
        let Consignment { repository, spool, layers, elsewhere, mut there, standing, is_salted } = consignment;
        let planned = plan(&there, self.needed_bytes(layers)?, standing);
        if planned == Sending::Afresh {
            there.clear();
        }
        let mut basis = format!("{}\n{planned:?}\n{is_salted}\n", repository.name()).into_bytes();
        there.iter().for_each(|pack| basis.extend(pack.id.as_bytes()));
        let mut known = Known::default();
        for index in elsewhere {
            basis.extend(ObjectId::of(&Section::Index(index.clone()).encode()?).as_bytes());
        }
        let spool = self.bound_spool(&spool, &basis)?;
        let joining = match planned {
            Sending::GoOn => self.fetch_small(repository, &mut there, &spool)?,
            Sending::Doubt | Sending::Afresh => Vec::new(),
        };
        for index in &self.indexes(repository, &there)? {
            match planned {
                Sending::GoOn | Sending::Afresh => known.add(index),
                Sending::Doubt => known.add_chunks(index),
            }
        }
        for index in elsewhere {
            known.add(index);
        }
        let mut outgoing = Outgoing::open(&self.spool_dir(&spool), known)?;
        if is_salted {
            outgoing = outgoing.salted(random::<16>()?.to_vec());
        }
        for pack in joining {
            outgoing.take_over(&self.joining_dir(&spool), pack).map_err(unpackable)?;
        }
        let packed = self.pack_outgoing(outgoing, layers)?;
        let known: BTreeSet<ObjectId> = there.iter().map(|pack| pack.id).collect();
        let (mut uploads, mut sent) = (Vec::new(), Vec::new());
        let sealer = match &sending.link.keys {
            Some(_) => Some(Sealer::open(&self.spool_dir(&spool))?),
            None => None,
        };
        for pack in packed.into_iter().filter(|pack| !known.contains(&pack.id)) {
            let OutgoingPack { id, path, bytes, index_offset, content_bytes } = pack;
            let (file, cipher) = match &sealer {
                Some(sealer) => sealer.seal(&id, &path, bytes).map(|(file, cipher)| (file, Some(cipher)))?,
                None => (File::open(&path)?, None),
            };
            let (digest, blob_bytes) = sum(&file)?;
            let pack = PackAt { id, digest: digest.clone(), bytes, index_offset, content_bytes, cipher };
            sent.push((Self::index_name(repository, &pack), path, index_offset..bytes));
            there.push(pack);
            uploads.push(Upload { digest, file, bytes: blob_bytes, name: id.to_string() });
        }
        repository.send_blobs(&uploads, sending.progress)?;
        let directory = atomic::open_directory(&self.index_dir()?)?;
        for (name, path, range) in sent {
            let mut index = vec![0; usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0)];
            File::open(path)?.read_exact_at(&mut index, range.start)?;
            // Only so that the next push need not ask for it.
            atomic::write_unsynced(directory.as_fd(), &name, &index).ok();
        }
        Ok(there)
    }

    fn joining_dir(&self, spool: &str) -> PathBuf {
        self.spool_dir(spool).join("joining")
    }

    /// Fetches small packs that are to be put together, and takes them out of those that are there. One that comes damaged
    /// stays as it is: whoever needs it is told.
    fn fetch_small(&self, repository: &Repository, there: &mut Vec<PackAt>, spool: &str) -> Result<Vec<ObjectId>> {
        let chosen: BTreeSet<usize> = to_join(there).into_iter().collect();
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let small: Vec<PackAt> = chosen.iter().filter_map(|number| there.get(*number).cloned()).collect();
        let places = small.iter().map(|pack| {
            let PackAt { id, bytes, index_offset, .. } = *pack;
            PackPlace { id, bytes, index_offset }
        });
        let incoming = Incoming::open(&self.joining_dir(spool), places.collect())?;
        let mut missing = Vec::new();
        for (number, pack) in small.iter().enumerate() {
            if !incoming.is_whole(number)? {
                missing.push((number, Wanted { pack, range: 0..pack.bytes }));
            }
        }
        let (numbers, wanted): (Vec<usize>, Vec<Wanted<'_>>) = missing.into_iter().unzip();
        let sink = |number: usize, offset: u64, bytes: &[u8]| {
            let pack = numbers.get(number).ok_or(std::io::ErrorKind::InvalidInput)?;
            incoming.put(*pack, offset, bytes)
        };
        Unsealing::default().read(repository, &wanted, &sink, &Silent)?;
        let mut whole = BTreeSet::new();
        for (number, pack) in small.iter().enumerate() {
            if incoming.is_whole(number)? {
                whole.insert(pack.id);
            }
        }
        there.retain(|pack| !whole.contains(&pack.id));
        Ok(whole.into_iter().collect())
    }

    fn needed_bytes(&self, layers: &[LayerRecord]) -> Result<u64> {
        let mut sizes: BTreeMap<ObjectId, u64> = BTreeMap::new();
        for layer in layers {
            sizes.extend(layer.manifest.iter().map(|manifest| (manifest.id, manifest.bytes)));
            self.sized_objects_of(&self.root.layer_dir(&layer.id), &mut |object, bytes| {
                sizes.insert(object, bytes);
            })?;
        }
        Ok(sizes.values().fold(0, |sum, bytes| sum.saturating_add(*bytes)))
    }

    /// Writes packs of what is not known; those an earlier attempt has left are among them.
    fn pack_outgoing(&self, mut outgoing: Outgoing, layers: &[LayerRecord]) -> Result<Vec<OutgoingPack>> {
        let mut contents = Contents::open(self)?;
        for layer in layers {
            let Some(manifest) = &layer.manifest else { continue };
            if !outgoing.has(&manifest.id) {
                let file = File::open(self.manifest_path(&layer.id))?;
                outgoing.object(manifest.id, &file).map_err(unpackable)?;
            }
        }
        // Whoever fetches reads the manifests first, and may need nothing else.
        outgoing.end_frame()?;
        let items = self.items(layers, &|object| outgoing.has(object))?;
        for object in items {
            let file = contents.object(&object)?;
            outgoing.object(object, &file).map_err(unpackable)?;
        }
        Ok(outgoing.finish()?)
    }
}

fn unpackable(error: OutgoingError) -> Failure {
    match &error {
        OutgoingError::Damaged { .. } => Failure::from(error)
            .code(Code::Damaged)
            .hint("`perennial verify --full` names the generations that are hit; nothing in the registry was changed"),
        OutgoingError::DamagedPack { .. } => Failure::from(error)
            .code(Code::Damaged)
            .while_doing("small packs in the registry cannot be put together")
            .hint("nothing in the registry was changed; `perennial push --whole` sends everything again"),
        OutgoingError::TooLarge { .. } => Failure::from(error)
            .code(Code::Host)
            .hint("a file above 64 GiB cannot travel; put it into a volume, or copy it by other means"),
        OutgoingError::Unreadable { .. } | OutgoingError::Cold(_) => Failure::from(error),
    }
}
