//! Names made of values of groups are those that `b3sum` prints, whatever was taken from another version; outboards
//! are read as they were written or not at all; extents are compared as whoever reads the files would compare them.

use perennial_core::sealed::extents::{Comparison, Extent, Place};
use perennial_core::sealed::groups::{GROUP_BYTES, GroupHasher, Merge, Value, count};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::outboard::{OutboardError, Reader, Writer, is_kept, may_be_kept};
use proptest::prelude::*;
use std::path::Path;

const GROUP: usize = 64 << 10;

/// Bytes that differ from group to group.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at ^ (at >> 7) ^ (at >> 13)) & 0xff).unwrap()).collect()
}

fn values(content: &[u8], piece: usize) -> (Vec<Value>, ObjectId) {
    let (mut hasher, mut values) = (GroupHasher::default(), Vec::new());
    content.chunks(piece).for_each(|piece| hasher.update(piece, &mut |value| values.push(value)));
    let id = hasher.finish(&mut |value| values.push(value)).unwrap();
    (values, id)
}

fn outboard(content: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), content.len() as u64);
    values(content, 10_000).0.into_iter().for_each(|value| writer.push(value).unwrap());
    writer.finish().unwrap()
}

fn read(bytes: &[u8], length: usize) -> Result<Option<ObjectId>, OutboardError<std::convert::Infallible>> {
    Reader::new(bytes, length as u64)?.finish()
}

#[test]
fn the_name_of_a_content_is_that_of_all_its_bytes() {
    let around = |groups: usize| [groups * GROUP, groups * GROUP + 1, (groups * GROUP).saturating_sub(1)];
    let lengths =
        [0, 1, 1024, 1025, 100_000].into_iter().chain([1, 2, 3, 4, 5, 7, 8, 9, 16, 33].into_iter().flat_map(around));
    for length in lengths {
        let content = content(length);
        for piece in [GROUP, 4096, 100_000] {
            let (values, id) = values(&content, piece);
            assert_eq!(id, ObjectId::of(&content), "{length} in pieces of {piece}");
            let expected = if length <= GROUP { 0 } else { count(length as u64) };
            assert_eq!(values.len() as u64, expected, "{length} in pieces of {piece}");
            let mut merge = Merge::default();
            values.iter().for_each(|value| merge.push(*value));
            assert_eq!(merge.finish(), (length > GROUP).then_some(id), "{length}");
        }
    }
}

#[test]
fn a_value_is_taken_only_where_a_group_begins() {
    let (known, _) = values(&content(3 * GROUP), GROUP);
    let mut hasher = GroupHasher::default();
    assert!(!hasher.reuse(known[0], 0, &mut |_| {}));
    assert!(!hasher.reuse(known[0], GROUP_BYTES + 1, &mut |_| {}));
    hasher.update(&[1], &mut |_| {});
    assert!(!hasher.reuse(known[0], GROUP_BYTES, &mut |_| {}));
    let mut hasher = GroupHasher::default();
    assert!(hasher.reuse(known[0], GROUP_BYTES, &mut |_| {}));
    assert!(hasher.reuse(known[1], 5, &mut |_| {}));
    assert!(!hasher.reuse(known[2], GROUP_BYTES, &mut |_| {}), "nothing follows a short group");
    let mut hasher = GroupHasher::default();
    assert!(hasher.reuse(known[0], GROUP_BYTES, &mut |_| {}));
    assert_eq!(hasher.finish(&mut |_| {}), None, "the name of a single group is not made of its value");
}

#[test]
fn only_big_contents_with_few_holes_have_an_outboard() {
    let table = [
        // Length, bytes on disk.
        (8 << 20, 8 << 20, false),
        ((8 << 20) + 1, (8 << 20) + 4096, true),
        // 512 MiB beside 128 GiB and what is less.
        (1 << 40, 1 << 37, true),
        (1 << 40, (1 << 37) - 1, false),
        (1 << 40, 4096, false),
        (1 << 40, 0, false),
        // Compressed to an eighth.
        (16 << 20, 2 << 20, true),
        (16 << 20, (2 << 20) - 1, false),
        (u64::MAX, u64::MAX, true),
        (u64::MAX, 1 << 60, false),
    ];
    for (length, allocated, expected) in table {
        assert_eq!(is_kept(length, allocated), expected, "{length} bytes, {allocated} on disk");
        assert_eq!(may_be_kept(length), length > 8 << 20, "{length} bytes");
    }
}

#[test]
fn a_damaged_outboard_is_refused() {
    let content = content(5 * GROUP + 17);
    let (whole, id) = (outboard(&content), ObjectId::of(&content));
    assert_eq!(whole.len(), 24 + 6 * 32 + 32);
    assert_eq!(read(&whole, content.len()), Ok(Some(id)));
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged, content.len()).is_err(), "bit {bit}");
    }
    for length in 0..whole.len() {
        assert!(read(&whole[..length], content.len()).is_err(), "cut off after {length}");
    }
    assert_eq!(read(&[whole.as_slice(), &[0]].concat(), content.len()), Err(OutboardError::Length));
    assert_eq!(read(&whole, content.len() + 1), Err(OutboardError::Header));
    // One that is whole but of another content is told by the name it makes.
    let other = [content.as_slice(), &[1]].concat();
    assert_ne!(read(&outboard(&other), other.len()), Ok(Some(id)));
}

#[test]
fn the_frozen_outboard_means_what_it_meant() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats/perennial-outboard-v1.bin");
    let content = content(3 * GROUP + 1);
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(read(&bytes, content.len()), Ok(Some(ObjectId::of(&content))));
    assert_eq!(outboard(&content), bytes);
}

