//! The log of what a virtual machine has written to its disk, and disks as a power cut would have left them.
//!
//! QEMU's driver `blklogwrites` appends each write and each flush of the guest to a log, in the format of the kernel's
//! `dm-log-writes`. A disk with a cache keeps, when its power is cut, what was written before the last flush that it has
//! carried out, and any part of what came after it. So one recorded session yields as many cuts as it has entries, and
//! for each of them as many disks as there are parts.
//!
//! ```text
//! write write FLUSH write write write ✂        kept: the first two; of the last three any 4 KiB blocks
//! ```
//!
//! What is asked of a disk is no more than what file systems ask: a block of 4 KiB is written whole or not at all.

use crate::host::run;
use anyhow::{Context as _, Result, ensure};
use proptest::prelude::Rng;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of a sector, in which the log counts.
pub const SECTOR_BYTES: u64 = 512;
/// What a disk writes whole or not at all.
const BLOCK_BYTES: u64 = 4096;
/// Room for the log, as a file with a hole; a session that fills it has written a thousand times what it should.
pub const LOG_BYTES_MAX: u64 = 8 << 30;
/// First number of the log, and the version that is understood.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
/// Discarded ranges and marks of the log's own, neither of which the machine is allowed.
const UNEXPECTED: u64 = !(FLUSH | FUA);

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How many bytes were written; none for a flush alone.
    pub length: u64,
    /// Whether what was written before is on the disk for good.
    pub is_flush: bool,
    /// Whether this write itself is.
    pub is_durable: bool,
    /// Where in the log's file the bytes are.
    pub data_at: u64,
}

/// A part of a write that a disk has kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where on the disk, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Where in the log's file the bytes are.
    pub data_at: u64,
}

/// How much of what was not flushed a cut loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing, as when only the processor stops.
    Nothing,
    /// So many of a hundred blocks, drawn by lot.
    Percent(u32),
    /// Everything.
    Everything,
}

impl Loss {
    /// Draws one.
    pub fn draw(lot: &mut impl Rng) -> Self {
        match lot.next_u32() % 5 {
            0 => Self::Nothing,
            1 => Self::Percent(10),
            2 => Self::Percent(50),
            3 => Self::Percent(90),
            _ => Self::Everything,
        }
    }

    fn takes(self, lot: &mut impl Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Percent(percent) => lot.next_u32() % 100 < percent,
            Self::Everything => true,
        }
    }
}

/// Returns how many entries are on the disk for good when power is cut before entry `at`.
#[must_use]
pub fn durable(entries: &[Entry], at: usize) -> usize {
    entries.iter().take(at).rposition(|entry| entry.is_flush).map_or(0, |flush| flush + 1)
}

/// Returns what the disk has kept of the entries that no flush covers when power is cut before entry `at`.
pub fn surviving(entries: &[Entry], at: usize, loss: Loss, lot: &mut impl Rng) -> Vec<Piece> {
    let mut kept = Vec::new();
    for entry in entries.iter().take(at).skip(durable(entries, at)) {
        for piece in blocks(entry) {
            if entry.is_durable || !loss.takes(lot) {
                kept.push(piece);
            }
        }
    }
    kept
}

/// Cuts a write at the borders of blocks.
fn blocks(entry: &Entry) -> Vec<Piece> {
    let (mut pieces, mut done) = (Vec::new(), 0);
    while done < entry.length {
        let offset = entry.offset + done;
        let length = (BLOCK_BYTES - offset % BLOCK_BYTES).min(entry.length - done);
        pieces.push(Piece { offset, length, data_at: entry.data_at + done });
        done += length;
    }
    pieces
}

/// A log that was recorded.
#[derive(Debug)]
pub struct WriteLog {
    /// Its entries, in the order in which the disk got them.
    pub entries: Vec<Entry>,
    file: File,
}

