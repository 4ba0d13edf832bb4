//! Stretches of packs out of a repository, decrypted on the way where they are encrypted.
//!
//! ```text
//! stretch of a pack ─▶ its chunks that did not come yet ─▶ ranges of the blob ─▶ each chunk, checked ─▶ sink
//! ```
//!
//! A chunk of 64 KiB is handed on whole as soon as it is there, so that a fetch that is cut off loses at most one for
//! each connection, and what was fetched along with something else is not fetched again.

use crate::failure::{Code, Failure, Result};
use perennial_core::sealed::object::ObjectId;
use perennial_core::travel::PackAt;
use perennial_core::travel::cipher::{PackCipher, missing};
use perennial_registry::encryption::{EncryptionError, PackReader};
use perennial_registry::progress::{Progress, Silent};
use perennial_registry::repository::{Part, Repository, Sink};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

/// A stretch of a pack.
pub(super) struct Wanted<'a> {
    pub(super) pack: &'a PackAt,
    pub(super) range: Range<u64>,
}

/// What has come of encrypted packs.
#[derive(Debug, Default)]
pub(super) struct Unsealing {
    heads: RefCell<BTreeMap<ObjectId, Vec<u8>>>,
    chunks: RefCell<BTreeMap<ObjectId, BTreeSet<u64>>>,
}

/// A run of chunks that is on its way.
struct Run<'a> {
    /// Which stretch it is for.
    wanted: usize,
    pack: &'a PackAt,
    cipher: &'a PackCipher,
    /// The chunk that comes next, and the one after the last.
    chunks: Range<u64>,
    reader: Option<PackReader>,
    /// What came of the next chunk.
    buffer: Vec<u8>,
}

impl Unsealing {
    /// Fetches stretches of packs. Of encrypted ones the sink gets whole chunks, those that did not come before.
    pub(super) fn read(
        &self,
        repository: &Repository,
        wanted: &[Wanted<'_>],
        sink: Sink<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let is_plain = wanted.iter().all(|stretch| stretch.pack.cipher.is_none());
        if is_plain {
            let parts: Vec<Part> = wanted.iter().map(|Wanted { pack, range }| part(pack, range.clone())).collect();
            return Ok(repository.read(&parts, sink, progress)?);
        }
        self.fetch_heads(repository, wanted)?;
        let (mut parts, mut runs) = (Vec::new(), Vec::new());
        for (number, Wanted { pack, range }) in wanted.iter().enumerate() {
            let (Some(layout), Some(cipher)) = (pack.layout(), &pack.cipher) else { continue };
            let has_come = self.chunks.borrow().get(&pack.id).cloned().unwrap_or_default();
            for chunks in missing(layout.chunks(range), &|chunk| has_come.contains(&chunk)) {
                parts.push(part(pack, layout.stretch(&chunks)));
                let (reader, buffer) = (None, Vec::new());
                runs.push(RefCell::new(Run { wanted: number, pack, cipher, chunks, reader, buffer }));
            }
        }
        let failed = RefCell::new(None);
        let take = |number: usize, _: u64, bytes: &[u8]| {
            let run = runs.get(number).ok_or(io::ErrorKind::InvalidInput)?;
            let mut run = run.borrow_mut();
            self.take(&mut run, bytes, sink).map_err(|error| {
                if let EncryptionError::Disk(error) = error {
                    return error;
                }
                let (pack, name) = (run.pack.id, repository.name());
                failed.replace(Some(damaged(&format!("pack {pack} in {name}"), error)));
                io::ErrorKind::InvalidData.into()
            })
        };
        let done = repository.read(&parts, &take, progress);
        match failed.into_inner() {
            Some(failure) => Err(failure),
            None => Ok(done?),
        }
    }

    /// Fetches what comes before the first chunk of encrypted packs.
    fn fetch_heads(&self, repository: &Repository, wanted: &[Wanted<'_>]) -> Result<()> {
        let mut packs: BTreeMap<ObjectId, &PackAt> = BTreeMap::new();
        packs.extend(wanted.iter().map(|stretch| (stretch.pack.id, stretch.pack)));
        packs.retain(|id, _| !self.heads.borrow().contains_key(id));
        let packs: Vec<&PackAt> = packs.into_values().collect();
        let head_bytes = |pack: &PackAt| pack.cipher.as_ref().map_or(0, |cipher| cipher.head_bytes);
        let parts: Vec<Part> = packs.iter().map(|pack| part(pack, 0..head_bytes(pack))).collect();
        let sink = |number: usize, _: u64, bytes: &[u8]| {
            let pack = packs.get(number).ok_or(io::ErrorKind::InvalidInput)?;
            self.heads.borrow_mut().entry(pack.id).or_default().extend_from_slice(bytes);
            Ok(())
        };
        Ok(repository.read(&parts, &sink, &Silent)?)
    }

    /// Takes what came of a run, and hands on each chunk that is whole.
    fn take(&self, run: &mut Run<'_>, mut bytes: &[u8], sink: Sink<'_>) -> std::result::Result<(), EncryptionError> {
        let Some(layout) = run.pack.layout() else { return Ok(()) };
        while !bytes.is_empty() && !run.chunks.is_empty() {
            let number = run.chunks.start;
            let stretch = layout.stretch(&(number..number.saturating_add(1)));
            let length = usize::try_from(stretch.end.saturating_sub(stretch.start)).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(length.saturating_sub(run.buffer.len())));
            run.buffer.extend_from_slice(now);
            bytes = later;
            if run.buffer.len() < length {
                return Ok(());
            }
            let reader = match &mut run.reader {
                Some(reader) => reader,
                none @ None => {
                    let head = self.heads.borrow().get(&run.pack.id).cloned().unwrap_or_default();
                    none.insert(PackReader::open(run.cipher, run.pack.bytes, head)?)
                }
            };
            let content = reader.chunk(number, std::mem::take(&mut run.buffer))?;
            sink(run.wanted, layout.content(number).start, &content)?;
            self.chunks.borrow_mut().entry(run.pack.id).or_default().insert(number);
            run.chunks.start = number.saturating_add(1);
        }
        if run.chunks.is_empty() {
            // What it holds is needed no more, and there may be many of them.
            run.reader = None;
        }
        Ok(())
    }
}

fn part(pack: &PackAt, range: Range<u64>) -> Part {
    Part { digest: pack.digest.clone(), range, name: pack.id.to_string() }
}

fn damaged(what: &str, error: EncryptionError) -> Failure {
    Failure::from(error)
        .code(Code::Damaged)
        .while_doing(format!("{what} is damaged, or was exchanged for another"))
        .hint("nothing was changed here; try again, or push again from a machine that has it whole")
}
