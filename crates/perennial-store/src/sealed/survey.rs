//! A first look at the whole tree: which files have several names in it, and which are objects already.
//!
//! A file's number of names says neither: an object is one more name of the file it was made from. What is an object
//! already, because an earlier attempt was cut off or another layer shares the file, need not be read again.
//!
//! Memory: 16 bytes for each file with several names, and 48 for each of them that is an object.

use super::error::SealError;
use super::source::TreeSource;
use crate::objects::Objects;
use perennial_core::sealed::object::ObjectId;
use rustix::fd::BorrowedFd;
use std::collections::HashSet;

/// Device and inode number.
type Key = (u64, u64);

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Files with more than one name in the tree, sorted.
    several: Vec<Key>,
    /// Files that are objects, by inode number.
    known: Vec<(u64, ObjectId)>,
    dev: u64,
}

impl Survey {
    pub(super) fn new(
        tree: BorrowedFd<'_>,
        below: &[BorrowedFd<'_>],
        objects: &Objects,
        give_way: &mut dyn FnMut() -> bool,
    ) -> Result<Self, SealError> {
        let mut linked: Vec<Key> = Vec::new();
        let mut source = TreeSource::new(tree, below)?;
        while let Some(listed) = source.next()? {
            if listed.path.is_empty() {
                refuse_secret(&listed, objects)?;
            }
            let files = listed.entries.iter().filter(|entry| !entry.stat.is_whiteout());
            linked.extend(files.filter_map(|entry| entry.stat.link_group()));
            if give_way() {
                return Err(SealError::GaveWay);
            }
        }
        linked.sort_unstable();
        let several = linked.chunk_by(|a, b| a == b).filter(|names| names.len() > 1);
        let several = several.filter_map(|names| names.first().copied()).collect();
        let known = known(&linked, objects)?;
        Ok(Self { several, known, dev: objects.dev() })
    }

    pub(super) fn has_several_names(&self, key: Key) -> bool {
        self.several.binary_search(&key).is_ok()
    }

    pub(super) fn object_of(&self, (dev, ino): Key) -> Option<ObjectId> {
        let at = self.known.binary_search_by_key(&ino, |(ino, _)| *ino).ok().filter(|_| dev == self.dev)?;
        self.known.get(at).map(|(_, id)| *id)
    }
}

/// No mount looks for objects in layers, because no layer has a directory of their secret name.
fn refuse_secret(root: &super::source::Listed, objects: &Objects) -> Result<(), SealError> {
    let secret = objects.secret().to_string();
    match root.entries.iter().find(|entry| entry.name.to_bytes() == secret.as_bytes()) {
        Some(_) => {
            let path = crate::tree::EntryPath::from_bytes(secret.into_bytes());
            Err(SealError::Hijack { path })
        }
        None => Ok(()),
    }
}

/// Finds the objects among files with several names.
fn known(linked: &[Key], objects: &Objects) -> Result<Vec<(u64, ObjectId)>, SealError> {
    let here: HashSet<u64> = linked.iter().filter(|(dev, _)| *dev == objects.dev()).map(|(_, ino)| *ino).collect();
    let mut known = Vec::new();
    if !here.is_empty() {
        objects.each_inode(&mut |ino, id| {
            if here.contains(&ino) {
                known.push((ino, id));
            }
        })?;
        known.sort_unstable();
    }
    Ok(known)
}
