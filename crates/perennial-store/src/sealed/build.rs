//! From directories as they are on disk to directories of a manifest; contents go to the workers.

use super::error::{ReferenceFault, SealError, Unsealable};
use super::source::{Found, Listed, Origin, TreeSource};
use super::survey::Survey;
use crate::objects::{Objects, Older};
use crate::tree::attrs::{AttrIo, Attrs, Target};
use crate::tree::copy::{Place, open_file};
use crate::tree::cursor::EntryStat;
use crate::tree::error::{EntryPath, TreeError};
use crate::tree::overlay::{self, Rule, rule};
use perennial_core::sealed::entry::{
    Attributes, Content, Directory, Entry, INLINE_BYTES_MAX, Inode, Item, Node, Timestamp,
};
use perennial_core::sealed::object::ObjectId;
use perennial_core::sealed::outboard;
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, IFlags, major, minor, readlinkat};
use rustix::io::{Errno, pread};
use std::collections::HashMap;
use std::ffi::CStr;

/// Inode flags that a sealed layer has no place for; others say how a file system keeps a file.
const FLAGS_KEPT: IFlags = IFlags::NODUMP
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC)
    .union(IFlags::APPEND)
    .union(IFlags::IMMUTABLE);

/// A file whose content is to be kept.
#[derive(Debug)]
pub(super) struct Job {
    /// Position of its entry in the directory.
    pub(super) entry: usize,
    pub(super) file: OwnedFd,
    /// What the layers below show by its name, where that is an object and it is worth comparing.
    pub(super) older: Option<Older>,
    pub(super) path: EntryPath,
}

/// A directory of which some contents may still be missing: those of `jobs`.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) directory: Directory,
    pub(super) jobs: Vec<Job>,
}

/// What the content of a file is, as far as it is known.
enum Body {
    Known(Content),
    ToKeep(OwnedFd, Option<Older>),
}

/// Builds directories.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    objects: &'a Objects,
    survey: &'a Survey,
    groups: HashMap<(u64, u64), u32>,
    io: AttrIo,
}

impl<'a> Builder<'a> {
    pub(super) fn new(objects: &'a Objects, survey: &'a Survey) -> Self {
        Self { objects, survey, groups: HashMap::new(), io: AttrIo::default() }
    }

    pub(super) fn directory(&mut self, source: &mut TreeSource<'_>, listed: Listed) -> Result<Built, SealError> {
        let attributes = convert(listed.attrs, &|| source.trail().here())?;
        let mut jobs = Vec::new();
        let mut entries = Vec::with_capacity(listed.entries.len());
        for found in &listed.entries {
            let item = self.item(source, found, entries.len(), &mut jobs)?;
            entries.push(Entry { name: found.name.to_bytes().to_vec(), item });
        }
        Ok(Built { directory: Directory { path: listed.path, attributes, opaque: listed.opaque, entries }, jobs })
    }

    fn item(
        &mut self,
        source: &mut TreeSource<'_>,
        found: &Found,
        entry: usize,
        jobs: &mut Vec<Job>,
    ) -> Result<Item, SealError> {
        if found.stat.is_dir() {
            return Ok(Item::Directory);
        }
        if found.stat.is_whiteout() {
            return Ok(Item::Whiteout);
        }
        let key = (found.stat.dev, found.stat.ino);
        let mut links = None;
        if found.stat.nlink > 1 && self.survey.has_several_names(key) {
            if let Some(group) = self.groups.get(&key) {
                return Ok(Item::Link(*group));
            }
            let next = u32::try_from(self.groups.len()).unwrap_or(u32::MAX);
            self.groups.insert(key, next);
            links = Some(next);
        }
        let path = source.trail().join(&found.name);
        if found.stat.file_type() != FileType::RegularFile {
            let (attributes, node) = self.special(source, found, &path)?;
            return Ok(Item::Inode(Inode { attributes, node, links }));
        }
        let (attributes, body) = self.file(source, found, links.is_some(), &path)?;
        let content = match body {
            Body::Known(content) => content,
            Body::ToKeep(file, older) => {
                jobs.push(Job { entry, file, older, path });
                // Replaced when the content is kept.
                Content::Inline(Vec::new())
            }
        };
        Ok(Item::Inode(Inode { attributes, node: Node::File(content), links }))
    }

