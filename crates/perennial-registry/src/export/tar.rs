//! A writer of tar archives as image layers have them: ustar headers, and PAX records for what does not fit in.
//!
//! The same entries give the same bytes. Values are written exactly: names and attributes are bytes, times have
//! nanoseconds, numbers have no bound. Sparse files are not written: the image specification advises against them.
//!
//! References: POSIX pax(1) "pax Interchange Format"; image-spec, `layer.md`.

use std::io::{self, Write};

const BLOCK: usize = 512;
const NAME_BYTES: usize = 100;
/// Largest number in an octal field of 8 and of 12 bytes.
const OCTAL_7_MAX: u64 = 0o777_7777;
const OCTAL_11_MAX: u64 = 0o777_7777_7777;
/// Longest block of PAX records that readers take: as Go's `archive/tar` (`maxSpecialFileSize`).
const RECORDS_BYTES_MAX: usize = 1 << 20;
/// What the records other than attributes may take of it: two paths and some numbers.
const OTHER_RECORDS_BYTES: usize = 16 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A directory.
    Directory,
    /// A file of so many bytes, which follow by [`TarWriter::data`].
    File {
        /// Its length.
        size: u64,
    },
    /// A symbolic link to this target.
    Symlink(&'a [u8]),
    /// A further name of the file of this earlier name.
    Hardlink(&'a [u8]),
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One entry, without its data.
#[derive(Debug, Clone, Copy)]
pub struct TarEntry<'a> {
    /// Path relative to the root, without a slash at its ends; empty for the root itself.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind<'a>,
    /// Permissions with setuid, setgid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970; nanoseconds count forward.
    pub mtime: (i64, u32),
    /// Extended attributes, whose names have no `=`; they fit where [`attributes_fit`] says so.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Returns whether readers take so many attributes of one entry.
#[must_use]
pub fn attributes_fit(xattrs: &[(Vec<u8>, Vec<u8>)]) -> bool {
    let record = |(name, value): &(Vec<u8>, Vec<u8>)| name.len().saturating_add(value.len()).saturating_add(32);
    let bytes = xattrs.iter().map(record).fold(0_usize, usize::saturating_add);
    bytes <= RECORDS_BYTES_MAX.saturating_sub(OTHER_RECORDS_BYTES)
}

/// Writes an archive entry by entry.
pub struct TarWriter<'a> {
    output: &'a mut dyn Write,
    data_left: u64,
    padding: usize,
}

impl std::fmt::Debug for TarWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarWriter").field("data_left", &self.data_left).finish_non_exhaustive()
    }
}

impl<'a> TarWriter<'a> {
    pub(crate) fn new(output: &'a mut dyn Write) -> Self {
        Self { output, data_left: 0, padding: 0 }
    }

    /// Writes the headers of an entry. The data of a file must follow before the next one.
    ///
    /// # Errors
    /// When the output fails, or data of the entry before is missing.
    pub fn entry(&mut self, entry: &TarEntry<'_>) -> io::Result<()> {
        self.refuse_missing_data()?;
        let name = name_of(entry);
        let (link, size) = match entry.kind {
            EntryKind::Symlink(target) | EntryKind::Hardlink(target) => (target, 0),
            EntryKind::File { size } => (&[][..], size),
            EntryKind::Directory | EntryKind::Char { .. } | EntryKind::Block { .. } | EntryKind::Fifo => (&[][..], 0),
        };
        let records = records_of(entry, &name, link, size);
        if !records.is_empty() {
            let described =
                Header { name: b"PaxHeaders/entry", link: b"", flag: b'x', mode: 0o644, ..Header::default() };
            let length = u64::try_from(records.len()).map_err(io::Error::other)?;
            self.output.write_all(&Header { size: length, ..described }.block())?;
            self.output.write_all(&records)?;
            self.pad(padding_of(length))?;
        }
        self.output.write_all(&header_of(entry, &name, link, size).block())?;
        (self.data_left, self.padding) = (size, padding_of(size));
        if size == 0 {
            self.padding = 0;
        }
        Ok(())
    }

    /// Writes data of the present file.
    ///
    /// # Errors
    /// When the output fails, or it is more than the entry said.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
        self.data_left = self
            .data_left
            .checked_sub(length)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "more data than the entry has"))?;
        self.output.write_all(bytes)?;
        if self.data_left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.pad(padding)?;
        }
        Ok(())
    }

    /// Writes the end of the archive.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.refuse_missing_data()?;
        self.pad(2 * BLOCK)
    }

    fn refuse_missing_data(&self) -> io::Result<()> {
        if self.data_left > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "less data than the entry has"));
        }
        Ok(())
    }

    fn pad(&mut self, bytes: usize) -> io::Result<()> {
        const ZEROS: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
        self.output.write_all(ZEROS.get(..bytes).unwrap_or_default())
    }
}

