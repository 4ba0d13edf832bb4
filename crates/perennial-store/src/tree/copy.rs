//! Copies one entry that is not a directory: content with its holes, links, special files, and all metadata.

use super::attrs::{AttrIo, Flags, Kind, Reading, Target, apply_early_flags, read_flags, refused};
use super::cursor::EntryStat;
use super::error::{EntryPath, TreeError};
use super::overlay;
use crate::crew::Crew;
use crate::objects::Objects;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{
    FileType, IFlags, Mode, OFlags, SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, mknodat, openat, readlinkat,
    seek, symlinkat,
};
use rustix::io::Errno;
use std::ffi::CStr;

/// Most bytes one system call copies, so that a fold or a cancellation never waits long.
const CHUNK_BYTES_MAX: u64 = 64 * 1024 * 1024;
const BUFFER_BYTES: usize = 256 * 1024;

/// An entry to copy: where it is, or where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Open directory.
    pub dir: BorrowedFd<'a>,
    /// Name in it.
    pub name: &'a CStr,
}

/// Copies entries; remembers what the file systems can do.
#[derive(Debug, Default)]
pub struct Copier<'a> {
    /// Reads and applies metadata.
    pub io: AttrIo,
    /// Where contents of sealed layers are.
    objects: Option<&'a Objects>,
    /// Those who fill files that are made here.
    crew: Option<&'a Crew<'a, Filling>>,
    no_reflink: bool,
    no_kernel_copy: bool,
}

/// A file that is made and has yet to get its content and its metadata.
#[derive(Debug)]
pub(crate) struct Filling {
    source: OwnedFd,
    target: OwnedFd,
    stat: EntryStat,
    flags: Option<IFlags>,
    path: EntryPath,
}

