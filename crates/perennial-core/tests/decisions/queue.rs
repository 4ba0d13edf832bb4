//! The queue: append, evict, protect, share (rows A5, A14 to A16, A22, A28, A31, A33, A37, A38).

use crate::world::{BEGIN, Course, SECOND, World, image, layer, seqs};
use perennial_core::container::{ConditionKind, Event, Phase, StartMode};
use perennial_core::generations::choose::{Selector, choose};
use perennial_core::generations::{Frozen, Health, KEEP_MAX, Kind, Policy, PolicyError, commit_exit};
use perennial_core::id::Seq;
use perennial_core::time::Time;

#[test]
fn a5_the_first_run_makes_an_empty_queue_and_no_later_one_replaces_it() {
    let mut world = World::new(3);
    assert_eq!(world.container.queue, None);
    let run = world.next_run(StartMode::Mount);
    world.step(Event::StartRequested(run)).unwrap();
    assert_eq!(world.listed(), [0_u64; 0]);
    assert_eq!(world.queue().next_seq, Seq(1));

    let mut world = World::with_exits(3, 2);
    let before = world.queue().clone();
    let run = world.next_run(StartMode::Mount);
    world.step(Event::StartRequested(run)).unwrap();
    assert_eq!(*world.queue(), before);
}

#[test]
fn a5_a_queue_that_is_gone_is_not_an_empty_one() {
    let mut world = World::with_exits(3, 2);
    world.container.queue = None;
    let run = world.next_run(StartMode::Mount);
    let refusal = world.step(Event::StartRequested(run)).unwrap_err();
    assert_eq!(
        refusal,
        "container web is Dormant: a start from anything but one of its generations is not possible now"
    );

    let mut world = World::with_exits(3, 1);
    let run = world.start(StartMode::Mount);
    let exit = world.judged(&Course::clean());
    world.end(&run, exit);
    world.container.queue = None;
    let before = world.container.clone();
    let now = world.now();
    let error = commit_exit(&mut world.container, &run.id, Frozen::Unchanged, now).unwrap_err();
    assert_eq!(error.to_string(), "container web has lost its queue; run `perennial doctor`");
    assert_eq!(world.container, before);
}

#[test]
fn a14_an_exit_becomes_an_element_with_its_time_and_its_pointer() {
    let mut world = World::with_exits(3, 1);
    let run = world.start(StartMode::Mount);
    world.now += 10 * SECOND;
    let exit = world.judged(&Course { code: 3, ..Course::clean() });
    world.end(&run, exit.clone());
    world.now += SECOND;
    let appended = world.commit(&run, Frozen::Layer { bytes: 4096, entries: 3 });
    assert_eq!(appended.seq, Seq(2));
    let generation = world.generation(2);
    assert_eq!(generation.exited_at, exit.at);
    assert_eq!(generation.layers, [layer(2), layer(1)]);
    assert_eq!((generation.bytes, generation.entries), (4096, 3));
    assert_eq!(generation.kind, Kind::Exit);
    assert_eq!(generation.exit_code, Some(3));
    assert_eq!(generation.parent, Some(Seq(1)));
    assert_eq!(generation.image, image(1));
    assert_eq!(generation.mount_options, ["metacopy=off"]);
    assert_eq!(generation.run, Some(run.id));
    assert_eq!(generation.by, "root(0)");
    assert_eq!(world.container.phase, Phase::Dormant);
}

#[test]
fn a15_a_full_queue_loses_its_head_in_the_change_that_adds_its_tail() {
    for (keep, left) in [(1, vec![5]), (2, vec![4, 5]), (3, vec![3, 4, 5])] {
        let mut world = World::new(keep);
        let mut evicted = Vec::new();
        for run in 0..5 {
            let before = run.min(keep as usize);
            let appended = world.run(&Course::clean());
            assert!(!appended.is_blocked);
            assert!(world.listed().len() >= before, "the queue never holds fewer than before");
            evicted.extend(appended.evicted);
        }
        assert_eq!(world.listed(), left, "capacity {keep}");
        assert_eq!(evicted, seqs(&[1, 2, 3, 4])[..5 - keep as usize], "oldest first");
        assert_eq!(world.current(), Some(5));
        assert!(!world.container.has(ConditionKind::RetentionBlocked));
    }
}

#[test]
fn a16_a_queue_with_room_only_grows() {
    let mut world = World::new(3);
    for _ in 0..2 {
        assert_eq!(world.run(&Course::clean()).evicted, []);
    }
    assert_eq!(world.listed(), [1, 2]);
}

