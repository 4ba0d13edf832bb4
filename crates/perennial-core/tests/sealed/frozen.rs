//! The frozen files of the binary formats still mean what they meant, and are still what is written.

use crate::erofs::{decoded, secret};
use crate::manifest::{read, written};
use crate::trees::{everything, source};
use perennial_core::sealed::erofs::{Identity, plan, write};
use perennial_core::sealed::object::ObjectId;
use std::path::Path;

/// Name of the frozen object.
const OBJECT: &str = "915f9101f5273c9dd637b7eef8b69a5e548da6777cfa928800431ed2408073b8";

fn frozen(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats").join(name);
    std::fs::read(&path).unwrap_or_else(|error| unreachable!("{}: {error}", path.display()))
}

#[test]
fn the_frozen_manifest_means_what_it_meant() {
    let bytes = frozen("perennial-manifest-v1.bin");
    let (tree, summary) = read(&bytes).unwrap();
    assert_eq!(tree, everything());
    assert_eq!(written(&tree).unwrap(), (summary, bytes));
}

#[test]
fn the_frozen_image_means_what_it_meant() {
    let bytes = frozen("perennial-meta-erofs-v1.erofs");
    assert_eq!(decoded(&bytes), Ok(everything()));
    let manifest = ObjectId::of(&frozen("perennial-manifest-v1.bin"));
    let identity = Identity { secret: secret(), manifest };
    let layout = plan(&mut source(&everything())).unwrap();
    assert_eq!(write(&layout, &identity, &mut source(&everything()), vec![]), Ok(bytes));
}

#[test]
fn the_frozen_object_has_the_name_it_had() {
    let id = ObjectId::of(&frozen("perennial-object-v1.txt"));
    assert_eq!(id.to_string(), OBJECT);
    assert_eq!(id.relative_path(), format!("{}/{}", &OBJECT[..2], &OBJECT[2..]));
}
