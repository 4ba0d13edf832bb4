//! Results and errors on the terminal.

use crate::failure::Failure;
use perennial_core::travel::clean;
use serde_json::{Value, json};

/// How results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints text; a closed pipe ends the program quietly, as it ends other programs.
pub fn text(text: &str) {
    bytes(text.as_bytes());
}

/// Prints bytes as they are, in the same way.
pub fn bytes(bytes: &[u8]) {
    write(&mut std::io::stdout().lock(), bytes);
}

/// Prints bytes as they are on standard error: what a container has printed there.
pub fn bytes_beside(bytes: &[u8]) {
    write(&mut std::io::stderr().lock(), bytes);
}

fn write(to: &mut dyn std::io::Write, bytes: &[u8]) {
    if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
        std::process::exit(141);
    }
}

/// Prints a line.
pub fn line(line: impl std::fmt::Display) {
    text(&format!("{line}\n"));
}

/// Prints a value as JSON.
pub fn json(value: &Value) {
    text(&format!("{value:#}\n"));
}

/// Prints a remark for people on standard error.
pub fn remark(remark: impl std::fmt::Display) {
    eprintln!("perennial: {remark}");
}

/// Prints an error: what is wrong, its causes, and what to do.
pub fn failure(failure: &Failure, style: Style) {
    match style {
        Style::Text => {
            eprintln!("perennial: error: {}", shown(&failure.error));
            for cause in failure.error.chain().skip(1) {
                eprintln!("  because: {}", shown(cause));
            }
            eprintln!("  hint: {}", shown(failure.advice()));
        }
        Style::Json => {
            let causes: Vec<String> = failure.error.chain().skip(1).map(ToString::to_string).collect();
            let message = failure.error.to_string();
            let value = json!({"error": {"code": failure.code.name(), "message": message, "causes": causes, "hint": failure.advice()}});
            eprintln!("{value}");
        }
    }
}

/// Returns what is said of a failure without what would steer the terminal: parts of it may come from elsewhere.
fn shown(text: impl ToString) -> String {
    text.to_string().split('\n').map(clean).collect::<Vec<_>>().join("\n")
}
