//! Formats that outlive a process: a page, a codec, and one frozen file for each version ever written.
//!
//! A page `docs/formats/NAME.md` says in lines of its own
//!
//! ```text
//! - Codec: `crates/…/….rs`
//! - Versions: 1, 2
//! ```
//!
//! and `testdata/formats/NAME/` holds exactly one file for each version: `v1`, `v2`, with any extension.

use super::{Problem, Tree, markdown};
use std::collections::BTreeSet;

const PAGES: &str = "docs/formats";
const FROZEN: &str = "testdata/formats";

/// Returns the problems of all formats.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let names: BTreeSet<&str> =
        tree.below(PAGES).filter(|path| *path != "README.md").filter_map(|path| path.strip_suffix(".md")).collect();
    let mut problems: Vec<Problem> = names.iter().flat_map(|name| check_format(tree, name)).collect();
    let with_files: BTreeSet<&str> = tree.below(FROZEN).filter_map(|path| Some(path.split_once('/')?.0)).collect();
    problems.extend(with_files.difference(&names).map(|name| {
        Problem::of_file(&format!("{FROZEN}/{name}"), format!("the format has no page {PAGES}/{name}.md"))
    }));
    problems
}

fn check_format(tree: &Tree, name: &str) -> Vec<Problem> {
    let page = format!("{PAGES}/{name}.md");
    let text = tree.text(&page).unwrap_or_default();
    let mut problems = Vec::new();
    match field(text, "- Codec:").and_then(|value| markdown::code_spans(value).first().copied()) {
        None => problems.push(Problem::of_file(&page, "there is no line \"- Codec: `path`\"")),
        Some(codec) if !tree.has(codec) => {
            problems.push(Problem::of_file(&page, format!("the codec {codec} does not exist")));
        }
        Some(_) => {}
    }
    let Some(versions) = field(text, "- Versions:").and_then(parse_versions) else {
        problems.push(Problem::of_file(&page, "there is no line \"- Versions: 1, 2, …\""));
        return problems;
    };
    problems.extend(check_frozen(tree, name, &versions));
    problems
}

fn check_frozen(tree: &Tree, name: &str, versions: &BTreeSet<u32>) -> Vec<Problem> {
    let directory = format!("{FROZEN}/{name}");
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for file in tree.below(&directory) {
        match file_version(file) {
            None => problems.push(Problem::of_file(&format!("{directory}/{file}"), "the name is not v1, v2, …")),
            Some(version) if !versions.contains(&version) => {
                problems.push(Problem::of_file(&format!("{directory}/{file}"), "its page does not list this version"));
            }
            Some(version) if !seen.insert(version) => {
                problems.push(Problem::of_file(&format!("{directory}/{file}"), "a version has one frozen file"));
            }
            Some(_) => {}
        }
    }
    let missing = versions.difference(&seen);
    problems
        .extend(missing.map(|version| Problem::of_file(&directory, format!("version {version} has no frozen file"))));
    problems
}

fn field<'text>(text: &'text str, label: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(label)).map(str::trim)
}

fn parse_versions(value: &str) -> Option<BTreeSet<u32>> {
    value.split(',').map(|version| version.trim().parse().ok()).collect()
}

fn file_version(file: &str) -> Option<u32> {
    file.split('.').next()?.strip_prefix('v')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Record\n\n- Codec: `crates/core/src/format.rs`\n- Versions: 1, 2\n";
    const CODEC: (&str, &str) = ("crates/core/src/format.rs", "");

    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        check(&Tree::of(files)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_format_with_page_codec_and_every_version_passes() {
        let files = [
            ("docs/formats/README.md", "no format"),
            ("docs/formats/record.md", PAGE),
            CODEC,
            ("testdata/formats/record/v1.json", ""),
            ("testdata/formats/record/v2.json", ""),
        ];
        assert_eq!(problems(&files), [""; 0]);
    }

    #[test]
    fn a_version_without_a_frozen_file_or_with_two_is_refused() {
        let files = [
            ("docs/formats/record.md", PAGE),
            CODEC,
            ("testdata/formats/record/v1.bin", ""),
            ("testdata/formats/record/v1.json", ""),
        ];
        assert_eq!(
            problems(&files),
            [
                "testdata/formats/record/v1.json: a version has one frozen file",
                "testdata/formats/record: version 2 has no frozen file",
            ]
        );
    }

    #[test]
    fn frozen_files_that_no_page_explains_are_refused() {
        let files = [
            ("docs/formats/record.md", PAGE),
            CODEC,
            ("testdata/formats/record/v1.json", ""),
            ("testdata/formats/record/v2.json", ""),
            ("testdata/formats/record/v3.json", ""),
            ("testdata/formats/record/old", ""),
            ("testdata/formats/layer/v1.json", ""),
        ];
        assert_eq!(
            problems(&files),
            [
                "testdata/formats/record/old: the name is not v1, v2, …",
                "testdata/formats/record/v3.json: its page does not list this version",
                "testdata/formats/layer: the format has no page docs/formats/layer.md",
            ]
        );
    }

    #[test]
    fn a_page_names_its_codec_and_its_versions() {
        assert_eq!(
            problems(&[("docs/formats/record.md", "# Record\n")]),
            [
                "docs/formats/record.md: there is no line \"- Codec: `path`\"",
                "docs/formats/record.md: there is no line \"- Versions: 1, 2, …\"",
            ]
        );
        assert_eq!(
            problems(&[
                ("docs/formats/record.md", PAGE),
                ("testdata/formats/record/v1", ""),
                ("testdata/formats/record/v2", "")
            ]),
            ["docs/formats/record.md: the codec crates/core/src/format.rs does not exist"]
        );
    }
}
