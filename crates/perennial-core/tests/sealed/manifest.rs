//! Manifests: round trips, refusals, damage.

use crate::erofs::{decoded, secret};
use crate::trees::{collect, entry, everything, inode, object, trees, wide};
use perennial_core::sealed::canonical::{DEPTH_MAX, Fault, Problem};
use perennial_core::sealed::entry::{Attributes, Content, Directory, Entry, Inode, Item, Node, Timestamp};
use perennial_core::sealed::erofs::{Identity, plan, write};
use perennial_core::sealed::manifest::{Malformed, ObjectTable, ReadError, Reader, Summary, WriteError, Writer};
use perennial_core::sealed::object::ObjectId;
use proptest::prelude::*;
use std::convert::Infallible;

pub(crate) fn written(tree: &[Directory]) -> Result<(Summary, Vec<u8>), WriteError<Infallible>> {
    let mut writer = Writer::new(Vec::new())?;
    for directory in tree {
        writer.push(directory)?;
    }
    writer.finish()
}

pub(crate) fn read(bytes: &[u8]) -> Result<(Vec<Directory>, Summary), ReadError<Infallible>> {
    let mut reader = Reader::thorough(bytes)?;
    let tree = collect(&mut reader)?;
    Ok((tree, *reader.summary().expect("it was read to its end")))
}

fn check_round_trip(tree: &[Directory]) {
    let (summary, bytes) = written(tree).unwrap();
    assert_eq!(summary.id, ObjectId::of(&bytes));
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(read(&bytes).unwrap(), (tree.to_vec(), summary));
    let table = ObjectTable::open(bytes.as_slice()).unwrap();
    assert_eq!(*table.counts(), summary.counts);
    let objects: Vec<(ObjectId, u64)> = table.iter().map(Result::unwrap).collect();
    assert_eq!(objects.len() as u64, summary.counts.objects);
    assert!(objects.is_sorted());
    for (id, size) in objects {
        assert_eq!(table.size_of(&id), Ok(Some(size)));
    }
    assert_eq!(table.contains(&ObjectId::of(b"of nothing")), Ok(false));
}

#[test]
fn one_of_everything_is_read_as_it_was_written() {
    check_round_trip(&everything());
    check_round_trip(&wide(3000));
    let (summary, _) = written(&everything()).unwrap();
    let counts = summary.counts;
    assert_eq!((counts.directories, counts.entries, counts.whiteouts), (4, 19, 2));
    assert_eq!((counts.objects, counts.object_bytes, counts.inline_bytes), (2, (1 << 33) + (20 << 40), 128));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_is_read_as_it_was_written(tree in trees()) {
        check_round_trip(&tree);
    }
}

#[test]
fn the_image_made_from_a_manifest_shows_the_same_tree() {
    for tree in [everything(), wide(2000)] {
        let (summary, bytes) = written(&tree).unwrap();
        let layout = plan(&mut Reader::new(bytes.as_slice()).unwrap()).unwrap();
        let identity = Identity { secret: secret(), manifest: summary.id };
        let image = write(&layout, &identity, &mut Reader::new(bytes.as_slice()).unwrap(), vec![]).unwrap();
        assert_eq!(decoded(&image), Ok(tree));
    }
}

fn root(entries: Vec<Entry>) -> Vec<Directory> {
    vec![Directory { entries, ..Directory::default() }]
}

