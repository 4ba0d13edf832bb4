//! Where two files of a file system that shares blocks hold the same: told by where their blocks lie, without reading.
//!
//! Two blocks at the same address while both files exist are one block, so what both hold at the same offset there is
//! the same. Everything else counts as changed: being wrong that way only costs reads. So do all extents about which
//! the file system says anything that makes their address doubtful.

/// What a file holds in a stretch of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Blocks from this address on, in bytes, that another file holds too.
    Shared(u64),
    /// Anything else: blocks of its own, compressed ones, not written yet.
    Doubtful,
}

/// A stretch of a file; what lies in none is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length, in bytes.
    pub bytes: u64,
    /// What is there.
    pub place: Place,
}

impl Extent {
    /// Everything from `offset` on is doubtful.
    #[must_use]
    pub const fn doubtful_from(offset: u64) -> Self {
        Self { offset, bytes: u64::MAX.saturating_sub(offset), place: Place::Doubtful }
    }
}

/// What two files hold at the same offsets.
#[derive(Debug)]
pub struct Comparison<A, B> {
    one: Map<A>,
    other: Map<B>,
}

impl<A: Iterator<Item = Extent>, B: Iterator<Item = Extent>> Comparison<A, B> {
    /// Takes the extents of both files, in order.
    pub const fn new(one: A, other: B) -> Self {
        Self { one: Map { rest: one, current: None, end: 0 }, other: Map { rest: other, current: None, end: 0 } }
    }

    /// Returns whether both files surely hold the same in all of `from..until`. Stretches have to be asked for in
    /// order.
    pub fn is_same(&mut self, from: u64, until: u64) -> bool {
        let mut at = from;
        while at < until {
            let (one, one_end) = self.one.at(at);
            let (other, other_end) = self.other.at(at);
            let same = match (one, other) {
                (None, None) => true,
                (Some(Place::Shared(one)), Some(Place::Shared(other))) => one == other,
                (Some(Place::Doubtful), _) | (_, Some(Place::Doubtful)) => false,
                (None, Some(Place::Shared(_))) | (Some(Place::Shared(_)), None) => false,
            };
            if !same {
                return false;
            }
            at = one_end.min(other_end);
        }
        true
    }
}

#[derive(Debug)]
struct Map<I> {
    rest: I,
    /// The extent that ends after what was asked for last, if the file has one.
    current: Option<Extent>,
    /// Where the extents taken so far end.
    end: u64,
}

impl<I: Iterator<Item = Extent>> Map<I> {
    /// Returns what is at an offset, and where that ends.
    fn at(&mut self, offset: u64) -> (Option<Place>, u64) {
        while self.end <= offset {
            let Some(next) = self.rest.next() else { return (None, u64::MAX) };
            // Extents out of order, or without a length, are no map.
            let (end, fits) = match next.offset.checked_add(next.bytes) {
                Some(end) => (end, next.offset >= self.end && end > next.offset),
                None => (u64::MAX, false),
            };
            let next = if fits { next } else { Extent::doubtful_from(self.end.min(next.offset)) };
            self.current = Some(next);
            self.end = if fits { end } else { u64::MAX };
        }
        match self.current {
            None => (None, u64::MAX),
            Some(extent) if offset < extent.offset => (None, extent.offset),
            Some(Extent { place: Place::Doubtful, .. }) => (Some(Place::Doubtful), self.end),
            Some(Extent { offset: start, place: Place::Shared(address), .. }) => {
                (Some(Place::Shared(address.saturating_add(offset.saturating_sub(start)))), self.end)
            }
        }
    }
}
