//! Threads that take objects out of packs, while another thread says which, and may still be fetching the rest.
//!
//! ```text
//! runs ──▶ queue ──▶ as many threads as processors ──▶ files without a name ──sync──▶ objects/
//! ```
//!
//! Each has frames of its own at hand, so a run is what lies close together ([`Cold::runs`]). The first error ends all.

use crate::failure::{Failure, Result};
use perennial_core::sealed::object::ObjectId;
use perennial_store::cold::{Cold, ColdError, HotObjects};
use perennial_store::objects::Objects;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Objects that are made durable together: each keeps a file open, of which a process may have 1024, and as many more
/// come while these are synced.
const BATCH: usize = 256;
/// Most threads, and runs that wait for each of them. Frames kept take 32 MiB a thread where they are all in use.
const WORKERS_MAX: usize = 4;
const WAITING_MAX: usize = 2;

/// Objects on their way back: they get their names when their contents are durable.
#[derive(Debug)]
struct Batch<'a> {
    objects: &'a Objects,
    files: Mutex<Vec<(ObjectId, File)>>,
    /// Held by who makes files durable.
    landing: Mutex<()>,
}

impl HotObjects for Batch<'_> {
    fn open(&self, id: &ObjectId) -> std::io::Result<File> {
        HotObjects::open(self.objects, id)
    }

    fn adopt(&self, id: &ObjectId, content: &File) -> std::io::Result<()> {
        locked(&self.files).push((*id, content.try_clone()?));
        Ok(())
    }
}

impl Batch<'_> {
    /// Gives the contents their names where there are `at_least` so many; who comes while others are synced waits, so that
    /// not too many files are open.
    fn land(&self, at_least: usize) -> Result<()> {
        if locked(&self.files).len() < at_least {
            return Ok(());
        }
        let _turn = locked(&self.landing);
        let files = {
            let mut files = locked(&self.files);
            if files.len() < at_least { Vec::new() } else { std::mem::take(&mut *files) }
        };
        if files.is_empty() {
            return Ok(());
        }
        self.objects.sync()?;
        for (id, file) in files {
            HotObjects::adopt(self.objects, &id, &file)?;
        }
        Ok(())
    }
}

/// What all threads share.
struct Shared<'a> {
    batch: Batch<'a>,
    explain: fn(ColdError) -> Failure,
    failed: AtomicBool,
    error: Mutex<Option<Failure>>,
    done: AtomicUsize,
}

/// The threads and their queue.
pub(in crate::engine) struct Thawers<'a> {
    queue: SyncSender<Vec<ObjectId>>,
    shared: &'a Shared<'a>,
}

impl Thawers<'_> {
    /// Runs `work` beside threads that thaw what it gives them from the packs of `cold`; all of it has its name when this
    /// returns. `explain` says what it means that something cannot be thawed.
    ///
    /// # Errors
    /// Those of `work`, and the first of a thread; objects that have their names then are whole.
    pub(in crate::engine) fn run(
        cold: &Cold,
        objects: &Objects,
        explain: fn(ColdError) -> Failure,
        work: impl FnOnce(&Thawers<'_>) -> Result<()>,
    ) -> Result<()> {
        let batch = Batch { objects, files: Mutex::default(), landing: Mutex::default() };
        let (failed, error, done) = (AtomicBool::new(false), Mutex::default(), AtomicUsize::new(0));
        let shared = Shared { batch, explain, failed, error, done };
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(WORKERS_MAX);
        let (queue, runs) = sync_channel(workers.saturating_mul(WAITING_MAX));
        let runs = Mutex::new(runs);
        let worked = std::thread::scope(|scope| {
            for _ in 0..workers {
                let (cold, shared, runs) = (cold.another(), &shared, &runs);
                scope.spawn(move || shared.serve(cold, runs));
            }
            let thawers = Thawers { queue, shared: &shared };
            let worked = work(&thawers);
            if worked.is_err() {
                shared.failed.store(true, Ordering::Relaxed);
            }
            worked
        });
        if let Some(error) = locked(&shared.error).take() {
            return Err(error);
        }
        worked?;
        shared.batch.land(1)
    }

    /// Gives a run to the threads; waits where they have enough to do. Nothing is done any more once one has failed.
    pub(in crate::engine) fn add(&self, run: &[ObjectId]) {
        // The threads take what comes as long as there is somebody to send.
        self.queue.send(run.to_vec()).ok();
    }

    /// Returns how many objects are thawed.
    pub(in crate::engine) fn done(&self) -> usize {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Returns whether a thread has failed, so that nothing more is needed.
    pub(in crate::engine) fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }
}

impl Shared<'_> {
    fn serve(&self, mut cold: Cold, runs: &Mutex<Receiver<Vec<ObjectId>>>) {
        loop {
            let next = locked(runs).recv();
            let Ok(run) = next else { return };
            for object in run {
                if self.failed.load(Ordering::Relaxed) {
                    break;
                }
                if let Err(error) = self.thaw(&mut cold, &object) {
                    locked(&self.error).get_or_insert(error);
                    self.failed.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn thaw(&self, cold: &mut Cold, object: &ObjectId) -> Result<()> {
        cold.thaw(object, &self.batch).map_err(self.explain)?;
        self.done.fetch_add(1, Ordering::Relaxed);
        self.batch.land(BATCH)
    }
}

/// A thread that panicked has left these values whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
