//! One tree as the entries of an image layer.
//!
//! The tree is a layer, whose whiteouts and opaque directories become `.wh.NAME` and `.wh..wh..opq`, or a mounted view.
//! It was written by whoever was root in the container: it is walked by descriptors, nothing in it is followed, and
//! what an archive cannot say goes into the report.

use crate::failure::{Code, Failure, Result};
use perennial_core::export::{AttributeFate, ExportReport, FoundIn, Loss, PATH_BYTES_MAX, WHITEOUT_PREFIX, fate_of};
use perennial_core::tree::Below;
use perennial_registry::export::{EntryKind, TarEntry, TarWriter, attributes_fit};
use perennial_store::objects::Objects;
use perennial_store::tree::attrs::{self, AttrIo, Attrs, Target};
use perennial_store::tree::below::{BelowView, Cut};
use perennial_store::tree::cursor::EntryStat;
use perennial_store::tree::error::PathTrail;
use perennial_store::tree::walk::{Entry, Order, Visit, walk};
use perennial_store::tree::{EntryPath, TreeError, overlay};
use rustix::fs::{FileType, IFlags, Mode, OFlags, SeekFrom, openat, readlinkat, seek};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// Bytes of a file read at once.
const CHUNK_BYTES: usize = 256 * 1024;
/// Mode that engines give the root of a container.
const ROOT_MODE: u32 = 0o755;
/// Inode flags that mean something to users.
const FLAGS: IFlags = IFlags::IMMUTABLE
    .union(IFlags::APPEND)
    .union(IFlags::NODUMP)
    .union(IFlags::NOATIME)
    .union(IFlags::SYNC)
    .union(IFlags::DIRSYNC);

/// Names and values of extended attributes.
type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What the tree is.
pub enum Reading<'a> {
    /// A layer over those below it, newest first.
    Layer {
        /// The layers below it.
        below: &'a [BorrowedFd<'a>],
        /// Where contents of sealed layers are.
        objects: Option<&'a Objects>,
    },
    /// A mounted view.
    View,
}

/// Writes a tree as an archive.
///
/// # Errors
/// Where something cannot be read, or the archive cannot be written.
pub fn write_layer(
    tar: &mut TarWriter<'_>,
    tree: BorrowedFd<'_>,
    reading: &Reading<'_>,
    report: &mut ExportReport,
) -> Result<()> {
    let (found, below, objects, of) = match reading {
        Reading::Layer { below, objects } => (FoundIn::Layer, *below, *objects, attrs::Reading::Layers),
        Reading::View => (FoundIn::View, &[][..], None, attrs::Reading::Views),
    };
    let mut layer = Layer {
        tar,
        report,
        found,
        objects,
        io: AttrIo::new(of),
        below: BelowView::new(below, Cut::Through)?,
        skipped: 0,
        links: BTreeMap::new(),
        failure: None,
    };
    let walked = walk(tree, Order::Sorted, &mut |visit| match layer.visit(visit) {
        Ok(()) => Ok(()),
        Err(Stop::Tree(error)) => Err(error),
        Err(Stop::Other(failure)) => {
            layer.failure = Some(failure);
            Err(TreeError::system("export", EntryPath::from_bytes(Vec::new()), Errno::CANCELED))
        }
    });
    match layer.failure {
        Some(failure) => Err(failure),
        None => Ok(walked?),
    }
}

/// Why a walk ends early.
enum Stop {
    Tree(TreeError),
    Other(Failure),
}

impl From<TreeError> for Stop {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

/// The archive cannot be written.
impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        let is_full = error.kind() == std::io::ErrorKind::StorageFull;
        let failure = Failure::from(error).code(Code::Failed).while_doing("cannot write the image");
        Self::Other(match is_full {
            true => failure.hint("nothing was left there; free some space, or name another destination"),
            false => failure,
        })
    }
}

type Step<T> = std::result::Result<T, Stop>;

