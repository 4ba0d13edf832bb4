//! Writes a generation as an OCI image that any engine can run: its layers each, or all as one.
//!
//! Layers are read through the one door to them, in whichever form they are kept, and written anew: original blobs of
//! an image are not kept. The same generation gives the same bytes, so what an image is made of can be recognised.

mod layer;

use super::trees::borrow_all;
use super::views::Held;
use super::{Engine, random};
use crate::failure::{Code, Failure, Result};
use layer::{Reading, write_layer};
use perennial_core::container::Container;
use perennial_core::export::{ExportReport, default_tag, exported_config};
use perennial_core::generations::Generation;
use perennial_core::id::{Digest, LayerId, RunId, Seq};
use perennial_core::image::Image;
use perennial_core::time::Time;
use perennial_registry::export::{
    Compression, Destination, ExportError, ImageText, ImageWriter, TarWriter, Written, diff_id,
};
use perennial_store::objects::Objects;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

/// Annotation with the container's name.
pub const CONTAINER: &str = "perennial.container";
/// Annotation with the generation's number.
pub const SEQ: &str = "perennial.seq";
/// Annotation with the instant at which the state was left.
pub const EXITED_AT: &str = "perennial.exited_at";
/// Annotation with the digest of the image that the generation lies on.
pub const IMAGE: &str = "perennial.image";

/// Whether an image gets one layer for each, or one in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The image's layers and each own layer.
    Layered,
    /// One layer over nothing.
    Flat,
}

/// What to write.
#[derive(Debug, Clone)]
pub struct ExportRequest<'a> {
    /// Where to.
    pub destination: &'a Destination,
    /// In how many layers.
    pub shape: Shape,
    /// How they are packed.
    pub compression: Compression,
}

/// What was written.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The generation.
    pub seq: Seq,
    /// The image.
    pub written: Written,
    /// What it does not say.
    pub report: ExportReport,
}

/// Layers of a generation, open for reading, newest first.
pub struct Stack {
    ids: Vec<LayerId>,
    fds: Vec<std::os::fd::OwnedFd>,
    objects: Option<Objects>,
}

impl Engine {
    /// Writes a generation of a container as an image.
    ///
    /// # Errors
    /// Where something of it cannot be read, or the destination cannot be written; nothing is left there then.
    pub fn export(
        &self,
        container: &Container,
        generation: &Generation,
        request: &ExportRequest<'_>,
    ) -> Result<Exported> {
        let (config, settings) = {
            let image = self.image(&generation.image)?.value;
            exported_config(&image.config, &container.spec)
        };
        let held = self.hold_layers(&container.name, generation.seq)?;
        let mut report = ExportReport { settings, ..ExportReport::default() };
        let nonce = RunId::from_random(random()?).to_string();
        let mut writer = ImageWriter::begin(request.destination, request.compression, &nonce).map_err(refused)?;
        let history = match request.shape {
            Shape::Layered => self.write_layers(&held, &mut writer, &mut report)?,
            Shape::Flat => {
                let history = vec![format!("perennial: {}@{} as one layer", container.name, generation.seq)];
                let shown = self.open_shown(held)?;
                writer.layer(|tar| write_layer(tar, shown.root.as_fd(), &Reading::View, &mut report))?;
                history
            }
        };
        let created = generation.exited_at;
        let annotations = annotations_of(container, generation, created);
        let text = ImageText { config, created, history, annotations };
        let default = default_tag(container.name.as_str(), generation.seq.0);
        let tag = request.destination.tag().unwrap_or(&default);
        let written = writer.finish(&text, tag).map_err(refused)?;
        Ok(Exported { seq: generation.seq, written, report })
    }

