//! One 512-byte header block and its fields.

use super::sparse::EXTENTS_MAX;
use super::{BLOCK, Extent};

/// The family a header belongs to; it decides what the last 167 bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header whose sum is right.
pub(super) struct Header {
    block: [u8; BLOCK],
    layout: Layout,
}

impl Header {
    pub(super) fn parse(block: [u8; BLOCK]) -> Option<Self> {
        let stated = number(block.get(148..156)?)?;
        let mut unsigned: u64 = 0;
        let mut signed: i64 = 0;
        for (at, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += u64::from(byte);
            // Some old writers summed signed characters.
            signed += i64::from(i8::from_ne_bytes([byte]));
        }
        if stated != unsigned && i64::try_from(stated) != Ok(signed) {
            return None;
        }
        let layout = match block.get(257..265)? {
            b"ustar  \0" => Layout::Gnu,
            magic if magic.starts_with(b"ustar\0") && block.get(508..512)? == b"tar\0" => Layout::Star,
            magic if magic.starts_with(b"ustar\0") => Layout::Ustar,
            _ => Layout::V7,
        };
        Some(Self { block, layout })
    }

    fn field(&self, from: usize, length: usize) -> &[u8] {
        self.block.get(from..from + length).unwrap_or_default()
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn flag(&self) -> u8 {
        self.block.get(156).copied().unwrap_or(0)
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = match self.layout {
            Layout::Ustar => text(self.field(345, 155)),
            Layout::Star => text(self.field(345, 131)),
            Layout::V7 | Layout::Gnu => &[],
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(super) fn mode(&self) -> Option<u32> {
        number(self.field(100, 8)).map(|mode| u32::try_from(mode & 0o7777).unwrap_or(0))
    }

    pub(super) fn uid(&self) -> Option<u64> {
        number(self.field(108, 8))
    }

    pub(super) fn gid(&self) -> Option<u64> {
        number(self.field(116, 8))
    }

    pub(super) fn size(&self) -> Option<u64> {
        number(self.field(124, 12))
    }

    pub(super) fn mtime(&self) -> Option<i64> {
        signed_number(self.field(136, 12))
    }

    /// Returns major and minor number.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let part = |from| number(self.field(from, 8)).and_then(|value| u32::try_from(value).ok());
        match self.layout {
            Layout::V7 => None,
            Layout::Ustar | Layout::Star | Layout::Gnu => Some((part(329)?, part(337)?)),
        }
    }

    /// Returns the first entries of an old GNU sparse map, and whether more follow.
    pub(super) fn sparse(&self) -> Option<(Vec<Extent>, bool)> {
        let mut extents = Vec::new();
        push_extents(self.field(386, 96), &mut extents)?;
        Some((extents, self.field(482, 1) != [0]))
    }

    pub(super) fn real_size(&self) -> Option<u64> {
        number(self.field(483, 12))
    }
}

/// Adds the used slots of an old GNU sparse map; a slot is an offset and a length of 12 bytes each.
pub(super) fn push_extents(slots: &[u8], extents: &mut Vec<Extent>) -> Option<()> {
    for slot in slots.chunks_exact(24) {
        let (offset, length) = slot.split_at_checked(12)?;
        if offset.first() == Some(&0) || length.first() == Some(&0) {
            break;
        }
        if extents.len() >= EXTENTS_MAX {
            return None;
        }
        extents.push(Extent { offset: number(offset)?, length: number(length)? });
    }
    Some(())
}

/// Returns the bytes before the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Reads a number that is not negative.
pub(super) fn number(field: &[u8]) -> Option<u64> {
    signed_number(field).and_then(|value| u64::try_from(value).ok())
}

/// Reads octal digits, or GNU's base 256 where the first bit is set. An empty field is 0.
fn signed_number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return base_256(field);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at_checked(end)?;
    if !rest.iter().all(|byte| matches!(byte, 0 | b' ')) && !rest.starts_with(&[0]) {
        return None;
    }
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Reads a big-endian two's complement number whose first bit is a mark and whose second bit is the sign.
fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let is_negative = first & 0x40 != 0;
    let first = if is_negative { first | 0x80 } else { first & 0x7f };
    let mut value = i128::from(i8::from_ne_bytes([first]));
    for byte in rest {
        value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
    }
    i64::try_from(value).ok()
}
