//! Where a content is cut into chunks.
//!
//! Cut points are part of the format: packs written by different releases share chunks only while both cut alike. The
//! table of the rolling hash and the masks never change; [`Cuts`] is recorded nowhere, an object's recipe says where
//! it was cut.
//!
//! - A small content is one chunk.
//! - A content that is rewritten in place, such as a database, is cut at fixed places: what was not rewritten keeps
//!   its chunks.
//! - Any other is cut where its bytes say so (gear hash with normalised lengths, as in FastCDC): what moves keeps its
//!   chunks.

/// Largest content that is always one chunk, in bytes: cutting it would cost compression and a recipe.
pub const WHOLE_BYTES_MAX: u64 = 64 << 10;
/// Largest chunk of any kind, in bytes.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Largest content that is cut at all, in bytes: its recipe then has at most 2²⁰ parts, 36 MiB.
pub const CONTENT_BYTES_MAX: u64 = 64 << 30;

/// Smallest content that is cut at fixed places, in bytes.
const FIXED_CONTENT_BYTES_MIN: u64 = 1 << 20;
/// Contents above this are cut four times as coarsely, so that recipes stay small.
const COARSE_CONTENT_BYTES_MIN: u64 = 4 << 30;
/// Equal blocks, of those compared, in a content that was rewritten in place: three in four. A content in which bytes
/// were inserted or that was made anew has nearly none.
const EQUAL_QUARTERS_MIN: u64 = 3;

/// How a content is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cuts {
    /// Not at all.
    Whole,
    /// Every so many bytes.
    Fixed {
        /// Length of each chunk but the last.
        bytes: u32,
    },
    /// Where the bytes say so.
    Content(Gear),
}

/// What is known of another version of the same file, older or newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbour {
    /// It is in packs, cut so.
    Packed {
        /// Whether all its chunks but the last have the same length.
        fixed: bool,
    },
    /// It is an object, of which some blocks were compared with those at the same places here.
    Compared {
        /// Blocks compared.
        blocks: u64,
        /// Those that are equal.
        equal: u64,
    },
}

impl Cuts {
    /// Decides how a content of `bytes` is cut; `None` where it is too large to be packed.
    #[must_use]
    pub fn choose(bytes: u64, neighbour: Option<Neighbour>) -> Option<Self> {
        if bytes > CONTENT_BYTES_MAX {
            return None;
        }
        if bytes <= WHOLE_BYTES_MAX {
            return Some(Self::Whole);
        }
        let in_place = match neighbour {
            None => false,
            Some(Neighbour::Packed { fixed }) => fixed,
            Some(Neighbour::Compared { blocks, equal }) => {
                blocks > 0 && equal.saturating_mul(4) >= blocks.saturating_mul(EQUAL_QUARTERS_MIN)
            }
        };
        let coarse = bytes > COARSE_CONTENT_BYTES_MIN;
        Some(match (in_place && bytes >= FIXED_CONTENT_BYTES_MIN, coarse) {
            (true, false) => Self::Fixed { bytes: 16 << 10 },
            (true, true) => Self::Fixed { bytes: 64 << 10 },
            (false, false) => Self::Content(Gear::FINE),
            (false, true) => Self::Content(Gear::COARSE),
        })
    }

    /// Decides how a content of `bytes` is cut that goes elsewhere; `None` where it is too large for packs. Nothing is
    /// known of another version, which may be on another machine, and every chunk that differs goes over a network: so
    /// it is cut by content, four times as finely, which finds what was rewritten in place as well as what has moved.
    #[must_use]
    pub fn choose_for_travel(bytes: u64) -> Option<Self> {
        match bytes {
            0..=WHOLE_BYTES_MAX => Some(Self::Whole),
            _ if bytes <= COARSE_CONTENT_BYTES_MIN => Some(Self::Content(Gear::FINEST)),
            _ if bytes <= CONTENT_BYTES_MAX => Some(Self::Content(Gear::FINE)),
            _ => None,
        }
    }

    /// Returns the length of the first chunk of `bytes`: at most all of them. The content goes on after `bytes` only
    /// where there are at least [`CHUNK_BYTES_MAX`] of them.
    #[must_use]
    pub fn first(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Whole => bytes.len(),
            Self::Fixed { bytes: length } => usize::try_from(*length).unwrap_or(usize::MAX).min(bytes.len()),
            Self::Content(gear) => gear.first(bytes),
        }
    }
}

/// Bounds of chunks that are cut by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gear {
    bytes_min: usize,
    bytes_normal: usize,
    bytes_max: usize,
    mask_before: u64,
    mask_after: u64,
}

impl Gear {
    /// 2, 16 and 48 KiB, cut twice as soon after 16 KiB as before: lengths gather less around it than those of
    /// [`Gear::new`], and cuts fall in step sooner behind what was rewritten, which is what counts where both are sent.
    const FINEST: Self = Self {
        bytes_min: 2 << 10,
        bytes_normal: 16 << 10,
        bytes_max: 48 << 10,
        mask_before: !(u64::MAX >> 14),
        mask_after: !(u64::MAX >> 13),
    };
    /// 16, 64 and 256 KiB.
    const FINE: Self = Self::new(16);
    /// 64, 256 and 1024 KiB.
    const COARSE: Self = Self::new(18);

