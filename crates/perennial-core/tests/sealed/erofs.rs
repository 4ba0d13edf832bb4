//! Images: what is written is what is read; damage never ends in a panic, nor without an end.

use crate::trees::{attributes, collect, entry, everything, inode, object, source, trees, wide};
use perennial_core::sealed::canonical::{Fault, Problem};
use perennial_core::sealed::entry::{Attributes, Content, Directory, Inode, Item, Node};
use perennial_core::sealed::erofs::{
    EncodeError, Identity, Image, ImageError, Kind, PlanError, Reason, Secret, Unfit, plan, write,
};
use perennial_core::sealed::object::ObjectId;
use proptest::prelude::*;
use std::convert::Infallible;

pub(crate) fn secret() -> Secret {
    "00112233445566778899aabbccddeeff".parse().unwrap()
}

pub(crate) fn encoded(tree: &[Directory]) -> Vec<u8> {
    let layout = plan(&mut source(tree)).unwrap();
    let identity = Identity { secret: secret(), manifest: ObjectId::of(b"manifest") };
    let image = write(&layout, &identity, &mut source(tree), Vec::new()).unwrap();
    assert_eq!(image.len() as u64, layout.image_bytes());
    image
}

pub(crate) fn decoded(image: &[u8]) -> Result<Vec<Directory>, ImageError<Infallible>> {
    let image = Image::open(image, secret())?;
    let mut directories = image.directories();
    collect(&mut directories)
}

#[test]
fn one_of_everything_is_read_as_it_was_written() {
    assert_eq!(decoded(&encoded(&everything())), Ok(everything()));
}

#[test]
fn wide_directories_are_read_as_they_were_written_and_searched() {
    for names in [0, 1, 100, 101, 102, 103, 130, 5000] {
        let tree = wide(names);
        let bytes = encoded(&tree);
        assert_eq!(decoded(&bytes), Ok(tree.clone()));
        let image = Image::open(bytes.as_slice(), secret()).unwrap();
        for (name, nid) in image.read_dir(image.root()).unwrap() {
            assert_eq!(image.lookup(image.root(), &name), Ok(Some(nid)));
        }
        assert_eq!(image.lookup(image.root(), b"a-name-of-some-length"), Ok(None));
        assert_eq!(image.lookup(image.root(), b"zzz"), Ok(None));
    }
}

#[test]
fn an_inode_is_found_by_its_name() {
    let bytes = encoded(&everything());
    let image = Image::open(bytes.as_slice(), secret()).unwrap();
    let found = |name: &[u8]| image.inode(image.lookup(image.root(), name).unwrap().unwrap()).unwrap();
    assert_eq!((found(b"gone").kind, found(b"gone").links), (Kind::Whiteout, 2));
    assert_eq!((found(b"a").kind, found(b"a").links), (Kind::Node(object(b"a", 1 << 33)), 3));
    assert_eq!(found(b"bin").kind, Kind::Directory { opaque: true });
}

#[test]
fn a_file_of_a_layer_takes_less_than_256_bytes() {
    let tree = wide(10_000);
    let bytes = encoded(&tree).len();
    assert!(bytes / 10_000 <= 280, "{}", bytes / 10_000);
}

fn with(name: &[u8], attributes: Attributes, node: Node) -> Vec<Directory> {
    let entries = vec![entry(name, Item::Inode(Inode { attributes, node, links: None }))];
    vec![Directory { entries, ..Directory::default() }]
}

#[test]
fn what_has_no_place_is_refused_by_name() {
    let xattrs = |name: &str, bytes: usize| Attributes {
        xattrs: vec![(name.as_bytes().to_vec(), vec![0; bytes])],
        ..Attributes::default()
    };
    let many = Attributes {
        xattrs: (0..5).map(|number| (format!("user.{number}").into_bytes(), vec![number; 60_000])).collect(),
        ..Attributes::default()
    };
    let plain = Attributes::default;
    let cases = [
        (xattrs("btrfs.compression", 1), Node::Fifo, Reason::XattrName),
        (xattrs("user.", 1), Node::Fifo, Reason::XattrName),
        (xattrs("user.a", 65536), Node::Fifo, Reason::XattrValue),
        (many, Node::Fifo, Reason::Xattrs),
        (plain(), Node::CharDevice { major: 4096, minor: 0 }, Reason::Device),
        (plain(), Node::BlockDevice { major: 0, minor: 1 << 20 }, Reason::Device),
    ];
    for (attributes, node, reason) in cases {
        let refusal = Unfit { path: b"it".to_vec(), reason };
        assert_eq!(plan(&mut source(&with(b"it", attributes, node))), Err(PlanError::Unfit(refusal)));
    }
    let largest = Attributes { xattrs: xattrs("user.a", 65535).xattrs, ..plain() };
    let tree = with(b"it", largest, Node::File(Content::Inline(vec![1; 128])));
    assert_eq!(decoded(&encoded(&tree)), Ok(tree));
}

