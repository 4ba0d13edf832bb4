//! Which generation a selector means (rows A19, A32, A38, A-Q8).

use crate::world::{BEGIN, Course, SECOND, World, time};
use perennial_core::generations::Health;
use perennial_core::generations::choose::{ChooseError, Selector, choose};
use perennial_core::id::Seq;
use perennial_core::time::Time;

/// A container whose exits were at these times.
fn exited_at(times: &[&str]) -> World {
    let mut world = World::with_exits(20, times.len());
    for (seq, text) in (1..).zip(times) {
        world.generation_mut(seq).exited_at = time(text);
    }
    world
}

fn at(world: &World, text: &str) -> Result<u64, String> {
    choose(world.queue(), &Selector::parse_at(text).expect("the test gives RFC 3339"))
        .map(|seq| seq.0)
        .map_err(|error| error.to_string())
}

#[test]
fn a19_an_empty_queue_has_nothing_to_choose() {
    let mut world = World::new(3);
    world.run(&Course::clean());
    world.queue_mut().generations.clear();
    for selector in [Selector::Seq(Seq(1)), Selector::LatestGood, Selector::parse_at("2026-01-01T00:00:00Z").unwrap()] {
        assert_eq!(choose(world.queue(), &selector), Err(ChooseError::Empty));
    }
}

#[test]
fn a19_a_time_means_the_state_as_of_then() {
    let world = exited_at(&["2026-11-22T18:00:00.25Z", "2026-11-22T18:00:01Z", "2026-11-22T19:00:00.123456789Z"]);
    for (text, seq) in [
        ("2026-11-22T18:00:00Z", 1),
        ("2026-11-22T18:00:00.25Z", 1),
        ("2026-11-22T18:00:00.2Z", 1),
        ("2026-11-22T18:00:00.26Z", 1),
        ("2026-11-22T18:00:01Z", 2),
        ("2026-11-22T18:30:00Z", 2),
        ("2026-11-22T19:30:00+01:00", 2),
        ("2026-11-22T18:59:59Z", 2),
        ("2026-11-22T19:00:00Z", 3),
        ("2026-11-22T19:00:00.123Z", 3),
        ("2026-11-22T19:00:00.123456Z", 3),
        ("2026-11-22T19:00:00.123456789Z", 3),
        ("2026-11-22T19:00:00.123456788Z", 2),
        ("2026-11-22T19:00:00.122Z", 2),
        ("2100-01-01T00:00:00Z", 3),
    ] {
        assert_eq!(at(&world, text), Ok(seq), "{text}");
    }
}

#[test]
fn a19_a_time_before_all_of_them_is_no_generation() {
    let world = exited_at(&["2026-11-22T18:00:00.25Z", "2026-11-22T18:00:01Z"]);
    for text in ["2020-01-01T00:00:00Z", "2026-11-22T18:00:00.24Z"] {
        let error = at(&world, text).unwrap_err();
        let shown = time(text);
        let expected = format!("there is no generation as old as {shown}; the oldest is 1 of 2026-11-22T18:00:00.25Z");
        assert_eq!(error, expected);
    }
}

#[test]
fn aq8_several_in_one_second_are_told_apart_by_their_number() {
    let world = exited_at(&["2026-11-22T18:00:00.1Z", "2026-11-22T18:00:00.6Z", "2026-11-22T18:00:00.6Z"]);
    let all = "generations 1, 2, 3 all fit 2026-11-22T18:00:00Z; choose one by its number";
    assert_eq!(at(&world, "2026-11-22T18:00:00Z"), Err(all.into()));
    assert_eq!(at(&world, "2026-11-22T18:00:00.1Z"), Ok(1));
    let twins = "generations 2, 3 all fit 2026-11-22T18:00:00.6Z; choose one by its number";
    assert_eq!(at(&world, "2026-11-22T18:00:00.6Z"), Err(twins.into()));
    let later = "generations 2, 3 all fit 2026-11-22T18:00:05Z; choose one by its number";
    assert_eq!(at(&world, "2026-11-22T18:00:05Z"), Err(later.into()));
}

