//! Manifests: round trips, refusals, damage.

use crate::trees::{collect, entry, everything, inode, object, trees, wide};
use perennial_core::sealed::canonical::{Fault, Problem};
use perennial_core::sealed::entry::{Directory, Item};
use perennial_core::sealed::manifest::{Malformed, ObjectTable, ReadError, Reader, Summary, WriteError, Writer};
use perennial_core::sealed::object::ObjectId;
use proptest::prelude::*;
use std::convert::Infallible;

pub fn written(tree: &[Directory]) -> Result<(Summary, Vec<u8>), WriteError<Infallible>> {
    let mut writer = Writer::new(Vec::new())?;
    for directory in tree {
        writer.push(directory)?;
    }
    writer.finish()
}

fn read(bytes: &[u8]) -> Result<(Vec<Directory>, Summary), ReadError<Infallible>> {
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
