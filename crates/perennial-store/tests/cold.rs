//! Packs: what is archived comes back, also after crashes and damage, and nothing that is needed goes.
#![cfg(test)]

use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::pack::{HEAD_BYTES, Part, Recipe, Section, TRAILER_BYTES};
use perennial_store::cold::{Archived, Cold, ColdError, HotObjects, Known, Outgoing, Packer, Refusal, Request};
use perennial_store::root::{Root, Secret, Wait};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Objects in a directory, under their names.
struct Plain(PathBuf);

impl Plain {
    fn put(&self, content: &[u8]) -> ObjectId {
        let id = ObjectId::of(content);
        fs::File::create(self.path(&id)).unwrap().write_all_at(content, 0).unwrap();
        id
    }

    fn path(&self, id: &ObjectId) -> PathBuf {
        self.0.join(id.to_string())
    }

    fn read(&self, id: &ObjectId) -> Vec<u8> {
        fs::read(self.path(id)).unwrap()
    }
}

impl HotObjects for Plain {
    fn open(&self, id: &ObjectId) -> std::io::Result<File> {
        File::open(self.path(id))
    }

    fn adopt(&self, id: &ObjectId, content: &File) -> std::io::Result<()> {
        let from = format!("/proc/self/fd/{}", content.as_raw_fd());
        let (at, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_FOLLOW);
        Ok(rustix::fs::linkat(at, from, at, self.path(id), flags)?)
    }
}

struct Stage {
    _directory: tempfile::TempDir,
    root: Root,
    objects: Plain,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open_or_create(
            &directory.path().join("root"),
            "2026-11-22T00:00:00Z".parse().unwrap(),
            Secret::from_random([7; 16]),
        );
        let objects = directory.path().join("objects");
        fs::create_dir(&objects).unwrap();
        Self { root: root.unwrap(), objects: Plain(objects), _directory: directory }
    }

    fn packer(&self) -> Packer {
        Packer::open(&self.root, Wait::Never).unwrap().expect("nobody else writes")
    }

    fn archive(&self, requests: Vec<Request>) -> Archived {
        self.packer().archive(&self.objects, requests, &mut || true).unwrap()
    }

    fn pack_path(&self, pack: &ObjectId) -> PathBuf {
        self.root.path().join(format!("packs/{pack}.pack"))
    }

    /// Removes objects and thaws them, each compared with what it was.
    fn assert_thaws(&self, ids: &[ObjectId]) {
        let mut cold = Cold::open(&self.root).unwrap();
        for id in ids {
            fs::remove_file(self.objects.path(id)).ok();
            cold.thaw(id, &self.objects).unwrap();
            assert_eq!(ObjectId::of(&self.objects.read(id)), *id);
        }
    }
}

fn request(object: ObjectId, path: &str) -> Request {
    Request { object, path: path.into(), neighbour: None }
}

#[test]
fn the_frozen_pack_still_thaws() {
    let stage = Stage::new();
    let text = b"frozen text\n".repeat(20);
    let sparse = [text.clone(), vec![0; 700_000], b"the end\n".repeat(3)].concat();
    let (text, sparse) = (stage.objects.put(&text), stage.objects.put(&sparse));
    let frozen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/formats/perennial-pack-v1.pack");
    let bytes = fs::read(&frozen).unwrap();
    fs::create_dir_all(stage.root.path().join("packs")).unwrap();
    fs::copy(&frozen, stage.pack_path(&ObjectId::of(&bytes))).unwrap();
    stage.assert_thaws(&[text, sparse]);
    let report = Cold::open(&stage.root).unwrap().verify(&ObjectId::of(&bytes)).unwrap();
    assert!(report.intact && !report.scanned && report.unreadable.is_empty(), "{report:?}");
}

/// Bytes that do not compress, the same for a seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.read_exact(&mut bytes).unwrap();
    bytes
}

