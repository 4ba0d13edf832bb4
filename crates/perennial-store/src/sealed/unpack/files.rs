//! Workers that fill files.

use crate::crew::Crew;
use crate::objects::{HashError, ObjectError, Objects, copy_file, hash_file};
use crate::tree::attrs::{AttrIo, Attrs, Kind, Target};
use crate::tree::cursor::EntryStat;
use crate::tree::error::{EntryPath, TreeError};
use perennial_core::sealed::entry::Content;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::ioctl_ficlone;
use rustix::io::{Errno, write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A new, empty file.
#[derive(Debug)]
pub(super) struct Job {
    /// Open for writing.
    pub(super) file: OwnedFd,
    /// What it is to hold.
    pub(super) content: Content,
    /// Its metadata.
    pub(super) attrs: Attrs,
    /// Its path.
    pub(super) path: EntryPath,
}

/// What all workers share.
#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicU64,
    no_reflink: AtomicBool,
}

/// Workers and their queue.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    crew: &'a Crew<'a, Job>,
    shared: &'a Shared,
}

impl Pool<'_> {
    /// Runs something beside workers; they end with it.
    pub(super) fn run<T, E>(
        objects: &Objects,
        workers: usize,
        work: impl FnOnce(&Pool<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let shared = Shared::default();
        let worker = || {
            let mut worker = Worker { objects, shared: &shared, io: AttrIo::default() };
            move |job, failed: &AtomicBool| worker.fill(job, failed)
        };
        Crew::run(workers, worker, |crew| work(&Pool { crew, shared: &shared }))
    }

    /// Gives a file to the workers; waits where they have enough to do.
    pub(super) fn add(&self, job: Job) -> Result<(), TreeError> {
        self.crew.add(job)
    }

    /// Waits until all files are complete.
    pub(super) fn wait(&self) -> Result<(), TreeError> {
        self.crew.wait()
    }

    /// Counts what an entry takes on disk.
    pub(super) fn add_bytes(&self, stat: &EntryStat) {
        self.shared.bytes.fetch_add(stat.allocated, Ordering::Relaxed);
    }

    /// Returns what was counted, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

struct Worker<'a> {
    objects: &'a Objects,
    shared: &'a Shared,
    io: AttrIo,
}

impl Worker<'_> {
    fn fill(&mut self, job: Job, failed: &AtomicBool) -> Result<(), TreeError> {
        let Job { file, content, attrs, path } = job;
        match &content {
            Content::Inline(bytes) => {
                write_all(file.as_fd(), bytes).map_err(|errno| TreeError::system("write", path.clone(), errno))?;
            }
            Content::Object { id, size } => {
                let copied = self.copy((id, *size), file.as_fd(), failed);
                copied.map_err(|source| TreeError::Content { path: path.clone(), source: Box::new(source) })?;
            }
        }
        self.io.apply(Target::Open(file.as_fd()), &attrs, Kind::Other, &|| path.clone())?;
        let stat = EntryStat::of_open(file.as_fd());
        let stat = stat.map_err(|errno| TreeError::system("look at", path, errno))?;
        self.shared.bytes.fetch_add(stat.allocated, Ordering::Relaxed);
        Ok(())
    }

    /// Copies an object and compares what was copied with its name.
    fn copy(&self, (id, size): (&ObjectId, u64), file: BorrowedFd<'_>, failed: &AtomicBool) -> Result<(), ObjectError> {
        let object = self.objects.open_sized(id, size)?;
        let stop = || failed.load(Ordering::Relaxed);
        let (found, _) = if self.reflink(object.as_fd(), file).map_err(ObjectError::system("clone", id))? {
            hash_file(object.as_fd(), &stop)?
        } else {
            copy_file(object.as_fd(), file, &stop).map_err(|error| match error {
                HashError::System(errno) => ObjectError::system("copy", id)(errno),
                HashError::Changed | HashError::Stopped => error.into(),
            })?
        };
        if found == *id {
            Ok(())
        } else {
            Err(ObjectError::Damaged {
                id: *id,
                found: format!("its content is that of object {found}"),
                expected: size,
            })
        }
    }

    fn reflink(&self, object: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<bool, Errno> {
        if self.shared.no_reflink.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match ioctl_ficlone(file, object) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::NOSYS) => {
                self.shared.no_reflink.store(true, Ordering::Relaxed);
                Ok(false)
            }
            // This file cannot be cloned, others may.
            Err(Errno::INVAL) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(file, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
