//! Containers and images in a registry: what is kept there, whose history goes on whose, and what has to be sent.
//!
//! ```text
//!   manifest (OCI) ─┬─ config: a parcel: the record, its layers' records, where the packs are
//!                   └─ layers: packs of objects; the manifests of layers are objects, too
//! ```
//!
//! - [`Parcel`]: everything about one container or one image but the contents, with its bounds.
//! - [`cipher`]: how it is encrypted, where it is. [`artifact`]: the OCI manifest around it; [`place`]: where in a registry something is kept.
//! - [`history`]: whether two histories are one; [`facts`]: what may change about what both have; [`merge`](mod@merge):
//!   and put together; [`send`]: when packs are written anew.
//! - [`remote`]: a place to send to, and what was sent there.
//! - [`settings`]: which settings of a container from elsewhere reach into this host.

pub mod artifact;
pub mod cipher;
pub mod facts;
pub mod history;
pub mod merge;
pub mod place;
pub mod remote;
pub mod send;
pub mod settings;

use crate::container::{Container, Phase};
use crate::format::{self, Format};
use crate::id::{Digest, LayerId};
use crate::image::Image;
use crate::layers::{Form, LayerKind, LayerRecord};
use crate::sealed::object::ObjectId;
use crate::time::Time;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use cipher::{HEAD_BYTES_MAX, Layout, PackCipher, RECIPIENTS_MAX, Recipient, Secrecy};
use history::Mark;
use serde::{Deserialize, Serialize};

/// Packs of one parcel; small ones are put together long before there are so many ([`send`]).
pub const PACKS_MAX: usize = 8192;
/// Longest pack, in bytes: one is ended at 32 MiB and a frame, and its index has at most 12 MB.
pub const PACK_BYTES_MAX: u64 = 128 << 20;
/// Longest index of a pack with its trailer, in bytes.
pub const INDEX_BYTES_MAX: u64 = 16 << 20;
/// Longest all indexes of a parcel together, in bytes: they are all looked at at once. Enough for 200 GiB of contents.
pub const INDEXES_BYTES_MAX: u64 = 1 << 30;
/// Longest manifest of a layer, in bytes: ten million entries.
pub const TREE_BYTES_MAX: u64 = 2 << 30;
/// Layers one parcel names: every generation of the longest queue with layers of its own, several times over.
pub const LAYERS_MAX: usize = 16_384;
/// Layers of one generation: what overlayfs takes.
pub const STACK_MAX: usize = 500;
/// Generations of one parcel: the longest queue and what is kept beside it.
pub const GENERATIONS_MAX: usize = 1100;
/// Longest text that is shown to people, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Marks of generations that are no longer kept.
pub const PAST_MAX: usize = 1000;

/// A pack in a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackAt {
    /// BLAKE3 of its bytes, its name.
    pub id: ObjectId,
    /// Digest of the blob: SHA-256 of the same bytes, or of the encrypted ones.
    pub digest: Digest,
    /// Its length, in bytes.
    pub bytes: u64,
    /// Where its index begins, which ends where the trailer begins.
    pub index_offset: u64,
    /// Bytes of all its chunks, decompressed.
    pub content_bytes: u64,
    /// How the blob is encrypted, where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher: Option<PackCipher>,
}

impl PackAt {
    /// Returns where something of it is in the blob, where that is encrypted.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        let head_bytes = self.cipher.as_ref()?.head_bytes;
        Some(Layout { head_bytes, bytes: self.bytes })
    }

    /// Returns the length of the blob, in bytes.
    #[must_use]
    pub fn blob_bytes(&self) -> u64 {
        self.layout().map_or(self.bytes, |layout| layout.file_bytes())
    }
}

/// Where an image that generations lie on is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageAt {
    /// The image.
    pub image: Digest,
    /// Digest of the OCI manifest around its parcel.
    pub parcel: Digest,
    /// What its repository is called instead of its digest, where it is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<ObjectId>,
}

/// Who sent a parcel, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// When.
    pub at: Time,
    /// Name of the machine, for people.
    pub machine: String,
    /// Who asked for it.
    pub by: String,
}

/// What a parcel is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "lowercase")]
pub enum Contents {
    /// A container with its queue; it does not run.
    Container {
        /// Its record. Of the ids of its layers only that they tell them apart matters.
        container: Box<Container>,
        /// Generations it once had.
        #[serde(default)]
        past: Vec<Mark>,
        /// The images its generations lie on.
        images: Vec<ImageAt>,
    },
    /// An image.
    Image {
        /// Its record.
        image: Box<Image>,
    },
}

