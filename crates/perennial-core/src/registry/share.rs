//! How much memory one of many streams takes for its next step.

/// Of what is free, a stream takes this part at most, so that something is left for those that come next.
const PART: usize = 8;

/// A bound on the bytes that all streams of a kind hold together.
///
/// It is exceeded by [`Share::least`] for each stream at most, whatever they do and in whatever order they come: few
/// streams get [`Share::most`], many get less, and one that does not move keeps nobody else from moving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Bytes for all.
    pub total: usize,
    /// What each gets in any case; a power of two.
    pub least: usize,
    /// More gains nothing; a power of two.
    pub most: usize,
}

impl Share {
    /// Returns how many bytes a stream takes while all others hold `held`: a power of two, so that it seldom changes.
    #[must_use]
    pub fn next(self, held: usize) -> usize {
        let part = self.total.saturating_sub(held) / PART;
        let rounded = part.checked_ilog2().map_or(0, |exponent| 1_usize << exponent);
        rounded.min(self.most).max(self.least)
    }
}
