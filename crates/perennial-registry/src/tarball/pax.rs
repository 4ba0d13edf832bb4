//! PAX extended headers: records `LENGTH KEY=VALUE\n`, whose values may hold any byte.

use super::sparse::{self, EXTENTS_MAX};
use super::{Extent, Stamp, Xattrs};

/// The records of one extended header, in their order.
#[derive(Debug, Default)]
pub(super) struct Pax {
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

type Field<T> = Result<Option<T>, &'static str>;

impl Pax {
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ')?;
            let (digits, _) = bytes.split_at_checked(space)?;
            let length: usize = std::str::from_utf8(digits).ok()?.parse().ok()?;
            let (record, rest) = bytes.split_at_checked(length)?;
            let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = record.split_at_checked(equals)?;
            records.push((key.to_vec(), value.get(1..)?.to_vec()));
            bytes = rest;
        }
        Some(Self { records })
    }

    /// Returns the last value of a key; an empty one means "as if not given" (POSIX).
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let (_, value) = self.records.iter().rev().find(|(name, _)| name == key)?;
        Some(value.as_slice()).filter(|value| !value.is_empty())
    }

    fn number(&self, key: &[u8], field: &'static str) -> Field<u64> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => decimal(value).map(Some).ok_or(field),
        }
    }

    pub(super) fn name(&self) -> Option<&[u8]> {
        self.get(b"GNU.sparse.name").or_else(|| self.get(b"path"))
    }

    pub(super) fn link(&self) -> Option<&[u8]> {
        self.get(b"linkpath")
    }

    pub(super) fn size(&self) -> Field<u64> {
        self.number(b"size", "size")
    }

    pub(super) fn uid(&self) -> Field<u64> {
        self.number(b"uid", "owner")
    }

    pub(super) fn gid(&self) -> Field<u64> {
        self.number(b"gid", "group")
    }

    pub(super) fn mtime(&self) -> Field<Stamp> {
        self.get(b"mtime").map(|value| stamp(value).ok_or("time")).transpose()
    }

    pub(super) fn atime(&self) -> Field<Stamp> {
        self.get(b"atime").map(|value| stamp(value).ok_or("access time")).transpose()
    }

    /// Returns extended attributes; a later record of the same name replaces an earlier one.
    pub(super) fn xattrs(&self) -> Result<Xattrs, &'static str> {
        const FIELD: &str = "extended attribute";
        let mut xattrs: Xattrs = Vec::new();
        for (key, value) in &self.records {
            let (name, value) = if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                (name.to_vec(), value.clone())
            } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                (percent_decoded(name).ok_or(FIELD)?, base64_decoded(value).ok_or(FIELD)?)
            } else {
                continue;
            };
            if name.is_empty() || name.len() > 255 || name.contains(&0) {
                return Err(FIELD);
            }
            xattrs.retain(|(known, _)| *known != name);
            xattrs.push((name, value));
        }
        Ok(xattrs)
    }

    pub(super) fn has_acl_text(&self) -> bool {
        [b"SCHILY.acl.access".as_slice(), b"SCHILY.acl.default"].iter().any(|key| self.get(key).is_some())
    }

    pub(super) fn is_sparse_1(&self) -> bool {
        self.get(b"GNU.sparse.major") == Some(b"1") && self.get(b"GNU.sparse.minor") == Some(b"0")
    }

    pub(super) fn real_size(&self) -> Option<u64> {
        decimal(self.get(b"GNU.sparse.realsize").or_else(|| self.get(b"GNU.sparse.size"))?)
    }

    /// Returns the map of the sparse formats 0.1 (`GNU.sparse.map`) and 0.0 (repeated records).
    pub(super) fn sparse_0(&self) -> Result<Option<Vec<Extent>>, ()> {
        if self.get(b"GNU.sparse.size").is_none() {
            return Ok(None);
        }
        let mut numbers: Vec<&[u8]> = Vec::new();
        if let Some(map) = self.get(b"GNU.sparse.map") {
            numbers.extend(map.split(|byte| *byte == b',').take(2 * EXTENTS_MAX + 1));
        } else {
            let is_map = |key: &[u8]| key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes";
            numbers.extend(self.records.iter().filter(|(key, _)| is_map(key)).map(|(_, value)| value.as_slice()));
        }
        let numbers: Option<Vec<u64>> = numbers.into_iter().map(decimal).collect();
        sparse::pairs(&numbers.ok_or(())?).map(Some).ok_or(())
    }
}

/// Reads decimal digits and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads `[-]SECONDS[.FRACTION]`; digits after the ninth are dropped.
fn stamp(text: &[u8]) -> Option<Stamp> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos: u32 = 0;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    for place in 0..9 {
        let digit = fraction.get(place).map_or(0, |digit| u32::from(digit - b'0'));
        nanos = nanos * 10 + digit;
    }
    match (is_negative, nanos) {
        (false, _) => Some(Stamp { seconds, nanos }),
        (true, 0) => Some(Stamp { seconds: -seconds, nanos: 0 }),
        (true, _) => Some(Stamp { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos }),
    }
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'%' {
            let pair = [*bytes.next()?, *bytes.next()?];
            decoded.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
        } else {
            decoded.push(*byte);
        }
    }
    Some(decoded)
}

/// Decodes base 64 with or without its padding, as libarchive writes it.
pub(crate) fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits: u32 = 0;
    let mut count = 0;
    for byte in text.iter().filter(|byte| !matches!(byte, b'=' | b'\n')) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(decoded)
}
