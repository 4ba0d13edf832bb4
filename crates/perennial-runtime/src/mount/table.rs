//! The table of mounts, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Directory inside the mounted file system that is shown.
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// Name of the file system, such as `overlay`.
    pub fs_type: String,
    /// What is mounted, as the one who mounted it said.
    pub source: OsString,
    /// Options of the mount, such as `ro,relatime`.
    pub mount_options: String,
    /// Options of the file system.
    pub super_options: OsString,
}

/// Tells whether something is mounted at exactly `target`.
///
/// # Errors
/// If the table cannot be read.
pub fn is_mounted(target: &Path) -> io::Result<bool> {
    let target = std::fs::canonicalize(target.parent().unwrap_or(target))
        .map(|parent| target.file_name().map_or(parent.clone(), |name| parent.join(name)));
    match target {
        Ok(target) => Ok(read_table()?.iter().any(|entry| entry.target == target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the mounts at or below `directory`, in the order they were made.
///
/// # Errors
/// If the table cannot be read.
pub fn mounts_under(directory: &Path) -> io::Result<Vec<MountEntry>> {
    let directory = match std::fs::canonicalize(directory) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(read_table()?.into_iter().filter(|entry| entry.target.starts_with(&directory)).collect())
}

fn read_table() -> io::Result<Vec<MountEntry>> {
    Ok(parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses the text of a `mountinfo` file; lines of an unknown shape are left out.
#[must_use]
pub fn parse_mountinfo(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = path_of(fields.nth(3)?);
    let target = path_of(fields.next()?);
    let mount_options = String::from_utf8_lossy(fields.next()?).into_owned();
    // Any number of optional fields, then a single dash.
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = OsString::from_vec(unescape(fields.next()?));
    let super_options = OsString::from_vec(unescape(fields.next()?));
    Some(MountEntry { root, target, fs_type, source, mount_options, super_options })
}

fn path_of(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Undoes the octal escapes of space, tab, newline, backslash and others (`\040`).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'\\').then(|| tail.get(..3).and_then(octal)).flatten();
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

impl MountEntry {
    /// Tells whether an option of the file system is set, such as `rw` or `memory`.
    #[must_use]
    pub fn has_super_option(&self, option: &str) -> bool {
        self.super_options.as_bytes().split(|byte| *byte == b',').any(|set| set == option.as_bytes())
    }
}
