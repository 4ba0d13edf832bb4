//! Maps of sparse files: old GNU, and PAX 0.0, 0.1 and 1.0.

use super::header::push_extents;
use super::pax::decimal;
use super::{BLOCK, Extent};
use std::io::{self, Read};

/// Runs of data in one file: a map of this length takes 16 MiB of memory.
pub(super) const EXTENTS_MAX: usize = 1 << 20;
/// Longest line of a 1.0 map: a 64-bit number and its newline.
const LINE_BYTES_MAX: usize = 21;

/// Adds an extension block of an old GNU map; returns whether another follows.
pub(super) fn extend(block: &[u8; BLOCK], extents: &mut Vec<Extent>) -> Option<bool> {
    push_extents(block.get(..504)?, extents)?;
    Some(block.get(504).is_some_and(|byte| *byte != 0))
}

/// Makes extents of offset, length, offset, length, …
pub(super) fn pairs(numbers: &[u64]) -> Option<Vec<Extent>> {
    if numbers.len() > 2 * EXTENTS_MAX || !numbers.len().is_multiple_of(2) {
        return None;
    }
    let extent = |pair: &[u64]| Some(Extent { offset: *pair.first()?, length: *pair.get(1)? });
    numbers.chunks_exact(2).map(extent).collect()
}

/// Reads the map in front of the data of a 1.0 sparse file: a count and that many pairs, each number on a line of its
/// own, filled up to whole blocks. Returns it and its length in the archive; `None` where it is damaged.
pub(super) fn read_map_1(input: &mut impl Read) -> io::Result<Option<(Vec<Extent>, u64)>> {
    let mut numbers: Vec<u64> = Vec::new();
    let mut wanted: Option<usize> = None;
    let mut line: Vec<u8> = Vec::new();
    let mut bytes: u64 = 0;
    loop {
        let mut block = [0_u8; BLOCK];
        if let Err(error) = input.read_exact(&mut block) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
        }
        bytes += 512;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                if line.len() > LINE_BYTES_MAX {
                    return Ok(None);
                }
                continue;
            }
            let Some(number) = decimal(&line) else {
                return Ok(None);
            };
            line.clear();
            let wanted = match wanted {
                Some(wanted) => {
                    numbers.push(number);
                    wanted
                }
                None => match usize::try_from(number) {
                    Ok(count) if count <= EXTENTS_MAX => *wanted.insert(2 * count),
                    Ok(_) | Err(_) => return Ok(None),
                },
            };
            if numbers.len() == wanted {
                return Ok(pairs(&numbers).map(|extents| (extents, bytes)));
            }
        }
    }
}

/// Returns whether extents rise, do not overlap, end within the file and take up exactly the stored bytes.
pub(super) fn is_valid(extents: &[Extent], size: u64, stored: u64) -> bool {
    let mut end: u64 = 0;
    let mut sum: u64 = 0;
    for extent in extents {
        if extent.offset < end {
            return false;
        }
        let (Some(next), Some(total)) = (extent.offset.checked_add(extent.length), sum.checked_add(extent.length))
        else {
            return false;
        };
        end = next;
        sum = total;
    }
    end <= size && sum == stored
}
