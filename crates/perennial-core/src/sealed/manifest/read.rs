//! Reads a manifest, one directory at a time, and believes nothing.

use super::super::canonical::{DEPTH_MAX, Fault, Order, Problem, XATTR_LIST_BYTES_MAX, joined};
use super::super::entry::{
    Attributes, Content, Directory, DirectorySource, Entry, INLINE_BYTES_MAX, Inode, Item, NAME_BYTES_MAX, Node,
    TARGET_BYTES_MAX, Timestamp, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX,
};
use super::super::io::Source;
use super::super::object::{OBJECT_ID_BYTES, ObjectId};
use super::code::{Previous, may_repeat, unzigzag};
use super::input::Input;
use super::write::{Table, count_entry};
use super::{Counts, FLAGS_KNOWN, MAGIC, Malformed, Summary, TRAILER_MAGIC, VERSION, counts_of, kind};
use alloc::vec::Vec;

/// Names and values.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Why a manifest could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError<E> {
    /// The bytes could not be read.
    #[error("the manifest cannot be read")]
    Source(#[source] E),
    /// The bytes are no manifest of this release.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The directories are no tree in canonical order.
    #[error(transparent)]
    Tree(#[from] Fault),
}

/// Reads a manifest. What it yields is certain only once it has yielded the end: the checksum comes last.
#[derive(Debug)]
pub struct Reader<S> {
    input: Input<S>,
    order: Order,
    previous: Previous,
    counts: Counts,
    /// Objects the entries name; `None` where the table is not compared with them.
    objects: Option<Table>,
    summary: Option<Summary>,
}

impl<S: Source> Reader<S> {
    /// Begins to read, and reads the header.
    ///
    /// # Errors
    /// [`ReadError`] where this is no manifest that this release understands.
    pub fn new(source: S) -> Result<Self, ReadError<S::Error>> {
        let mut input = Input::new(source);
        let header = [input.array::<4>()?, input.array()?, input.array()?, input.array()?];
        check_header(header)?;
        let (order, previous, counts) = (Order::default(), Previous::default(), Counts::default());
        Ok(Self { input, order, previous, counts, objects: None, summary: None })
    }

    /// The same, but at the end the table of objects is compared with what the entries name; takes 40 bytes for each
    /// object. For manifests that came from elsewhere.
    ///
    /// # Errors
    /// As [`Reader::new`].
    pub fn thorough(source: S) -> Result<Self, ReadError<S::Error>> {
        Ok(Self { objects: Some(Table::default()), ..Self::new(source)? })
    }

    /// Returns what is known of the whole, once the end was yielded.
    #[must_use]
    pub const fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    fn directory(&mut self) -> Result<Option<Directory>, ReadError<S::Error>> {
        let tag = self.input.byte()?;
        if tag == kind::END {
            self.order.finish()?;
            return self.end();
        }
        if tag & kind::MASK != kind::DIRECTORY {
            return Err(Malformed::Kind(tag & kind::MASK).into());
        }
        let Some(path) = self.order.advance() else { return Err(Malformed::NotCanonical.into()) };
        if path.len() > DEPTH_MAX {
            return Err(Fault { path: joined(path, None), problem: Problem::Depth }.into());
        }
        let path = path.to_vec();
        let attributes = self.attributes(tag)?;
        let mut directory = Directory { path, attributes, opaque: tag & kind::SPECIAL != 0, entries: Vec::new() };
        let mut groups = self.order.groups();
        for _ in 0..self.input.number()? {
            let entry = self.entry(&mut groups)?;
            let ordered = directory.entries.last().is_none_or(|before| before.name < entry.name);
            if !ordered {
                return Err(
                    Fault { path: joined(&directory.path, Some(&entry.name)), problem: Problem::NameOrder }.into()
                );
            }
            let object = count_entry(&mut self.counts, &entry);
            if let Some((objects, row)) = self.objects.as_mut().zip(object) {
                objects.push(row);
            }
            directory.entries.push(entry);
        }
        self.order.check(&directory)?;
        self.counts.directories = self.counts.directories.saturating_add(1);
        Ok(Some(directory))
    }

    fn entry(&mut self, groups: &mut u32) -> Result<Entry, ReadError<S::Error>> {
        let tag = self.input.byte()?;
        let name = self.input.counted(NAME_BYTES_MAX)?;
        let item = match tag {
            kind::DIRECTORY => Item::Directory,
            kind::WHITEOUT => Item::Whiteout,
            kind::LINK => Item::Link(self.input.short()?),
            _ => Item::Inode(self.inode(tag, groups)?),
        };
        Ok(Entry { name, item })
    }

    fn inode(&mut self, tag: u8, groups: &mut u32) -> Result<Inode, ReadError<S::Error>> {
        let code = tag & kind::MASK;
        if !(kind::INLINE..=kind::SOCKET).contains(&code) {
            return Err(Malformed::Kind(tag).into());
        }
        let links = (tag & kind::SPECIAL != 0).then_some(*groups);
        if links.is_some() {
            *groups = groups.checked_add(1).ok_or(Malformed::NotCanonical)?;
        }
        let attributes = self.attributes(tag)?;
        let node = match code {
            kind::INLINE => Node::File(Content::Inline(self.input.counted(INLINE_BYTES_MAX)?)),
            kind::OBJECT => {
                let id = ObjectId::new(self.input.array::<OBJECT_ID_BYTES>()?);
                Node::File(Content::Object { id, size: self.input.number()? })
            }
            kind::SYMLINK => Node::Symlink(self.input.counted(TARGET_BYTES_MAX)?),
            kind::CHAR_DEVICE => Node::CharDevice { major: self.input.short()?, minor: self.input.short()? },
            kind::BLOCK_DEVICE => Node::BlockDevice { major: self.input.short()?, minor: self.input.short()? },
            kind::FIFO => Node::Fifo,
            _ => Node::Socket,
        };
        Ok(Inode { attributes, node, links })
    }

    /// Reads metadata; what the tag calls the same is not given, and what is given is not the same.
    fn attributes(&mut self, tag: u8) -> Result<Attributes, ReadError<S::Error>> {
        let Previous(mut attributes) = core::mem::take(&mut self.previous);
        if tag & kind::SAME_MODE == 0 {
            let mode = self.input.short()?;
            differs(mode != attributes.mode)?;
            attributes.mode = mode;
        }
        if tag & kind::SAME_OWNER == 0 {
            let owner = (self.input.short()?, self.input.short()?);
            differs(owner != (attributes.uid, attributes.gid))?;
            (attributes.uid, attributes.gid) = owner;
        }
        let seconds = attributes.mtime.seconds.wrapping_add(unzigzag(self.input.number()?));
        attributes.mtime = Timestamp { seconds, nanoseconds: self.input.short()? };
        if tag & kind::SAME_XATTRS == 0 {
            let xattrs = self.xattrs()?;
            differs(xattrs != attributes.xattrs || !may_repeat(&xattrs))?;
            attributes.xattrs = xattrs;
        } else {
            differs(may_repeat(&attributes.xattrs))?;
        }
        self.previous = Previous(attributes.clone());
        Ok(attributes)
    }

    fn xattrs(&mut self) -> Result<Xattrs, ReadError<S::Error>> {
        let count = self.input.number()?;
        // Every name has one byte at least, and its NUL.
        if count > (XATTR_LIST_BYTES_MAX / 2) as u64 {
            return Err(Malformed::NotCanonical.into());
        }
        let mut xattrs = Vec::new();
        for _ in 0..count {
            xattrs.push((self.input.counted(XATTR_NAME_BYTES_MAX)?, self.input.counted(XATTR_VALUE_BYTES_MAX)?));
        }
        Ok(xattrs)
    }

    /// Reads table and trailer.
    fn end(&mut self) -> Result<Option<Directory>, ReadError<S::Error>> {
        let rows = u64::from_le_bytes(self.input.array()?);
        let table = self.input.offset();
        let mut named = self.objects.take().map(Table::sorted).transpose()?.map(Vec::into_iter);
        let mut before: Option<ObjectId> = None;
        for _ in 0..rows {
            let row = (ObjectId::new(self.input.array()?), u64::from_le_bytes(self.input.array()?));
            let named = named.as_mut().is_none_or(|named| named.next() == Some(row));
            if !named || before.is_some_and(|before| before >= row.0) {
                return Err(Malformed::Table.into());
            }
            before = Some(row.0);
            self.counts.objects = self.counts.objects.saturating_add(1);
            self.counts.object_bytes = self.counts.object_bytes.saturating_add(row.1);
        }
        if named.is_some_and(|mut named| named.next().is_some()) {
            return Err(Malformed::Table.into());
        }
        let magic = self.input.array::<8>()?;
        let mut numbers = [0; 7];
        for number in &mut numbers {
            *number = u64::from_le_bytes(self.input.array()?);
        }
        if &magic != TRAILER_MAGIC || counts_of(numbers) != (self.counts, table) {
            return Err(Malformed::Trailer.into());
        }
        let checksum = self.input.hash();
        if self.input.array::<OBJECT_ID_BYTES>()? != checksum {
            return Err(Malformed::Checksum.into());
        }
        if !self.input.at_end()? {
            return Err(Malformed::Trailer.into());
        }
        let id = ObjectId::new(self.input.hash());
        self.summary = Some(Summary { id, bytes: self.input.offset(), counts: self.counts });
        Ok(None)
    }
}

impl<S: Source> DirectorySource for Reader<S> {
    type Error = ReadError<S::Error>;
    fn next_directory(&mut self) -> Result<Option<Directory>, Self::Error> {
        if self.summary.is_some() { Ok(None) } else { self.directory() }
    }
}

/// What is not called the same is not the same: there is one way to write a tree.
fn differs(differs: bool) -> Result<(), Malformed> {
    if differs { Ok(()) } else { Err(Malformed::NotCanonical) }
}

/// Checks magic, version and flags.
pub(super) fn check_header(header: [[u8; 4]; 4]) -> Result<(), Malformed> {
    let [first, second, version, flags] = header;
    if [first, second].concat() != MAGIC {
        return Err(Malformed::Magic);
    }
    let (version, flags) = (u32::from_le_bytes(version), u32::from_le_bytes(flags));
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let unknown = flags & !FLAGS_KNOWN;
    if unknown == 0 { Ok(()) } else { Err(Malformed::Flag(1 << unknown.trailing_zeros())) }
}
