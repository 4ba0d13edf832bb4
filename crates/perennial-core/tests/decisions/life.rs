//! A container's states, who may move it, and what its runs show (rows A7, A8, A26, A28, A30, A-Q12, I1).

use crate::world::{BEGIN, Course, SECOND, World, image, layer};
use perennial_core::container::{ConditionKind, Event, Exit, Phase, StartFault, StartMode};
use perennial_core::generations::health::{RunFacts, judge, salvage, set_aside};
use perennial_core::generations::{Frozen, Health, Kind};
use perennial_core::id::{RunId, Seq};
use perennial_core::time::Time;

fn exit() -> Exit {
    salvage(Time::from_unix_nanos(BEGIN), "test")
}

/// The container in each of its phases, with the id of its run or of a run it never had.
fn in_each_phase() -> Vec<(World, RunId)> {
    let nobody = RunId::from_random([9; 8]);
    let created = World::new(3);
    let mut starting = World::with_exits(3, 1);
    let run = starting.next_run(StartMode::Mount);
    starting.step(Event::StartRequested(run.clone())).expect("the container rests");
    let mut running = World::with_exits(3, 1);
    let running_run = running.start(StartMode::Mount);
    let mut exiting = running.clone();
    exiting.end(&running_run, exit());
    let dormant = World::with_exits(3, 1);
    vec![
        (created, nobody.clone()),
        (starting, run.id),
        (running, running_run.id.clone()),
        (exiting, running_run.id),
        (dormant, nobody),
    ]
}

fn events(world: &mut World, id: &RunId) -> Vec<Event> {
    let (run, at, reason) = (id.clone(), world.now(), String::from("reason"));
    vec![
        Event::StartRequested(world.next_run(StartMode::Mount)),
        Event::Started { run: run.clone(), pid: 1, at },
        Event::StartFailed { run: run.clone(), fault: StartFault::Container, reason: reason.clone(), at },
        Event::Ended { run: run.clone(), exit: exit() },
        Event::ExitFailed { run: run.clone(), reason, at },
        Event::Discarded { run },
    ]
}

#[test]
fn every_event_moves_every_phase_as_the_table_says() {
    // Rows: phases. Columns: start requested, started, start failed, ended, exit failed, discarded.
    let table = [
        ("Created", ["Starting", "-", "-", "-", "-", "-"]),
        ("Starting", ["-", "Running", "Dormant", "Exiting", "-", "Dormant"]),
        ("Running", ["-", "-", "-", "Exiting", "-", "Dormant"]),
        // What ends it once more here is a salvage.
        ("Exiting", ["-", "-", "-", "Exiting", "Exiting", "Dormant"]),
        ("Dormant", ["Starting", "-", "-", "-", "-", "-"]),
    ];
    for ((world, id), (phase, row)) in in_each_phase().into_iter().zip(table) {
        assert_eq!(world.container.phase.name(), phase);
        for (event, expected) in events(&mut world.clone(), &id).into_iter().zip(row) {
            let moved = world.container.clone().step(event.clone());
            let reached = moved.map_or("-", |container| container.phase.name());
            assert_eq!(reached, expected, "{phase} and {event:?}");
        }
    }
}

#[test]
fn a27_an_exit_becomes_a_salvage_and_nothing_else() {
    let mut world = World::with_exits(3, 1);
    let run = world.start(StartMode::Mount);
    let observed = Exit { code: Some(0), kind: Kind::Exit, health: Health::Unknown, clean: true, note: None, ..exit() };
    world.end(&run, observed.clone());
    world.step(Event::Ended { run: run.id.clone(), exit: observed }).unwrap_err();
    world.step(Event::Ended { run: run.id.clone(), exit: exit() }).unwrap();
    let Phase::Exiting { run: present, exit: saved } = &world.container.phase else { panic!("{:?}", world.container) };
    assert_eq!((&present.id, saved.kind), (&run.id, Kind::Salvage));
}

