//! Packs: what is written is read, whatever is damaged is noticed, and nothing makes the decoder panic.

use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{
    Check, Chunk, ChunkAt, Frame, FrameAt, Index, PackError, Part, Recipe, RecipeAt, Section, TRAILER_BYTES, Trailer,
    find_section, section_bytes,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn id() -> impl Strategy<Value = ObjectId> {
    any::<[u8; 32]>().prop_map(ObjectId::new)
}

fn chunk() -> impl Strategy<Value = Chunk> {
    (id(), 1..1_000_000_u32).prop_map(|(id, bytes)| Chunk { id, bytes })
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![chunk().prop_map(Part::Chunk), (0..1_u64 << 30).prop_map(Part::Zeros)]
}

fn index() -> impl Strategy<Value = Index> {
    let frames = vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..5);
    let chunks = vec((id(), 0..5_u32, any::<u32>()), 0..20);
    let recipes = vec((id(), any::<u64>(), any::<u32>()), 0..5);
    (frames, chunks, recipes).prop_map(|(frames, chunks, recipes)| {
        let count = u32::try_from(frames.len()).expect("there are few");
        let frame = |(offset, section_bytes, payload_bytes)| FrameAt {
            offset: u64::from(offset),
            section_bytes,
            payload_bytes,
        };
        let mut index = Index {
            frames: frames.into_iter().map(frame).collect(),
            chunks: chunks.into_iter().map(|(id, frame, slot)| ChunkAt { id, frame: frame % count, slot }).collect(),
            recipes: recipes.into_iter().map(|(object, offset, bytes)| RecipeAt { object, offset, bytes }).collect(),
        };
        index.frames.sort_by_key(|frame| frame.offset);
        index.chunks.sort();
        index.recipes.sort();
        index
    })
}

fn section() -> impl Strategy<Value = Section> {
    let frame = (vec(chunk(), 0..16), any::<u32>(), vec(any::<u8>(), 0..9)).prop_map(|(chunks, bytes, payload)| {
        Section::Frame(Frame { chunks, payload_bytes: bytes, payload_check: Check::of(&payload) })
    });
    let recipe = (id(), vec(part(), 0..20)).prop_map(|(object, parts)| Section::Recipe(Recipe { object, parts }));
    let trailer = (any::<u64>(), any::<u32>())
        .prop_map(|(index_offset, index_bytes)| Section::Trailer(Trailer { index_offset, index_bytes }));
    prop_oneof![frame, recipe, index().prop_map(Section::Index), trailer]
}

/// The section with some bytes changed and its checksum made to fit.
fn forged(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    bytes.truncate(bytes.len() - 16);
    for (at, byte) in changes {
        let at = at % bytes.len();
        bytes[at] = *byte;
    }
    let hash = blake3::hash(&bytes);
    bytes.extend(&hash.as_bytes()[..16]);
    bytes
}

