//! Rolling back, undoing it, and what happens to the run and the generations around it (rows A19 to A21, A32, A-Q7).

use crate::world::{Course, World, seqs};
use perennial_core::container::StartMode;
use perennial_core::generations::choose::{ChooseError, Selector, choose};
use perennial_core::generations::rollback::{RollbackPlan, apply, hold, mark, plan, plan_undo};
use perennial_core::generations::{Frozen, Health, Kind};
use perennial_core::id::Seq;

#[test]
fn a32_a_rollback_quarantines_what_is_newer_and_deletes_nothing() {
    let mut world = World::with_exits(5, 5);
    let planned = world.roll_back_to(2);
    assert_eq!(
        planned,
        RollbackPlan {
            target: Seq(2),
            from: Some(Seq(5)),
            tail: Some(Seq(5)),
            quarantine: seqs(&[3, 4, 5]),
            release: vec![],
        }
    );
    assert_eq!(world.listed(), [1, 2, 3, 4, 5]);
    assert_eq!(world.quarantined(), [3, 4, 5]);
    assert_eq!(world.current(), Some(2));
}

#[test]
fn a32_the_next_exit_descends_from_the_chosen_one() {
    let mut world = World::with_exits(9, 5);
    world.roll_back_to(2);
    world.run(&Course::clean());
    assert_eq!(world.generation(6).parent, Some(Seq(2)));
    assert_eq!(world.generation(6).layers[1..], world.generation(2).layers);
    assert!(!world.generation(6).quarantined);
    assert_eq!(world.quarantined(), [3, 4, 5]);
    assert_eq!(world.current(), Some(6));
}

#[test]
fn a32_a_lost_run_after_a_rollback_goes_on_from_the_chosen_one() {
    let mut world = World::with_exits(9, 5);
    world.roll_back_to(2);
    let run = world.start(StartMode::Mount);
    assert_eq!(run.origin, Some(Seq(2)));
    world.step(perennial_core::container::Event::Discarded { run: run.id }).unwrap();
    assert_eq!(world.next_run(StartMode::Mount).origin, Some(Seq(2)));
    world.lose();
    assert_eq!(world.generation(6).parent, Some(Seq(2)));
    assert_eq!(world.next_run(StartMode::Mount).origin, Some(Seq(6)), "its salvage, not 5");
}

#[test]
fn a32_rolling_forward_releases_the_chosen_one_and_its_lineage() {
    let mut world = World::with_exits(9, 5);
    world.roll_back_to(2);
    world.run(&Course::clean());
    let planned = world.roll_back_to(5);
    assert_eq!(planned.release, seqs(&[3, 4, 5]));
    assert_eq!(planned.quarantine, seqs(&[6]));
    assert_eq!(world.quarantined(), [6]);
    let planned = world.roll_back_to(6);
    assert_eq!((planned.quarantine, planned.release), (vec![], seqs(&[6])), "3 to 5 are older than 6");
    let planned = world.roll_back_to(4);
    assert_eq!(planned.quarantine, seqs(&[5, 6]));
}

#[test]
fn a32_quarantined_ones_age_out_first_in_first_out() {
    let mut world = World::with_exits(5, 5);
    world.roll_back_to(2);
    for left in [[2, 3, 4, 5, 6], [3, 4, 5, 6, 7], [4, 5, 6, 7, 8]] {
        world.run(&Course::clean());
        assert_eq!(world.listed(), left);
    }
}

#[test]
fn a32_an_undo_restores_exactly() {
    let mut world = World::with_exits(9, 3);
    world.roll_back_to(1);
    world.run(&Course::clean());
    world.run(&Course::clean());
    let before = world.queue().clone();
    for target in [1, 2, 3, 4] {
        let mut world = world.clone();
        world.roll_back_to(target);
        world.undo().unwrap();
        assert_eq!(world.queue().generations, before.generations, "after a rollback to {target}");
        assert_eq!(world.queue().current, before.current);
        world.undo().unwrap();
        assert_eq!(world.current(), Some(target), "an undo can be undone");
    }
}

#[test]
fn a32_an_undo_after_a_later_exit_quarantines_that_exit() {
    let mut world = World::with_exits(9, 5);
    world.roll_back_to(2);
    world.run(&Course::clean());
    world.run(&Course::clean());
    let planned = world.undo().unwrap();
    assert_eq!(planned.target, Seq(5));
    assert_eq!(planned.quarantine, seqs(&[6, 7]));
    assert_eq!(planned.release, seqs(&[3, 4, 5]));
    assert_eq!(world.quarantined(), [6, 7]);
    assert_eq!(world.current(), Some(5));
}

#[test]
fn a32_there_is_nothing_to_undo_before_a_rollback_or_once_its_origin_has_left() {
    let mut world = World::with_exits(1, 1);
    assert_eq!(plan_undo(world.queue()), None);
    world.container.policy.keep = 2;
    world.run(&Course::clean());
    world.roll_back_to(1);
    world.run(&Course::clean());
    world.run(&Course::clean());
    assert_eq!(world.listed(), [3, 4]);
    assert_eq!(plan_undo(world.queue()), None);
}

#[test]
fn a18_a_repeated_rollback_keeps_the_undo_of_the_first() {
    let mut world = World::with_exits(5, 5);
    world.roll_back_to(2);
    let planned = world.roll_back_to(2);
    assert_eq!((planned.quarantine, planned.release), (vec![], vec![]));
    world.undo().unwrap();
    assert_eq!(world.current(), Some(5));
    assert_eq!(world.quarantined(), [0_u64; 0]);
}

