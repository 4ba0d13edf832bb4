//! Work that nobody waits for, with little demand on processors and disks.
//!
//! Priorities belong to threads; those that are started meanwhile begin with the same.
//!
//! Of disks it takes what is left by everybody of the same class (best effort, lowest level), not what is left by all: a
//! command may wait for a lock that the work holds, and one that is served only when the disk is idle lets go of it late,
//! after ten seconds for each request with the scheduler `mq-deadline` (`prio_aging_expire`). A process that its owner has
//! put into the idle class stays there.

use std::ffi::c_long;

/// As nice as can be.
const NICE: i32 = 19;

/// Where the class is in a priority of input and output, and those classes that matter here (`ioprio_set(2)`).
const CLASS_SHIFT: u32 = 13;
const CLASS_BEST_EFFORT: c_long = 2;
const CLASS_IDLE: c_long = 3;
const LEVEL_LOWEST: c_long = 7;
/// What is meant is a thread; 0 is the one that asks.
const WHO_PROCESS: c_long = 1;

/// As long as there is one, its thread works in the background.
#[derive(Debug)]
#[must_use = "the thread leaves the background when this is dropped"]
pub struct Background {
    nice: Option<i32>,
    io: Option<c_long>,
}

impl Background {
    /// Takes the calling thread into the background; what the kernel refuses stays as it is.
    pub fn enter() -> Self {
        // First what it is: while nothing was set, it follows from how nice the thread is.
        let io = io_priority();
        let nice = rustix::process::getpriority_process(None).ok();
        rustix::process::setpriority_process(None, NICE).ok();
        if let Some(io) = io {
            set_io_priority(lowered(io));
        }
        Self { nice, io }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(nice) = self.nice {
            rustix::process::setpriority_process(None, nice).ok();
        }
        if let Some(io) = self.io {
            set_io_priority(io);
        }
    }
}

/// Returns the priority of input and output in the background of one that is otherwise `io`.
const fn lowered(io: c_long) -> c_long {
    if io >> CLASS_SHIFT == CLASS_IDLE { io } else { (CLASS_BEST_EFFORT << CLASS_SHIFT) | LEVEL_LOWEST }
}

fn io_priority() -> Option<c_long> {
    // SAFETY: it takes two numbers, and no memory.
    #[expect(unsafe_code, reason = "rustix does not know this call")]
    let found = unsafe { libc::syscall(libc::SYS_ioprio_get, WHO_PROCESS, 0 as c_long) };
    (found >= 0).then_some(found)
}

fn set_io_priority(io: c_long) {
    // SAFETY: it takes three numbers, and no memory.
    #[expect(unsafe_code, reason = "rustix does not know this call")]
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0 as c_long, io) };
    // Where it is refused, how nice the thread is has to do.
    let _: c_long = done;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_idle_becomes_the_lowest_best_effort() {
        let of = |class: c_long, level: c_long| (class << CLASS_SHIFT) | level;
        for (class, level, expected) in
            [(0, 0, of(2, 7)), (1, 0, of(2, 7)), (2, 0, of(2, 7)), (2, 7, of(2, 7)), (3, 0, of(3, 0)), (3, 7, of(3, 7))]
        {
            assert_eq!(lowered(of(class, level)), expected, "{class} {level}");
        }
    }

    #[test]
    fn a_thread_comes_back_as_it_was_and_those_it_starts_are_as_it_is() {
        let now = || (rustix::process::getpriority_process(None).unwrap(), io_priority());
        let apart = std::thread::spawn(move || {
            set_io_priority((CLASS_BEST_EFFORT << CLASS_SHIFT) | 3);
            let before = now();
            let lowest = (NICE, Some((CLASS_BEST_EFFORT << CLASS_SHIFT) | LEVEL_LOWEST));
            let background = Background::enter();
            assert_eq!(now(), lowest);
            assert_eq!(std::thread::spawn(now).join().unwrap(), lowest);
            drop(background);
            assert_eq!(now(), before);
        });
        apart.join().unwrap();
    }
}
