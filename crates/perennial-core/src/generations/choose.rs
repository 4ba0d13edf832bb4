//! Which generation a selector means (rows A19, A-Q2).

use super::{Health, Queue};
use crate::id::{ParseIdError, Seq};
use crate::time::{ParseTimeError, Time};
use alloc::string::String;
use alloc::vec::Vec;

/// How a generation is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// By its number.
    Seq(Seq),
    /// The state as of an instant: the newest generation whose exit was not later.
    At {
        /// First instant of the precision given: a time without a fraction means that whole second.
        from: Time,
        /// Last instant of that precision.
        until: Time,
    },
    /// The newest good one, or the newest that ended cleanly where none is marked good.
    LatestGood,
}

/// Why no generation was chosen. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChooseError {
    /// The queue has no generation at all.
    #[error("there is no generation yet: the container has not exited once")]
    Empty,
    /// No generation has this number.
    #[error("there is no generation {seq}; present are {}", list(present))]
    UnknownSeq {
        /// The number asked for.
        seq: Seq,
        /// The numbers there are.
        present: Vec<Seq>,
    },
    /// Every generation is younger.
    #[error("there is no generation as old as {at}; the oldest is {oldest} of {oldest_at}")]
    NoneAsOld {
        /// The instant asked for.
        at: Time,
        /// Oldest generation.
        oldest: Seq,
        /// Its instant.
        oldest_at: Time,
    },
    /// Several generations fit equally.
    #[error("generations {} all fit {at}; choose one by its number", list(seqs))]
    Ambiguous {
        /// The instant asked for.
        at: Time,
        /// The generations.
        seqs: Vec<Seq>,
    },
    /// None is good and none ended cleanly.
    #[error("no generation is marked good and none ended cleanly; choose one by its number")]
    NoneGood,
    /// The only good ones are quarantined, and such are never chosen without being named (A32).
    #[error("the only good generation, {seq}, is in quarantine since a rollback; choose it by its number")]
    OnlyQuarantinedGood {
        /// The newest of them.
        seq: Seq,
    },
    /// The queue is not the one the plan was made for (A19).
    #[error("the generations have changed since generation {seq} was chosen; nothing was done, try again")]
    Changed {
        /// The chosen one.
        seq: Seq,
    },
    /// The chosen one is damaged.
    #[error("generation {seq} is damaged{}", offer(*nearest))]
    Damaged {
        /// The chosen one.
        seq: Seq,
        /// The nearest older intact one.
        nearest: Option<Seq>,
    },
}

fn list(seqs: &[Seq]) -> String {
    let texts: Vec<String> = seqs.iter().map(|seq| alloc::format!("{seq}")).collect();
    texts.join(", ")
}

fn offer(nearest: Option<Seq>) -> String {
    nearest.map_or_else(String::new, |seq| alloc::format!("; the nearest intact one is {seq}"))
}

impl Selector {
    /// Parses a generation number.
    ///
    /// # Errors
    /// [`ParseIdError`] where the text is not a whole number from 1.
    pub fn parse_seq(text: &str) -> Result<Self, ParseIdError> {
        text.parse().map(Self::Seq)
    }

    /// Parses an RFC 3339 instant; it stands for all instants it is a rounding of, because tables show less than
    /// nanoseconds: without a fraction for the whole second, with one digit for a tenth, and so on.
    ///
    /// # Errors
    /// [`ParseTimeError`] where the text is not RFC 3339.
    pub fn parse_at(text: &str) -> Result<Self, ParseTimeError> {
        let (from, until) = Time::parse_span(text)?;
        Ok(Self::At { from, until })
    }
}

/// Returns the generation that the selector means.
///
/// # Errors
/// [`ChooseError`]; the queue is only read.
pub fn choose(queue: &Queue, selector: &Selector) -> Result<Seq, ChooseError> {
    if queue.generations.is_empty() {
        return Err(ChooseError::Empty);
    }
    let seq = match selector {
        Selector::Seq(seq) => {
            let present: Vec<Seq> = queue.generations.iter().map(|generation| generation.seq).collect();
            if !present.contains(seq) {
                return Err(ChooseError::UnknownSeq { seq: *seq, present });
            }
            *seq
        }
        Selector::At { from, until } => as_of(queue, *from, *until)?,
        Selector::LatestGood => latest_good(queue)?,
    };
    let is_damaged = queue.get(seq).is_some_and(|generation| generation.health == Health::Damaged);
    if is_damaged {
        return Err(ChooseError::Damaged { seq, nearest: nearest_intact(queue, seq) });
    }
    Ok(seq)
}

/// Returns the newest generation before `seq` that is not damaged (A29).
#[must_use]
pub fn nearest_intact(queue: &Queue, seq: Seq) -> Option<Seq> {
    queue.generations.iter().rev().find(|g| g.seq < seq && g.health != Health::Damaged).map(|g| g.seq)
}

fn latest_good(queue: &Queue) -> Result<Seq, ChooseError> {
    let good = queue.last_good().ok_or(ChooseError::NoneGood)?;
    if good.quarantined {
        return Err(ChooseError::OnlyQuarantinedGood { seq: good.seq });
    }
    Ok(good.seq)
}

/// The generation whose exit is the instant, else the last one before it. A clock that was set back makes "last" two
/// answers, by the clock and by the order of the exits (A38); then the caller has to say which.
fn as_of(queue: &Queue, from: Time, until: Time) -> Result<Seq, ChooseError> {
    let seqs_where =
        |fits: &dyn Fn(Time) -> bool| queue.generations.iter().filter(|g| fits(g.exited_at)).map(|g| g.seq).collect();
    let mut seqs: Vec<Seq> = seqs_where(&|at| at >= from && at <= until);
    if seqs.is_empty() {
        let earlier = || queue.generations.iter().filter(|g| g.exited_at < from);
        let Some(newest) = earlier().max_by_key(|g| g.seq) else {
            let oldest = queue.generations.iter().min_by_key(|g| (g.exited_at, g.seq)).ok_or(ChooseError::Empty)?;
            return Err(ChooseError::NoneAsOld { at: from, oldest: oldest.seq, oldest_at: oldest.exited_at });
        };
        let latest_at = earlier().map(|g| g.exited_at).max().unwrap_or(newest.exited_at);
        seqs = seqs_where(&|at| at == latest_at);
        if !seqs.contains(&newest.seq) {
            seqs.push(newest.seq);
        }
    }
    match seqs.as_slice() {
        [seq] => Ok(*seq),
        _ => Err(ChooseError::Ambiguous { at: from, seqs }),
    }
}
