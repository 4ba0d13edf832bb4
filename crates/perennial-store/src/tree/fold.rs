//! A newer layer merged into the older one directly below it, by renames only.
//!
//! The cost is that of the newer layer (`top`); data is never copied. At every instant a fresh mount of the stack of
//! both shows the same tree, apart from modification times of directories that are being worked in; after a kill the
//! fold is simply run again. What happens to each name is decided by [`perennial_core::tree::fold_step`].
//!
//! A directory that is in both layers keeps its old times in an attribute on top's directory ([`overlay::TIMES`]) as
//! long as entries are moved out of it; top's directory hides bottom's attributes until it is removed, and it is removed
//! only when bottom's has been given the same.
//!
//! The caller must see to it that neither layer is mounted and that no stack holds one of them without the other
//! ([`perennial_core::layers::plan_fold`]), and that the file system is synced before `top` is taken out of the stacks.

use super::DIR_FLAGS;
use super::attrs::{AttrIo, Kind, Target, attribute_error, set_times};
use super::below::{BelowView, Cut};
use super::cursor::{Cursor, EntryStat, Name, read_names};
use super::error::{EntryPath, PathTrail, TreeError};
use super::measure::measure;
use super::overlay;
use super::protect;
use super::remove::{rename_over, trash_at};
use super::stack::kind_of;
use perennial_core::tree::{Below, EntryKind, FoldAction, fold_step};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{AtFlags, Mode, openat, renameat, unlinkat};
use std::ffi::{CStr, CString};

/// Entries between two questions whether to yield.
const YIELD_ENTRIES: u32 = 64;

/// The layers of a fold, as open roots.
#[derive(Debug, Clone, Copy)]
pub struct FoldLayers<'a> {
    /// The newer layer; its root is empty when the fold is done.
    pub top: BorrowedFd<'a>,
    /// The older layer; holds both when the fold is done.
    pub bottom: BorrowedFd<'a>,
    /// The layers under `bottom`, newest first.
    pub below: &'a [BorrowedFd<'a>],
}

/// What a fold has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FoldReport {
    /// Entries that are in neither layer any more; both layers together had this many more before.
    pub entries_gone: u64,
    /// Allocated bytes of those, as far as no other name holds them.
    pub bytes_gone: u64,
    /// Whether an earlier fold of these layers was cut off, so that the figures are only part of the truth and `bottom`
    /// is to be measured anew.
    pub resumed: bool,
}

/// How a fold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoldOutcome {
    /// `bottom` alone shows what both showed; `top` is empty but for the attributes of its root.
    Done(FoldReport),
    /// It was asked to yield: the stack of both shows what it did, times included; the figures are those of this part.
    Yielded(FoldReport),
}

/// Folds `top` into `bottom`; what is replaced goes to `trash`, a directory on the same file system.
///
/// `should_yield` is asked now and then; the fold ends early if it says so.
///
/// # Errors
/// If anything cannot be read, moved or set; the stack of both layers still shows the same tree then (apart from times
/// of directories), and the fold can be tried again.
pub fn fold(
    layers: FoldLayers<'_>,
    trash: BorrowedFd<'_>,
    should_yield: &mut dyn FnMut() -> bool,
) -> Result<FoldOutcome, TreeError> {
    let is_protected = protect::is_marked(layers.top)? || protect::is_marked(layers.bottom)?;
    if !is_protected {
        return fold_free(layers, trash, should_yield);
    }
    // Top's mark is the first to be set and the last to be cleared: it alone tells whether this was cut off.
    protect::lift(layers.top)?;
    protect::lift(layers.bottom)?;
    let outcome = fold_free(layers, trash, should_yield);
    protect::protect(layers.bottom)?;
    protect::protect(layers.top)?;
    outcome
}