/// Contents of every shape: small, cut by content, sparse, all zeros.
fn shapes(stage: &Stage) -> Vec<ObjectId> {
    let mut contents: Vec<Vec<u8>> =
        (0..300_u64).zip((129..).step_by(40)).map(|(seed, length)| noise(seed, length)).collect();
    contents.push(noise(1000, 3_000_000));
    contents.push([noise(1001, 200_000), vec![0; 5_000_000], noise(1002, 70_000), vec![0; 100_000]].concat());
    contents.push(vec![0; 2_000_000]);
    contents.push(b"text ".repeat(100_000));
    contents.iter().map(|content| stage.objects.put(content)).collect()
}

fn requests(ids: &[ObjectId]) -> Vec<Request> {
    (0..).zip(ids).map(|(number, id): (u32, _)| request(*id, &format!("usr/{number}.bin"))).collect()
}

fn sorted(mut ids: Vec<ObjectId>) -> Vec<ObjectId> {
    ids.sort();
    ids
}

#[test]
fn objects_of_every_shape_come_back() {
    let stage = Stage::new();
    let ids = shapes(&stage);
    let archived = stage.archive(requests(&ids));
    assert!(archived.refused.is_empty(), "{:?}", archived.refused);
    assert_eq!(sorted(archived.safe), sorted(ids.clone()));
    assert_eq!(archived.packs.len(), 1);
    stage.assert_thaws(&ids);
    let sparse = fs::metadata(stage.objects.path(&ids[301])).unwrap();
    assert!(sparse.blocks() * 512 < 1_000_000, "holes are holes again: {} blocks", sparse.blocks());
    assert_eq!(sparse.mode() & 0o777, 0o400);
    let unknown = ObjectId::of(b"unknown");
    let mut cold = Cold::open(&stage.root).unwrap();
    assert!(matches!(cold.thaw(&unknown, &stage.objects), Err(ColdError::Unknown { object }) if object == unknown));
    assert!(!cold.contains(&unknown).unwrap() && cold.contains(&ids[0]).unwrap());
}

#[test]
fn a_pack_is_named_by_its_content_and_zstd_reads_it() {
    let stage = Stage::new();
    let (one, other) = (b"one content ".repeat(50), b"other content ".repeat(50));
    let ids = [stage.objects.put(&one), stage.objects.put(&other)];
    let archived = stage.archive(vec![request(ids[0], "a.txt"), request(ids[1], "b.txt")]);
    let [(pack, bytes)] = archived.packs[..] else { panic!("one pack, not {:?}", archived.packs) };
    let path = stage.pack_path(&pack);
    let content = fs::read(&path).unwrap();
    assert_eq!((ObjectId::of(&content), content.len() as u64), (pack, bytes));
    let read = Command::new("zstd").args(["-d", "-c"]).stdin(File::open(&path).unwrap()).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    assert_eq!(read.stdout, [one, other].concat());
}

#[test]
fn what_is_there_is_not_written_again() {
    let stage = Stage::new();
    let old = noise(1, 8 << 20);
    let first = stage.objects.put(&old);
    let mut new = old.clone();
    new.splice(4_000_000..4_000_000, *b"inserted");
    let second = stage.objects.put(&new);
    stage.archive(vec![request(first, "lib.so")]);
    let archived = stage.archive(vec![request(second, "lib.so"), request(first, "lib.so")]);
    let bytes: u64 = archived.packs.iter().map(|(_, bytes)| bytes).sum();
    assert!((1..600_000).contains(&bytes), "{bytes}");
    let archived = stage.archive(vec![request(second, "lib.so"), request(first, "other")]);
    assert_eq!((archived.packs, sorted(archived.safe)), (Vec::new(), sorted(vec![first, second])));
    stage.assert_thaws(&[first, second]);
}