proptest! {
    #[test]
    fn sections_are_read_as_they_were_written(section in section()) {
        let bytes = section.encode().unwrap();
        prop_assert_eq!(section_bytes(&bytes), Ok(bytes.len()));
        prop_assert_eq!(find_section(&bytes), Some(0));
        prop_assert_eq!(Section::decode(&bytes), Ok(section.clone()));
        if matches!(section, Section::Trailer(_)) {
            prop_assert_eq!(bytes.len(), TRAILER_BYTES);
        }
        let followed = [bytes.as_slice(), b"payload"].concat();
        prop_assert_eq!(Section::decode(&followed), Ok(section));
    }

    #[test]
    fn a_changed_byte_is_noticed(section in section(), at in any::<usize>(), change in 1..=255_u8) {
        let mut bytes = section.encode().unwrap();
        let at = at % bytes.len();
        bytes[at] ^= change;
        prop_assert!(Section::decode(&bytes).is_err());
    }

    #[test]
    fn forged_sections_do_not_panic(section in section(), changes in vec((any::<usize>(), any::<u8>()), 1..6)) {
        drop(Section::decode(&forged(section.encode().unwrap(), &changes)));
    }

    #[test]
    fn any_bytes_do_not_panic(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(Section::decode(&bytes).is_err());
        prop_assert_eq!(find_section(&bytes), None);
    }

    #[test]
    fn sections_are_found_behind_damage(section in section(), garbage in vec(any::<u8>(), 0..200)) {
        let bytes = [garbage.as_slice(), &section.encode().unwrap()].concat();
        prop_assert_eq!(find_section(&bytes), Some(garbage.len()));
    }

    #[test]
    fn a_section_cut_short_is_refused(section in section(), cut in any::<usize>()) {
        let bytes = section.encode().unwrap();
        prop_assert!(Section::decode(&bytes[..cut % bytes.len()]).is_err());
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let bytes = Section::Trailer(Trailer { index_offset: 1, index_bytes: 2 }).encode().unwrap();
    for (changes, error, text) in [
        (
            [(17, 2), (18, 0)],
            PackError::NewerVersion(2),
            "the pack has version 2, this release knows up to 1: use a newer release",
        ),
        (
            [(18, 5), (17, 1)],
            PackError::UnknownFlags(5),
            "the pack needs the features 0x0005, which this release does not know: use a newer release",
        ),
        ([(16, 9), (17, 1)], PackError::Malformed("unknown kind"), "the section is malformed: unknown kind"),
    ] {
        let refused = Section::decode(&forged(bytes.clone(), &changes)).unwrap_err();
        assert_eq!((refused, refused.to_string().as_str()), (error, text));
    }
}

#[test]
fn lists_that_make_no_sense_are_refused() {
    let at = |byte, frame| ChunkAt { id: ObjectId::new([byte; 32]), frame, slot: 0 };
    let frames = vec![FrameAt { offset: 0, section_bytes: 1, payload_bytes: 1 }];
    let decode =
        |chunks| Section::decode(&Section::Index(Index { frames: frames.clone(), chunks, recipes: vec![] }).encode()?);
    assert!(decode(vec![at(1, 0), at(2, 0)]).is_ok());
    assert_eq!(decode(vec![at(2, 0), at(1, 0)]), Err(PackError::Malformed("the index is not sorted")));
    assert_eq!(decode(vec![at(1, 1)]), Err(PackError::Malformed("the index names a frame that is not there")));
    let large = Chunk { id: ObjectId::new([0; 32]), bytes: u32::MAX };
    let frame = Frame { chunks: vec![large], payload_bytes: 1, payload_check: Check::of(b"") };
    let decoded = Section::decode(&Section::Frame(frame).encode().unwrap());
    assert_eq!(decoded, Err(PackError::Malformed("the frame is too large")));
    for parts in [vec![Part::Zeros(u64::MAX), Part::Chunk(large)], vec![Part::Zeros((64 << 30) + 1)]] {
        let recipe = Recipe { object: large.id, parts };
        let decoded = Section::decode(&Section::Recipe(recipe).encode().unwrap());
        assert_eq!(decoded, Err(PackError::Malformed("the object is too large")));
    }
}

#[test]
fn a_recipe_tells_how_it_was_cut() {
    let object = ObjectId::new([7; 32]);
    let recipe = |lengths: &[u32]| {
        let parts = lengths.iter().map(|bytes| match bytes {
            0 => Part::Zeros(99),
            bytes => Part::Chunk(Chunk { id: object, bytes: *bytes }),
        });
        Recipe { object, parts: parts.collect() }
    };
    for (lengths, fixed) in [
        (&[16, 16, 16, 4][..], true),
        (&[16, 16, 0, 16, 5, 0, 16, 16], true),
        (&[16, 17, 40, 20], false),
        (&[17, 16, 3, 9, 12], false),
        (&[16], false),
        (&[0], false),
        (&[], false),
    ] {
        assert_eq!(recipe(lengths).is_fixed(), fixed, "{lengths:?}");
    }
    assert_eq!(recipe(&[16, 0, 5]).bytes(), Some(120));
}

#[test]
fn the_frozen_pack_means_what_it_meant() {
    let bytes = include_bytes!("../../../../testdata/formats/perennial-pack-v1.pack");
    let Ok(Section::Trailer(trailer)) = Section::decode(&bytes[bytes.len() - TRAILER_BYTES..]) else {
        panic!("the trailer is at the end")
    };
    let at = |offset: u64| Section::decode(&bytes[usize::try_from(offset).unwrap()..]).unwrap();
    let Section::Index(index) = at(trailer.index_offset) else { panic!("the index is where the trailer says") };
    let [place] = index.frames[..] else { panic!("there is one frame") };
    let Section::Frame(frame) = at(place.offset) else { panic!("the frame is where the index says") };
    let payload = &bytes[usize::try_from(place.offset + u64::from(place.section_bytes)).unwrap()..]
        [..frame.payload_bytes as usize];
    assert_eq!(Check::of(payload), frame.payload_check);
    let text = b"frozen text\n".repeat(20);
    assert!(frame.chunks.contains(&Chunk { id: ObjectId::of(&text), bytes: 240 }));
    let sparse = [text, vec![0; 700_000], b"the end\n".repeat(3)].concat();
    let recipe = index.recipes[0];
    assert_eq!((index.recipes.len(), recipe.object), (1, ObjectId::of(&sparse)));
    let Section::Recipe(recipe) = at(recipe.offset) else { panic!("the recipe is where the index says") };
    assert_eq!(recipe.bytes(), Some(700_264));
    assert!(index.chunks.iter().all(|chunk| frame.chunks[chunk.slot as usize].id == chunk.id));
}
