//! Who takes part and in which order, and what the samples say: least and median of each, and ratios to Perennial.

use super::super::report::summary;
use std::fmt::Write as _;

/// What moves a tree to another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    Perennial,
    Podman,
    Restic,
    Rsync,
}

const TOOLS: [Tool; 4] = [Tool::Perennial, Tool::Podman, Tool::Restic, Tool::Rsync];

/// In four rounds, each tool has each place once and comes once after each of the others.
const ORDERS: [[Tool; 4]; 4] = [
    [Tool::Perennial, Tool::Podman, Tool::Rsync, Tool::Restic],
    [Tool::Podman, Tool::Restic, Tool::Perennial, Tool::Rsync],
    [Tool::Restic, Tool::Rsync, Tool::Podman, Tool::Perennial],
    [Tool::Rsync, Tool::Perennial, Tool::Restic, Tool::Podman],
];

impl Tool {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Perennial => "Perennial: push, pull",
            Self::Podman => "podman: push, pull",
            Self::Restic => "restic: backup, restore",
            Self::Rsync => "rsync -z",
        }
    }
}

/// Returns the order of the tools in each round.
pub(super) fn orders() -> impl Iterator<Item = [Tool; 4]> {
    ORDERS.into_iter().cycle()
}

/// What one way has cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leg {
    pub(super) seconds: f64,
    pub(super) bytes: u64,
}

impl Leg {
    #[expect(clippy::cast_precision_loss, reason = "a benchmark moves far less than 2^53 bytes")]
    fn megabytes(self) -> f64 {
        self.bytes as f64 / 1e6
    }
}

/// One tool in one round; the first is that in which everything goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) tool: Tool,
    pub(super) round: u64,
    pub(super) there: Leg,
    /// None of a tool that goes straight to the other machine.
    pub(super) back: Option<Leg>,
}

type Figure = fn(&Sample) -> Option<f64>;

const FIGURES: [(&str, usize, Figure); 6] = [
    ("there s", 2, |sample| Some(sample.there.seconds)),
    ("back s", 2, |sample| Some(sample.back?.seconds)),
    ("both s", 2, |sample| Some(sample.there.seconds + sample.back.map_or(0.0, |leg| leg.seconds))),
    ("there MB", 1, |sample| Some(sample.there.megabytes())),
    ("back MB", 1, |sample| Some(sample.back?.megabytes())),
    ("both MB", 1, |sample| Some(sample.there.megabytes() + sample.back.map_or(0.0, Leg::megabytes))),
];

/// All samples, in the order they were taken.
#[derive(Debug, Default)]
pub(super) struct Table(pub(super) Vec<Sample>);

impl Table {
    fn summary(&self, is_first: bool, tool: Tool, figure: Figure) -> Option<(f64, f64)> {
        let of_both = self.0.iter().filter(|sample| sample.tool == tool && (sample.round == 0) == is_first);
        summary(of_both.filter_map(figure).collect())
    }

    /// Returns the figures as one table and their ratios as another.
    pub(super) fn to_markdown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text, "", |(_, figures), (least, median)| {
            let (least, median) = (format!("{least:.figures$}"), format!("{median:.figures$}"));
            if least == median { median } else { format!("{least} / {median}") }
        });
        text.push('\n');
        self.write(&mut text, "× ", |(ours, _), (_, median)| {
            ours.map_or_else(String::new, |ours| format!("{:.2}", median / ours))
        });
        text
    }

    fn write(&self, text: &mut String, sign: &str, show: impl Fn((Option<f64>, usize), (f64, f64)) -> String) {
        text.push_str("| what | tool |");
        for (name, ..) in FIGURES {
            write!(text, " {sign}{name} |").expect(INFALLIBLE);
        }
        writeln!(text, "\n|---|---|{}", "---:|".repeat(FIGURES.len())).expect(INFALLIBLE);
        for (is_first, what) in [(true, "first time"), (false, "after a change of 1 %")] {
            for tool in TOOLS {
                if self.summary(is_first, tool, |sample| Some(sample.there.seconds)).is_none() {
                    continue;
                }
                write!(text, "| {what} | {} |", tool.title()).expect(INFALLIBLE);
                for (_, figures, figure) in FIGURES {
                    let ours = self.summary(is_first, Tool::Perennial, figure).map(|(_, median)| median);
                    let cell = self.summary(is_first, tool, figure).map(|both| show((ours, figures), both));
                    write!(text, " {} |", cell.unwrap_or_default()).expect(INFALLIBLE);
                }
                text.push('\n');
            }
        }
    }
}

const INFALLIBLE: &str = "writing to a String cannot fail";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn in_four_rounds_each_tool_has_each_place_and_each_neighbour_once() {
        let four: Vec<[Tool; 4]> = orders().take(4).collect();
        for tool in TOOLS {
            let places: HashSet<_> =
                four.iter().map(|order| order.iter().position(|at| *at == tool).unwrap()).collect();
            assert_eq!(places.len(), 4, "{tool:?}");
            let before = four.iter().flat_map(|order| order.windows(2)).filter(|pair| pair[1] == tool);
            let before: HashSet<_> = before.map(|pair| pair[0].title()).collect();
            assert_eq!(before.len(), 3, "{tool:?}: {before:?}");
        }
        assert_eq!(orders().nth(4), orders().next());
    }

    fn sample(tool: Tool, round: u64, there: (f64, u64), back: Option<(f64, u64)>) -> Sample {
        let leg = |(seconds, bytes)| Leg { seconds, bytes };
        Sample { tool, round, there: leg(there), back: back.map(leg) }
    }

    #[test]
    fn the_first_time_stands_apart_and_ratios_are_of_medians() {
        let samples = vec![
            sample(Tool::Perennial, 0, (20.0, 500_000_000), Some((10.0, 500_000_000))),
            sample(Tool::Restic, 0, (30.0, 550_000_000), Some((20.0, 600_000_000))),
            sample(Tool::Rsync, 1, (1.0, 4_000_000), None),
            sample(Tool::Perennial, 1, (2.0, 8_000_000), Some((3.0, 8_000_000))),
            sample(Tool::Perennial, 2, (4.0, 8_000_000), Some((4.0, 8_000_000))),
            sample(Tool::Perennial, 3, (9.0, 9_000_000), Some((5.0, 8_000_000))),
        ];
        let text = Table(samples).to_markdown();
        for line in [
            "| what | tool | there s | back s | both s | there MB | back MB | both MB |",
            "| first time | Perennial: push, pull | 20.00 | 10.00 | 30.00 | 500.0 | 500.0 | 1000.0 |",
            "| first time | restic: backup, restore | 30.00 | 20.00 | 50.00 | 550.0 | 600.0 | 1150.0 |",
            "| after a change of 1 % | Perennial: push, pull | 2.00 / 4.00 | 3.00 / 4.00 | 5.00 / 8.00 | 8.0 | 8.0 | 16.0 |",
            "| after a change of 1 % | rsync -z | 1.00 |  | 1.00 | 4.0 |  | 4.0 |",
            "| what | tool | × there s | × back s | × both s | × there MB | × back MB | × both MB |",
            "| first time | restic: backup, restore | 1.50 | 2.00 | 1.67 | 1.10 | 1.20 | 1.15 |",
            "| after a change of 1 % | Perennial: push, pull | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 |",
            "| after a change of 1 % | rsync -z | 0.25 |  | 0.12 | 0.50 |  | 0.25 |",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
        assert!(!text.contains("podman"), "{text}");
    }
}