#[test]
fn a_file_rewritten_in_place_costs_the_blocks_that_were_rewritten() {
    let stage = Stage::new();
    let mut content = noise(1, 16 << 20);
    let mut ids = vec![stage.objects.put(&content)];
    for version in 0..3_usize {
        for page in 0..10 {
            let at = (version * 37 + page * 101) * 8192;
            content[at..at + 100].copy_from_slice(&noise((version * 100 + page) as u64, 100));
        }
        ids.push(stage.objects.put(&content));
    }
    let mut bytes = Vec::new();
    for (number, id) in ids.iter().enumerate() {
        let neighbour = ids.get(number + 1).or(ids.get(number.wrapping_sub(1))).copied();
        let archived = stage.archive(vec![Request { object: *id, path: b"db".to_vec(), neighbour }]);
        bytes.push(archived.packs.iter().map(|(_, bytes)| bytes).sum::<u64>());
        // The next one has only the packs to learn from.
        if number > 0 {
            fs::remove_file(stage.objects.path(&ids[number - 1])).unwrap();
        }
    }
    // Ten blocks of 16 KiB, and a recipe of 1024 ids.
    assert!(bytes[1..].iter().all(|bytes| (160_000..230_000).contains(bytes)), "{bytes:?}");
    stage.assert_thaws(&ids);
}

#[test]
fn objects_that_are_not_what_they_should_be_are_refused_by_name() {
    let stage = Stage::new();
    let (good, damaged, missing) = (noise(1, 500), noise(2, 500), ObjectId::of(b"missing"));
    let (good, damaged) = (stage.objects.put(&good), stage.objects.put(&damaged));
    OpenOptions::new().write(true).open(stage.objects.path(&damaged)).unwrap().write_all_at(b"!", 7).unwrap();
    let huge = ObjectId::of(b"huge");
    File::create(stage.objects.path(&huge)).unwrap().set_len((64 << 30) + 1).unwrap();
    let ids = [good, damaged, missing, huge];
    let archived = stage.archive(requests(&ids));
    assert_eq!(archived.safe, [good]);
    let refused: Vec<_> = archived.refused.iter().map(|(id, refusal)| (*id, refusal)).collect();
    assert!(
        matches!(
            refused[..],
            [(a, Refusal::Damaged), (b, Refusal::Unreadable(_)), (c, Refusal::TooLarge)]
                if [a, b, c] == [damaged, missing, huge]
        ),
        "{refused:?}"
    );
}

