//! An object's content, cut into chunks while it is read and hashed; holes are not read.

use super::hash_zeros;
use perennial_core::sealed::chunk::{CHUNK_BYTES_MAX, Cuts};
use perennial_core::sealed::object::ObjectId;
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// Bytes read at once.
const READ_BYTES: usize = 2 * CHUNK_BYTES_MAX;
/// Blocks of two versions that are compared, spread evenly over both.
const SAMPLES_MAX: u64 = 256;
/// Length of such a block, in bytes.
const SAMPLE_BYTES: u64 = 16 << 10;

/// A stretch of a content.
pub(super) enum Stretch<'a> {
    Chunk(&'a [u8]),
    Zeros(u64),
}

/// Hands the stretches of a file of `size` bytes to `sink` and returns the name of the content.
pub(super) fn cut<E: From<std::io::Error>>(
    file: &File,
    size: u64,
    cuts: &Cuts,
    sink: &mut dyn FnMut(Stretch<'_>) -> Result<(), E>,
) -> Result<ObjectId, E> {
    let mut hasher = blake3::Hasher::new();
    let mut at = 0_u64;
    while at < size {
        let data = next_data(file, at, size)?;
        if data.start > at {
            hash_zeros(&mut hasher, data.start.saturating_sub(at));
            sink(Stretch::Zeros(data.start.saturating_sub(at)))?;
        }
        at = data.end;
        cut_data(file, data, cuts, &mut |chunk| {
            hasher.update(chunk);
            let zeros = chunk.iter().all(|byte| *byte == 0);
            sink(if zeros { Stretch::Zeros(length(chunk)) } else { Stretch::Chunk(chunk) })
        })?;
    }
    Ok(ObjectId::new(*hasher.finalize().as_bytes()))
}

/// Returns the first stretch with data at or after `at`; an empty one at the end where only a hole follows.
fn next_data(file: &File, at: u64, size: u64) -> std::io::Result<Range<u64>> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.clamp(at, size),
        Err(rustix::io::Errno::NXIO) => size,
        Err(errno) => return Err(errno.into()),
    };
    if start == size {
        return Ok(size..size);
    }
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(start..end.clamp(start.saturating_add(1), size))
}

fn cut_data<E: From<std::io::Error>>(
    file: &File,
    data: Range<u64>,
    cuts: &Cuts,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut buffer = Vec::new();
    let mut start = 0_usize;
    let mut next = data.start;
    loop {
        let mut rest = buffer.get(start..).unwrap_or_default();
        if rest.len() < CHUNK_BYTES_MAX && next < data.end {
            buffer.drain(..start);
            start = 0;
            let old = buffer.len();
            let left = usize::try_from(data.end.saturating_sub(next)).unwrap_or(usize::MAX);
            buffer.resize(old.saturating_add(left.min(READ_BYTES)), 0);
            let room = buffer.get_mut(old..).unwrap_or_default();
            file.read_exact_at(room, next)?;
            next = next.saturating_add(length(room));
            rest = &buffer;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let end = cuts.first(rest).clamp(1, rest.len());
        sink(rest.get(..end).unwrap_or_default())?;
        start = start.saturating_add(end);
    }
}

/// Compares blocks at the same places of two contents: how many, and how many of them are equal.
pub(super) fn compare(one: &File, other: &File) -> std::io::Result<(u64, u64)> {
    let size = one.metadata()?.len().min(other.metadata()?.len());
    let blocks = size.div_ceil(SAMPLE_BYTES);
    let samples = blocks.min(SAMPLES_MAX);
    let mut equal = 0_u64;
    let mut buffers = [Vec::new(), Vec::new()];
    for sample in 0..samples {
        let place = u128::from(sample).saturating_mul(blocks.into()).checked_div(samples.into()).unwrap_or(0);
        let at = u64::try_from(place).unwrap_or(u64::MAX).saturating_mul(SAMPLE_BYTES);
        let bytes = usize::try_from(size.saturating_sub(at).min(SAMPLE_BYTES)).unwrap_or(0);
        for (file, buffer) in [one, other].into_iter().zip(&mut buffers) {
            buffer.resize(bytes, 0);
            file.read_exact_at(buffer, at)?;
        }
        let [one, other] = &buffers;
        equal = equal.saturating_add(u64::from(one == other));
    }
    Ok((samples, equal))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
