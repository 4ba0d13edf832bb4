//! Two directories walked together, one read and one written, however deep: at most [`OPEN_MAX`] pairs stay open.

use crate::tarball::lossy;
use rustix::fs::{self, Dir, Mode, OFlags};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

/// Pairs of directories kept open on the way down; those above are opened again through `..`.
const OPEN_MAX: usize = 32;
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory and its copy.
pub(super) struct Pair {
    pub(super) from: OwnedFd,
    pub(super) to: OwnedFd,
    identity: (u64, u64),
}

impl Pair {
    pub(super) fn new(from: OwnedFd, to: OwnedFd) -> io::Result<Self> {
        let stat = fs::fstat(&from)?;
        Ok(Self { from, to, identity: (stat.st_dev, stat.st_ino) })
    }

    pub(super) fn child(&self, name: &[u8]) -> io::Result<Self> {
        let from = fs::openat(&self.from, name, FLAGS, Mode::empty())?;
        Self::new(from, fs::openat(&self.to, name, FLAGS, Mode::empty())?)
    }

    /// Returns the names in the directory that is read, sorted, the last first.
    pub(super) fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.from)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }
}

/// Directories from the root to where the walk is.
pub(super) struct Stack {
    open: VecDeque<Pair>,
    /// What the directories that are closed were, so that coming back elsewhere is noticed.
    closed: Vec<(u64, u64)>,
}

impl Stack {
    pub(super) fn new(root: Pair) -> Self {
        Self { open: VecDeque::from([root]), closed: Vec::new() }
    }

    pub(super) fn top(&self) -> io::Result<&Pair> {
        self.open.back().ok_or_else(|| io::Error::other("the walk has ended"))
    }

    pub(super) fn enter(&mut self, name: &[u8]) -> io::Result<()> {
        let child = self.top()?.child(name)?;
        self.open.push_back(child);
        if self.open.len() > OPEN_MAX
            && let Some(pair) = self.open.pop_front()
        {
            self.closed.push(pair.identity);
        }
        Ok(())
    }

    /// Goes back to the directory above; returns whether there is one.
    pub(super) fn leave(&mut self) -> io::Result<bool> {
        let Some(left) = self.open.pop_back() else {
            return Ok(false);
        };
        if !self.open.is_empty() {
            return Ok(true);
        }
        let Some(identity) = self.closed.pop() else {
            return Ok(false);
        };
        let from = fs::openat(&left.from, "..", FLAGS, Mode::empty())?;
        let pair = Pair::new(from, fs::openat(&left.to, "..", FLAGS, Mode::empty())?)?;
        if pair.identity != identity {
            return Err(io::Error::other("a directory was moved while it was copied"));
        }
        self.open.push_back(pair);
        Ok(true)
    }
}

/// Returns a path for people; the walk itself never uses one.
pub(super) fn shown(path: &[u8]) -> String {
    lossy(path)
}
