//! `cargo xtask changelog VERSION`: collects the change notes into `CHANGELOG.md` when a version is released.
//!
//! A note is a file `changes/unreleased/SUBJECT.md`; its first line is `KIND: what a user notices`, and more lines may
//! follow. The notes of a version become one section, put above the older ones, and their files are deleted.

use crate::files;
use anyhow::Context as _;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// Options of `cargo xtask changelog`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Version that is released, such as 0.2.0.
    version: String,
    /// Day of the release, as YYYY-MM-DD.
    #[arg(long, value_name = "DAY")]
    on: String,
    /// Prints the section and changes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What a change is to a user; sections of a version come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Security,
    Removed,
    Changed,
    Added,
    Fixed,
}

const KINDS: &[(&str, &str, Kind)] = &[
    ("security", "Security", Kind::Security),
    ("removed", "Removed", Kind::Removed),
    ("changed", "Changed", Kind::Changed),
    ("added", "Added", Kind::Added),
    ("fixed", "Fixed", Kind::Fixed),
];

/// One change note.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Note {
    kind: Kind,
    text: String,
}

impl Note {
    /// Reads a note from the text of its file.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let (word, rest) = text.split_once(':').unwrap_or((text, ""));
        let kind = KINDS.iter().find(|(name, _, _)| *name == word).map(|(_, _, kind)| *kind);
        let kind = kind.context(
            "a change note begins with its kind: `security: `, `removed: `, `changed: `, `added: ` or `fixed: `",
        )?;
        anyhow::ensure!(!rest.trim().is_empty(), "a change note says what a user notices");
        Ok(Self { kind, text: rest.trim().to_owned() })
    }
}

/// Writes the section of `options.version`.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<ExitCode> {
    let directory = root.join("changes/unreleased");
    let mut files = Vec::new();
    let mut notes = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        notes.push(Note::parse(&text).with_context(|| format!("{}", path.display()))?);
        files.push(path);
    }
    let section = section(&options.version, &options.on, notes);
    if options.dry_run {
        print!("{section}");
        return Ok(ExitCode::SUCCESS);
    }
    let changelog = root.join("CHANGELOG.md");
    let older = match std::fs::read_to_string(&changelog) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", changelog.display())),
    };
    files::write_whole(&changelog, &with_section(&older, &section))?;
    for file in files {
        std::fs::remove_file(&file).with_context(|| format!("cannot delete {}", file.display()))?;
    }
    println!("wrote the section {} of {}", options.version, changelog.display());
    Ok(ExitCode::SUCCESS)
}

/// Returns the section of a version: its notes by kind, then by text.
fn section(version: &str, day: &str, mut notes: Vec<Note>) -> String {
    notes.sort();
    let mut text = format!("## {version} ({day})\n");
    let mut last = None;
    for note in &notes {
        if last != Some(note.kind) {
            last = Some(note.kind);
            let title = KINDS.iter().find(|(_, _, kind)| *kind == note.kind).map_or("", |(_, title, _)| title);
            write!(text, "\n### {title}\n\n").expect("writing to a String cannot fail");
        }
        writeln!(text, "- {}", note.text.replace('\n', "\n  ")).expect("writing to a String cannot fail");
    }
    text.replace("\n  \n", "\n\n")
}

/// Returns the changelog with the section above the older ones.
fn with_section(older: &str, section: &str) -> String {
    const TITLE: &str = "# Changes\n";
    let older = older.strip_prefix(TITLE).unwrap_or(older).trim_start();
    if older.is_empty() { format!("{TITLE}\n{section}") } else { format!("{TITLE}\n{section}\n{older}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_become_one_section_above_the_older_ones() {
        let notes = ["fixed: a stop that hung\n", "added: `diff`\n\nIt lists paths.\n", "added: `cp`"];
        let notes = notes.iter().map(|text| Note::parse(text).unwrap()).collect();
        let section = section("0.2.0", "2026-12-01", notes);
        assert_eq!(
            section,
            "## 0.2.0 (2026-12-01)\n\n### Added\n\n- `cp`\n- `diff`\n\n  It lists paths.\n\n### Fixed\n\n- a stop that hung\n"
        );
        let whole = with_section("# Changes\n\n## 0.1.0 (2026-11-22)\n", &section);
        assert!(whole.starts_with("# Changes\n\n## 0.2.0 (2026-12-01)\n"), "{whole}");
        assert!(whole.ends_with("- a stop that hung\n\n## 0.1.0 (2026-11-22)\n"), "{whole}");
    }

    #[test]
    fn a_note_without_a_kind_or_a_text_is_refused() {
        for text in ["", "new: x", "added:", "`diff` is new"] {
            assert!(Note::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_release_deletes_the_notes_it_collected() {
        use std::io::Write as _;
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("changes/unreleased");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::File::create(directory.join("a.md")).unwrap().write_all(b"added: a\n").unwrap();
        let options = Options { version: "0.1.0".to_owned(), on: "2026-11-22".to_owned(), dry_run: false };
        run(root.path(), &options).unwrap();
        let text = std::fs::read_to_string(root.path().join("CHANGELOG.md")).unwrap();
        assert_eq!(text, "# Changes\n\n## 0.1.0 (2026-11-22)\n\n### Added\n\n- a\n");
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
}
