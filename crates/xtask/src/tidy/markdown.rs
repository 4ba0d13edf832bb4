//! The little of Markdown that the checks read: tables, and `code` in their cells.

/// Returns the rows of the first table whose first heading is `heading`, each as its trimmed cells, or `None` where
/// the text holds no such table.
pub(super) fn table(text: &str, heading: &str) -> Option<Vec<Vec<String>>> {
    let mut lines = text.lines().skip_while(|line| cells(line).is_none_or(|row| !is_first(&row, heading)));
    lines.next()?;
    let rows = lines.map_while(cells).skip(1);
    Some(rows.collect())
}

fn is_first(row: &[String], heading: &str) -> bool {
    row.first().is_some_and(|cell| cell.eq_ignore_ascii_case(heading))
}

/// Returns the cells of a line such as `| a | b |`.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(|cell| cell.trim().to_owned()).collect())
}

/// Returns what stands between backquotes, in order.
pub(super) fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_with_the_heading_is_found_among_others() {
        let text =
            "| word | means |\n|---|---|\n| x | y |\n\n| Crate | uses |\n|---|---|\n| `a` | |\n| `b` | `a` |\n\nend\n";
        let rows = table(text, "crate").unwrap();
        assert_eq!(rows, [["`a`", ""], ["`b`", "`a`"]]);
        assert_eq!(table(text, "format"), None);
    }

    #[test]
    fn code_spans_are_what_stands_between_backquotes() {
        assert_eq!(code_spans("uses `a` and `b-c`, no more"), ["a", "b-c"]);
    }
}
