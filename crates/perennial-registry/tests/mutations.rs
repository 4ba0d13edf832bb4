//! Whatever an archive is: no panic, nothing outside, nothing left.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test may fail by a panic, and writes files that need not survive"
)]

mod common;

use common::{Store, Tar, layout, listing};
use proptest::prelude::*;
use std::path::Path;

/// Imports one layer; whatever comes of it, the store is clean and the canary beside it is as it was.
fn survive(layer: &[u8]) {
    let mut store = Store::new();
    let canary = store.dir.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    std::fs::write(canary.join("file"), "untouched").unwrap();
    let before = listing(&canary);
    let image = store.dir.path().join("image");
    layout(&image, &[base(), layer.to_vec()]);
    let source = perennial_registry::Source::Oci { path: image, tag: None };
    let mut options = store.options();
    options.limits.bytes_max = 10_000_000;
    let result = perennial_registry::import(&source, &options, &mut store, &perennial_registry::progress::Silent);
    if let Err(error) = &result {
        assert!(!error.to_string().is_empty());
    }
    store.assert_staging_is_empty();
    assert_eq!(before, listing(&canary));
    for tree in store.layers.values() {
        no_steering(tree);
    }
    if let Ok(imported) = result {
        listing(store.mount(&imported).path());
    }
}

/// No attribute but `opaque=y` may have come from the archive.
fn no_steering(tree: &Path) {
    for path in listing(tree).keys() {
        let full = tree.join(path);
        for attribute in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
            let mut value = [0; 100];
            assert!(rustix::fs::lgetxattr(&full, attribute, &mut value).is_err(), "{path}: {attribute}");
        }
    }
}

fn base() -> Vec<u8> {
    Tar::new().dir("d").file("d/f", b"base").dir("e").symlink("up", "../../canary").end()
}

/// A layer with everything in it.
fn seed() -> Vec<u8> {
    Tar::new()
        .dir("./")
        .dir("d")
        .file("d/.wh..wh..opq", b"")
        .file("d/new", &[1; 700])
        .link("l", "d/new")
        .link("lower", "d/f")
        .symlink("s", "../../canary")
        .pax(&[("path", b"long/name"), ("SCHILY.xattr.user.a", b"\n\0"), ("mtime", b"1.5")])
        .file("x", b"y")
        .raw(b"long", b'L', b"", b"very/long\0")
        .file("z", b"")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sp"),
            ("GNU.sparse.realsize", b"900"),
        ])
        .file("sparse", &{
            let mut data = b"1\n100\n5\n".to_vec();
            data.resize(512, 0);
            data.extend_from_slice(b"hello");
            data
        })
        .raw(b"fifo", b'6', b"", b"")
        .file(".wh.e", b"")
        .end()
}

#[derive(Debug, Clone)]
enum Change {
    Byte(usize, u8),
    Text(usize, &'static [u8]),
    Cut(usize),
    Swap(usize, usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let at = 0..seed().len();
    let text = prop::sample::select(vec![
        b"../x".as_slice(),
        b"s/x\0",
        b"up/file\0",
        b"/\0",
        b".wh.x\0",
        b"\x80\0\0\0\0\0\0\0\x7f",
        b"77777777777",
        b"\xff\xff\xff\xff",
    ]);
    let change = prop_oneof![
        (at.clone(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (0..seed().len() / 512, prop::sample::select(vec![0_usize, 100, 108, 124, 136, 156, 157, 329, 345]), text)
            .prop_map(|(block, field, text)| Change::Text(block * 512 + field, text)),
        at.prop_map(Change::Cut),
        (0..seed().len() / 512, 0..seed().len() / 512).prop_map(|(a, b)| Change::Swap(a, b)),
    ];
    prop::collection::vec(change, 1..4)
}

/// Applies changes and makes every header's sum right again, so that they are not all refused at once.
fn changed(changes: &[Change]) -> Vec<u8> {
    let mut bytes = seed();
    for change in changes {
        match change {
            Change::Byte(at, byte) => {
                if let Some(old) = bytes.get_mut(*at) {
                    *old = *byte;
                }
            }
            Change::Text(at, text) => {
                if let Some(part) = bytes.get_mut(*at..at + text.len()) {
                    part.copy_from_slice(text);
                }
            }
            Change::Cut(at) => bytes.truncate(*at),
            Change::Swap(a, b) => {
                for offset in 0..512 {
                    if a * 512 + offset < bytes.len() && b * 512 + offset < bytes.len() {
                        bytes.swap(a * 512 + offset, b * 512 + offset);
                    }
                }
            }
        }
    }
    for block in bytes.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            let sum: u32 =
                block.iter().enumerate().map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) }).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

#[test]
fn the_seed_itself_is_imported() {
    let mut store = Store::new();
    let image = store.dir.path().join("image");
    layout(&image, &[base(), seed()]);
    let imported = store.import(&format!("oci:{}", image.display())).unwrap();
    let names: Vec<String> = listing(store.mount(&imported).path()).into_keys().collect();
    let expected =
        ["", "d", "d/f", "d/new", "fifo", "l", "long", "long/name", "lower", "s", "sp", "up", "very", "very/long"];
    assert_eq!(names, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_layer_breaks_nothing(changes in changes()) {
        survive(&changed(&changes));
    }

    #[test]
    fn random_bytes_break_nothing(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), packing in 0..3_u8) {
        let magic: &[u8] = match packing {
            0 => &[],
            1 => &[0x1f, 0x8b, 8, 0],
            _ => &[0x28, 0xb5, 0x2f, 0xfd],
        };
        bytes.splice(0..0, magic.iter().copied());
        survive(&bytes);
    }

    #[test]
    fn any_source_text_is_read_or_refused(text in "\\PC{0,40}") {
        drop(perennial_registry::Source::parse(&text, &|_| false));
        drop(text.parse::<perennial_registry::Platform>());
    }
}
