//! Records made again: which copy counts, and what is left out by name.

use perennial_core::container::{Container, Phase};
use perennial_core::generations::{Generation, Health, Kind, Queue};
use perennial_core::id::{ContainerId, Digest, LayerId, RunId, Seq};
use perennial_core::image::{Image, ImageConfig};
use perennial_core::layers::{LayerFile, LayerOrigin, LayerRecord};
use perennial_core::rebuild::{RebuildFacts, RecordCopy, plan, record_of};
use perennial_core::time::Time;
use std::collections::BTreeMap;

const IMAGE: u64 = 100;

fn at(second: u64) -> Time {
    format!("2026-11-22T10:00:{second:02}Z").parse().expect("the test gives RFC 3339")
}

fn layer(number: u64) -> LayerId {
    LayerId::from_random(number.to_be_bytes())
}

fn digest(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

fn id() -> ContainerId {
    ContainerId::from_random([1; 8])
}

fn run(number: u64) -> RunId {
    RunId::from_random(number.to_be_bytes())
}

fn file(number: u64, origin: LayerOrigin) -> (LayerFile, LayerRecord) {
    let file = LayerFile {
        id: layer(number),
        created_at: at(number % 60),
        origin,
        bytes: 4096,
        entries: 3,
        unresolved: false,
    };
    let record = record_of(&file, None);
    (file, record)
}

/// The layer that run `number` made over `below`.
fn made(number: u64, below: &[u64]) -> (LayerFile, LayerRecord) {
    let origin = LayerOrigin::Run {
        container: id(),
        name: "web".into(),
        run: run(number),
        below: below.iter().map(|number| layer(*number)).collect(),
        image: digest(1),
        exited_at: at(number),
    };
    file(number, origin)
}

/// A layer that was read from an image, over `below`.
fn read(number: u64, below: Option<&[u64]>) -> (LayerFile, LayerRecord) {
    let below = below.map(|below| below.iter().map(|number| layer(*number)).collect());
    file(number, LayerOrigin::Import { container: id(), name: "web".into(), image: digest(1), below })
}

const HELD: &str = "no generation shows it, and what there is does not tell which should: it is held";

fn held(container: &str, number: u64) -> String {
    format!("layer {} of container {container}: {HELD}", layer(number))
}

fn generation(number: u64, layers: &[u64]) -> Generation {
    Generation {
        seq: Seq(number),
        exited_at: at(number),
        kind: Kind::Exit,
        health: Health::Good,
        exit_code: Some(0),
        parent: None,
        image: digest(1),
        layers: layers.iter().map(|number| layer(*number)).collect(),
        mount_options: Vec::new(),
        run: Some(run(number)),
        bytes: 4096,
        entries: 3,
        pinned: false,
        quarantined: false,
        cold: false,
        verified_at: None,
        clean: true,
        note: None,
        by: "root".into(),
        extra: BTreeMap::new(),
    }
}

/// A copy of the record after run `epoch`.
fn copy(epoch: u64, generations: &[(u64, &[u64])]) -> RecordCopy {
    let mut container = Container::new(id(), "web".parse().expect("a valid name"), (digest(1), "box".into()), at(0));
    container.epoch = epoch;
    container.phase = Phase::Dormant;
    let generations: Vec<Generation> = generations.iter().map(|(seq, layers)| generation(*seq, layers)).collect();
    let current = generations.last().map(|generation| generation.seq);
    let next_seq = Seq(current.map_or(1, |seq| seq.0 + 1));
    container.queue = Some(Queue { next_seq, current, generations, ..Queue::default() });
    RecordCopy::Container { container: Box::new(container), layers: Vec::new() }
}

fn image_copy(names: &[&str], second: u64) -> RecordCopy {
    let image = Image {
        digest: digest(1),
        config: ImageConfig::default(),
        layers: vec![layer(IMAGE)],
        diff_ids: vec![digest(2)],
        bytes: 1,
        imported_at: at(second),
        source: "oci:box".into(),
        believed: false,
    };
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    RecordCopy::Image { image: Box::new(image), names, layers: Vec::new() }
}

fn facts(layers: Vec<(LayerFile, LayerRecord)>, copies: Vec<RecordCopy>) -> RebuildFacts {
    let mut facts = RebuildFacts { layers, copies };
    facts.layers.push(file(IMAGE, LayerOrigin::Image { diff_id: digest(2) }));
    facts.copies.push(image_copy(&["box"], 1));
    facts
}

/// The queue of a rebuild's only container as `seq: layers`, and what was found.
type Outcome = (Vec<(u64, Vec<LayerId>)>, Option<u64>, Vec<String>);

fn outcome(facts: &RebuildFacts) -> Outcome {
    let rebuilt = plan(facts);
    let queue = rebuilt.containers.first().and_then(|container| container.queue.clone()).unwrap_or_default();
    let listed = queue.generations.into_iter().map(|item| (item.seq.0, item.layers)).collect();
    let findings = rebuilt.findings.into_iter().map(|finding| format!("{}: {}", finding.object, finding.message));
    (listed, queue.current.map(|seq| seq.0), findings.collect())
}

#[test]
fn the_newest_copy_counts() {
    let facts =
        facts(vec![made(1, &[]), made(2, &[1])], vec![copy(1, &[(1, &[1])]), copy(2, &[(1, &[1]), (2, &[2, 1])])]);
    assert_eq!(outcome(&facts), (vec![(1, vec![layer(1)]), (2, vec![layer(2), layer(1)])], Some(2), vec![]));
}

#[test]
fn a_generation_without_its_layer_is_left_out_by_name() {
    let facts = facts(vec![made(1, &[])], vec![copy(2, &[(1, &[1]), (2, &[2, 1])])]);
    let found = vec![format!("generation web@2: its layer {} is gone", layer(2))];
    assert_eq!(outcome(&facts), (vec![(1, vec![layer(1)])], Some(1), found));
}

#[test]
fn a_layer_of_a_later_run_is_a_generation() {
    let facts = facts(vec![made(1, &[]), made(2, &[1]), made(3, &[2, 1])], vec![copy(1, &[(1, &[1])])]);
    let expected = vec![(1, vec![layer(1)]), (2, vec![layer(2), layer(1)]), (3, vec![layer(3), layer(2), layer(1)])];
    assert_eq!(outcome(&facts), (expected, Some(3), vec![]));
    let rebuilt = plan(&facts);
    assert_eq!(rebuilt.containers[0].queue.as_ref().unwrap().generations[2].kind, Kind::Salvage);
}

#[test]
fn a_later_run_over_lost_layers_is_left_out_by_name() {
    let facts = facts(vec![made(1, &[]), made(3, &[2, 1])], vec![copy(1, &[(1, &[1])])]);
    let found = vec![format!("layer {} of container web: its layer {} is gone", layer(3), layer(2)), held("web", 3)];
    assert_eq!(outcome(&facts), (vec![(1, vec![layer(1)])], Some(1), found));
    assert_eq!(plan(&facts).held, [layer(3)]);
}

#[test]
fn merged_layers_take_the_place_of_what_they_were_made_from() {
    let merged = file(50, LayerOrigin::Merged { of: vec![layer(3), layer(2)] });
    let facts = facts(vec![made(1, &[]), merged], vec![copy(3, &[(3, &[3, 2, 1])])]);
    assert_eq!(outcome(&facts), (vec![(3, vec![layer(50), layer(1)])], Some(3), vec![]));
}

#[test]
fn an_image_without_its_layer_takes_its_generations_along() {
    let mut facts = facts(vec![made(1, &[])], vec![copy(1, &[(1, &[1])])]);
    facts.layers.retain(|(file, _)| file.id != layer(IMAGE));
    let found = vec![
        format!("image {}: its layer {} is gone", digest(1), layer(IMAGE)),
        format!("generation web@1: its image {} is gone", digest(1)),
        held("web", 1),
    ];
    assert_eq!(outcome(&facts), (vec![], None, found));
    assert_eq!(plan(&facts).held, [layer(1)]);
}

#[test]
fn a_container_without_a_copy_is_made_of_its_layers() {
    let facts = facts(vec![made(1, &[]), made(2, &[1])], vec![]);
    let found = vec![
        "container web: there is no copy of its record: it has the generations that its layers tell of, and the settings \
         of a new container"
            .to_owned(),
    ];
    let expected = vec![(1, vec![layer(1)]), (2, vec![layer(2), layer(1)])];
    assert_eq!(outcome(&facts), (expected, Some(2), found));
    let rebuilt = plan(&facts);
    assert_eq!((&rebuilt.containers[0].id, rebuilt.containers[0].image_name.as_str()), (&id(), "box"));
    assert_eq!(rebuilt.held, []);
}

#[test]
fn a_container_without_a_copy_of_which_no_state_is_whole_is_not_made() {
    let facts = facts(vec![made(2, &[1])], vec![]);
    let found = vec![format!("layer {} of container web: its layer {} is gone", layer(2), layer(1)), held("web", 2)];
    assert_eq!(outcome(&facts), (vec![], None, found));
    assert_eq!(plan(&facts).containers, []);
}

#[test]
fn what_was_read_from_an_image_after_the_copy_is_one_generation() {
    let parts = vec![made(1, &[]), read(3, Some(&[2])), read(2, Some(&[]))];
    let facts = facts(parts, vec![copy(1, &[(1, &[1])])]);
    let expected = vec![(1, vec![layer(1)]), (2, vec![layer(3), layer(2)])];
    assert_eq!(outcome(&facts), (expected, Some(2), vec![]));
    assert_eq!(plan(&facts).containers[0].queue.as_ref().unwrap().generations[1].kind, Kind::Import);
}

#[test]
fn parts_of_unknown_order_are_held_by_name_and_a_single_one_is_a_generation() {
    let several = facts(vec![made(1, &[]), read(2, None), read(3, None)], vec![copy(1, &[(1, &[1])])]);
    assert_eq!(outcome(&several), (vec![(1, vec![layer(1)])], Some(1), vec![held("web", 2), held("web", 3)]));
    assert_eq!(plan(&several).held, [layer(2), layer(3)]);
    let single = facts(vec![made(1, &[]), read(2, None)], vec![copy(1, &[(1, &[1])])]);
    assert_eq!(outcome(&single), (vec![(1, vec![layer(1)]), (2, vec![layer(2)])], Some(2), vec![]));
}

#[test]
fn a_state_that_is_not_younger_than_the_copy_is_kept_without_becoming_the_present_one() {
    let facts = facts(vec![made(1, &[]), made(9, &[])], vec![copy(9, &[(9, &[9])])]);
    let found = vec![format!(
        "generation web@10: made of layer {}, which the copy of the record does not know and which is not younger: it was \
         evicted, or saved while the clock was wrong; it is pinned and quarantined",
        layer(1)
    )];
    assert_eq!(outcome(&facts), (vec![(9, vec![layer(9)]), (10, vec![layer(1)])], Some(9), found));
    let generation = plan(&facts).containers[0].queue.as_ref().unwrap().generations[1].clone();
    assert!(generation.pinned && generation.quarantined);
}

#[test]
fn what_became_one_with_others_is_not_told_of() {
    // Merged, with all of it still there: shown by what the copy names.
    let merged = file(50, LayerOrigin::Merged { of: vec![layer(2), layer(1)] });
    let before = facts(vec![made(1, &[]), made(2, &[1]), merged.clone()], vec![copy(2, &[(2, &[2, 1])])]);
    assert_eq!(outcome(&before), (vec![(2, vec![layer(2), layer(1)])], Some(2), vec![]));
    let after = facts(vec![made(1, &[]), made(2, &[1]), merged], vec![copy(2, &[(2, &[50])])]);
    assert_eq!(outcome(&after), (vec![(2, vec![layer(50)])], Some(2), vec![]));
    assert_eq!((plan(&before).held, plan(&after).held), (vec![], vec![]));
    // One that came from elsewhere below others, and nothing says whose it is.
    let foreign = file(50, LayerOrigin::Merged { of: vec![] });
    let alone = facts(vec![made(1, &[]), foreign], vec![copy(1, &[(1, &[1])])]);
    let found = vec![format!("layer {}: {HELD}", layer(50))];
    assert_eq!(outcome(&alone), (vec![(1, vec![layer(1)])], Some(1), found));
}

#[test]
fn names_lead_to_the_image_that_was_imported_last() {
    let mut facts = facts(vec![], vec![image_copy(&["old", "box"], 0)]);
    facts.copies.push(image_copy(&["new"], 2));
    let names: Vec<String> = plan(&facts).names.into_keys().collect();
    assert_eq!(names, ["box", "new", "old"]);
    assert_eq!(plan(&facts).images.len(), 1);
}

#[test]
fn what_ran_is_dormant_and_what_it_changed_is_recoverys() {
    let mut facts = facts(vec![made(1, &[])], vec![copy(1, &[(1, &[1])])]);
    if let Some(RecordCopy::Container { container, .. }) = facts.copies.first_mut() {
        container.phase = Phase::Created;
    }
    assert_eq!(plan(&facts).containers[0].phase, Phase::Dormant);
}
