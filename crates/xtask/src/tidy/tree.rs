//! The repository's files as the checks see them: relative paths and texts, read once, in a fixed order.

use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::Path;

/// Directories that hold nothing anybody wrote.
const SKIPPED: &[&str] = &[".git", "target"];

/// Files by path relative to the root, with `/` between the parts. `None` stands for a file that is not text.
#[derive(Debug, Default)]
pub(super) struct Tree {
    files: BTreeMap<String, Option<String>>,
}

impl Tree {
    /// Reads every file below `root` but those in [`SKIPPED`] directories.
    pub(super) fn read(root: &Path) -> anyhow::Result<Self> {
        let mut tree = Self::default();
        tree.read_directory(root, "")?;
        Ok(tree)
    }

    fn read_directory(&mut self, directory: &Path, prefix: &str) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let kind = entry.file_type().with_context(|| format!("cannot inspect {path}"))?;
            if kind.is_dir() {
                self.read_directory(&entry.path(), &path)?;
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
                self.files.insert(path, String::from_utf8(bytes).ok());
            }
        }
        Ok(())
    }

    /// Makes a tree of the given files, for tests.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), Some((*text).to_owned()))).collect();
        Self { files }
    }

    /// Returns the number of files.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Returns the paths and texts of the text files.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// Returns the paths and texts of the files whose name ends in `.rs`.
    pub(super) fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with(".rs"))
    }

    /// Returns the paths and texts of the files whose name ends in `.md`.
    pub(super) fn markdown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with(".md"))
    }

    /// Returns the text of one file.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// Returns the paths of all files below a directory, without the directory's own path.
    pub(super) fn below(&self, directory: &str) -> impl Iterator<Item = &str> {
        let prefix = format!("{directory}/");
        self.files.keys().filter_map(move |path| path.strip_prefix(prefix.as_str()))
    }

    /// Returns whether a file or a directory of this path is there.
    pub(super) fn has(&self, path: &str) -> bool {
        self.files.contains_key(path) || self.below(path).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_without_what_was_built_in_it() {
        let root = tempfile::tempdir().unwrap();
        for path in ["src/a.rs", "target/b.rs", ".git/config", "sub/target/c.rs"] {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::File::create(file).unwrap();
        }
        let tree = Tree::read(root.path()).unwrap();
        assert_eq!(tree.texts().collect::<Vec<_>>(), [("src/a.rs", "")]);
        assert!(tree.has("src"));
        assert!(!tree.has("sr"));
    }
}
