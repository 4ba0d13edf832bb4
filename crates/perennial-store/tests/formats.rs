//! The frozen files of the formats that the store writes: they still mean what they meant.

use perennial_core::format::{Format, decode, encode};
use perennial_core::id::{ContainerId, Digest, LayerId, RunId};
use perennial_store::layer::{LayerFile, LayerOrigin};
use perennial_store::root::{Root, RootRecord, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use std::path::Path;

/// Decodes the frozen file, compares it with the value, and writes it again.
fn check_frozen<T: Serialize + DeserializeOwned + PartialEq + Debug>(format: Format, expected: &T) {
    let name = format!("../../testdata/formats/{}-v{}.json", format.name(), format.version());
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect("the file is there");
    let decoded: T = decode(format, &bytes).expect("the frozen file can be read");
    assert_eq!(&decoded, expected);
    let written: Value = serde_json::from_slice(&encode(format, &decoded)).expect("encode writes JSON");
    let read: Value = serde_json::from_slice(&bytes).expect("the frozen file is JSON");
    assert_eq!(written, read);
}

#[test]
fn the_frozen_root_means_what_it_meant() {
    let created_at = "2026-11-22T17:00:00Z".parse().unwrap();
    check_frozen(Format::Root, &RootRecord { created_at, layer_form: "dir".into(), objects: None });
}

#[test]
fn the_frozen_layer_file_means_what_it_meant() {
    let layer = |number: u64| LayerId::from_random(number.to_be_bytes());
    let expected = LayerFile {
        id: layer(2),
        created_at: "2026-11-22T19:10:00Z".parse().unwrap(),
        origin: LayerOrigin::Run {
            container: ContainerId::from_random([3; 8]),
            name: "web".into(),
            run: RunId::from_random([2; 8]),
            below: vec![layer(1)],
            image: Digest::from_sha256(&[1; 32]),
            exited_at: "2026-11-22T19:10:00Z".parse().unwrap(),
        },
        bytes: 4096,
        entries: 3,
        unresolved: false,
    };
    check_frozen(Format::LayerFile, &expected);
}

#[test]
fn every_origin_of_a_layer_survives_a_round_trip() {
    let layer = |number: u64| LayerId::from_random(number.to_be_bytes());
    for origin in [
        LayerOrigin::Image { diff_id: Digest::from_sha256(&[3; 32]) },
        LayerOrigin::Merged { of: vec![layer(2), layer(1)] },
        LayerOrigin::Import {
            container: ContainerId::from_random([3; 8]),
            name: "web".into(),
            image: Digest::from_sha256(&[1; 32]),
            below: Some(vec![layer(1)]),
        },
        LayerOrigin::Import {
            container: ContainerId::from_random([3; 8]),
            name: "web".into(),
            image: Digest::from_sha256(&[1; 32]),
            below: None,
        },
    ] {
        let created_at = "2026-11-22T19:10:00Z".parse().unwrap();
        let file = LayerFile { id: layer(3), created_at, origin, bytes: 1, entries: 1, unresolved: false };
        assert_eq!(decode(Format::LayerFile, &encode(Format::LayerFile, &file)), Ok(file));
    }
}

#[test]
fn a_root_gets_a_directory_of_objects_once_and_keeps_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root");
    let now = "2026-11-22T17:00:00Z".parse().unwrap();
    let open = |random| *Root::open_or_create(&path, now, Secret::from_random([random; 16])).unwrap().secret();
    assert_eq!(open(0xab).to_string(), "ab".repeat(16));
    assert_eq!(open(0xcd), Secret::from_random([0xab; 16]));
    // What an older release wrote.
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats/perennial-root-v1.json");
    std::fs::copy(frozen, path.join("format.json")).unwrap();
    assert_eq!(open(0xef), Secret::from_random([0xef; 16]));
    assert_eq!(open(0x12), Secret::from_random([0xef; 16]));
    let record: RootRecord = decode(Format::Root, &std::fs::read(path.join("format.json")).unwrap()).unwrap();
    assert_eq!(record.objects, Some(Secret::from_random([0xef; 16])));
    for malformed in ["", "ab", &"AB".repeat(16), &"g".repeat(32), &"a".repeat(33)] {
        assert!(Secret::try_from(malformed.to_owned()).is_err(), "{malformed}");
    }
}
