//! What takes space, each layer once.

use perennial_core::id::{Digest, LayerId};
use perennial_core::usage::{UsageFacts, usage};

fn layer(number: u64) -> LayerId {
    LayerId::from_random(number.to_be_bytes())
}

#[test]
fn an_empty_store_takes_nothing() {
    let found = usage(&UsageFacts::default());
    assert_eq!((found.images_bytes, found.containers_bytes, found.other_bytes), (0, 0, 0));
    assert!(found.images.is_empty() && found.containers.is_empty());
}

#[test]
fn a_layer_that_several_name_is_counted_once_and_shown_as_shared() {
    let facts = UsageFacts {
        layers: [(layer(1), 100), (layer(2), 20), (layer(3), 3), (layer(4), 7000), (layer(5), 50_000)].into(),
        images: vec![
            (Digest::from_sha256(&[1; 32]), [layer(4)].into()),
            (Digest::from_sha256(&[2; 32]), [layer(4)].into()),
        ],
        containers: vec![
            ("web".parse().unwrap(), [layer(1), layer(2)].into()),
            ("fork".parse().unwrap(), [layer(1), layer(3)].into()),
            ("new".parse().unwrap(), [].into()),
        ],
    };
    let found = usage(&facts);
    let shares: Vec<_> = found.containers.iter().map(|s| (s.of.as_str(), s.bytes, s.shared_bytes, s.layers)).collect();
    assert_eq!(shares, [("web", 120, 100, 2), ("fork", 103, 100, 2), ("new", 0, 0, 0)]);
    let shares: Vec<_> = found.images.iter().map(|s| (s.bytes, s.shared_bytes)).collect();
    assert_eq!(shares, [(7000, 7000), (7000, 7000)]);
    assert_eq!((found.images_bytes, found.containers_bytes, found.other_bytes), (7000, 123, 50_000));
}

#[test]
fn a_layer_without_a_record_counts_as_nothing() {
    let facts = UsageFacts { containers: vec![("web".parse().unwrap(), [layer(9)].into())], ..UsageFacts::default() };
    assert_eq!(usage(&facts).containers_bytes, 0);
}
