//! Writes and rotates a log.

use super::{LogConfig, LogError, Stream, rotated};
use perennial_core::time::Time;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};

/// The end of a log that is written to.
#[derive(Debug)]
pub struct LogWriter {
    config: LogConfig,
    file: File,
    bytes: u64,
    /// Whether the last piece of each stream ended within a line; a rotation waits for the end of it.
    is_open: [bool; 2],
}

impl LogWriter {
    /// Opens the log for appending, making it if need be.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(config: LogConfig) -> Result<Self, LogError> {
        let opened = append(&config).and_then(|mut file| {
            // An earlier run may have ended, or been cut off, within a line; what this one prints is not the rest of it.
            file.write_all(&ends_of_open_lines(&config.path)?)?;
            Ok((file.metadata()?.len(), file))
        });
        let (bytes, file) = opened.map_err(|source| LogError::new("open", &config.path, source))?;
        Ok(Self { config, file, bytes, is_open: [false; 2] })
    }

    /// Appends what a stream has printed at `at`: as many lines as it holds, and perhaps a part of one.
    ///
    /// # Errors
    /// If writing or rotating fails; what was given is lost then, what follows is tried anew.
    pub fn append(&mut self, stream: Stream, bytes: &[u8], at: Time) -> Result<(), LogError> {
        let mut rest = bytes;
        if self.is_full() && self.is_open.contains(&true) {
            // The end of the line that has begun goes where its beginning is.
            let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at.saturating_add(1));
            let (head, tail) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
            self.write(stream, head, at)?;
            rest = tail;
        }
        if self.is_full() && (!self.is_open.contains(&true) || self.is_overfull()) {
            self.rotate().map_err(|source| LogError::new("rotate", &self.config.path, source))?;
        }
        match rest {
            [] => Ok(()),
            _ => self.write(stream, rest, at),
        }
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.config.bytes_max
    }

    /// A line without an end must not keep the file growing without bound.
    fn is_overfull(&self) -> bool {
        self.bytes >= self.config.bytes_max.saturating_mul(2)
    }

    fn write(&mut self, stream: Stream, bytes: &[u8], at: Time) -> Result<(), LogError> {
        let (text, ends_open) = format(stream, bytes, at);
        self.file.write_all(&text).map_err(|source| LogError::new("write", &self.config.path, source))?;
        self.bytes = self.bytes.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        let [stdout, stderr] = &mut self.is_open;
        match stream {
            Stream::Stdout => *stdout = ends_open,
            Stream::Stderr => *stderr = ends_open,
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let kept = self.config.files_max.max(1).saturating_sub(1);
        for number in (1..kept).rev() {
            rename(&rotated(&self.config.path, number), &rotated(&self.config.path, number.saturating_add(1)))?;
        }
        match kept {
            0 => std::fs::remove_file(&self.config.path)?,
            _ => rename(&self.config.path, &rotated(&self.config.path, 1))?,
        }
        self.file = append(&self.config)?;
        self.bytes = 0;
        self.is_open = [false; 2];
        Ok(())
    }
}

/// Bytes at the end of a log that are looked at for lines without an end; a piece of output is far smaller.
const TAIL_BYTES: u64 = 256 * 1024;

/// Returns the records that end the lines which the last records of either stream left open.
fn ends_of_open_lines(path: &std::path::Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let mut last = [None, None];
    for line in tail.split(|byte| *byte == b'\n') {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (Some(at), Some(stream), Some(tag)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let [stdout, stderr] = &mut last;
        let slot = if stream == Stream::Stderr.as_str().as_bytes() { stderr } else { stdout };
        *slot = (tag == b"P").then_some([at, stream]);
    }
    let mut ends = Vec::new();
    for [at, stream] in last.into_iter().flatten() {
        ends.extend_from_slice(&[at, stream, b"F \n"].join(&b' '));
    }
    Ok(ends)
}

fn append(config: &LogConfig) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(&config.path)
}

fn rename(from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns the lines for the log, and whether the last of them is only the beginning of a line.
fn format(stream: Stream, bytes: &[u8], at: Time) -> (Vec<u8>, bool) {
    let prefix = format!("{at} {} ", stream.as_str());
    let mut text = Vec::with_capacity(bytes.len().saturating_add(prefix.len()).saturating_add(8));
    let mut ends_open = false;
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        text.extend_from_slice(prefix.as_bytes());
        ends_open = !piece.ends_with(b"\n");
        text.extend_from_slice(if ends_open { b"P " } else { b"F " });
        text.extend_from_slice(piece);
        if ends_open {
            text.push(b'\n');
        }
    }
    (text, ends_open)
}
