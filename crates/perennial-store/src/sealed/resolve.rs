//! A directory that refers to the layers below it, written once more so that it stands for itself.
//!
//! Needed where a layer cannot be sealed, which would resolve it too: its metadata-only files get their content, a
//! redirected directory becomes an opaque one with everything it shows. Everything else is copied as it is, with inode
//! flags and the notes of protected entries; the caller puts the locks of those in force
//! ([`crate::tree::protect::protect`]).

use super::error::{ReferenceFault, SealError};
use super::source::{Found, Listed, Origin, TreeSource};
use crate::objects::Objects;
use crate::tree::attrs::{Attrs, Kind, Target, apply_early_flags};
use crate::tree::copy::{Copier, Place, open_file};
use crate::tree::cursor::{Cursor, EntryStat};
use crate::tree::error::{EntryPath, TreeError};
use crate::tree::links::Links;
use crate::tree::stack::Data;
use crate::tree::{Measure, measure, overlay};
use rustix::fd::{AsFd as _, BorrowedFd};
use rustix::fs::{FileType, Mode, OFlags, mkdirat, openat};
use std::ffi::CString;

/// A layer to write once more.
#[derive(Debug, Clone, Copy)]
pub struct ResolveRequest<'a> {
    /// Contents of sealed layers.
    pub objects: &'a Objects,
    /// Its tree, which nobody changes meanwhile.
    pub tree: BorrowedFd<'a>,
    /// The layers below it, newest first: trees that hold no references themselves, or mounts of sealed layers.
    pub below: &'a [BorrowedFd<'a>],
    /// An empty directory.
    pub target: BorrowedFd<'a>,
}

/// Writes the layer into the target. `give_way` is asked between directories; where it says yes, the attempt ends.
///
/// # Errors
/// [`SealError`]; the target is incomplete then and to be removed. [`SealError::GaveWay`].
pub fn resolve(request: &ResolveRequest<'_>, give_way: &mut dyn FnMut() -> bool) -> Result<Measure, SealError> {
    let root = EntryPath::from_bytes(Vec::new());
    let mut source = TreeSource::new(request.tree, request.below)?;
    let mut writer = Writer {
        dst: Cursor::new(request.target).map_err(|error| error.at(root))?,
        links: Links::new(request.target, Data::Copy, Copier::with_objects(request.objects)),
        open: Vec::new(),
    };
    while let Some(listed) = source.next()? {
        if give_way() {
            return Err(SealError::GaveWay);
        }
        writer.directory(&mut source, listed)?;
    }
    while !writer.open.is_empty() {
        writer.close()?;
    }
    Ok(measure(request.target)?)
}

struct Writer<'a> {
    dst: Cursor,
    links: Links<'a>,
    /// The directories on the way to the present one, with the attributes they get when they are complete.
    open: Vec<(EntryPath, Attrs)>,
}

impl Writer<'_> {
    fn directory(&mut self, source: &mut TreeSource<'_>, listed: Listed) -> Result<(), SealError> {
        while self.open.len() > listed.path.len() {
            self.close()?;
        }
        let here = source.trail().here();
        match listed.path.last() {
            Some(name) => {
                let name = CString::new(name.as_slice()).unwrap_or_default();
                let made = mkdirat(self.dst.fd(), &name, Mode::RWXU);
                made.map_err(|errno| TreeError::system("create", here.clone(), errno))?;
                self.dst.enter(&name).map_err(|error| error.at(here.clone()))?;
            }
            None => self.links.avoid(&|name| listed.entries.iter().any(|entry| entry.name.as_c_str() == name)),
        }
        let mut attrs = listed.attrs;
        if listed.opaque {
            attrs.xattrs.insert(overlay::OPAQUE.to_owned(), overlay::OPAQUE_YES.to_vec());
        }
        self.open.push((here, attrs));
        for found in listed.entries.iter().filter(|found| !found.stat.is_dir()) {
            let path = source.trail().join(&found.name);
            let to = Place { dir: self.dst.fd(), name: &found.name };
            self.links
                .write_by(to, &found.stat, &|| path.clone(), &mut |copier| write(copier, source, found, to, &path))?;
        }
        Ok(())
    }

    /// Gives the present directory, which is complete, its attributes, and leaves it.
    fn close(&mut self) -> Result<(), SealError> {
        let Some((path, attrs)) = self.open.pop() else { return Ok(()) };
        if self.open.is_empty() {
            self.links.finish()?;
        }
        self.links.copier.io.apply(Target::Open(self.dst.fd()), &attrs, Kind::Other, &|| path.clone())?;
        if !self.open.is_empty() {
            self.dst.leave().map_err(|error| error.at(path))?;
        }
        Ok(())
    }
}

/// Writes an entry that is not a directory, under the first of its names.
fn write(
    copier: &mut Copier<'_>,
    source: &mut TreeSource<'_>,
    found: &Found,
    to: Place<'_>,
    path: &EntryPath,
) -> Result<(), SealError> {
    let dir = source.dir(found.origin).ok_or_else(|| TreeError::Moved { path: path.clone() })?;
    let from = Place { dir, name: &found.name };
    if found.origin == Origin::Own && found.stat.file_type() == FileType::RegularFile {
        let note = copier.io.xattr(Target::Named(dir, &found.name), overlay::METACOPY);
        let note = note.map(|value| value.map(<[u8]>::to_vec));
        if let Some(value) = note.map_err(|errno| TreeError::system("read the attributes of", path.clone(), errno))? {
            return write_reference(copier, source, found, (to, path), &value);
        }
    }
    Ok(copier.copy(from, to, &found.stat, &|| path.clone())?)
}

/// Writes a metadata-only file with the content it refers to.
fn write_reference(
    copier: &mut Copier<'_>,
    source: &mut TreeSource<'_>,
    found: &Found,
    (to, path): (Place<'_>, &EntryPath),
    metacopy: &[u8],
) -> Result<(), SealError> {
    let here = || path.clone();
    let fail = |action| move |errno| TreeError::system(action, path.clone(), errno);
    let dir = source.dir(found.origin).ok_or_else(|| TreeError::Moved { path: path.clone() })?;
    let file = open_file(Place { dir, name: &found.name }).map_err(fail("open"))?;
    let mut attrs = copier.io.read_as_is(Target::Open(file.as_fd()), &found.stat, &here)?;
    attrs.xattrs.remove(overlay::METACOPY);
    let redirect = attrs.xattrs.remove(overlay::REDIRECT);
    let is_absolute = redirect.as_ref().is_some_and(|redirect| redirect.starts_with(b"/"));
    if !metacopy.is_empty() || (found.stat.link_group().is_some() && !is_absolute) {
        return Err(source.reference(Some(&found.name), metacopy, ReferenceFault::Malformed));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = openat(to.dir, to.name, flags, Mode::RUSR | Mode::WUSR).map_err(fail("create"))?;
    apply_early_flags(target.as_fd(), attrs.flags).map_err(fail("set the inode flags of"))?;
    let size = source.content_below(&found.name, redirect.as_deref(), &mut |dir, name, stat: &EntryStat| {
        let below = open_file(Place { dir, name }).map_err(fail("open"))?;
        let object = copier.content(&below, stat, &here)?;
        copier.copy_data(object.as_ref().unwrap_or(&below).as_fd(), target.as_fd(), stat.size, &here)?;
        Ok(stat.size)
    })?;
    if size != found.stat.size {
        return Err(source.reference(Some(&found.name), &redirect.unwrap_or_default(), ReferenceFault::Size));
    }
    Ok(copier.io.apply(Target::Open(target.as_fd()), &attrs, Kind::Other, &here)?)
}
