//! Outboards beside the objects they are made from. They go with them, and none is worth an error: what is missing or
//! wrong is made again when it is next of use.

use super::{ObjectError, ObjectStat, Objects, TEMPORARY, id_of};
use crate::tree::cursor::{EntryStat, read_names};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::outboard::{SUFFIX, may_be_kept};
use rustix::fd::{AsFd as _, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, fchmod, openat, unlinkat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;

fn path_of(id: &ObjectId) -> String {
    format!("{}{SUFFIX}", id.relative_path())
}

impl Objects {
    /// Opens the outboard of an object, if it can be read.
    pub(super) fn open_outboard(&self, id: &ObjectId) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&self.dir, path_of(id), flags, Mode::empty()).ok().map(File::from)
    }

    /// Gives an outboard that was written just now its name, also where there is one: that one may be damaged.
    pub(super) fn keep_outboard(&self, outboard: &OwnedFd, id: &ObjectId) -> Result<(), ObjectError> {
        let fail = |errno| ObjectError::system("store the outboard of", id)(errno);
        fchmod(outboard, super::FINISHED_MODE).map_err(fail)?;
        let path = path_of(id);
        match self.link(outboard.as_fd(), &path) {
            Err(Errno::EXIST) => self.replace(outboard.as_fd(), &path).map_err(fail),
            done => done.map_err(fail),
        }
    }

    /// Says what an object takes together with its outboard.
    pub(super) fn with_outboard(&self, id: &ObjectId, stat: &EntryStat) -> ObjectStat {
        let mut allocated = stat.allocated;
        if may_be_kept(stat.size) {
            let name = CString::new(path_of(id)).unwrap_or_default();
            let outboard = EntryStat::of(self.dir.as_fd(), &name);
            allocated = allocated.saturating_add(outboard.map_or(0, |outboard| outboard.allocated));
        }
        ObjectStat { size: stat.size, allocated, links: stat.nlink, inode: (stat.dev, stat.ino) }
    }

    /// Removes an outboard whose object is gone; one that stays is removed as a stray.
    pub(super) fn remove_outboard(&self, id: &ObjectId) {
        unlinkat(&self.dir, path_of(id), AtFlags::empty()).ok();
    }

    /// Removes outboards without an object, and names that were to replace others: what a loss of power can leave. The
    /// caller holds the lock of objects exclusively. Returns how many there were.
    ///
    /// # Errors
    /// [`ObjectError::System`].
    pub fn remove_strays(&self) -> Result<u64, ObjectError> {
        let mut removed = 0_u64;
        self.each_directory(&mut |prefix, dir| {
            let names = read_names(dir.as_fd()).map_err(ObjectError::system("list", prefix))?;
            let names: BTreeSet<Vec<u8>> = names.into_iter().map(|name| name.name.into_bytes()).collect();
            for name in &names {
                let object = name.strip_suffix(SUFFIX.as_bytes());
                let is_alone = object.is_some_and(|object| id_of(prefix, object).is_some() && !names.contains(object));
                if !is_alone && !name.ends_with(TEMPORARY.as_bytes()) {
                    continue;
                }
                let said = String::from_utf8_lossy(name).into_owned();
                unlinkat(&dir, name.as_slice(), AtFlags::empty()).map_err(ObjectError::system("remove", said))?;
                removed = removed.saturating_add(1);
            }
            Ok(())
        })?;
        Ok(removed)
    }
}