/// Folds layers none of whose entries resists.
fn fold_free(
    layers: FoldLayers<'_>,
    trash: BorrowedFd<'_>,
    should_yield: &mut dyn FnMut() -> bool,
) -> Result<FoldOutcome, TreeError> {
    let root = || EntryPath::from_bytes(Vec::new());
    let cursor = |fd| Cursor::new(fd).map_err(|error| error.at(root()));
    let mut io = AttrIo::default();
    let resumed = io
        .xattr(Target::Open(layers.top), overlay::TIMES)
        .map_err(|errno| attribute_error("read", &overlay::TIMES.to_string_lossy(), root(), errno))?
        .is_some();
    let opaque = |io: &mut AttrIo, fd| io.is_opaque(Target::Open(fd), &root);
    if opaque(&mut io, layers.top)? {
        return Err(TreeError::Refused { attribute: overlay::OPAQUE.to_string_lossy().into(), path: root() });
    }
    let cut = Cut::of_opaque(opaque(&mut io, layers.bottom)?);
    let mut folder = Folder {
        top: cursor(layers.top)?,
        bottom: cursor(layers.bottom)?,
        below: BelowView::new(layers.below, cut)?,
        path: PathTrail::default(),
        report: FoldReport { resumed, ..FoldReport::default() },
        trash,
        io,
    };
    folder.run(should_yield)
}

/// Returns whether a fold with this layer as `top` was cut off: times of directories, and flags, are off until it is run
/// again.
///
/// # Errors
/// If the layer's root cannot be read.
pub fn is_interrupted(top: BorrowedFd<'_>) -> Result<bool, TreeError> {
    let root = || EntryPath::from_bytes(Vec::new());
    if protect::is_lifted(top)? {
        return Ok(true);
    }
    let times = AttrIo::default().xattr(Target::Open(top), overlay::TIMES).map(|value| value.is_some());
    times.map_err(|errno| attribute_error("read", &overlay::TIMES.to_string_lossy(), root(), errno))
}

/// A directory that is in both layers.
struct Frame {
    /// Its name; the root has none.
    name: Option<CString>,
    /// Entries of top's that are left.
    names: std::vec::IntoIter<Name>,
}

struct Folder<'a> {
    top: Cursor,
    bottom: Cursor,
    below: BelowView,
    trash: BorrowedFd<'a>,
    path: PathTrail,
    io: AttrIo,
    report: FoldReport,
}