/// Everything about a container or an image but the contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parcel {
    /// What it is about.
    #[serde(flatten)]
    pub contents: Contents,
    /// Records of the layers it names, sealed.
    pub layers: Vec<LayerRecord>,
    /// Packs that hold everything its layers name, apart from what is in those of the images.
    pub packs: Vec<PackAt>,
    /// Who sent it.
    pub sent: Sender,
    /// The keys it is encrypted for; none where it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<Recipient>,
}

/// Why a parcel cannot be used. Whoever sent it is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParcelError {
    /// It is no record of this kind.
    #[error(transparent)]
    Format(#[from] format::DecodeError),
    /// It has more of something than is possible.
    #[error("the parcel has {found} {what}, at most {max} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// The bound.
        max: u64,
    },
    /// It contradicts itself.
    #[error("the parcel contradicts itself: {0}")]
    Contradiction(&'static str),
}

impl Parcel {
    /// Returns its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flags: &[&'static str] = match self.secrecy() {
            Secrecy::Plain => &[format::FLAG_SEALED],
            Secrecy::Encrypted => &[format::FLAG_SEALED, format::FLAG_ENCRYPTED],
        };
        format::encode_flagged(Format::Parcel, flags, self)
    }

    /// Returns whether it is to be encrypted, or was.
    #[must_use]
    pub fn secrecy(&self) -> Secrecy {
        if self.recipients.is_empty() { Secrecy::Plain } else { Secrecy::Encrypted }
    }

    /// Reads a parcel and checks everything that can be checked without what it names.
    ///
    /// # Errors
    /// [`ParcelError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ParcelError> {
        let parcel: Self = format::decode(Format::Parcel, bytes)?;
        parcel.check()?;
        Ok(parcel)
    }

    /// Checks everything that can be checked without what it names.
    ///
    /// # Errors
    /// [`ParcelError`].
    pub fn check(&self) -> Result<(), ParcelError> {
        at_most("layers", self.layers.len(), LAYERS_MAX)?;
        at_most("packs", self.packs.len(), PACKS_MAX)?;
        let mut kinds = BTreeMap::new();
        for layer in &self.layers {
            check_layer(layer)?;
            if kinds.insert(&layer.id, layer.kind).is_some() {
                return Err(ParcelError::Contradiction("two layers have one id"));
            }
        }
        at_most("recipients", self.recipients.len(), RECIPIENTS_MAX)?;
        check_packs(&self.packs, self.secrecy())?;
        [&self.sent.machine, &self.sent.by].into_iter().try_for_each(|text| check_text(text))?;
        match &self.contents {
            Contents::Container { container, past, images } => {
                at_most("past generations", past.len(), PAST_MAX)?;
                if images.iter().any(|at| at.place.is_some() != (self.secrecy() == Secrecy::Encrypted)) {
                    return Err(ParcelError::Contradiction(HALF));
                }
                check_container(container, images, &kinds)
            }
            Contents::Image { image } => {
                at_most("layers of an image", image.layers.len(), STACK_MAX)?;
                check_stack(&image.layers, LayerKind::Image, &kinds)?;
                let is_paired = image.layers.len() == image.diff_ids.len();
                is_paired.then_some(()).ok_or(ParcelError::Contradiction("an image has a digest for each layer"))
            }
        }
    }
}

fn at_most(what: &'static str, found: usize, max: usize) -> Result<(), ParcelError> {
    if found <= max {
        return Ok(());
    }
    let number = |number| u64::try_from(number).unwrap_or(u64::MAX);
    Err(ParcelError::TooMany { what, found: number(found), max: number(max) })
}

fn check_layer(layer: &LayerRecord) -> Result<(), ParcelError> {
    let wrong = ParcelError::Contradiction;
    let manifest = layer.manifest.as_ref().ok_or(wrong("a layer has no manifest"))?;
    if layer.form != Form::Sealed || layer.unresolved || layer.cold {
        return Err(wrong("a layer does not stand for itself"));
    }
    if manifest.bytes > TREE_BYTES_MAX {
        let what = "bytes in the manifest of a layer";
        return Err(ParcelError::TooMany { what, found: manifest.bytes, max: TREE_BYTES_MAX });
    }
    Ok(())
}

/// What is wrong where some is encrypted and some is not.
const HALF: &str = "only a part of it is encrypted";

