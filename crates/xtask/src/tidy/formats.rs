//! Formats that outlive a process: a page, a codec, and one frozen file for each version ever written.
//!
//! A page `docs/formats/NAME.md` says in lines of its own
//!
//! ```text
//! - Codec: `crates/…/….rs`
//! - Versions: 1, 2
//! ```
//!
//! and `testdata/formats/` holds exactly one file for each version: `NAME-v1.json`, `NAME-v2.json`, with any extension.

use super::{Problem, Tree, markdown};
use std::collections::BTreeSet;

const PAGES: &str = "docs/formats";
const FROZEN: &str = "testdata/formats";

/// Returns the problems of all formats.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let names: BTreeSet<&str> =
        tree.below(PAGES).filter(|path| *path != "README.md").filter_map(|path| path.strip_suffix(".md")).collect();
    let mut problems: Vec<Problem> = names.iter().flat_map(|name| check_format(tree, name)).collect();
    for file in tree.below(FROZEN) {
        let text = match parse_frozen(file) {
            None => "the name is not NAME-v1, NAME-v2, … with an extension".to_owned(),
            Some((name, _)) if !names.contains(name) => format!("the format has no page {PAGES}/{name}.md"),
            Some(_) => continue,
        };
        problems.push(Problem::of_file(&format!("{FROZEN}/{file}"), text));
    }
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
    match field(text, "- Versions:").and_then(parse_versions) {
        None => problems.push(Problem::of_file(&page, "there is no line \"- Versions: 1, 2, …\"")),
        Some(versions) => problems.extend(check_versions(tree, name, &versions)),
    }
    problems
}

fn check_versions(tree: &Tree, name: &str, versions: &BTreeSet<u32>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    for file in tree.below(FROZEN) {
        let Some((_, version)) = parse_frozen(file).filter(|(of, _)| *of == name) else { continue };
        let path = format!("{FROZEN}/{file}");
        if !versions.contains(&version) {
            problems.push(Problem::of_file(&path, "its page does not list this version"));
        } else if !seen.insert(version) {
            problems.push(Problem::of_file(&path, "a version has one frozen file"));
        }
    }
    let missing = versions.difference(&seen);
    problems.extend(missing.map(|version| {
        Problem::of_file(
            &format!("{PAGES}/{name}.md"),
            format!("version {version} has no file {FROZEN}/{name}-v{version}"),
        )
    }));
    problems
}

fn field<'text>(text: &'text str, label: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(label)).map(str::trim)
}

fn parse_versions(value: &str) -> Option<BTreeSet<u32>> {
    value.split(',').map(|version| version.trim().parse().ok()).collect()
}

/// Returns the format and the version that `NAME-v1.json` stands for.
fn parse_frozen(file: &str) -> Option<(&str, u32)> {
    let (name, version) = file.split_once('.').map_or(file, |(stem, _)| stem).rsplit_once("-v")?;
    Some((name, version.parse().ok()?))
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
            ("testdata/formats/record-v1.json", ""),
            ("testdata/formats/record-v2.json", ""),
        ];
        assert_eq!(problems(&files), [""; 0]);
    }

    #[test]
    fn a_version_without_a_frozen_file_or_with_two_is_refused() {
        let files = [
            ("docs/formats/record.md", PAGE),
            CODEC,
            ("testdata/formats/record-v1.bin", ""),
            ("testdata/formats/record-v1.json", ""),
        ];
        assert_eq!(
            problems(&files),
            [
                "testdata/formats/record-v1.json: a version has one frozen file",
                "docs/formats/record.md: version 2 has no file testdata/formats/record-v2",
            ]
        );
    }

    #[test]
    fn frozen_files_that_no_page_explains_are_refused() {
        let files = [
            ("docs/formats/record.md", PAGE),
            CODEC,
            ("testdata/formats/record-v1.json", ""),
            ("testdata/formats/record-v2.json", ""),
            ("testdata/formats/record-v3.json", ""),
            ("testdata/formats/record.json", ""),
            ("testdata/formats/layer-v1.json", ""),
        ];
        assert_eq!(
            problems(&files),
            [
                "testdata/formats/record-v3.json: its page does not list this version",
                "testdata/formats/layer-v1.json: the format has no page docs/formats/layer.md",
                "testdata/formats/record.json: the name is not NAME-v1, NAME-v2, … with an extension",
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
        let frozen = [("testdata/formats/record-v1.json", ""), ("testdata/formats/record-v2.json", "")];
        assert_eq!(
            problems(&[&[("docs/formats/record.md", PAGE)], frozen.as_slice()].concat()),
            ["docs/formats/record.md: the codec crates/core/src/format.rs does not exist"]
        );
    }
}