impl Folder<'_> {
    fn run(&mut self, should_yield: &mut dyn FnMut() -> bool) -> Result<FoldOutcome, TreeError> {
        let mut frames = vec![self.open(None)?];
        let mut entries_until_question = 0_u32;
        while let Some(frame) = frames.last_mut() {
            let Some(Name { name, .. }) = frame.names.next() else {
                self.copy_attributes()?;
                match frames.pop().and_then(|frame| frame.name) {
                    Some(name) => self.leave_removing(&name)?,
                    None => self.restore_times()?,
                }
                continue;
            };
            if entries_until_question == 0 {
                if should_yield() {
                    self.yield_now(frames.len())?;
                    return Ok(FoldOutcome::Yielded(self.report));
                }
                entries_until_question = YIELD_ENTRIES;
            }
            entries_until_question = entries_until_question.saturating_sub(1);
            if self.step(&name)? {
                frames.push(self.open(Some(name))?);
            }
        }
        Ok(FoldOutcome::Done(self.report))
    }

    fn fail(&self, action: &'static str, name: &CStr, errno: rustix::io::Errno) -> TreeError {
        TreeError::system(action, self.path.join(name), errno)
    }

    /// Begins a directory into which all cursors have gone: saves its times and lists it.
    fn open(&mut self, name: Option<CString>) -> Result<Frame, TreeError> {
        let path = || self.path.here();
        let fail = |action, errno| TreeError::system(action, path(), errno);
        let names = read_names(self.top.fd()).map_err(|errno| fail("list", errno))?;
        let target = Target::Open(self.top.fd());
        let times_error = |action, errno| attribute_error(action, &overlay::TIMES.to_string_lossy(), path(), errno);
        let saved = self.io.xattr(target, overlay::TIMES).map_err(|errno| times_error("read", errno))?.is_some();
        if !saved && !names.is_empty() {
            let stat = EntryStat::of_open(self.top.fd()).map_err(|errno| fail("look at", errno))?;
            self.io
                .set_xattr(target, overlay::TIMES, &overlay::encode_times(stat.atime, stat.mtime))
                .map_err(|errno| times_error("set", errno))?;
        }
        Ok(Frame { name, names: names.into_iter() })
    }

    /// Folds one name; returns whether it is a directory in both layers, into which all cursors have gone then.
    fn step(&mut self, name: &CStr) -> Result<bool, TreeError> {
        let path = || self.path.join(name);
        let look = |errno| TreeError::system("look at", path(), errno);
        let top = EntryStat::of(self.top.fd(), name).map_err(look)?;
        let top_kind = kind_of(&mut self.io, Target::Named(self.top.fd(), name), &top, &path)?;
        let bottom = EntryStat::find(self.bottom.fd(), name).map_err(look)?;
        self.io.refuse_reference(Target::Named(self.top.fd(), name), &top, &path)?;
        if let Some(stat) = &bottom {
            self.io.refuse_reference(Target::Named(self.bottom.fd(), name), stat, &path)?;
        }
        let bottom_kind = match &bottom {
            Some(stat) => Some(kind_of(&mut self.io, Target::Named(self.bottom.fd(), name), stat, &path)?),
            None => None,
        };
        let below = match top_kind {
            EntryKind::Whiteout => self.below.shows(name)?,
            EntryKind::Dir | EntryKind::OpaqueDir | EntryKind::NonDir => Below::Absent,
        };
        match fold_step(top_kind, bottom_kind, below) {
            FoldAction::Merge => {
                self.enter(name, Cut::of_opaque(bottom_kind == Some(EntryKind::OpaqueDir)))?;
                return Ok(true);
            }
            FoldAction::Move => self.move_down(name, bottom.as_ref())?,
            FoldAction::ClearThenMove => {
                self.clear(name, bottom.as_ref())?;
                self.move_down(name, None)?;
            }
            FoldAction::SealThenMove => {
                self.io
                    .set_xattr(Target::Named(self.top.fd(), name), overlay::OPAQUE, overlay::OPAQUE_YES)
                    .map_err(|errno| attribute_error("set", &overlay::OPAQUE.to_string_lossy(), path(), errno))?;
                self.clear(name, bottom.as_ref())?;
                self.move_down(name, None)?;
            }
            FoldAction::Drop => self.drop_whiteout(name)?,
            FoldAction::ClearThenDrop => {
                self.clear(name, bottom.as_ref())?;
                self.drop_whiteout(name)?;
            }
        }
        Ok(false)
    }

    fn enter(&mut self, name: &CStr, cut: Cut) -> Result<(), TreeError> {
        self.top.enter(name).map_err(|error| error.at(self.path.join(name)))?;
        self.bottom.enter(name).map_err(|error| error.at(self.path.join(name)))?;
        self.below.enter(name, cut);
        self.path.push(name);
        Ok(())
    }

    fn leave(&mut self) -> Result<(), TreeError> {
        self.top.leave().map_err(|error| error.at(self.path.here()))?;
        self.bottom.leave().map_err(|error| error.at(self.path.here()))?;
        self.below.leave()?;
        self.path.pop();
        Ok(())
    }

    fn leave_removing(&mut self, name: &CStr) -> Result<(), TreeError> {
        let stat = EntryStat::of_open(self.top.fd()).map_err(|errno| self.fail("look at", name, errno))?;
        self.leave()?;
        unlinkat(self.top.fd(), name, AtFlags::REMOVEDIR).map_err(|errno| self.fail("remove", name, errno))?;
        self.count_gone(1, stat.allocated);
        Ok(())
    }

    /// Renames top's entry into bottom, where `replaced` is, which is not a directory.
    fn move_down(&mut self, name: &CStr, replaced: Option<&EntryStat>) -> Result<(), TreeError> {
        match replaced {
            None => renameat(self.top.fd(), name, self.bottom.fd(), name),
            Some(_) => rename_over(self.top.fd(), self.bottom.fd(), name),
        }
        .map_err(|errno| self.fail("move down", name, errno))?;
        self.count_replaced(replaced);
        Ok(())
    }

    /// Moves bottom's entry out of the way.
    fn clear(&mut self, name: &CStr, bottom: Option<&EntryStat>) -> Result<(), TreeError> {
        let Some(stat) = bottom else { return Ok(()) };
        if stat.is_dir() {
            let dir = openat(self.bottom.fd(), name, DIR_FLAGS, Mode::empty())
                .map_err(|errno| self.fail("open", name, errno))?;
            let gone = measure(dir.as_fd())?;
            self.count_gone(gone.entries.saturating_add(1), gone.bytes);
        } else {
            self.count_replaced(bottom);
        }
        trash_at(self.bottom.fd(), name, self.trash).map_err(|errno| self.fail("move to the trash", name, errno))?;
        Ok(())
    }

    fn drop_whiteout(&mut self, name: &CStr) -> Result<(), TreeError> {
        unlinkat(self.top.fd(), name, AtFlags::empty()).map_err(|errno| self.fail("remove", name, errno))?;
        self.count_gone(1, 0);
        Ok(())
    }

    fn count_replaced(&mut self, replaced: Option<&EntryStat>) {
        if let Some(stat) = replaced {
            self.count_gone(1, if stat.nlink > 1 { 0 } else { stat.allocated });
        }
    }

    fn count_gone(&mut self, entries: u64, bytes: u64) {
        self.report.entries_gone = self.report.entries_gone.saturating_add(entries);
        self.report.bytes_gone = self.report.bytes_gone.saturating_add(bytes);
    }

    /// Gives bottom's directory the attributes of top's, except that bottom's stays as opaque as it is.
    fn copy_attributes(&mut self) -> Result<(), TreeError> {
        let path = || self.path.here();
        let (top, bottom) = (Target::Open(self.top.fd()), Target::Open(self.bottom.fd()));
        let stat = EntryStat::of_open(self.top.fd()).map_err(|errno| TreeError::system("look at", path(), errno))?;
        let mut attrs = self.io.read(top, &stat, &path)?;
        if self.io.is_opaque(bottom, &path)? {
            attrs.xattrs.insert(overlay::OPAQUE.to_owned(), overlay::OPAQUE_YES.to_vec());
        }
        self.io.apply(bottom, &attrs, Kind::Other, &path)
    }

    /// Gives top's directory the times it had before the fold, and forgets them.
    fn restore_times(&mut self) -> Result<(), TreeError> {
        let path = || self.path.here();
        let target = Target::Open(self.top.fd());
        let fail = |action, errno| attribute_error(action, "the times", path(), errno);
        let saved = self.io.xattr(target, overlay::TIMES).map_err(|errno| fail("read", errno))?;
        let Some(saved) = saved else { return Ok(()) };
        if let Some((atime, mtime)) = overlay::decode_times(saved) {
            set_times(target, atime, mtime).map_err(|errno| fail("set", errno))?;
        }
        self.io.remove_xattr(target, overlay::TIMES).map_err(|errno| fail("remove", errno))
    }

    /// Restores the times of all directories in progress, the deepest first.
    fn yield_now(&mut self, depth: usize) -> Result<(), TreeError> {
        for level in (0..depth).rev() {
            self.restore_times()?;
            if level > 0 {
                self.leave()?;
            }
        }
        Ok(())
    }
}