fn shared(offset: u64, bytes: u64, address: u64) -> Extent {
    Extent { offset, bytes, place: Place::Shared(address) }
}

fn is_same(one: &[Extent], other: &[Extent], from: u64, until: u64) -> bool {
    Comparison::new(one.iter().copied(), other.iter().copied()).is_same(from, until)
}

#[test]
fn only_shared_blocks_at_one_address_and_holes_are_surely_the_same() {
    let doubtful = |offset, bytes| Extent { offset, bytes, place: Place::Doubtful };
    let one = [shared(0, 100, 1000), shared(200, 100, 5000)];
    assert!(is_same(&one, &one, 0, 1_000_000), "holes are the same");
    // However the extents are cut.
    assert!(is_same(&one, &[shared(0, 30, 1000), shared(30, 70, 1030), shared(200, 100, 5000)], 0, 400));
    for (other, what) in [
        (vec![shared(0, 100, 1001), shared(200, 100, 5000)], "another address"),
        (vec![shared(0, 99, 1000), shared(200, 100, 5000)], "a hole begins earlier"),
        (vec![shared(0, 100, 1000), doubtful(200, 100)], "doubtful"),
        (vec![shared(0, 100, 1000), shared(200, 100, 5000), doubtful(300, 10)], "something more"),
        (vec![shared(200, 100, 5000), shared(0, 100, 1000)], "out of order"),
        (vec![shared(0, 100, 1000), shared(50, 250, 1050)], "overlapping"),
        (vec![shared(0, 0, 1000)], "without a length"),
        (vec![shared(0, 100, 1000), shared(200, u64::MAX, 5000)], "beyond all ends"),
        (vec![], "nothing"),
        (vec![Extent::doubtful_from(0)], "not told"),
    ] {
        assert!(!is_same(&one, &other, 0, 400), "{what}");
        assert!(!is_same(&other, &one, 0, 400), "{what}");
    }
    assert!(!is_same(&[doubtful(0, 10)], &[doubtful(0, 10)], 0, 10));
    let mut changed =
        Comparison::new(one.into_iter(), [shared(0, 50, 1000), shared(50, 10, 9), shared(60, 40, 1060)].into_iter());
    let found: Vec<bool> = (0..10).map(|group| changed.is_same(group * 10, group * 10 + 10)).collect();
    assert_eq!(found, [true, true, true, true, true, false, true, true, true, true]);
}

/// A file as blocks: nothing, or the number of a block.
fn extents(blocks: &[Option<u64>], cuts: &[bool]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for (at, block) in blocks.iter().enumerate() {
        let Some(block) = block else { continue };
        let (offset, address) = (at as u64 * 4, block * 4);
        match extents.last_mut() {
            Some(last)
                if last.offset + last.bytes == offset
                    && matches!(last.place, Place::Shared(start) if start + last.bytes == address)
                    && !cuts[at] =>
            {
                last.bytes += 4;
            }
            _ => extents.push(shared(offset, 4, address)),
        }
    }
    extents
}

proptest! {
    #[test]
    fn what_is_the_same_by_extents_is_the_same_by_blocks(
        one in prop::collection::vec(prop::option::of(0_u64..6), 1..24),
        changes in prop::collection::vec((0_usize..24, prop::option::of(0_u64..6)), 0..4),
        cuts in prop::collection::vec(any::<bool>(), 24),
        group in 1_usize..5,
    ) {
        let mut other = one.clone();
        for (at, block) in changes {
            if let Some(place) = other.get_mut(at) {
                *place = block;
            }
        }
        let none = [false; 24];
        let (a, b) = (extents(&one, &cuts), extents(&other, &none));
        let mut comparison = Comparison::new(a.into_iter(), b.into_iter());
        for start in (0..one.len()).step_by(group) {
            let end = (start + group).min(one.len());
            let expected = one[start..end] == other[start..end];
            prop_assert_eq!(comparison.is_same(start as u64 * 4, end as u64 * 4), expected, "{}..{}", start, end);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_name_made_of_old_and_new_groups_is_that_of_all_bytes(
        (old_groups, old_odd) in (1_usize..20, 0_usize..3),
        (new_groups, new_odd) in (1_usize..20, 0_usize..3),
        writes in prop::collection::vec((0_usize..20 * GROUP, 1_usize..5000, any::<u8>()), 0..6),
        piece in 1_usize..200_000,
    ) {
        let length = |groups: usize, odd: usize| groups * GROUP + odd - 1;
        let old = content(length(old_groups, old_odd));
        let mut new = old.clone();
        new.resize(length(new_groups, new_odd), 7);
        for (at, bytes, byte) in writes {
            let end = (at + bytes).min(new.len());
            if let Some(range) = new.get_mut(at.min(end)..end) {
                range.fill(byte);
            }
        }
        let (known, _) = values(&old, GROUP);
        let (mut hasher, mut made, mut hashed) = (GroupHasher::default(), Vec::new(), 0);
        for (group, bytes) in new.chunks(GROUP).enumerate() {
            let same = old.chunks(GROUP).nth(group) == Some(bytes);
            match known.get(group).filter(|_| same) {
                Some(value) => prop_assert!(hasher.reuse(*value, bytes.len() as u64, &mut |value| made.push(value))),
                None => {
                    hashed += 1;
                    bytes.chunks(piece).for_each(|piece| hasher.update(piece, &mut |value| made.push(value)));
                }
            }
        }
        let id = hasher.finish(&mut |value| made.push(value));
        if new.len() > GROUP {
            prop_assert_eq!(id, Some(ObjectId::of(&new)), "{} groups hashed", hashed);
            prop_assert_eq!(made, values(&new, GROUP).0);
        }
    }
}
