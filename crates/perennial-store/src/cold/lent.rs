//! Chunks that are found in files which are here already, so that they need not be fetched: another version of a file
//! mostly has the same ones.

use super::content::{self, Stretch};
use perennial_core::sealed::chunk::Cuts;
use perennial_core::sealed::object::ObjectId;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a chunk is.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    bytes: usize,
}

/// Chunks in files.
#[derive(Debug, Default)]
pub struct Lent {
    table: Arc<Table>,
    open: Option<(usize, File)>,
}

#[derive(Debug, Default, Clone)]
struct Table {
    files: Vec<PathBuf>,
    chunks: HashMap<ObjectId, Place>,
}

impl Lent {
    /// Returns another one with the same chunks, for another thread.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { table: Arc::clone(&self.table), open: None }
    }

    /// Looks for chunks in a file, cut as what travels is.
    ///
    /// # Errors
    /// The system's.
    pub fn look(&mut self, path: &Path, wanted: &HashSet<ObjectId>) -> std::io::Result<()> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let Some(cuts) = Cuts::choose_for_travel(size) else { return Ok(()) };
        let table = Arc::make_mut(&mut self.table);
        let (number, mut at, mut has_some) = (table.files.len(), 0_u64, false);
        content::cut::<std::io::Error>(&file, size, &cuts, &mut |stretch| {
            let bytes = match stretch {
                Stretch::Zeros(bytes) => bytes,
                Stretch::Chunk(content) => {
                    let id = ObjectId::of(content);
                    if wanted.contains(&id) {
                        has_some = true;
                        table.chunks.entry(id).or_insert(Place { file: number, offset: at, bytes: content.len() });
                    }
                    u64::try_from(content.len()).unwrap_or(u64::MAX)
                }
            };
            at = at.saturating_add(bytes);
            Ok(())
        })?;
        if has_some {
            table.files.push(path.to_path_buf());
        }
        Ok(())
    }

    /// Returns whether a chunk was found.
    #[must_use]
    pub fn has(&self, chunk: &ObjectId) -> bool {
        self.table.chunks.contains_key(chunk)
    }

    /// Reads a chunk; `None` where it is not there, or not what it was.
    pub(super) fn read(&mut self, chunk: &ObjectId) -> Option<Vec<u8>> {
        let place = *self.table.chunks.get(chunk)?;
        if self.open.as_ref().is_none_or(|(number, _)| *number != place.file) {
            self.open = Some((place.file, File::open(self.table.files.get(place.file)?).ok()?));
        }
        let (_, file) = self.open.as_ref()?;
        let mut content = vec![0; place.bytes];
        file.read_exact_at(&mut content, place.offset).ok()?;
        (ObjectId::of(&content) == *chunk).then_some(content)
    }
}
