//! Tests: work that reads layers below those it changes, while somebody else has those below for himself.
//!
//! The tree of a layer that is sealed now goes under its exclusive lock, a name at a time. Whoever asks it meanwhile what a
//! whiteout hides is told nothing, and lets the whiteout go.

use super::Engine;
use super::settle::Step;
use perennial_core::container::{Container, Phase};
use perennial_core::format::{self, Format};
use perennial_core::generations::{Generation, Health, Kind, Queue, SealPolicy};
use perennial_core::id::{ContainerId, Digest, LayerId, Seq};
use perennial_core::image::{Image, ImageConfig};
use perennial_core::layers::{DEPTH_MAX, LayerKind, LayerRecord};
use perennial_core::time::Time;
use perennial_store::records::{RecordStore as _, Transaction, keys};
use perennial_store::root::{LockMode, Wait};
use perennial_store::tree;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Says that a fold of this layer was cut off.
const TIMES: &str = "trusted.overlay.perennial_times";

fn at() -> Time {
    "2026-11-22T10:00:00Z".parse().unwrap()
}

fn layer(number: u64) -> LayerId {
    LayerId::from_random(number.to_be_bytes())
}

fn write(path: &Path, text: &str) {
    File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// A root with layers in dir form.
struct Lab {
    engine: Engine,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { engine: Engine::open(&dir.path().join("root")).unwrap(), _dir: dir }
    }

    fn tree(&self, number: u64) -> PathBuf {
        let tree = self.engine.root.layer_tree(&layer(number));
        fs::create_dir_all(&tree).unwrap();
        tree
    }

    /// A layer that hides `name`.
    fn hiding(&self, number: u64, name: &str) -> PathBuf {
        let path = self.tree(number).join(name);
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
        path
    }

    /// Has the lock of a layer, and takes its tree away under it, as is done when it is sealed.
    fn with_tree_going<T>(&self, number: u64, meanwhile: impl FnOnce() -> T) -> T {
        let lock = self.engine.root.lock_layer(&layer(number), LockMode::Exclusive, Wait::Never).unwrap();
        assert!(lock.is_some(), "nobody else is here");
        tree::remove_tree(&self.tree(number).join("hidden")).unwrap();
        meanwhile()
    }
}

#[test]
fn a_fold_is_not_finished_while_the_tree_of_a_layer_below_goes() {
    let lab = Lab::new();
    write(&lab.tree(1).join("hidden"), "of a layer below");
    lab.tree(2);
    let whiteout = lab.hiding(3, "hidden");
    lsetxattr(lab.tree(3), TIMES, &[0; 32], XattrFlags::empty()).unwrap();
    let finish = || lab.engine.finish_fold(&layer(3), &layer(2), &[layer(1)]).unwrap();
    assert!(!lab.with_tree_going(1, finish), "it did not wait");
    assert!(whiteout.symlink_metadata().is_ok(), "what is hidden would be seen again");
    write(&lab.tree(1).join("hidden"), "of a layer below");
    assert!(finish());
    assert!(lab.tree(2).join("hidden").symlink_metadata().is_ok(), "the whiteout is in the older layer now");
}

#[test]
fn layers_are_not_merged_while_the_tree_of_an_image_layer_goes() {
    let lab = Lab::new();
    write(&lab.tree(100).join("hidden"), "of the image");
    let depth = u64::try_from(DEPTH_MAX).unwrap() + 1;
    let layers: Vec<LayerId> = (1..=depth).rev().map(layer).collect();
    for number in 1..=depth {
        write(&lab.tree(number).join(number.to_string()), "changed");
    }
    lab.hiding(1, "hidden");
    let id = record(&lab, &layers);
    let merge = || lab.engine.merge_deep(lab.engine.container(&id).unwrap()).unwrap();
    assert_eq!(lab.with_tree_going(100, merge), Step::GaveWay);
    let stack = |lab: &Lab| lab.engine.container(&id).unwrap().value.queue.unwrap().generations.remove(0).layers;
    assert_eq!(stack(&lab), layers);
    write(&lab.tree(100).join("hidden"), "of the image");
    assert_eq!(merge(), Step::Did);
    let merged = stack(&lab);
    assert_eq!(merged.len(), 1);
    let hides = lab.engine.root.layer_tree(merged.first().unwrap()).join("hidden").symlink_metadata();
    assert!(hides.is_ok(), "what is hidden would be seen again");
}

/// Records a container with one generation of these layers over an image of layer 100.
fn record(lab: &Lab, layers: &[LayerId]) -> ContainerId {
    let (id, digest) = (ContainerId::from_random([1; 8]), Digest::from_sha256(&[1; 32]));
    let image = Image {
        digest: digest.clone(),
        config: ImageConfig::default(),
        layers: vec![layer(100)],
        diff_ids: vec![Digest::from_sha256(&[2; 32])],
        bytes: 1,
        imported_at: at(),
        source: "oci:box".into(),
        believed: false,
    };
    let generation = Generation {
        seq: Seq(1),
        exited_at: at(),
        kind: Kind::Exit,
        health: Health::Good,
        exit_code: Some(0),
        parent: None,
        image: digest.clone(),
        layers: layers.to_vec(),
        mount_options: Vec::new(),
        run: None,
        bytes: 1,
        entries: 1,
        pinned: false,
        quarantined: false,
        cold: false,
        verified_at: None,
        clean: true,
        note: None,
        by: "root".into(),
        extra: BTreeMap::new(),
    };
    let mut container = Container::new(id.clone(), "web".parse().unwrap(), (digest.clone(), "box".into()), at());
    container.phase = Phase::Dormant;
    container.policy.seal = SealPolicy::Never;
    let (next_seq, current) = (Seq(2), Some(Seq(1)));
    container.queue = Some(Queue { next_seq, current, generations: vec![generation], ..Queue::default() });
    let mut transaction = Transaction::new()
        .put(keys::image(&digest), format::encode(Format::Image, &image))
        .put(keys::container(&id), format::encode(Format::Container, &container));
    let deltas = layers.iter().map(|id| (id, LayerKind::Delta));
    for (id, kind) in deltas.chain(std::iter::once((&layer(100), LayerKind::Image))) {
        let record = LayerRecord::of_tree(id.clone(), kind, (1, 1), at());
        transaction = transaction.put(keys::layer(id), record.encode());
    }
    lab.engine.records.commit(&transaction).unwrap();
    id
}
