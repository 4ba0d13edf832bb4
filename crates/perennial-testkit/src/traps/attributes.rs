//! Cases about what an entry has besides its name and contents: kinds of devices, modes, owners, times, xattrs, flags.

use super::site::{Site, kept, may, set_time};
use anyhow::{Context as _, Result};
use rustix::fs::{FileType, IFlags};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// Sockets, pipes and devices.
pub(super) fn devices(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => at.node("image-fifo", FileType::Fifo, (0, 0)),
        1 => {
            at.node("socket", FileType::Socket, (0, 0))?;
            at.node("fifo", FileType::Fifo, (0, 0))?;
            at.node("null", FileType::CharacterDevice, (1, 3))?;
            at.node("loop200", FileType::BlockDevice, (7, 200))?;
            // The largest numbers that XFS takes.
            at.node("high", FileType::CharacterDevice, (511, 262_143))
        }
        2 => {
            at.chmod("socket", 0o777)?;
            at.chown("null", 5, 6)?;
            at.time("fifo", 1_600_000_000, 700_000_001)
        }
        _ => {
            at.chown("image-fifo", 9, 9)?;
            at.chmod("loop200", 0)
        }
    }
}

/// Nothing but the mode changes, of a large file, a small one and a directory with contents.
pub(super) fn mode_only(at: &Site, stage: u32) -> Result<()> {
    if stage == 0 {
        at.file("large", vec![b'L'; 3_000_000])?;
        at.file("small", "s")?;
        at.file("dir/child", "c")?;
    }
    for name in ["large", "small", "dir"] {
        at.chmod(name, 0o700 + stage)?;
    }
    Ok(())
}

/// Nothing but the owner changes; ids as large as they can be.
pub(super) fn owner_only(at: &Site, stage: u32) -> Result<()> {
    if stage == 0 {
        at.file("file", vec![b'o'; 100_000])?;
        at.file("dir/child", "c")?;
        at.symlink("file", "link")?;
    }
    let id = *[1, 4_294_967_290, 4_294_967_294, 65_536].get(usize::try_from(stage)?).context("stage")?;
    ["file", "dir", "link"].into_iter().try_for_each(|name| at.chown(name, id, id - 1))
}

/// Setuid, setgid and sticky bits, with owners: a chown takes the bits away, so the order of restoring counts.
pub(super) fn setuid(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => {
            at.file("image-suid", "#!")?;
            at.chown("image-suid", 12, 34)?;
            at.chmod("image-suid", 0o4755)
        }
        1 => {
            for (name, mode) in [("suid", 0o4755), ("sgid", 0o2755), ("both", 0o6711)] {
                at.file(name, "#!")?;
                at.chown(name, 1000, 1001)?;
                at.chmod(name, mode)?;
            }
            at.dir("dir")?;
            at.chown("dir", 1000, 1001)?;
            at.chmod("dir", 0o3777)?;
            at.file("dir/inherits-the-group", "")
        }
        2 => {
            at.chown("suid", 1002, 1002)?;
            at.append("image-suid", b" a write takes the bit of others than root")?;
            at.dir("dir/sub")
        }
        _ => {
            at.chmod("both", 0o1000)?;
            at.time("sgid", 1_000_000_000, 0)
        }
    }
}

/// A file and a directory that nobody but root may open.
pub(super) fn mode_000(at: &Site, stage: u32) -> Result<()> {
    at.file(&format!("dir/file-{stage}"), "secret")?;
    at.chmod(&format!("dir/file-{stage}"), 0)?;
    at.chmod("dir", 0)?;
    if stage == 3 { at.remove("dir/file-0") } else { Ok(()) }
}

/// Times to the nanosecond, before 1970 and after 2038, of every kind of entry.
pub(super) fn times(at: &Site, stage: u32) -> Result<()> {
    let (seconds, nanos) =
        *[(0, 1), (1_706_932_445, 123_456_789), (-446_668_800, 500_000_000), (4_294_967_295, 999_999_999)]
            .get(usize::try_from(stage)?)
            .context("stage")?;
    if stage == 0 {
        at.file("dir/file", "t")?;
        at.symlink("file", "link")?;
        at.node("fifo", FileType::Fifo, (0, 0))?;
    }
    for name in ["dir/file", "link", "fifo", "dir"] {
        at.time(name, seconds, nanos)?;
        let meta = fs::symlink_metadata(at.at(name))?;
        kept("a time", (meta.mtime(), meta.mtime_nsec()) == (seconds, nanos))?;
    }
    Ok(())
}

/// A time in the year 2255, which not every file system can hold.
pub(super) fn times_far_future(at: &Site, stage: u32) -> Result<()> {
    if stage == 0 {
        at.file("file", "f")?;
    }
    let seconds = 9_000_000_000 + i64::from(stage);
    at.time("file", seconds, 1)?;
    kept("a time in the year 2255", fs::metadata(at.at("file"))?.mtime() == seconds)
}

