//! The table of objects at the end of a manifest, read without the rest.

use super::super::io::{ReadAt, fill_at};
use super::super::object::{OBJECT_ID_BYTES, ObjectId};
use super::read::check_header;
use super::{Counts, HEADER_BYTES, Malformed, ROW_BYTES, ReadError, TRAILER_BYTES, TRAILER_MAGIC, counts_of};
use alloc::vec;
use alloc::vec::Vec;

/// Rows read at once while iterating.
const ROWS: usize = 512;

/// Which objects a manifest names. The checksum is not verified: whoever must be sure reads the manifest once.
#[derive(Debug)]
pub struct ObjectTable<R> {
    bytes: R,
    offset: u64,
    counts: Counts,
}

impl<R: ReadAt> ObjectTable<R> {
    /// Reads header and trailer.
    ///
    /// # Errors
    /// [`ReadError`] where this is no manifest that this release understands.
    pub fn open(bytes: R) -> Result<Self, ReadError<R::Error>> {
        let mut header = [[0_u8; 4]; HEADER_BYTES / 4];
        let mut trailer = [0_u8; TRAILER_BYTES];
        let size = bytes.size().map_err(ReadError::Source)?;
        let start = size.checked_sub(TRAILER_BYTES as u64).ok_or(Malformed::Truncated)?;
        exactly(&bytes, 0, header.as_flattened_mut())?;
        check_header(header)?;
        exactly(&bytes, start, &mut trailer)?;
        let (counts, offset) = parse_trailer(&trailer).ok_or(Malformed::Trailer)?;
        let length = counts.objects.checked_mul(ROW_BYTES as u64);
        if length.and_then(|length| length.checked_add(offset)) != Some(start) {
            return Err(Malformed::Trailer.into());
        }
        Ok(Self { bytes, offset, counts })
    }

    /// Returns what the tree holds.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the size of an object, in bytes, where the manifest names it.
    ///
    /// # Errors
    /// [`ReadError::Source`] where the table cannot be read.
    pub fn size_of(&self, id: &ObjectId) -> Result<Option<u64>, ReadError<R::Error>> {
        let (mut low, mut high) = (0, self.counts.objects);
        while low < high {
            let middle = low.midpoint(high);
            let mut row = [0_u8; ROW_BYTES];
            exactly(&self.bytes, self.row_offset(middle), &mut row)?;
            let (found, size) = parse_row(&row).ok_or(Malformed::Table)?;
            match found.cmp(id) {
                core::cmp::Ordering::Less => low = middle.saturating_add(1),
                core::cmp::Ordering::Greater => high = middle,
                core::cmp::Ordering::Equal => return Ok(Some(size)),
            }
        }
        Ok(None)
    }

    /// Returns whether the manifest names an object.
    ///
    /// # Errors
    /// [`ReadError::Source`] where the table cannot be read.
    pub fn contains(&self, id: &ObjectId) -> Result<bool, ReadError<R::Error>> {
        Ok(self.size_of(id)?.is_some())
    }

    /// Returns the objects and their sizes in bytes, sorted, each once.
    pub const fn iter(&self) -> Objects<'_, R> {
        Objects { table: self, next: 0, rows: Vec::new(), at: 0, before: None }
    }

    fn row_offset(&self, row: u64) -> u64 {
        self.offset.saturating_add(row.saturating_mul(ROW_BYTES as u64))
    }
}

impl<'table, R: ReadAt> IntoIterator for &'table ObjectTable<R> {
    type Item = Result<(ObjectId, u64), ReadError<R::Error>>;
    type IntoIter = Objects<'table, R>;
    fn into_iter(self) -> Objects<'table, R> {
        self.iter()
    }
}

/// Objects of a table, in order; ends after an error.
#[derive(Debug)]
pub struct Objects<'table, R> {
    table: &'table ObjectTable<R>,
    /// The row that is read next.
    next: u64,
    rows: Vec<u8>,
    /// How much of `rows` was yielded.
    at: usize,
    before: Option<ObjectId>,
}

impl<R: ReadAt> Objects<'_, R> {
    fn row(&mut self) -> Result<Option<(ObjectId, u64)>, ReadError<R::Error>> {
        if self.at == self.rows.len() {
            let left = self.table.counts.objects.saturating_sub(self.next);
            let count = usize::try_from(left).unwrap_or(ROWS).min(ROWS);
            if count == 0 {
                return Ok(None);
            }
            self.rows = vec![0; count.saturating_mul(ROW_BYTES)];
            exactly(&self.table.bytes, self.table.row_offset(self.next), &mut self.rows)?;
            (self.at, self.next) = (0, self.next.saturating_add(count as u64));
        }
        let end = self.at.saturating_add(ROW_BYTES);
        let row = self.rows.get(self.at..end).and_then(parse_row).ok_or(Malformed::Table)?;
        self.at = end;
        if self.before.is_some_and(|before| before >= row.0) {
            return Err(Malformed::Table.into());
        }
        self.before = Some(row.0);
        Ok(Some(row))
    }
}

impl<R: ReadAt> Iterator for Objects<'_, R> {
    type Item = Result<(ObjectId, u64), ReadError<R::Error>>;
    fn next(&mut self) -> Option<Self::Item> {
        let row = self.row();
        if row.is_err() {
            (self.next, self.at) = (self.table.counts.objects, self.rows.len());
        }
        row.transpose()
    }
}

fn exactly<R: ReadAt>(bytes: &R, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError<R::Error>> {
    let filled = fill_at(bytes, offset, buffer).map_err(ReadError::Source)?;
    if filled == buffer.len() { Ok(()) } else { Err(Malformed::Truncated.into()) }
}

fn parse_row(row: &[u8]) -> Option<(ObjectId, u64)> {
    let (id, size) = row.split_first_chunk::<OBJECT_ID_BYTES>()?;
    Some((ObjectId::new(*id), u64::from_le_bytes(*size.first_chunk()?)))
}

fn parse_trailer(trailer: &[u8]) -> Option<(Counts, u64)> {
    let mut rest = trailer.strip_prefix(TRAILER_MAGIC.as_slice())?;
    let mut numbers = [0_u64; 7];
    for number in &mut numbers {
        let (bytes, after) = rest.split_first_chunk()?;
        *number = u64::from_le_bytes(*bytes);
        rest = after;
    }
    Some(counts_of(numbers))
}