    /// Bounds around 2^`bits` bytes. A cut is twice as unlikely to be found in a byte before that length and four
    /// times as likely after it, so that lengths gather around it.
    const fn new(bits: u32) -> Self {
        Self {
            bytes_min: 1 << (bits - 2),
            bytes_normal: 1 << bits,
            bytes_max: 1 << (bits + 2),
            // The highest bits of the hash depend on the most bytes.
            mask_before: !(u64::MAX >> (bits + 1)),
            mask_after: !(u64::MAX >> (bits - 2)),
        }
    }

    fn first(&self, bytes: &[u8]) -> usize {
        let end = bytes.len().min(self.bytes_max);
        let mut hash = 0_u64;
        for (at, byte) in bytes.iter().enumerate().take(end).skip(self.bytes_min) {
            hash = (hash << 1).wrapping_add(GEAR.get(usize::from(*byte)).copied().unwrap_or(0));
            let mask = if at < self.bytes_normal { self.mask_before } else { self.mask_after };
            if hash & mask == 0 {
                return at;
            }
        }
        end
    }
}

/// A random number for each value of a byte: the first 256 of splitmix64 from 0.
static GEAR: [u64; 256] = gear();

#[expect(clippy::indexing_slicing, reason = "evaluated when compiled")]
const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state = 0_u64;
    let mut at = 0;
    while at < table.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = mixed ^ (mixed >> 31);
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    /// Bytes that look random, the same for ever.
    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    fn lengths(cuts: Cuts, mut content: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while !content.is_empty() {
            let first = cuts.first(content);
            lengths.push(first);
            content = &content[first..];
        }
        lengths
    }

    #[test]
    fn cut_points_are_what_they_were() {
        assert_eq!((GEAR[0], GEAR[255]), (0xe220_a839_7b1d_cdaf, 0x5a58_32bb_47bc_f19e));
        let fine = lengths(Cuts::Content(Gear::FINE), &bytes(1, 600_000));
        assert_eq!(fine, [16_864, 56_860, 98_839, 38_309, 54_698, 84_922, 72_966, 76_419, 99_343, 780]);
        let coarse = lengths(Cuts::Content(Gear::COARSE), &bytes(1, 2_000_000));
        assert_eq!(coarse, [265_570, 536_589, 273_041, 280_098, 399_927, 244_775]);
        assert_eq!(lengths(Cuts::Content(Gear::FINE), &[0; 600_000]), [262_144, 262_144, 75_712]);
        assert_eq!(lengths(Cuts::Fixed { bytes: 16_384 }, &[7; 40_000]), [16_384, 16_384, 7_232]);
        assert_eq!(lengths(Cuts::Whole, &[7; 40_000]), [40_000]);
    }

    #[test]
    fn chunks_keep_their_bounds_and_their_mean() {
        let content = bytes(9, 32 << 20);
        let lengths = lengths(Cuts::Content(Gear::FINE), &content);
        assert!(lengths.iter().rev().skip(1).all(|length| (16 << 10..=256 << 10).contains(length)));
        let mean = content.len() / lengths.len();
        assert!((48 << 10..=80 << 10).contains(&mean), "{mean}");
    }

    #[test]
    fn what_moves_keeps_its_chunks() {
        let old = bytes(3, 4 << 20);
        let new = [&old[..1 << 20], b"inserted".as_slice(), &old[1 << 20..]].concat();
        let chunks = |content: &[u8]| {
            let mut at = 0;
            let hashes = lengths(Cuts::Content(Gear::FINE), content).into_iter().map(|length| {
                at += length;
                blake3::hash(&content[at - length..at])
            });
            hashes.collect::<Vec<_>>()
        };
        let (old, new) = (chunks(&old), chunks(&new));
        let changed = new.iter().filter(|chunk| !old.contains(chunk)).count();
        assert!((1..=3).contains(&changed), "{changed} of {}", new.len());
    }

    #[test]
    fn a_cut_does_not_depend_on_what_follows_the_longest_chunk() {
        let content = bytes(5, 3 << 20);
        for cuts in [Cuts::Content(Gear::FINE), Cuts::Content(Gear::COARSE), Cuts::Fixed { bytes: 16_384 }] {
            assert_eq!(cuts.first(&content), cuts.first(&content[..CHUNK_BYTES_MAX]));
        }
    }

    #[test]
    fn how_a_content_is_cut_follows_from_its_size_and_its_neighbour() {
        let fine = Some(Cuts::Content(Gear::FINE));
        let fixed = Some(Cuts::Fixed { bytes: 16 << 10 });
        let compared = |equal| Some(Neighbour::Compared { blocks: 1000, equal });
        for (bytes, neighbour, expected) in [
            (0, None, Some(Cuts::Whole)),
            (64 << 10, compared(1000), Some(Cuts::Whole)),
            ((64 << 10) + 1, None, fine),
            (1 << 30, None, fine),
            (1 << 30, compared(750), fixed),
            (1 << 30, compared(749), fine),
            (1 << 30, Some(Neighbour::Compared { blocks: 0, equal: 0 }), fine),
            ((1 << 20) - 1, compared(1000), fine),
            (1 << 20, compared(1000), fixed),
            (1 << 30, Some(Neighbour::Packed { fixed: true }), fixed),
            (1 << 30, Some(Neighbour::Packed { fixed: false }), fine),
            (5 << 30, None, Some(Cuts::Content(Gear::COARSE))),
            (5 << 30, compared(1000), Some(Cuts::Fixed { bytes: 64 << 10 })),
            (64 << 30, None, Some(Cuts::Content(Gear::COARSE))),
            ((64 << 30) + 1, None, None),
        ] {
            assert_eq!(Cuts::choose(bytes, neighbour), expected, "{bytes} {neighbour:?}");
        }
    }
}