/// Returns the bytes that fill the last block of so much data.
pub(crate) fn padding_of(bytes: u64) -> usize {
    let over = usize::try_from(bytes % 512).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}

/// Directories end with a slash; the root is `./`.
fn name_of(entry: &TarEntry<'_>) -> Vec<u8> {
    match (entry.path.is_empty(), entry.kind) {
        (true, _) => b"./".to_vec(),
        (false, EntryKind::Directory) => [entry.path, b"/"].concat(),
        (false, _) => entry.path.to_vec(),
    }
}

/// Returns the PAX records of what the header has no place for.
fn records_of(entry: &TarEntry<'_>, name: &[u8], link: &[u8], size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    let long =
        [(b"path".as_slice(), name), (b"linkpath", link)].into_iter().filter(|(_, text)| text.len() > NAME_BYTES);
    let long: Vec<_> = long.collect();
    if long.iter().any(|(_, text)| std::str::from_utf8(text).is_err()) {
        record(&mut records, b"hdrcharset", b"BINARY");
    }
    for (key, text) in long {
        record(&mut records, key, text);
    }
    if size > OCTAL_11_MAX {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    for (key, id) in [(b"uid".as_slice(), entry.uid), (b"gid", entry.gid)] {
        if u64::from(id) > OCTAL_7_MAX {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if entry.mtime.1 != 0 || octal_seconds(entry.mtime.0).is_none() {
        record(&mut records, b"mtime", seconds_text(entry.mtime).as_bytes());
    }
    for (name, value) in entry.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// Adds `LENGTH KEY=VALUE\n`, whose length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len().saturating_add(value.len()).saturating_add(3);
    let mut length = rest;
    while length != rest.saturating_add(length.to_string().len()) {
        length = rest.saturating_add(length.to_string().len());
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Returns `[-]SECONDS[.NANOSECONDS]`; before 1970 the whole number is negative.
fn seconds_text((seconds, nanos): (i64, u32)) -> String {
    match (seconds < 0, nanos) {
        (_, 0) => seconds.to_string(),
        (false, nanos) => format!("{seconds}.{nanos:09}"),
        (true, nanos) => {
            let whole = seconds.saturating_add(1).unsigned_abs();
            format!("-{whole}.{:09}", 1_000_000_000_u32.saturating_sub(nanos))
        }
    }
}

fn octal_seconds(seconds: i64) -> Option<u64> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds <= OCTAL_11_MAX)
}

/// Fields of a header block.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) seconds: u64,
    pub(crate) device: (u32, u32),
}

fn header_of<'a>(entry: &TarEntry<'_>, name: &'a [u8], link: &'a [u8], size: u64) -> Header<'a> {
    let (flag, device) = match entry.kind {
        EntryKind::File { .. } => (b'0', (0, 0)),
        EntryKind::Hardlink(_) => (b'1', (0, 0)),
        EntryKind::Symlink(_) => (b'2', (0, 0)),
        EntryKind::Char { major, minor } => (b'3', (major, minor)),
        EntryKind::Block { major, minor } => (b'4', (major, minor)),
        EntryKind::Directory => (b'5', (0, 0)),
        EntryKind::Fifo => (b'6', (0, 0)),
    };
    let id = |id: u32| if u64::from(id) > OCTAL_7_MAX { 0 } else { id };
    let size = if size > OCTAL_11_MAX { 0 } else { size };
    let seconds = octal_seconds(entry.mtime.0).unwrap_or(0);
    let (mode, uid, gid) = (entry.mode & 0o7777, id(entry.uid), id(entry.gid));
    Header { name, link, flag, mode, uid, gid, size, seconds, device }
}

impl Header<'_> {
    /// Returns the block with its sum.
    pub(crate) fn block(&self) -> [u8; BLOCK] {
        let mut block = [0_u8; BLOCK];
        put(&mut block, 0, self.name.get(..NAME_BYTES).unwrap_or(self.name));
        put(&mut block, 100, &octal(self.mode.into(), 7));
        put(&mut block, 108, &octal(self.uid.into(), 7));
        put(&mut block, 116, &octal(self.gid.into(), 7));
        if self.size > OCTAL_11_MAX {
            // Base 256, for blobs in an archive of ours; entries of layers say it in a record.
            put(&mut block, 124, &[0x80, 0, 0, 0]);
            put(&mut block, 128, &self.size.to_be_bytes());
        } else {
            put(&mut block, 124, &octal(self.size, 11));
        }
        put(&mut block, 136, &octal(self.seconds, 11));
        put(&mut block, 148, b"        ");
        put(&mut block, 156, &[self.flag]);
        put(&mut block, 157, self.link.get(..NAME_BYTES).unwrap_or(self.link));
        put(&mut block, 257, b"ustar\x0000");
        put(&mut block, 329, &octal(self.device.0.into(), 7));
        put(&mut block, 337, &octal(self.device.1.into(), 7));
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        put(&mut block, 148, &octal(sum, 6));
        put(&mut block, 154, b"\0 ");
        block
    }
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(field) = block.get_mut(at..at.saturating_add(bytes.len())) {
        field.copy_from_slice(bytes);
    }
}

