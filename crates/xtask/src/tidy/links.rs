//! Relative links of documents: each leads to a file or a directory of the repository.

use super::{Problem, Tree};

/// Returns the links that lead nowhere. Links to other sites and to headings of the same page are not followed.
pub(super) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.markdown() {
        let mut is_code = false;
        for (index, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            }
            for target in targets(line).filter(|_| !is_code) {
                if !leads_somewhere(tree, path, target) {
                    problems.push(Problem::of_line(path, index, format!("the link to {target} leads nowhere")));
                }
            }
        }
    }
    problems
}

/// Returns what stands in `](…)`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0))
}

fn leads_somewhere(tree: &Tree, page: &str, target: &str) -> bool {
    let target = target.split('#').next().unwrap_or_default();
    if target.is_empty() || target.contains("://") {
        return true;
    }
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.pop().is_none() {
                    return false;
                }
            }
            name => parts.push(name),
        }
    }
    parts.is_empty() || tree.has(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_missing_file_is_named_with_its_line() {
        let text = "[a](../README.md) [b](#here) [c](https://example.org)\n```\n[d](none)\n```\n[e](first.md#top), [f](../none/)\n";
        let tree = Tree::of(&[("README.md", ""), ("docs/page.md", text), ("docs/first.md", "")]);
        let problems: Vec<String> = check(&tree).iter().map(ToString::to_string).collect();
        assert_eq!(problems, ["docs/page.md:5: the link to ../none/ leads nowhere"]);
    }
}