struct Layer<'a, 'w> {
    tar: &'a mut TarWriter<'w>,
    report: &'a mut ExportReport,
    found: FoundIn,
    objects: Option<&'a Objects>,
    io: AttrIo,
    below: BelowView,
    /// How many directories deep the walk is in what is left out.
    skipped: usize,
    /// First names of files with several.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    failure: Option<Failure>,
}

/// What an entry is and says, apart from its path.
struct Described<'a> {
    kind: EntryKind<'a>,
    attrs: &'a Attrs,
    stat: &'a EntryStat,
}

impl Layer<'_, '_> {
    fn visit(&mut self, visit: Visit<'_>) -> Step<()> {
        match visit {
            Visit::Enter { .. } if self.skipped > 0 => self.skipped = self.skipped.saturating_add(1),
            Visit::Leave { .. } if self.skipped > 0 => self.skipped = self.skipped.saturating_sub(1),
            Visit::NonDir(_) if self.skipped > 0 => {}
            Visit::Enter { own, stat, path } => self.directory(own, stat, path)?,
            Visit::Leave { .. } => self.below.leave()?,
            Visit::NonDir(entry) => self.non_directory(&entry)?,
        }
        Ok(())
    }

    /// Leaves out what cannot have its path in an archive; returns whether that is so.
    fn is_left_out(&mut self, path: &[u8], is_whiteout: bool) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let loss = if name.starts_with(WHITEOUT_PREFIX) {
            Loss::WhiteoutName
        } else if path.len() > PATH_BYTES_MAX {
            Loss::PathTooLong
        } else {
            return false;
        };
        // What is removed was left out of the layers below as well.
        if !is_whiteout {
            self.report.add(loss, path);
        }
        true
    }

    fn directory(&mut self, own: BorrowedFd<'_>, stat: &EntryStat, path: &PathTrail) -> Step<()> {
        let bytes = path.as_bytes();
        if !bytes.is_empty() && self.is_left_out(bytes, false) {
            self.skipped = 1;
            return Ok(());
        }
        let attrs = self.io.read(Target::Open(own), stat, &|| path.here())?;
        let is_opaque = self.found == FoundIn::Layer
            && attrs.xattrs.get(overlay::OPAQUE).is_some_and(|value| value == overlay::OPAQUE_YES);
        self.note_flags(&attrs, bytes);
        self.write(bytes, &Described { kind: EntryKind::Directory, attrs: &attrs, stat })?;
        if bytes.is_empty() {
            return Ok(());
        }
        if is_opaque {
            self.marker(&[bytes, b"/.wh..wh..opq"].concat())?;
        }
        let name = CString::new(path.last()).unwrap_or_default();
        self.below.enter(&name, Cut::of_opaque(is_opaque));
        Ok(())
    }

    fn non_directory(&mut self, entry: &Entry<'_>) -> Step<()> {
        let path = entry.path.join(entry.name);
        let bytes = path.as_bytes();
        let is_whiteout = self.found == FoundIn::Layer && entry.stat.is_whiteout();
        if self.is_left_out(bytes, is_whiteout) {
            return Ok(());
        }
        if is_whiteout {
            return self.marker(&whiteout_of(bytes));
        }
        let (major, minor) = (rustix::fs::major(entry.stat.rdev), rustix::fs::minor(entry.stat.rdev));
        let target;
        let kind = match entry.stat.file_type() {
            FileType::RegularFile => return self.file(entry, &path),
            FileType::Symlink => {
                let read = readlinkat(entry.dir, entry.name, Vec::new());
                target = read.map_err(|errno| TreeError::system("read", path.clone(), errno))?;
                EntryKind::Symlink(target.as_bytes())
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => EntryKind::Char { major, minor },
            FileType::BlockDevice => EntryKind::Block { major, minor },
            FileType::Socket => return self.socket(entry, bytes),
            FileType::Directory | FileType::Unknown => {
                return Err(TreeError::system("export", path, Errno::INVAL).into());
            }
        };
        let attrs = self.io.read(Target::Named(entry.dir, entry.name), entry.stat, &|| path.clone())?;
        let first = self.first_name(entry.stat, bytes);
        let kind = first.as_deref().map_or(kind, EntryKind::Hardlink);
        self.write(bytes, &Described { kind, attrs: &attrs, stat: entry.stat })
    }

    /// A socket has no place in an archive; what it hides stays hidden.
    fn socket(&mut self, entry: &Entry<'_>, path: &[u8]) -> Step<()> {
        self.report.add(Loss::Socket, path);
        match self.below.shows(entry.name)? {
            Below::Absent => Ok(()),
            Below::Visible => self.marker(&whiteout_of(path)),
        }
    }

    fn file(&mut self, entry: &Entry<'_>, path: &EntryPath) -> Step<()> {
        let fail = |errno| TreeError::system("open", path.clone(), errno);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = openat(entry.dir, entry.name, flags, Mode::empty()).map_err(fail)?;
        let stat = EntryStat::of_open(file.as_fd()).map_err(fail)?;
        let attrs = self.io.read(Target::Open(file.as_fd()), &stat, &|| path.clone())?;
        self.note_flags(&attrs, path.as_bytes());
        if let Some(first) = self.first_name(entry.stat, path.as_bytes()) {
            let kind = EntryKind::Hardlink(&first);
            return self.write(path.as_bytes(), &Described { kind, attrs: &attrs, stat: &stat });
        }
        let content = self.content(file, &stat, path)?;
        let kind = EntryKind::File { size: stat.size };
        self.write(path.as_bytes(), &Described { kind, attrs: &attrs, stat: &stat })?;
        if self.copy(content.as_fd(), stat.size, path)? == Holes::Some {
            self.report.add(Loss::Holes, path.as_bytes());
        }
        Ok(())
    }

    /// Returns the open content of a file, which may be an object.
    fn content(&mut self, file: OwnedFd, stat: &EntryStat, path: &EntryPath) -> Step<OwnedFd> {
        let Some(id) = self.io.object(Target::Open(file.as_fd()), &|| path.clone())? else { return Ok(file) };
        let missing = || TreeError::system("find the content of", path.clone(), Errno::NOENT);
        let opened = self.objects.ok_or_else(missing)?.open_sized(&id, stat.size);
        Ok(opened.map_err(|source| TreeError::Content { path: path.clone(), source: Box::new(source) })?)
    }

    /// Returns the name under which a file with several was written, and remembers the first.
    fn first_name(&mut self, stat: &EntryStat, path: &[u8]) -> Option<Vec<u8>> {
        let group = stat.link_group()?;
        match self.links.get(&group) {
            Some(first) => Some(first.clone()),
            None => {
                self.links.insert(group, path.to_vec());
                None
            }
        }
    }

    /// Writes the content of a file, holes as zeros.
    fn copy(&mut self, content: BorrowedFd<'_>, size: u64, path: &EntryPath) -> Step<Holes> {
        let fail = |errno| TreeError::system("read", path.clone(), errno);
        let mut buffer = vec![0_u8; CHUNK_BYTES.min(usize::try_from(size).unwrap_or(CHUNK_BYTES))];
        let zeros = vec![0_u8; buffer.len()];
        let (mut at, mut holes) = (0_u64, Holes::None);
        while at < size {
            let data = match seek(content, SeekFrom::Data(at)) {
                Ok(data) => data.min(size),
                Err(Errno::NXIO) => size,
                Err(errno) => return Err(fail(errno).into()),
            };
            if data > at {
                holes = Holes::Some;
            }
            while at < data {
                let part = usize::try_from(data.saturating_sub(at)).unwrap_or(usize::MAX).min(zeros.len());
                self.tar.data(zeros.get(..part).unwrap_or_default())?;
                at = at.saturating_add(u64::try_from(part).unwrap_or(0));
            }
            if at >= size {
                break;
            }
            let end = seek(content, SeekFrom::Hole(at)).map_err(fail)?.min(size);
            while at < end {
                let wanted = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(buffer.len());
                let part = buffer.get_mut(..wanted).unwrap_or_default();
                let read = rustix::io::pread(content, part, at).map_err(fail)?;
                if read == 0 {
                    return Err(TreeError::Shortened { path: path.clone() }.into());
                }
                self.tar.data(buffer.get(..read).unwrap_or_default())?;
                at = at.saturating_add(u64::try_from(read).unwrap_or(0));
            }
        }
        Ok(holes)
    }

    fn note_flags(&mut self, attrs: &Attrs, path: &[u8]) {
        // In a layer `chattr +i` and `+a` are noted by an attribute, which is counted there.
        let is_noted = self.found == FoundIn::Layer && attrs.xattrs.contains_key(overlay::PROTATTR);
        if !is_noted && attrs.flags.is_some_and(|flags| flags.intersects(FLAGS)) {
            self.report.add(Loss::InodeFlags, path);
        }
    }

    fn write(&mut self, path: &[u8], described: &Described<'_>) -> Step<()> {
        let Described { kind, attrs, stat } = described;
        let (xattrs, losses) = self.attributes(path, attrs);
        // What is said of a file is said with its first name.
        let is_further_name = matches!(kind, EntryKind::Hardlink(_));
        for loss in losses.into_iter().filter(|_| !is_further_name) {
            self.report.add(loss, path);
        }
        let mtime = (attrs.mtime.tv_sec, u32::try_from(attrs.mtime.tv_nsec).unwrap_or(0));
        // The kernel shows permissions of symbolic links that mean nothing.
        let mode = if stat.file_type() == FileType::Symlink { 0o777 } else { attrs.mode };
        let (uid, gid) = (attrs.uid, attrs.gid);
        Ok(self.tar.entry(&TarEntry { path, kind: *kind, mode, uid, gid, mtime, xattrs: &xattrs })?)
    }

    /// Returns the extended attributes that are written, and what is lost of an entry, each kind once.
    fn attributes(&self, path: &[u8], attrs: &Attrs) -> (Xattrs, Vec<Loss>) {
        let mut xattrs = Vec::with_capacity(attrs.xattrs.len());
        let mut losses: Vec<Loss> = Vec::new();
        for (name, value) in &attrs.xattrs {
            match fate_of(name.to_bytes(), self.found) {
                AttributeFate::Keep => {
                    if value.is_empty() {
                        losses.push(Loss::EmptyAttribute);
                    }
                    xattrs.push((name.to_bytes().to_vec(), value.clone()));
                }
                AttributeFate::Drop => {}
                AttributeFate::Lose(loss) => losses.push(loss),
            }
        }
        while !attributes_fit(&xattrs) {
            // The largest goes first, so that most stay.
            let largest = xattrs.iter().enumerate().max_by_key(|(_, (_, value))| value.len()).map(|(at, _)| at);
            largest.map(|at| xattrs.remove(at));
            losses.push(Loss::Attribute);
        }
        if xattrs.iter().any(|(name, _)| name == b"security.selinux") {
            losses.push(Loss::Label);
        }
        if attrs.mtime.tv_sec < 0 {
            losses.push(Loss::EarlyTime);
        }
        let is_usual = attrs.mode == ROOT_MODE && attrs.uid == 0 && attrs.gid == 0 && xattrs.is_empty();
        if path.is_empty() && !is_usual {
            losses.push(Loss::Root);
        }
        losses.sort_unstable();
        losses.dedup();
        (xattrs, losses)
    }

    /// Writes an empty file that means something by its name.
    fn marker(&mut self, path: &[u8]) -> Step<()> {
        let kind = EntryKind::File { size: 0 };
        Ok(self.tar.entry(&TarEntry { path, kind, mode: 0o600, uid: 0, gid: 0, mtime: (0, 0), xattrs: &[] })?)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holes {
    None,
    Some,
}

/// Returns the path of the marker that hides a path.
fn whiteout_of(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash.saturating_add(1));
    let (parent, name) = path.split_at(at);
    [parent, WHITEOUT_PREFIX, name].concat()
}