#[test]
fn a15_a_committed_exit_cannot_be_committed_again() {
    let mut world = World::with_exits(3, 1);
    let run = world.start(StartMode::Mount);
    let exit = world.judged(&Course::clean());
    world.end(&run, exit);
    world.commit(&run, Frozen::Unchanged);
    let before = world.container.clone();
    let now = world.now();
    let error = commit_exit(&mut world.container, &run.id, Frozen::Unchanged, now).unwrap_err();
    assert_eq!(error.to_string(), format!("container web has no exit of run {} to commit", run.id));
    assert_eq!(world.container, before);
}

#[test]
fn a22_a_crash_loop_never_pushes_out_the_clean_run() {
    for first in [Course::clean(), Course::healthy()] {
        let mut world = World::new(3);
        world.run(&first);
        for _ in 0..20 {
            world.run(&Course::quick_failure());
        }
        assert_eq!(world.listed(), [1, 20, 21]);
        assert_eq!(choose(world.queue(), &Selector::LatestGood), Ok(Seq(1)));
        world.roll_back(&Selector::LatestGood).unwrap();
        assert_eq!(world.current(), Some(1));
    }
}

#[test]
fn a22_a_loop_of_power_cuts_keeps_the_good_one_and_the_newest_salvage() {
    let mut world = World::new(2);
    world.run(&Course::clean());
    for _ in 0..10 {
        world.lose();
    }
    assert_eq!(world.listed(), [1, 10, 11]);
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Ok(Seq(1)));
}

#[test]
fn a28_the_newest_salvage_lives_outside_the_capacity() {
    let mut world = World::with_exits(3, 3);
    let appended = world.lose();
    assert_eq!(appended.evicted, []);
    assert!(!appended.is_blocked);
    assert_eq!(world.listed(), [1, 2, 3, 4]);
    let salvage = world.generation(4);
    assert_eq!((salvage.kind, salvage.health, salvage.exit_code), (Kind::Salvage, Health::Suspect, None));
    assert_eq!(salvage.note.as_deref(), Some("power loss"));
    assert_eq!(world.current(), Some(4), "the next run goes on from it");

    world.run(&Course::clean());
    assert_eq!(world.listed(), [2, 3, 4, 5]);
    for _ in 0..3 {
        world.run(&Course::clean());
    }
    assert_eq!(world.listed(), [4, 6, 7, 8], "a salvage is not pushed out by exits");

    world.lose();
    assert_eq!(world.listed(), [6, 7, 8, 9], "there is one slot: the older salvage counts again, and is the oldest");
}

#[test]
fn a31_where_all_are_pinned_the_queue_grows_and_says_so() {
    let mut world = World::with_exits(3, 3);
    for seq in 1..=3 {
        world.generation_mut(seq).pinned = true;
    }
    let appended = world.run(&Course::clean());
    assert!(appended.is_blocked);
    assert_eq!(appended.evicted, []);
    assert_eq!(world.listed(), [1, 2, 3, 4]);
    assert!(world.container.has(ConditionKind::RetentionBlocked));
    let [condition] = world.container.conditions.as_slice() else { panic!("one condition is expected") };
    assert!(condition.message.contains("unpin one or raise --keep"), "{}", condition.message);

    world.generation_mut(2).pinned = false;
    let appended = world.run(&Course::clean());
    assert_eq!(appended.evicted, seqs(&[2, 4]), "4 is neither pinned nor current any more");
    assert_eq!(world.listed(), [1, 3, 5]);
    assert!(!world.container.has(ConditionKind::RetentionBlocked));
}

#[test]
fn a31_a_bound_on_bytes_that_cannot_be_kept_is_named_as_such() {
    let mut world = World::with_exits(3, 1);
    world.container.note_bytes_blocked(1, Time::from_unix_nanos(world.now));
    let [condition] = world.container.conditions.as_slice() else { panic!("one condition is expected") };
    assert_eq!(condition.kind, ConditionKind::RetentionBlocked);
    assert!(
        condition.message.ends_with("bound on bytes (1); unpin one or raise --keep-bytes"),
        "{}",
        condition.message
    );
    world.run(&Course::clean());
    assert!(!world.container.has(ConditionKind::RetentionBlocked), "the next exit looks again");
}

#[test]
fn a31_eviction_passes_over_protected_ones_to_the_next() {
    let mut world = World::with_exits(3, 3);
    world.generation_mut(1).pinned = true;
    world.run(&Course::clean());
    assert_eq!(world.listed(), [1, 3, 4]);
}

#[test]
fn a31_the_one_seen_to_be_good_stays_in_quarantine_until_another_is_good() {
    let mut world = World::new(3);
    world.run(&Course::clean());
    world.run(&Course::healthy());
    world.generation_mut(1).health = Health::Unknown;
    world.roll_back_to(1);
    for _ in 0..5 {
        world.run(&Course::clean());
    }
    assert_eq!(world.listed(), [2, 6, 7], "2 is the only one whose state was seen to be good (I3)");
    world.run(&Course::healthy());
    world.run(&Course::clean());
    assert_eq!(world.listed(), [7, 8, 9], "8 is good now, so 2 aged out by FIFO (A32)");
}