#[test]
fn i1_an_event_of_another_run_is_refused() {
    let other = RunId::from_random([8; 8]);
    for (mut world, _) in in_each_phase() {
        for event in events(&mut world.clone(), &other) {
            if matches!(event, Event::StartRequested(_)) {
                continue;
            }
            let before = world.container.clone();
            assert!(world.step(event).is_err());
            assert_eq!(world.container, before);
        }
    }
}

#[test]
fn a26_a_start_with_an_epoch_that_is_not_newer_is_refused() {
    let mut world = World::with_exits(3, 2);
    assert_eq!(world.container.epoch, 2);
    for (epoch, is_admitted) in [(0, false), (1, false), (2, false), (3, true), (9, true)] {
        let mut world = world.clone();
        let mut run = world.next_run(StartMode::Mount);
        run.epoch = epoch;
        assert_eq!(world.step(Event::StartRequested(run)).is_ok(), is_admitted, "epoch {epoch}");
    }
    let run = world.next_run(StartMode::Mount);
    world.step(Event::StartRequested(run.clone())).unwrap();
    let second = world.step(Event::StartRequested(run)).unwrap_err();
    assert_eq!(second, "container web is Starting: a start is not possible now");
}

#[test]
fn a8_a_start_that_is_not_of_a_listed_generation_is_refused() {
    let mut world = World::with_exits(3, 2);
    let good = world.next_run(StartMode::Mount);
    let mut from_nothing = good.clone();
    from_nothing.origin = None;
    from_nothing.layers.clear();
    let mut from_unknown = good.clone();
    from_unknown.origin = Some(Seq(7));
    let mut with_other_layers = good.clone();
    with_other_layers.layers = vec![layer(1)];
    let mut on_other_image = good.clone();
    on_other_image.image = image(2);
    for run in [from_nothing, from_unknown, with_other_layers, on_other_image] {
        let refusal = world.step(Event::StartRequested(run.clone())).unwrap_err();
        assert!(refusal.contains("a start from anything but one of its generations"), "{run:?}: {refusal}");
    }
    let mut from_older = good.clone();
    from_older.origin = Some(Seq(1));
    from_older.layers = vec![layer(1)];
    for run in [good, from_older] {
        world.clone().step(Event::StartRequested(run)).unwrap();
    }

    let mut fresh = World::new(3);
    let mut on_other_image = fresh.next_run(StartMode::Mount);
    on_other_image.image = image(2);
    assert!(fresh.step(Event::StartRequested(on_other_image)).is_err());
}

#[test]
fn a7_a_failed_start_appends_nothing() {
    let mut world = World::with_exits(3, 2);
    let before = world.listed();
    let run = world.next_run(StartMode::Mount);
    world.step(Event::StartRequested(run.clone())).unwrap();
    let at = world.now();
    let reason = String::from("no such file");
    world.step(Event::StartFailed { run: run.id, fault: StartFault::Container, reason, at }).unwrap();
    assert_eq!(world.listed(), before);
    assert_eq!(world.current(), Some(2));
    assert!(world.is_resting());
    assert!(world.container.has(ConditionKind::StartFailed));
    world.start(StartMode::Mount);
    assert!(!world.container.has(ConditionKind::StartFailed), "a new start clears it");

    let mut first = World::new(3);
    let run = first.next_run(StartMode::Mount);
    first.step(Event::StartRequested(run.clone())).unwrap();
    let event = Event::StartFailed { run: run.id, fault: StartFault::Container, reason: "x".into(), at };
    first.step(event).unwrap();
    assert_eq!(first.container.phase, Phase::Created, "it never ran");
}