impl<'a> Copier<'a> {
    /// Returns what makes others for the same task, with nobody to help them.
    pub(crate) fn others(&self) -> impl Fn() -> Self + Sync + use<'a> {
        let (reading, objects) = (self.io.reading(), self.objects);
        move || Self { io: AttrIo::new(reading), objects, ..Self::default() }
    }

    /// Leaves the filling of files to others. They are complete when those have done.
    pub(crate) fn helped_by<'b>(self, crew: &'b Crew<'b, Filling>) -> Copier<'b>
    where
        'a: 'b,
    {
        Copier { crew: Some(crew), ..self }
    }

    /// Makes one that can read sealed layers.
    #[must_use]
    pub fn with_objects(objects: &'a Objects) -> Self {
        Self { objects: Some(objects), ..Self::default() }
    }

    /// Makes one that copies from mounted views.
    #[must_use]
    pub fn of_views() -> Self {
        Self { io: AttrIo::new(Reading::Views), ..Self::default() }
    }

    /// Copies an entry that is not a directory to a name that does not exist yet.
    ///
    /// # Errors
    /// If anything of it cannot be read or written.
    pub fn copy(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        let fail = |action, errno| TreeError::system(action, path(), errno);
        match stat.file_type() {
            FileType::RegularFile => return self.copy_file(from, to, path),
            FileType::Symlink => {
                let target = readlinkat(from.dir, from.name, Vec::new()).map_err(|errno| fail("read", errno))?;
                symlinkat(target.as_c_str(), to.dir, to.name).map_err(|errno| fail("create", errno))?;
            }
            file_type @ (FileType::Fifo | FileType::Socket | FileType::CharacterDevice | FileType::BlockDevice) => {
                mknodat(to.dir, to.name, file_type, Mode::RUSR | Mode::WUSR, stat.rdev)
                    .map_err(|errno| fail("create", errno))?;
            }
            FileType::Directory | FileType::Unknown => return Err(fail("copy", Errno::ISDIR)),
        }
        let kind = if stat.file_type() == FileType::Symlink { Kind::Symlink } else { Kind::Other };
        let attrs = self.io.read(Target::Named(from.dir, from.name), stat, path)?;
        self.io.apply(Target::Named(to.dir, to.name), &attrs, kind, path)
    }

    fn copy_file(&mut self, from: Place<'_>, to: Place<'_>, path: &dyn Fn() -> EntryPath) -> Result<(), TreeError> {
        let fail = |action, errno| TreeError::system(action, path(), errno);
        let source = open_file(from).map_err(|errno| fail("open", errno))?;
        let stat = EntryStat::of_open(source.as_fd()).map_err(|errno| fail("look at", errno))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = openat(to.dir, to.name, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| fail("create", errno))?;
        let flags = read_flags(source.as_fd())
            .and_then(|flags| apply_early_flags(target.as_fd(), flags).map(|()| flags))
            .map_err(|errno| fail("set the inode flags of", errno))?;
        let filling = Filling { source, target, stat, flags, path: path() };
        match self.crew {
            Some(crew) => crew.add(filling),
            None => self.fill(&filling),
        }
    }

    /// Gives a new file its content and its metadata.
    pub(crate) fn fill(&mut self, filling: &Filling) -> Result<(), TreeError> {
        let Filling { source, target, stat, flags, path } = filling;
        let path = || path.clone();
        let object = self.content(source, stat, &path)?;
        self.copy_data(object.as_ref().unwrap_or(source).as_fd(), target.as_fd(), stat.size, &path)?;
        let attrs = self.io.read_with(Target::Open(source.as_fd()), stat, Flags::Known(*flags), &path)?;
        self.io.apply(Target::Open(target.as_fd()), &attrs, Kind::Other, &path)
    }

    /// Opens the object that is the content of a file, if it is one.
    pub(crate) fn content(
        &mut self,
        file: &OwnedFd,
        stat: &EntryStat,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<Option<OwnedFd>, TreeError> {
        let Some(id) = self.io.object(Target::Open(file.as_fd()), path)? else { return Ok(None) };
        let Some(objects) = self.objects else {
            return Err(refused(overlay::METACOPY, b"", path()));
        };
        // Read twice rather than pass on what is not what it was; the second time it is in memory.
        objects.open_intact(&id, stat.size).map(Some).map_err(|source| {
            let source = Box::new(source);
            TreeError::Content { path: path(), source }
        })
    }

    /// Copies the content of an open file into an empty one; holes stay holes.
    pub(crate) fn copy_data(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        size: u64,
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        if size == 0 || self.reflink(source, target).map_err(|errno| TreeError::system("clone", path(), errno))? {
            return Ok(());
        }
        let fail = |errno| TreeError::system("copy", path(), errno);
        let (mut offset, mut written) = (0_u64, 0_u64);
        while offset < size {
            let data = match seek(source, SeekFrom::Data(offset)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(errno) => return Err(fail(errno)),
            };
            let hole = seek(source, SeekFrom::Hole(data)).map_err(fail)?.min(size);
            self.copy_stretch(source, target, (data, hole), path)?;
            if hole > data {
                written = hole;
            }
            offset = hole.max(data);
        }
        // Most files end with data, and setting a length takes as long as writing 8 kB.
        if written < size { ftruncate(target, size).map_err(fail) } else { Ok(()) }
    }

    fn copy_stretch(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        (mut position, until): (u64, u64),
        path: &dyn Fn() -> EntryPath,
    ) -> Result<(), TreeError> {
        while position < until {
            let copied = self.copy_some(source, target, position, until);
            let copied = copied.map_err(|errno| TreeError::system("copy", path(), errno))?;
            if copied == 0 {
                return Err(TreeError::Shortened { path: path() });
            }
            position = position.saturating_add(copied);
        }
        Ok(())
    }

    fn reflink(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<bool, Errno> {
        if self.no_reflink {
            return Ok(false);
        }
        match ioctl_ficlone(target, source) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::NOSYS) => {
                self.no_reflink = true;
                Ok(false)
            }
            // This file cannot be cloned, others may.
            Err(Errno::INVAL) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    fn copy_some(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        from: u64,
        until: u64,
    ) -> Result<u64, Errno> {
        let wanted = until.saturating_sub(from).min(CHUNK_BYTES_MAX);
        if !self.no_kernel_copy {
            let (mut source_at, mut target_at) = (from, from);
            let length = usize::try_from(wanted).unwrap_or(BUFFER_BYTES);
            match copy_file_range(source, Some(&mut source_at), target, Some(&mut target_at), length) {
                Ok(copied) if copied > 0 => return Ok(u64::try_from(copied).unwrap_or(0)),
                // Some file systems answer 0 instead of an error; reading decides.
                Ok(_) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::IO) => {
                    self.no_kernel_copy = true;
                }
                Err(errno) => return Err(errno),
            }
        }
        copy_by_reading(source, target, from, wanted)
    }
}

fn copy_by_reading(source: BorrowedFd<'_>, target: BorrowedFd<'_>, from: u64, wanted: u64) -> Result<u64, Errno> {
    let mut buffer = vec![0_u8; usize::try_from(wanted).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES)];
    let length = rustix::io::pread(source, buffer.as_mut_slice(), from)?;
    let mut rest = buffer.get(..length).unwrap_or_default();
    let mut position = from;
    while !rest.is_empty() {
        let written = rustix::io::pwrite(target, rest, position)?;
        rest = rest.get(written..).unwrap_or_default();
        position = position.saturating_add(u64::try_from(written).unwrap_or(0));
    }
    Ok(position.saturating_sub(from))
}

/// Opens a regular file for reading without touching its time of access.
pub(crate) fn open_file(place: Place<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
    openat(place.dir, place.name, flags, Mode::empty())
}