#[test]
fn a31_with_capacity_one_the_last_good_one_stays_beside_the_tail() {
    let mut world = World::new(1);
    world.run(&Course::clean());
    let appended = world.run(&Course::quick_failure());
    assert!(appended.is_blocked);
    assert_eq!(world.listed(), [1, 2]);
    let appended = world.run(&Course::clean());
    assert!(!appended.is_blocked);
    assert_eq!(world.listed(), [3]);
}

#[test]
fn a33_a_policy_no_queue_can_follow_is_refused() {
    let policy = |keep, keep_bytes| Policy { keep, keep_bytes, ..Policy::default() };
    assert_eq!(policy(0, None).check(), Err(PolicyError::Keep { keep: 0 }));
    assert_eq!(policy(KEEP_MAX + 1, None).check(), Err(PolicyError::Keep { keep: 1001 }));
    assert_eq!(policy(1, Some(0)).check(), Err(PolicyError::KeepBytes));
    assert_eq!(policy(1, Some(1)).check(), Ok(()));
    assert_eq!(Policy { hot: Some(0), ..Policy::default() }.check(), Err(PolicyError::Hot));
    assert_eq!(Policy { hot: Some(1), ..Policy::default() }.check(), Ok(()));
    assert_eq!(policy(KEEP_MAX, None).check(), Ok(()));
}

#[test]
fn a33_a_lower_capacity_takes_effect_at_the_next_exit() {
    let mut world = World::with_exits(5, 5);
    world.container.policy.keep = 2;
    let run = world.start(StartMode::Mount);
    assert_eq!(world.listed(), [1, 2, 3, 4, 5]);
    let exit = world.judged(&Course::clean());
    world.end(&run, exit);
    assert_eq!(world.listed(), [1, 2, 3, 4, 5]);
    let appended = world.commit(&run, Frozen::Unchanged);
    assert_eq!(appended.evicted, seqs(&[1, 2, 3, 4]));
    assert_eq!(world.listed(), [5, 6]);

    let mut world = World::with_exits(5, 5);
    world.container.policy.keep = 2;
    world.generation_mut(1).pinned = true;
    world.run(&Course::clean());
    assert_eq!(world.listed(), [1, 6], "a pinned one counts, and stays");
}

#[test]
fn a33_a_damaged_record_with_capacity_zero_keeps_one() {
    let mut world = World::with_exits(3, 3);
    world.container.policy.keep = 0;
    world.run(&Course::clean());
    assert_eq!(world.listed(), [4]);
}

#[test]
fn a37_a_run_that_changed_nothing_shares_the_layers_of_its_origin() {
    for mode in [StartMode::Mount, StartMode::Unpack] {
        let mut world = World::with_exits(2, 1);
        for _ in 0..3 {
            world.run(&Course { frozen: Frozen::Unchanged, mode, ..Course::clean() });
        }
        assert_eq!(world.listed(), [3, 4]);
        for seq in [3, 4] {
            assert_eq!(world.generation(seq).layers, [layer(1)]);
            assert_eq!(world.generation(seq).bytes, 0);
        }
        assert_eq!(world.queue().layers().into_iter().collect::<Vec<_>>(), [layer(1)], "still named, so still kept");
    }
    let mut world = World::new(2);
    world.run(&Course { frozen: Frozen::Unchanged, ..Course::clean() });
    assert_eq!(world.generation(1).layers, []);
}

#[test]
fn a11_a_run_in_mode_unpack_leaves_a_generation_of_one_layer() {
    let mut world = World::with_exits(5, 3);
    assert_eq!(world.generation(3).layers, [layer(3), layer(2), layer(1)]);
    world.run(&Course { mode: StartMode::Unpack, ..Course::clean() });
    assert_eq!(world.generation(4).layers, [layer(4)]);
    world.run(&Course::clean());
    assert_eq!(world.generation(5).layers, [layer(5), layer(4)]);
}

#[test]
fn a38_a_clock_set_back_changes_no_order() {
    let mut world = World::with_exits(2, 2);
    world.now = BEGIN - 86_400 * SECOND;
    let appended = world.run(&Course::clean());
    assert_eq!(appended.evicted, seqs(&[1]));
    assert_eq!(world.listed(), [2, 3]);
    assert_eq!(world.current(), Some(3));
    assert!(world.generation(3).exited_at < world.generation(2).exited_at);
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Ok(Seq(3)));
}