#[test]
fn a22_a_failed_start_speaks_only_against_a_state_it_was_the_fault_of() {
    for (fault, overridden, before, after) in [
        (StartFault::Container, false, Health::Unknown, Health::Suspect),
        (StartFault::Container, false, Health::Good, Health::Good),
        (StartFault::Container, false, Health::Damaged, Health::Damaged),
        (StartFault::Container, true, Health::Unknown, Health::Unknown),
        (StartFault::Host, false, Health::Unknown, Health::Unknown),
    ] {
        let mut world = World::with_exits(3, 1);
        world.generation_mut(1).health = before;
        let mut run = world.next_run(StartMode::Mount);
        run.command_overridden = overridden;
        world.step(Event::StartRequested(run.clone())).unwrap();
        let at = world.now();
        world.step(Event::StartFailed { run: run.id, fault, reason: "no".into(), at }).unwrap();
        assert_eq!(world.health(1), after, "{fault:?}, overridden {overridden}, was {before:?}");
    }
}

#[test]
fn a34_an_exit_that_fails_stays_an_exit_and_is_tried_again() {
    let mut world = World::with_exits(3, 1);
    let run = world.start(StartMode::Mount);
    let exit = world.judged(&Course::clean());
    world.end(&run, exit);
    let since = world.now();
    for reason in ["no space", "still no space"] {
        let at = world.now();
        world.step(Event::ExitFailed { run: run.id.clone(), reason: reason.into(), at }).unwrap();
        world.now += SECOND;
    }
    let [condition] = world.container.conditions.as_slice() else { panic!("one condition is expected") };
    assert_eq!((condition.since, condition.message.as_str()), (since, "still no space"));
    assert_eq!(world.listed(), [1]);
    world.commit(&run, Frozen::Unchanged);
    assert_eq!(world.listed(), [1, 2]);
    assert_eq!(world.container.conditions, []);
}

#[test]
fn a_container_whose_process_is_gone_is_not_unhealthy() {
    let mut world = World::with_exits(3, 1);
    let run = world.start(StartMode::Mount);
    let now = world.now();
    world.container.raise(ConditionKind::Unhealthy, now, "check fails".into());
    let mut discarded = world.clone();
    discarded.step(Event::Discarded { run: run.id.clone() }).unwrap();
    assert!(!discarded.container.has(ConditionKind::Unhealthy));
    world.end(&run, exit());
    assert!(!world.container.has(ConditionKind::Unhealthy));
}

#[test]
fn a28_a_run_found_without_its_supervisor_is_a_salvage_whatever_it_had_reached() {
    for started in [false, true] {
        let mut world = World::with_exits(3, 1);
        let run = world.next_run(StartMode::Mount);
        world.step(Event::StartRequested(run.clone())).unwrap();
        if started {
            let at = world.now();
            world.step(Event::Started { run: run.id.clone(), pid: 1, at }).unwrap();
        }
        world.end(&run, exit());
        world.commit(&run, Frozen::Layer { bytes: 1, entries: 1 });
        let salvage = world.generation(2);
        assert_eq!((salvage.kind, salvage.health, salvage.clean), (Kind::Salvage, Health::Suspect, false));
        assert_eq!(world.health(1), Health::Unknown);
    }
}

/// Facts of a run: seconds up, code, stopped, out of memory, last check. Then: health, clean, proves its origin.
type Judgement = ((Option<i64>, i32, bool, bool, Option<bool>), (Health, bool, bool));

