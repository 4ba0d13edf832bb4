//! Workers that fill files.

use crate::objects::{HashError, ObjectError, Objects, copy_file, hash_file};
use crate::tree::attrs::{AttrIo, Attrs, Kind, Target};
use crate::tree::cursor::EntryStat;
use crate::tree::error::{EntryPath, TreeError};
use perennial_core::sealed::entry::Content;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::ioctl_ficlone;
use rustix::io::{Errno, write};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

/// Files given to a worker at once, so that threads do not wake each other for each one, and batches that wait for one:
/// enough that none of them waits, and few descriptors.
const BATCH: usize = 32;
const QUEUE_MAX: usize = 6;

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
    failed: AtomicBool,
    error: Mutex<Option<TreeError>>,
    bytes: AtomicU64,
    no_reflink: AtomicBool,
    /// Batches that are not done.
    open: AtomicUsize,
    lock: Mutex<()>,
    idle: Condvar,
}

/// Workers and their queue.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    queue: SyncSender<Vec<Job>>,
    batch: RefCell<Vec<Job>>,
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
        let (queue, batches) = sync_channel(QUEUE_MAX);
        let batches = Mutex::new(batches);
        std::thread::scope(|scope| {
            for _ in 0..workers.max(1) {
                scope.spawn(|| Worker { objects, shared: &shared, io: AttrIo::default() }.run(&batches));
            }
            let pool = Pool { queue, batch: RefCell::default(), shared: &shared };
            let done = work(&pool);
            if done.is_err() {
                shared.failed.store(true, Ordering::Relaxed);
            }
            drop(pool);
            done
        })
    }

    /// Gives a file to the workers; waits where they have enough to do.
    pub(super) fn add(&self, job: Job) -> Result<(), TreeError> {
        let mut batch = self.batch.borrow_mut();
        batch.push(job);
        if batch.len() < BATCH { Ok(()) } else { self.send(&mut batch) }
    }

    fn send(&self, batch: &mut Vec<Job>) -> Result<(), TreeError> {
        let Some(path) = batch.first().map(|job| job.path.clone()) else { return Ok(()) };
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(std::mem::take(batch)).is_err() {
            return Err(TreeError::system("copy", path, Errno::CANCELED));
        }
        self.failure()
    }

    /// Waits until all files are complete.
    pub(super) fn wait(&self) -> Result<(), TreeError> {
        self.send(&mut self.batch.borrow_mut())?;
        let mut guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.shared.open.load(Ordering::Acquire) > 0 {
            guard = self.shared.idle.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.failure()
    }

    fn failure(&self) -> Result<(), TreeError> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or(Ok(()), Err)
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
    fn run(mut self, batches: &Mutex<Receiver<Vec<Job>>>) {
        loop {
            let next = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = next else { return };
            for job in batch {
                if !self.shared.failed.load(Ordering::Relaxed)
                    && let Err(error) = self.fill(job)
                {
                    let mut first = self.shared.error.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(error);
                    drop(first);
                    self.shared.failed.store(true, Ordering::Release);
                }
            }
            if self.shared.open.fetch_sub(1, Ordering::AcqRel) == 1 {
                let _guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
                self.shared.idle.notify_all();
            }
        }
    }

    fn fill(&mut self, job: Job) -> Result<(), TreeError> {
        let Job { file, content, attrs, path } = job;
        match &content {
            Content::Inline(bytes) => {
                write_all(file.as_fd(), bytes).map_err(|errno| TreeError::system("write", path.clone(), errno))?;
            }
            Content::Object { id, size } => {
                let copied = self.copy(id, *size, file.as_fd());
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
    fn copy(&self, id: &ObjectId, size: u64, file: BorrowedFd<'_>) -> Result<(), ObjectError> {
        let object = self.objects.open_sized(id, size)?;
        let stop = || self.shared.failed.load(Ordering::Relaxed);
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
