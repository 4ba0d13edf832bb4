//! What is decided about containers and images in a registry.

use perennial_core::container::Container;
use perennial_core::generations::{Generation, Health, Kind, Queue};
use perennial_core::id::{ContainerId, ContainerName, Digest, LayerId, RunId, Seq};
use perennial_core::layers::{Form, LayerKind, LayerRecord, ManifestRef};
use perennial_core::sealed::object::ObjectId;
use perennial_core::spec::{ContainerSpec, Volume};
use perennial_core::time::Time;
use perennial_core::travel::artifact::{Artifact, ArtifactError, MANIFEST_BYTES_MAX};
use perennial_core::travel::cipher::{
    CHUNK_BYTES, Dropping, Layout, PackKey, Readers, Recipient, Secrecy, missing, readers,
};
use perennial_core::travel::facts::Facts;
use perennial_core::travel::history::{Mark, Relation, marks, relate, relate_to_remote};
use perennial_core::travel::merge::{Newer, adopt, queues};
use perennial_core::travel::place::{component, hidden, of_container, of_hidden_image, of_image, parse_address};
use perennial_core::travel::remote::{Tracking, pause_s};
use perennial_core::travel::send::{Sending, Standing, plan, to_join};
use perennial_core::travel::settings::Withheld;
use perennial_core::travel::{PACKS_MAX, PackAt, TEXT_BYTES_MAX, clean};
use std::collections::BTreeMap;