    fn special(
        &mut self,
        source: &TreeSource<'_>,
        found: &Found,
        path: &EntryPath,
    ) -> Result<(Attributes, Node), SealError> {
        let here = || path.clone();
        let fail = |action| move |errno| TreeError::system(action, path.clone(), errno);
        let dir = source.dir(found.origin).ok_or_else(|| TreeError::Moved { path: path.clone() })?;
        let attrs = self.io.read(Target::Named(dir, &found.name), &found.stat, &here)?;
        let (major, minor) = (major(found.stat.rdev), minor(found.stat.rdev));
        let node = match found.stat.file_type() {
            FileType::Symlink => {
                let target = readlinkat(dir, &found.name, Vec::new()).map_err(fail("read"))?;
                Node::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => Node::CharDevice { major, minor },
            FileType::BlockDevice => Node::BlockDevice { major, minor },
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            FileType::RegularFile | FileType::Directory | FileType::Unknown => {
                return Err(fail("seal")(Errno::INVAL).into());
            }
        };
        Ok((convert(attrs, &here)?, node))
    }

    fn file(
        &mut self,
        source: &mut TreeSource<'_>,
        found: &Found,
        linked: bool,
        path: &EntryPath,
    ) -> Result<(Attributes, Body), SealError> {
        let here = || path.clone();
        let dir = source.dir(found.origin).ok_or_else(|| TreeError::Moved { path: path.clone() })?;
        let file = open(dir, &found.name, path)?;
        let mut attrs = self.io.read_as_is(Target::Open(file.as_fd()), &found.stat, &here)?;
        let metacopy = attrs.xattrs.remove(overlay::METACOPY);
        // Without the first, the second is a rest: the file has got its content since.
        let redirect = attrs.xattrs.remove(overlay::REDIRECT);
        let attributes = convert(attrs, &here)?;
        let body = match (found.origin, metacopy) {
            (origin, None) => match self.body(file, &found.stat, path)? {
                Body::ToKeep(file, _)
                    if origin == Origin::Own && outboard::is_kept(found.stat.size, found.stat.allocated) =>
                {
                    let older = self.older(source, &found.name, redirect.as_deref(), path);
                    Body::ToKeep(file, older)
                }
                body @ (Body::Known(_) | Body::ToKeep(..)) => body,
            },
            (Origin::Below(_), Some(_)) => {
                drop(file);
                let dir = source.dir(found.origin).ok_or_else(|| TreeError::Moved { path: path.clone() })?;
                self.body_below(dir, &found.name, &found.stat, path)?
            }
            (Origin::Own, Some(value)) => {
                let is_absolute = redirect.as_ref().is_some_and(|redirect| redirect.starts_with(b"/"));
                if !value.is_empty() || (linked && !is_absolute) {
                    return Err(source.reference(Some(&found.name), &value, ReferenceFault::Malformed));
                }
                let (body, size) = source.content_below(&found.name, redirect.as_deref(), &mut |dir, name, stat| {
                    Ok((self.body_below(dir, name, stat, path)?, stat.size))
                })?;
                if size != found.stat.size {
                    let value = redirect.unwrap_or_default();
                    return Err(source.reference(Some(&found.name), &value, ReferenceFault::Size));
                }
                body
            }
        };
        Ok((attributes, body))
    }

    /// Finds the object that a file of the tree was before it was changed. It only saves reading, so errors are none: the
    /// file is new, was something else before, or the layers below cannot tell.
    fn older(
        &mut self,
        source: &mut TreeSource<'_>,
        name: &CStr,
        redirect: Option<&[u8]>,
        path: &EntryPath,
    ) -> Option<Older> {
        let found = source.content_below(name, redirect, &mut |dir, name, stat| {
            let file = open(dir, name, path)?;
            let id = self.io.object(Target::Open(file.as_fd()), &|| path.clone())?;
            Ok(id.map(|id| Older { id, size: stat.size }))
        });
        found.ok().flatten()
    }

    /// Says what the content of a file of a layer below is.
    fn body_below(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &EntryStat,
        path: &EntryPath,
    ) -> Result<Body, SealError> {
        let file = open(dir, name, path)?;
        match self.io.object(Target::Open(file.as_fd()), &|| path.clone())? {
            Some(id) => self.present(id, stat.size, path).map(Body::Known),
            None => self.body(file, stat, path),
        }
    }

    fn body(&self, file: OwnedFd, stat: &EntryStat, path: &EntryPath) -> Result<Body, SealError> {
        if usize::try_from(stat.size).is_ok_and(|size| size <= INLINE_BYTES_MAX) {
            return Ok(Body::Known(Content::Inline(read_small(&file, stat, path)?)));
        }
        match self.survey.object_of((stat.dev, stat.ino)) {
            Some(id) => Ok(Body::Known(Content::Object { id, size: stat.size })),
            None => Ok(Body::ToKeep(file, None)),
        }
    }

    /// Makes sure that an object that a layer below names is there.
    fn present(&self, id: ObjectId, size: u64, path: &EntryPath) -> Result<Content, SealError> {
        let opened = self.objects.open_sized(&id, size);
        opened.map_err(|source| SealError::Content { path: path.clone(), source: Box::new(source) })?;
        Ok(Content::Object { id, size })
    }
}

fn open(dir: BorrowedFd<'_>, name: &CStr, path: &EntryPath) -> Result<OwnedFd, SealError> {
    let opened = open_file(Place { dir, name });
    Ok(opened.map_err(|errno| TreeError::system("open", path.clone(), errno))?)
}

fn read_small(file: &OwnedFd, stat: &EntryStat, path: &EntryPath) -> Result<Vec<u8>, SealError> {
    let mut bytes = [0_u8; INLINE_BYTES_MAX + 1];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..)
        && !rest.is_empty()
    {
        let at = u64::try_from(filled).unwrap_or(u64::MAX);
        match pread(file, rest, at) {
            Ok(0) => break,
            Ok(length) => filled = filled.saturating_add(length),
            Err(errno) => return Err(TreeError::system("read", path.clone(), errno).into()),
        }
    }
    let content = bytes.get(..filled).unwrap_or_default().to_vec();
    if u64::try_from(content.len()) == Ok(stat.size) {
        Ok(content)
    } else {
        Err(TreeError::Shortened { path: path.clone() }.into())
    }
}

