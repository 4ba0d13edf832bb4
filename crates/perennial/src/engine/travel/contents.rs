//! Contents on their way out: from among the objects, or out of packs where they are cold.

use crate::engine::Engine;
use crate::failure::Result;
use perennial_core::id::LayerId;
use perennial_core::layers::LayerRecord;
use perennial_core::sealed::object::ObjectId;
use perennial_store::cold::{Cold, HotObjects};
use perennial_store::objects::{ObjectError, Objects};
use perennial_store::sealed::MANIFEST;
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

/// Takes a content that comes out of packs and gives it no name.
#[derive(Default)]
pub(super) struct Capture(RefCell<Option<File>>);

impl Capture {
    pub(super) fn take(self) -> Option<File> {
        self.0.into_inner()
    }
}

impl HotObjects for Capture {
    fn open(&self, _id: &ObjectId) -> std::io::Result<File> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    fn adopt(&self, _id: &ObjectId, content: &File) -> std::io::Result<()> {
        self.0.replace(Some(content.try_clone()?));
        Ok(())
    }
}

/// Where contents are read.
pub(super) struct Contents<'a> {
    engine: &'a Engine,
    objects: Objects,
    cold: Option<Cold>,
}

impl<'a> Contents<'a> {
    pub(super) fn open(engine: &'a Engine) -> Result<Self> {
        Ok(Self { engine, objects: Objects::open(&engine.root)?, cold: None })
    }

    /// Opens an object, taking it out of packs where it is nowhere else.
    pub(super) fn object(&mut self, object: &ObjectId) -> Result<File> {
        match self.objects.open_object(object) {
            Ok(file) => return Ok(file.into()),
            Err(ObjectError::System { source: Errno::NOENT, .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let cold = match &mut self.cold {
            Some(cold) => cold,
            none @ None => none.insert(Cold::open(&self.engine.root)?),
        };
        let capture = Capture::default();
        cold.thaw(object, &capture)?;
        Ok(capture.take().ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))?)
    }
}

impl Engine {
    /// Returns where a layer's manifest lies.
    pub(super) fn manifest_path(&self, id: &LayerId) -> PathBuf {
        self.root.layer_dir(id).join(MANIFEST)
    }

    /// Returns what of layers is to go, each once, side by side what is of one kind and in one place.
    pub(super) fn items(&self, layers: &[LayerRecord], is_there: &dyn Fn(&ObjectId) -> bool) -> Result<Vec<ObjectId>> {
        let mut paths: BTreeMap<ObjectId, Vec<u8>> = BTreeMap::new();
        for layer in layers {
            self.each_file(&layer.id, &mut |path, object| {
                if !is_there(&object) {
                    paths.entry(object).or_insert(path);
                }
            })?;
        }
        let mut items: Vec<(ObjectId, Vec<u8>)> = paths.into_iter().collect();
        items.sort_by(|(_, a), (_, b)| order(a).cmp(&order(b)));
        Ok(items.into_iter().map(|(object, _)| object).collect())
    }
}

/// By kind, which is what a name ends in, then by path.
fn order(path: &[u8]) -> (&[u8], &[u8]) {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let kind = name.iter().rposition(|byte| *byte == b'.').and_then(|dot| name.get(dot..)).unwrap_or_default();
    (kind, path)
}