fn check_packs(packs: &[PackAt], secrecy: Secrecy) -> Result<(), ParcelError> {
    let mut ids = BTreeSet::new();
    let mut indexes_bytes = 0_u64;
    for pack in packs {
        if pack.bytes > PACK_BYTES_MAX {
            return Err(ParcelError::TooMany { what: "bytes in a pack", found: pack.bytes, max: PACK_BYTES_MAX });
        }
        if pack.index_offset >= pack.bytes {
            return Err(ParcelError::Contradiction("the index of a pack is not in the pack"));
        }
        let index_bytes = pack.bytes.saturating_sub(pack.index_offset);
        indexes_bytes = indexes_bytes.saturating_add(index_bytes);
        for (what, found, max) in [
            ("bytes in the index of a pack", index_bytes, INDEX_BYTES_MAX),
            ("bytes in the indexes of all packs", indexes_bytes, INDEXES_BYTES_MAX),
        ] {
            if found > max {
                return Err(ParcelError::TooMany { what, found, max });
            }
        }
        if pack.cipher.is_some() != (secrecy == Secrecy::Encrypted) {
            return Err(ParcelError::Contradiction(HALF));
        }
        let head_bytes = pack.cipher.as_ref().map_or(0, |cipher| cipher.head_bytes);
        if head_bytes > HEAD_BYTES_MAX {
            let what = "bytes before a pack";
            return Err(ParcelError::TooMany { what, found: head_bytes, max: HEAD_BYTES_MAX });
        }
        if !ids.insert(pack.id) {
            return Err(ParcelError::Contradiction("a pack is named twice"));
        }
    }
    Ok(())
}

fn check_container(
    container: &Container,
    images: &[ImageAt],
    kinds: &BTreeMap<&LayerId, LayerKind>,
) -> Result<(), ParcelError> {
    let wrong = |why| Err(ParcelError::Contradiction(why));
    if !matches!(container.phase, Phase::Created | Phase::Dormant) {
        return wrong("a container in a registry does not run");
    }
    if container.policy.check().is_err() {
        return wrong("no queue can follow the policy");
    }
    let known: BTreeSet<&Digest> = images.iter().map(|at| &at.image).collect();
    if known.len() != images.len() || !known.contains(&container.image) {
        return wrong("the images are not those of the container");
    }
    check_text(&container.image_name)?;
    let Some(queue) = &container.queue else { return Ok(()) };
    at_most("generations", queue.generations.len(), GENERATIONS_MAX)?;
    at_most("images", images.len(), GENERATIONS_MAX)?;
    if queue.held.is_some() || queue.undo.is_some() {
        return wrong("a rollback is only half in it");
    }
    let mut next = 1;
    for generation in &queue.generations {
        if generation.seq.0 < next || generation.seq >= queue.next_seq {
            return wrong("the generations are not in order");
        }
        next = generation.seq.next().0;
        if generation.cold || !known.contains(&generation.image) {
            return wrong("a generation lies on an image that is not named");
        }
        generation.note.iter().chain([&generation.by]).try_for_each(|text| check_text(text))?;
        at_most("layers of a generation", generation.layers.len(), STACK_MAX)?;
        check_stack(&generation.layers, LayerKind::Delta, kinds)?;
    }
    match queue.current {
        Some(current) if queue.get(current).is_none() => wrong("the current generation is not in it"),
        Some(_) | None => Ok(()),
    }
}

/// Returns a text as it can be shown: without control characters, and not too long.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    clean.truncate(clean.floor_char_boundary(TEXT_BYTES_MAX));
    clean
}

/// Refuses a text that would steer the terminal it is shown on.
fn check_text(text: &str) -> Result<(), ParcelError> {
    at_most("bytes in a text", text.len(), TEXT_BYTES_MAX)?;
    if text.chars().any(char::is_control) {
        return Err(ParcelError::Contradiction("a text has control characters"));
    }
    Ok(())
}

fn check_stack(stack: &[LayerId], kind: LayerKind, kinds: &BTreeMap<&LayerId, LayerKind>) -> Result<(), ParcelError> {
    let unique: BTreeSet<&LayerId> = stack.iter().collect();
    if unique.len() != stack.len() && kind == LayerKind::Delta {
        return Err(ParcelError::Contradiction("a layer lies on itself"));
    }
    if stack.iter().all(|layer| kinds.get(layer) == Some(&kind)) {
        return Ok(());
    }
    Err(ParcelError::Contradiction("a layer is named that is not in it"))
}
