//! Layers on disk in whichever form they are kept: the one door to their trees.
//!
//! A layer's record says its form. Sealing a layer publishes the sealed form beside its tree, changes the record, and
//! lets the tree go when no mount uses it; whoever reads or mounts a layer holds its lock shared from before looking at
//! the record, so that what the record said stays true as long as it matters.

use super::Engine;
use crate::failure::{Code, Failure, Result};
use perennial_core::id::LayerId;
use perennial_core::layers::{Form, LayerRecord};
use perennial_runtime::mount::{LayerNeeds, Lower};
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::sealed::{self, LayerFiles, UnpackRequest};
use perennial_store::tree::{self, Data, Measure};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What has to be known of a layer to use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerState {
    /// The layer.
    pub id: LayerId,
    /// How it is kept.
    pub form: Form,
    /// Whether it means something only over the layers it was made over.
    pub unresolved: bool,
}

/// Returns what a union of these layers needs.
pub fn needs(layers: &[LayerState]) -> LayerNeeds {
    match layers.iter().any(|layer| layer.form == Form::Sealed || layer.unresolved) {
        true => LayerNeeds::Data,
        false => LayerNeeds::Nothing,
    }
}

/// Borrows open trees.
pub fn borrow_all(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(OwnedFd::as_fd).collect()
}

impl Engine {
    /// Returns the state of a layer as its record says it; one without a record has never been sealed.
    pub fn state_of(&self, id: &LayerId) -> Result<LayerState> {
        let record = self.layer(id)?.map(|doc| doc.value);
        let (form, unresolved) = record.map_or((Form::Dir, false), |record| (record.form, record.unresolved));
        Ok(LayerState { id: id.clone(), form, unresolved })
    }

    /// Returns the states of layers, in the same order.
    pub fn states(&self, ids: &[LayerId]) -> Result<Vec<LayerState>> {
        ids.iter().map(|id| self.state_of(id)).collect()
    }

    /// Opens the root of a layer's tree for reading.
    ///
    /// # Errors
    /// Where it is not there, or is sealed and this host cannot mount it.
    pub fn open_layer(&self, layer: &LayerState) -> Result<OwnedFd> {
        layer::open(&self.root, &layer.id, layer.form).map_err(|error| {
            let failure = Failure::from(error);
            match layer.form {
                Form::Dir => failure,
                // Where others can be mounted, the reason is in this one.
                Form::Sealed if self.can_seal().is_ok() => {
                    failure.code(Code::Damaged).hint("`perennial verify` says what is wrong and where to go back to")
                }
                Form::Sealed => failure.code(Code::Host).hint("`perennial doctor` says whether this host can use it"),
            }
        })
    }

    /// Opens the roots of layers' trees for reading.
    ///
    /// # Errors
    /// As [`Engine::open_layer`].
    pub fn open_layers(&self, ids: &[LayerId]) -> Result<Vec<OwnedFd>> {
        ids.iter().map(|id| self.open_layer(&self.state_of(id)?)).collect()
    }

    /// Returns layers as a union takes them.
    ///
    /// # Errors
    /// As [`Engine::open_layer`].
    pub fn lowers(&self, layers: &[LayerState]) -> Result<Vec<Lower>> {
        let lower = |layer: &LayerState| match layer.form {
            Form::Dir => Ok(Lower::Dir(self.root.layer_tree(&layer.id))),
            Form::Sealed => self.open_layer(layer).map(Lower::of_fd),
        };
        layers.iter().map(lower).collect()
    }

    /// Returns where the contents of sealed layers are, for a union that needs them.
    pub fn data_of(&self, needs: LayerNeeds) -> Option<PathBuf> {
        match needs {
            LayerNeeds::Nothing => None,
            LayerNeeds::Data => Some(self.root.objects_dir()),
        }
    }

    /// Refuses a tree whose top level has the name under which this root keeps contents: as a layer it could pass off
    /// its own files for the contents of others. The name is random and shown to no container.
    ///
    /// # Errors
    /// Where it has that name.
    pub fn refuse_secret(&self, tree: &Path) -> Result<()> {
        if tree.join(self.root.secret().to_string()).symlink_metadata().is_err() {
            return Ok(());
        }
        let message = format!("{} has an entry with the secret name of this root's objects", tree.display());
        Err(Failure::new(Code::Failed, message)
            .hint("somebody has read format.json and put it there; remove that entry, nothing else needs it"))
    }

    /// Writes layers as one tree, with copies of all content, into an empty directory, for use over `below`.
    ///
    /// # Errors
    /// Where something cannot be read or written exactly; the directory is incomplete then.
    pub fn write_out(&self, layers: &[LayerId], below: &[LayerId], target: BorrowedFd<'_>) -> Result<Measure> {
        let states = self.states(layers)?;
        if !layers.is_empty() && states.iter().all(|layer| layer.form == Form::Sealed) {
            let (objects, below) = (Objects::open(&self.root)?, self.open_layers(below)?);
            let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let below = borrow_all(&below);
            let request =
                UnpackRequest { root: &self.root, objects: &objects, layers, below: &below, dst: target, workers };
            return Ok(sealed::unpack(&request, &mut |_| {})?);
        }
        let has_sealed = states.iter().any(|layer| layer.form == Form::Sealed);
        let (layers, below) = (self.open_layers(layers)?, self.open_layers(below)?);
        let (layers, below) = (borrow_all(&layers), borrow_all(&below));
        if has_sealed {
            let objects = Objects::open(&self.root)?;
            return Ok(tree::materialize_sealed(&layers, &below, target, &objects, &mut |_| {})?);
        }
        Ok(tree::materialize(&layers, &below, target, Data::Copy, &mut |_| {})?)
    }

    /// Returns whether a layer is there in the form its record says, as far as [`Engine::wrong_with`] looks.
    pub fn is_whole(&self, id: &LayerId) -> Result<bool> {
        Ok(self.wrong_with(id)?.is_none())
    }

    /// Returns what is wrong with a layer as far as it shows at once, whatever the size of the layer, to be said after
    /// its name: in dir form that its tree is there, in sealed form that manifest and image are there, have their
    /// lengths and belong together. Their contents and the objects are what `verify` looks at.
    ///
    /// # Errors
    /// Where its record or its directory cannot be read.
    pub fn wrong_with(&self, id: &LayerId) -> Result<Option<String>> {
        let missing = || Some("is missing on disk".to_owned());
        let sealed = || -> Result<Option<LayerRecord>> {
            Ok(self.layer(id)?.map(|doc| doc.value).filter(|record| record.form == Form::Sealed))
        };
        let mut record = sealed()?;
        if record.is_none() && layer::has_tree(&self.root, id) {
            return Ok(None);
        }
        if record.is_none() {
            // Nothing is locked, so it may have been sealed and its tree gone between the two looks.
            record = sealed()?;
        }
        let Some(record) = record else { return Ok(missing()) };
        let directory = self.root.layer_dir(id);
        if !directory.is_dir() {
            return Ok(missing());
        }
        let Some(manifest) = record.manifest else { return Ok(missing()) };
        let wrong = LayerFiles::open(&directory)?.glance(manifest.id, manifest.bytes)?;
        Ok(wrong.map(|wrong| format!("is damaged: {wrong}")))
    }
}
