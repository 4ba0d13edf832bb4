//! `cargo xtask tidy`: what the compiler and clippy do not check.
//!
//! Every check is a function from a [`Tree`] (paths and texts, read once) to a list of [`Problem`]s, so that its tests
//! need no repository: they write a tree of three files and look at the problems.
//!
//! ```text
//! crates    edges between crates and the lists in README.md and ARCHITECTURE.md, against `cargo metadata`
//! sources   first line, length, leftovers of work, number of #[expect]
//! formats   page, codec and one frozen file per version
//! notes     names of design notes, first line of change notes
//! links     relative links of documents lead somewhere
//! places    no registry host and no directory of this machine is named
//! ```

mod crates;
mod formats;
mod links;
mod markdown;
mod notes;
mod places;
mod sources;
mod tree;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use tree::Tree;

/// One thing that is not as it must be, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    /// Path relative to the root of the repository.
    path: String,
    /// Line, from 1, where there is one to look at.
    line: Option<usize>,
    /// What is wrong and what would be right.
    text: String,
}

impl Problem {
    /// Makes a problem of a whole file.
    fn of_file(path: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: None, text: text.into() }
    }

    /// Makes a problem of one line; `index` counts from 0.
    fn of_line(path: &str, index: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: Some(index.saturating_add(1)), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.text),
            None => write!(f, "{}: {}", self.path, self.text),
        }
    }
}

/// Checks the tree at `root`, prints the problems and fails where there are any.
pub(crate) fn run(root: &Path) -> anyhow::Result<ExitCode> {
    Ok(if check_and_print(root)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks the tree at `root`, prints the problems, and returns whether there were none.
pub(crate) fn check_and_print(root: &Path) -> anyhow::Result<bool> {
    let tree = Tree::read(root)?;
    let workspace = crates::Workspace::of(root)?;
    let mut problems = crates::check(&tree, &workspace);
    problems.extend(sources::check(&tree));
    problems.extend(formats::check(&tree));
    problems.extend(notes::check(&tree));
    problems.extend(links::check(&tree));
    problems.extend(places::check(&tree, root));
    for problem in &problems {
        println!("{problem}");
    }
    println!(
        "tidy: {} files, {} crates, {} #[expect], {} problems",
        tree.len(),
        workspace.len(),
        sources::count_expects(&tree),
        problems.len()
    );
    Ok(problems.is_empty())
}
