//! Layers from a registry become layers here: manifests, then the objects that are not here, then metadata images.
//!
//! ```text
//! indexes ─▶ manifests, checked ─▶ which objects are missing ─▶ frames that have them ─▶ objects/ ─▶ layers/
//! ```
//!
//! Nothing that came is trusted: every object is compared with its name before it has it, every manifest is read whole
//! before anything it names is fetched. Until the caller has recorded the layers nothing here knows of them, and `gc`
//! frees what an attempt that was cut off has left.

use super::contents::Capture;
use super::fetch::{Unsealing, Wanted};
use crate::engine::Engine;
use crate::engine::thaw::Thawers;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::LayerId;
use perennial_core::layers::{LayerFile, LayerOrigin, LayerRecord, ManifestRef};
use perennial_core::sealed::entry::DirectorySource as _;
use perennial_core::sealed::manifest::ObjectTable;
use perennial_core::sealed::object::ObjectId;
use perennial_core::travel::PackAt;
use perennial_registry::progress::{Event, Phase, Progress};
use perennial_registry::repository::Repository;
use perennial_store::atomic;
use perennial_store::cold::{Cold, Gap, Incoming, Lent, PackPlace};
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::sealed::{LayerFiles, SealError, TEMPORARY};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Seek as _};
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::path::Path;

/// A layer that is to be here.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// Its record, with its name here.
    pub(super) record: LayerRecord,
    /// Where it comes from.
    pub(super) origin: LayerOrigin,
}

/// What comes, and what lies here already where it is to lie.
struct Ground<'a> {
    arrivals: &'a [Arrival],
    layers: &'a [LayerId],
}

/// Where contents come from.
pub(super) struct Landing<'a> {
    engine: &'a Engine,
    progress: &'a dyn Progress,
    repositories: Vec<Repository>,
    unsealing: Unsealing,
    /// Which repository has a pack, by the pack's number.
    packs: Vec<(usize, PackAt)>,
    incoming: Incoming,
}

impl<'a> Landing<'a> {
    /// Prepares for what is in the packs of some repositories.
    pub(super) fn begin(
        engine: &'a Engine,
        spool: &Path,
        sources: Vec<(Repository, Vec<PackAt>)>,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let mut repositories = Vec::new();
        let mut packs: Vec<(usize, PackAt)> = Vec::new();
        for (number, (repository, of)) in sources.into_iter().enumerate() {
            for pack in of {
                if !packs.iter().any(|(_, known)| known.id == pack.id) {
                    packs.push((number, pack));
                }
            }
            repositories.push(repository);
        }
        let place = |(_, pack): &(usize, PackAt)| {
            let PackAt { id, bytes, index_offset, .. } = pack.clone();
            PackPlace { id, bytes, index_offset }
        };
        let incoming = Incoming::open(spool, packs.iter().map(place).collect())?;
        let mut landing = Self { engine, progress, repositories, unsealing: Unsealing::default(), packs, incoming };
        landing.fetch_indexes()?;
        landing.incoming.load().map_err(damaged)?;
        Ok(landing)
    }

    /// Returns the repositories contents come from.
    pub(super) fn repositories(&self) -> &[Repository] {
        &self.repositories
    }

    /// Fetches the indexes of packs that were never fetched before.
    fn fetch_indexes(&self) -> Result<()> {
        let known = self.engine.index_dir()?;
        let name = |gap: &Gap| {
            let (of, pack) = self.packs.get(gap.pack)?;
            Some(Engine::index_name(self.repositories.get(*of)?, pack))
        };
        for gap in self.incoming.index_gaps()? {
            let Some(name) = name(&gap) else { continue };
            match std::fs::read(known.join(name)) {
                Ok(bytes) if len(&bytes) == gap.range.end.saturating_sub(gap.range.start) => {
                    self.incoming.put(gap.pack, gap.range.start, &bytes)?;
                }
                Ok(_) | Err(_) => {}
            }
        }
        let gaps = self.incoming.index_gaps()?;
        self.fetch(gaps.clone())?;
        let directory = atomic::open_directory(&known)?;
        for gap in gaps {
            let Some(name) = name(&gap) else { continue };
            // Only so that it need not be fetched again.
            let bytes = self.incoming.get(gap.pack, gap.range.clone())?;
            atomic::write_unsynced(directory.as_fd(), &name, &bytes).ok();
        }
        Ok(())
    }

    /// Fetches stretches of packs.
    fn fetch(&self, gaps: Vec<Gap>) -> Result<()> {
        self.fetch_telling(gaps, self.progress)
    }

    fn fetch_telling(&self, gaps: Vec<Gap>, progress: &dyn Progress) -> Result<()> {
        for (number, repository) in self.repositories.iter().enumerate() {
            let of = |gap: &&Gap| self.packs.get(gap.pack).is_some_and(|(of, _)| *of == number);
            let mine: Vec<&Gap> = gaps.iter().filter(of).collect();
            let mut wanted = Vec::new();
            for gap in &mine {
                let Some((_, pack)) = self.packs.get(gap.pack) else { continue };
                wanted.push(Wanted { pack, range: gap.range.clone() });
            }
            let sink = |number: usize, offset: u64, bytes: &[u8]| {
                let gap = mine.get(number).ok_or(io::ErrorKind::InvalidInput)?;
                self.incoming.put(gap.pack, offset, bytes)
            };
            self.unsealing.read(repository, &wanted, &sink, progress)?;
        }
        Ok(())
    }

