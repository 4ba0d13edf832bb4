//! What two machines did to the same generations, put together: nobody's rollback, pin or mark is undone by a copy that
//! knows nothing of it.

use perennial_core::generations::{Generation, Health, Kind, Queue};
use perennial_core::id::{Digest, LayerId, RunId, Seq};
use perennial_core::time::Time;
use perennial_core::travel::facts::{Conflict, Facts, settle};
use perennial_core::travel::history::{Mark, Relation, marks, own_marks, relate};
use perennial_core::travel::merge::{Newer, Wanted, pulled};
use perennial_core::travel::remote::Tracking;
use std::collections::BTreeMap;

fn generation(seq: u64, marks: &str) -> Generation {
    let health = match marks {
        _ if marks.contains('g') => Health::Good,
        _ if marks.contains('s') => Health::Suspect,
        _ if marks.contains('d') => Health::Damaged,
        _ => Health::Unknown,
    };
    Generation {
        seq: Seq(seq),
        exited_at: Time::from_unix_nanos(i64::try_from(seq).expect("small")),
        kind: Kind::Exit,
        health,
        exit_code: Some(0),
        parent: None,
        image: Digest::from_sha256(&[1; 32]),
        layers: vec![LayerId::from_random(seq.to_be_bytes())],
        mount_options: Vec::new(),
        run: Some(RunId::from_random(seq.to_be_bytes())),
        bytes: 1,
        entries: 1,
        pinned: marks.contains('p'),
        quarantined: marks.contains('q'),
        cold: false,
        verified_at: None,
        clean: true,
        note: None,
        by: "root(0)".into(),
        extra: BTreeMap::new(),
    }
}

/// `1p 2q *3 4` are four generations, the first pinned, the second in quarantine, the third current.
fn queue(text: &str) -> Queue {
    let mut queue = Queue::default();
    for word in text.split_whitespace() {
        let (is_current, word) = word.strip_prefix('*').map_or((false, word), |word| (true, word));
        let digits = word.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(word.len());
        let (seq, marks) = word.split_at(digits);
        let seq = seq.parse().expect("a number");
        queue.generations.push(generation(seq, marks));
        queue.next_seq = Seq(seq).next();
        if is_current {
            queue.current = Some(Seq(seq));
        }
    }
    queue
}