impl WriteLog {
    /// Makes the file for a log to be recorded.
    pub fn create(path: &Path) -> Result<()> {
        Ok(File::create(path)?.set_len(LOG_BYTES_MAX)?)
    }

    /// Reads a log up to where the machine was killed.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open the log {}", path.display()))?;
        let [magic, version, _] = numbers(&file, 0)?;
        ensure!(magic == MAGIC && version == VERSION, "{} is no log of writes", path.display());
        let (mut entries, mut at) = (Vec::new(), SECTOR_BYTES);
        loop {
            let [sector, sectors, flags] = numbers(&file, at)?;
            // Not written any more: the end. The number of entries in the head is behind when QEMU was killed.
            if sectors == 0 && flags == 0 {
                return Ok(Self { entries, file });
            }
            ensure!(flags & UNEXPECTED == 0, "entry {} has the flags {flags:#x}", entries.len());
            at += SECTOR_BYTES;
            entries.push(Entry {
                offset: sector * SECTOR_BYTES,
                length: sectors * SECTOR_BYTES,
                is_flush: flags & FLUSH != 0,
                is_durable: flags & FUA != 0,
                data_at: at,
            });
            at += sectors * SECTOR_BYTES;
        }
    }

    /// Returns the marks that the guest has written to one sector: after how many entries, and which number.
    pub fn marks(&self, sector: u64) -> Result<Vec<(usize, usize)>> {
        let mut marks = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.offset == sector * SECTOR_BYTES && entry.length > 0 {
                let mut bytes = [0; 16];
                self.file.read_exact_at(&mut bytes, entry.data_at)?;
                let text = String::from_utf8_lossy(&bytes);
                let number = text.trim_end_matches('\0').parse().with_context(|| format!("the mark {text:?}"))?;
                marks.push((index + 1, number));
            }
        }
        Ok(marks)
    }

    fn write(&self, disk: &File, piece: Piece) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(piece.length)?];
        self.file.read_exact_at(&mut bytes, piece.data_at)?;
        Ok(disk.write_all_at(&bytes, piece.offset)?)
    }
}

fn numbers(file: &File, at: u64) -> Result<[u64; 3]> {
    let mut bytes = [0; 24];
    file.read_exact_at(&mut bytes, at).context("the log ends in the middle")?;
    let mut numbers = [0; 3];
    for (number, text) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = u64::from_le_bytes(text.try_into()?);
    }
    Ok(numbers)
}

/// The disk of a session, played from its log cut by cut, each later than the one before.
#[derive(Debug)]
pub struct Replay {
    log: WriteLog,
    image: PathBuf,
    disk: File,
    done: usize,
}

impl Replay {
    /// Begins with the disk as the session found it, of which `work` becomes a copy.
    pub fn new(log: WriteLog, before: &Path, work: &Path) -> Result<Self> {
        copy_sparse(before, work)?;
        let disk = File::options().read(true).write(true).open(work)?;
        Ok(Self { log, image: work.to_owned(), disk, done: 0 })
    }

    /// Returns the log.
    #[must_use]
    pub fn log(&self) -> &WriteLog {
        &self.log
    }

    /// Makes the disk that a cut before entry `at` leaves, as the file `target`.
    pub fn cut(&mut self, at: usize, loss: Loss, lot: &mut impl Rng, target: &Path) -> Result<()> {
        let durable = durable(&self.log.entries, at);
        ensure!(durable >= self.done, "the cut before entry {at} comes too late");
        for entry in self.log.entries.iter().take(durable).skip(self.done) {
            let Entry { offset, length, data_at, .. } = *entry;
            self.log.write(&self.disk, Piece { offset, length, data_at })?;
        }
        self.done = durable;
        copy_sparse(&self.image, target)?;
        let disk = File::options().write(true).open(target)?;
        surviving(&self.log.entries, at, loss, lot).into_iter().try_for_each(|piece| self.log.write(&disk, piece))
    }
}

/// Copies a file with its holes.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}
