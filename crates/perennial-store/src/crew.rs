//! Threads that fill files while one thread makes them.
//!
//! Jobs go out in batches, so that threads do not wake each other for each one; the first error stops all.

use crate::tree::error::{EntryPath, TreeError};
use rustix::io::Errno;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, PoisonError};

/// Most jobs of a batch, batches that wait, and threads: enough that none of them waits for long, and few descriptors where a
/// job holds two.
const BATCH: usize = 16;
const QUEUE_MAX: usize = 6;
const WORKERS_MAX: usize = 8;

/// What all threads share.
#[derive(Debug, Default)]
struct Shared {
    failed: AtomicBool,
    error: Mutex<Option<TreeError>>,
    /// Batches that are not done.
    open: AtomicUsize,
    lock: Mutex<()>,
    idle: Condvar,
}

/// The threads and their queue.
#[derive(Debug)]
pub(crate) struct Crew<'a, J> {
    queue: SyncSender<Vec<J>>,
    batch: RefCell<Vec<J>>,
    shared: &'a Shared,
}

impl<J: Send> Crew<'_, J> {
    /// Runs `work` beside so many threads, at least one and not more than make sense; they end with it. `worker` makes
    /// what a thread does with a job; it is given the flag that says that somebody has failed.
    pub(crate) fn run<T, E, W>(
        workers: usize,
        worker: impl Fn() -> W + Sync,
        work: impl FnOnce(&Crew<'_, J>) -> Result<T, E>,
    ) -> Result<T, E>
    where
        W: FnMut(J, &AtomicBool) -> Result<(), TreeError>,
    {
        let shared = Shared::default();
        let (queue, batches) = sync_channel(QUEUE_MAX);
        let batches = Mutex::new(batches);
        std::thread::scope(|scope| {
            for _ in 0..workers.clamp(1, WORKERS_MAX) {
                scope.spawn(|| shared.serve(&batches, worker()));
            }
            let crew = Crew { queue, batch: RefCell::default(), shared: &shared };
            let done = work(&crew);
            if done.is_err() {
                shared.failed.store(true, Ordering::Relaxed);
            }
            drop(crew);
            done
        })
    }

    /// Gives a job to the threads; waits where they have enough to do.
    pub(crate) fn add(&self, job: J) -> Result<(), TreeError> {
        let mut batch = self.batch.borrow_mut();
        batch.push(job);
        if batch.len() < BATCH { Ok(()) } else { self.send(&mut batch) }
    }

    fn send(&self, batch: &mut Vec<J>) -> Result<(), TreeError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(std::mem::take(batch)).is_err() {
            return Err(TreeError::system("copy", EntryPath::from_bytes(Vec::new()), Errno::CANCELED));
        }
        self.shared.failure()
    }

    /// Waits until all jobs are done.
    pub(crate) fn wait(&self) -> Result<(), TreeError> {
        self.send(&mut self.batch.borrow_mut())?;
        let mut guard = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.shared.open.load(Ordering::Acquire) > 0 {
            guard = self.shared.idle.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.shared.failure()
    }
}

impl Shared {
    fn failure(&self) -> Result<(), TreeError> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or(Ok(()), Err)
    }

    fn serve<J>(
        &self,
        batches: &Mutex<Receiver<Vec<J>>>,
        mut work: impl FnMut(J, &AtomicBool) -> Result<(), TreeError>,
    ) {
        loop {
            let next = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = next else { return };
            for job in batch {
                if !self.failed.load(Ordering::Relaxed)
                    && let Err(error) = work(job, &self.failed)
                {
                    self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    self.failed.store(true, Ordering::Release);
                }
            }
            if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
                let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
                self.idle.notify_all();
            }
        }
    }
}
