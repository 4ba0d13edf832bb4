//! A reader of tar archives: v7, ustar, GNU, star and PAX, with every kind of sparse file.
//!
//! It promises bounded memory whatever the archive says, and values that are exactly those in the archive: extended
//! attributes are bytes (they may hold newlines), names are bytes, times have nanoseconds. It knows no file system.
//! Where readers are known to disagree it follows Go's `archive/tar`, which most images are written and read with.
//!
//! References: POSIX pax(1) "pax Interchange Format"; GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".

mod header;
mod pax;
mod sparse;

use header::{Header, Layout};
use pax::Pax;
pub(crate) use pax::base64_decoded;
use std::io::{self, Read};

/// Size of a tar block.
const BLOCK: usize = 512;
/// Longest name record or PAX header: as Go's `archive/tar` (`maxSpecialFileSize`).
const SPECIAL_BYTES_MAX: u64 = 1 << 20;
/// Headers that only describe the next entry; more in a row are an attack.
const SPECIALS_MAX: u32 = 32;

/// Seconds and nanoseconds since 1970; nanoseconds are below 10⁹ and count forward, also before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub(crate) seconds: i64,
    pub(crate) nanos: u32,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Char,
    Block,
    Fifo,
}

/// A run of data in a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Extended attributes: names and values, both any bytes.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One entry, without its data.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Stamp,
    pub(crate) atime: Option<Stamp>,
    /// Length of the file.
    pub(crate) size: u64,
    /// Where the data goes; `None` for a file stored whole.
    pub(crate) extents: Option<Vec<Extent>>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Xattrs,
    /// Whether it has access lists as text, which only star and GNU tar's `--acls` write, besides those in `xattrs`.
    pub(crate) has_acl_text: bool,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The bytes could not be read or unpacked.
    #[error("archive cannot be read")]
    Io(#[from] io::Error),
    /// The archive ends inside an entry.
    #[error("archive ends in the middle of entry {entry:?}")]
    Truncated {
        /// Its name, or what is known of it.
        entry: String,
    },
    /// A header's sum is wrong: not a tar archive, or damaged.
    #[error("header after entry {after:?} is damaged, or this is not a tar archive")]
    Checksum {
        /// Name of the entry before.
        after: String,
    },
    /// A field has no valid value.
    #[error("{field} of entry {entry:?} is not valid")]
    Field {
        /// Name of the entry.
        entry: String,
        /// The field.
        field: &'static str,
    },
    /// A kind of entry that layers cannot have.
    #[error("entry {entry:?} is of a kind that is not supported: {flag:?}")]
    Unsupported {
        /// Name of the entry.
        entry: String,
        /// Its type flag.
        flag: char,
    },
    /// A long name or PAX header beyond the bound, or too many in a row.
    #[error("headers describing the entry after {after:?} are too long")]
    HeadersTooLong {
        /// Name of the entry before.
        after: String,
    },
}

pub(crate) fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// What the headers before an entry said about it.
#[derive(Default)]
struct Described {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Pax,
}

/// Reads an archive entry by entry. Reading from it gives the stored data of the current entry.
pub(crate) struct Tar<R> {
    input: R,
    data_left: u64,
    padding: u64,
    previous: Vec<u8>,
}

