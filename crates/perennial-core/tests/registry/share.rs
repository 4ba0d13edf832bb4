//! What streams hold together stays within its bound, and few streams are not kept small.

use perennial_core::registry::share::Share;

const SHARE: Share = Share { total: 16_384, least: 16, most: 256 };

#[test]
fn the_part_of_a_stream_follows_what_is_free() {
    for (held, expected) in
        [(0, 256), (14_000, 256), (14_336, 256), (14_337, 128), (16_000, 32), (16_384, 16), (99_999, 16)]
    {
        assert_eq!(SHARE.next(held), expected, "{held}");
    }
}

#[test]
fn streams_that_hold_what_they_took_stay_within_the_bound() {
    for streams in [1, 10, 64, 200, 1000, 5000] {
        let (mut held, mut last) = (0, 0);
        for _ in 0..streams {
            last = SHARE.next(held);
            held += last;
        }
        assert!(held <= SHARE.total + streams * SHARE.least, "{streams}: {held}");
        // Those that move find their level: each gives back and takes again.
        let mut all = vec![last; streams];
        let mut held: usize = all.iter().sum();
        for _ in 0..20 {
            for own in &mut all {
                held -= *own;
                *own = SHARE.next(held);
                held += *own;
            }
        }
        let fair = (SHARE.total / (streams + 8)).clamp(SHARE.least, SHARE.most);
        assert!(all.iter().all(|own| fair <= own * 2 && *own <= fair * 2), "{streams}: {fair} {:?}", &all[..1]);
    }
}
