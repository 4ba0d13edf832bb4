//! Visits every entry of a tree, of any depth, with a bounded number of descriptors.

use super::cursor::{Cursor, EntryStat, Name, read_names};
use super::error::{PathTrail, TreeError};
use rustix::fd::BorrowedFd;
use std::ffi::CStr;

/// In which order the entries of a directory are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the file system lists them.
    Listed,
    /// By the bytes of their names.
    Sorted,
}

/// An entry of a tree.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The directory it is in.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// What `stat` says.
    pub stat: &'a EntryStat,
    /// Path of the directory it is in.
    pub path: &'a PathTrail,
}

/// One call of a visitor.
#[derive(Debug)]
pub enum Visit<'a> {
    /// An entry that is not a directory.
    NonDir(Entry<'a>),
    /// A directory, before its content; `path` is its own.
    Enter {
        /// The open directory.
        own: BorrowedFd<'a>,
        /// What `stat` says.
        stat: &'a EntryStat,
        /// Its own path.
        path: &'a PathTrail,
    },
    /// A directory, after its content.
    Leave {
        /// The open directory.
        own: BorrowedFd<'a>,
        /// What `stat` said before its content was visited.
        stat: &'a EntryStat,
        /// Its own path.
        path: &'a PathTrail,
    },
}

struct Frame {
    names: std::vec::IntoIter<Name>,
    stat: EntryStat,
}

/// Visits every entry of a tree, its root included.
///
/// # Errors
/// The first error of the walk or of `visit`, which ends the walk.
pub fn walk(
    root: BorrowedFd<'_>,
    order: Order,
    visit: &mut dyn FnMut(Visit<'_>) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    let mut path = PathTrail::default();
    let mut cursor = Cursor::new(root).map_err(|error| error.at(path.here()))?;
    let mut frames = vec![enter(&cursor, &path, order, visit)?];
    while let Some(frame) = frames.last_mut() {
        let Some(Name { name, .. }) = frame.names.next() else {
            visit(Visit::Leave { own: cursor.fd(), stat: &frame.stat, path: &path })?;
            frames.pop();
            cursor.leave().map_err(|error| error.at(path.here()))?;
            path.pop();
            continue;
        };
        let stat =
            EntryStat::of(cursor.fd(), &name).map_err(|errno| TreeError::system("look at", path.join(&name), errno))?;
        if stat.is_dir() {
            cursor.enter(&name).map_err(|error| error.at(path.join(&name)))?;
            path.push(&name);
            frames.push(enter(&cursor, &path, order, visit)?);
        } else {
            visit(Visit::NonDir(Entry { dir: cursor.fd(), name: &name, stat: &stat, path: &path }))?;
        }
    }
    Ok(())
}

fn enter(
    cursor: &Cursor,
    path: &PathTrail,
    order: Order,
    visit: &mut dyn FnMut(Visit<'_>) -> Result<(), TreeError>,
) -> Result<Frame, TreeError> {
    let fail = |action, errno| TreeError::system(action, path.here(), errno);
    let stat = EntryStat::of_open(cursor.fd()).map_err(|errno| fail("look at", errno))?;
    visit(Visit::Enter { own: cursor.fd(), stat: &stat, path })?;
    let mut names = read_names(cursor.fd()).map_err(|errno| fail("list", errno))?;
    match order {
        Order::Listed => {}
        Order::Sorted => names.sort_unstable(),
    }
    Ok(Frame { names: names.into_iter(), stat })
}