#[test]
fn a38_where_the_clock_was_set_back_a_time_with_two_meanings_is_not_guessed() {
    let world = exited_at(&["2026-11-22T10:00:00Z", "2026-11-22T12:00:00Z", "2026-11-22T09:00:00Z"]);
    assert_eq!(at(&world, "2026-11-22T12:00:00Z"), Ok(2), "the very time of an exit is no riddle");
    assert_eq!(at(&world, "2026-11-22T09:30:00Z"), Ok(3));
    let by_clock_or_by_order = "generations 1, 3 all fit 2026-11-22T11:00:00Z; choose one by its number";
    assert_eq!(at(&world, "2026-11-22T11:00:00Z"), Err(by_clock_or_by_order.into()));
    let world = exited_at(&["2030-01-01T00:00:00Z", "2026-11-22T09:00:00Z", "2026-11-22T10:00:00Z"]);
    assert_eq!(at(&world, "2026-11-22T11:00:00Z"), Ok(3), "one exit with a clock ahead does not disturb the others");
}

#[test]
fn a19_texts_that_are_no_times_are_refused() {
    for text in ["", "yesterday", "2026-11-22", "2026-11-22T18:00:00", "18:00:00Z", "9999-01-01T00:00:00Z"] {
        let error = Selector::parse_at(text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("time {text:?} is not valid: ")), "{error}");
        assert!(error.ends_with("expected RFC 3339, such as 2026-11-22T18:00:00Z"), "{error}");
    }
    for text in ["2026-11-22T18:00Z", "2026-11-22T18:00+01:00", "2026-11-22T18Z"] {
        let error = Selector::parse_at(text).unwrap_err().to_string();
        assert!(error.contains("the seconds are missing"), "{text}: {error}");
    }
}

#[test]
fn a19_texts_that_are_no_numbers_are_refused() {
    for text in ["", "0", "-1", "1.5", "tail", "18446744073709551616"] {
        assert!(Selector::parse_seq(text).is_err(), "{text:?}");
    }
    assert_eq!(Selector::parse_seq("18446744073709551615"), Ok(Selector::Seq(Seq(u64::MAX))));
}

#[test]
fn a22_latest_good_prefers_what_was_seen_to_be_good() {
    let mut world = World::with_exits(9, 4);
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Ok(Seq(4)), "the newest clean one for want of better");
    world.generation_mut(2).health = Health::Good;
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Ok(Seq(2)));
    world.generation_mut(3).health = Health::Good;
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Ok(Seq(3)));
}

#[test]
fn a32_latest_good_never_means_a_quarantined_one() {
    let mut world = World::new(9);
    world.run(&Course::quick_failure());
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Err(ChooseError::NoneGood));
    world.run(&Course::clean());
    world.run(&Course::healthy());
    world.roll_back_to(2);
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Ok(Seq(2)), "3 is good but turned away from");
    world.roll_back_to(1);
    world.generation_mut(1).health = Health::Suspect;
    let error = choose(world.queue(), &Selector::LatestGood).unwrap_err();
    assert_eq!(error, ChooseError::OnlyQuarantinedGood { seq: Seq(3) });
    assert_eq!(
        error.to_string(),
        "the only good generation, 3, is in quarantine since a rollback; choose it by its number"
    );
    assert_eq!(choose(world.queue(), &Selector::Seq(Seq(3))), Ok(Seq(3)));
}

#[test]
fn times_are_shown_as_they_are_read() {
    for nanos in [0, 1, -1, BEGIN, BEGIN + SECOND / 2, i64::MAX, i64::MIN] {
        let shown = Time::from_unix_nanos(nanos).to_string();
        assert_eq!(shown.parse::<Time>().unwrap().unix_nanos(), nanos, "{shown}");
        let Ok(Selector::At { from, until }) = Selector::parse_at(&shown) else { panic!("{shown} is RFC 3339") };
        assert!(from.unix_nanos() <= nanos && nanos <= until.unix_nanos(), "{shown}");
    }
    assert_eq!(Time::from_unix_nanos(BEGIN).to_string(), "2026-11-22T18:00:00Z");
    assert_eq!(time("2026-11-22T18:00:00Z").nanos_since(time("2026-11-22T19:00:00Z")), 0, "the clock went back");
}
