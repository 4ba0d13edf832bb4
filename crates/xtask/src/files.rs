//! Writing files so that they appear whole.

use anyhow::Context as _;
use std::io::Write as _;
use std::path::Path;

/// Writes a file so that a reader sees the old or the new text, never a part.
pub(crate) fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        std::fs::File::create(&temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", temporary.display()))?;
    file.sync_all().with_context(|| format!("cannot write {}", temporary.display()))?;
    std::fs::rename(&temporary, path).with_context(|| format!("cannot replace {}", path.display()))
}
