//! Images as layers of the store (rows A30, B7): imported or pulled, named, kept as long as anything needs them.

use super::records::Doc;
use super::{Engine, random};
use crate::cli::args::PullArgs;
use crate::failure::{Code, Failure, Result};
use perennial_core::format::{self, Format};
use perennial_core::id::{Digest, LayerId};
use perennial_core::image::Image;
use perennial_core::layers::{LayerKind, LayerRecord};
use perennial_registry::credentials::{self, Credentials, CredentialsError, Login};
use perennial_registry::manifest::ParsePlatformError;
use perennial_registry::progress::Progress;
use perennial_registry::{
    ImportOptions, Imported, ImportedLayer, LayerKey, LayerTarget, LayerTree, PullOptions, Source, TargetError,
};
use perennial_runtime::mount::LayerNeeds;
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::tree;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Longest name of an image, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// Most containers, and most generations of one, that an error lists; a person reads no more of them.
const LISTED_MAX: usize = 5;
/// Fewest hexadecimal digits by which a digest may be abbreviated.
const ABBREVIATION_MIN: usize = 6;

/// The store as the registry crate sees it.
struct Target<'a> {
    engine: &'a Engine,
}

impl Target<'_> {
    fn known(&self, key: &LayerKey) -> Result<Option<LayerTree>> {
        let Some(record) = self.engine.records.get(&keys::chain(&key.chain_id))? else { return Ok(None) };
        let id: LayerId = String::from_utf8_lossy(&record.bytes).parse()?;
        if !self.engine.is_whole(&id)? {
            return Ok(None);
        }
        // What is imported over it may link to its files. Nothing is packed while an image is imported.
        self.engine.thaw(std::slice::from_ref(&id))?;
        let root = self.engine.open_layer(&self.engine.state_of(&id)?)?;
        Ok(Some(LayerTree::Open(Arc::new(root))))
    }

    fn take(&self, directory: PathBuf, imported: &ImportedLayer) -> Result<LayerTree> {
        let engine = self.engine;
        let id = LayerId::from_random(random()?);
        engine.refuse_secret(&directory)?;
        let measure = tree::measure(tree::open_tree(&directory)?.as_fd())?;
        let (bytes, entries) = (measure.bytes, measure.entries);
        let origin = LayerOrigin::Image { diff_id: imported.key.diff_id.clone() };
        let (created_at, unresolved) = (engine.now(), false);
        layer::prepare(&engine.root, &LayerFile { id: id.clone(), created_at, origin, bytes, entries, unresolved })?;
        perennial_runtime::mount::syncfs(&directory)?;
        layer::adopt_tree(&engine.root, &id, &directory)?;
        let record = LayerRecord {
            diff_id: Some(imported.key.diff_id.clone()),
            ..LayerRecord::of_tree(id.clone(), LayerKind::Image, (bytes, entries), created_at)
        };
        let transaction = Transaction::new()
            .put(keys::layer(&id), record.encode())
            .put(keys::chain(&imported.key.chain_id), id.as_str().as_bytes().to_vec());
        engine.records.commit(&transaction)?;
        Ok(LayerTree::Dir(engine.root.layer_tree(&id)))
    }
}

impl LayerTarget for Target<'_> {
    fn data(&self) -> Option<PathBuf> {
        self.engine.data_of(LayerNeeds::Data).filter(|path| path.is_dir())
    }

    fn find(&self, key: &LayerKey) -> Option<LayerTree> {
        // A record that cannot be read leads to a new layer beside the old one, which is found again by `doctor`.
        self.known(key).ok().flatten()
    }

    fn begin(&mut self) -> std::result::Result<PathBuf, TargetError> {
        let id = LayerId::from_random(random().map_err(boxed)?);
        let directory = self.engine.root.staging_dir().join(id.as_str());
        std::fs::create_dir(&directory)?;
        Ok(directory)
    }

    fn commit(&mut self, directory: PathBuf, imported: &ImportedLayer) -> std::result::Result<LayerTree, TargetError> {
        self.take(directory, imported).map_err(boxed)
    }

    fn abort(&mut self, directory: PathBuf) {
        // What cannot be removed now is freed by `gc`.
        tree::remove_tree(&directory).ok();
    }
}

fn boxed(failure: Failure) -> TargetError {
    failure.one_line().into()
}

impl Engine {
    /// Imports an image from this machine and names it.
    ///
    /// # Errors
    /// Where the source is not valid or cannot be read; the name then means what it meant before.
    pub fn import_image(&self, source: &Source, name: &str, progress: &dyn Progress) -> Result<Doc<Image>> {
        check_image_name(name)?;
        let options = ImportOptions::new(&self.root.staging_dir());
        self.bring_image(name, |target| Ok(perennial_registry::import(source, &options, target, progress)?))
    }