fn refused(tree: &[Directory]) -> (String, Problem) {
    match written(tree) {
        Err(WriteError::Tree(Fault { path, problem })) => (String::from_utf8(path).unwrap(), problem),
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn entries_that_no_tree_has_are_refused_by_name() {
    let named = |name: &[u8]| vec![entry(name, inode(Node::Fifo, None))];
    let node = |node| vec![entry(b"it", inode(node, None))];
    let inline = |bytes: usize| node(Node::File(Content::Inline(vec![0; bytes])));
    let with = |attributes| vec![entry(b"it", Item::Inode(Inode { attributes, node: Node::Fifo, links: None }))];
    let xattr = |name: &[u8], bytes| {
        with(Attributes { xattrs: vec![(name.to_vec(), vec![0; bytes])], ..Attributes::default() })
    };
    let cases = [
        (named(b""), "", Problem::Name),
        (named(b"."), ".", Problem::Name),
        (named(b".."), "..", Problem::Name),
        (named(b"a/b"), "a/b", Problem::Name),
        (named(b"a\0"), "a\0", Problem::Name),
        (named(&[b'a'; 256]), &*"a".repeat(256), Problem::Name),
        ([named(b"b"), named(b"a")].concat(), "a", Problem::NameOrder),
        ([named(b"b"), named(b"b")].concat(), "b", Problem::NameOrder),
        (inline(129), "it", Problem::ContentLength),
        (node(object(b"", 128)), "it", Problem::ContentLength),
        (node(object(b"", 1 << 63)), "it", Problem::ContentLength),
        (node(Node::Symlink(vec![])), "it", Problem::Target),
        (node(Node::Symlink(vec![b'a'; 4096])), "it", Problem::Target),
        (node(Node::Symlink(vec![b'a', 0])), "it", Problem::Target),
        (node(Node::CharDevice { major: 0, minor: 0 }), "it", Problem::Device),
        (with(Attributes { mode: 0o10000, ..Attributes::default() }), "it", Problem::Mode),
        (with(attributes_of_time(1_000_000_000)), "it", Problem::Time),
        (xattr(b"", 0), "it", Problem::XattrName),
        (xattr(&[b'a'; 256], 0), "it", Problem::XattrName),
        (xattr(b"trusted.overlay.redirect", 0), "it", Problem::XattrName),
        (xattr(b"trusted.overlay.protattr", 0), "it", Problem::XattrName),
        (xattr(b"user.a", 65537), "it", Problem::XattrLength),
        (vec![entry(b"it", Item::Link(0))], "it", Problem::LinkNumber),
        (vec![entry(b"it", inode(Node::Fifo, Some(1)))], "it", Problem::LinkNumber),
        (vec![entry(b"it", inode(Node::Fifo, Some(0)))], "", Problem::LinkAlone),
        (vec![entry(b"it", Item::Directory)], "it", Problem::Missing),
    ];
    for (entries, path, problem) in cases {
        assert_eq!(refused(&root(entries)), (path.to_owned(), problem));
    }
    let twice = |one: &[u8], other: &[u8]| Attributes {
        xattrs: vec![(one.to_vec(), vec![]), (other.to_vec(), vec![])],
        ..Attributes::default()
    };
    assert_eq!(refused(&root(with(twice(b"user.b", b"user.a")))).1, Problem::XattrOrder);
    assert_eq!(refused(&root(with(twice(b"user.a", b"user.a")))).1, Problem::XattrOrder);
    let sizes = vec![entry(b"a", inode(object(b"", 200), None)), entry(b"b", inode(object(b"", 201), None))];
    assert_eq!(refused(&root(sizes)), (String::new(), Problem::ObjectSize));
}

fn attributes_of_time(nanoseconds: u32) -> Attributes {
    Attributes { mtime: Timestamp { seconds: 0, nanoseconds }, ..Attributes::default() }
}

#[test]
fn directories_out_of_order_are_refused() {
    let tree = everything();
    let twice = [tree.clone(), vec![tree[3].clone()]].concat();
    assert_eq!(refused(&twice), ("usr/lib".to_owned(), Problem::Unexpected));
    assert_eq!(refused(&tree[1..]), ("bin".to_owned(), Problem::Unexpected));
    assert_eq!(refused(&tree[..3]), ("usr/lib".to_owned(), Problem::Missing));
    assert_eq!(refused(&[]), (String::new(), Problem::Missing));
}

#[test]
fn trees_are_as_deep_as_the_bound_says() {
    let chain = |depth: usize| {
        let mut writer = Writer::new(Vec::new()).unwrap();
        let mut directory = Directory { entries: vec![entry(b"d", Item::Directory)], ..Directory::default() };
        for _ in 0..depth {
            writer.push(&directory)?;
            directory.path.push(b"d".to_vec());
        }
        directory.entries.clear();
        writer.push(&directory).map(|()| writer)
    };
    let (_, bytes) = chain(1000).unwrap().finish().unwrap();
    assert_eq!(read(&bytes).unwrap().0.len(), 1001);
    let deep = Fault { path: vec![b"d".to_vec(); DEPTH_MAX + 1].join(&b'/'), problem: Problem::Depth };
    assert!(chain(DEPTH_MAX + 1).is_err_and(|error| error == WriteError::Tree(deep)));
}

#[test]
fn what_must_be_understood_and_is_not_is_refused_by_name() {
    let (_, bytes) = written(&everything()).unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        let table = ObjectTable::open(bytes.as_slice()).err();
        (read(&bytes).unwrap_err(), table.unwrap())
    };
    for (at, byte, malformed) in
        [(0, b'Q', Malformed::Magic), (8, 2, Malformed::Version(2)), (12, 6, Malformed::Flag(2))]
    {
        assert_eq!(changed(at, byte), (ReadError::Malformed(malformed), ReadError::Malformed(malformed)));
    }
}

#[test]
fn a_table_that_does_not_fit_is_refused_though_the_checksum_does() {
    let (summary, bytes) = written(&everything()).unwrap();
    let table = bytes.len() - 96 - 40 * usize::try_from(summary.counts.objects).unwrap();
    let mut other = bytes.clone();
    other[table] ^= 1;
    let end = other.len() - 32;
    let checksum = *ObjectId::of(&other[..end]).as_bytes();
    other[end..].copy_from_slice(&checksum);
    assert_eq!(read(&other), Err(ReadError::Malformed(Malformed::Table)));
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(read(&longer), Err(ReadError::Malformed(Malformed::Trailer)));
}

#[test]
fn a_typical_entry_takes_less_than_100_bytes() {
    let (summary, _) = written(&wide(10_000)).unwrap();
    assert!(summary.bytes / 10_000 < 120, "{}", summary.bytes / 10_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn damaged_manifests_are_never_read(
        tree in trees(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        signed in any::<bool>(),
    ) {
        let (_, bytes) = written(&tree).unwrap();
        let mut damaged = bytes.clone();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            damaged[index] = byte;
        }
        if signed {
            let end = damaged.len() - 32;
            let checksum = *ObjectId::of(&damaged[..end]).as_bytes();
            damaged[end..].copy_from_slice(&checksum);
        }
        match read(&damaged) {
            Err(_) => prop_assert!(damaged != bytes),
            // With a checksum that fits it is another manifest; there is one way to write each tree.
            Ok((tree, summary)) => prop_assert_eq!(written(&tree).unwrap(), (summary, damaged.clone())),
        }
        if let Ok(table) = ObjectTable::open(damaged.as_slice()) {
            prop_assert!(table.iter().count() <= damaged.len());
            let _found = table.contains(&ObjectId::of(b"any"));
        }
    }

    #[test]
    fn cut_manifests_and_any_bytes_are_refused(tree in trees(), cut in any::<prop::sample::Index>(), any in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (_, bytes) = written(&tree).unwrap();
        prop_assert!(read(&bytes[..cut.index(bytes.len())]).is_err());
        prop_assert!(read(&any).is_err());
        prop_assert!(read(&[&bytes[..16], &any].concat()).is_err());
    }
}
