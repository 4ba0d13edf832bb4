//! What a process that will wait for a long time gives back first.
//!
//! Starting a run walks through a large part of the program, and the kernel counts each page of it as the process' own
//! for as long as it lives. None of it is needed for waiting: pages of code come back, from the page cache, as they are used.

use rustix::mm::{Advice, madvise};
use std::ffi::c_void;

/// Lets go of this process' pages of code, and returns the bytes of address space that were let go.
///
/// Only mappings that can be executed and not written are touched: they are never changed after they were mapped, so what
/// is read again is what was there (`madvise(2)`, `MADV_DONTNEED`). A failure costs nothing but memory, so there is none.
#[must_use]
pub fn release_code() -> usize {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return 0 };
    maps.lines().filter_map(code).filter(|(start, length)| release(*start, *length)).map(|(_, length)| length).sum()
}

/// Returns start and length of the mapping of a line of `/proc/self/maps`, if it is code of a file.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let is_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (permissions == "r-xp" && is_file).then_some((start, end.checked_sub(start)?))
}

fn release(start: usize, length: usize) -> bool {
    let start = std::ptr::with_exposed_provenance_mut::<c_void>(start);
    // SAFETY: the range is a mapping of this process that can be read and executed and never written: its pages are
    // those of its file, and a page that is needed again is read from there.
    #[expect(unsafe_code, reason = "rustix marks every madvise unsafe because of writable memory")]
    let done = unsafe { madvise(start, length, Advice::LinuxDontNeed) };
    done.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go() {
        let of = |line| code(line);
        assert_eq!(of("55d0-55e0 r-xp 00001000 fe:00 12  /usr/bin/x"), Some((0x55d0, 0x10)));
        assert_eq!(of("55d0-55e0 r--p 00001000 fe:00 12  /usr/bin/x"), None);
        assert_eq!(of("55d0-55e0 rwxp 00001000 fe:00 12  /usr/bin/x"), None);
        assert_eq!(of("7ffe-7fff r-xp 00000000 00:00 0  [vdso]"), None);
        assert_eq!(of("7ffe-7fff r-xp 00000000 00:00 0"), None);
        assert_eq!(of("x-7fff r-xp 00000000 00:00 0 /a"), None);
    }

    #[test]
    fn code_that_was_let_go_still_runs() {
        assert!(release_code() > 0);
        assert_eq!("12".parse::<u32>(), Ok(12));
    }
}
