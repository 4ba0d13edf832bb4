//! What `gc` plans: everything dead and nameless, nothing else.

use perennial_core::collect::{CollectFacts, CollectPlan, LostRun, RunContent, SizedLayer, ViewFacts, plan};
use perennial_core::container::{Container, Event, Run, StartMode};
use perennial_core::generations::Queue;
use perennial_core::id::{ContainerId, Digest, LayerId, RunId};
use perennial_core::time::Time;

fn layer(number: u64) -> LayerId {
    LayerId::from_random(number.to_be_bytes())
}

fn run_id(number: u64) -> RunId {
    RunId::from_random(number.to_be_bytes())
}

fn sized(number: u64) -> SizedLayer {
    SizedLayer { id: layer(number), bytes: number * 1000 }
}

/// A container with run 1, which will make layer 1 over image layer 2.
fn running() -> Container {
    let image = Digest::from_sha256(&[1; 32]);
    let now = Time::from_unix_nanos(0);
    let id = ContainerId::from_random([7; 8]);
    let container =
        Container::new(id, "web".parse().expect("the fixture is valid"), (image.clone(), "box".into()), now);
    let run = Run {
        id: run_id(1),
        epoch: 1,
        origin: None,
        image,
        layers: vec![],
        image_layers: vec![layer(2)],
        mode: StartMode::Mount,
        mount_options: vec![],
        layer: layer(1),
        command_overridden: false,
        given: None,
        requested_at: now,
        by: "root(0)".into(),
    };
    container.step(Event::StartRequested(run)).expect("the fixture is valid")
}

fn sound() -> CollectFacts {
    CollectFacts {
        containers: vec![running()],
        layer_records: vec![sized(2)],
        layer_dirs: [layer(1), layer(2)].into(),
        image_layers: [layer(2)].into(),
        run_traces: [run_id(1)].into(),
        logs: [ContainerId::from_random([7; 8])].into(),
        ..CollectFacts::default()
    }
}

#[test]
fn a_sound_store_has_nothing_to_collect() {
    assert!(plan(&CollectFacts::default()).is_empty());
    assert_eq!(plan(&sound()), CollectPlan::default());
    assert!(running().queue.is_some_and(|queue| queue == Queue::default()));
}

#[test]
fn a28_a_run_without_its_supervisor_is_recovered_and_its_layer_kept() {
    let facts = CollectFacts { unsupervised: [run_id(1)].into(), ..sound() };
    let lost = LostRun { container: "web".parse().unwrap(), run: run_id(1) };
    assert_eq!(plan(&facts), CollectPlan { recover: vec![lost], ..CollectPlan::default() });
}

#[test]
fn a28_a_nameless_run_with_changes_is_kept_and_one_without_is_freed() {
    let run_dirs = vec![(run_id(5), RunContent::Nothing), (run_id(6), RunContent::Changes)];
    // What is left of a run beside its directory goes with it, or stays with it.
    let run_traces = [run_id(1), run_id(5), run_id(6), run_id(8)].into();
    let planned = plan(&CollectFacts { run_dirs, run_traces, ..sound() });
    assert_eq!((planned.runs.clone(), planned.set_aside.clone()), (vec![run_id(5), run_id(8)], vec![run_id(6)]));
    let only_set_aside = CollectPlan { set_aside: vec![run_id(6)], ..CollectPlan::default() };
    assert!(only_set_aside.is_empty(), "what is kept is nothing to do");
}

#[test]
fn layers_nothing_names_are_freed_with_or_without_a_record() {
    let facts = CollectFacts {
        layer_records: vec![sized(2), sized(3)],
        layer_dirs: [layer(1), layer(2), layer(3), layer(4)].into(),
        ..sound()
    };
    assert_eq!(plan(&facts).layers, [sized(3), SizedLayer { id: layer(4), bytes: 0 }]);
    // A directory without a record may be one that is being made right now.
    let planned = plan(&CollectFacts { is_making_layers: true, staging: vec!["x".into()], ..facts });
    assert_eq!((planned.layers, planned.staging), (vec![sized(3)], vec![]));
}

#[test]
fn a_mounted_view_keeps_its_layers_and_a_stale_one_does_not() {
    let view = |is_mounted| ViewFacts { target: "/mnt".into(), layers: vec![layer(3)], is_mounted };
    let facts = |view| CollectFacts {
        layer_records: vec![sized(2), sized(3)],
        layer_dirs: [layer(3)].into(),
        views: vec![view],
        ..sound()
    };
    assert_eq!(plan(&facts(view(true))), CollectPlan::default());
    let planned = plan(&facts(view(false)));
    assert_eq!((planned.views, planned.layers), (vec!["/mnt".to_owned()], vec![sized(3)]));
}

#[test]
fn logs_of_containers_that_are_gone_are_freed() {
    let gone = ContainerId::from_random([8; 8]);
    let planned = plan(&CollectFacts { logs: [gone.clone()].into(), trash: vec!["t".into()], ..sound() });
    assert_eq!((planned.logs, planned.trash), (vec![gone], vec!["t".to_owned()]));
}
