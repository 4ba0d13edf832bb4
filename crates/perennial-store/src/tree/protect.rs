//! What `chattr +i` and `+a` inside a container set: a note in an upper directory, inode flags in a layer.
//!
//! Overlayfs keeps these two flags in `trusted.overlay.protattr`, and reads the note in the upper directory only: of
//! what lies below it shows the real inode flags. So an upper that becomes a layer gets the flags that its notes name,
//! besides the notes, which count again where the layer is copied into an upper. A layer's root is never flagged, since
//! it has to be renamed; its note reaches every upper with its other attributes.
//!
//! Flags forbid even renames, so a fold lifts them for its duration. The mark on a layer's root says that there are
//! any, so that other layers need not be searched, and whether they are lifted, so that a start can put them back.

use super::attrs::{AttrIo, Target, attribute_error, set_locks};
use super::copy::{Place, open_file};
use super::error::{EntryPath, TreeError};
use super::overlay;
use super::walk::{Order, Visit, walk};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{FileType, IFlags};

const IN_FORCE: &[u8] = b"y";
const LIFTED: &[u8] = b"lifted";

/// Sets the inode flags that the tree's notes name, and marks its root.
///
/// # Errors
/// If something cannot be read or set; the call can be repeated.
pub fn protect(tree: BorrowedFd<'_>) -> Result<(), TreeError> {
    for_each_noted(tree, &locks_of)?;
    mark(tree, IN_FORCE)
}

/// Takes these flags away for a while; marked, so that they are not forgotten.
///
/// # Errors
/// As [`protect`].
pub fn lift(tree: BorrowedFd<'_>) -> Result<(), TreeError> {
    mark(tree, LIFTED)?;
    for_each_noted(tree, &|_| IFlags::empty())
}

/// Returns whether a layer may have protected entries.
///
/// # Errors
/// If its root cannot be read.
pub fn is_marked(tree: BorrowedFd<'_>) -> Result<bool, TreeError> {
    Ok(marked(tree)?.is_some())
}

/// Returns whether the flags of a layer were lifted and not set again.
///
/// # Errors
/// If its root cannot be read.
pub fn is_lifted(tree: BorrowedFd<'_>) -> Result<bool, TreeError> {
    Ok(marked(tree)?.is_some_and(|value| value == LIFTED))
}

fn locks_of(note: &[u8]) -> IFlags {
    let mut flags = IFlags::empty();
    flags.set(IFlags::IMMUTABLE, note.contains(&b'i'));
    flags.set(IFlags::APPEND, note.contains(&b'a'));
    flags
}

fn root() -> EntryPath {
    EntryPath::from_bytes(Vec::new())
}

fn marked(tree: BorrowedFd<'_>) -> Result<Option<Vec<u8>>, TreeError> {
    let mut io = AttrIo::default();
    let value = io.xattr(Target::Open(tree), overlay::PROTECTED).map(|value| value.map(<[u8]>::to_vec));
    value.map_err(|errno| attribute_error("read", &overlay::PROTECTED.to_string_lossy(), root(), errno))
}

fn mark(tree: BorrowedFd<'_>, value: &[u8]) -> Result<(), TreeError> {
    let set = AttrIo::default().set_xattr(Target::Open(tree), overlay::PROTECTED, value);
    set.map_err(|errno| attribute_error("set", &overlay::PROTECTED.to_string_lossy(), root(), errno))
}

/// Gives every file and directory with a note, the root apart, the locks that are chosen by it.
fn for_each_noted(tree: BorrowedFd<'_>, locks: &dyn Fn(&[u8]) -> IFlags) -> Result<(), TreeError> {
    let mut io = AttrIo::default();
    walk(tree, Order::Listed, &mut |visit| match visit {
        Visit::NonDir(entry) if entry.stat.file_type() == FileType::RegularFile => {
            let path = || entry.path.join(entry.name);
            let Some(wanted) = note(&mut io, Target::Named(entry.dir, entry.name), &path)?.map(|n| locks(&n)) else {
                return Ok(());
            };
            let file = open_file(Place { dir: entry.dir, name: entry.name })
                .map_err(|errno| TreeError::system("open", path(), errno))?;
            set(file.as_fd(), wanted, &path)
        }
        Visit::Enter { own, path, .. } if !path.as_bytes().is_empty() => {
            match note(&mut io, Target::Open(own), &|| path.here())? {
                Some(note) => set(own, locks(&note), &|| path.here()),
                None => Ok(()),
            }
        }
        Visit::NonDir(_) | Visit::Enter { .. } | Visit::Leave { .. } => Ok(()),
    })
}

fn note(io: &mut AttrIo, target: Target<'_>, path: &dyn Fn() -> EntryPath) -> Result<Option<Vec<u8>>, TreeError> {
    let value = io.xattr(target, overlay::PROTATTR).map(|value| value.map(<[u8]>::to_vec));
    value.map_err(|errno| attribute_error("read", &overlay::PROTATTR.to_string_lossy(), path(), errno))
}

fn set(fd: BorrowedFd<'_>, wanted: IFlags, path: &dyn Fn() -> EntryPath) -> Result<(), TreeError> {
    set_locks(fd, wanted).map_err(|errno| attribute_error("set", "the inode flags", path(), errno))
}
