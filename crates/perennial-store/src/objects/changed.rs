//! Names of big files: made of the hashes of their groups, so that a file that shares blocks with an older version of
//! it costs what is not shared.
//!
//! ```text
//!   older object ──blocks──▶ same group? ──yes──▶ its value, from the outboard of the object
//!   file         ──blocks──┘             └─no───▶ read and hashed
//! ```
//!
//! The outboard is read to its end on the way. Where the name that its values make is not the object's, everything
//! taken from it is dropped and the file is hashed whole.

use super::hash::{HashError, Reading, hash};
use super::{Objects, extents};
use crate::sealed::DiskFile;
use perennial_core::sealed::groups::{GROUP_BYTES, GroupHasher, Value};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::outboard::{self, Reader, Writer};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// The version of a file before it was changed: an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Older {
    /// Its name.
    pub id: ObjectId,
    /// Its length, in bytes.
    pub size: u64,
}

/// A file's content by name.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) id: ObjectId,
    pub(super) size: u64,
    /// Bytes that were read of the file.
    pub(super) read: u64,
    /// Where its outboard was written, without a name yet.
    pub(super) outboard: Option<OwnedFd>,
    /// Whether all bytes were read: if not, the name is as good as the older version.
    pub(super) is_whole_read: bool,
    /// Whether the older version bears the name, and shares all blocks with the file.
    pub(super) is_shared: bool,
}

impl Named {
    pub(super) const fn of_all_bytes(id: ObjectId, size: u64, read: u64, outboard: Option<OwnedFd>) -> Self {
        Self { id, size, read, outboard, is_whole_read: true, is_shared: false }
    }
}

/// Names a file's content; of a big one that shares blocks with `older`, the rest is read.
pub(super) fn name(
    objects: &Objects,
    file: BorrowedFd<'_>,
    older: Option<&Older>,
    stop: &dyn Fn() -> bool,
) -> Result<Named, HashError> {
    let mut reading = Reading::new(file, stop);
    let stat = reading.begin()?;
    let size = stat.size;
    if !outboard::is_kept(size, stat.allocated) {
        let hashed = hash(reading)?;
        return Ok(Named::of_all_bytes(hashed.id, size, hashed.read, None));
    }
    let mut read = 0;
    if let Some(older) = older {
        let short = name_over(objects, &mut reading, (file, size), older)?;
        read = reading.read;
        if let Some(named) = short {
            return Ok(named);
        }
    }
    let mut whole = Hashing::new(objects, size);
    let mut reading = Reading::new(file, stop);
    let before = reading.begin()?;
    reading.stretch(0, size, &mut |piece| whole.update(piece))?;
    reading.end(&before)?;
    let (id, outboard) = whole.finish().ok_or(HashError::Changed)?;
    Ok(Named::of_all_bytes(id, size, read.saturating_add(reading.read), outboard))
}

/// Names a file by what differs from an older version of it; `None` where that cannot be told.
fn name_over(
    objects: &Objects,
    reading: &mut Reading<'_>,
    (file, size): (BorrowedFd<'_>, u64),
    older: &Older,
) -> Result<Option<Named>, HashError> {
    let (Ok(object), Some(values)) = (objects.open_sized(&older.id, older.size), objects.open_outboard(&older.id))
    else {
        return Ok(None);
    };
    let Some(mut comparison) = extents::compare(object.as_fd(), file) else { return Ok(None) };
    let Ok(mut values) = Reader::new(DiskFile(values), older.size) else { return Ok(None) };
    let before = reading.begin()?;
    let mut hashing = Hashing::new(objects, size);
    let (mut from, mut is_all_same) = (0, older.size == size);
    while from < size {
        let until = from.saturating_add(GROUP_BYTES).min(size);
        let Ok(value) = values.next_value() else { return Ok(None) };
        // A group that was the last and is not any more has another value, even with the same bytes.
        let is_same_length = until == from.saturating_add(GROUP_BYTES).min(older.size);
        let same = value.filter(|_| is_same_length && comparison.is_same(from, until));
        match same {
            Some(value) if !hashing.reuse(value, until.saturating_sub(from)) => return Ok(None),
            Some(_) => reading.may_go_on()?,
            None => {
                is_all_same = false;
                reading.stretch(from, until, &mut |piece| hashing.update(piece))?;
            }
        }
        from = until;
    }
    reading.end(&before)?;
    let proven = matches!(values.finish(), Ok(Some(id)) if id == older.id);
    let Some((id, outboard)) = hashing.finish().filter(|_| proven) else { return Ok(None) };
    let is_shared = is_all_same && id == older.id;
    Ok(Some(Named { id, size, read: reading.read, outboard, is_whole_read: false, is_shared }))
}

/// A content that is hashed by groups while its outboard is written.
struct Hashing {
    hasher: GroupHasher,
    sheet: Sheet,
}

impl Hashing {
    fn new(objects: &Objects, size: u64) -> Self {
        let sheet = objects.nameless().ok().map(|file| Writer::new(DiskFile(file.into()), size));
        Self { hasher: GroupHasher::default(), sheet: Sheet(sheet) }
    }

    fn update(&mut self, piece: &[u8]) {
        let Self { hasher, sheet } = self;
        hasher.update(piece, &mut |value| sheet.push(value));
    }

    fn reuse(&mut self, value: Value, bytes: u64) -> bool {
        let Self { hasher, sheet } = self;
        hasher.reuse(value, bytes, &mut |value| sheet.push(value))
    }

    fn finish(self) -> Option<(ObjectId, Option<OwnedFd>)> {
        let Self { hasher, mut sheet } = self;
        let id = hasher.finish(&mut |value| sheet.push(value))?;
        let written = sheet.0.and_then(|writer| writer.finish().ok());
        Some((id, written.map(|DiskFile(file)| file.into())))
    }
}

/// An outboard as it is written. Nothing depends on it: where it cannot be written, there is none, and the next version
/// of the file is hashed whole.
struct Sheet(Option<Writer<DiskFile>>);

impl Sheet {
    fn push(&mut self, value: Value) {
        if self.0.as_mut().is_some_and(|writer| writer.push(value).is_err()) {
            self.0 = None;
        }
    }
}
