//! Progress bars on standard error while an image comes in, or contents out of packs.

use super::output::Style;
use crate::engine::thaw::Thawing;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use perennial_registry::{Event, Phase, Progress};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// One bar for each phase of each layer.
#[derive(Debug)]
pub struct Bars {
    all: MultiProgress,
    bars: RefCell<BTreeMap<(usize, bool), ProgressBar>>,
}

impl Bars {
    /// Makes bars; for programs, and where standard error is no terminal, nothing is drawn.
    pub fn new(style: Style) -> Self {
        let target = match style {
            Style::Text => ProgressDrawTarget::stderr(),
            Style::Json => ProgressDrawTarget::hidden(),
        };
        Self { all: MultiProgress::with_draw_target(target), bars: RefCell::default() }
    }

    /// Takes the bars off the screen.
    pub fn clear(&self) {
        self.all.clear().ok();
    }

    fn bar(&self, layer: usize, phase: Phase, change: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.bars.borrow().get(&(layer, phase == Phase::Apply)) {
            change(bar);
        }
    }
}

impl Progress for Bars {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started { layer, phase, name, bytes_total } => {
                let verb = if phase == Phase::Apply { "unpacking" } else { "fetching" };
                let short: String = name.trim_start_matches("sha256:").chars().take(12).collect();
                let template = "{msg:24} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta}";
                let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = bytes_total.map_or_else(ProgressBar::no_length, ProgressBar::new).with_style(style);
                bar.set_message(format!("{verb} {short}"));
                self.bars.borrow_mut().insert((layer, phase == Phase::Apply), self.all.add(bar));
            }
            Event::Advanced { layer, phase, bytes } => self.bar(layer, phase, |bar| bar.set_position(bytes)),
            Event::Finished { layer, phase } => self.bar(layer, phase, ProgressBar::finish),
            Event::Retried { layer, attempts, reason } => {
                self.all.println(format!("layer {layer}: attempt {attempts} failed: {reason}")).ok();
            }
            Event::Note(note) => {
                self.all.println(format!("note: {note}")).ok();
            }
            // The list may grow; what is not known is not drawn.
            Event::Image { .. } | Event::Known { .. } | _ => {}
        }
    }
}

/// The bar of a thaw, which appears when there is something to thaw and is gone with this.
#[derive(Debug)]
pub struct ThawBar {
    style: Style,
    bar: Option<ProgressBar>,
}

impl ThawBar {
    /// Makes one; for programs, and where standard error is no terminal, nothing is drawn.
    pub fn new(style: Style) -> Self {
        Self { style, bar: None }
    }

    /// Shows how far it is.
    pub fn show(&mut self, thawing: Thawing) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let bar = self.bar.get_or_insert_with(|| {
            let target = match self.style {
                Style::Text => ProgressDrawTarget::stderr(),
                Style::Json => ProgressDrawTarget::hidden(),
            };
            let template = "taking contents out of packs {bar:30} {pos}/{len} {eta}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(Some(count(thawing.total)), target).with_style(style)
        });
        bar.set_position(count(thawing.done));
        bar.tick();
    }

    /// Takes it off the screen.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ThawBar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One bar for all transfers together.
#[derive(Debug)]
pub struct TotalBar {
    bar: ProgressBar,
    /// Bytes done of each transfer.
    done: RefCell<BTreeMap<usize, u64>>,
}

impl TotalBar {
    /// Makes the bar; for programs, and where standard error is no terminal, nothing is drawn.
    pub fn new(style: Style, verb: &'static str) -> Self {
        let target = match style {
            Style::Text => ProgressDrawTarget::stderr(),
            Style::Json => ProgressDrawTarget::hidden(),
        };
        let template = "{msg:10} {bar:40} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style).with_message(verb);
        Self { bar, done: RefCell::default() }
    }

    /// Takes the bar off the screen.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for TotalBar {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Started { layer, bytes_total, .. } => {
                self.done.borrow_mut().insert(layer, 0);
                self.bar.inc_length(bytes_total.unwrap_or(0));
            }
            Event::Advanced { layer, bytes, .. } => {
                let before = self.done.borrow_mut().insert(layer, bytes).unwrap_or(0);
                self.bar.inc(bytes.saturating_sub(before));
            }
            Event::Finished { .. } | Event::Retried { .. } | Event::Note(_) => {}
            Event::Image { .. } | Event::Known { .. } | _ => {}
        }
    }
}
