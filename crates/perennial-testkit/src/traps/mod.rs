//! Everything a directory tree can hold that packers, copiers and overlay file systems are known to get wrong.
//!
//! A [`Case`] is one such thing, in a directory of its own under [`DIR`]. It acts in stages: stage 0 makes what the
//! image has, stages 1 to [`STAGES`] are the changes of consecutive runs, so that whiteouts, opaque directories and
//! hard links meet those of the generation before. The stages need nothing but a root directory: in a test's own
//! overlay mount, on a plain directory, or inside a container by the program `trap-actor`.
//!
//! What the kernel or the file system at hand refuses is reported as [`Outcome::Impossible`], in words, and its
//! case is left alone in the later stages; any other failure is an error.
//!
//! At its end a stage gives everything it has changed a fixed mtime, so that two trees made by the same stages are
//! equal, whenever they were made.

mod attributes;
mod layers;
mod names;
mod site;

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
pub use site::Site;
use site::{Refused, now};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The directory of all cases, in the root that the stages act on.
pub const DIR: &str = "traps";

/// The last stage.
pub const STAGES: u32 = 3;

/// The xattr of [`DIR`] that holds the last stage that is completely done.
pub const DONE_XATTR: &str = "user.traps.done";

/// Returns the last stage that is completely done below `root`: how a test sees from outside that a container is.
#[must_use]
pub fn stage_done(root: &Path) -> Option<u32> {
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(root.join(DIR), DONE_XATTR, &mut value[..]).ok()?;
    std::str::from_utf8(value.get(..length)?).ok()?.parse().ok()
}

/// A capability beyond those that containers get by default, without which a case is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// `chattr +i` and `+a`.
    LinuxImmutable,
    /// Devices; whiteouts apart, which the kernel makes for anyone.
    Mknod,
    /// `trusted.*` and `security.*` xattrs.
    SysAdmin,
}

impl Need {
    /// Returns the capability's name, as `--cap-add` takes it.
    #[must_use]
    pub fn capability(self) -> &'static str {
        match self {
            Self::LinuxImmutable => "LINUX_IMMUTABLE",
            Self::Mknod => "MKNOD",
            Self::SysAdmin => "SYS_ADMIN",
        }
    }
}

/// One thing that is easy to get wrong.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, and that of its directory.
    pub name: &'static str,
    /// What it needs beyond the default capabilities (which have `SETFCAP`, `CHOWN`, `FOWNER`,
    /// `DAC_OVERRIDE` and `FSETID`).
    pub needs: &'static [Need],
    act: fn(&Site, u32) -> Result<()>,
}

const fn case(name: &'static str, act: fn(&Site, u32) -> Result<()>) -> Case {
    Case { name, needs: &[], act }
}

const fn case_with(name: &'static str, needs: &'static [Need], act: fn(&Site, u32) -> Result<()>) -> Case {
    Case { name, needs, act }
}

/// Every case.
pub const CASES: &[Case] = &[
    case("whiteout", layers::whiteout),
    case("dir-removed", layers::dir_removed),
    case("dir-recreated", layers::dir_recreated),
    case("opaque-flip", layers::opaque_flip),
    case("opaque-emptied", layers::opaque_emptied),
    case("rename-dir", layers::rename_dir),
    case("rename-file", layers::rename_file),
    case("kind-changed", layers::kind_changed),
    case("links-new", layers::links_new),
    case("links-lower", layers::links_lower),
    case_with("links-special", &[Need::Mknod], layers::links_special),
    case_with("special-removed", &[Need::Mknod], layers::special_removed),
    case("rewrite-same-size-same-mtime", layers::rewrite_in_disguise),
    case("grow-and-shrink", layers::grow_and_shrink),
    case("sparse", layers::sparse),
    case("tmpfile", layers::tmpfile),
    case("lookalikes", names::lookalikes),
    case("names", names::names),
    case("deep", names::deep),
    case("symlinks", names::symlinks),
    case_with("sockets-and-devices", &[Need::Mknod], attributes::devices),
    case("mode-only", attributes::mode_only),
    case("owner-only", attributes::owner_only),
    case("setuid", attributes::setuid),
    case("mode-000", attributes::mode_000),
    case("times", attributes::times),
    case("times-far-future", attributes::times_far_future),
    case("time-only", attributes::time_only),
    case("xattr-user", attributes::xattr_user),
    case("xattr-large", attributes::xattr_large),
    case("xattr-only", attributes::xattr_only),
    case("acl", attributes::acl),
    case("capabilities", attributes::capabilities),
    case("nodump", attributes::nodump),
    case("root-dir", attributes::root_dir),
    case_with("immutable", &[Need::LinuxImmutable], attributes::immutable),
    case_with("append-only", &[Need::LinuxImmutable], attributes::append_only),
    case_with("xattr-trusted", &[Need::SysAdmin], attributes::xattr_trusted),
    case_with("xattr-on-special", &[Need::Mknod, Need::SysAdmin], attributes::xattr_on_special),
    case_with("xattr-selinux", &[Need::SysAdmin], attributes::xattr_selinux),
    case_with("xattr-overlay", &[Need::SysAdmin], attributes::xattr_overlay),
];

