//! How entries of stacked layers combine: what a merged tree shows, and how two layers become one.
//!
//! The rules are those of overlayfs: the topmost entry of a name wins; directories merge with what is below until an
//! opaque directory, a whiteout or a non-directory stops them. Nothing here reads a file system: the store looks at the
//! layers and asks these functions what to do.

/// What one layer holds under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A marker (character device 0:0) that the name was removed.
    Whiteout,
    /// A directory that hides everything below it.
    OpaqueDir,
    /// A directory that merges with the directories below it.
    Dir,
    /// Anything else: file, symbolic link, device, fifo, socket.
    NonDir,
}

impl EntryKind {
    /// Returns whether entries of the same name in lower layers stay out of the merged tree.
    #[must_use]
    pub const fn stops(self) -> bool {
        match self {
            Self::Whiteout | Self::OpaqueDir | Self::NonDir => true,
            Self::Dir => false,
        }
    }
}

/// Whether the layers underneath, merged, show a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Below {
    /// The name is there and has to be hidden where it shall not be seen.
    Visible,
    /// There is nothing of that name.
    Absent,
}

/// What a name becomes when several layers are flattened into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// The name is not written at all.
    Nothing,
    /// A whiteout.
    Whiteout,
    /// The newest layer's non-directory.
    NonDir,
    /// A directory with the newest layer's attributes and the merged content of the first `merged` layers.
    Dir {
        /// How many of the layers that hold the name take part, counted from the newest.
        merged: usize,
        /// Whether the result has to hide what is below the flattened layers.
        opaque: bool,
    },
}

/// Decides what a name becomes when layers are flattened.
///
/// `entries` are the kinds of the layers that hold the name, newest first; whiteouts that would hide nothing are
/// dropped, since overlayfs lists a whiteout without anything below it as a name that cannot be opened.
#[must_use]
pub fn resolve(entries: &[EntryKind], below: Below) -> Resolved {
    match entries.first() {
        None => Resolved::Nothing,
        Some(EntryKind::Whiteout) => match below {
            Below::Visible => Resolved::Whiteout,
            Below::Absent => Resolved::Nothing,
        },
        Some(EntryKind::NonDir) => Resolved::NonDir,
        Some(EntryKind::Dir | EntryKind::OpaqueDir) => resolve_dir(entries),
    }
}

fn resolve_dir(entries: &[EntryKind]) -> Resolved {
    let mut merged = 0_usize;
    for kind in entries {
        match kind {
            EntryKind::Dir => merged = merged.saturating_add(1),
            EntryKind::OpaqueDir => return Resolved::Dir { merged: merged.saturating_add(1), opaque: true },
            EntryKind::Whiteout | EntryKind::NonDir => return Resolved::Dir { merged, opaque: true },
        }
    }
    Resolved::Dir { merged, opaque: false }
}

/// One step of folding a newer layer (`top`) into the layer directly below it (`bottom`), for one name.
///
/// Every action is a sequence of single system calls after each of which the stack of both layers still shows the same
/// tree, and which leads to the same end when it is decided again from any point in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FoldAction {
    /// Rename top's entry into bottom; a non-directory of bottom is replaced by the same call.
    Move,
    /// Move bottom's entry to the trash, then rename top's.
    ClearThenMove,
    /// Mark top's directory opaque, move bottom's entry to the trash, then rename top's.
    SealThenMove,
    /// Both are directories: fold their contents, then give bottom's the attributes of top's and remove top's.
    Merge,
    /// Unlink top's whiteout: nothing underneath needs hiding, or bottom's whiteout already hides it.
    Drop,
    /// Move bottom's entry to the trash, then unlink top's whiteout.
    ClearThenDrop,
}

/// Decides one step of a fold.
///
/// `below` matters for whiteouts only: whether the layers under `bottom` show the name in this directory, where
/// bottom's own directory lets them through.
#[must_use]
pub const fn fold_step(top: EntryKind, bottom: Option<EntryKind>, below: Below) -> FoldAction {
    use EntryKind::{Dir, NonDir, OpaqueDir, Whiteout};
    match (top, bottom, below) {
        (Whiteout, Some(Dir | OpaqueDir), Below::Visible) => FoldAction::ClearThenMove,
        (Whiteout, None | Some(NonDir), Below::Visible) => FoldAction::Move,
        (Whiteout, Some(Whiteout), Below::Visible) | (Whiteout, None, Below::Absent) => FoldAction::Drop,
        (Whiteout, Some(Dir | OpaqueDir | NonDir | Whiteout), Below::Absent) => FoldAction::ClearThenDrop,
        (NonDir, None | Some(Whiteout | NonDir), _) => FoldAction::Move,
        (NonDir, Some(Dir | OpaqueDir), _) => FoldAction::ClearThenMove,
        (OpaqueDir | Dir, None, _) => FoldAction::Move,
        (OpaqueDir, Some(Whiteout | NonDir | Dir | OpaqueDir), _) => FoldAction::ClearThenMove,
        (Dir, Some(Whiteout | NonDir), _) => FoldAction::SealThenMove,
        (Dir, Some(Dir | OpaqueDir), _) => FoldAction::Merge,
    }
}
