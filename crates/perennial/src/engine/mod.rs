//! What the commands do, without how they are typed or printed.
//!
//! - [`records`]: typed records, changed by compare-and-swap.
//! - [`create`]: containers that do not run yet; settings, forks, removal.
//! - [`rebase`]: the same state on another image.
//! - [`start`]: from a request to a running process; runs in the supervisor.
//! - [`exit`]: from the end of the last process to a committed generation.
//! - [`evict`]: eviction by hand and by bytes, and what it frees.
//! - [`recover`]: puts right what a process that died has left.
//! - [`supervise`]: one run from the request to the settled exit.
//! - [`compact`]: several sealed layers made one.
//! - [`seal`]: layers as objects and metadata; [`objects`]: which contents nothing needs.
//! - [`pack`]: what only older generations show, into packs; [`thaw`]: and back.
//! - [`settle`]: work after an exit that nobody waits for: merge, free; [`fold`]: directories put together by renames;
//!   [`stacks`]: what lies on what in all generations.
//! - [`history`]: roll back, pin, mark.
//! - [`trees`]: layers on disk in either form, the one door to them.
//! - [`views`]: read-only views: browse, diff; [`copy_out`]: files out of them.
//! - [`mod@export`]: generations as images that any engine can run; [`import`]: and back.
//! - [`drill`]: a generation brought up in a shadow and asked whether it works.
//! - [`collect`]: what dead processes left and nothing needs; [`usage`]: what takes space.
//! - [`diagnose`]: every invariant over what is really there.
//! - [`rebuild`]: a lost record store made again from the layers.
//! - [`verify`]: layers and contents compared with their names.
//! - [`travel`]: containers to registries and back.
//! - [`net`]: the network of a run.
//! - [`images`]: images as layers of the store.

pub mod collect;
pub mod compact;
pub mod copy_out;
pub mod create;
pub mod diagnose;
pub mod drill;
pub mod evict;
pub mod exit;
pub mod export;
pub mod fold;
pub mod history;
pub mod images;
pub mod import;
pub mod net;
pub mod objects;
pub mod pack;
pub mod rebase;
pub mod rebuild;
pub mod records;
pub mod recover;
pub mod resolve;
pub mod seal;
pub mod settle;
pub mod stacks;
pub mod start;
pub mod supervise;
pub mod thaw;
pub mod travel;
pub mod trees;
pub mod usage;
pub mod verify;
pub mod views;

#[cfg(test)]
mod beside;

use crate::clock;
use crate::failure::{Code, Failure, Result};
use perennial_core::time::Time;
use perennial_core::travel::clean;
use perennial_store::layer::{self, LayerFile, LayerOrigin};
use perennial_store::records::sqlite::SqliteRecords;
use perennial_store::records::{RecordStore as _, keys};
use perennial_store::root::{Root, Secret};
use std::path::Path;

/// An open root with its records, on behalf of somebody.
#[derive(Debug)]
pub struct Engine {
    /// The directory.
    pub root: Root,
    /// The records.
    pub records: SqliteRecords,
    /// Who is asking, for the event log (A39).
    pub actor: String,
}

impl Engine {
    /// Opens a root, making it where it does not exist.
    ///
    /// # Errors
    /// Where the root or its records cannot be used; they are then as they were.
    pub fn open(path: &Path) -> Result<Self> {
        let root = Root::open_or_create(path, clock::now(), Secret::from_random(random()?))?;
        refuse_lost_records(&root)?;
        let records = SqliteRecords::open_or_create(&root.records_path())?;
        let engine = Self { root, records, actor: actor() };
        engine.refuse_emptied_records()?;
        Ok(engine)
    }

    /// Refuses records that hold nothing at all although there are layers of containers: their log, `records.db-wal`,
    /// was lost or damaged, and what is left of the file would make every layer look unneeded.
    fn refuse_emptied_records(&self) -> Result<()> {
        // A pull that was cut off leaves layers that nothing names yet, but there is a remote then.
        for kind in [keys::LAYERS, keys::CONTAINERS, keys::IMAGES, keys::REMOTES] {
            if !self.records.list(kind)?.is_empty() {
                return Ok(());
            }
        }
        match has_deltas(&self.root)? {
            true => Err(lost(&self.root.records_path(), "holds nothing")),
            false => Ok(()),
        }
    }

    /// Returns the present instant.
    pub fn now(&self) -> Time {
        clock::now()
    }
}

/// Refuses a root whose record store is gone: a new one would hide every generation there is (A5), and SQLite would
/// take the log of the lost one for a leftover and delete it. Only runs make deltas, and no run begins unrecorded.
fn refuse_lost_records(root: &Root) -> Result<()> {
    let path = root.records_path();
    if path.symlink_metadata().is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(());
    }
    let has_run = std::fs::read_dir(root.path().join("runs"))?.next().is_some();
    if has_run || has_deltas(root)? {
        return Err(lost(&path, "is missing or empty"));
    }
    Ok(())
}

/// Whether any layer was made by a run.
fn has_deltas(root: &Root) -> Result<bool> {
    let is_delta = |file: LayerFile| match file.origin {
        LayerOrigin::Run { .. } | LayerOrigin::Merged { .. } | LayerOrigin::Import { .. } => true,
        LayerOrigin::Image { .. } => false,
    };
    let mut layers = layer::list(root)?.into_iter();
    Ok(layers.any(|id| layer::describe(root, &id).is_ok_and(is_delta)))
}

fn lost(path: &Path, how: &str) -> Failure {
    let message = format!("{} {how}, although containers have run here", path.display());
    Failure::new(Code::Damaged, message).hint(
        "nothing was changed; put records.db back, together with records.db-wal where there is one, restore them from \
         a copy, or make them again from the layers with `perennial doctor --rebuild`",
    )
}

/// Returns random bytes from the kernel.
pub fn random<const BYTES: usize>() -> Result<[u8; BYTES]> {
    let mut bytes = [0_u8; BYTES];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..)
        && !rest.is_empty()
    {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// Names the caller: the user behind `sudo` where there is one, else the effective user id.
fn actor() -> String {
    let uid = rustix::process::getuid().as_raw();
    let actor = match (std::env::var("SUDO_USER"), std::env::var("SUDO_UID")) {
        (Ok(user), Ok(sudo_uid)) if uid == 0 => format!("{user}({sudo_uid}) by sudo"),
        _ => std::env::var("USER").map_or_else(|_| format!("uid {uid}"), |user| format!("{user}({uid})")),
    };
    // It is recorded and shown, also on other machines.
    clean(&actor)
}
