//! What a disk keeps of what was written to it when its power is cut.
#![cfg(test)]

use perennial_testkit::host::write as write_file;
use perennial_testkit::writelog::{Entry, Loss, Piece, Replay, WriteLog, durable, surviving};
use proptest::test_runner::{RngAlgorithm, TestRng};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

fn lot() -> TestRng {
    TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32])
}

fn write(offset: u64, length: u64) -> Entry {
    Entry { offset, length, is_flush: false, is_durable: false, data_at: offset + 1 }
}

fn flush() -> Entry {
    Entry { is_flush: true, ..write(0, 0) }
}

#[test]
fn what_was_written_before_the_last_flush_stays() {
    let entries = [write(0, 4096), flush(), write(4096, 4096), flush(), write(8192, 4096)];
    let table = [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4), (5, 4)];
    for (at, kept) in table {
        assert_eq!(durable(&entries, at), kept, "cut before entry {at}");
    }
}

#[test]
fn what_came_after_it_stays_or_goes_block_by_block() {
    let durable = Entry { is_durable: true, ..write(0, 4096) };
    let entries = [write(0, 4096), flush(), write(8192 + 512, 8192), durable, write(65536, 512)];
    let piece = |offset, length| Piece { offset, length, data_at: offset + 1 };
    let torn = [piece(8704, 3584), piece(12288, 4096), piece(16384, 512)];
    let all = |at| surviving(&entries, at, Loss::Nothing, &mut lot());
    assert_eq!(all(2), []);
    assert_eq!(all(3), torn);
    assert_eq!(all(5), [&torn[..], &[piece(0, 4096), piece(65536, 512)]].concat());
    // A write that the disk was told to carry out at once is not lost.
    assert_eq!(surviving(&entries, 5, Loss::Everything, &mut lot()), [piece(0, 4096)]);
}

#[test]
fn half_is_about_half() {
    let entries: Vec<Entry> = (0..1000).map(|number| write(number * 4096, 4096)).collect();
    let kept = surviving(&entries, 1000, Loss::Percent(50), &mut lot()).len();
    assert!((400..600).contains(&kept), "{kept} of 1000");
    let kept = surviving(&entries, 1000, Loss::Percent(10), &mut lot()).len();
    assert!((850..950).contains(&kept), "{kept} of 1000");
}

/// A log as QEMU writes it: a head, and entries of a sector each with their bytes after them.
fn record(path: &Path, entries: &[(u64, u64, &[u8])]) {
    WriteLog::create(path).unwrap();
    let log = File::options().write(true).open(path).unwrap();
    let put = |at: u64, numbers: &[u64]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        log.write_all_at(&bytes, at).unwrap();
    };
    // The count in the head is behind, as it is after a kill.
    put(0, &[0x006a_7366_7773_6872, 1, 0, 512]);
    let mut at = 512;
    for (sector, flags, bytes) in entries {
        let sectors = bytes.len().div_ceil(512) as u64;
        put(at, &[*sector, sectors, *flags, 0]);
        log.write_all_at(bytes, at + 512).unwrap();
        at += 512 + sectors * 512;
    }
}

#[test]
fn a_recorded_session_is_played_up_to_each_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let sector = |letter: u8| [letter; 512];
    let mut mark = [0; 512];
    mark[..2].copy_from_slice(b"12");
    record(
        &path("log"),
        &[(1, 0, &sector(b'a')), (0, 1, &[]), (2, 0, &sector(b'b')), (9, 0, &mark), (1, 0, &sector(b'c')), (0, 1, &[])],
    );
    write_file(path("before"), [b'.'; 512 * 16]).unwrap();
    let log = WriteLog::read(&path("log")).unwrap();
    assert_eq!(log.entries.len(), 6);
    assert_eq!(log.marks(9).unwrap(), [(4, 12)]);
    let mut replay = Replay::new(log, &path("before"), &path("work")).unwrap();
    let mut after = |at, loss| {
        replay.cut(at, loss, &mut lot(), &path("cut")).unwrap();
        let bytes = fs::read(path("cut")).unwrap();
        assert_eq!(bytes.len(), 512 * 16);
        String::from_utf8(bytes.chunks(512).take(3).map(|sector| sector[0]).collect()).unwrap()
    };
    let table = [
        (0, Loss::Nothing, "..."),
        (1, Loss::Everything, "..."),
        (1, Loss::Nothing, ".a."),
        (2, Loss::Everything, ".a."),
        (5, Loss::Everything, ".a."),
        (5, Loss::Nothing, ".cb"),
        (6, Loss::Everything, ".cb"),
    ];
    for (at, loss, shown) in table {
        assert_eq!(after(at, loss), shown, "cut before entry {at}, losing {loss:?}");
    }
}

#[test]
fn what_is_no_log_or_holds_what_cannot_be_played_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    write_file(&path, [0; 1024]).unwrap();
    assert!(WriteLog::read(&path).unwrap_err().to_string().contains("no log"));
    // A discard.
    record(&path, &[(1, 4, &[0; 512])]);
    assert!(WriteLog::read(&path).unwrap_err().to_string().contains("flags 0x4"));
}