#[test]
fn archiving_goes_on_wherever_it_was_stopped() {
    let stage = Stage::new();
    let ids = shapes(&stage);
    let mut safe = Vec::new();
    for steps in [0, 1, 100, 203] {
        let mut asked = 0;
        let mut go_on = || {
            asked += 1;
            asked <= steps
        };
        // What a crash leaves of a pack.
        fs::create_dir_all(stage.root.path().join("packs")).unwrap();
        fs::File::create(stage.root.path().join("packs/.incoming")).unwrap().set_len(12_345).unwrap();
        safe = stage.packer().archive(&stage.objects, requests(&ids), &mut go_on).unwrap().safe;
        assert_eq!(safe.len(), steps);
        assert!(!stage.root.path().join("packs/.incoming").exists());
    }
    assert!(safe.len() < ids.len());
    assert_eq!(sorted(stage.archive(requests(&ids)).safe), sorted(ids.clone()));
    stage.assert_thaws(&ids);
    assert!(Packer::open(&stage.root, Wait::Never).unwrap().is_some());
    let _held = stage.packer();
    assert!(Packer::open(&stage.root, Wait::Never).unwrap().is_none());
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

#[test]
fn damage_costs_the_objects_in_its_frame_and_names_them() {
    let stage = Stage::new();
    // Frames of about 2 MiB: 40 objects of 50 kB each in every one.
    let ids: Vec<ObjectId> = (0..200).map(|seed| stage.objects.put(&noise(seed, 50_000))).collect();
    let large = stage.objects.put(&noise(999, 1_000_000));
    let archived = stage.archive([requests(&ids), vec![request(large, "zzz.large")]].concat());
    let [(pack, bytes)] = archived.packs[..] else { panic!("one pack, not {:?}", archived.packs) };
    assert_eq!(Cold::open(&stage.root).unwrap().verify(&pack).unwrap().lost, []);
    flip(&stage.pack_path(&pack), bytes / 2);
    let mut cold = Cold::open(&stage.root).unwrap();
    let report = cold.verify(&pack).unwrap();
    assert!(!report.intact && report.unreadable.len() == 1, "{report:?}");
    let (lost, kept): (Vec<ObjectId>, Vec<ObjectId>) = ids.iter().partition(|id| report.lost.contains(id));
    assert!((35..=45).contains(&lost.len()), "{}", lost.len());
    assert_eq!(sorted(lost.clone()), report.lost);
    for id in &lost {
        assert!(matches!(cold.check(id), Err(ColdError::Damaged { object, .. }) if object == *id));
    }
    // As long as the objects are elsewhere, archiving mends it.
    let archived = stage.archive(requests(&ids));
    assert_eq!((archived.safe.len(), archived.packs.len()), (200, 1));
    stage.assert_thaws(&[kept, lost, vec![large]].concat());
}

#[test]
fn a_damaged_end_costs_a_scan_and_nothing_else() {
    let stage = Stage::new();
    let ids = shapes(&stage);
    let [(pack, bytes)] = stage.archive(requests(&ids)).packs[..] else { panic!("one pack") };
    for damage in [bytes - 1, bytes - 100] {
        flip(&stage.pack_path(&pack), damage);
        assert_eq!(Cold::open(&stage.root).unwrap().scanned(), [pack]);
        stage.assert_thaws(&ids);
    }
    let file = OpenOptions::new().read(true).write(true).open(stage.pack_path(&pack)).unwrap();
    let mut index_offset = [0; 8];
    file.read_exact_at(&mut index_offset, bytes - TRAILER_BYTES as u64 + HEAD_BYTES as u64).unwrap();
    file.set_len(u64::from_le_bytes(index_offset)).unwrap();
    stage.assert_thaws(&ids);
}

#[test]
fn recipes_planted_in_a_content_do_no_harm() {
    let stage = Stage::new();
    let (whole, cut) = (stage.objects.put(&noise(1, 5_000)), stage.objects.put(&noise(2, 1_000_000)));
    let sections = [whole, cut].map(|object| {
        let recipe = Recipe { object, parts: vec![Part::Zeros(1_000_000)] };
        Section::Recipe(recipe).encode().unwrap()
    });
    let [of_whole, of_cut] = sections.clone();
    let planted = [noise(3, 20_000), of_whole, noise(5, 20_000), of_cut];
    let planted = stage.objects.put(&planted.concat());
    // The planted ones come first, in a frame of their own: the next begins after 2 MiB.
    let filler = stage.objects.put(&noise(4, 2 << 20));
    let order = [(planted, "1"), (filler, "2"), (whole, "3"), (cut, "4")];
    let requests = order.into_iter().map(|(object, path)| request(object, path)).collect();
    let [(pack, bytes)] = stage.archive(requests).packs[..] else { panic!("one pack") };
    let raw = fs::read(stage.pack_path(&pack)).unwrap();
    for recipe in sections {
        assert!(raw.windows(recipe.len()).any(|window| window == recipe), "it is in the pack as it is");
    }
    flip(&stage.pack_path(&pack), 60);
    flip(&stage.pack_path(&pack), bytes - 1);
    let mut cold = Cold::open(&stage.root).unwrap();
    assert_eq!(cold.scanned(), [pack]);
    assert!(matches!(cold.check(&planted), Err(ColdError::Unknown { .. })));
    stage.assert_thaws(&[whole, cut]);
}

#[test]
fn packs_are_rewritten_when_little_of_them_is_needed() {
    let stage = Stage::new();
    let ids: Vec<ObjectId> = (0..100).map(|seed| stage.objects.put(&noise(seed, 50_000))).collect();
    let large = stage.objects.put(&noise(999, 1_000_000));
    let [(pack, bytes)] = stage.archive([requests(&ids), vec![request(large, "l")]].concat()).packs[..] else {
        panic!("one pack")
    };
    let mut packer = stage.packer();
    let all = packer.repack(&stage.root, &mut |_| true, &mut || true).unwrap();
    assert_eq!((all.removed, all.written), (vec![], vec![]));
    let needed: Vec<ObjectId> = ids.iter().copied().step_by(4).chain([large]).collect();
    let repacked = packer.repack(&stage.root, &mut |id| needed.contains(id), &mut || true).unwrap();
    assert_eq!((&repacked.removed[..], &repacked.damaged[..]), (&[(pack, bytes)][..], &[][..]));
    let [(_, rest)] = repacked.written[..] else { panic!("one pack, not {:?}", repacked.written) };
    assert!((2_250_000..2_300_000).contains(&rest), "{rest}");
    assert!(!stage.pack_path(&pack).exists());
    assert!(stage.root.trash_dir().join(format!("pack-{pack}")).exists());
    stage.assert_thaws(&needed);
    assert!(matches!(packer.cold().check(&ids[1]), Err(ColdError::Unknown { .. })));
    let none = packer.repack(&stage.root, &mut |_| false, &mut || true).unwrap();
    assert_eq!((none.removed, none.written), (repacked.written, vec![]));
    assert_eq!(packer.cold().packs(), []);
}

#[test]
fn a_reader_finds_what_was_rewritten_behind_its_back() {
    let stage = Stage::new();
    let ids: Vec<ObjectId> = (0..10).map(|seed| stage.objects.put(&noise(seed, 50_000))).collect();
    stage.archive(requests(&ids));
    let mut reader = Cold::open(&stage.root).unwrap();
    let repacked = stage.packer().repack(&stage.root, &mut |id| *id == ids[3], &mut || true).unwrap();
    assert_eq!((repacked.removed.len(), repacked.written.len()), (1, 1));
    reader.check(&ids[3]).unwrap();
    assert!(matches!(reader.check(&ids[4]), Err(ColdError::Unknown { .. })));
}

#[test]
fn a_damaged_pack_of_which_something_is_needed_stays() {
    let stage = Stage::new();
    let ids: Vec<ObjectId> = (0..100).map(|seed| stage.objects.put(&noise(seed, 50_000))).collect();
    let [(pack, bytes)] = stage.archive(requests(&ids)).packs[..] else { panic!("one pack") };
    flip(&stage.pack_path(&pack), bytes / 2);
    let needed: Vec<ObjectId> = ids.iter().copied().step_by(10).collect();
    let repacked = stage.packer().repack(&stage.root, &mut |id| needed.contains(id), &mut || true).unwrap();
    assert_eq!((&repacked.damaged[..], &repacked.removed[..]), (&[pack][..], &[][..]));
    assert!(stage.pack_path(&pack).exists());
}

/// Packs one file into a directory for packs on their way, and returns their names.
fn packed(directory: &Path, content: &[u8], salt: Option<&[u8]>) -> Vec<PathBuf> {
    let file = directory.with_extension("content");
    fs::File::create(&file).unwrap().write_all_at(content, 0).unwrap();
    let mut outgoing = Outgoing::open(directory, Known::default()).unwrap();
    if let Some(salt) = salt {
        outgoing = outgoing.salted(salt.to_vec());
    }
    outgoing.object(ObjectId::of(content), &File::open(file).unwrap()).unwrap();
    outgoing.finish().unwrap().into_iter().map(|pack| pack.path).collect()
}

#[test]
fn packs_that_an_attempt_has_left_serve_only_where_all_of_them_are_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("out");
    let first = packed(&directory, b"first", None);
    let both = packed(&directory, b"second", None);
    assert!(both.len() == 2 && both.contains(&first[0]), "{both:?}");
    // The second may leave out what is in the first.
    fs::File::create(&first[0]).unwrap().write_all_at(b"damaged", 0).unwrap();
    let third = packed(&directory, b"third", None);
    assert!(third.len() == 1 && !both.contains(&third[0]), "{third:?}");
}

#[test]
fn packs_with_other_salt_have_other_names() {
    let scratch = tempfile::tempdir().unwrap();
    let names: BTreeSet<_> = [None, Some(&b"one"[..]), Some(b"two")]
        .into_iter()
        .enumerate()
        .map(|(number, salt)| packed(&scratch.path().join(number.to_string()), b"content", salt))
        .map(|packs| packs[0].file_name().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
}
