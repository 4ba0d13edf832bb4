//! Rust sources: the first line, the length, and what work in progress leaves behind.

use super::{Problem, Tree};

/// Longest file, in lines and without its unit tests; longer ones hold more than one noun (STYLE.md, "Shape").
const FILE_LINES_MAX: usize = 800;

/// Words that mean "not finished". Written in two parts so that this file does not hold them.
const LEFTOVERS: &[(&str, &str)] = &[
    (concat!("FIX", "ME"), "mend it, or write down elsewhere why not"),
    (concat!("dbg", "!("), "take it out"),
    (concat!("todo", "!("), "write it"),
    (concat!("unimplemented", "!("), "write it"),
    (concat!("#[", "ignore"), "a test runs or is deleted"),
];

/// Returns the problems of all Rust sources.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.rust() {
        if !text.starts_with("//!") {
            problems.push(Problem::of_line(path, 0, "the file does not begin with `//!` and what it is"));
        }
        let lines = lines_without_tests(text);
        if lines > FILE_LINES_MAX && !is_test(path) {
            let text = format!("{lines} lines without tests, at most {FILE_LINES_MAX}: split it by meaning");
            problems.push(Problem::of_file(path, text));
        }
        for (index, line) in text.lines().enumerate() {
            problems.extend(leftover(line).map(|text| Problem::of_line(path, index, text)));
        }
    }
    problems
}

/// Returns how many lints are silenced in the whole tree.
pub(super) fn count_expects(tree: &Tree) -> usize {
    let is_expect = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("#[expect(") || line.starts_with("#![expect(")
    };
    tree.rust().map(|(_, text)| text.lines().filter(is_expect).count()).sum()
}

/// Returns whether a file holds nothing but tests.
fn is_test(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs" || part == "benches")
}

/// Returns the number of lines outside `#[cfg(test)] mod … { … }` blocks.
fn lines_without_tests(text: &str) -> usize {
    let mut count = 0_usize;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let opens_tests =
            line == "#[cfg(test)]" && lines.peek().is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
        if opens_tests {
            // rustfmt puts the closing brace of a top-level block alone at the beginning of its line.
            lines.by_ref().find(|line| *line == "}");
        } else {
            count = count.saturating_add(1);
        }
    }
    count
}

fn leftover(line: &str) -> Option<String> {
    for (word, advice) in LEFTOVERS {
        if line.contains(word) {
            return Some(format!("{word} is left over: {advice}"));
        }
    }
    let comment = line.trim_start().strip_prefix("//")?.trim_start();
    let module = comment.strip_prefix("pub ").unwrap_or(comment).strip_prefix("mod ")?;
    module.ends_with(';').then(|| "a module is commented out: delete the line".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        check(&Tree::of(&[(path, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_without_its_description_is_refused() {
        assert_eq!(problems("a.rs", "use std::fmt;\n"), ["a.rs:1: the file does not begin with `//!` and what it is"]);
    }

    #[test]
    fn a_file_of_the_longest_length_passes_and_one_line_more_is_refused() {
        let longest = format!("//! What.\n{}", "fn a() {}\n".repeat(799));
        assert_eq!(problems("a.rs", &longest), [""; 0]);
        let too_long = format!("{longest}fn a() {{}}\n");
        assert_eq!(problems("a.rs", &too_long), ["a.rs: 801 lines without tests, at most 800: split it by meaning"]);
    }

    #[test]
    fn unit_tests_and_files_of_tests_do_not_count() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    fn a() {}\n".repeat(900));
        assert_eq!(problems("a.rs", &format!("//! What.\n{tests}")), [""; 0]);
        assert_eq!(problems("crates/a/tests/b.rs", &format!("//! What.\n{}", "fn a() {}\n".repeat(900))), [""; 0]);
    }

    #[test]
    fn every_leftover_is_found_with_its_line() {
        for (word, advice) in LEFTOVERS {
            let text = format!("//! What.\n    x {word} y\n");
            assert_eq!(problems("a.rs", &text), [format!("a.rs:2: {word} is left over: {advice}")]);
        }
        let text = "//! What.\n// pub mod old;\n// mod is a word of prose\n";
        assert_eq!(problems("a.rs", text), ["a.rs:2: a module is commented out: delete the line"]);
    }

    #[test]
    fn silenced_lints_are_counted() {
        let tree = Tree::of(&[("a.rs", "//! #[expect(x)]\n#![expect(a, reason = \"b\")]\n    #[expect(c)]\n")]);
        assert_eq!(count_expects(&tree), 2);
    }
}
