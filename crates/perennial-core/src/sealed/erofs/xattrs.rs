//! Extended attributes: the first time in the inode, from the second time on shared.

use super::{METACOPY_AT, OPAQUE_AT, Reason};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Pairs of name and value that are remembered as candidates for sharing: a bound on memory (about 2 MiB). What comes
/// later is not shared.
const PAIRS_MAX: usize = 4096;
/// Longest shared attribute, in bytes: few bytes of an image then never stand for very many.
pub(super) const ENTRY_BYTES_MAX: u64 = 256;
/// Bytes of the head of an inode's attributes.
pub(super) const HEAD_BYTES: u64 = 12;
/// Most attributes of an inode that can be shared: the count has 8 bits.
const SHARED_MAX: usize = 255;
/// Most units of 4 bytes after the head: the count, which has 16 bits, counts the head as one.
const UNITS_MAX: u64 = 65534;

/// Name prefixes that end in a dot, and their numbers.
pub(super) const PREFIXES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
/// Names that have a number of their own.
pub(super) const WHOLE: [(u8, &[u8]); 2] = [(2, b"system.posix_acl_access"), (3, b"system.posix_acl_default")];

/// Returns the number of a name's prefix and the rest.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    let whole = WHOLE.iter().find(|(_, whole)| *whole == name).map(|(number, _)| (*number, b"".as_slice()));
    let prefixed = || PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)));
    whole.or_else(|| prefixed().filter(|(_, rest)| !rest.is_empty()))
}

/// Appends an attribute as it is stored.
pub(super) fn put_entry(out: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), Reason> {
    let (prefix, rest) = split(name).ok_or(Reason::XattrName)?;
    out.push(u8::try_from(rest.len()).map_err(|_| Reason::XattrName)?);
    out.push(prefix);
    out.extend_from_slice(&u16::try_from(value.len()).map_err(|_| Reason::XattrValue)?.to_le_bytes());
    out.extend_from_slice(rest);
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
    Ok(())
}

/// Where a shared attribute is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At this offset of the image.
    Fixed(u64),
    /// At this offset of the area at the end.
    Area(u64),
}

/// Attributes of one inode as they are stored.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    shared: Vec<Place>,
    inline: Vec<u8>,
}

impl Encoded {
    /// Returns how many bytes they take after the inode.
    pub(super) fn bytes(&self) -> u64 {
        if self.shared.is_empty() && self.inline.is_empty() {
            return 0;
        }
        let shared = (self.shared.len() as u64).saturating_mul(4);
        HEAD_BYTES.saturating_add(shared).saturating_add(self.inline.len() as u64)
    }

    /// Returns what the inode says of their length.
    pub(super) fn count(&self) -> Result<u16, Reason> {
        let bytes = self.bytes();
        let units = bytes.saturating_sub(HEAD_BYTES) / 4;
        match u16::try_from(units) {
            _ if bytes == 0 => Ok(0),
            Ok(count) if units <= UNITS_MAX => Ok(count.saturating_add(1)),
            Ok(_) | Err(_) => Err(Reason::Xattrs),
        }
    }

    /// Appends them; the area begins at this offset of the image.
    pub(super) fn put(&self, out: &mut Vec<u8>, area: u64) -> Result<(), Reason> {
        if self.bytes() == 0 {
            return Ok(());
        }
        out.extend_from_slice(&[0; 4]);
        out.push(u8::try_from(self.shared.len()).map_err(|_| Reason::Xattrs)?);
        out.extend_from_slice(&[0; 7]);
        for place in &self.shared {
            let offset = match place {
                Place::Fixed(offset) => *offset,
                Place::Area(offset) => area.saturating_add(*offset),
            };
            out.extend_from_slice(&u32::try_from(offset / 4).map_err(|_| Reason::Size)?.to_le_bytes());
        }
        out.extend_from_slice(&self.inline);
        Ok(())
    }

    /// Adds what marks a file whose content overlayfs takes from an object.
    pub(super) fn redirect(&mut self, to: &[u8]) -> Result<(), Reason> {
        self.shared.push(Place::Fixed(METACOPY_AT));
        put_entry(&mut self.inline, b"trusted.overlay.redirect", to)
    }

    /// Adds what marks a directory that hides what is below.
    pub(super) fn opaque(&mut self) {
        self.shared.push(Place::Fixed(OPAQUE_AT));
    }
}

/// Name and value.
type Pair = (Vec<u8>, Vec<u8>);

/// Attributes that came so far. Both passes see the same ones in the same order, and so share the same ones.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// Where a pair is in the area, if it came twice.
    seen: BTreeMap<Pair, Option<u64>>,
    /// Bytes of the area.
    area_bytes: u64,
}

impl Sharing {
    /// Returns how long the area is, in bytes.
    pub(super) const fn area_bytes(&self) -> u64 {
        self.area_bytes
    }

    /// Encodes the attributes of one inode.
    pub(super) fn encode(&mut self, xattrs: &[Pair]) -> Result<Encoded, Reason> {
        let mut encoded = Encoded::default();
        for pair in xattrs {
            let mut entry = Vec::new();
            put_entry(&mut entry, &pair.0, &pair.1)?;
            let place = self.place(pair, entry.len());
            match place {
                // One is left for overlayfs' own.
                Some(offset) if encoded.shared.len() < SHARED_MAX - 1 => encoded.shared.push(Place::Area(offset)),
                Some(_) | None => encoded.inline.extend_from_slice(&entry),
            }
        }
        Ok(encoded)
    }

    fn place(&mut self, pair: &Pair, entry_bytes: usize) -> Option<u64> {
        if entry_bytes as u64 > ENTRY_BYTES_MAX {
            return None;
        }
        if let Some(place) = self.seen.get_mut(pair) {
            let offset = *place.get_or_insert(self.area_bytes);
            if offset == self.area_bytes {
                self.area_bytes = self.area_bytes.saturating_add(entry_bytes as u64);
            }
            return Some(offset);
        }
        if self.seen.len() < PAIRS_MAX {
            self.seen.insert(pair.clone(), None);
        }
        None
    }

    /// Returns the area.
    pub(super) fn area(&self) -> Result<Vec<u8>, Reason> {
        let mut pairs: Vec<(u64, &Pair)> = self.seen.iter().filter_map(|(pair, at)| Some(((*at)?, pair))).collect();
        pairs.sort_unstable_by_key(|(offset, _)| *offset);
        let mut area = Vec::new();
        for (_, (name, value)) in pairs {
            put_entry(&mut area, name, value)?;
        }
        Ok(area)
    }
}
