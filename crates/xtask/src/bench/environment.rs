//! The environments that are measured: trees of a given number of entries, and the changes of one session.
//!
//! ```text
//! state/d00000/f00 … f98     99 files to a directory: with it, 100 entries; every tenth file holds 1 KiB, the rest nothing
//! state/d00001/…
//! ```

use anyhow::Context as _;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// Files a session changes.
pub(super) const CHANGED_FILES: u64 = 50;

const ENTRIES_PER_DIRECTORY: u64 = 100;
const FILES_WITH_CONTENT_EVERY: u64 = 10;
const CONTENT: &[u8; 1024] = &[b'p'; 1024];

/// A number of entries as people write it: `1k`, `100k`, `1M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entries(pub(super) u64);

impl std::str::FromStr for Entries {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (digits, factor) = match text.strip_suffix('k') {
            Some(digits) => (digits, 1_000),
            None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1_000_000)),
        };
        let number: u64 = digits.parse().with_context(|| format!("{text:?} is no number such as 1k, 100k or 1M"))?;
        let entries = number.checked_mul(factor).with_context(|| format!("{text:?} is too large"))?;
        anyhow::ensure!(entries >= 10 * CHANGED_FILES, "{text} entries are too few to change {CHANGED_FILES} files");
        Ok(Self(entries))
    }
}

impl std::fmt::Display for Entries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n if n % 1_000_000 == 0 => write!(f, "{} M", n / 1_000_000),
            n if n % 1_000 == 0 => write!(f, "{} k", n / 1_000),
            n => write!(f, "{n}"),
        }
    }
}

impl Entries {
    fn directories(self) -> u64 {
        self.0.div_ceil(ENTRIES_PER_DIRECTORY)
    }

    /// Returns a name without blanks for directories and containers.
    pub(super) fn slug(self) -> String {
        self.to_string().replace(' ', "").to_lowercase()
    }

    /// Makes the tree below `state`, which must not exist.
    pub(super) fn build(self, state: &Path) -> anyhow::Result<()> {
        std::fs::create_dir(state).with_context(|| format!("cannot create {}", state.display()))?;
        for directory in 0..self.directories() {
            let path = state.join(directory_name(directory));
            std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
            for file in 0..ENTRIES_PER_DIRECTORY - 1 {
                let path = path.join(file_name(file));
                let created = std::fs::File::create(&path).and_then(|mut handle| {
                    if file % FILES_WITH_CONTENT_EVERY == 0 { handle.write_all(CONTENT) } else { Ok(()) }
                });
                created.with_context(|| format!("cannot create {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Returns the paths, inside the container, of the files that session number `round` changes: all different, spread
    /// over the tree, all with content, and other ones in the next session.
    pub(super) fn changed_files(self, round: u64) -> Vec<String> {
        let per_directory = (ENTRIES_PER_DIRECTORY - 1).div_ceil(FILES_WITH_CONTENT_EVERY);
        let candidates = self.directories() * per_directory;
        let stride = candidates / CHANGED_FILES;
        let paths = (0..CHANGED_FILES).map(|n| {
            let candidate = (n * stride + round) % candidates;
            let directory = directory_name(candidate / per_directory);
            let file = file_name(candidate % per_directory * FILES_WITH_CONTENT_EVERY);
            format!("/state/{directory}/{file}")
        });
        paths.collect()
    }

    /// Returns the shell commands of session number `round`.
    pub(super) fn session_script(self, round: u64) -> String {
        let mut script = String::new();
        for path in self.changed_files(round) {
            writeln!(script, "echo 'changed in session {round}' >>{path}").expect("writing to a String cannot fail");
        }
        script
    }
}

fn directory_name(number: u64) -> String {
    format!("d{number:05}")
}

fn file_name(number: u64) -> String {
    format!("f{number:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn sizes_are_read_and_shown_as_people_write_them() {
        for (text, entries, shown) in
            [("1k", 1_000, "1 k"), ("100k", 100_000, "100 k"), ("1M", 1_000_000, "1 M"), ("1234", 1_234, "1234")]
        {
            let size: Entries = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (entries, shown));
        }
        assert!("12".parse::<Entries>().is_err());
        assert!("x".parse::<Entries>().is_err());
    }

    #[test]
    fn a_session_changes_fifty_different_files_that_exist() {
        let root = tempfile::tempdir().unwrap();
        let size = Entries(1_000);
        size.build(&root.path().join("state")).unwrap();
        for round in [0, 1, 7, 99] {
            let files: BTreeSet<String> = size.changed_files(round).into_iter().collect();
            assert_eq!(files.len(), 50, "round {round}");
            for file in files {
                let length = std::fs::metadata(root.path().join(file.trim_start_matches('/'))).unwrap().len();
                assert_eq!(length, 1024, "{file}");
            }
        }
        assert_ne!(size.changed_files(0), size.changed_files(1));
    }

    #[test]
    fn a_tree_has_the_entries_it_is_named_after() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("state");
        Entries(1_000).build(&state).unwrap();
        let directories: Vec<_> = std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path()).collect();
        let files: usize = directories.iter().map(|path| std::fs::read_dir(path).unwrap().count()).sum();
        assert_eq!(directories.len() + files, 1_000);
    }
}
