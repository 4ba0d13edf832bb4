//! How numbers, metadata and entries are written.

use super::super::entry::{Attributes, Content, Directory, Entry, Inode, Item, Node, Timestamp};
use super::kind;
use alloc::vec::Vec;

/// Appends a number: seven bits a byte, the lowest first, the top bit set but in the last.
pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Maps small differences of either sign to small numbers.
pub(super) fn zigzag(difference: i64) -> u64 {
    (difference.cast_unsigned() << 1) ^ (difference >> 63).cast_unsigned()
}

/// The opposite of [`zigzag`].
pub(super) fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ (number & 1).cast_signed().wrapping_neg()
}

/// Longest set of extended attributes that is not written again, in bytes of names and values: few bytes of a manifest
/// then never stand for very many.
const REPEATED_BYTES_MAX: usize = 256;

/// Returns whether these extended attributes may be called the same as those before.
pub(super) fn may_repeat(xattrs: &[(Vec<u8>, Vec<u8>)]) -> bool {
    let bytes = xattrs.iter().map(|(name, value)| name.len().saturating_add(value.len()));
    bytes.fold(0_usize, usize::saturating_add) <= REPEATED_BYTES_MAX
}

/// Metadata written before, which the next may refer to.
#[derive(Debug, Default)]
pub(super) struct Previous(pub(super) Attributes);

impl Previous {
    /// Returns the bits that say what is the same.
    fn same(&self, attributes: &Attributes) -> u8 {
        let Self(previous) = self;
        let mut bits = 0;
        if previous.mode == attributes.mode {
            bits |= kind::SAME_MODE;
        }
        if (previous.uid, previous.gid) == (attributes.uid, attributes.gid) {
            bits |= kind::SAME_OWNER;
        }
        if previous.xattrs == attributes.xattrs && may_repeat(&attributes.xattrs) {
            bits |= kind::SAME_XATTRS;
        }
        bits
    }

    /// Appends what is not the same, and remembers all of it.
    fn put(&mut self, out: &mut Vec<u8>, same: u8, attributes: &Attributes) {
        let Self(previous) = self;
        if same & kind::SAME_MODE == 0 {
            put_number(out, u64::from(attributes.mode));
            previous.mode = attributes.mode;
        }
        if same & kind::SAME_OWNER == 0 {
            put_number(out, u64::from(attributes.uid));
            put_number(out, u64::from(attributes.gid));
            (previous.uid, previous.gid) = (attributes.uid, attributes.gid);
        }
        let Timestamp { seconds, nanoseconds } = attributes.mtime;
        put_number(out, zigzag(seconds.wrapping_sub(previous.mtime.seconds)));
        put_number(out, u64::from(nanoseconds));
        previous.mtime = attributes.mtime;
        if same & kind::SAME_XATTRS == 0 {
            put_number(out, attributes.xattrs.len() as u64);
            for (name, value) in &attributes.xattrs {
                put_bytes(out, name);
                put_bytes(out, value);
            }
            previous.xattrs.clone_from(&attributes.xattrs);
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends the head of a block: what the directory itself is and how many names follow.
pub(super) fn put_head(out: &mut Vec<u8>, previous: &mut Previous, directory: &Directory) {
    let same = previous.same(&directory.attributes);
    let special = if directory.opaque { kind::SPECIAL } else { 0 };
    out.push(kind::DIRECTORY | same | special);
    previous.put(out, same, &directory.attributes);
    put_number(out, directory.entries.len() as u64);
}

/// Appends an entry: its kind, its name and what it is.
pub(super) fn put_entry(out: &mut Vec<u8>, previous: &mut Previous, entry: &Entry) {
    match &entry.item {
        Item::Directory => put_tag(out, kind::DIRECTORY, &entry.name),
        Item::Whiteout => put_tag(out, kind::WHITEOUT, &entry.name),
        Item::Link(group) => {
            put_tag(out, kind::LINK, &entry.name);
            put_number(out, u64::from(*group));
        }
        Item::Inode(inode) => put_inode(out, previous, &entry.name, inode),
    }
}

fn put_tag(out: &mut Vec<u8>, tag: u8, name: &[u8]) {
    out.push(tag);
    put_bytes(out, name);
}

fn put_inode(out: &mut Vec<u8>, previous: &mut Previous, name: &[u8], inode: &Inode) {
    let same = previous.same(&inode.attributes);
    let special = if inode.links.is_some() { kind::SPECIAL } else { 0 };
    let code = match &inode.node {
        Node::File(Content::Inline(_)) => kind::INLINE,
        Node::File(Content::Object { .. }) => kind::OBJECT,
        Node::Symlink(_) => kind::SYMLINK,
        Node::CharDevice { .. } => kind::CHAR_DEVICE,
        Node::BlockDevice { .. } => kind::BLOCK_DEVICE,
        Node::Fifo => kind::FIFO,
        Node::Socket => kind::SOCKET,
    };
    put_tag(out, code | same | special, name);
    previous.put(out, same, &inode.attributes);
    match &inode.node {
        Node::File(Content::Inline(bytes)) | Node::Symlink(bytes) => put_bytes(out, bytes),
        Node::File(Content::Object { id, size }) => {
            out.extend_from_slice(id.as_bytes());
            put_number(out, *size);
        }
        Node::CharDevice { major, minor } | Node::BlockDevice { major, minor } => {
            put_number(out, u64::from(*major));
            put_number(out, u64::from(*minor));
        }
        Node::Fifo | Node::Socket => {}
    }
}