/// Nothing but the mtime of a directory changes, and in another nothing but that of a file.
pub(super) fn time_only(at: &Site, stage: u32) -> Result<()> {
    if stage == 0 {
        at.file("dir/child", "c")?;
        at.file("file", "f")?;
    }
    at.time("dir", 1_100_000_000, i64::from(stage))?;
    at.time("file", 1_100_000_000 + i64::from(stage), 999_999_999)
}

/// Xattrs of users: on files and directories, empty, binary, with odd names, changed and removed.
pub(super) fn xattr_user(at: &Site, stage: u32) -> Result<()> {
    let all: Vec<u8> = (0..=255).collect();
    match stage {
        0 => {
            at.file("image", "i")?;
            at.xattr("image", b"user.from.image", b"1")?;
            at.dir("image-dir")?;
            at.xattr("image-dir", b"user.from.image", b"1")
        }
        1 => {
            at.file("file", "x")?;
            at.dir("dir")?;
            for name in ["file", "dir"] {
                at.xattr(name, b"user.plain", b"value")?;
                at.xattr(name, b"user.empty", b"")?;
                at.xattr(name, b"user.binary", &all)?;
                at.xattr(name, b"user.name=with=equals", b"=")?;
                at.xattr(name, b"user.bad-utf8-\xff\xfe", b"\xff")?;
                at.xattr(name, b"user.new\nline", b"\n")?;
                at.xattr(name, b"user.overlay.opaque", b"y")?;
            }
            Ok(())
        }
        2 => {
            at.no_xattr("file", b"user.plain")?;
            at.xattr("file", b"user.empty", b"no more")?;
            at.xattr("dir", b"user.binary", b"")?;
            at.no_xattr("image", b"user.from.image")
        }
        _ => {
            at.no_xattr("dir", b"user.name=with=equals")?;
            at.xattr("image-dir", b"user.from.image", b"2")
        }
    }
}

/// Values as large as the file system takes: a few kilobytes always, 64 KiB on some.
pub(super) fn xattr_large(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => at.file("file", "x"),
        1 => at.xattr("file", b"user.three-kilobytes", &[b'k'; 3000]),
        2 => at.xattr("file", b"user.sixty-kilobytes", &[b'K'; 60_000]),
        _ => at.no_xattr("file", b"user.sixty-kilobytes"),
    }
}

/// Nothing but an xattr changes, of a file and of a directory of the image.
pub(super) fn xattr_only(at: &Site, stage: u32) -> Result<()> {
    if stage == 0 {
        at.file("file", vec![b'x'; 100_000])?;
        return at.file("dir/child", "c");
    }
    at.xattr("file", b"user.stage", stage.to_string().as_bytes())?;
    at.xattr("dir", b"user.stage", stage.to_string().as_bytes())
}

/// An ACL as the kernel takes it: for a user, the mask, and the three of the mode.
fn acl_value(user: u32, mask: u16) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 7, NO_ID), (2, 6, user), (4, 5, NO_ID), (0x10, mask, NO_ID), (0x20, 0, NO_ID)];
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// POSIX ACLs, for access and as default.
pub(super) fn acl(at: &Site, stage: u32) -> Result<()> {
    const ACCESS: &[u8] = b"system.posix_acl_access";
    const DEFAULT: &[u8] = b"system.posix_acl_default";
    match stage {
        0 => {
            at.dir("image")?;
            at.xattr("image", DEFAULT, &acl_value(1234, 7))
        }
        1 => {
            at.file("file", "a")?;
            at.xattr("file", ACCESS, &acl_value(77, 4))?;
            at.dir("dir")?;
            at.xattr("dir", ACCESS, &acl_value(99, 5))?;
            at.xattr("dir", DEFAULT, &acl_value(4_294_967_290, 7))?;
            at.file("dir/inherits", "a")?;
            at.file("image/inherits", "a")
        }
        2 => {
            at.xattr("file", ACCESS, &acl_value(78, 6))?;
            at.no_xattr("image", DEFAULT)
        }
        _ => {
            at.no_xattr("file", ACCESS)?;
            at.chmod("dir", 0o700)
        }
    }
}

/// File capabilities of versions 2 and 3 (the latter for a user namespace).
pub(super) fn capabilities(at: &Site, stage: u32) -> Result<()> {
    const NAME: &[u8] = b"security.capability";
    let version2 = |bits: u8| [1, 0, 0, 2, 0, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let version3 = [&[1, 0, 0, 3, 0, 0x20, 0, 0][..], &[0; 12], &100_000_u32.to_le_bytes()].concat();
    match stage {
        0 => {
            at.file("image", "#!")?;
            at.xattr("image", NAME, &version2(0x20))
        }
        1 => {
            at.file("v2", "#!")?;
            at.chown("v2", 1000, 1000)?;
            at.chmod("v2", 0o755)?;
            at.xattr("v2", NAME, &version2(0x04))?;
            at.file("v3", "#!")?;
            at.xattr("v3", NAME, &version3)
        }
        // A chown and a write take a file's capabilities away.
        2 => at.chown("image", 1, 1),
        _ => at.append("v2", b"x"),
    }
}

/// The flag that tells dump to leave a file out: a real inode flag, on files and directories.
pub(super) fn nodump(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => ["image", "dir/child"].into_iter().try_for_each(|name| at.file(name, "n")),
        1 => {
            at.file("file", "n")?;
            ["file", "image", "dir"].into_iter().try_for_each(|name| at.flags(name, IFlags::NODUMP, IFlags::empty()))
        }
        2 => at.flags("file", IFlags::empty(), IFlags::NODUMP),
        _ => at.file("dir/new", "n"),
    }
}