    /// Makes sure that what objects of these lengths are made of is in the packs here, and opens those.
    fn ready(&self, objects: &BTreeMap<ObjectId, u64>) -> Result<Cold> {
        self.fetch(self.incoming.recipe_gaps(objects).map_err(damaged)?)?;
        self.fetch(self.incoming.content_gaps(objects, &|_| false).map_err(damaged)?)?;
        Ok(self.incoming.cold(&self.engine.root.staging_dir())?)
    }

    /// Fetches what objects of these lengths are made of, and returns which of it other versions of the same files have
    /// here: that need not be fetched.
    fn look_around(&self, objects: &BTreeMap<ObjectId, u64>, ground: &Ground<'_>) -> Result<Lent> {
        self.fetch(self.incoming.recipe_gaps(objects).map_err(damaged)?)?;
        let chunks = self.incoming.chunks_of(objects).map_err(damaged)?;
        if chunks.is_empty() { Ok(Lent::default()) } else { self.lend(objects, &chunks, ground) }
    }

    /// Looks for chunks in files that lie here where the objects are to lie.
    fn lend(&self, objects: &BTreeMap<ObjectId, u64>, chunks: &HashSet<ObjectId>, ground: &Ground<'_>) -> Result<Lent> {
        let mut paths = HashSet::new();
        for arrival in ground.arrivals {
            self.engine.each_file_of(&arrival.record.id, TEMPORARY[0], &mut |path, object| {
                if objects.contains_key(&object) {
                    paths.insert(path);
                }
            })?;
        }
        let mut others = BTreeSet::new();
        for layer in ground.layers {
            self.engine.each_file(layer, &mut |path, object| {
                if paths.contains(&path) && !objects.contains_key(&object) {
                    others.insert(object);
                }
            })?;
        }
        let mut lent = Lent::default();
        let objects = self.engine.root.objects_dir().join(self.engine.root.secret().to_string());
        for other in others {
            match lent.look(&objects.join(other.relative_path()), chunks) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(lent)
    }

    /// Brings layers here that are to lie among the layers `ground`; the caller holds images and objects shared, and
    /// records them.
    pub(super) fn land(&self, arrivals: &[Arrival], ground: &[LayerId]) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for arrival in arrivals {
            let ManifestRef { id, bytes } = manifest_of(&arrival.record)?;
            wanted.insert(id, bytes);
        }
        let mut cold = self.ready(&wanted)?;
        let mut objects = BTreeMap::new();
        for arrival in arrivals {
            self.bring_manifest(&mut cold, arrival, &mut objects)?;
        }
        self.bring_objects(&objects, &Ground { arrivals, layers: ground })?;
        for arrival in arrivals {
            self.publish(arrival)?;
        }
        Ok(())
    }

    /// Puts a layer's manifest under its temporary name, reads all of it, and adds the objects it names.
    fn bring_manifest(&self, cold: &mut Cold, arrival: &Arrival, objects: &mut BTreeMap<ObjectId, u64>) -> Result<()> {
        let root = &self.engine.root;
        let LayerRecord { id, bytes, entries, created_at, .. } = arrival.record.clone();
        let manifest = manifest_of(&arrival.record)?;
        let capture = Capture::default();
        cold.thaw(&manifest.id, &capture).map_err(damaged)?;
        let mut content = capture.take().ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        content.rewind()?;
        let origin = arrival.origin.clone();
        layer::prepare(root, &LayerFile { id: id.clone(), created_at, origin, bytes, entries, unresolved: false })?;
        let files = LayerFiles::open(&root.layer_dir(&id))?;
        let [name, _] = TEMPORARY;
        io::copy(&mut content, &mut files.create(name)?.0)?;
        let mut reader = files.directories(name).map_err(unusable)?;
        while reader.next_directory().map_err(|error| malformed(&error))?.is_some() {}
        let summary = reader.summary().copied();
        if summary.is_none_or(|summary| summary.id != manifest.id || summary.bytes != manifest.bytes) {
            return Err(malformed(&"it has another length or name than is said"));
        }
        let table = ObjectTable::open(perennial_store::sealed::DiskFile(content)).map_err(|error| malformed(&error))?;
        for row in table.iter() {
            let (object, size) = row.map_err(|error| malformed(&error))?;
            if objects.insert(object, size).is_some_and(|other| other != size) {
                return Err(malformed(&"an object has two lengths"));
            }
        }
        Ok(())
    }

