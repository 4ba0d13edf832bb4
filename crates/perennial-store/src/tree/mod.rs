//! Trees on disk: walked, measured, flattened, folded, compared and removed, exactly.
//!
//! The trees are overlayfs upper directories written by whoever was root in a container, so nothing in them is trusted:
//! they are walked by file descriptors, no symbolic link is followed, no special file is opened, paths may be longer
//! than `PATH_MAX` and names are bytes. Whatever cannot be carried over exactly is an error that names the path and the
//! attribute, never a warning.
//!
//! - [`cursor`], [`walk`](mod@walk): moving about in a tree of any depth with few descriptors.
//! - [`attrs`]: an entry's metadata, read and applied; [`overlay`]: overlayfs' own part of it.
//! - [`measure`](mod@measure): size of a tree, and removal of overlayfs' private notes.
//! - [`below`]: what the layers under a place show.
//! - [`stack`]: several layers written as one; [`copy`]: one entry copied.
//! - [`fold`](mod@fold): a newer layer merged into an older one by renames.
//! - [`diff`](mod@diff): what differs between two stacks; [`copy_out`](mod@copy_out): copies out of a view.
//! - [`fingerprint`](mod@fingerprint): whether anything changed.
//! - [`reduce`](mod@reduce): a whole tree made the layer that shows it over others.
//! - [`remove`]: deletion, and the trash before it.
//!
//! Decisions are in [`perennial_core::tree`]; a tree is given as an open directory ([`open_tree`]).

pub mod attrs;
pub mod below;
pub mod copy;
pub mod copy_out;
pub mod cursor;
pub mod diff;
pub mod error;
pub mod fingerprint;
pub mod fold;
pub(crate) mod links;
pub mod measure;
pub mod overlay;
pub mod protect;
pub mod reduce;
pub mod remove;
pub mod roots;
pub mod stack;
pub mod walk;

pub use attrs::Attrs;
pub use copy_out::copy_out;
pub use diff::{Change, ChangeKind, Side, diff};
pub use error::{EntryPath, TreeError};
pub use fingerprint::fingerprint;
pub use fold::{FoldLayers, FoldOutcome, FoldReport, fold};
pub use measure::{MadeOver, Measure, measure, measure_and_strip, measure_and_strip_over};
pub use reduce::reduce;
pub use remove::{move_to_trash, remove_tree};
pub use roots::{is_empty, root_attrs};
pub use stack::{Data, materialize, materialize_sealed};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::path::Path;

/// How directories are opened everywhere: for reading, never through a symbolic link, without touching their atime.
pub(crate) const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NOATIME);

/// Opens the root directory of a tree.
///
/// # Errors
/// If it is not there or not a directory.
pub fn open_tree(path: &Path) -> Result<OwnedFd, TreeError> {
    openat(CWD, path, DIR_FLAGS, Mode::empty()).map_err(|errno| TreeError::system("open", EntryPath::from(path), errno))
}