    /// Pulls an image from a registry and names it.
    ///
    /// # Errors
    /// Where the reference or the login is not valid, or the registry does not give the image.
    pub fn pull_image(&self, args: &PullArgs, name: &str, progress: &dyn Progress) -> Result<Doc<Image>> {
        let usage = |error: &dyn std::fmt::Display| Failure::new(Code::Usage, error);
        let mut import = ImportOptions::new(&self.root.staging_dir());
        if let Some(platform) = &args.platform {
            import.platform = platform.parse().map_err(|error: ParsePlatformError| usage(&error))?;
        }
        let mut options = PullOptions { plain_http: args.plain_http, ..PullOptions::new(import) };
        options.credentials = match &args.creds {
            Some(text) => Credentials::Login(text.parse::<Login>().map_err(|error: CredentialsError| usage(&error))?),
            None => Credentials::Files(credentials::files(&|name| std::env::var_os(name))),
        };
        options.certificates = super::travel::certificates();
        self.bring_image(name, |target| Ok(perennial_registry::pull(&args.reference, &options, target, progress)?))
    }

    /// Brings an image into the store by `bring`, and names it.
    ///
    /// # Errors
    /// As `bring`.
    pub fn bring_image(
        &self,
        name: &str,
        bring: impl FnOnce(&mut dyn LayerTarget) -> Result<Imported>,
    ) -> Result<Doc<Image>> {
        check_image_name(name)?;
        let _images = self.root.lock_images(LockMode::Shared, Wait::Forever)?;
        let mut target = Target { engine: self };
        let imported = bring(&mut target)?;
        let image = self.image_of(&imported)?;
        let _graph = self.root.lock_graph()?;
        let transaction = Transaction::new()
            .put(keys::image(&image.digest), format::encode(Format::Image, &image))
            .put(keys::tag(name), image.digest.as_str().as_bytes().to_vec());
        let revision = self.records.commit(&transaction)?;
        self.keep_image_copy(&image);
        Ok(Doc { value: image, revision })
    }

    fn image_of(&self, imported: &Imported) -> Result<Image> {
        let mut layers = Vec::with_capacity(imported.layers.len());
        let mut bytes = 0_u64;
        for imported_layer in &imported.layers {
            let record = self.records.get(&keys::chain(&imported_layer.key.chain_id))?;
            let missing = || Failure::new(Code::Damaged, format!("layer {} was not kept", imported_layer.key.diff_id));
            let id: LayerId = String::from_utf8_lossy(&record.ok_or_else(missing)?.bytes).parse()?;
            bytes = bytes.saturating_add(self.layer(&id)?.map_or(0, |record| record.value.bytes));
            layers.push(id);
        }
        Ok(Image {
            digest: imported.digest.clone(),
            config: imported.config.clone(),
            diff_ids: imported.layers.iter().map(|layer| layer.key.diff_id.clone()).collect(),
            layers,
            bytes,
            imported_at: self.now(),
            source: imported.source.clone(),
            believed: false,
        })
    }

    /// Returns the digest of the image that a name, a digest or the beginning of a digest means.
    ///
    /// # Errors
    /// Where it means none, or several.
    pub fn resolve_image(&self, text: &str) -> Result<Digest> {
        if let Some(digest) = self.tag(text)? {
            return Ok(digest);
        }
        let unknown = || {
            Failure::new(Code::NotFound, format!("there is no image {text:?}")).hint(
                "`perennial image ls` lists them; `perennial image import` and `perennial image pull` bring new ones",
            )
        };
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < ABBREVIATION_MIN || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let matching: Vec<Digest> = self
            .images()?
            .into_iter()
            .map(|doc| doc.value.digest)
            .filter(|digest| digest.hex().starts_with(hex))
            .collect();
        match matching.as_slice() {
            [digest] => Ok(digest.clone()),
            [] => Err(unknown()),
            _ => {
                Err(Failure::new(Code::Usage, format!("{text:?} means {} images", matching.len()))
                    .hint("give more digits"))
            }
        }
    }

    /// Returns the digest of the image that a name or a digest means, to make something new from it.
    ///
    /// # Errors
    /// As [`Engine::resolve_image`], and where its digest is only what whoever sent a container said.
    pub fn resolve_image_to_use(&self, text: &str) -> Result<Digest> {
        let digest = self.resolve_image(text)?;
        if self.image(&digest)?.value.believed {
            let message =
                format!("image {digest} came with a container, and nobody here has compared it with its digest");
            return Err(Failure::new(Code::NotFound, message).hint(
                "`perennial image pull` or `perennial image import` brings the image itself; the container that it came                  with runs, and `perennial fork` makes others of it",
            ));
        }
        Ok(digest)
    }

    /// Removes an image's name, or by its digest the image with all its names. The image itself goes when it has no
    /// name left; that is refused while a container or a generation needs it (A30).
    ///
    /// # Errors
    /// Where it is unknown or needed; nothing has changed then.
    pub fn remove_image(&self, text: &str) -> Result<Removed> {
        let digest = self.resolve_image(text)?;
        let _graph = self.root.lock_graph()?;
        let is_name = self.tag(text)?.is_some();
        let names: Vec<String> =
            self.tags()?.into_iter().filter(|(_, of)| *of == digest).map(|(name, _)| name).collect();
        let goes = !is_name || names.len() <= 1;
        if goes {
            self.refuse_needed(text, &digest)?;
        }
        let mut transaction = Transaction::new();
        for name in names.iter().filter(|name| goes || name.as_str() == text) {
            transaction = transaction.delete(keys::tag(name));
        }
        if goes {
            transaction = transaction.delete(keys::image(&digest));
        }
        self.records.commit(&transaction)?;
        Ok(if goes { Removed::Image(digest) } else { Removed::Name })
    }

