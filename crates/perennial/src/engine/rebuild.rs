//! Copies of records beside the layers, and `doctor --rebuild`, which makes a lost record store again from them.

use super::{Engine, random};
use crate::clock;
use crate::failure::{Code, Failure, Result};
use perennial_core::format::{self, Format};
use perennial_core::generations::Queue;
use perennial_core::id::{LayerId, RunId};
use perennial_core::layers::{Form, LayerFile, LayerRecord, ManifestRef};
use perennial_core::rebuild::{RebuildFacts, Rebuilt, RecordCopy, plan, record_of};
use perennial_core::sealed::object::ObjectId;
use perennial_store::atomic;
use perennial_store::layer;
use perennial_store::records::sqlite::SqliteRecords;
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{Root, Secret};
use perennial_store::sealed::{IMAGE, MANIFEST};
use std::os::fd::AsFd as _;
use std::path::Path;

/// Files of the record store besides the one they are named after.
const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];

impl Engine {
    /// Puts a copy of every container's record beside the newest layer of its current generation, where the one there
    /// says something else. A copy that cannot be written is missed only by a rebuild.
    pub fn keep_container_copies(&self) {
        for doc in self.containers().unwrap_or_default() {
            let container = doc.value;
            let Some(queue) = &container.queue else { continue };
            let current = queue.current.and_then(|seq| queue.get(seq));
            let Some(newest) = current.and_then(|generation| generation.layers.first()).cloned() else { continue };
            let layers = self.layer_records(&queue.layers().into_iter().collect::<Vec<_>>());
            self.keep_copy(&newest, &RecordCopy::Container { container: Box::new(container), layers });
        }
    }

    /// Puts a copy of an image's record beside its newest layer.
    pub fn keep_image_copy(&self, image: &perennial_core::image::Image) {
        let Some(newest) = image.layers.first() else { return };
        let tags = self.tags().unwrap_or_default();
        let names = tags.into_iter().filter(|(_, digest)| *digest == image.digest).map(|(name, _)| name).collect();
        let layers = self.layer_records(&image.layers);
        self.keep_copy(newest, &RecordCopy::Image { image: Box::new(image.clone()), names, layers });
    }

    fn layer_records(&self, ids: &[LayerId]) -> Vec<LayerRecord> {
        ids.iter().filter_map(|id| Some(self.layer(id).ok()??.value)).collect()
    }

    fn keep_copy(&self, beside: &LayerId, copy: &RecordCopy) {
        let directory = self.root.layer_dir(beside);
        let bytes = format::encode(Format::RecordCopy, copy);
        if std::fs::read(directory.join(copy.file_name())).is_ok_and(|there| there == bytes) {
            return;
        }
        self.put_copy(&directory, &copy.file_name(), &bytes).ok();
    }

    /// Writes a copy where `gc` frees what is left of an attempt that was cut off, and gives it its place.
    fn put_copy(&self, directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
        let staged = format!("copy-{}", RunId::from_random(random()?));
        let staging = self.root.staging_dir();
        atomic::write(atomic::open_directory(&staging)?.as_fd(), &staged, bytes)?;
        std::fs::rename(staging.join(&staged), directory.join(name))?;
        Ok(atomic::sync_directory(directory)?)
    }
}

/// Makes the record store of a root again from its layers, or says what would be made.
///
/// # Errors
/// Where the records are whole, or the layers cannot be read; nothing is changed then.
pub fn rebuild(path: &Path, is_dry_run: bool) -> Result<Rebuilt> {
    if !path.join("format.json").is_file() {
        let message = format!("{} is not a Perennial root", path.display());
        return Err(Failure::new(Code::NotFound, message).hint("name it with --root"));
    }
    let root = Root::open_or_create(path, clock::now(), Secret::from_random(random()?))?;
    let _graph = root.lock_graph()?;
    refuse_whole_records(path)?;
    let mut rebuilt = plan(&gather(&root)?);
    mark_cold(&root, &mut rebuilt)?;
    if is_dry_run {
        return Ok(rebuilt);
    }
    let made = root.path().join("records.db.rebuilt");
    remove_store(&made)?;
    write_records(&made, &rebuilt)?;
    let aside = format!(".lost-{}", clock::now().to_string().replace(':', "-"));
    for companion in COMPANIONS {
        let from = root.path().join(format!("records.db{companion}"));
        if from.symlink_metadata().is_ok() {
            std::fs::rename(&from, root.path().join(format!("records.db{aside}{companion}")))?;
        }
    }
    std::fs::rename(&made, root.records_path())?;
    // What is left is the log, which is empty.
    remove_store(&made)?;
    atomic::sync_directory(root.path())?;
    Ok(rebuilt)
}