#[test]
fn a_source_that_is_no_tree_or_another_one_is_refused() {
    let mut tree = everything();
    tree.swap(1, 2);
    let fault = Fault { path: b"usr".to_vec(), problem: Problem::Unexpected };
    assert_eq!(plan(&mut source(&tree)), Err(PlanError::Tree(fault)));
    let layout = plan(&mut source(&everything())).unwrap();
    let identity = Identity { secret: secret(), manifest: ObjectId::of(b"") };
    let another = [wide(3), wide(700), everything()[..2].to_vec(), vec![]];
    for tree in another {
        assert_eq!(write(&layout, &identity, &mut source(&tree), vec![]), Err(EncodeError::Changed));
    }
}

#[test]
fn redirects_name_the_secret_and_nothing_else_is_taken() {
    let bytes = encoded(&everything());
    let other: Secret = "ff112233445566778899aabbccddeeff".parse().unwrap();
    let image = Image::open(bytes.as_slice(), other).unwrap();
    assert!(matches!(collect(&mut image.directories()), Err(ImageError::Malformed { what: "another redirect", .. })));
    for text in ["", "0011", "+0112233445566778899aabbccddeeff", "00112233445566778899AABBCCDDEEFF"] {
        assert!(text.parse::<Secret>().is_err(), "{text}");
    }
    assert_eq!(secret().to_string(), "00112233445566778899aabbccddeeff");
}

#[test]
fn sharing_changes_nothing_but_the_size() {
    let label = |number: u32| Attributes {
        xattrs: vec![(b"security.selinux".to_vec(), format!("label-{}", number % 3).into_bytes())],
        ..attributes(0o600, 0)
    };
    let entries = |count: u32| {
        let item = |number| Item::Inode(Inode { attributes: label(number), node: Node::Fifo, links: None });
        (0..count).map(move |number| entry(format!("{number:04}").as_bytes(), item(number))).collect()
    };
    let tree = vec![Directory { entries: entries(1000), ..Directory::default() }];
    let bytes = encoded(&tree);
    assert_eq!(decoded(&bytes), Ok(tree));
    assert!(bytes.len() < 1000 * (96 + 16) + 3 * 4096, "{}", bytes.len());
    let plain: Vec<Directory> =
        vec![Directory { entries: vec![entry(b"a", inode(Node::Fifo, None))], ..Directory::default() }];
    assert_eq!(encoded(&plain).len(), 4096);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_is_read_as_it_was_written(tree in trees()) {
        let image = encoded(&tree);
        prop_assert_eq!(decoded(&image), Ok(tree.clone()));
        prop_assert_eq!(encoded(&tree), image);
    }

    #[test]
    fn damaged_images_are_read_or_refused_and_end(
        tree in trees(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        signed in any::<bool>(),
    ) {
        let mut image = encoded(&tree);
        for (index, byte) in changes {
            // Half of the damage goes where most of the metadata is.
            let length = if byte % 2 == 0 { image.len() } else { image.len().min(4096) };
            image[index.index(length)] = byte;
        }
        if signed {
            sign(&mut image);
        }
        if let Ok(tree) = decoded(&image) {
            prop_assert!(tree.len() < image.len());
        }
        prop_assert!(decoded(&image[..image.len() - 1]).is_err());
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        prop_assert!(decoded(&bytes).is_err());
    }
}

/// Makes the superblock's checksum fit again, so that what is behind it is tested.
fn sign(image: &mut [u8]) {
    let fold = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    image[1028..1032].fill(0);
    let crc = image[1024..4096].iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), fold));
    image[1028..1032].copy_from_slice(&crc.to_le_bytes());
}
