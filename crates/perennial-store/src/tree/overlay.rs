//! overlayfs' private attributes: which ones a layer may carry, and what they say about an entry.
//!
//! The names are those of mounts without `userxattr`. A user cannot set them: overlayfs stores what is set inside a
//! mount under `trusted.overlay.overlay.…`.

use crate::root::Secret;
use perennial_core::sealed::object::ObjectId;
use rustix::time::Timespec;
use std::ffi::CStr;

/// Directory hides what is below it, if the value is `y`.
pub const OPAQUE: &CStr = c"trusted.overlay.opaque";
/// The only value of [`OPAQUE`] that the store's mount options produce.
pub const OPAQUE_YES: &[u8] = b"y";
/// Times of a directory whose content is being folded; ours, in overlayfs' name space so that no merged tree shows it
/// and no user can set it.
pub const TIMES: &CStr = c"trusted.overlay.perennial_times";

/// Says of a layer that it has entries with [`PROTATTR`], on its root; ours as well.
pub const PROTECTED: &CStr = c"trusted.overlay.perennial_protected";

/// A file that is metadata alone; its content is that of the file below, or of the object that [`REDIRECT`] names.
pub const METACOPY: &CStr = c"trusted.overlay.metacopy";
/// Where the content of a file, or what is below a directory, is: a name in the same directory of the layers below, a
/// path from their root, or the path of an object in the data-only layer.
pub const REDIRECT: &CStr = c"trusted.overlay.redirect";

const PREFIX: &[u8] = b"trusted.overlay.";
/// What a user set inside a mount, escaped.
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
/// Where `chattr +i` and `+a` inside a mount are kept.
pub const PROTATTR: &CStr = c"trusted.overlay.protattr";
/// Notes about the lower tree a layer was made over; wrong or refused by the kernel over a copy of it.
const STRIPPED: [&CStr; 4] =
    [c"trusted.overlay.origin", c"trusted.overlay.uuid", c"trusted.overlay.impure", c"trusted.overlay.nlink"];

/// What to do with an attribute of a layer's entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It is the user's, or means the same in every stack.
    Keep,
    /// It is a note about the mount the layer was written in.
    Strip,
    /// Keep it if the value is [`OPAQUE_YES`], refuse it otherwise.
    OnlyOpaqueYes,
    /// It refers to the layers below; only a mount over sealed layers produces it.
    Unresolved,
    /// The store's mount options cannot produce it.
    Refuse,
}

/// Decides about an attribute by its name.
#[must_use]
pub fn rule(name: &CStr) -> Rule {
    if !name.to_bytes().starts_with(PREFIX) || name.to_bytes().starts_with(ESCAPED) || name == PROTATTR {
        Rule::Keep
    } else if name == OPAQUE {
        Rule::OnlyOpaqueYes
    } else if STRIPPED.contains(&name) || name == TIMES || name == PROTECTED {
        Rule::Strip
    } else if name == METACOPY || name == REDIRECT {
        Rule::Unresolved
    } else {
        Rule::Refuse
    }
}

/// Reads the value of a sealed file's [`REDIRECT`]: the object, and the secret name of the directory it is in.
#[must_use]
pub fn decode_object(redirect: &[u8]) -> Option<(Secret, ObjectId)> {
    let text = std::str::from_utf8(redirect).ok()?.strip_prefix('/')?;
    let (secret, object) = text.split_once('/')?;
    let (fan_out, rest) = object.split_once('/')?;
    let id: ObjectId = format!("{fan_out}{rest}").parse().ok()?;
    (id.relative_path() == object).then_some((Secret::try_from(secret.to_owned()).ok()?, id))
}

/// Writes the value of [`TIMES`].
#[must_use]
pub fn encode_times(atime: Timespec, mtime: Timespec) -> Vec<u8> {
    format!("{}.{:09} {}.{:09}", atime.tv_sec, atime.tv_nsec, mtime.tv_sec, mtime.tv_nsec).into_bytes()
}

/// Reads the value of [`TIMES`]: access and modification.
#[must_use]
pub fn decode_times(value: &[u8]) -> Option<(Timespec, Timespec)> {
    let text = std::str::from_utf8(value).ok()?;
    let (atime, mtime) = text.split_once(' ')?;
    Some((decode_time(atime)?, decode_time(mtime)?))
}

fn decode_time(text: &str) -> Option<Timespec> {
    let (seconds, nanos) = text.split_once('.')?;
    let tv_nsec = nanos.parse().ok().filter(|nanos| (0..1_000_000_000).contains(nanos))?;
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec })
}