fn image(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

fn layer(number: u64) -> LayerId {
    LayerId::from_random(number.to_be_bytes())
}

fn name(text: &str) -> ContainerName {
    text.parse().expect("a valid name")
}

/// A generation made by a machine at an instant.
fn generation(seq: u64, by: &str) -> Generation {
    Generation {
        seq: Seq(seq),
        exited_at: Time::from_unix_nanos(i64::try_from(seq).expect("small")),
        kind: Kind::Exit,
        health: Health::Unknown,
        exit_code: Some(0),
        parent: None,
        image: image(1),
        layers: vec![layer(seq)],
        mount_options: Vec::new(),
        run: Some(RunId::from_random(seq.to_be_bytes())),
        bytes: 1,
        entries: 1,
        pinned: false,
        quarantined: false,
        cold: false,
        verified_at: None,
        clean: true,
        note: None,
        by: by.into(),
        extra: BTreeMap::new(),
    }
}

fn queue(generations: &[(u64, &str)]) -> Queue {
    let generations: Vec<Generation> = generations.iter().map(|(seq, by)| generation(*seq, by)).collect();
    let last = generations.last().map(|generation| generation.seq);
    Queue { next_seq: last.map_or(Seq(1), Seq::next), current: last, generations, undo: None, held: None }
}

/// `ab` is two generations, the first made by a, the second by b; `-` is one that is not known.
fn history(text: &str) -> Vec<Mark> {
    let made = text.chars().zip(1..).filter(|(by, _)| *by != '-').map(|(by, seq)| (seq, by.to_string()));
    let made: Vec<(u64, String)> = made.collect();
    let made: Vec<(u64, &str)> = made.iter().map(|(seq, by)| (*seq, by.as_str())).collect();
    marks(&[], Some(&queue(&made)))
}

#[test]
fn two_histories_are_one_where_one_goes_on_from_the_other() {
    let diverged = |seq| Relation::Diverged { seq: Seq(seq) };
    for (ours, theirs, expected) in [
        ("", "", Relation::Same),
        ("a", "", Relation::Ahead),
        ("", "a", Relation::Behind),
        ("aa", "aa", Relation::Same),
        ("aaa", "aa", Relation::Ahead),
        ("aa", "aab", Relation::Behind),
        ("aab", "aac", diverged(3)),
        ("aabb", "aac", diverged(3)),
        ("b", "a", Relation::Unrelated),
        ("ba", "aa", Relation::Unrelated),
        // What was evicted or never fetched does not count.
        ("--aa", "aaa", Relation::Ahead),
        ("---a", "aaaa", Relation::Same),
        ("aaaa", "---a", Relation::Same),
        ("--a", "aaab", Relation::Behind),
        ("---a", "aaa", Relation::Unrelated),
        ("aaa", "---a", Relation::Unrelated),
        // A number that one of them jumped over was made by the other alone.
        ("aa-a", "aab", diverged(3)),
        ("aab", "aa-a", diverged(3)),
    ] {
        assert_eq!(relate(&history(ours), &history(theirs)), expected, "{ours:?} {theirs:?}");
    }
}

#[test]
fn a_container_that_never_ran_is_another_one_unless_it_was_sent_there_or_came_from_there() {
    for (ours, theirs, has_met, expected) in [
        ("", "a", false, Relation::Unrelated),
        ("", "a", true, Relation::Behind),
        ("", "", false, Relation::Same),
        ("a", "", false, Relation::Ahead),
        ("ab", "a", false, Relation::Ahead),
        ("b", "a", true, Relation::Unrelated),
    ] {
        assert_eq!(relate_to_remote(&history(ours), &history(theirs), has_met), expected, "{ours} {theirs} {has_met}");
    }
}

#[test]
fn what_is_lost_with_a_record_is_what_was_kept_there_and_is_not_here() {
    let (seen, other) = (image(1), image(2));
    let all = queue(&[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a")]);
    let mut pinned = all.clone();
    pinned.generations[0].pinned = true;
    for (known, here, keep, expected) in [
        (Some(&all), &[1, 2, 3, 4, 5][..], 5, &[][..]),
        (Some(&all), &[5], 5, &[1, 2, 3, 4]),
        // What the container does not keep has gone before.
        (Some(&all), &[4, 5], 3, &[3]),
        (Some(&all), &[4, 5], 2, &[]),
        (Some(&pinned), &[4, 5], 2, &[1]),
        (None, &[4, 5], 5, &[]),
    ] {
        let facts = known.map(Facts::of);
        let tracking = Tracking { facts, manifest: Some(seen.clone()), ..Tracking::default() };
        let mut queue = all.clone();
        queue.generations.retain(|generation| here.contains(&generation.seq.0));
        let loss = tracking.loss(Some(&queue), &seen, keep);
        let seqs: Vec<u64> = loss.generations.iter().map(|seq| seq.0).collect();
        assert_eq!((seqs.as_slice(), loss.is_unseen), (expected, false), "{here:?} {keep}");
        assert!(tracking.loss(Some(&queue), &other, keep).is_unseen, "somebody has sent something since");
    }
    assert!(Tracking::default().loss(None, &seen, 5).is_unseen);
}

#[test]
fn a_generation_is_told_by_what_never_changes_about_it() {
    let before = generation(3, "root(0)");
    let after = Generation {
        layers: vec![layer(9)],
        health: Health::Good,
        pinned: true,
        quarantined: true,
        cold: true,
        note: Some("remark".into()),
        bytes: 99,
        ..before.clone()
    };
    assert_eq!(Mark::of(&before), Mark::of(&after));
    let (written, sent) = (Generation { by: "ann\tb".into(), ..before.clone() }, clean("ann\tb"));
    assert_eq!(Mark::of(&written), Mark::of(&Generation { by: sent, ..before.clone() }), "it is sent without the tab");
    for other in [
        Generation { exited_at: Time::from_unix_nanos(4), ..before.clone() },
        Generation { kind: Kind::Salvage, ..before.clone() },
        Generation { run: None, ..before.clone() },
        Generation { image: image(2), ..before.clone() },
        Generation { by: "other".into(), ..before.clone() },
    ] {
        assert_ne!(Mark::of(&before), Mark::of(&other));
    }
}

#[test]
fn what_a_queue_holds_counts_more_than_what_is_remembered_of_it() {
    let held = queue(&[(2, "a"), (3, "a")]);
    let past = [Mark { seq: Seq(1), made: ObjectId::of(b"1") }, Mark { seq: Seq(2), made: ObjectId::of(b"old") }];
    let all = marks(&past, Some(&held));
    assert_eq!(all.iter().map(|mark| mark.seq.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(all.get(1).copied(), held.get(Seq(2)).map(Mark::of));
}

#[test]
fn every_name_of_a_container_has_a_repository_of_its_own() {
    for (text, expected) in [
        ("web", "web"),
        ("web-1.a_b__c", "web-1.a_b__c"),
        ("a---b", "a---b"),
        ("Web", "x--atim4"),
        ("a..b", "x--c4n2sog"),
        ("a.", "x--c4n0"),
        ("a-", "x--c4mg"),
        ("a___b", "x--c5flunr2"),
        ("x--web", "x--f0miqtr5c8"),
    ] {
        assert_eq!(component(&name(text)), expected, "{text}");
    }
    let longest = "A".repeat(128);
    let repository = of_container(&"p".repeat(40), &name(&longest));
    assert!(repository.len() <= 255, "{}", repository.len());
    assert_eq!(of_container("", &name("web")), "web");
    assert_eq!(of_container("team/a", &name("web")), "team/a/web");
    assert_eq!(of_image("team", &image(1)), format!("team/perennial-images/{}", "01".repeat(32)));
    assert_ne!(of_container("team", &name("perennial-images")), "team/perennial-images");
}

#[test]
fn an_address_is_a_host_and_a_path() {
    let parsed = |text: &str| parse_address(text).map_err(|error| error.to_string());
    let pair = |host: &str, path: &str| Ok((host.to_owned(), path.to_owned()));
    assert_eq!(parsed("registry.example"), pair("registry.example", ""));
    assert_eq!(parsed("https://registry.example:5000/team/a/"), pair("registry.example:5000", "team/a"));
    assert_eq!(parsed("[::1]:5000/a"), pair("[::1]:5000", "a"));
    for wrong in ["", "/a", "ho st/a", "registry.example/Team", "registry.example/a//b", "registry.example/../b", "-o"]
    {
        assert!(parsed(wrong).is_err(), "{wrong:?}");
    }
    assert!(parsed(&format!("registry.example/{}", "a".repeat(41))).is_err());
}

fn pack(number: u8, content_bytes: u64) -> PackAt {
    let (id, digest) = (ObjectId::of(&[number]), image(number));
    PackAt { id, digest, bytes: 1, index_offset: 0, content_bytes, cipher: None }
}

#[test]
fn packs_are_written_anew_when_half_of_them_is_dead_weight() {
    let gigabyte = 1 << 30;
    for (content, needed, expected) in [
        (0, 0, Sending::GoOn),
        (gigabyte, gigabyte, Sending::GoOn),
        (2 * gigabyte, gigabyte, Sending::GoOn),
        (3 * gigabyte, gigabyte, Sending::Afresh),
        (60 << 20, 0, Sending::GoOn),
        (u64::MAX, u64::MAX, Sending::GoOn),
    ] {
        assert_eq!(plan(&[pack(1, content)], needed, Standing::default()), expected, "{content} {needed}");
    }
    // That there are many is no reason to send everything again: the small ones are put together.
    assert_eq!(plan(&vec![pack(1, 1); PACKS_MAX], gigabyte, Standing::default()), Sending::GoOn);
}

fn sized(bytes: &[u64]) -> Vec<PackAt> {
    bytes.iter().map(|bytes| PackAt { bytes: *bytes, ..pack(1, *bytes) }).collect()
}

#[test]
fn many_small_packs_are_put_together_the_smallest_first() {
    let (kib, mib) = (1 << 10, 1 << 20);
    let many = |bytes: u64, count: usize| vec![bytes; count];
    for (packs, joined) in [
        (vec![], 0),
        (many(10 * kib, 255), 0),
        (many(10 * kib, 256), 256),
        ([many(10 * kib, 256), many(mib, 700)].concat(), 256),
        (many(mib, 1023), 0),
        (many(mib, 1024), 512),
        ([many(10 * kib, 24), many(mib, 1000)].concat(), 24 + 511),
        // Those that are full stay, however many there are.
        (many(16 * mib, 8000), 0),
    ] {
        let chosen = to_join(&sized(&packs));
        let unique: std::collections::BTreeSet<_> = chosen.iter().collect();
        assert_eq!((chosen.len(), unique.len()), (joined, joined), "{} packs", packs.len());
        let largest = chosen.iter().map(|number| packs[*number]).max().unwrap_or(0);
        let mut rest = (0..packs.len()).filter(|number| !unique.contains(number)).map(|number| packs[number]);
        assert!(chosen.is_empty() || rest.all(|bytes| bytes >= largest));
    }
}

/// Plays pushes of so many bytes each that only ever add to what is there; returns how many packs there were at most, and
/// how many bytes were sent and how many of them again.
fn played(sizes: impl Iterator<Item = u64>) -> (usize, u64, u64) {
    let one = pack(1, 1);
    let (mut packs, mut most, mut sent, mut again) = (Vec::new(), 0, 0, 0);
    for bytes in sizes {
        let mut left = bytes;
        let chosen = to_join(&packs);
        if !chosen.is_empty() {
            let moved: u64 = chosen.iter().filter_map(|number| packs.get(*number)).map(|pack| pack.bytes).sum();
            (left, again) = (left + moved, again + moved);
            let chosen: std::collections::BTreeSet<usize> = chosen.into_iter().collect();
            let kept = (0..).zip(packs).filter(|(number, _)| !chosen.contains(number));
            packs = kept.map(|(_, pack)| pack).collect();
        }
        while left > 0 {
            packs.push(PackAt { bytes: left.min(32 << 20), ..one.clone() });
            left = left.saturating_sub(32 << 20);
        }
        (sent, most) = (sent + bytes, most.max(packs.len()));
    }
    (most, sent, again)
}

#[test]
fn the_number_of_packs_stays_bounded_however_often_is_pushed() {
    // Each day of a year, between 4 kB and 300 kB, as a container that keeps ten generations does: none of it is heavy.
    let (most, sent, again) = played((0..365_u64).map(|day| 4_000 + day * 7919 % 296_000));
    assert!(most <= 366 && again < sent, "{most} packs, {sent} bytes, {again} again");
    // Every hour for two years, little or a megabyte, always beside what only the registry has.
    for bytes in [5_000, 100_000, 1_200_000] {
        let (most, sent, again) = played((0..17_520_u64).map(|number| bytes + number % 1000));
        let full = usize::try_from(sent / (16 << 20)).expect("few");
        assert!(most <= 256 + 1024 + full && most < PACKS_MAX / 2, "{most} packs of {bytes} bytes");
        assert!(again <= 2 * sent, "{bytes}: {sent} bytes, {again} again");
    }
}

#[test]
fn packs_stay_where_they_have_what_nobody_here_can_write_and_are_doubted_where_they_lose_what_they_rely_on() {
    let gigabyte = 1 << 30;
    for (loses_base, has_theirs, is_whole, heavy, light) in [
        (false, false, false, Sending::Afresh, Sending::GoOn),
        (true, false, false, Sending::Afresh, Sending::Doubt),
        (false, true, false, Sending::GoOn, Sending::GoOn),
        (true, true, false, Sending::Doubt, Sending::Doubt),
        (false, false, true, Sending::Afresh, Sending::Afresh),
        (true, true, true, Sending::Afresh, Sending::Afresh),
    ] {
        let standing = Standing { loses_base, has_theirs, is_whole };
        let planned = [3 * gigabyte, gigabyte].map(|content| plan(&[pack(1, content)], gigabyte, standing));
        assert_eq!(planned, [heavy, light], "{standing:?}");
    }
}

#[test]
fn tries_that_fail_become_rarer_and_never_end() {
    assert_eq!((1..=8).map(pause_s).collect::<Vec<_>>(), [5, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(pause_s(u32::MAX), 300);
    let second = 1_000_000_000;
    let at = |seconds: i64| Time::from_unix_nanos(seconds * second);
    let tracking = Tracking { tried_at: Some(at(100)), failures: 2, ..Tracking::default() };
    assert!(!tracking.is_due(at(109)) && tracking.is_due(at(110)));
    assert!(tracking.is_due(at(99)), "a clock that was ahead must not put it off");
    assert!(Tracking { failures: 0, ..tracking }.is_due(at(100)), "the last try did not fail");
    assert!(Tracking::default().is_due(at(0)));
}

#[test]
fn what_is_lacking_is_what_is_kept_and_what_was_let_go_before_it_was_sent() {
    let all = queue(&[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a")]);
    let kept = |seqs: &[u64]| {
        let mut queue = all.clone();
        queue.generations.retain(|generation| seqs.contains(&generation.seq.0));
        queue
    };
    for (sent, here, lacking, gone) in [
        (&[][..], &[1, 2, 3, 4, 5][..], &[1, 2, 3, 4, 5][..], 0),
        (&[1, 2], &[2, 3, 4, 5], &[3, 4, 5], 0),
        (&[1, 2], &[4, 5], &[4, 5], 1),
        (&[], &[4, 5], &[4, 5], 3),
        // What was there once may go, and what is older than that does not count.
        (&[1, 2, 3, 4, 5], &[4, 5], &[], 0),
        (&[5], &[4, 5], &[4], 0),
    ] {
        let tracking = Tracking { marks: marks(&[], Some(&kept(sent))), ..Tracking::default() };
        let found = tracking.lacks(&kept(here));
        let seqs: Vec<u64> = found.generations.iter().map(|generation| generation.seq.0).collect();
        assert_eq!((seqs.as_slice(), found.gone), (lacking, gone), "{sent:?} {here:?}");
    }
    let mut damaged = all.clone();
    damaged.generations[4].health = Health::Damaged;
    let tracking = Tracking { marks: marks(&[], Some(&kept(&[1, 2, 3, 4]))), ..Tracking::default() };
    assert_eq!(tracking.lacks(&damaged).generations, [], "what is damaged cannot be sent");
}

#[test]
fn a_text_that_is_clean_can_be_shown() {
    for (text, expected) in
        [("ann(0)", "ann(0)"), ("ann\tb", "ann?b"), ("\u{1b}[2J\u{9b}1m", "?[2J?1m"), ("äöü", "äöü")]
    {
        assert_eq!(clean(text), expected);
    }
    assert_eq!(clean(&"ä".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX);
    assert_eq!(clean(&"€".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX - 1);
}

fn sealed(number: u64, content: &[u8], kind: LayerKind) -> LayerRecord {
    LayerRecord {
        form: Form::Sealed,
        manifest: Some(ManifestRef { id: ObjectId::of(content), bytes: 8 }),
        ..LayerRecord::of_tree(layer(number), kind, (1, 1), Time::from_unix_nanos(0))
    }
}

#[test]
fn a_layer_from_elsewhere_is_the_one_here_that_has_the_same_in_it() {
    let ours =
        [sealed(1, b"a", LayerKind::Delta), sealed(2, b"b", LayerKind::Delta), sealed(3, b"i", LayerKind::Image)];
    let theirs = [
        sealed(11, b"a", LayerKind::Delta),
        // One of ours stands for one of theirs only.
        sealed(12, b"a", LayerKind::Delta),
        sealed(1, b"new", LayerKind::Delta),
        sealed(13, b"i", LayerKind::Delta),
    ];
    let mut next = 100;
    let adopted = adopt(&ours, &theirs, &mut || {
        next += 1;
        layer(next)
    });
    assert_eq!(
        adopted.stack(&[layer(11), layer(12), layer(1), layer(13)]),
        [layer(1), layer(101), layer(102), layer(103)]
    );
    let new: Vec<LayerId> = adopted.new.iter().map(|(record, _)| record.id.clone()).collect();
    assert_eq!(new, [layer(101), layer(102), layer(103)]);
}

#[test]
fn two_copies_of_one_history_lose_nothing_that_may_be_kept() {
    let seqs = |queue: &Queue| queue.generations.iter().map(|generation| generation.seq.0).collect::<Vec<_>>();
    let theirs = queue(&[(1, "a"), (2, "a"), (3, "a")]);
    let ours = queue(&[(3, "a"), (4, "a")]);
    let pushed = queues(&ours, &theirs, Newer::Ours, 5);
    assert_eq!((seqs(&pushed), pushed.current, pushed.next_seq), (vec![1, 2, 3, 4], Some(Seq(4)), Seq(5)));
    assert_eq!(seqs(&queues(&ours, &theirs, Newer::Ours, 3)), [2, 3, 4]);
    assert_eq!(seqs(&queues(&ours, &theirs, Newer::Ours, 1)), [3, 4], "ours are the owner's to evict");
    let pulled = queues(&theirs, &ours, Newer::Theirs, 5);
    assert_eq!((seqs(&pulled), pulled.current), (vec![1, 2, 3, 4], Some(Seq(4))));
    let mut marked = theirs.clone();
    marked.generations.iter_mut().for_each(|generation| generation.health = Health::Good);
    let joined = queues(&marked, &theirs, Newer::Ours, 5);
    assert!(joined.generations.iter().all(|generation| generation.health == Health::Good), "what both have is as ours");
}

#[test]
fn what_reaches_into_the_host_is_named_and_taken_away() {
    let volume = Volume { source: "/".into(), target: "/host".into(), read_only: false };
    let mut spec = ContainerSpec {
        env: vec!["A=b".into()],
        volumes: vec![volume],
        cap_add: vec!["ALL".into()],
        cap_drop: vec!["CAP_CHOWN".into()],
        runtime: Some("/tmp/evil".into()),
        ..ContainerSpec::default()
    };
    let before = spec.clone();
    let withheld = Withheld::take(&mut spec);
    assert_eq!(withheld.in_words(), ["volume /:/host", "capability ALL", "runtime /tmp/evil"]);
    let expected =
        ContainerSpec { env: vec!["A=b".into()], cap_drop: vec!["CAP_CHOWN".into()], ..ContainerSpec::default() };
    assert_eq!(spec, expected);
    assert!(Withheld::take(&mut spec).is_empty());
    let steering = Withheld { runtime: Some("/\u{1b}[2J".into()), ..Withheld::default() };
    assert_eq!(steering.in_words(), ["runtime /?[2J"]);
    let mut sent = spec.clone();
    withheld.clone().restore(&mut sent);
    assert_eq!(sent, before, "whoever trusts it gets all of it");
    let mut chosen = ContainerSpec { runtime: Some("runc".into()), ..spec };
    withheld.restore(&mut chosen);
    assert_eq!(chosen.runtime.as_deref(), Some("runc"));
}

#[test]
fn a_manifest_that_is_no_parcels_is_refused_by_name() {
    for secrecy in [Secrecy::Plain, Secrecy::Encrypted] {
        let artifact = Artifact::new(secrecy, (image(1), 10), &[(image(2), 20)], BTreeMap::new());
        assert_eq!(Artifact::decode(&artifact.encode()), Ok(artifact.clone()));
        assert_eq!(artifact.secrecy(), secrecy);
        let says_what_it_is = String::from_utf8_lossy(&artifact.encode()).contains("vnd.perennial.pack");
        assert_eq!(says_what_it_is, secrecy == Secrecy::Plain);
    }
    let foreign = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;
    let found = "application/vnd.oci.image.manifest.v1+json".to_owned();
    assert_eq!(Artifact::decode(foreign), Err(ArtifactError::Foreign { found }));
    let bytes = vec![b' '; MANIFEST_BYTES_MAX + 1];
    assert_eq!(Artifact::decode(&bytes), Err(ArtifactError::TooLong { bytes: bytes.len() }));
    assert!(matches!(Artifact::decode(b"{"), Err(ArtifactError::Damaged { .. })));
    let container =
        Container::new(ContainerId::from_random([1; 8]), name("web"), (image(1), "i".into()), Time::from_unix_nanos(0));
    assert!(container.policy.push.is_none(), "nothing is sent unasked");
}

#[test]
fn a_stretch_of_an_encrypted_pack_is_in_a_few_of_its_chunks() {
    let (chunk, head) = (CHUNK_BYTES, 184);
    for (bytes, tags) in [(0, 1), (1, 1), (chunk, 1), (chunk + 1, 2), (3 * chunk, 3)] {
        let layout = Layout { head_bytes: head, bytes };
        assert_eq!(layout.file_bytes(), head + bytes + 16 * tags);
        assert_eq!(Layout::of(layout.file_bytes(), bytes), Some(layout));
        assert_eq!(layout.stretch(&(0..tags)), head..layout.file_bytes());
    }
    assert_eq!(Layout::of(chunk + 16, chunk), None, "there is no head");
    assert_eq!(Layout::of(1, u64::MAX), None);
    let layout = Layout { head_bytes: head, bytes: 2 * chunk + 100 };
    for (content, chunks) in [
        (0..0, 0..0),
        (0..1, 0..1),
        (chunk - 1..chunk, 0..1),
        (chunk - 1..chunk + 1, 0..2),
        (2 * chunk..2 * chunk + 100, 2..3),
        (5..u64::MAX, 0..3),
    ] {
        assert_eq!(layout.chunks(&content), chunks, "{content:?}");
    }
    assert_eq!(layout.content(1), chunk..2 * chunk);
    assert_eq!(layout.content(2), 2 * chunk..2 * chunk + 100);
    assert_eq!(layout.content(9), layout.bytes..layout.bytes);
    assert_eq!(layout.stretch(&(1..2)), head + chunk + 16..head + 2 * (chunk + 16));
    assert_eq!(layout.stretch(&(2..3)), head + 2 * (chunk + 16)..layout.file_bytes());
}

#[test]
fn chunks_that_are_here_are_not_fetched_again() {
    let here = [2, 3, 6];
    assert_eq!(missing(0..8, &|chunk| here.contains(&chunk)), [0..2, 4..6, 7..8]);
    assert!(missing(2..4, &|chunk| here.contains(&chunk)).is_empty());
}

fn recipients(names: &str) -> Vec<Recipient> {
    names.chars().map(|name| format!("age1{name}").parse().expect("it begins with age1")).collect()
}

#[test]
fn nobody_is_locked_out_unasked_and_nobody_is_let_in_by_what_is_there() {
    for (there, ours, refused, asked) in [
        ("a", "a", Readers::Same, Readers::Same),
        ("ab", "ba", Readers::Same, Readers::Same),
        ("a", "ab", Readers::Other, Readers::Other),
        ("ab", "a", Readers::LockedOut(recipients("b")), Readers::Other),
        ("x", "a", Readers::LockedOut(recipients("x")), Readers::Other),
    ] {
        let (there, ours) = (recipients(there), recipients(ours));
        assert_eq!(readers(&there, &ours, Dropping::Refused), refused);
        assert_eq!(readers(&there, &ours, Dropping::Asked), asked);
    }
}

#[test]
fn keys_are_told_from_other_texts_and_secret_ones_are_not_shown() {
    for wrong in ["", "age", "AGE1X", "age1\u{1b}", "ssh-ed25519 AAAA", &format!("age1{}", "q".repeat(200))] {
        assert!(wrong.parse::<Recipient>().is_err(), "{wrong:?}");
    }
    let key: PackKey = "AGE-SECRET-KEY-1QQQ".parse().expect("it begins as one");
    assert_eq!((key.reveal(), format!("{key:?}").as_str()), ("AGE-SECRET-KEY-1QQQ", "PackKey"));
    let error = "AGE-SECRET-KEY-2QQQ".parse::<PackKey>().expect_err("it does not begin as one");
    assert!(!error.to_string().contains("QQQ"), "{error}");
}

#[test]
fn the_place_of_an_encrypted_image_tells_nothing_to_whoever_has_not_the_key() {
    let place = hidden("AGE-SECRET-KEY-1A", &image(1));
    assert_eq!(place, hidden("AGE-SECRET-KEY-1A", &image(1)));
    assert_ne!(place, hidden("AGE-SECRET-KEY-1B", &image(1)));
    assert_ne!(place, hidden("AGE-SECRET-KEY-1A", &image(2)));
    assert_eq!(of_hidden_image("team", &place), format!("team/perennial-images/{place}"));
}
