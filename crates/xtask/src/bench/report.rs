//! What the samples say: medians, ratios and whether the targets are met, as Markdown or as JSON.

use super::environment::Entries;
use super::memory::Memory;
use super::peers::Tool;
use super::session::Times;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Targets, explained in `docs/guide/performance.md`.
const EXIT_OVER_BARE_MS_MAX: f64 = 15.0;
const START_OVER_BARE_MS_MAX: f64 = 5.0;
const LARGEST_OVER_SMALLEST_MAX: f64 = 1.5;
const TIMES_FASTER_THAN_PODMAN_MIN: f64 = 100.0;
const IDLE_MIB_MAX: f64 = 10.0;

/// One session of one tool.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Sample {
    tool: Tool,
    entries: u64,
    round: u64,
    start_ms: f64,
    exit_ms: f64,
}

impl Sample {
    /// Makes a sample of what was measured.
    pub(super) fn of(tool: Tool, entries: Entries, round: u64, times: Times) -> Self {
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1000.0;
        Self { tool, entries: entries.0, round, start_ms: ms(times.start), exit_ms: ms(times.exit) }
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The command that measures it again.
    pub(super) command: String,
    /// All samples in the order they were taken.
    pub(super) samples: Vec<Sample>,
    /// The supervisor of an idle container.
    pub(super) idle_supervisor: Option<Memory>,
}

/// What is measured of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Start,
    Exit,
}

impl Operation {
    fn title(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Exit => "exit",
        }
    }

    fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Start => sample.start_ms,
            Self::Exit => sample.exit_ms,
        }
    }
}

struct Target {
    text: String,
    measured: String,
    is_met: bool,
}

/// Smallest and median value; `None` of nothing.
pub(super) fn summary(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((*values.first()?, f64::midpoint(*low, *high)))
}

impl Report {
    fn values(&self, operation: Operation, tool: Tool, entries: u64) -> Vec<f64> {
        let of_both = self.samples.iter().filter(|sample| sample.tool == tool && sample.entries == entries);
        of_both.map(|sample| operation.of(sample)).collect()
    }

    fn median(&self, operation: Operation, tool: Tool, entries: u64) -> Option<f64> {
        summary(self.values(operation, tool, entries)).map(|(_, median)| median)
    }

    fn sizes(&self) -> BTreeSet<u64> {
        self.samples.iter().map(|sample| sample.entries).collect()
    }

    /// Returns the tables for people.
    pub(super) fn to_markdown(&self) -> String {
        let mut text = format!("`{}`\n\n", self.command);
        text.push_str("| operation | entries | tool | samples | min ms | median ms | × Perennial |\n");
        text.push_str("|---|---:|---|---:|---:|---:|---:|\n");
        for operation in [Operation::Exit, Operation::Start] {
            for entries in self.sizes() {
                self.write_rows(&mut text, operation, entries);
            }
        }
        text.push_str("\n| target | measured | |\n|---|---|---|\n");
        for target in self.targets() {
            let verdict = if target.is_met { "met" } else { "**missed**" };
            writeln!(text, "| {} | {} | {verdict} |", target.text, target.measured).expect(INFALLIBLE);
        }
        text
    }

    fn write_rows(&self, text: &mut String, operation: Operation, entries: u64) {
        let ours = self.median(operation, Tool::Perennial, entries);
        let tools: BTreeSet<Tool> = self.samples.iter().map(|sample| sample.tool).collect();
        for tool in tools {
            let values = self.values(operation, tool, entries);
            let count = values.len();
            let Some((min, median)) = summary(values) else { continue };
            let ratio = ours.map_or_else(String::new, |ours| format!("{:.2}", median / ours));
            let (operation, entries, tool) = (operation.title(), Entries(entries), tool.title());
            writeln!(text, "| {operation} | {entries} | {tool} | {count} | {min:.1} | {median:.1} | {ratio} |")
                .expect(INFALLIBLE);
        }
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for (operation, bound) in [(Operation::Exit, EXIT_OVER_BARE_MS_MAX), (Operation::Start, START_OVER_BARE_MS_MAX)]
        {
            targets.extend(self.sizes().into_iter().filter_map(|entries| self.over_bare(operation, bound, entries)));
            targets.extend(self.growth(operation));
        }
        for tool in [Tool::PodmanNew, Tool::PodmanKept] {
            targets.extend(self.sizes().into_iter().filter_map(|entries| self.faster_than(tool, entries)));
        }
        targets.extend(self.idle_supervisor.map(idle));
        targets
    }

