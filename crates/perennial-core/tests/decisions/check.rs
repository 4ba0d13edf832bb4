//! What `doctor` finds: nothing in a sound store, and each thing that can be wrong.

use crate::world::{World, image, layer};
use perennial_core::check::{Finding, Severity, StoreFacts, check};
use perennial_core::container::{ConditionKind, Phase, StartMode};
use perennial_core::id::{RunId, Seq};

fn facts_of(world: &World) -> StoreFacts {
    let queue = world.container.queue.clone().unwrap_or_default();
    let base = layer(1 << 40);
    let all = queue.layers().into_iter().chain([base.clone()]).collect::<std::collections::BTreeSet<_>>();
    StoreFacts {
        containers: vec![world.container.clone()],
        images: [image(1)].into(),
        layer_records: all.clone(),
        layer_trees: all,
        image_layers: [base].into(),
        view_layers: [].into(),
        held: [].into(),
        run_dirs: world.container.phase.run().map(|run| run.id.clone()).into_iter().collect(),
        mounts: world.container.phase.run().map(|run| run.id.clone()).into_iter().collect(),
    }
}

fn shown(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|f| format!("{:?} {}: {}", f.severity, f.object, f.message)).collect()
}

fn findings_after(change: impl FnOnce(&mut World, &mut StoreFacts)) -> Vec<String> {
    let mut world = World::with_exits(3, 2);
    let mut facts = facts_of(&world);
    change(&mut world, &mut facts);
    facts.containers = vec![world.container];
    let findings = check(&facts);
    assert!(findings.iter().all(|finding| !finding.hint.is_empty()));
    shown(&findings)
}

#[test]
fn a_sound_store_has_no_findings() {
    assert_eq!(shown(&check(&StoreFacts::default())), [""; 0]);
    assert_eq!(shown(&check(&facts_of(&World::new(3)))), [""; 0]);
    let mut world = World::with_exits(3, 2);
    assert_eq!(shown(&check(&facts_of(&world))), [""; 0]);
    world.roll_back_to(1);
    world.start(StartMode::Mount);
    assert_eq!(shown(&check(&facts_of(&world))), [""; 0]);
}

#[test]
fn contradictions_in_a_queue_are_errors() {
    let found = findings_after(|world, _| world.queue_mut().generations.reverse());
    assert_eq!(found, ["Error container web: generations are not in order of their numbers"]);
    let found = findings_after(|world, _| world.queue_mut().next_seq = Seq(2));
    assert_eq!(found, ["Error container web: the next generation's number is taken"]);
    let found = findings_after(|world, _| world.queue_mut().current = Some(Seq(9)));
    assert_eq!(found, ["Error container web: current generation 9 is not in the queue"]);
    let found = findings_after(|world, _| world.queue_mut().current = None);
    assert_eq!(found, ["Error container web: has generations but none is current"]);
    let found = findings_after(|world, _| world.generation_mut(2).quarantined = true);
    assert_eq!(found, ["Error container web: its current generation is in quarantine"]);
    let found = findings_after(|world, _| world.container.policy.keep = 0);
    assert_eq!(found, ["Error container web: a container cannot keep 0 generations; from 1 to 1000 are possible"]);
}

#[test]
fn a5_a_lost_queue_is_an_error() {
    let found = findings_after(|world, facts| {
        world.container.queue = None;
        facts.layer_records = facts.image_layers.clone();
        facts.layer_trees = facts.image_layers.clone();
    });
    assert_eq!(found, ["Error container web: is Dormant but has no queue"]);
}

#[test]
fn what_a_generation_needs_and_is_missing_is_an_error() {
    let found = findings_after(|_, facts| assert!(facts.layer_trees.remove(&layer(2))));
    assert_eq!(found, [format!("Error generation web@2: its layer {} is missing on disk", layer(2))]);
    let found = findings_after(|_, facts| assert!(facts.layer_records.remove(&layer(2))));
    assert_eq!(found, [format!("Error generation web@2: its layer {} has no record", layer(2))]);
    let found = findings_after(|_, facts| facts.images.clear());
    assert_eq!(
        found,
        [
            format!("Error container web: its image {} is missing", image(1)),
            format!("Error generation web@1: its image {} is missing", image(1)),
            format!("Error generation web@2: its image {} is missing", image(1)),
        ]
    );
    let base = layer(1 << 40);
    let found = findings_after(|_, facts| assert!(facts.layer_trees.remove(&base)));
    assert_eq!(found, [format!("Error layer {base}: a layer of an image is missing on disk")]);
}

#[test]
fn what_nothing_names_is_found() {
    let (run, orphan) = (RunId::from_random([9; 8]), layer(77));
    let found = findings_after(|_, facts| assert!(facts.run_dirs.insert(run.clone())));
    assert_eq!(found, [format!("Warning run {run}: a run directory that no container names")]);
    let found = findings_after(|_, facts| assert!(facts.mounts.insert(run.clone())));
    assert_eq!(found, [format!("Error run {run}: a union is still mounted but no container runs in it")]);
    let found = findings_after(|_, facts| assert!(facts.layer_trees.insert(orphan.clone())));
    assert_eq!(found, [format!("Warning layer {orphan}: a layer directory without a record")]);
    let found = findings_after(|_, facts| assert!(facts.layer_records.insert(orphan.clone())));
    assert_eq!(found, [format!("Note layer {orphan}: a layer that nothing names")]);
}

#[test]
fn a_running_container_needs_its_directory_and_its_epoch() {
    let mut world = World::with_exits(3, 2);
    let run = world.start(StartMode::Mount);
    let mut facts = facts_of(&world);
    facts.run_dirs.clear();
    facts.containers[0].epoch += 1;
    assert_eq!(
        shown(&check(&facts)),
        [
            format!("Error container web: run {} has epoch 3, the container 4", run.id),
            format!("Error container web: is Running but the directory of run {} is missing", run.id),
        ]
    );
}

#[test]
fn a26_two_containers_with_one_name_are_an_error() {
    let world = World::new(3);
    let mut facts = facts_of(&world);
    facts.containers.push(world.container.clone());
    let [finding] = check(&facts).try_into().unwrap();
    assert_eq!(finding.severity, Severity::Error);
    assert_eq!(finding.message, "another container has the same name or id");
}

#[test]
fn i9_conditions_are_shown() {
    let mut world = World::with_exits(3, 2);
    let now = world.now();
    world.container.raise(ConditionKind::RetentionBlocked, now, "all pinned".into());
    assert_eq!(world.container.phase, Phase::Dormant);
    let found = shown(&check(&facts_of(&world)));
    assert_eq!(found, [format!("Warning container web: RetentionBlocked since {now}: all pinned")]);
}
