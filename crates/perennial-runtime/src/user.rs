//! Users and groups looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! The files belong to the container and are not trusted: they are opened beneath its root whatever links they are,
//! must be regular files, and are read up to a bound.

use perennial_core::process::{GroupRef, ResolvedUser, UserRef, UserSpec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Most bytes of `/etc/passwd` or `/etc/group` that are read; about 100 000 users.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Most supplementary groups: what the kernel takes (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// Why a user could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user in the container.
    #[error("user {name:?} is not in the container's /etc/passwd")]
    NoUser {
        /// The name.
        name: String,
    },
    /// No such group in the container.
    #[error("group {name:?} is not in the container's /etc/group")]
    NoGroup {
        /// The name.
        name: String,
    },
    /// The file is not a regular file, or larger than any real one.
    #[error("the container's {file} is not a regular file of at most {FILE_BYTES_MAX} bytes")]
    Unusable {
        /// Which file.
        file: &'static str,
    },
    /// The file cannot be read.
    #[error("cannot read the container's {file}")]
    Read {
        /// Which file.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Looks up `spec` in the files beneath `rootfs`. Numbers need no entry: an unknown number has group 0 and home `/`.
///
/// # Errors
/// If a name is unknown or a file is unusable. A missing file counts as empty.
pub fn lookup(rootfs: &Path, spec: &UserSpec) -> Result<ResolvedUser, UserError> {
    let passwd = read_beneath(rootfs, "etc/passwd", "/etc/passwd")?;
    let entry = find_user(&passwd, &spec.user);
    let uid = match (&spec.user, &entry) {
        (UserRef::Id(uid), _) => *uid,
        (UserRef::Name(_), Some(entry)) => entry.uid,
        (UserRef::Name(name), None) => return Err(UserError::NoUser { name: name.clone() }),
    };
    let home = entry.as_ref().map(|entry| entry.home.clone()).filter(|home| home.starts_with('/'));
    let own_gid = entry.as_ref().map_or(0, |entry| entry.gid);
    let (gid, additional_gids) = match &spec.group {
        Some(GroupRef::Id(gid)) => (*gid, Vec::new()),
        Some(GroupRef::Name(name)) => {
            let group = read_beneath(rootfs, "etc/group", "/etc/group")?;
            let gid = groups(&group).find(|group| group.name == *name).map(|group| group.gid);
            (gid.ok_or_else(|| UserError::NoGroup { name: name.clone() })?, Vec::new())
        }
        None => match &entry {
            Some(entry) => {
                let group = read_beneath(rootfs, "etc/group", "/etc/group")?;
                (own_gid, memberships(&group, &entry.name, own_gid))
            }
            None => (own_gid, Vec::new()),
        },
    };
    Ok(ResolvedUser { uid, gid, additional_gids, home })
}

struct UserEntry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn find_user(passwd: &str, user: &UserRef) -> Option<UserEntry> {
    passwd.lines().filter_map(parse_user).find(|entry| match user {
        UserRef::Id(uid) => entry.uid == *uid,
        UserRef::Name(name) => entry.name == *name,
    })
}

/// Parses `name:password:uid:gid:comment:home:shell`.
fn parse_user(line: &str) -> Option<UserEntry> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(UserEntry { name, uid, gid, home })
}

/// Parses lines of `name:password:gid:member,member`.
fn groups(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
    })
}

fn memberships(group: &str, user: &str, own_gid: u32) -> Vec<u32> {
    let is_member = |group: &GroupEntry<'_>| group.members.split(',').any(|member| member == user);
    let mut gids: Vec<u32> = groups(group).filter(is_member).map(|group| group.gid).collect();
    gids.retain(|gid| *gid != own_gid);
    gids.sort_unstable();
    gids.dedup();
    gids.truncate(GROUPS_MAX);
    gids
}

/// Reads a file as the container would see it: links resolve inside the root, `..` stops there.
fn read_beneath(rootfs: &Path, path: &str, file: &'static str) -> Result<String, UserError> {
    let fail = |errno: Errno| UserError::Read { file, source: errno.into() };
    let root =
        rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(fail)?;
    // Not blocking: the file may be a FIFO.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(fail(errno)),
    };
    let stat = rustix::fs::fstat(&fd).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(UserError::Unusable { file });
    }
    let mut bytes = Vec::new();
    let read = File::from(fd).take(FILE_BYTES_MAX.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|source| UserError::Read { file, source })?;
    match u64::try_from(bytes.len()) {
        Ok(0..=FILE_BYTES_MAX) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Ok(_) | Err(_) => Err(UserError::Unusable { file }),
    }
}