/// Makes attributes of a manifest; refuses what has no place there.
fn convert(attrs: Attrs, path: &dyn Fn() -> EntryPath) -> Result<Attributes, SealError> {
    let unsealable = |why| SealError::Unsealable { path: path(), why };
    let flags = attrs.flags.unwrap_or(IFlags::empty()).intersection(FLAGS_KEPT);
    if attrs.xattrs.contains_key(overlay::PROTATTR) {
        return Err(unsealable(Unsealable::Protected));
    }
    if !flags.is_empty() {
        return Err(unsealable(Unsealable::Flags(flags.bits())));
    }
    let mut xattrs = Vec::with_capacity(attrs.xattrs.len());
    for (name, value) in attrs.xattrs {
        match rule(&name) {
            Rule::Keep => xattrs.push((name.into_bytes(), value)),
            Rule::Strip => {}
            Rule::OnlyOpaqueYes | Rule::Unresolved | Rule::Refuse => {
                return Err(crate::tree::attrs::refused(&name, &value, path()).into());
            }
        }
    }
    let nanoseconds = u32::try_from(attrs.mtime.tv_nsec).unwrap_or(0);
    let mtime = Timestamp { seconds: attrs.mtime.tv_sec, nanoseconds };
    Ok(Attributes { mode: attrs.mode, uid: attrs.uid, gid: attrs.gid, mtime, xattrs })
}
