//! Random lives of a container: whatever happens in whatever order, these always hold.

use crate::world::{Course, World};
use perennial_core::check::{StoreFacts, check};
use perennial_core::container::{ConditionKind, Container, StartMode};
use perennial_core::format::{Format, decode, encode};
use perennial_core::generations::choose::Selector;
use perennial_core::generations::rollback::{RollbackPlan, apply, hold, mark, plan, plan_undo};
use perennial_core::generations::{Appended, Frozen, Health, Kind, Queue};
use perennial_core::id::Seq;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Debug, Clone)]
enum Action {
    Run(Course),
    Lose,
    RollBack(usize),
    RollBackWhileRunning(usize),
    RollBackToLatestGood,
    Undo,
    Pin(usize),
    Unpin(usize),
    Mark(usize, Health),
    Keep(u32),
    SetClock(i64),
}

fn course() -> impl Strategy<Value = Course> {
    let frozen = prop_oneof![
        1 => Just(Frozen::Unchanged),
        3 => (1_u64..100_000, 1_u64..50).prop_map(|(bytes, entries)| Frozen::Layer { bytes, entries }),
    ];
    let code = prop_oneof![3 => Just(0), 2 => 1..=255];
    let mode = prop_oneof![4 => Just(StartMode::Mount), 1 => Just(StartMode::Unpack)];
    (0_i64..200, code, any::<bool>(), any::<Option<bool>>(), frozen, mode).prop_map(
        |(up_s, code, was_stopped, check, frozen, mode)| Course { up_s, code, was_stopped, check, frozen, mode },
    )
}

fn health() -> impl Strategy<Value = Health> {
    prop::sample::select(vec![Health::Good, Health::Unknown, Health::Suspect, Health::Damaged])
}

fn action() -> impl Strategy<Value = Action> {
    let place = || 0_usize..10;
    prop_oneof![
        8 => course().prop_map(Action::Run),
        1 => Just(Action::Lose),
        2 => place().prop_map(Action::RollBack),
        1 => place().prop_map(Action::RollBackWhileRunning),
        1 => Just(Action::RollBackToLatestGood),
        1 => Just(Action::Undo),
        1 => place().prop_map(Action::Pin),
        1 => place().prop_map(Action::Unpin),
        1 => (place(), health()).prop_map(|(place, health)| Action::Mark(place, health)),
        1 => (1_u32..7).prop_map(Action::Keep),
        1 => (-1_000_000_i64..1_000_000).prop_map(Action::SetClock),
    ]
}

/// The generation at a place counted round the list.
fn pick(world: &World, place: usize) -> Option<Seq> {
    let generations = &world.container.queue.as_ref()?.generations;
    let index = place.checked_rem(generations.len())?;
    generations.get(index).map(|generation| generation.seq)
}

/// What eviction must not take, said in other words than the code's.
fn must_stay(before: &Queue, after: &Queue) -> BTreeSet<Seq> {
    let pinned = before.generations.iter().filter(|g| g.pinned).map(|g| g.seq);
    let good = |g: &&perennial_core::generations::Generation| g.health == Health::Good;
    let newest_good = after.generations.iter().rev().filter(|g| !g.quarantined).find(good);
    let last_good = after.last_good().map(|g| g.seq).filter(|seq| before.get(*seq).is_some());
    let salvage =
        after.generations.iter().chain(&before.generations).filter(|g| g.kind == Kind::Salvage).map(|g| g.seq);
    pinned.chain(newest_good.map(|g| g.seq)).chain(last_good).chain(before.held).chain(salvage.max()).collect()
}

