//! Percent-encoding and the parameters of a request.

use alloc::string::String;
use alloc::vec::Vec;

/// The parameters of a request, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what stands after the question mark; a parameter that is not UTF-8 is left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(key, Plus::IsSpace)?, decode(value, Plus::IsSpace)?))
        });
        Self(pairs.collect())
    }

    /// Returns the first value of a parameter.
    #[must_use]
    pub fn get<'q>(&'q self, key: &str) -> Option<&'q str> {
        self.all(key).next()
    }

    /// Returns every value of a parameter.
    pub fn all<'q, 'k>(&'q self, key: &'k str) -> impl Iterator<Item = &'q str> + use<'q, 'k> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

/// What `+` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plus {
    /// A space, as in forms; but see [`decode`].
    IsSpace,
    /// Itself, as in paths.
    IsPlus,
}

/// Undoes percent-encoding; nothing where an escape is malformed or the bytes are not UTF-8.
///
/// Media types hold a `+` (`application/vnd.oci.image.index.v1+json`), and clients forget to encode it. A space can be
/// in no value that the registry takes but an account's name, so a `+` between two letters or digits stays one.
#[must_use]
pub fn decode(text: &str, plus: Plus) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0_usize;
    while let Some(byte) = bytes.get(at) {
        let mut step = 1;
        match byte {
            b'%' => {
                let hex = text.get(at.checked_add(1)?..at.checked_add(3)?)?;
                out.push(hex.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(hex, 16).ok())??);
                step = 3;
            }
            b'+' if plus == Plus::IsSpace && !is_inside_word(bytes, at) => out.push(b' '),
            _ => out.push(*byte),
        }
        at = at.checked_add(step)?;
    }
    String::from_utf8(out).ok()
}

fn is_inside_word(bytes: &[u8], at: usize) -> bool {
    let is_word = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    is_word(at.checked_sub(1)) && is_word(at.checked_add(1))
}

/// Encodes a value for a parameter.
#[must_use]
pub fn encode(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(text.len());
    let digit = |nibble: u8| char::from(HEX.get(usize::from(nibble)).copied().unwrap_or(b'0'));
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'/') {
            out.push(char::from(byte));
        } else {
            out.extend(['%', digit(byte >> 4), digit(byte & 0xf)]);
        }
    }
    out
}
