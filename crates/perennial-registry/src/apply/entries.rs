//! One entry of a layer archive.

use super::*;
use crate::contents;
use rustix::fs::OFlags;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

impl Writer<'_> {
    /// Writes one entry, or remembers it where it takes effect at the end.
    pub(super) fn entry<R: Read>(&mut self, member: &Member, data: &mut R) -> Result<(), ApplyError> {
        let refuse = |reason| ApplyError::Name { entry: lossy(&member.name), reason };
        let path = entry_path(&member.name).map_err(refuse)?;
        if self.is_marker(member, &path)? {
            return Ok(());
        }
        let attributes = self.attributes(member)?;
        if path.is_empty() {
            if member.kind != Kind::Directory {
                return Err(ApplyError::Root { entry: lossy(&member.name) });
            }
            let applied = attributes.apply(self.tree.root(), b".", FileType::Directory);
            applied.map_err(|source| write_error(&member.name, source))?;
            self.times.insert(path, (attributes.mtime, attributes.atime));
            return Ok(());
        }
        let parent = self.directory(split(&path).0, &member.name)?;
        if member.kind == Kind::Hardlink {
            return self.hardlink(member, &path, &parent);
        }
        self.make(member, (&parent, &path), &attributes, data).map_err(|error| match error {
            MakeError::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                ApplyError::Tar(TarError::Truncated { entry: lossy(&member.name) })
            }
            MakeError::Io(source) => write_error(&member.name, source),
            MakeError::Apply(error) => error,
        })
    }

    /// Takes whiteouts and opaque markers; returns whether the entry was one.
    fn is_marker(&mut self, member: &Member, path: &[u8]) -> Result<bool, ApplyError> {
        let (parent, name) = split(path);
        for component in parent.split(|byte| *byte == b'/') {
            if component.starts_with(WHITEOUT_META) {
                return Ok(true);
            }
            if component.starts_with(WHITEOUT) {
                return Err(ApplyError::Whiteout { entry: lossy(&member.name) });
            }
        }
        if name == OPAQUE {
            self.opaques.insert(parent.to_vec());
            return Ok(true);
        }
        if name.starts_with(WHITEOUT_META) {
            // Left by aufs, which no longer exists; other tools skip these too.
            return Ok(true);
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT) else {
            return Ok(false);
        };
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ApplyError::Whiteout { entry: lossy(&member.name) });
        }
        let mut target = parent.to_vec();
        if !target.is_empty() {
            target.push(b'/');
        }
        target.extend_from_slice(hidden);
        self.whiteouts.insert(target);
        Ok(true)
    }

    /// Returns the attributes of an entry, without those that Linux has no place for.
    fn attributes(&mut self, member: &Member) -> Result<Attributes, ApplyError> {
        let mut xattrs = Vec::with_capacity(member.xattrs.len());
        for (name, value) in &member.xattrs {
            if is_steering(name) {
                return Err(ApplyError::Steering { entry: lossy(&member.name), attribute: lossy(name) });
            }
            if is_reserved(name) || !is_linux(name) {
                self.note(format!("{:?}: extended attribute {:?} is left out", lossy(&member.name), lossy(name)));
            } else {
                xattrs.push((name.clone(), value.clone()));
            }
        }
        let has_acl = xattrs.iter().any(|(name, _)| name.starts_with(b"system.posix_acl_"));
        if member.has_acl_text && !has_acl {
            let advice = "pack it with tar's --xattrs --xattrs-include='*' instead of --acls";
            self.note(format!("{:?}: access lists as text are left out; {advice}", lossy(&member.name)));
        }
        xattrs.sort();
        let Member { mode, uid, gid, mtime, atime, .. } = *member;
        Ok(Attributes { mode, uid, gid, mtime, atime: atime.unwrap_or(mtime), xattrs })
    }

    fn make<R: Read>(
        &mut self,
        member: &Member,
        (parent, path): (&OwnedFd, &[u8]),
        attributes: &Attributes,
        data: &mut R,
    ) -> Result<(), MakeError> {
        let name = split(path).1;
        if let Some(old) = stat(parent.as_fd(), name)? {
            // The last of several entries counts; a directory described again keeps what is in it.
            let is_directory = FileType::from_raw_mode(old.st_mode) == FileType::Directory;
            if !(is_directory && member.kind == Kind::Directory) {
                self.clear(parent, path)?;
            }
        }
        match member.kind {
            Kind::File => return make_file(member, parent, name, attributes, data).map_err(MakeError::from),
            Kind::Directory => {
                match fs::mkdirat(parent, name, Mode::RWXU) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                attributes.apply(parent.as_fd(), name, FileType::Directory)?;
                self.times.insert(path.to_vec(), (attributes.mtime, attributes.atime));
                return Ok(());
            }
            Kind::Symlink => {
                fs::symlinkat(member.link.as_slice(), parent, name)?;
                attributes.apply(parent.as_fd(), name, FileType::Symlink)?;
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                let kind = match member.kind {
                    Kind::Char if member.device == (0, 0) => {
                        return Err(MakeError::Apply(ApplyError::DeviceZero { entry: lossy(&member.name) }));
                    }
                    Kind::Char => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    Kind::Fifo | Kind::File | Kind::Directory | Kind::Symlink | Kind::Hardlink => FileType::Fifo,
                };
                let device = fs::makedev(member.device.0, member.device.1);
                fs::mknodat(parent, name, kind, Mode::RUSR, device)?;
                attributes.apply(parent.as_fd(), name, kind)?;
            }
            // Handled by the caller.
            Kind::Hardlink => return Ok(()),
        }
        Ok(attributes.apply_times(parent.as_fd(), name)?)
    }
}

enum MakeError {
    Io(io::Error),
    Apply(ApplyError),
}

impl From<io::Error> for MakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for MakeError {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

fn make_file<R: Read>(
    member: &Member,
    parent: &OwnedFd,
    name: &[u8],
    attributes: &Attributes,
    data: &mut R,
) -> io::Result<()> {
    let file = create(parent, name)?;
    match &member.extents {
        Some(extents) => contents::write_extents(data, &file, extents, member.size)?,
        None => contents::write_exact(data, &file, member.size)?,
    }
    attributes.apply(parent.as_fd(), name, FileType::RegularFile)?;
    attributes.apply_times(parent.as_fd(), name)
}

/// Makes an empty file that must not exist.
pub(super) fn create(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?)
}