    /// Writes an image as a layout, layer by layer.
    ///
    /// # Errors
    /// As [`Engine::export`].
    pub fn export_image(&self, image: &Image, destination: &Destination) -> Result<Exported> {
        let held = self.hold_image(image.clone())?;
        let mut report = ExportReport::default();
        let nonce = RunId::from_random(random()?).to_string();
        let mut writer = ImageWriter::begin(destination, Compression::Gzip, &nonce).map_err(refused)?;
        let history = self.write_layers(&held, &mut writer, &mut report)?;
        // Nothing here differs from one export to the next, so that the image is the same each time.
        let (config, created) = (image.config.clone(), Time::from_unix_nanos(0));
        let text = ImageText { config, created, history, annotations: BTreeMap::new() };
        let written = writer.finish(&text, destination.tag().unwrap_or("image")).map_err(refused)?;
        Ok(Exported { seq: Seq(0), written, report })
    }

    fn write_layers(&self, held: &Held, writer: &mut ImageWriter, report: &mut ExportReport) -> Result<Vec<String>> {
        let stack = self.open_stack(held.stack())?;
        let own = held.layers.len();
        let mut history = Vec::new();
        for position in (0..stack.ids.len()).rev() {
            writer.layer(|tar| stack.write(position, tar, report))?;
            let id = stack.ids.get(position).map(ToString::to_string).unwrap_or_default();
            let of_image = position.checked_sub(own).and_then(|position| held.image.diff_ids.get(position));
            history.push(match of_image {
                Some(diff_id) => format!("perennial: image layer {diff_id}"),
                None => format!("perennial: layer {id}"),
            });
        }
        Ok(history)
    }

    /// Opens layers, newest first, to write each as an archive.
    ///
    /// # Errors
    /// Where one cannot be opened, or means something only over others and cannot be resolved.
    pub fn open_stack(&self, ids: Vec<LayerId>) -> Result<Stack> {
        self.ensure_resolved(&ids).map_err(|failure| {
            if failure.code != Code::Host {
                return failure;
            }
            // What the layers show together needs none of them to stand for itself.
            failure.hint("`perennial export --flatten` writes them as one layer")
        })?;
        let fds = self.open_layers(&ids)?;
        let objects = self.root.objects_dir().is_dir().then(|| Objects::open(&self.root)).transpose()?;
        Ok(Stack { ids, fds, objects })
    }
}

impl Stack {
    /// Returns the digest that the layer at a position has in an exported image; what that does not say is added to a
    /// report.
    ///
    /// # Errors
    /// Where something of it cannot be read.
    pub fn diff_id(&self, position: usize, report: &mut ExportReport) -> Result<Digest> {
        diff_id(|tar| self.write(position, tar, report))
    }

    /// Writes the layer at a position as an archive.
    fn write(&self, position: usize, tar: &mut TarWriter<'_>, report: &mut ExportReport) -> Result<()> {
        let all: Vec<BorrowedFd<'_>> = borrow_all(&self.fds);
        let Some((tree, below)) = all.get(position..).and_then(<[_]>::split_first) else { return Ok(()) };
        write_layer(tar, *tree, &Reading::Layer { below, objects: self.objects.as_ref() }, report)
    }
}

fn annotations_of(container: &Container, generation: &Generation, created: Time) -> BTreeMap<String, String> {
    let pairs = [
        (CONTAINER, container.name.to_string()),
        (SEQ, generation.seq.to_string()),
        (EXITED_AT, created.to_string()),
        (IMAGE, generation.image.to_string()),
        ("org.opencontainers.image.created", created.to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Says what to do about a destination that cannot be used.
fn refused(error: ExportError) -> Failure {
    let (code, hint) = match &error {
        ExportError::Exists { .. } => (Code::Conflict, "remove it first, or name another destination"),
        ExportError::NoParent { .. } => (Code::NotFound, "make it first, or name another destination"),
        ExportError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            (Code::Failed, "nothing was left there; free some space, or name another destination")
        }
        ExportError::Io { .. } | _ => (Code::Failed, "nothing was left there; look at its permissions and its disk"),
    };
    Failure::from(error).code(code).hint(hint)
}