impl<R: Read> Tar<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, data_left: 0, padding: 0, previous: Vec::new() }
    }

    pub(crate) fn get_ref(&self) -> &R {
        &self.input
    }

    /// Returns the next entry, or `None` at the end of the archive. Data not read is skipped.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut described = Described::default();
        for _ in 0..SPECIALS_MAX {
            self.skip_data()?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            match header.flag() {
                b'L' => described.long_name = Some(self.read_special(&header)?),
                b'K' => described.long_link = Some(self.read_special(&header)?),
                b'x' | b'X' => {
                    let bytes = self.read_special(&header)?;
                    described.pax = Pax::parse(&bytes)
                        .ok_or_else(|| TarError::Field { entry: lossy(&header.name()), field: "extended header" })?;
                }
                // Global headers describe the archive; image tools ignore them.
                b'g' => drop(self.read_special(&header)?),
                _ => return self.member(&header, described).map(Some),
            }
        }
        Err(TarError::HeadersTooLong { after: lossy(&self.previous) })
    }

    /// Skips the data of the current entry by `seek`, which moves the input forward by so many bytes.
    pub(crate) fn skip_by(&mut self, seek: impl FnOnce(&mut R, u64)) {
        seek(&mut self.input, self.data_left.saturating_add(self.padding));
        self.data_left = 0;
        self.padding = 0;
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        let left = self.data_left.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink())?;
        // The last padding may be cut off, as Go's reader allows; data may not.
        if skipped < self.data_left {
            return Err(TarError::Truncated { entry: lossy(&self.previous) });
        }
        self.data_left = 0;
        self.padding = 0;
        Ok(())
    }

    /// Reads a header; `None` at the end, which is two zero blocks or the end of the input between entries.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let Some(block) = self.read_block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return match self.read_block()? {
                None => Ok(None),
                Some(second) if second.iter().all(|byte| *byte == 0) => Ok(None),
                Some(_) => Err(TarError::Checksum { after: lossy(&self.previous) }),
            };
        }
        Header::parse(block).map(Some).ok_or_else(|| TarError::Checksum { after: lossy(&self.previous) })
    }

    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0_u8; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Truncated { entry: lossy(&self.previous) }),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(block))
    }

    fn read_special(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let size = header.size().ok_or_else(|| TarError::Field { entry: lossy(&header.name()), field: "size" })?;
        if size > SPECIAL_BYTES_MAX {
            return Err(TarError::HeadersTooLong { after: lossy(&self.previous) });
        }
        self.begin_data(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        if self.data_left > 0 {
            return Err(TarError::Truncated { entry: lossy(&header.name()) });
        }
        if matches!(header.flag(), b'L' | b'K') {
            // GNU ends these with a NUL that is not part of the name.
            let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            bytes.truncate(length);
        }
        Ok(bytes)
    }

    fn begin_data(&mut self, stored: u64) {
        self.data_left = stored;
        self.padding = (512 - stored % 512) % 512;
    }

    fn member(&mut self, header: &Header, described: Described) -> Result<Member, TarError> {
        let Described { long_name, long_link, pax } = described;
        let name = pax.name().map(<[u8]>::to_vec).or(long_name).unwrap_or_else(|| header.name());
        let field = |field| TarError::Field { entry: lossy(&name), field };
        let kind = Self::kind(header, &name)?;
        let stored = match kind {
            Kind::File => pax.size().map_err(field)?.or_else(|| header.size()).ok_or_else(|| field("size"))?,
            // Entries of these kinds have no data, whatever their size says (Go: isHeaderOnly).
            Kind::Directory | Kind::Symlink | Kind::Hardlink | Kind::Char | Kind::Block | Kind::Fifo => 0,
        };
        let id = |value: Option<u64>, what| {
            value.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX).ok_or_else(|| field(what))
        };
        let is_device = matches!(kind, Kind::Char | Kind::Block);
        let device = if is_device { header.device().ok_or_else(|| field("device number"))? } else { (0, 0) };
        let mut member = Member {
            kind,
            link: pax.link().map(<[u8]>::to_vec).or(long_link).unwrap_or_else(|| header.link()),
            mode: header.mode().ok_or_else(|| field("mode"))? & 0o7777,
            uid: id(pax.uid().map_err(field)?.or_else(|| header.uid()), "owner")?,
            gid: id(pax.gid().map_err(field)?.or_else(|| header.gid()), "group")?,
            mtime: match pax.mtime().map_err(field)? {
                Some(stamp) => stamp,
                None => Stamp { seconds: header.mtime().ok_or_else(|| field("time"))?, nanos: 0 },
            },
            atime: pax.atime().map_err(field)?,
            size: stored,
            extents: None,
            device,
            xattrs: pax.xattrs().map_err(field)?,
            has_acl_text: pax.has_acl_text(),
            name: name.clone(),
        };
        self.previous.clone_from(&name);
        self.begin_data(stored);
        if kind == Kind::File {
            self.read_extents(header, &pax, &mut member)?;
        }
        Ok(member)
    }

    fn kind(header: &Header, name: &[u8]) -> Result<Kind, TarError> {
        match header.flag() {
            0 if name.ends_with(b"/") => Ok(Kind::Directory),
            0 | b'0' | b'7' => Ok(Kind::File),
            b'S' if header.layout() == Layout::Gnu => Ok(Kind::File),
            b'1' => Ok(Kind::Hardlink),
            b'2' => Ok(Kind::Symlink),
            b'3' => Ok(Kind::Char),
            b'4' => Ok(Kind::Block),
            b'5' => Ok(Kind::Directory),
            b'6' => Ok(Kind::Fifo),
            flag => Err(TarError::Unsupported { entry: lossy(name), flag: char::from(flag) }),
        }
    }

    /// Reads the map of a sparse file, where there is one, and sets the file's true length.
    fn read_extents(&mut self, header: &Header, pax: &Pax, member: &mut Member) -> Result<(), TarError> {
        let damaged = || TarError::Field { entry: lossy(&member.name), field: "map of holes" };
        let (extents, size) = if header.flag() == b'S' {
            let (mut extents, mut is_extended) = header.sparse().ok_or_else(damaged)?;
            while is_extended {
                let block = self.read_block()?.ok_or_else(|| TarError::Truncated { entry: lossy(&member.name) })?;
                is_extended = sparse::extend(&block, &mut extents).ok_or_else(damaged)?;
            }
            (extents, header.real_size().ok_or_else(damaged)?)
        } else if pax.is_sparse_1() {
            let (extents, bytes) = sparse::read_map_1(self)?.ok_or_else(damaged)?;
            debug_assert!(bytes.is_multiple_of(512), "the map fills whole blocks");
            (extents, pax.real_size().ok_or_else(damaged)?)
        } else if let Some(extents) = pax.sparse_0().map_err(|()| damaged())? {
            (extents, pax.real_size().ok_or_else(damaged)?)
        } else {
            return Ok(());
        };
        if !sparse::is_valid(&extents, size, self.data_left) {
            return Err(damaged());
        }
        member.size = size;
        member.extents = Some(extents);
        Ok(())
    }
}

impl<R: Read> Read for Tar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..wanted).filter(|part| !part.is_empty()) else {
            return Ok(0);
        };
        let count = self.input.read(part)?;
        self.data_left = self.data_left.saturating_sub(u64::try_from(count).unwrap_or(0));
        Ok(count)
    }
}