/// The root directory's own mode, owner and xattrs.
pub(super) fn root_dir(at: &Site, stage: u32) -> Result<()> {
    let root = at.root();
    fs::set_permissions(root, fs::Permissions::from_mode(0o711 + 0o1000 * (stage % 2)))?;
    let value = stage.to_string();
    let set = rustix::fs::setxattr(root, "user.of.the.root", value.as_bytes(), rustix::fs::XattrFlags::empty());
    may("xattr of the root", set)?;
    std::os::unix::fs::chown(root, Some(0), Some(stage))?;
    Ok(())
}

/// The root directory's own mtime; set when everything else is done.
pub(super) fn root_dir_time(root: &Path, stage: u32) -> Result<()> {
    set_time(root, 1_250_000_000, 1 + i64::from(stage))
}

/// Files and directories that must not change, which overlayfs keeps in an xattr of its own.
pub(super) fn immutable(at: &Site, stage: u32) -> Result<()> {
    const I: IFlags = IFlags::IMMUTABLE;
    let none = IFlags::empty();
    // The fixed time must be set before the flag forbids it.
    let protect = |name: &str| {
        at.time(name, 1_350_000_000, i64::from(stage))?;
        at.flags(name, I, none)
    };
    match stage {
        0 => {
            at.file("image", "i")?;
            at.file("dir/child", "c")
        }
        1 => {
            at.file("file", "i")?;
            protect("file")?;
            protect("image")?;
            protect("dir")
        }
        2 => {
            at.flags("file", none, I)?;
            at.append("file", b" changed")?;
            protect("file")?;
            at.flags("dir", none, I)?;
            at.file("dir/new", "n")
        }
        _ => {
            at.flags("image", none, I)?;
            at.flags("file", none, I)?;
            at.remove("file")
        }
    }
}

/// Files that may only grow.
pub(super) fn append_only(at: &Site, stage: u32) -> Result<()> {
    const A: IFlags = IFlags::APPEND;
    let none = IFlags::empty();
    if stage > 1 {
        at.flags("log", none, A)?;
        at.append("log", b"and grown\n")?;
    } else {
        at.file("log", "begun\n")?;
    }
    at.time("log", 1_360_000_000, i64::from(stage))?;
    if stage == 1 || stage == 2 { at.flags("log", A, none) } else { Ok(()) }
}

/// Xattrs that only privileged programs see.
pub(super) fn xattr_trusted(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => at.file("image", "t"),
        1 => {
            at.file("file", "t")?;
            at.xattr("file", b"trusted.mine", b"\0\x01")?;
            at.xattr("image", b"trusted.overlaid", b"not of overlayfs, in spite of its name")
        }
        2 => at.xattr("file", b"trusted.mine", b""),
        _ => at.no_xattr("image", b"trusted.overlaid"),
    }
}

/// Xattrs on entries that cannot be opened: symlinks, pipes, devices.
pub(super) fn xattr_on_special(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => at.symlink("x", "image-link"),
        1 => {
            at.symlink("x", "link")?;
            at.node("fifo", FileType::Fifo, (0, 0))?;
            at.node("socket", FileType::Socket, (0, 0))?;
            at.node("null", FileType::CharacterDevice, (1, 3))?;
            ["link", "fifo", "socket", "null"]
                .into_iter()
                .try_for_each(|name| at.xattr(name, b"trusted.sl", name.as_bytes()))
        }
        2 => at.xattr("image-link", b"trusted.sl", b"on a link of the image"),
        _ => at.no_xattr("fifo", b"trusted.sl"),
    }
}

/// A label of another security module, as data.
pub(super) fn xattr_selinux(at: &Site, stage: u32) -> Result<()> {
    if stage == 0 {
        at.file("file", "s")?;
    }
    at.xattr("file", b"security.selinux", format!("system_u:object_r:stage{stage}_t:s0\0").as_bytes())
}

/// Xattrs with overlayfs's own prefix set inside an overlay, which escapes them.
pub(super) fn xattr_overlay(at: &Site, stage: u32) -> Result<()> {
    match stage {
        0 => {
            at.file("file", "o")?;
            at.file("dir/child", "must stay visible")
        }
        1 => {
            at.xattr("file", b"trusted.overlay.foo", b"bar")?;
            at.xattr("dir", b"trusted.overlay.opaque", b"y")
        }
        2 => at.xattr("file", b"trusted.overlay.foo", b"changed"),
        _ => at.no_xattr("dir", b"trusted.overlay.opaque"),
    }
}
