//! Writes a manifest, one directory at a time.

use super::super::canonical::{Fault, Order, Problem, joined};
use super::super::entry::{Content, Directory, Entry, Inode, Item, Node};
use super::super::io::Sink;
use super::super::object::ObjectId;
use super::code::{Previous, put_entry, put_head};
use super::{Counts, MAGIC, Summary, TRAILER_MAGIC, VERSION, kind, numbers};
use alloc::vec::Vec;

/// Bytes collected before they are handed to the sink.
const BUFFER_BYTES: usize = 64 * 1024;

/// Why a manifest could not be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError<E> {
    /// The bytes could not be taken.
    #[error("the manifest cannot be written")]
    Sink(#[source] E),
    /// The directories are no tree in canonical order.
    #[error(transparent)]
    Tree(#[from] Fault),
}

/// Writes a manifest. After an error it is of no use any more.
#[derive(Debug)]
pub struct Writer<S> {
    sink: S,
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
    bytes: u64,
    order: Order,
    previous: Previous,
    counts: Counts,
    objects: Table,
}

impl<S: Sink> Writer<S> {
    /// Begins a manifest.
    ///
    /// # Errors
    /// [`WriteError::Sink`] where nothing can be written.
    pub fn new(sink: S) -> Result<Self, WriteError<S::Error>> {
        let mut buffer = Vec::with_capacity(BUFFER_BYTES);
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&VERSION.to_le_bytes());
        buffer.extend_from_slice(&0_u32.to_le_bytes());
        Ok(Self {
            sink,
            buffer,
            hasher: blake3::Hasher::new(),
            bytes: 0,
            order: Order::default(),
            previous: Previous::default(),
            counts: Counts::default(),
            objects: Table::default(),
        })
    }

    /// Adds the next directory in canonical order.
    ///
    /// # Errors
    /// [`WriteError::Tree`] where it is not the next, or holds what a tree cannot; [`WriteError::Sink`].
    pub fn push(&mut self, directory: &Directory) -> Result<(), WriteError<S::Error>> {
        if self.order.advance().is_none() {
            return Err(Fault { path: joined(&directory.path, None), problem: Problem::Unexpected }.into());
        }
        self.order.check(directory)?;
        self.counts.directories = self.counts.directories.saturating_add(1);
        put_head(&mut self.buffer, &mut self.previous, directory);
        for entry in &directory.entries {
            put_entry(&mut self.buffer, &mut self.previous, entry);
            if let Some(row) = count_entry(&mut self.counts, entry) {
                self.objects.push(row);
            }
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the manifest and hands the sink back.
    ///
    /// # Errors
    /// [`WriteError::Tree`] where directories are missing or an object has two sizes; [`WriteError::Sink`].
    pub fn finish(mut self) -> Result<(Summary, S), WriteError<S::Error>> {
        self.order.finish()?;
        let rows = core::mem::take(&mut self.objects).sorted()?;
        self.counts.objects = rows.len() as u64;
        self.buffer.push(kind::END);
        self.buffer.extend_from_slice(&self.counts.objects.to_le_bytes());
        let table = self.bytes.saturating_add(self.buffer.len() as u64);
        for (id, size) in &rows {
            self.counts.object_bytes = self.counts.object_bytes.saturating_add(*size);
            self.buffer.extend_from_slice(id.as_bytes());
            self.buffer.extend_from_slice(&size.to_le_bytes());
            if self.buffer.len() >= BUFFER_BYTES {
                self.flush()?;
            }
        }
        self.buffer.extend_from_slice(TRAILER_MAGIC);
        for number in numbers(&self.counts, table) {
            self.buffer.extend_from_slice(&number.to_le_bytes());
        }
        self.flush()?;
        let checksum = self.hasher.finalize();
        self.buffer.extend_from_slice(checksum.as_bytes());
        self.flush()?;
        let id = ObjectId::new(*self.hasher.finalize().as_bytes());
        Ok((Summary { id, bytes: self.bytes, counts: self.counts }, self.sink))
    }

    fn flush(&mut self) -> Result<(), WriteError<S::Error>> {
        self.hasher.update(&self.buffer);
        self.sink.write(&self.buffer).map_err(WriteError::Sink)?;
        self.bytes = self.bytes.saturating_add(self.buffer.len() as u64);
        self.buffer.clear();
        Ok(())
    }
}

/// Counts an entry and returns its object.
pub(super) fn count_entry(counts: &mut Counts, entry: &Entry) -> Option<(ObjectId, u64)> {
    counts.entries = counts.entries.saturating_add(1);
    match &entry.item {
        Item::Inode(Inode { node: Node::File(Content::Object { id, size }), .. }) => return Some((*id, *size)),
        Item::Inode(Inode { node: Node::File(Content::Inline(bytes)), .. }) => {
            counts.inline_bytes = counts.inline_bytes.saturating_add(bytes.len() as u64);
        }
        Item::Whiteout => counts.whiteouts = counts.whiteouts.saturating_add(1),
        Item::Inode(_) | Item::Directory | Item::Link(_) => {}
    }
    None
}

/// Objects of a tree, in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct Table(Vec<(ObjectId, u64)>);

impl Table {
    /// Before more room is taken, copies are dropped: the room is that of distinct objects.
    pub(super) fn push(&mut self, row: (ObjectId, u64)) {
        let Self(rows) = self;
        if rows.len() == rows.capacity() {
            rows.sort_unstable();
            rows.dedup();
        }
        rows.push(row);
    }

    /// Returns the objects, sorted, each once.
    pub(super) fn sorted(self) -> Result<Vec<(ObjectId, u64)>, Fault> {
        let Self(mut rows) = self;
        rows.sort_unstable();
        rows.dedup();
        let twice = rows.iter().zip(rows.iter().skip(1)).any(|((id, _), (next, _))| id == next);
        if twice { Err(Fault { path: Vec::new(), problem: Problem::ObjectSize }) } else { Ok(rows) }
    }
}