/// Refuses a root whose records can be read: they know more than the layers.
fn refuse_whole_records(path: &Path) -> Result<()> {
    let Ok(engine) = Engine::open(path) else { return Ok(()) };
    let is_readable = engine.containers().is_ok() && engine.images().is_ok() && engine.layers().is_ok();
    if is_readable && engine.records.integrity().is_ok_and(|faults| faults.is_empty()) {
        let message = format!("{} is whole: there is nothing to rebuild", engine.root.records_path().display());
        return Err(Failure::new(Code::Conflict, message).hint("`perennial doctor` says what is wrong, if anything"));
    }
    Ok(())
}

fn remove_store(path: &Path) -> Result<()> {
    for companion in COMPANIONS {
        let mut name = path.as_os_str().to_owned();
        name.push(companion);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Reads what lies in the layers.
fn gather(root: &Root) -> Result<RebuildFacts> {
    let mut facts = RebuildFacts::default();
    for id in layer::list(root)? {
        if let Ok(file) = layer::describe(root, &id)
            && let Some(record) = on_disk(root, &file)?
        {
            facts.layers.push((file, record));
        }
        for entry in std::fs::read_dir(root.layer_dir(&id))?.flatten() {
            if !RecordCopy::is_file_name(&entry.file_name().to_string_lossy()) {
                continue;
            }
            // One that is damaged is as good as none: others may be whole.
            let bytes = std::fs::read(entry.path())?;
            facts.copies.extend(format::decode::<RecordCopy>(Format::RecordCopy, &bytes));
        }
    }
    Ok(facts)
}

/// The record of a layer whose data is there in either form. The sealed form appears last and whole, so where it is
/// there it counts, whatever is left of the tree.
fn on_disk(root: &Root, file: &LayerFile) -> Result<Option<LayerRecord>> {
    let directory = root.layer_dir(&file.id);
    if directory.join(MANIFEST).is_file() && directory.join(IMAGE).is_file() {
        let manifest = std::fs::read(directory.join(MANIFEST))?;
        let bytes = u64::try_from(manifest.len())?;
        return Ok(Some(record_of(file, Some(ManifestRef { id: ObjectId::of(&manifest), bytes }))));
    }
    Ok(layer::has_tree(root, &file.id).then(|| record_of(file, None)))
}

/// Marks what may be in packs: the records knew it, and whoever wants it now looks for it.
fn mark_cold(root: &Root, rebuilt: &mut Rebuilt) -> Result<()> {
    let has_packs = !super::collect::entries(&root.path().join("packs"))?.is_empty();
    for layer in &mut rebuilt.layers {
        layer.cold = has_packs && layer.form == Form::Sealed;
    }
    let queues = rebuilt.containers.iter_mut().flat_map(|container| &mut container.queue);
    for generation in queues.flat_map(|queue| &mut queue.generations) {
        generation.cold = has_packs;
    }
    Ok(())
}

fn write_records(path: &Path, rebuilt: &Rebuilt) -> Result<()> {
    let records = SqliteRecords::open_or_create(path)?;
    let mut transaction = Transaction::new();
    for layer in &rebuilt.layers {
        transaction = transaction.put(keys::layer(&layer.id), layer.encode());
    }
    for id in &rebuilt.held {
        transaction = transaction.put(keys::held(id), id.as_str().as_bytes().to_vec());
    }
    for image in &rebuilt.images {
        transaction = transaction.put(keys::image(&image.digest), format::encode(Format::Image, image));
        if image.believed {
            // What its layers are said to be must not lead others to them.
            continue;
        }
        let mut chain = None;
        for (layer, diff_id) in image.layers.iter().zip(&image.diff_ids).rev() {
            let id = perennial_registry::digest::chain_id(chain.as_ref(), diff_id);
            transaction = transaction.put(keys::chain(&id), layer.as_str().as_bytes().to_vec());
            chain = Some(id);
        }
    }
    for (name, digest) in &rebuilt.names {
        transaction = transaction.put(keys::tag(name), digest.as_str().as_bytes().to_vec());
    }
    for container in &rebuilt.containers {
        let bytes = format::encode(Format::Container, container);
        transaction = transaction
            .put(keys::container(&container.id), bytes)
            .put(keys::name(&container.name), container.id.as_str().as_bytes().to_vec());
    }
    records.commit(&transaction)?;
    records.close_whole()?;
    Ok(())
}

/// How many generations of all containers there are.
pub fn generations(rebuilt: &Rebuilt) -> usize {
    let queues = rebuilt.containers.iter().filter_map(|container| container.queue.as_ref());
    queues.map(|queue: &Queue| queue.generations.len()).sum()
}