#[test]
fn a19_a_plan_for_an_older_queue_is_refused_and_changes_nothing() {
    let mut world = World::with_exits(3, 3);
    let to_first = plan(world.queue(), &Selector::Seq(Seq(1))).unwrap();
    let to_second = plan(world.queue(), &Selector::Seq(Seq(2))).unwrap();
    world.run(&Course::clean());
    let before = world.queue().clone();
    let unknown = ChooseError::UnknownSeq { seq: Seq(1), present: seqs(&[2, 3, 4]) };
    assert_eq!(apply(world.queue_mut(), &to_first), Err(unknown));
    assert_eq!(apply(world.queue_mut(), &to_second), Err(ChooseError::Changed { seq: Seq(2) }));
    assert_eq!(*world.queue(), before);

    let mut world = World::with_exits(3, 3);
    world.roll_back_to(1);
    let stale = plan_undo(world.queue()).unwrap();
    world.roll_back_to(2);
    assert_eq!(apply(world.queue_mut(), &stale), Err(ChooseError::Changed { seq: Seq(3) }));
}

#[test]
fn a19_an_unknown_generation_changes_nothing() {
    let mut world = World::with_exits(3, 5);
    let before = world.queue().clone();
    let error = world.roll_back(&Selector::Seq(Seq(2))).unwrap_err();
    assert_eq!(error.to_string(), "there is no generation 2; present are 3, 4, 5");
    assert_eq!(*world.queue(), before);
}

#[test]
fn a20_every_listed_generation_can_be_regenerated_with_its_own_layers_and_image() {
    let mut world = World::with_exits(5, 5);
    for seq in 1..=5 {
        world.roll_back_to(seq);
        let run = world.next_run(StartMode::Mount);
        assert_eq!(run.origin, Some(Seq(seq)));
        assert_eq!(run.layers, world.generation(seq).layers);
        assert_eq!(run.layers.len(), usize::try_from(seq).unwrap());
    }
}

#[test]
fn a20_a_damaged_one_is_refused_and_the_next_older_is_offered() {
    let mut world = World::with_exits(5, 3);
    mark(world.queue_mut(), Seq(3), Health::Damaged).unwrap();
    mark(world.queue_mut(), Seq(2), Health::Damaged).unwrap();
    let before = world.queue().clone();
    let error = world.roll_back(&Selector::Seq(Seq(3))).unwrap_err();
    assert_eq!(error.to_string(), "generation 3 is damaged; the nearest intact one is 1");
    mark(world.queue_mut(), Seq(1), Health::Damaged).unwrap();
    let error = world.roll_back(&Selector::Seq(Seq(3))).unwrap_err();
    assert_eq!(error.to_string(), "generation 3 is damaged");
    assert_eq!(choose(world.queue(), &Selector::LatestGood), Err(ChooseError::NoneGood));
    mark(world.queue_mut(), Seq(1), Health::Unknown).unwrap();
    assert_eq!(*world.queue(), before);
}

#[test]
fn aq7_the_run_stopped_for_a_rollback_is_kept_as_a_salvage_outside_the_capacity() {
    let mut world = World::with_exits(3, 3);
    let run = world.start(StartMode::Mount);
    assert_eq!(hold(world.queue_mut(), &Selector::Seq(Seq(1))), Ok(Seq(1)));
    let exit = world.judged(&Course::healthy());
    world.end(&run, exit);
    let appended = world.commit(&run, Frozen::Layer { bytes: 1, entries: 1 });
    assert_eq!(appended.evicted, []);
    assert!(!appended.is_blocked);
    let salvage = world.generation(4);
    assert_eq!((salvage.kind, salvage.health, salvage.clean), (Kind::Salvage, Health::Suspect, false));
    assert_eq!((salvage.exit_code, salvage.note.as_deref()), (Some(143), Some("stopped for a rollback")));
    assert_eq!(world.health(3), Health::Unknown, "a run that the owner turns away from proves nothing");

    world.roll_back_to(1);
    assert_eq!(world.current(), Some(1));
    assert_eq!(world.quarantined(), [2, 3, 4]);
    assert_eq!(world.queue().held, None);
    world.undo().unwrap();
    assert_eq!(world.current(), Some(4), "what was stopped can be gone back to");
}

#[test]
fn a19_a_generation_that_a_rollback_waits_for_is_not_evicted() {
    let mut world = World::with_exits(3, 2);
    world.lose();
    world.run(&Course::clean());
    assert_eq!(world.listed(), [1, 2, 3, 4]);
    let run = world.start(StartMode::Mount);
    hold(world.queue_mut(), &Selector::Seq(Seq(1))).unwrap();
    let exit = world.judged(&Course::clean());
    world.end(&run, exit);
    let appended = world.commit(&run, Frozen::Unchanged);
    assert_eq!(
        appended.evicted,
        seqs(&[2]),
        "the older salvage counts again, so one has to go, but not the chosen one"
    );
    assert_eq!(world.listed(), [1, 3, 4, 5]);
    world.roll_back_to(1);
    assert_eq!(world.current(), Some(1));
}

#[test]
fn a19_a_rollback_that_was_given_up_holds_nothing_after_the_next_start() {
    let mut world = World::with_exits(3, 3);
    hold(world.queue_mut(), &Selector::Seq(Seq(1))).unwrap();
    world.run(&Course::clean());
    assert_eq!(world.listed(), [2, 3, 4]);
    assert_eq!(world.generation(4).kind, Kind::Exit);
}

#[test]
fn a_mark_on_an_unknown_generation_is_refused() {
    let mut world = World::with_exits(3, 1);
    let error = mark(world.queue_mut(), Seq(9), Health::Good).unwrap_err();
    assert_eq!(error, ChooseError::UnknownSeq { seq: Seq(9), present: seqs(&[1]) });
}
