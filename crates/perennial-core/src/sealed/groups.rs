//! BLAKE3 of a content by groups of 64 KiB, so that what has not changed need not be hashed again.
//!
//! ```text
//!   content   │ group 0 │ group 1 │ group 2 │ group 3 │ 4 │
//!   values    └────┬────┘────┬────┘────┬────┘────┬────┘─┬─┘   one for each group: its chaining value
//!                  └────┬────┘         └────┬────┘      │
//!                       └─────────┬─────────┘           │
//!                                 └──────────┬──────────┘
//!   name                                    root              what `b3sum` prints
//! ```
//!
//! A group's value depends on its bytes and on its place in the content, and on nothing else. So the value of a group
//! that another content has at the same place can be taken from there, and the name is the same as if all had been
//! hashed.

use super::object::ObjectId;
use alloc::vec::Vec;
use blake3::hazmat::{HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// Length of a group, in bytes: 64 chunks of BLAKE3, and what a disk reads at once for little more than one block.
pub const GROUP_BYTES: u64 = 64 << 10;

/// The chaining value of a group, or of several that make a subtree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value(pub [u8; 32]);

/// Returns how many groups a content of so many bytes has.
#[must_use]
pub const fn count(bytes: u64) -> u64 {
    bytes.div_ceil(GROUP_BYTES)
}

/// Values of groups, in order, on their way to the root. It holds one value for each level of the tree.
#[derive(Debug, Clone, Default)]
pub struct Merge {
    stack: Vec<Value>,
    groups: u64,
}

impl Merge {
    /// Takes the value of the next group.
    pub fn push(&mut self, value: Value) {
        // A subtree is complete when as many groups are in it as a power of two; it is merged when another group
        // follows, because the last merge of all is another one.
        while self.stack.len() > usize::try_from(self.groups.count_ones()).unwrap_or(usize::MAX) {
            let Some((left, right)) = self.pop_pair() else { break };
            self.stack.push(Value(merge_subtrees_non_root(&left.0, &right.0, Mode::Hash)));
        }
        self.stack.push(value);
        self.groups = self.groups.saturating_add(1);
    }

    /// Returns the name of the content; `None` where it has fewer than two groups, whose values say nothing about it.
    #[must_use]
    pub fn finish(mut self) -> Option<ObjectId> {
        while self.stack.len() > 2 {
            let (left, right) = self.pop_pair()?;
            self.stack.push(Value(merge_subtrees_non_root(&left.0, &right.0, Mode::Hash)));
        }
        let (left, right) = self.pop_pair()?;
        Some(ObjectId::new(*merge_subtrees_root(&left.0, &right.0, Mode::Hash).as_bytes()))
    }

    fn pop_pair(&mut self) -> Option<(Value, Value)> {
        let right = self.stack.pop()?;
        self.stack.pop().map(|left| (left, right))
    }
}

/// Hashes a content whose bytes, or values of whole groups, come in order.
#[derive(Debug, Clone)]
pub struct GroupHasher {
    group: blake3::Hasher,
    /// Bytes that came so far.
    offset: u64,
    /// Bytes of the group that is open.
    filled: u64,
    merge: Merge,
}

impl Default for GroupHasher {
    fn default() -> Self {
        Self { group: blake3::Hasher::new(), offset: 0, filled: 0, merge: Merge::default() }
    }
}

impl GroupHasher {
    /// Takes the next bytes; hands on the value of every group that is complete and not the last.
    pub fn update(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(Value)) {
        while !bytes.is_empty() {
            if self.filled == GROUP_BYTES {
                self.close(each);
            }
            let room = usize::try_from(GROUP_BYTES.saturating_sub(self.filled)).unwrap_or(usize::MAX);
            let (piece, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.group.update(piece);
            self.filled = self.filled.saturating_add(piece.len() as u64);
            self.offset = self.offset.saturating_add(piece.len() as u64);
            bytes = rest;
        }
    }

    /// Takes the value of the next group instead of its bytes, of which there are `bytes`: as many as a group has, or
    /// fewer in the last one. Returns whether that could be: what came before has to end where a group ends.
    #[must_use]
    pub fn reuse(&mut self, value: Value, bytes: u64, each: &mut dyn FnMut(Value)) -> bool {
        if self.filled == GROUP_BYTES {
            self.close(each);
        }
        if self.filled != 0 || !(1..=GROUP_BYTES).contains(&bytes) || !self.offset.is_multiple_of(GROUP_BYTES) {
            return false;
        }
        self.offset = self.offset.saturating_add(bytes);
        self.merge.push(value);
        each(value);
        self.group = blake3::Hasher::new();
        // After a short group there is no next one, and no offset to begin it at.
        if bytes == GROUP_BYTES {
            self.group.set_input_offset(self.offset);
        }
        true
    }

    /// Returns the name of the content, after handing on the value of the last group. A content of a single group has
    /// no values: its name is not made of one, and there is none where only one was taken.
    #[must_use]
    pub fn finish(mut self, each: &mut dyn FnMut(Value)) -> Option<ObjectId> {
        if self.merge.groups == 0 {
            return Some(ObjectId::new(*self.group.finalize().as_bytes()));
        }
        if self.filled > 0 {
            self.close(each);
        }
        self.merge.finish()
    }

    fn close(&mut self, each: &mut dyn FnMut(Value)) {
        let value = Value(self.group.finalize_non_root());
        self.merge.push(value);
        each(value);
        self.group = blake3::Hasher::new();
        if self.offset.is_multiple_of(GROUP_BYTES) {
            self.group.set_input_offset(self.offset);
        }
        self.filled = 0;
    }
}