fn text(queue: &Queue) -> String {
    let word = |generation: &Generation| {
        let letter = |is_set: bool, letter: &'static str| if is_set { letter } else { "" };
        let health = match generation.health {
            Health::Good => "g",
            Health::Suspect => "s",
            Health::Damaged => "d",
            Health::Unknown => "",
        };
        let current = letter(queue.current == Some(generation.seq), "*");
        let (pinned, quarantined) = (letter(generation.pinned, "p"), letter(generation.quarantined, "q"));
        format!("{current}{}{pinned}{quarantined}{health}", generation.seq)
    };
    queue.generations.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn settled(base: Option<&str>, ours: &str, theirs: &str) -> Result<(String, String), Conflict> {
    let base = base.map(|base| Facts::of(&queue(base)));
    let (mut ours, mut theirs) = (queue(ours), queue(theirs));
    let relation = relate(&marks(&[], Some(&ours)), &marks(&[], Some(&theirs)));
    settle(base.as_ref(), &mut ours, &mut theirs, relation)?;
    Ok((text(&ours), text(&theirs)))
}

#[test]
fn whoever_changed_something_since_both_were_the_same_is_followed() {
    for (base, ours, theirs, expected) in [
        ("1 2 *3", "1 2 *3", "1 2 *3", "1 2 *3"),
        // A rollback with a pin, there or here.
        ("1 2 *3", "1 2 *3", "*1p 2q 3q", "*1p 2q 3q"),
        ("1 2 *3", "*1p 2q 3q", "1 2 *3", "*1p 2q 3q"),
        // Each has changed something else.
        ("1 2 *3", "1p 2 *3", "1 *2 3q", "1p *2 3q"),
        ("1p 2q *3", "1 2q *3", "1p 2 *3g", "1 2 *3g"),
        // Both have done the same.
        ("1 2 *3", "*1 2q 3q", "*1 2q 3q", "*1 2q 3q"),
        // It was undone there.
        ("*1 2q 3q", "*1 2q 3q", "1 2 *3", "1 2 *3"),
        // Health: whoever looked is followed, and of two the warier one.
        ("1g *2", "1g *2", "1s *2", "1s *2"),
        ("1 *2", "1g *2", "1s *2", "1s *2"),
        ("1g *2g", "1s *2", "1 *2s", "1s *2s"),
    ] {
        let both = (expected.to_owned(), expected.to_owned());
        assert_eq!(settled(Some(base), ours, theirs), Ok(both), "{base}: {ours} | {theirs}");
    }
}

#[test]
fn a_rollback_there_reaches_whoever_has_gone_on_no_further_and_stays_where_theirs_has_gone_on() {
    for (base, ours, theirs, expected) in [
        // We rolled back and went on; they did nothing.
        ("1 2 *3", "1 2q 3q *4", "1 2 *3", ("1 2q 3q *4", "1 2q 3q")),
        // They did.
        ("1 2 *3", "1 2 *3", "1 2q 3q *4", ("1 2q 3q", "1 2q 3q *4")),
        // They went on and came back; we rolled back before.
        ("1 2 *3", "*1 2q 3q", "1 2 *3 4q", ("*1 2q 3q", "*1 2q 3q 4q")),
        // We went on and came back to where both were; they rolled back.
        ("1 2 *3", "1 2 *3 4q", "*1 2q 3q", ("*1 2q 3q 4q", "*1 2q 3q")),
        // We rolled back, and had let go of what they still have.
        ("1 2 *3", "*1", "1 2 *3", ("*1", "*1 2q 3q")),
    ] {
        let expected = (expected.0.to_owned(), expected.1.to_owned());
        assert_eq!(settled(Some(base), ours, theirs), Ok(expected), "{base}: {ours} | {theirs}");
    }
}

#[test]
fn two_who_chose_another_current_generation_are_told_with_a_way_out() {
    for (base, ours, theirs, way_out) in [
        (Some("1 2 *3"), "*1 2q 3q", "1 *2 3q", Some(2)),
        (Some("1 2 *3"), "1 2 3 *4", "*1 2q 3q", Some(1)),
        (Some("1 2 *3"), "*1 2q 3q", "1 2 3 *4", Some(3)),
        (Some("1 2 *3"), "*1 2q", "1 2 3 *4", None),
        // Nothing is known of before.
        (None, "1 2 *3", "*1 2q 3q", Some(1)),
        (None, "1 2 3 *4", "*1 2q 3q", Some(1)),
        (None, "*1 2q 3q", "1 2 3 *4", None),
    ] {
        let conflict = settled(base, ours, theirs).expect_err(ours);
        assert_eq!(conflict.way_out, way_out.map(Seq), "{base:?}: {ours} | {theirs}");
    }
}

#[test]
fn where_nothing_is_known_of_before_what_is_set_in_one_is_set_in_both() {
    for (ours, theirs, expected) in [
        ("1p 2 *3", "1 2q *3", ("1p 2q *3", "1p 2q *3")),
        ("1 *2g", "1s *2", ("1s *2g", "1s *2g")),
        ("1g *2", "1s *2", ("1s *2", "1s *2")),
        ("1 2 *3", "1 2 3q *4", ("1 2 3q", "1 2 3q *4")),
        ("1 2 3q *4", "1 2 *3", ("1 2 3q *4", "1 2 3q")),
        ("", "1 *2", ("", "1 *2")),
    ] {
        let expected = (expected.0.to_owned(), expected.1.to_owned());
        assert_eq!(settled(None, ours, theirs), Ok(expected), "{ours} | {theirs}");
    }
}

#[test]
fn damage_is_the_affair_of_one_machine() {
    let both = settled(Some("1g *2"), "1d *2", "1s *2");
    assert_eq!(both, Ok(("1d *2".to_owned(), "1s *2".to_owned())));
}

#[test]
fn what_comes_from_elsewhere_can_be_taken_back() {
    let (mut ours, mut theirs) = (queue("1 2q *3"), queue("*1 2q 3q"));
    settle(Some(&Facts::of(&ours.clone())), &mut ours, &mut theirs, Relation::Same).expect("no conflict");
    let planned = perennial_core::generations::rollback::plan_undo(&ours).expect("there is something to undo");
    perennial_core::generations::rollback::apply(&mut ours, &planned).expect("it was planned for this");
    assert_eq!(text(&ours), "1 2q *3");
}

#[test]
fn a_sent_state_is_what_both_had_even_where_the_registry_had_more() {
    // They pinned 1; we went on with 3 and sent it; the pin is not here yet, and comes with the next pull.
    let base = Facts::of(&queue("1 *2"));
    let (mut ours, mut theirs) = (queue("1 2 *3"), queue("1p *2"));
    let before = Facts::of(&ours);
    settle(Some(&base), &mut ours, &mut theirs, Relation::Ahead).expect("no conflict");
    assert_eq!(text(&ours), "1p 2 *3", "as it is sent");
    assert_eq!(settled_with(&before.or(Some(base), &marks(&[], Some(&ours))), "1 2 *3", "1p 2 *3"), "1p 2 *3");
}

fn settled_with(base: &Facts, ours: &str, theirs: &str) -> String {
    let (mut ours, mut theirs) = (queue(ours), queue(theirs));
    settle(Some(base), &mut ours, &mut theirs, Relation::Same).expect("no conflict");
    text(&ours)
}

#[test]
fn what_was_left_out_is_still_known_as_it_was() {
    let known = Facts::of(&queue("1 *3")).or(Some(Facts::of(&queue("1p *2p 4"))), &marks(&[], Some(&queue("1 2 *3"))));
    assert_eq!(known.current, Some(Seq(3)));
    let pinned: Vec<bool> = known.generations.iter().map(|fact| fact.pinned).collect();
    assert_eq!(pinned, [false, true, false]);
}

#[test]
fn a_pull_brings_back_nothing_that_was_let_go() {
    let all = queue("1 2 *3");
    let let_go = |seqs: &[u64]| -> Vec<Mark> {
        marks(&[], Some(&all)).into_iter().filter(|mark| seqs.contains(&mark.seq.0)).collect()
    };
    for (ours, theirs, wanted, gone, newer, expected) in [
        ("1 *3", "1 2 *3", Wanted::All, &[2][..], Newer::Ours, "1 *3"),
        ("1 *3", "1 2 *3", Wanted::All, &[], Newer::Ours, "1 2 *3"),
        ("*1", "*1 2q 3q", Wanted::All, &[2, 3], Newer::Ours, "*1"),
        // Somebody else has chosen it since.
        ("1 2", "1 2 *3", Wanted::All, &[3], Newer::Theirs, "1 2 *3"),
        ("", "1 2 *3", Wanted::Current, &[], Newer::Theirs, "*3"),
        ("1", "1 2 3 *4", Wanted::Current, &[], Newer::Theirs, "1 *4"),
        // The bound counts for what is theirs, and never for ours.
        ("3 4 *5", "1 2 3 4", Wanted::All, &[], Newer::Ours, "3 4 *5"),
        ("1 2 3 4", "4 *5", Wanted::All, &[], Newer::Theirs, "1 2 3 4 *5"),
    ] {
        let (ours, theirs) = (queue(ours), queue(theirs));
        let found = pulled(&ours, theirs, (wanted, &let_go(gone)), newer, 3);
        assert_eq!(text(&found), expected, "{} {wanted:?} {gone:?}", text(&ours));
    }
}

#[test]
fn what_was_here_and_is_no_more_was_let_go() {
    let mut tracking = Tracking::default();
    assert!(tracking.let_go(None).is_empty());
    tracking.note_here(&queue("1 2 *3"));
    tracking.note_here(&queue("3 *4"));
    let seqs = |queue: &Queue| tracking.let_go(Some(queue)).iter().map(|mark| mark.seq.0).collect::<Vec<_>>();
    assert_eq!(seqs(&queue("3 *4")), [1, 2]);
    assert_eq!(seqs(&queue("1 4 *5")), [2, 3]);
}

#[test]
fn what_another_has_made_since_is_not_ours_though_we_know_of_it() {
    let seen = marks(&[], Some(&queue("1 2 *3")));
    let seqs = |marks: &[Mark]| marks.iter().map(|mark| mark.seq.0).collect::<Vec<_>>();
    assert_eq!(seqs(&own_marks(&seen, Some(&queue("*1")))), [1]);
    let mut evicted = queue("*1");
    evicted.next_seq = Seq(4);
    assert_eq!(seqs(&own_marks(&seen, Some(&evicted))), [1, 2, 3]);
    assert!(own_marks(&seen, None).is_empty());
}

#[test]
fn a_copy_that_was_put_back_to_an_earlier_state_undoes_nothing() {
    for (base, ours, theirs, expected) in [
        ("1 2 *3", "1 2 *3", "1 *2", ("1 2 *3", "1 2")),
        ("1p 2 *3", "1p 2 *3", "1 *2", ("1p 2 *3", "1p 2")),
        ("1 2 *3", "1 2 3 *4", "1 *2", ("1 2 3 *4", "1 2")),
        // It has seen the third and chosen the second: that is followed.
        ("1 2 *3", "1 2 *3", "1 *2 3", ("1 *2 3", "1 *2 3")),
    ] {
        let settled = settled(Some(base), ours, theirs).expect("no conflict");
        assert_eq!((settled.0.as_str(), settled.1.as_str()), expected, "{ours} {theirs}");
    }
}