fn octal(number: u64, digits: usize) -> Vec<u8> {
    format!("{number:0digits$o}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::{Kind, Member, Tar};
    use std::io::Read as _;

    fn written(entries: &[(TarEntry<'_>, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        let mut writer = TarWriter::new(&mut archive);
        for (entry, data) in entries {
            writer.entry(entry).unwrap();
            if !data.is_empty() {
                writer.data(data).unwrap();
            }
        }
        writer.finish().unwrap();
        archive
    }

    fn read(archive: &[u8]) -> Vec<(Member, Vec<u8>)> {
        let mut tar = Tar::new(archive);
        let mut members = Vec::new();
        while let Some(member) = tar.next_member().unwrap() {
            let mut data = Vec::new();
            tar.read_to_end(&mut data).unwrap();
            members.push((member, data));
        }
        members
    }

    fn plain<'a>(path: &'a [u8], kind: EntryKind<'a>) -> TarEntry<'a> {
        TarEntry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime: (1, 0), xattrs: &[] }
    }

    #[test]
    fn what_is_written_is_read_again_exactly() {
        let long = [b"d/".repeat(300).as_slice(), b"\xff\xfe name\n"].concat();
        let xattrs =
            vec![(b"security.capability".to_vec(), vec![1, 0, 0, 2, b'\n', 0]), (b"user.empty".to_vec(), Vec::new())];
        let file = TarEntry {
            mode: 0o6755,
            uid: 3_000_000_000,
            gid: 2_097_152,
            mtime: (-2, 250_000_000),
            xattrs: &xattrs,
            ..plain(&long, EntryKind::File { size: 513 })
        };
        let far = TarEntry { mtime: (i64::MAX / 4, 999_999_999), ..plain(b"", EntryKind::Directory) };
        let content = [7_u8; 513];
        let link = plain(b"link", EntryKind::Hardlink(&long));
        let soft = plain(b"soft", EntryKind::Symlink(&long));
        let device = plain(b"dev/x", EntryKind::Block { major: 4095, minor: 1_048_575 });
        let archive = written(&[(far, b""), (file, &content), (link, b""), (soft, b""), (device, b"")]);
        assert_eq!(archive.len() % BLOCK, 0);
        let members = read(&archive);
        let [root, file, link, soft, device] = members.try_into().unwrap();
        assert_eq!((root.0.name.as_slice(), root.0.kind), (b"./".as_slice(), Kind::Directory));
        assert_eq!((root.0.mtime.seconds, root.0.mtime.nanos), (i64::MAX / 4, 999_999_999));
        assert_eq!((file.0.name, file.1), (long.clone(), content.to_vec()));
        assert_eq!((file.0.mode, file.0.uid, file.0.gid), (0o6755, 3_000_000_000, 2_097_152));
        assert_eq!((file.0.mtime.seconds, file.0.mtime.nanos), (-2, 250_000_000));
        assert_eq!(file.0.xattrs, xattrs);
        assert_eq!((link.0.kind, link.0.link), (Kind::Hardlink, long.clone()));
        assert_eq!((soft.0.kind, soft.0.link), (Kind::Symlink, long));
        assert_eq!((device.0.kind, device.0.device), (Kind::Block, (4095, 1_048_575)));
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [0, 1, 5, 80, 85, 88, 89, 90, 91, 980, 985, 990, 9_980, 9_990] {
            let mut records = Vec::new();
            record(&mut records, b"key", &vec![b'v'; length]);
            let digits = records.iter().position(|byte| *byte == b' ').unwrap();
            let stated: usize = std::str::from_utf8(&records[..digits]).unwrap().parse().unwrap();
            assert_eq!(stated, records.len(), "value of {length} bytes");
        }
    }

    #[test]
    fn too_little_and_too_much_data_is_refused() {
        let mut archive = Vec::new();
        let mut writer = TarWriter::new(&mut archive);
        writer.entry(&plain(b"file", EntryKind::File { size: 2 })).unwrap();
        assert!(writer.data(b"abc").is_err());
        writer.data(b"a").unwrap();
        assert!(writer.entry(&plain(b"next", EntryKind::Fifo)).is_err());
        assert!(writer.finish().is_err());
    }
}
