//! Names of design notes and the first lines of change notes.
//!
//! A design note is `docs/design/YYYY-MM-DD-subject.md`. A change note is `changes/unreleased/subject.md` and begins
//! with its kind, as [`crate::changelog`] reads it.

use super::{Problem, Tree};
use crate::changelog::Note;

/// Returns the problems of all notes.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for name in tree.below("docs/design").filter(|name| *name != "README.md") {
        if !is_dated(name) {
            let text = "a design note is named YYYY-MM-DD-subject.md, after the day of the decision";
            problems.push(Problem::of_file(&format!("docs/design/{name}"), text));
        }
    }
    for name in tree.below("changes/unreleased") {
        let path = format!("changes/unreleased/{name}");
        if let Err(error) = Note::parse(tree.text(&path).unwrap_or_default()) {
            problems.push(Problem::of_file(&path, error.to_string()));
        }
    }
    problems
}

fn is_dated(name: &str) -> bool {
    let mut parts = name.splitn(4, '-');
    let is_number = |part: Option<&str>, digits: usize| {
        part.is_some_and(|part| part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    is_number(parts.next(), 4)
        && is_number(parts.next(), 2)
        && is_number(parts.next(), 2)
        && parts.next().is_some_and(|subject| subject.len() > ".md".len() && subject.ends_with(".md"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_dated_and_changes_have_a_kind() {
        let tree = Tree::of(&[
            ("docs/design/README.md", ""),
            ("docs/design/2026-11-22-layers.md", ""),
            ("docs/design/layers.md", ""),
            ("docs/design/2026-11-22.md", ""),
            ("changes/unreleased/start.md", "added: `perennial start`\n"),
            ("changes/unreleased/stop.md", "`perennial stop` is new\n"),
        ]);
        let paths: Vec<String> = check(&tree).into_iter().map(|problem| problem.path).collect();
        assert_eq!(paths, ["docs/design/2026-11-22.md", "docs/design/layers.md", "changes/unreleased/stop.md"]);
    }
}
