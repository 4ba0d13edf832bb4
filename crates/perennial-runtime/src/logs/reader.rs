//! Reads a log, follows it, and crosses rotations.

use super::{LogError, Stream, rotated};
use perennial_core::time::Time;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Most full files looked for beside the one that is written to.
const FILES_MAX: u32 = 1000;
/// Longest line taken from a file that something else may have damaged.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// One piece of output: a line with its end, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was printed.
    pub at: Time,
    /// Where it was printed.
    pub stream: Stream,
    /// What was printed, with the newline where the line ends here.
    pub text: Vec<u8>,
}

impl LogLine {
    /// Tells whether the line ends here.
    #[must_use]
    pub fn is_end_of_line(&self) -> bool {
        self.text.ends_with(b"\n")
    }
}

/// Which lines are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Only so many lines from the end.
    pub tail: Option<usize>,
    /// Only those printed at or after this instant.
    pub since: Option<Time>,
}

/// Reads the pieces of a log from the oldest file to the newest, and what is appended later.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// Files still to be read, oldest first.
    waiting: VecDeque<BufReader<File>>,
    current: Option<(BufReader<File>, u64)>,
    /// The beginning of a line of the file whose end has not been written yet.
    rest: Vec<u8>,
    /// Whether the file has been rotated, and is read to its end once more.
    is_last_look: bool,
}

impl LogReader {
    /// Opens the log at `path`; a log that does not exist yet is empty.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), waiting: VecDeque::new(), current: None, rest: Vec::new(), is_last_look: false }
    }

    /// Returns what is there now, within the bounds of `options`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read_all(&mut self, options: &ReadOptions) -> Result<Vec<LogLine>, LogError> {
        self.open_older()?;
        let mut lines = VecDeque::new();
        // Ends of lines kept, so that `tail` counts lines and not pieces.
        let mut ends: usize = 0;
        while let Some(line) = self.next_line()? {
            if options.since.is_some_and(|since| line.at < since) {
                continue;
            }
            ends = ends.saturating_add(usize::from(line.is_end_of_line()));
            lines.push_back(line);
            while options.tail.is_some_and(|tail| lines_in(&lines, ends) > tail) {
                if let Some(dropped) = lines.pop_front() {
                    ends = ends.saturating_sub(usize::from(dropped.is_end_of_line()));
                }
            }
        }
        Ok(lines.into())
    }

    /// Returns the next piece, if one has been written: to follow, call it again after a while. It moves on to the
    /// next file when the log has been rotated.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn next_line(&mut self) -> Result<Option<LogLine>, LogError> {
        let path = self.path.clone();
        let fail = |source| LogError::new("read", &path, source);
        loop {
            if self.current.is_none() && !self.advance().map_err(fail)? {
                return Ok(None);
            }
            let Some((reader, _)) = &mut self.current else { return Ok(None) };
            let count = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.rest).map_err(fail)?;
            if self.rest.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                // Something else has written here; what is not a line of a log is left out.
                if let Some(line) = parse(&line) {
                    return Ok(Some(line));
                }
            } else if count > 0 {
                if u64::try_from(self.rest.len()).is_ok_and(|bytes| bytes > LINE_BYTES_MAX) {
                    self.rest.clear();
                }
            } else if self.is_last_look {
                self.leave().map_err(fail)?;
            } else if self.is_rotated().map_err(fail)? {
                // Something may have been appended between the end of the file and the rotation.
                self.is_last_look = true;
            } else {
                return Ok(None);
            }
        }
    }

    /// Opens the full files, so that those that a rotation removes meanwhile can still be read.
    fn open_older(&mut self) -> Result<(), LogError> {
        self.queue_newer_than(None).map_err(|source| LogError::new("read", &self.path, source))
    }

    /// Leaves the current file for those that have been written since.
    fn leave(&mut self) -> io::Result<()> {
        self.rest.clear();
        self.is_last_look = false;
        let inode = self.current.take().map(|(_, inode)| inode);
        match self.waiting.is_empty() {
            true => self.queue_newer_than(inode),
            false => Ok(()),
        }
    }

    /// Queues the full files, oldest first, that are newer than the one with `inode`; all where it is not there.
    fn queue_newer_than(&mut self, inode: Option<u64>) -> io::Result<()> {
        for number in 1..=FILES_MAX {
            match File::open(rotated(&self.path, number)) {
                Ok(file) if Some(file.metadata()?.ino()) == inode => break,
                Ok(file) => self.waiting.push_front(BufReader::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the next file; false if there is none yet.
    fn advance(&mut self) -> io::Result<bool> {
        let reader = match self.waiting.pop_front() {
            Some(reader) => reader,
            None => match File::open(&self.path) {
                Ok(file) => BufReader::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let inode = reader.get_ref().metadata()?.ino();
        self.current = Some((reader, inode));
        Ok(true)
    }

    /// Tells whether the file at its end is not the one that is written to.
    fn is_rotated(&self) -> io::Result<bool> {
        let Some((_, inode)) = &self.current else { return Ok(true) };
        if !self.waiting.is_empty() {
            return Ok(true);
        }
        match std::fs::metadata(&self.path) {
            Ok(metadata) => Ok(metadata.ino() != *inode),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn lines_in(lines: &VecDeque<LogLine>, ends: usize) -> usize {
    let is_open = lines.back().is_some_and(|line| !line.is_end_of_line());
    ends.saturating_add(usize::from(is_open))
}

/// Parses `TIME STREAM P|F TEXT`.
fn parse(line: &[u8]) -> Option<LogLine> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let at = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let is_full = match fields.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let mut text = fields.next()?.to_vec();
    if !is_full {
        text.pop();
    }
    Some(LogLine { at, stream, text })
}