#[test]
fn aq12_a_run_is_judged_as_the_table_says() {
    use Health::{Good, Suspect, Unknown};
    let table: [Judgement; 18] = [
        ((Some(10), 0, false, false, None), (Unknown, true, false)),
        ((Some(59), 0, false, false, None), (Unknown, true, false)),
        ((Some(60), 0, false, false, None), (Unknown, true, true)),
        ((Some(60), 0, false, false, Some(true)), (Good, true, true)),
        ((Some(10), 0, false, false, Some(true)), (Unknown, true, false)),
        ((Some(60), 0, false, false, Some(false)), (Suspect, true, false)),
        ((Some(10), 1, false, false, None), (Suspect, false, false)),
        ((Some(10), 1, false, false, Some(true)), (Suspect, false, false)),
        ((Some(10), 143, true, false, None), (Unknown, true, false)),
        ((Some(10), 137, true, false, Some(false)), (Suspect, true, false)),
        ((Some(60), 143, true, false, None), (Unknown, true, true)),
        ((Some(60), 143, true, false, Some(true)), (Good, true, true)),
        ((Some(60), 139, false, false, None), (Unknown, false, true)),
        ((Some(60), 1, false, false, Some(true)), (Good, false, true)),
        ((Some(60), 137, false, true, Some(true)), (Suspect, false, false)),
        ((Some(10), 137, true, true, None), (Suspect, false, false)),
        ((None, 0, false, false, None), (Unknown, true, false)),
        ((Some(-3600), 0, false, false, None), (Unknown, true, false)),
    ];
    for (facts, expected) in table {
        let (up_s, code, was_stopped, was_out_of_memory, last_check_passed) = facts;
        let ended_at = Time::from_unix_nanos(BEGIN);
        let started_at = up_s.map(|up_s| Time::from_unix_nanos(BEGIN - up_s * SECOND));
        let observed = RunFacts { started_at, ended_at, code, was_stopped, was_out_of_memory, last_check_passed };
        let exit = judge(&observed, 60);
        assert_eq!((exit.health, exit.clean, exit.proves_origin), expected, "{facts:?}");
        assert_eq!((exit.kind, exit.code, exit.at), (Kind::Exit, Some(code), ended_at));
        assert_eq!(exit.note.is_some(), was_out_of_memory);
    }
}

#[test]
fn aq12_a_process_that_never_began_did_not_stay_up_even_for_no_time() {
    let ended_at = Time::from_unix_nanos(BEGIN);
    let mut facts = RunFacts {
        started_at: None,
        ended_at,
        code: 0,
        was_stopped: false,
        was_out_of_memory: false,
        last_check_passed: None,
    };
    assert!(!judge(&facts, 0).proves_origin);
    facts.started_at = Some(ended_at);
    assert!(judge(&facts, 0).proves_origin);
}

#[test]
fn aq12_every_exit_is_saved_and_a_later_run_that_stays_up_makes_its_origin_good() {
    let mut world = World::new(9);
    world.run(&Course::quick_failure());
    world.run(&Course::clean());
    assert_eq!((world.health(1), world.health(2)), (Health::Suspect, Health::Unknown));
    world.run(&Course::long());
    assert_eq!((world.health(2), world.health(3)), (Health::Good, Health::Unknown));
    world.roll_back_to(1);
    world.run(&Course::long());
    assert_eq!(world.health(1), Health::Good, "it was suspect until it was seen to run");
    world.generation_mut(4).health = Health::Damaged;
    world.run(&Course::long());
    assert_eq!(world.health(4), Health::Damaged, "a run does not mend data");
}

#[test]
fn aq12_a_run_with_a_passing_health_check_is_good_itself() {
    let mut world = World::new(9);
    world.run(&Course::healthy());
    assert_eq!(world.health(1), Health::Good);
}

#[test]
fn aq12_what_crashes_after_a_while_is_not_clean() {
    let mut world = World::new(9);
    world.run(&Course::clean());
    world.run(&Course { code: 139, was_stopped: false, ..Course::long() });
    assert_eq!((world.health(2), world.generation(2).clean), (Health::Unknown, false));
    assert_eq!(world.queue().last_good().map(|g| g.seq), Some(Seq(1)));
}

#[test]
fn aq7_a_run_set_aside_keeps_what_was_seen_but_proves_nothing() {
    let seen = World::new(3).judged(&Course::healthy());
    let set = set_aside(seen.clone());
    assert_eq!((set.at, set.code), (seen.at, seen.code));
    assert_eq!((set.kind, set.health, set.clean, set.proves_origin), (Kind::Salvage, Health::Suspect, false, false));
    let noted = set_aside(Exit { note: Some("out of memory".into()), ..seen });
    assert_eq!(noted.note.as_deref(), Some("out of memory"));
}