/// Returns every capability that some case needs beyond the default ones, once, as `--cap-add` takes it.
#[must_use]
pub fn capabilities() -> Vec<&'static str> {
    let mut needs: Vec<Need> = CASES.iter().flat_map(|case| case.needs).copied().collect();
    needs.sort_unstable();
    needs.dedup();
    needs.into_iter().map(Need::capability).collect()
}

/// The cases about inode flags, which only a directory can hold.
pub const FLAGGED: [&str; 3] = ["nodump", "immutable", "append-only"];

/// How one case's stage went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As intended.
    Done,
    /// The kernel, the file system, or missing capabilities do not allow it, in these words.
    Impossible(String),
}

/// One case's stage, performed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Performed {
    /// The case's name.
    pub case: String,
    /// The stage.
    pub stage: u32,
    /// How it went.
    pub outcome: Outcome,
}

/// Makes what the image has of every case, in the root file system `root`.
pub fn build_lower(root: &Path) -> Result<Vec<Performed>> {
    mutate(root, 0)
}

/// Performs one stage of every case below `root`; reports each.
pub fn mutate(root: &Path, stage: u32) -> Result<Vec<Performed>> {
    perform(root, stage, &|_| true)
}

/// Performs one stage of the cases that are chosen.
pub fn perform(root: &Path, stage: u32, chosen: &dyn Fn(&Case) -> bool) -> Result<Vec<Performed>> {
    let begun = now();
    let mut performed = Vec::new();
    for case in CASES.iter().filter(|case| chosen(case)) {
        let outcome = perform_case(root, case, stage).with_context(|| format!("case {} stage {stage}", case.name))?;
        performed.push(Performed { case: case.name.to_owned(), stage, outcome });
    }
    stamp(&root.join(DIR), begun.tv_sec - 1, &mut Stamp { seconds: i64::from(stage) * 1_000_000, count: 0 })?;
    // The root's own time is set last, since making the first directory in it changes it.
    if chosen(&case("root-dir", attributes::root_dir)) {
        attributes::root_dir_time(root, stage)?;
    }
    // An xattr changes no mtime, so that this can be the very last act.
    let stage = stage.to_string();
    rustix::fs::setxattr(root.join(DIR), DONE_XATTR, stage.as_bytes(), rustix::fs::XattrFlags::empty())?;
    Ok(performed)
}

fn perform_case(root: &Path, case: &Case, stage: u32) -> Result<Outcome> {
    let dir = root.join(DIR).join(case.name);
    let mark = dir.join("impossible");
    if stage == 0 {
        fs::create_dir_all(&dir)?;
    } else if let Ok(why) = fs::read_to_string(&mark) {
        return Ok(Outcome::Impossible(why));
    }
    let Err(error) = (case.act)(&Site::new(root, &dir), stage) else { return Ok(Outcome::Done) };
    let refused = error.downcast::<Refused>()?;
    let why = format!("stage {stage}: {refused}");
    crate::host::write(mark, &why)?;
    Ok(Outcome::Impossible(why))
}

/// The fixed times a stage gives to what it has changed, one for each entry.
struct Stamp {
    seconds: i64,
    count: i64,
}

/// Base of the fixed times: a moment that no clock of a test shows.
const STAMP_BASE: i64 = 1_500_000_000;

/// Gives fixed times to everything below `path` whose mtime says that it was changed since `since`.
fn stamp(path: &Path, since: i64, stamp_: &mut Stamp) -> Result<()> {
    let meta = match fs::symlink_metadata(path) {
        // A path longer than the kernel takes is not stamped by its path; its case sets its times itself.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NAMETOOLONG) => return Ok(()),
        other => other?,
    };
    if meta.is_dir() {
        let names =
            fs::read_dir(path).map(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>());
        let mut names = names.unwrap_or_else(|_| Ok(Vec::new()))?;
        names.sort();
        for name in names {
            stamp(&path.join(name), since, stamp_)?;
        }
    }
    stamp_.count += 1;
    let soon = since + 86_400;
    if (since..soon).contains(&meta.mtime()) {
        let time = Timespec { tv_sec: STAMP_BASE + stamp_.seconds + stamp_.count, tv_nsec: 123_456_000 + stamp_.count };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| anyhow!(error).context(format!("cannot stamp {}", path.display())))?;
    }
    Ok(())
}
