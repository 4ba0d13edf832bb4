//! What the layers under a place show, merged, without mounting them.
//!
//! The view follows a walk by `enter` and `leave`, which only note names; layers are opened when a question is asked.

use super::attrs::{AttrIo, Target, refused};
use super::cursor::{Cursor, EntryStat, OPEN_MAX};
use super::error::{EntryPath, TreeError};
use super::overlay;
use perennial_core::tree::Below;
use rustix::fd::BorrowedFd;
use std::ffi::{CStr, CString};

/// A directory on the way from the root.
#[derive(Debug)]
struct Step {
    name: CString,
    cut: Cut,
}

/// Whether a directory above the view lets the layers below it through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// It merges with them.
    Through,
    /// It hides them.
    Hidden,
}

impl Cut {
    /// Returns what an opaque directory, or one that is not, does.
    #[must_use]
    pub const fn of_opaque(opaque: bool) -> Self {
        if opaque { Self::Hidden } else { Self::Through }
    }
}

/// The layers under a place.
#[derive(Debug)]
pub struct BelowView {
    cursors: Vec<Cursor>,
    steps: Vec<Step>,
    /// Which layers take part, newest first: at the root, in the first directory on the way, and so on, as far as asked.
    taking_part: Vec<Vec<usize>>,
    io: AttrIo,
}

fn fail(errno: rustix::io::Errno, name: &CStr) -> TreeError {
    TreeError::system("look at", EntryPath::from_bytes(name.to_bytes().to_vec()), errno)
}

impl BelowView {
    /// Looks at layers, newest first, at their roots.
    ///
    /// # Errors
    /// If a layer cannot be opened.
    pub fn new(layers: &[BorrowedFd<'_>], root: Cut) -> Result<Self, TreeError> {
        let mut io = AttrIo::default();
        let (cursors, all) = open_roots(layers, &mut io)?;
        let first = match root {
            Cut::Through => all,
            Cut::Hidden => Vec::new(),
        };
        Ok(Self { cursors, steps: Vec::new(), taking_part: vec![first], io })
    }

    /// Notes that the walk goes into a directory.
    pub fn enter(&mut self, name: &CStr, cut: Cut) {
        self.steps.push(Step { name: name.to_owned(), cut });
    }

    /// Notes that the walk goes back.
    ///
    /// # Errors
    /// If a layer has changed meanwhile.
    pub fn leave(&mut self) -> Result<(), TreeError> {
        let Some(step) = self.steps.pop() else { return Ok(()) };
        if self.taking_part.len() > self.steps.len().saturating_add(1) {
            for layer in self.taking_part.pop().unwrap_or_default() {
                if let Some(cursor) = self.cursors.get_mut(layer) {
                    cursor.leave().map_err(|error| error.at(EntryPath::from_bytes(step.name.to_bytes().to_vec())))?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether a name is visible in the present directory.
    ///
    /// # Errors
    /// If a layer cannot be read.
    pub fn shows(&mut self, name: &CStr) -> Result<Below, TreeError> {
        Ok(if self.find(name)?.is_some() { Below::Visible } else { Below::Absent })
    }

    /// Looks for a name in the present directory: the layer that shows it, and its entry there.
    pub(crate) fn find(&mut self, name: &CStr) -> Result<Option<(usize, EntryStat)>, TreeError> {
        self.catch_up()?;
        for layer in self.taking_part.last().into_iter().flatten() {
            let Some(cursor) = self.cursors.get(*layer) else { continue };
            match EntryStat::find(cursor.fd(), name).map_err(|errno| fail(errno, name))? {
                None => {}
                Some(stat) if stat.is_whiteout() => return Ok(None),
                Some(stat) => return Ok(Some((*layer, stat))),
            }
        }
        Ok(None)
    }

    /// Returns the layers that take part in the present directory, newest first.
    pub(crate) fn members(&mut self) -> Result<Vec<usize>, TreeError> {
        self.catch_up()?;
        Ok(self.taking_part.last().cloned().unwrap_or_default())
    }

    /// Returns a layer's part of the present directory, if it takes part.
    pub(crate) fn dir(&self, layer: usize) -> Option<BorrowedFd<'_>> {
        self.cursors.get(layer).map(Cursor::fd)
    }

    fn catch_up(&mut self) -> Result<(), TreeError> {
        while let Some(step) = self.steps.get(self.taking_part.len().saturating_sub(1)) {
            let next = match step.cut {
                Cut::Hidden => Vec::new(),
                Cut::Through => {
                    let present = self.taking_part.last().map(Vec::as_slice).unwrap_or_default();
                    let entered = enter_merged(&mut self.cursors, present, &step.name, &mut self.io);
                    if entered.is_err() {
                        // Whoever asks again gets the error again, not what another directory shows.
                        let depth = self.taking_part.len().saturating_sub(1);
                        for cursor in self.cursors.iter_mut().filter(|cursor| cursor.depth() > depth) {
                            cursor
                                .leave()
                                .map_err(|error| error.at(EntryPath::from_bytes(step.name.to_bytes().to_vec())))?;
                        }
                    }
                    entered?
                }
            };
            self.taking_part.push(next);
        }
        Ok(())
    }
}

/// Opens the roots of layers; returns which of them take part: all down to the first opaque one.
pub(crate) fn open_roots(layers: &[BorrowedFd<'_>], io: &mut AttrIo) -> Result<(Vec<Cursor>, Vec<usize>), TreeError> {
    let open_max = OPEN_MAX.checked_div(layers.len()).unwrap_or(1).max(1);
    let mut cursors = Vec::with_capacity(layers.len());
    let mut taking_part = Vec::new();
    let mut hidden = false;
    for (position, layer) in layers.iter().enumerate() {
        let root = || EntryPath::from_bytes(Vec::new());
        let cursor = Cursor::with_open_max(*layer, open_max).map_err(|error| error.at(root()))?;
        if !hidden {
            taking_part.push(position);
            hidden = io.is_opaque(Target::Open(cursor.fd()), &root)?;
        }
        cursors.push(cursor);
    }
    Ok((cursors, taking_part))
}

/// Goes into a directory in all layers that take part in it.
fn enter_merged(
    cursors: &mut [Cursor],
    present: &[usize],
    name: &CStr,
    io: &mut AttrIo,
) -> Result<Vec<usize>, TreeError> {
    let mut entered = Vec::new();
    for layer in present {
        let Some(cursor) = cursors.get_mut(*layer) else { continue };
        let Some(stat) = EntryStat::find(cursor.fd(), name).map_err(|errno| fail(errno, name))? else { continue };
        if !stat.is_dir() {
            break;
        }
        let path = || EntryPath::from_bytes(name.to_bytes().to_vec());
        cursor.enter(name).map_err(|error| error.at(path()))?;
        entered.push(*layer);
        if io.is_opaque(Target::Open(cursor.fd()), &path)? {
            break;
        }
        // What it shows is under another name below: whoever asks has to resolve this layer first.
        if io.is_redirected(Target::Open(cursor.fd()), &path)? {
            return Err(refused(overlay::REDIRECT, b"", path()));
        }
    }
    Ok(entered)
}