    /// Returns a name of an image, or its digest where it has none.
    ///
    /// # Errors
    /// Where the records cannot be read.
    pub fn name_of_image(&self, digest: &Digest) -> Result<String> {
        let named = self.tags()?.into_iter().find(|(_, of)| of == digest);
        Ok(named.map_or_else(|| digest.to_string(), |(name, _)| name))
    }

    fn refuse_needed(&self, text: &str, digest: &Digest) -> Result<()> {
        let mut needed_by = Vec::new();
        for doc in self.containers()? {
            let container = doc.value;
            let generations = container.queue.iter().flat_map(|queue| &queue.generations);
            let seqs: Vec<String> = generations.filter(|g| g.image == *digest).map(|g| g.seq.to_string()).collect();
            let runs = container.phase.run().is_some_and(|run| run.image == *digest);
            if !seqs.is_empty() {
                needed_by.push(format!("{} (generations {})", container.name, listed(&seqs)));
            } else if runs || container.image == *digest {
                needed_by.push(container.name.to_string());
            }
        }
        let viewed = self.views()?.into_iter().map(|(_, view)| view.value).filter(|view| view.image == *digest);
        needed_by.extend(viewed.map(|view| format!("the view on {}", view.target)));
        if needed_by.is_empty() {
            return Ok(());
        }
        needed_by.sort();
        Err(Failure::new(Code::Conflict, format!("image {text} is needed by {}", listed(&needed_by)))
            .hint("remove those containers first, or `perennial rebase` them and let their old generations age out"))
    }

    /// Frees image layers that no image names, and what an interrupted import has left. Returns the layers.
    ///
    /// # Errors
    /// Where the records cannot be read or written.
    pub fn free_image_layers(&self) -> Result<Vec<LayerId>> {
        let Some(_images) = self.root.lock_images(LockMode::Exclusive, Wait::Never)? else { return Ok(Vec::new()) };
        // First the directories, then the records: a run names its layer in its record before it makes the directory,
        // so a directory seen here is named by what is read after, or by nothing.
        let directories = layer::list(&self.root)?;
        let graph = self.root.lock_graph()?;
        let referenced = self.referenced_layers(None)?;
        let mut freed = Vec::new();
        let mut transaction = Transaction::new();
        for doc in self.layers()? {
            if doc.value.kind == LayerKind::Image && !referenced.contains(&doc.value.id) {
                transaction = transaction.delete(keys::layer(&doc.value.id));
                freed.push(doc.value.id);
            }
        }
        for (key, record) in self.records.list(keys::CHAINS)? {
            let id = String::from_utf8_lossy(&record.bytes).parse::<LayerId>();
            if id.is_ok_and(|id| freed.contains(&id)) {
                transaction = transaction.delete(key);
            }
        }
        if !freed.is_empty() {
            self.records.commit(&transaction)?;
        }
        let recorded: Vec<LayerId> = self.layers()?.into_iter().map(|doc| doc.value.id).collect();
        drop(graph);
        for id in directories {
            // Neither a record nor a run nor a generation names it: an import or a merge was cut off before its record.
            if !recorded.contains(&id) && !referenced.contains(&id) {
                freed.push(id);
            }
        }
        freed.sort();
        freed.dedup();
        let mut objects = Vec::new();
        for id in &freed {
            self.objects_of(&self.root.layer_dir(id), &mut |object| objects.push(object)).ok();
            self.discard_layer(id)?;
        }
        self.free_objects_among(objects)?;
        for entry in std::fs::read_dir(self.root.staging_dir())?.flatten() {
            layer::discard(&self.root, &entry.path(), &format!("staging-{}", LayerId::from_random(random()?)))?;
        }
        Ok(freed)
    }
}

/// Lists the first of these and says how many more there are.
fn listed(items: &[String]) -> String {
    let first = items.get(..LISTED_MAX).unwrap_or(items).join(", ");
    match items.len().saturating_sub(LISTED_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// What a removal removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// Only a name; the image has others.
    Name,
    /// The image.
    Image(Digest),
}

fn check_image_name(name: &str) -> Result<()> {
    let is_plain = name.chars().all(|c| c.is_ascii_graphic()) && !name.starts_with('-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_plain || name.starts_with("sha256:") {
        return Err(Failure::new(Code::Usage, format!("image name {name:?} is not valid")).hint(format!(
            "use up to {NAME_BYTES_MAX} visible ASCII characters, not beginning with '-' or 'sha256:'"
        )));
    }
    Ok(())
}
