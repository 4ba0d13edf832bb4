//! What one client may take of what all share.

use perennial_core::registry::bounds::{
    FAILURES_MAX, FAILURES_NANOS, Failures, PACE_BYTES_PER_S, Pace, connections_that_fit, files_needed, manifest_kib,
    origin, part_bytes,
};
use perennial_core::time::Time;

#[test]
fn no_more_connections_are_taken_than_files_can_be_opened_for() {
    for (asked, files, expected) in [
        (4096, u64::MAX, 4096),
        (4096, 8448, 4096),
        (4096, 8447, 4095),
        (4096, 1024, 384),
        (100, 1024, 100),
        (4096, 256, 1),
        (4096, 0, 1),
    ] {
        assert_eq!(connections_that_fit(asked, files), expected, "{asked} {files}");
    }
    for asked in [1, 4096, 100_000] {
        assert_eq!(connections_that_fit(asked, files_needed(asked)), asked);
    }
}

#[test]
fn wrong_passwords_are_looked_at_so_often_in_a_minute() {
    let window = i64::try_from(FAILURES_NANOS).unwrap();
    let [start, late, after] = [0, window - 1, window].map(Time::from_unix_nanos);
    let mut failures = Failures::default();
    for _ in 0..FAILURES_MAX {
        assert!(!failures.are_too_many(&"ann", start));
        failures.add("ann", start);
    }
    assert!(failures.are_too_many(&"ann", late));
    assert!(!failures.are_too_many(&"bob", late), "of one, not of others");
    assert!(!failures.are_too_many(&"ann", after));
    failures.add("ann", after);
    assert!(!failures.are_too_many(&"ann", after), "the count begins anew");
}

#[test]
fn failures_of_many_names_take_bounded_memory() {
    let (now, mut failures) = (Time::from_unix_nanos(0), Failures::default());
    for _ in 0..FAILURES_MAX {
        failures.add(0, now);
    }
    for name in 1..10_000 {
        failures.add(name, now);
    }
    assert!(failures.are_too_many(&0, now));
    failures.add(10_000, now);
    assert!(!failures.are_too_many(&0, now), "all are forgotten");
}

#[test]
fn an_address_belongs_to_its_network() {
    for (address, expected) in [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("::1", "::"),
    ] {
        assert_eq!(origin(address.parse().unwrap()).to_string(), expected, "{address}");
    }
}

#[test]
fn a_pace_is_kept_by_what_comes_in_each_window() {
    let second = 1_000_000_000;
    let minute = 60 * PACE_BYTES_PER_S;
    // Bytes and seconds one after another, and how many of them were fast enough.
    for (what, came, kept) in [
        ("a byte a second", vec![(1, 1); 100], 59),
        ("all at once, then nothing for less than a window", vec![(minute, 0), (0, 59)], 2),
        ("all at once, then nothing", vec![(minute, 0), (0, 59), (0, 1), (0, 60)], 3),
        ("just enough, for ever", vec![(PACE_BYTES_PER_S, 1); 1000], 1000),
        ("just too little", vec![(PACE_BYTES_PER_S - 1, 1); 1000], 59),
        ("much in one window does not count in the next", vec![(10 * minute, 60), (0, 60)], 1),
        ("waiting that is not the client's", vec![(0, 0); 1000], 1000),
    ] {
        let mut pace = Pace::new(60 * second);
        let count = came.iter().take_while(|(bytes, seconds)| pace.is_kept(*bytes, seconds * second)).count();
        assert_eq!(count, kept, "{what}");
    }
}

#[test]
fn a_large_manifest_takes_its_length_and_an_unknown_one_the_most() {
    let max = 4 * 1024 * 1024;
    let announced = [Some(0), Some(16_384), Some(16_385), Some(20_480), Some(max), Some(u64::MAX), None];
    assert_eq!(announced.map(manifest_kib), [0, 0, 17, 20, 4096, 4096, 4096]);
}

#[test]
fn an_object_of_any_length_that_a_store_takes_has_at_most_ten_thousand_parts() {
    let mib = 1024 * 1024;
    for (bytes, part) in [
        (0, Some(8)),
        (80_000 * mib, Some(8)),
        (80_000 * mib + 1, Some(9)),
        (300_000 * mib, Some(30)),
        (640_000 * mib, Some(64)),
        (640_000 * mib + 1, None),
        (u64::MAX, None),
    ] {
        assert_eq!(part_bytes(bytes), part.map(|part| part * mib), "{bytes}");
        assert!(part.is_none_or(|part| bytes.div_ceil(part * mib) <= 10_000));
    }
}
