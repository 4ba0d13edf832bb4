//! The workspace against the documents that describe it.
//!
//! The table of ARCHITECTURE.md with the headings `crate` and `uses` *is* the rule: an edge between two crates that is
//! not in it is refused, and so is one in it that no longer exists. README.md lists the same crates.

use super::{Problem, Tree, markdown};
use anyhow::Context as _;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const README: &str = "README.md";
const HEADING: &str = "crate";

/// A crate's edges to other crates of the workspace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Edges {
    /// Crates it is built from (normal and build dependencies).
    uses: BTreeSet<String>,
    /// Crates only its tests need.
    tests_use: BTreeSet<String>,
}

/// The crates of the workspace by name.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    crates: BTreeMap<String, Edges>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

impl Workspace {
    /// Asks cargo about the workspace at `root`.
    pub(super) fn of(root: &Path) -> anyhow::Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version=1", "--no-deps", "--locked", "--offline"])
            .current_dir(root)
            .output()
            .context("cannot run cargo metadata")?;
        let message = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "cargo metadata failed: {}", message.trim());
        Self::from_json(&output.stdout)
    }

    fn from_json(json: &[u8]) -> anyhow::Result<Self> {
        let metadata: Metadata = serde_json::from_slice(json).context("cannot read what cargo metadata printed")?;
        let mut crates = BTreeMap::<String, Edges>::new();
        for package in metadata.packages {
            let edges = crates.entry(package.name).or_default();
            for dependency in package.dependencies.into_iter().filter(|dependency| dependency.path.is_some()) {
                let is_for_tests = dependency.kind.as_deref() == Some("dev");
                let set = if is_for_tests { &mut edges.tests_use } else { &mut edges.uses };
                set.insert(dependency.name);
            }
        }
        Ok(Self { crates })
    }

    /// Returns the number of crates.
    pub(super) fn len(&self) -> usize {
        self.crates.len()
    }
}

/// Returns where ARCHITECTURE.md or README.md disagree with the workspace.
pub(super) fn check(tree: &Tree, workspace: &Workspace) -> Vec<Problem> {
    let mut problems = Vec::new();
    for path in [ARCHITECTURE, README] {
        match tree.text(path).and_then(|text| markdown::table(text, HEADING)) {
            Some(rows) => {
                problems.extend(check_list(path, &rows, workspace));
                if path == ARCHITECTURE {
                    problems.extend(check_edges(&rows, workspace));
                }
            }
            None => {
                problems.push(Problem::of_file(path, format!("there is no table with the first heading {HEADING:?}")));
            }
        }
    }
    problems
}

fn check_list(path: &str, rows: &[Vec<String>], workspace: &Workspace) -> Vec<Problem> {
    let listed: BTreeSet<String> = rows.iter().filter_map(|row| row_name(row)).collect();
    let present: BTreeSet<String> = workspace.crates.keys().cloned().collect();
    let missing = present.difference(&listed).map(|name| format!("the crate `{name}` is not in the table of crates"));
    let extra = listed.difference(&present).map(|name| format!("the table names `{name}`, which is no crate"));
    missing.chain(extra).map(|text| Problem::of_file(path, text)).collect()
}

fn check_edges(rows: &[Vec<String>], workspace: &Workspace) -> Vec<Problem> {
    let mut problems = Vec::new();
    for row in rows {
        let Some(name) = row_name(row) else { continue };
        let Some(edges) = workspace.crates.get(&name) else { continue };
        let documented = documented_edges(row.get(1).map_or("", String::as_str));
        for (kind, real, told) in
            [("uses", &edges.uses, &documented.uses), ("uses in tests", &edges.tests_use, &documented.tests_use)]
        {
            problems.extend(real.difference(told).map(|other| {
                Problem::of_file(ARCHITECTURE, format!("`{name}` {kind} `{other}`, which the table does not allow"))
            }));
            problems.extend(told.difference(real).map(|other| {
                Problem::of_file(ARCHITECTURE, format!("`{name}` no longer {kind} `{other}`: take it from the table"))
            }));
        }
    }
    problems
}

/// Reads a cell such as `` `a`, `b`; in tests `c` ``.
fn documented_edges(cell: &str) -> Edges {
    let (uses, tests_use) = cell.split_once("in tests").unwrap_or((cell, ""));
    let names = |text: &str| markdown::code_spans(text).into_iter().map(str::to_owned).collect();
    Edges { uses: names(uses), tests_use: names(tests_use) }
}

fn row_name(row: &[String]) -> Option<String> {
    markdown::code_spans(row.first()?).first().map(|name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{"packages": [
        {"name": "core", "dependencies": [{"name": "serde", "kind": null, "path": null}]},
        {"name": "store", "dependencies": [{"name": "core", "kind": null, "path": "/x/core"},
                                           {"name": "kit", "kind": "dev", "path": "/x/kit"}]},
        {"name": "kit", "dependencies": [{"name": "core", "kind": "build", "path": "/x/core"}]}]}"#;
    const README_TEXT: &str = "| crate |\n|---|\n| `core` |\n| `store` |\n| `kit` |\n";

    fn problems(architecture: &str) -> Vec<String> {
        let tree = Tree::of(&[(ARCHITECTURE, architecture), (README, README_TEXT)]);
        let workspace = Workspace::from_json(METADATA.as_bytes()).unwrap();
        check(&tree, &workspace).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_table_equal_to_the_workspace_passes() {
        let table =
            "| crate | uses |\n|---|---|\n| `core` | |\n| `store` | `core`; in tests `kit` |\n| `kit` | `core` |\n";
        assert_eq!(problems(table), [""; 0]);
    }

    #[test]
    fn an_edge_outside_the_table_is_refused() {
        let table = "| crate | uses |\n|---|---|\n| `core` | |\n| `store` | in tests `kit` |\n| `kit` | `core` |\n";
        assert_eq!(problems(table), ["ARCHITECTURE.md: `store` uses `core`, which the table does not allow"]);
    }

    #[test]
    fn an_edge_that_is_gone_must_leave_the_table() {
        let table = "| crate | uses |\n|---|---|\n| `core` | `kit` |\n| `store` | `core`; in tests `kit` |\n| `kit` | `core` |\n";
        assert_eq!(problems(table), ["ARCHITECTURE.md: `core` no longer uses `kit`: take it from the table"]);
    }

    #[test]
    fn a_crate_missing_from_the_list_or_invented_by_it_is_named() {
        let table = "| crate | uses |\n|---|---|\n| `core` | |\n| `store` | `core`; in tests `kit` |\n| `rescue` | |\n";
        assert_eq!(
            problems(table),
            [
                "ARCHITECTURE.md: the crate `kit` is not in the table of crates",
                "ARCHITECTURE.md: the table names `rescue`, which is no crate",
            ]
        );
    }

    #[test]
    fn a_missing_table_is_a_problem() {
        assert_eq!(problems("no table"), ["ARCHITECTURE.md: there is no table with the first heading \"crate\""]);
    }
}