    fn over_bare(&self, operation: Operation, bound_ms: f64, entries: u64) -> Option<Target> {
        let (bare, bound) = match operation {
            Operation::Start => (Tool::SameBundle, "bare runtime with the same bundle"),
            Operation::Exit => (Tool::BareRuntime, "bare runtime with its flush"),
        };
        let ours = self.median(operation, Tool::Perennial, entries)?;
        let over_ms = ours - self.median(operation, bare, entries)?;
        let (name, size) = (operation.title(), Entries(entries));
        Some(Target {
            text: format!("{name} at {size} entries ≤ {bound} + {bound_ms:.0} ms"),
            measured: format!("{over_ms:+.1} ms"),
            is_met: over_ms <= bound_ms,
        })
    }

    fn growth(&self, operation: Operation) -> Option<Target> {
        let medians: BTreeMap<u64, f64> = self
            .sizes()
            .into_iter()
            .filter_map(|entries| Some((entries, self.median(operation, Tool::Perennial, entries)?)))
            .collect();
        let ((small, least), (large, most)) = (medians.first_key_value()?, medians.last_key_value()?);
        let (ratio, name) = (most / least, operation.title());
        let (small, large) = (Entries(*small), Entries(*large));
        (small != large).then(|| Target {
            text: format!("{name} at {large} entries ≤ {LARGEST_OVER_SMALLEST_MAX} × {name} at {small}"),
            measured: format!("{ratio:.2} ×"),
            is_met: ratio <= LARGEST_OVER_SMALLEST_MAX,
        })
    }

    fn faster_than(&self, tool: Tool, entries: u64) -> Option<Target> {
        let ours = self.median(Operation::Exit, Tool::Perennial, entries)?;
        let ratio = self.median(Operation::Exit, tool, entries)? / ours;
        let (size, title) = (Entries(entries), tool.title());
        Some(Target {
            text: format!("exit at {size} entries ≥ {TIMES_FASTER_THAN_PODMAN_MIN} × faster than {title}"),
            measured: format!("{ratio:.0} ×"),
            is_met: ratio >= TIMES_FASTER_THAN_PODMAN_MIN,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "memory of a process is far below 2^53 KiB")]
fn idle(memory: Memory) -> Target {
    let mib = memory.rss_kib as f64 / 1024.0;
    Target {
        text: format!("resident memory of an idle supervisor ≤ {IDLE_MIB_MAX} MiB"),
        measured: format!("{mib:.1} MiB (proportional: {:.1})", memory.pss_kib as f64 / 1024.0),
        is_met: mib <= IDLE_MIB_MAX,
    }
}

const INFALLIBLE: &str = "writing to a String cannot fail";

#[cfg(test)]
mod tests {
    use super::*;

    fn report(exits: &[(Tool, u64, f64)]) -> Report {
        let sample = |(tool, entries, exit_ms): &(Tool, u64, f64)| Sample {
            tool: *tool,
            entries: *entries,
            round: 0,
            start_ms: 20.0,
            exit_ms: *exit_ms,
        };
        Report {
            command: "cargo xtask bench leave-and-return".to_owned(),
            samples: exits.iter().map(sample).collect(),
            idle_supervisor: Some(Memory { rss_kib: 5 * 1024, pss_kib: 2 * 1024 }),
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(summary(vec![]), None);
        assert_eq!(summary(vec![3.0]), Some((3.0, 3.0)));
        assert_eq!(summary(vec![9.0, 1.0, 2.0, 4.0]), Some((1.0, 3.0)));
    }

    #[test]
    fn rows_compare_with_perennial_and_targets_say_whether_they_are_met() {
        let text = report(&[
            (Tool::Perennial, 1_000, 10.0),
            (Tool::Perennial, 1_000_000, 16.0),
            (Tool::BareRuntime, 1_000, 8.0),
            (Tool::PodmanNew, 1_000, 1500.0),
        ])
        .to_markdown();
        for line in [
            "| exit | 1 k | podman, new container | 1 | 1500.0 | 1500.0 | 150.00 |",
            "| exit at 1 k entries ≤ bare runtime with its flush + 15 ms | +2.0 ms | met |",
            "| exit at 1 M entries ≤ 1.5 × exit at 1 k | 1.60 × | **missed** |",
            "| exit at 1 k entries ≥ 100 × faster than podman, new container | 150 × | met |",
            "| resident memory of an idle supervisor ≤ 10 MiB | 5.0 MiB (proportional: 2.0) | met |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