    /// Brings the objects that are not here, from packs of this root where they are in some.
    fn bring_objects(&self, wanted: &BTreeMap<ObjectId, u64>, ground: &Ground<'_>) -> Result<()> {
        let root = &self.engine.root;
        let objects = Objects::open(root)?;
        let mut own = Cold::open(root)?;
        let (mut here, mut there) = (Vec::new(), BTreeMap::new());
        for (object, size) in wanted {
            if objects.stat(object)?.is_some_and(|stat| stat.size == *size) {
                continue;
            }
            if own.contains(object)? {
                here.push(*object);
            } else {
                there.insert(*object, *size);
            }
        }
        let runs = own.runs(&mut here);
        let give = |thawers: &Thawers<'_>| {
            runs.into_iter().for_each(|run| thawers.add(here.get(run).unwrap_or_default()));
            Ok(())
        };
        Thawers::run(&own, &objects, damaged, give)?;
        if !there.is_empty() {
            self.fetch_objects(&there, ground, &objects)?;
        }
        for (object, size) in wanted {
            if objects.stat(object)?.is_none_or(|stat| stat.size != *size) {
                return Err(malformed(&format!("object {object} has another length than is said")));
            }
        }
        Ok(())
    }

    /// Fetches objects of these lengths, some packs at a time: what has come of some is put together while the next are on
    /// their way.
    fn fetch_objects(&self, wanted: &BTreeMap<ObjectId, u64>, ground: &Ground<'_>, objects: &Objects) -> Result<()> {
        let lent = self.look_around(wanted, ground)?;
        let has = |chunk: &ObjectId| lent.has(chunk);
        let mut cold = self.incoming.cold(&self.engine.root.staging_dir())?;
        let mut sorted: Vec<ObjectId> = wanted.keys().copied().collect();
        let runs = cold.runs(&mut sorted);
        let mut regions: BTreeMap<u32, Vec<Range<usize>>> = BTreeMap::new();
        for run in runs {
            let Some(first) = sorted.get(run.start) else { continue };
            regions.entry(cold.region(first)).or_default().push(run);
        }
        cold.lend(lent.another());
        let all = self.incoming.content_gaps(wanted, &has).map_err(damaged)?;
        let part = PartOf::of(self.progress, &all);
        let give = |thawers: &Thawers<'_>| {
            for runs in regions.into_values() {
                let of = |run: &Range<usize>| sorted.get(run.clone()).unwrap_or_default();
                let named = runs.iter().flat_map(of).filter_map(|object| wanted.get_key_value(object));
                let region: BTreeMap<ObjectId, u64> = named.map(|(object, size)| (*object, *size)).collect();
                self.fetch_telling(self.incoming.content_gaps(&region, &has).map_err(damaged)?, &part)?;
                runs.iter().for_each(|run| thawers.add(of(run)));
                if thawers.has_failed() {
                    break;
                }
            }
            Ok(())
        };
        Thawers::run(&cold, objects, damaged, give)
    }

    /// Writes a layer's metadata image and gives both files their names.
    fn publish(&self, arrival: &Arrival) -> Result<()> {
        let root = &self.engine.root;
        let manifest = manifest_of(&arrival.record)?;
        let files = LayerFiles::open(&root.layer_dir(&arrival.record.id))?;
        files.write_image(manifest.id, root.secret()).map_err(unusable)?;
        files.publish()?;
        Ok(())
    }
}

/// Tells of fetches as parts of one whose length was told before.
struct PartOf<'a> {
    whole: &'a dyn Progress,
}

impl<'a> PartOf<'a> {
    fn of(whole: &'a dyn Progress, gaps: &[Gap]) -> Self {
        let lengths = gaps.iter().map(|gap| gap.range.end.saturating_sub(gap.range.start));
        let (layer, phase) = (usize::MAX, Phase::Download);
        whole.event(Event::Started { layer, phase, name: "contents", bytes_total: Some(lengths.sum()) });
        Self { whole }
    }
}

impl Progress for PartOf<'_> {
    fn event(&self, event: Event<'_>) {
        if let Event::Started { layer, phase, name, .. } = event {
            self.whole.event(Event::Started { layer, phase, name, bytes_total: None });
        } else {
            self.whole.event(event);
        }
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn manifest_of(record: &LayerRecord) -> Result<ManifestRef> {
    record.manifest.clone().ok_or_else(|| malformed(&"a layer has none"))
}

/// Says of something that came that it is not what it should be.
fn damaged(error: impl Into<anyhow::Error>) -> Failure {
    let error: anyhow::Error = error.into();
    let is_disk = error.chain().any(|cause| cause.is::<io::Error>());
    let failure = Failure::from(error);
    if is_disk {
        return failure.while_doing("cannot keep what came from the registry");
    }
    failure.code(Code::Damaged).while_doing("what came from the registry cannot be used").hint(
        "nothing was changed here; the registry or something on the way damaged it: try again; `perennial push \
         --whole` on a machine that has it whole sends everything again",
    )
}

fn unusable(error: SealError) -> Failure {
    damaged(error)
}

fn malformed(why: &dyn std::fmt::Display) -> Failure {
    damaged(anyhow::anyhow!("the manifest of a layer is malformed: {why}"))
}
