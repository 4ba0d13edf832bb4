//! Results and errors on the terminal.

use crate::failure::Failure;
use perennial_core::travel::clean;
use serde_json::{Value, json};
use std::io::Write as _;

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
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
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
