//! Amounts and volumes as people type them.

use crate::spec::Volume;
use alloc::borrow::ToOwned as _;
use alloc::string::String;

/// Why a text is not an amount or a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {rule}")]
pub struct ParseQuantityError {
    what: &'static str,
    text: String,
    rule: &'static str,
}

/// Smallest memory limit; below it no process can start (the engines refuse the same).
const MEMORY_BYTES_MIN: u64 = 6 * 1024 * 1024;
/// Smallest part of a processor: the kernel refuses a quota below 1 ms in the period of 100 ms.
const CPUS_MILLI_MIN: u64 = 10;
/// More processors than any machine has; keeps later sums far from overflow.
const CPUS_MILLI_MAX: u64 = 1_000_000_000;

/// Parses a limit on memory: a number of bytes as [`parse_bytes`] takes it.
///
/// # Errors
/// If it is not such a text, is too large for 64 bits, or is below 6 MiB.
pub fn parse_memory_bytes(text: &str) -> Result<u64, ParseQuantityError> {
    match bytes("memory limit", text)? {
        enough @ MEMORY_BYTES_MIN.. => Ok(enough),
        _ => {
            let rule = "at least 6m are needed to start a process";
            Err(ParseQuantityError { what: "memory limit", text: text.to_owned(), rule })
        }
    }
}

/// Parses a number of bytes with an optional unit `b`, `k`, `m`, `g`, `t` (powers of 1024), such as `10g`.
///
/// # Errors
/// If it is not such a text or is too large for 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, ParseQuantityError> {
    bytes("number of bytes", text)
}

fn bytes(what: &'static str, text: &str) -> Result<u64, ParseQuantityError> {
    const RULE: &str = "use a whole number with b, k, m, g or t, such as 512m";
    const TOO_LARGE: &str = "the number is too large";
    let fail = |rule| ParseQuantityError { what, text: text.to_owned(), rule };
    let lower = text.to_ascii_lowercase();
    let trimmed = match lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')) {
        Some(rest) if rest.ends_with(['k', 'm', 'g', 't']) => rest,
        Some(rest) if !lower.ends_with("ib") => rest,
        Some(_) | None => &lower,
    };
    let (digits, shift) = match trimmed.chars().last() {
        Some('k') => (trimmed.strip_suffix('k'), 10),
        Some('m') => (trimmed.strip_suffix('m'), 20),
        Some('g') => (trimmed.strip_suffix('g'), 30),
        Some('t') => (trimmed.strip_suffix('t'), 40),
        Some(_) | None => (Some(trimmed), 0),
    };
    let digits = digits.filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())).ok_or_else(|| fail(RULE))?;
    let number: u64 = digits.parse().map_err(|_| fail(TOO_LARGE))?;
    number.checked_mul(1_u64 << shift).ok_or_else(|| fail(TOO_LARGE))
}

/// Parses a number of processors such as `1.5` into thousandths.
///
/// # Errors
/// If it is not a decimal number with at most three digits after the point, or is below 0.01.
pub fn parse_cpus_milli(text: &str) -> Result<u64, ParseQuantityError> {
    const RULE: &str = "use a number of processors such as 2 or 1.5, with at most three digits after the point";
    let fail = |rule| ParseQuantityError { what: "processor limit", text: text.to_owned(), rule };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !is_digits(whole) || !is_digits(fraction) || fraction.len() > 3 {
        return Err(fail(RULE));
    }
    let whole: u64 = whole.parse().map_err(|_| fail(RULE))?;
    let mut thousandths = fraction.parse::<u64>().map_err(|_| fail(RULE))?;
    for _ in fraction.len()..3 {
        thousandths = thousandths.saturating_mul(10);
    }
    match whole.checked_mul(1000).and_then(|milli| milli.checked_add(thousandths)) {
        Some(milli @ CPUS_MILLI_MIN..=CPUS_MILLI_MAX) => Ok(milli),
        Some(_) | None => Err(fail("at least 0.01 and at most a million are possible")),
    }
}

/// Parses a span such as `30`, `30s`, `5m` or `1h` into seconds.
///
/// # Errors
/// If it is not such a text or is too large.
pub fn parse_duration_s(text: &str) -> Result<u32, ParseQuantityError> {
    const RULE: &str = "use a whole number with s, m or h, such as 30s";
    let fail = || ParseQuantityError { what: "duration", text: text.to_owned(), rule: RULE };
    let (digits, factor) = match text.chars().last() {
        Some('s') => (text.strip_suffix('s'), 1),
        Some('m') => (text.strip_suffix('m'), 60),
        Some('h') => (text.strip_suffix('h'), 3600),
        Some(_) | None => (Some(text), 1),
    };
    let digits = digits.filter(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())).ok_or_else(fail)?;
    digits.parse::<u32>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(fail)
}

/// Parses `SRC:DST`, `SRC:DST:ro` or `SRC:DST:rw`; both paths absolute, the target never the root itself.
///
/// # Errors
/// If it has another shape.
pub fn parse_volume(text: &str) -> Result<Volume, ParseQuantityError> {
    let fail = |rule| ParseQuantityError { what: "volume", text: text.to_owned(), rule };
    let mut parts = text.split(':');
    let (Some(source), Some(target), option, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(fail("use SOURCE:TARGET, with :ro to forbid writing"));
    };
    let read_only = match option {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(fail("the part after the second ':' is ro or rw")),
    };
    if !source.starts_with('/') || !target.starts_with('/') {
        return Err(fail("both paths must be absolute"));
    }
    if source.contains('\0') || target.contains('\0') {
        return Err(fail("a path cannot contain a NUL byte"));
    }
    if target.split('/').any(|part| part == "..") {
        return Err(fail("the target cannot contain '..'"));
    }
    if target.split('/').all(|part| part.is_empty() || part == ".") {
        return Err(fail("the target cannot be the root directory"));
    }
    Ok(Volume { source: source.to_owned(), target: target.to_owned(), read_only })
}