fn check_append(before: &Queue, world: &World, appended: &Appended, keep: u32) {
    let after = world.queue();
    assert_eq!(appended.seq, before.next_seq, "numbers are given out one by one");
    assert_eq!(after.next_seq, appended.seq.next());
    assert_eq!(after.current, Some(appended.seq), "the new tail is current");
    assert!(appended.evicted.is_sorted(), "oldest first");
    let mut expected: Vec<Seq> = before.generations.iter().map(|g| g.seq).collect();
    expected.push(appended.seq);
    expected.retain(|seq| !appended.evicted.contains(seq));
    let listed: Vec<Seq> = after.generations.iter().map(|g| g.seq).collect();
    assert_eq!(listed, expected, "what was not evicted is still there, in order");
    for seq in must_stay(before, after) {
        assert!(after.get(seq).is_some(), "{seq} was protected");
    }
    let has_good = |queue: &Queue| queue.generations.iter().any(|g| g.health == Health::Good);
    assert!(has_good(after) || !has_good(before), "the last good generation was lost");
    let protected = after.protected();
    let is_over = after.generations.len()
        > keep as usize + usize::from(after.generations.iter().any(|g| g.kind == Kind::Salvage));
    assert_eq!(appended.is_blocked, is_over, "over the bound exactly where it says so");
    if is_over {
        assert!(listed.iter().all(|seq| protected.contains(seq)), "only protected ones are over the bound");
    }
    assert_eq!(world.container.has(ConditionKind::RetentionBlocked), is_over);
}

fn carry_out(world: &mut World, planned: &RollbackPlan) {
    let before = world.queue().clone();
    apply(world.queue_mut(), planned).expect("the plan is fresh");
    let after = world.queue();
    assert_eq!(after.current, Some(planned.target));
    assert_eq!(planned.from, before.current);
    let flipped = |to: bool| -> BTreeSet<Seq> {
        let pairs = before.generations.iter().zip(&after.generations);
        pairs.filter(|(b, a)| b.quarantined != a.quarantined && a.quarantined == to).map(|(b, _)| b.seq).collect()
    };
    assert_eq!(flipped(true), planned.quarantine.iter().copied().collect(), "the dry run said so");
    assert_eq!(flipped(false), planned.release.iter().copied().collect(), "the dry run said so");
    let mut expected = before;
    for generation in &mut expected.generations {
        generation.quarantined = after.get(generation.seq).is_some_and(|g| g.quarantined);
    }
    assert_eq!(expected.generations, after.generations, "and nothing else");
}

fn act(world: &mut World, action: &Action) {
    let keep = world.container.policy.keep;
    let before = world.container.queue.clone().unwrap_or_default();
    match action {
        Action::Run(course) => {
            let appended = world.run(course);
            check_append(&before, world, &appended, keep);
        }
        Action::Lose => {
            let appended = world.lose();
            check_append(&before, world, &appended, keep);
        }
        Action::RollBack(place) => {
            let Some(seq) = pick(world, *place) else { return };
            let Ok(planned) = plan(world.queue(), &Selector::Seq(seq)) else { return };
            carry_out(world, &planned);
            assert!(world.queue().generations.iter().all(|g| g.seq <= seq || g.quarantined));
        }
        Action::RollBackWhileRunning(place) => {
            let Some(seq) = pick(world, *place) else { return };
            let run = world.start(StartMode::Mount);
            if hold(world.queue_mut(), &Selector::Seq(seq)).is_ok() {
                let before = world.queue().clone();
                let exit = world.judged(&Course::long());
                world.end(&run, exit);
                let appended = world.commit(&run, Frozen::Unchanged);
                check_append(&before, world, &appended, keep);
                let planned = plan(world.queue(), &Selector::Seq(seq)).expect("it was held");
                carry_out(world, &planned);
            } else {
                world.step(perennial_core::container::Event::Discarded { run: run.id }).expect("it runs");
            }
        }
        Action::RollBackToLatestGood => {
            if before.generations.is_empty() {
                return;
            }
            let Ok(planned) = plan(&before, &Selector::LatestGood) else { return };
            assert!(before.get(planned.target).is_some_and(|g| !g.quarantined && g.health != Health::Damaged));
            carry_out(world, &planned);
        }
        Action::Undo => {
            let Some(planned) = plan_undo(&before) else { return };
            carry_out(world, &planned);
        }
        Action::Pin(place) | Action::Unpin(place) => {
            let Some(seq) = pick(world, *place) else { return };
            world.generation_mut(seq.0).pinned = matches!(action, Action::Pin(_));
        }
        Action::Mark(place, health) => {
            let Some(seq) = pick(world, *place) else { return };
            mark(world.queue_mut(), seq, *health).expect("it is listed");
        }
        Action::Keep(keep) => world.container.policy.keep = *keep,
        Action::SetClock(by_s) => world.now += by_s * crate::world::SECOND,
    }
}

