//! Which contents nothing needs any more.
//!
//! The manifests in `layers/` are what counts, whatever the records say: an object goes only when no manifest on disk
//! names it. Whoever stores objects that no manifest names yet holds the lock of objects shared, so nothing is removed
//! meanwhile.

use super::Engine;
use crate::clock;
use crate::failure::{Code, Failure, Result};
use perennial_core::collect::ObjectCount;
use perennial_core::id::LayerId;
use perennial_core::layers::Form;
use perennial_core::sealed::manifest::ObjectTable;
use perennial_core::sealed::object::ObjectId;
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::root::{Lock, LockMode, Wait};
use perennial_store::sealed::{DiskFile, LayerFiles, MANIFEST};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long what was freed waits for seals of other layers to end, before it is left to `gc`: 5 s.
const LOCK_TRIES_MAX: u32 = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

impl Engine {
    /// Returns the names of the objects in a layer's manifest; nothing where it has none.
    ///
    /// # Errors
    /// Where the manifest cannot be read or is damaged.
    pub fn objects_of(&self, directory: &Path, each: &mut dyn FnMut(ObjectId)) -> Result<()> {
        self.sized_objects_of(directory, &mut |object, _| each(object))
    }

    /// The same with their lengths, in bytes.
    ///
    /// # Errors
    /// As [`Engine::objects_of`].
    pub fn sized_objects_of(&self, directory: &Path, each: &mut dyn FnMut(ObjectId, u64)) -> Result<()> {
        let path = directory.join(MANIFEST);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Failure::from(error).while_doing(format!("cannot open {}", path.display()))),
        };
        let damaged = |error: &dyn std::fmt::Display| {
            Failure::new(Code::Damaged, format!("{}: {error}", path.display())).hint(
                "no object is removed while it cannot be read; restore the layer from a copy, or remove its container",
            )
        };
        let table = ObjectTable::open(DiskFile(file)).map_err(|error| damaged(&error))?;
        for row in table.iter() {
            let (object, size) = row.map_err(|error| damaged(&error))?;
            each(object, size);
        }
        Ok(())
    }

    /// Refuses to tell unneeded objects from needed ones where a manifest is missing or not as it was written: the
    /// objects it names would pass for unneeded.
    pub(super) fn refuse_damaged_manifest(&self, id: &LayerId, directory: &Path) -> Result<()> {
        let files = match LayerFiles::open(directory) {
            // It has just been freed.
            Err(_) if directory.symlink_metadata().is_err() => return Ok(()),
            files => files?,
        };
        let intact = files.is_manifest_intact()?;
        let is_sealed = || Ok::<_, Failure>(self.layer(id)?.is_some_and(|doc| doc.value.form == Form::Sealed));
        if intact == Some(true) || (intact.is_none() && !is_sealed()?) {
            return Ok(());
        }
        let how = if intact.is_none() { "missing" } else { "damaged" };
        let message = format!("{} is {how}", directory.join(MANIFEST).display());
        Err(Failure::new(Code::Damaged, message)
            .hint("no object is removed meanwhile; restore the layer from a copy, or remove its container"))
    }

    /// Returns which objects no manifest names, with their sizes on disk. The caller holds the lock of objects, or only
    /// wants to know.
    ///
    /// # Errors
    /// Where an object or a manifest cannot be read: then nothing can be said.
    fn unnamed_objects(&self, objects: &Objects) -> Result<BTreeMap<ObjectId, u64>> {
        let mut unnamed = BTreeMap::new();
        objects.list(&mut |id, stat| {
            unnamed.insert(id, stat.allocated);
            Ok(())
        })?;
        self.without_named(unnamed)
    }

    fn without_named(&self, mut objects: BTreeMap<ObjectId, u64>) -> Result<BTreeMap<ObjectId, u64>> {
        for id in layer::list(&self.root)? {
            if objects.is_empty() {
                break;
            }
            let directory = self.root.layer_dir(&id);
            self.refuse_damaged_manifest(&id, &directory)?;
            self.objects_of(&directory, &mut |object| {
                objects.remove(&object);
            })?;
        }
        Ok(objects)
    }

    /// Returns what [`Engine::free_objects`] would free now.
    ///
    /// # Errors
    /// Where an object or a manifest cannot be read.
    pub fn unused_objects(&self) -> Result<ObjectCount> {
        Ok(count(&self.unnamed_objects(&Objects::open(&self.root)?)?))
    }

    /// Removes all objects that no manifest names, and what lies beside none, unless somebody is storing some.
    ///
    /// # Errors
    /// Where an object or a manifest cannot be read; nothing is removed then.
    pub fn free_objects(&self) -> Result<ObjectCount> {
        let Some(_lock) = self.root.lock_objects(LockMode::Exclusive, Wait::Never)? else {
            return Ok(ObjectCount::default());
        };
        let objects = Objects::open(&self.root)?;
        let freed = remove(&objects, &self.unnamed_objects(&objects)?)?;
        objects.remove_strays()?;
        Ok(freed)
    }

    fn unfreed_note(&self) -> PathBuf {
        self.root.path().join("locks/unfreed")
    }

    /// Frees what an earlier attempt had to leave.
    ///
    /// # Errors
    /// As [`Engine::free_objects`].
    pub fn free_left_over(&self) -> Result<()> {
        if self.unfreed_note().symlink_metadata().is_err() {
            return Ok(());
        }
        let Some(_lock) = self.lock_objects_soon()? else { return Ok(()) };
        std::fs::remove_file(self.unfreed_note()).ok();
        let objects = Objects::open(&self.root)?;
        remove(&objects, &self.unnamed_objects(&objects)?)?;
        Ok(())
    }

    /// Takes the lock of objects exclusively, after a seal that holds it has ended; nothing where that takes long, or a
    /// command wants to go on.
    fn lock_objects_soon(&self) -> Result<Option<Lock>> {
        for _ in 0..LOCK_TRIES_MAX {
            if let Some(lock) = self.root.lock_objects(LockMode::Exclusive, Wait::Never)? {
                return Ok(Some(lock));
            }
            if self.root.must_yield() {
                break;
            }
            clock::wait(LOCK_PAUSE);
        }
        Ok(None)
    }

    /// Removes those among the objects of layers that went, and only those, that no other manifest names. What cannot
    /// be removed now, `gc` finds.
    ///
    /// # Errors
    /// As [`Engine::free_objects`].
    pub fn free_objects_among(&self, candidates: Vec<ObjectId>) -> Result<ObjectCount> {
        if candidates.is_empty() {
            return Ok(ObjectCount::default());
        }
        let Some(_lock) = self.lock_objects_soon()? else {
            // The next one who settles frees them; a note that cannot be written leaves them to `gc`.
            std::fs::File::create(self.unfreed_note()).ok();
            return Ok(ObjectCount::default());
        };
        let objects = Objects::open(&self.root)?;
        let mut sizes = BTreeMap::new();
        for (id, _) in self.without_named(candidates.into_iter().map(|id| (id, 0)).collect())? {
            if let Some(stat) = objects.stat(&id)? {
                sizes.insert(id, stat.allocated);
            }
        }
        remove(&objects, &sizes)
    }

    /// Gives the objects of layers whose trees are gone the metadata of objects, unless a command wants to go on.
    ///
    /// # Errors
    /// Where a manifest or an object cannot be read or changed.
    pub fn finish_objects(&self, layers: &[LayerId]) -> Result<()> {
        for id in layers {
            let objects = Objects::open(&self.root)?;
            let mut names = Vec::new();
            self.objects_of(&self.root.layer_dir(id), &mut |object| names.push(object))?;
            for object in names {
                if self.root.must_yield() {
                    return Ok(());
                }
                // It is only tidier so: nobody but root comes near an object.
                if objects.exists(&object)? {
                    objects.finish(&object)?;
                }
            }
        }
        Ok(())
    }
}

fn count(objects: &BTreeMap<ObjectId, u64>) -> ObjectCount {
    ObjectCount {
        count: u64::try_from(objects.len()).unwrap_or(u64::MAX),
        bytes: objects.values().fold(0, |sum, bytes| sum.saturating_add(*bytes)),
    }
}

fn remove(objects: &Objects, unnamed: &BTreeMap<ObjectId, u64>) -> Result<ObjectCount> {
    for id in unnamed.keys() {
        objects.remove(id)?;
    }
    Ok(count(unnamed))
}
