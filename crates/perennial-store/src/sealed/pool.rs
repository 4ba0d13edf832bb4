//! Workers that hash and keep contents, and the directories that wait for them.
//!
//! Directories leave in the order in which they came, however long their contents take. What waits is bounded, so that
//! memory and descriptors are.

use super::build::{Built, Job};
use super::error::SealError;
use crate::objects::{How, ObjectError, Objects, Stored};
use crate::tree::EntryPath;
use perennial_core::sealed::entry::{Content, Directory, Inode, Item, Node};
use rustix::fd::AsFd as _;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Files that wait for a worker, each with a descriptor.
const JOBS_MAX: usize = 128;
/// Entries of directories that wait for contents: some megabytes.
const ENTRIES_MAX: usize = 8192;
/// Time between two looks at whether to give way while contents are awaited.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A file for a worker: the number of its directory, and the rest.
type Task = (u64, Job);

struct Done {
    directory: u64,
    entry: usize,
    path: EntryPath,
    result: Result<Stored, ObjectError>,
}

/// What was kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Objects that were not there before.
    pub objects: u64,
    /// Their lengths, in bytes.
    pub bytes: u64,
    /// Bytes of contents that were read for all this.
    pub read: u64,
}

#[derive(Debug)]
struct Waiting {
    directory: Directory,
    contents: usize,
}

/// The workers and what waits for them.
pub(super) struct Pool<'a> {
    tasks: SyncSender<Task>,
    done: Receiver<Done>,
    waiting: VecDeque<Waiting>,
    /// Number of the first waiting directory.
    first: u64,
    entries: usize,
    kept: Kept,
    give_way: &'a mut dyn FnMut() -> bool,
    emit: &'a mut dyn FnMut(&Directory) -> Result<(), SealError>,
}

/// Runs `feed`, which adds directories to the pool, with so many workers; returns what they kept.
pub(super) fn run(
    (objects, workers): (&Objects, usize),
    give_way: &mut dyn FnMut() -> bool,
    emit: &mut dyn FnMut(&Directory) -> Result<(), SealError>,
    feed: &mut dyn FnMut(&mut Pool<'_>) -> Result<(), SealError>,
) -> Result<Kept, SealError> {
    let stop = AtomicBool::new(false);
    let (tasks, inbox) = sync_channel::<Task>(JOBS_MAX);
    let (outbox, done) = channel::<Done>();
    let inbox = Mutex::new(inbox);
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            let outbox = outbox.clone();
            scope.spawn(|| work(&inbox, outbox, objects, &stop));
        }
        drop(outbox);
        let waiting = VecDeque::new();
        let mut pool = Pool { tasks, done, waiting, first: 0, entries: 0, kept: Kept::default(), give_way, emit };
        let fed = feed(&mut pool).and_then(|()| pool.finish());
        // Workers end when there is nothing left to take, and at once where nobody waits for them.
        stop.store(fed.is_err(), Ordering::Relaxed);
        fed.map(|()| pool.kept)
    })
}

fn work(inbox: &Mutex<Receiver<Task>>, outbox: Sender<Done>, objects: &Objects, stop: &AtomicBool) {
    loop {
        let task = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((directory, Job { entry, file, older, path })) = task else { break };
        let result = objects.put_over(file.as_fd(), older.as_ref(), &|| stop.load(Ordering::Relaxed));
        if outbox.send(Done { directory, entry, path, result }).is_err() {
            break;
        }
    }
}

impl Pool<'_> {
    /// Adds a directory; waits while too much waits already.
    pub(super) fn add(&mut self, built: Built) -> Result<(), SealError> {
        let number = self.first.saturating_add(u64::try_from(self.waiting.len()).unwrap_or(0));
        self.entries = self.entries.saturating_add(built.directory.entries.len()).saturating_add(1);
        self.waiting.push_back(Waiting { directory: built.directory, contents: built.jobs.len() });
        for job in built.jobs {
            let mut task = (number, job);
            loop {
                match self.tasks.try_send(task) {
                    Ok(()) => break,
                    Err(TrySendError::Full(back)) => task = back,
                    // Every worker is gone: one of them has panicked, and the scope says so.
                    Err(TrySendError::Disconnected(_)) => return Err(SealError::GaveWay),
                }
                self.wait()?;
            }
        }
        while let Ok(done) = self.done.try_recv() {
            self.settle(done)?;
        }
        self.emit_ready()?;
        while self.entries > ENTRIES_MAX {
            self.wait()?;
        }
        self.may_go_on()
    }

    fn finish(&mut self) -> Result<(), SealError> {
        while !self.waiting.is_empty() {
            self.wait()?;
        }
        Ok(())
    }

    pub(super) fn may_go_on(&mut self) -> Result<(), SealError> {
        if (self.give_way)() { Err(SealError::GaveWay) } else { Ok(()) }
    }

    /// Waits for one content, for a moment.
    fn wait(&mut self) -> Result<(), SealError> {
        self.emit_ready()?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        match self.done.recv_timeout(LOOK_INTERVAL) {
            Ok(done) => self.settle(done)?,
            Err(RecvTimeoutError::Timeout) => self.may_go_on()?,
            Err(RecvTimeoutError::Disconnected) => return Err(SealError::GaveWay),
        }
        self.emit_ready()
    }

    fn settle(&mut self, done: Done) -> Result<(), SealError> {
        let Done { directory, entry, path, result } = done;
        let Stored { id, size, how, read } = result.map_err(|source| match source.is_stopped() {
            true => SealError::GaveWay,
            false => SealError::Content { path, source: Box::new(source) },
        })?;
        self.kept.read = self.kept.read.saturating_add(read);
        if how != How::Present {
            self.kept.objects = self.kept.objects.saturating_add(1);
            self.kept.bytes = self.kept.bytes.saturating_add(size);
        }
        let at = usize::try_from(directory.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let Some(waiting) = self.waiting.get_mut(at) else { return Ok(()) };
        waiting.contents = waiting.contents.saturating_sub(1);
        if let Some(Item::Inode(Inode { node: Node::File(content), .. })) =
            waiting.directory.entries.get_mut(entry).map(|entry| &mut entry.item)
        {
            *content = Content::Object { id, size };
        }
        Ok(())
    }

    fn emit_ready(&mut self) -> Result<(), SealError> {
        while self.waiting.front().is_some_and(|front| front.contents == 0) {
            let Some(Waiting { directory, .. }) = self.waiting.pop_front() else { break };
            self.first = self.first.saturating_add(1);
            self.entries = self.entries.saturating_sub(directory.entries.len()).saturating_sub(1);
            (self.emit)(&directory)?;
        }
        Ok(())
    }
}