fn check_always(world: &World) {
    let Some(queue) = &world.container.queue else { return };
    assert!(queue.generations.is_sorted_by(|a, b| a.seq < b.seq), "numbers rise strictly");
    assert!(queue.generations.iter().all(|g| g.seq < queue.next_seq));
    assert!(queue.generations.iter().all(|g| g.parent.is_none_or(|parent| parent < g.seq)));
    assert_eq!(queue.current.is_some(), !queue.generations.is_empty());
    if let Some(current) = queue.current {
        assert!(queue.get(current).is_some_and(|g| !g.quarantined), "current is listed and not in quarantine");
    }
    assert!(queue.last_good().is_none_or(|g| queue.protected().contains(&g.seq)));
    let layers = queue.layers();
    let facts = StoreFacts {
        containers: vec![world.container.clone()],
        images: [world.container.image.clone()].into(),
        layer_records: layers.clone(),
        layer_trees: layers,
        ..StoreFacts::default()
    };
    let errors: Vec<_> =
        check(&facts).into_iter().filter(|f| f.severity == perennial_core::check::Severity::Error).collect();
    assert_eq!(errors, [], "doctor agrees");
    let bytes = encode(Format::Container, &world.container);
    assert_eq!(decode::<Container>(Format::Container, &bytes).as_ref(), Ok(&world.container));
}

/// A life of a few dozen actions, on a container that keeps a few.
fn life() -> impl Strategy<Value = (u32, Vec<Action>)> {
    (1_u32..6, prop::collection::vec(action(), 1..60))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn whatever_happens_nothing_protected_leaves_and_every_plan_is_kept((keep, actions) in life()) {
        let mut world = World::new(keep);
        for action in &actions {
            act(&mut world, action);
            assert!(world.is_resting());
            check_always(&world);
        }
    }

    #[test]
    fn an_undo_of_any_rollback_restores_exactly((keep, actions) in life(), place in 0_usize..10) {
        let mut world = World::new(keep);
        actions.iter().for_each(|action| act(&mut world, action));
        let Some(seq) = pick(&world, place) else { return Ok(()) };
        let before = world.queue().clone();
        let Ok(planned) = plan(&before, &Selector::Seq(seq)) else { return Ok(()) };
        let changes = before.current != Some(seq) || !planned.quarantine.is_empty() || !planned.release.is_empty();
        carry_out(&mut world, &planned);
        if changes {
            let planned = plan_undo(world.queue()).expect("there was a rollback");
            carry_out(&mut world, &planned);
        }
        assert_eq!(&world.queue().generations, &before.generations);
        assert_eq!(world.queue().current, before.current);
    }

    #[test]
    fn bytes_that_were_changed_never_make_decode_panic(
        (keep, actions) in life(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut world = World::new(keep);
        actions.iter().take(10).for_each(|action| act(&mut world, action));
        let mut bytes = encode(Format::Container, &world.container);
        for (index, byte) in &changes {
            let place = index.index(bytes.len());
            bytes[place] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(container) = decode::<Container>(Format::Container, &bytes) {
            let again = encode(Format::Container, &container);
            assert_eq!(decode::<Container>(Format::Container, &again).as_ref(), Ok(&container));
            drop(check(&StoreFacts { containers: vec![container], ..StoreFacts::default() }));
        }
    }

    #[test]
    fn any_bytes_never_make_decode_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for format in Format::ALL {
            assert!(decode::<Container>(format, &bytes).is_err());
        }
    }

    #[test]
    fn any_text_never_makes_parsing_panic(text in "\\PC{0,40}", clock in "[0-9TZ:.,+ -]{0,36}") {
        for text in [text, clock] {
            drop(Selector::parse_at(&text));
            drop(Selector::parse_seq(&text));
        }
    }
}
