//! The formats: each has a page and one frozen file for each version, and each frozen file still means what it meant.

use perennial_core::container::{Condition, ConditionKind, Container, Exit, Given, Phase, Run, StartMode};
use perennial_core::event::Entry;
use perennial_core::format::{DecodeError, Format, RECORD_BYTES_MAX, decode, encode};
use perennial_core::generations::rollback::Undo;
use perennial_core::generations::{Generation, Health, Kind, Policy, Queue};
use perennial_core::id::{ContainerId, Digest, LayerId, RunId, Seq};
use perennial_core::image::{Image, ImageConfig};
use perennial_core::layers::{Form, LayerKind, LayerRecord, ManifestRef};
use perennial_core::rebuild::RecordCopy;
use perennial_core::registry::upload::{PartsRecord, StorageRecord, UploadRecord};
use perennial_core::sealed::object::ObjectId;
use perennial_core::spec::{ContainerSpec, HealthCheck, Limits, Network, Volume};
use perennial_core::time::Time;
use perennial_core::travel::cipher::PackCipher;
use perennial_core::travel::facts::Facts;
use perennial_core::travel::history::Mark;
use perennial_core::travel::remote::{Encryption, Remote, Tracking};
use perennial_core::travel::settings::Withheld;
use perennial_core::travel::{Contents, ImageAt, PackAt, Parcel, Sender};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn frozen(format: Format, version: u32) -> Vec<u8> {
    let path = repository().join(format!("testdata/formats/{}-v{version}.json", format.name()));
    std::fs::read(&path).unwrap_or_else(|error| unreachable!("{}: {error}", path.display()))
}

fn names_in(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).expect("the directory is part of the repository");
    entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect()
}

fn time(text: &str) -> Time {
    text.parse().expect("the test gives RFC 3339")
}

fn layer(number: u64) -> LayerId {
    LayerId::from_random(number.to_be_bytes())
}

fn image(byte: u8) -> Digest {
    Digest::from_sha256(&[byte; 32])
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().copied().map(String::from).collect()
}

/// Decodes the frozen file, compares it with the value, and writes it again.
fn check_frozen<T: Serialize + DeserializeOwned + PartialEq + Debug>(format: Format, expected: &T) {
    let bytes = frozen(format, format.version());
    let decoded: T = decode(format, &bytes).unwrap_or_else(|error| unreachable!("{}: {error}", format.name()));
    assert_eq!(&decoded, expected);
    let written: Value = serde_json::from_slice(&encode(format, &decoded)).expect("encode writes JSON");
    let read: Value = serde_json::from_slice(&bytes).expect("the frozen file is JSON");
    assert_eq!(written, read);
}

/// Formats that are no records: name, versions, how the frozen files end. What these mean is tested in `tests/sealed`,
/// and of the encrypted one where age is.
const BINARY: [(&str, u32, &str); 6] = [
    ("perennial-encrypted", perennial_core::travel::cipher::VERSION, "age"),
    ("perennial-manifest", perennial_core::sealed::manifest::VERSION, "bin"),
    ("perennial-meta-erofs", perennial_core::sealed::erofs::VERSION, "erofs"),
    ("perennial-object", perennial_core::sealed::object::VERSION, "txt"),
    ("perennial-outboard", perennial_core::sealed::outboard::VERSION, "bin"),
    ("perennial-pack", perennial_core::sealed::pack::VERSION, "pack"),
];

#[test]
fn every_format_has_a_page_and_one_frozen_file_for_each_version() {
    let records = Format::ALL.iter().map(|format| (format.name(), format.version(), "json"));
    let all: Vec<(&str, u32, &str)> = records.chain(BINARY).collect();
    let names: BTreeSet<String> = all.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(names.len(), all.len(), "names are not used twice");
    let mut pages = names_in(&repository().join("docs/formats"));
    pages.remove("README.md");
    assert_eq!(pages, names.iter().map(|name| format!("{name}.md")).collect());
    let versions_of = |(name, last, end)| (1..=last).map(move |version| format!("{name}-v{version}.{end}"));
    let files = all.iter().copied().flat_map(versions_of);
    assert_eq!(names_in(&repository().join("testdata/formats")), files.collect());
    for (name, last, _) in all {
        let page = repository().join(format!("docs/formats/{name}.md"));
        let page = std::fs::read_to_string(page).expect("every format has a page");
        let versions: Vec<String> = (1..=last).map(|version| version.to_string()).collect();
        assert!(page.contains(&format!("- Versions: {}\n", versions.join(", "))), "{name}");
    }
    for format in Format::ALL {
        for version in 1..=format.version() {
            let head: Value = serde_json::from_slice(&frozen(format, version)).expect("the frozen file is JSON");
            assert_eq!((&head["format"], &head["version"]), (&json!(format.name()), &json!(version)));
            assert!(decode::<Value>(format, &frozen(format, version)).is_ok());
        }
    }
}

fn spec() -> ContainerSpec {
    ContainerSpec {
        command: texts(&["nginx", "-g", "daemon off;"]),
        entrypoint: Some(texts(&["/entry"])),
        env: texts(&["LANG=C.UTF-8"]),
        user: Some("www-data:33".into()),
        workdir: Some("/srv".into()),
        volumes: vec![Volume { source: "/data".into(), target: "/srv/data".into(), read_only: true }],
        hostname: Some("web-1".into()),
        limits: Limits { memory_bytes: Some(536_870_912), cpus_milli: Some(1500), pids: Some(256) },
        network: Network::Bridge,
        cap_add: texts(&["CAP_NET_ADMIN"]),
        cap_drop: texts(&["ALL"]),
        init: true,
        tty: true,
        interactive: true,
        health: Some(HealthCheck {
            command: texts(&["curl -f localhost"]),
            interval_s: 30,
            timeout_s: 5,
            retries: 3,
            start_period_s: 10,
        }),
        runtime: Some("runc".into()),
        stop_signal: Some("SIGQUIT".into()),
        stop_timeout_s: Some(10),
    }
}

fn generation(seq: u64) -> Generation {
    Generation {
        seq: Seq(seq),
        exited_at: time("2026-11-22T18:00:00.123456789Z"),
        kind: Kind::Exit,
        health: Health::Good,
        exit_code: Some(143),
        parent: None,
        image: image(1),
        layers: vec![layer(1)],
        mount_options: texts(&["index=off", "metacopy=off", "redirect_dir=off"]),
        run: Some(RunId::from_random([1; 8])),
        bytes: 4096,
        entries: 3,
        pinned: true,
        quarantined: false,
        cold: false,
        verified_at: None,
        clean: true,
        note: None,
        by: "root(0)".into(),
        extra: BTreeMap::new(),
    }
}

fn queue() -> Queue {
    let salvage = Generation {
        kind: Kind::Salvage,
        health: Health::Suspect,
        exit_code: None,
        parent: Some(Seq(1)),
        layers: vec![layer(2), layer(1)],
        run: None,
        pinned: false,
        quarantined: true,
        clean: false,
        note: Some("power loss".into()),
        extra: BTreeMap::from([("of_a_newer_release".into(), json!({"kept": [1, "as it is", null]}))]),
        ..generation(2)
    };
    Queue {
        next_seq: Seq(3),
        current: Some(Seq(1)),
        generations: vec![generation(1), salvage],
        undo: Some(Undo { current: Some(Seq(2)), quarantined: vec![], tail: Some(Seq(2)) }),
        held: Some(Seq(1)),
    }
}

fn run() -> Run {
    Run {
        id: RunId::from_random([2; 8]),
        epoch: 3,
        origin: Some(Seq(1)),
        image: image(1),
        layers: vec![layer(1)],
        image_layers: vec![layer(11), layer(10)],
        mode: StartMode::Unpack,
        mount_options: texts(&["metacopy=off"]),
        layer: layer(3),
        command_overridden: true,
        given: None,
        requested_at: time("2026-11-22T19:00:00Z"),
        by: "root(0)".into(),
    }
}

fn container(phase: Phase) -> Container {
    let id = ContainerId::from_random([3; 8]);
    let name = "web".parse().expect("a valid name");
    let mut container = Container::new(id, name, (image(1), "debian:12".into()), time("2026-11-22T17:00:00Z"));
    container.spec = spec();
    container.policy = Policy { keep: 3, keep_bytes: Some(1_073_741_824), ..Policy::default() };
    container.phase = phase;
    container.epoch = 3;
    container.queue = Some(queue());
    container.conditions = vec![Condition {
        kind: ConditionKind::ExitIncomplete,
        since: time("2026-11-22T19:10:01Z"),
        message: "no space".into(),
    }];
    container.next_event = 9;
    container.extra = BTreeMap::from([("of_a_newer_release".into(), json!(true))]);
    container
}

fn exiting() -> Phase {
    Phase::Exiting {
        run: run(),
        exit: Exit {
            at: time("2026-11-22T19:10:00Z"),
            code: Some(0),
            kind: Kind::Exit,
            health: Health::Unknown,
            clean: true,
            proves_origin: true,
            note: Some("remark".into()),
        },
    }
}

#[test]
fn the_frozen_container_means_what_it_meant() {
    check_frozen(Format::Container, &container(exiting()));
    let volumes = vec![Volume { source: "/".into(), target: "/host".into(), read_only: false }];
    let withheld = Withheld { volumes, cap_add: texts(&["ALL"]), runtime: None };
    let wary = Container { withheld, ..container(Phase::Dormant) };
    let value: Value = serde_json::from_slice(&encode(Format::Container, &wary)).expect("encode writes JSON");
    assert_eq!(value["body"]["withheld"]["cap_add"], json!(["ALL"]));
    assert_eq!(decode(Format::Container, &encode(Format::Container, &wary)), Ok(wary));
}

#[test]
fn a_run_keeps_what_it_was_started_with() {
    let mut own = container(Phase::Dormant);
    (own.spec.tty, own.spec.interactive) = (false, true);
    let given = Given { command: texts(&["sleep", "1000"]), tty: true, interactive: false };
    let kept = Run { given: Some(given.clone()), ..run() };
    own.phase = Phase::Starting { run: kept.clone() };
    let value: Value = serde_json::from_slice(&encode(Format::Container, &own)).expect("encode writes JSON");
    assert_eq!(
        value["body"]["phase"]["run"]["given"],
        json!({"command": ["sleep", "1000"], "tty": true, "interactive": false})
    );
    assert_eq!(decode(Format::Container, &encode(Format::Container, &own)), Ok(own.clone()));
    assert_eq!((kept.given(&own.spec), kept.can_be_repeated()), (given, true));
    // An older release kept only whether the command was the run's own.
    let settings = Given { command: vec![], tty: false, interactive: true };
    for (command_overridden, can_be_repeated) in [(true, false), (false, true)] {
        let older = Run { command_overridden, ..run() };
        assert_eq!((older.given(&own.spec), older.can_be_repeated()), (settings.clone(), can_be_repeated));
    }
}

fn an_image() -> Image {
    let config = ImageConfig {
        entrypoint: texts(&["/entry"]),
        cmd: texts(&["bash"]),
        env: texts(&["PATH=/usr/bin:/bin"]),
        user: Some("1000".into()),
        workdir: Some("/srv".into()),
        stop_signal: Some("SIGQUIT".into()),
        volumes: texts(&["/var/lib/data"]),
        labels: texts(&["version=12"]),
        architecture: Some("amd64".into()),
        health: None,
    };
    Image {
        digest: image(1),
        config,
        layers: vec![layer(11), layer(10)],
        diff_ids: vec![image(2), image(3)],
        bytes: 123_456_789,
        imported_at: time("2026-11-22T17:00:00Z"),
        source: "oci:debian".into(),
        believed: false,
    }
}

fn an_image_layer() -> LayerRecord {
    let created_at = time("2026-11-22T17:00:00Z");
    LayerRecord {
        diff_id: Some(image(3)),
        ..LayerRecord::of_tree(layer(10), LayerKind::Image, (123_456_789, 6789), created_at)
    }
}

#[test]
fn the_frozen_image_means_what_it_meant() {
    check_frozen(Format::Image, &an_image());
    let believed = Image { believed: true, ..an_image() };
    assert_eq!(decode(Format::Image, &encode(Format::Image, &believed)), Ok(believed));
}

#[test]
fn the_frozen_layer_means_what_it_meant() {
    let expected = an_image_layer();
    check_frozen(Format::Layer, &expected);
    assert_eq!(expected.encode(), encode(Format::Layer, &expected), "nothing new, so nothing to be understood");
}

#[test]
fn the_frozen_copy_means_what_it_meant() {
    let names = texts(&["debian:12"]);
    let expected = RecordCopy::Image { image: Box::new(an_image()), names, layers: vec![an_image_layer()] };
    check_frozen(Format::RecordCopy, &expected);
    let layers = vec![an_image_layer()];
    let container = RecordCopy::Container { container: Box::new(container(exiting())), layers };
    assert_eq!(decode(Format::RecordCopy, &encode(Format::RecordCopy, &container)), Ok(container));
}

fn parcel() -> Parcel {
    let mark = |seq| Mark { seq: Seq(seq), made: ObjectId::of(b"made") };
    let manifest = Some(ManifestRef { id: ObjectId::of(b"manifest"), bytes: 8 });
    let delta = |number| LayerRecord {
        form: Form::Sealed,
        manifest: manifest.clone(),
        ..LayerRecord::of_tree(layer(number), LayerKind::Delta, (4096, 3), time("2026-11-22T17:00:00Z"))
    };
    let mut container = container(Phase::Dormant);
    container.conditions.clear();
    container.queue = Some(Queue { undo: None, held: None, ..queue() });
    Parcel {
        contents: Contents::Container {
            container: Box::new(container),
            past: vec![mark(1)],
            images: vec![ImageAt { image: image(1), parcel: image(7), place: None }],
        },
        layers: vec![delta(1), delta(2)],
        packs: vec![PackAt {
            id: ObjectId::of(b"pack"),
            digest: image(8),
            bytes: 1000,
            index_offset: 800,
            content_bytes: 5000,
            cipher: None,
        }],
        sent: Sender { at: time("2026-11-29T10:00:00Z"), machine: "one".into(), by: "root(0)".into() },
        recipients: vec![],
    }
}

/// The same as it is encrypted.
fn secret_parcel() -> Parcel {
    let mut parcel = parcel();
    parcel.recipients = vec!["age1owner".parse().expect("a recipient")];
    let cipher = PackCipher { key: "AGE-SECRET-KEY-1PACK".parse().expect("a key"), head_bytes: 184 };
    parcel.packs.iter_mut().for_each(|pack| pack.cipher = Some(cipher.clone()));
    if let Contents::Container { images, .. } = &mut parcel.contents {
        images.iter_mut().for_each(|at| at.place = Some(ObjectId::of(b"place")));
    }
    parcel
}

#[test]
fn a_parcel_that_is_encrypted_says_so_and_is_so_altogether() {
    let whole = secret_parcel();
    assert_eq!(Parcel::decode(&whole.encode()), Ok(whole.clone()));
    let head: Value = serde_json::from_slice(&whole.encode()).expect("encode writes JSON");
    assert_eq!(head["must_understand"], json!(["sealed", "encrypted"]));
    let no_recipients = Parcel { recipients: vec![], ..whole.clone() };
    let no_cipher = Parcel { packs: parcel().packs, ..whole.clone() };
    let no_place = Parcel { contents: parcel().contents, ..whole.clone() };
    for half in [no_recipients, no_cipher, no_place] {
        let said = Parcel::decode(&half.encode()).expect_err("a part is missing").to_string();
        assert!(said.contains("only a part of it is encrypted"), "{said}");
    }
    let mut long = whole;
    long.packs.iter_mut().flat_map(|pack| &mut pack.cipher).for_each(|cipher| cipher.head_bytes = 5000);
    assert!(Parcel::decode(&long.encode()).is_err());
}

#[test]
fn the_frozen_parcel_means_what_it_meant() {
    let expected = parcel();
    assert_eq!(Parcel::decode(&frozen(Format::Parcel, 1)), Ok(expected.clone()));
    let written: Value = serde_json::from_slice(&expected.encode()).expect("encode writes JSON");
    let read: Value = serde_json::from_slice(&frozen(Format::Parcel, 1)).expect("the frozen file is JSON");
    assert_eq!(written, read);
    let contents = Contents::Image { image: Box::new(Image { layers: vec![], diff_ids: vec![], ..an_image() }) };
    let image = Parcel { contents, layers: vec![], ..expected };
    assert_eq!(Parcel::decode(&image.encode()), Ok(image));
}

#[test]
fn indexes_that_would_fill_the_memory_are_refused() {
    let mut many = parcel();
    let (first, bytes) = (many.packs[0].clone(), 16 << 20);
    let pack =
        |number: u32| PackAt { id: ObjectId::of(&number.to_le_bytes()), bytes, index_offset: 0, ..first.clone() };
    many.packs = (0..64).map(pack).collect();
    assert_eq!(many.check(), Ok(()));
    many.packs.push(pack(64));
    let said = many.check().expect_err("they are too long").to_string();
    assert!(said.contains("bytes in the indexes of all packs"), "{said}");
}

#[test]
fn a_parcel_that_contradicts_itself_is_refused() {
    let whole: Value = serde_json::from_slice(&parcel().encode()).expect("encode writes JSON");
    let refused = |pointer: &str, value: Value| {
        let mut changed = whole.clone();
        *changed["body"].pointer_mut(pointer).unwrap_or_else(|| unreachable!("{pointer}")) = value;
        Parcel::decode(&serde_json::to_vec(&changed).expect("JSON")).expect_err(pointer).to_string()
    };
    let unlimited = u64::MAX;
    for (pointer, value, why) in [
        ("/layers/0/form", json!("dir"), "does not stand for itself"),
        ("/layers/0/manifest", Value::Null, "has no manifest"),
        ("/layers/0/manifest/bytes", json!(unlimited), "bytes in the manifest of a layer"),
        ("/layers/0/kind", json!("image"), "a layer is named that is not in it"),
        ("/layers/1/id", json!("0000000000000001"), "two layers have one id"),
        ("/packs/0/bytes", json!(unlimited), "bytes in a pack"),
        ("/packs/0/index_offset", json!(1000), "the index of a pack is not in the pack"),
        ("/packs/0/bytes", json!(17 << 20), "bytes in the index of a pack"),
        ("/images", json!([]), "the images are not those of the container"),
        ("/container/phase", serde_json::to_value(exiting()).expect("JSON"), "does not run"),
        ("/container/policy/keep", json!(0), "no queue can follow the policy"),
        ("/container/queue/current", json!(9), "the current generation is not in it"),
        ("/container/queue/next_seq", json!(2), "the generations are not in order"),
        ("/container/queue/generations/1/seq", json!(1), "the generations are not in order"),
        ("/container/queue/generations/0/image", json!(image(5)), "lies on an image that is not named"),
        ("/container/queue/generations/0/layers", json!(["0000000000000009"]), "named that is not in it"),
        (
            "/container/queue/generations/0/layers",
            json!(["0000000000000001", "0000000000000001"]),
            "a layer lies on itself",
        ),
        ("/container/queue/generations/0/layers", json!(vec![layer(1); 501]), "layers of a generation"),
        ("/container/queue/held", json!(1), "half in it"),
        ("/container/image_name", json!("\u{1b}[2J"), "control characters"),
        ("/container/queue/generations/1/note", json!("a\nb"), "control characters"),
        ("/sent/machine", json!("x".repeat(5000)), "bytes in a text"),
        ("/past", json!(vec![json!({"seq": 1, "made": ObjectId::of(b"")}); 1001]), "past generations"),
    ] {
        let said = refused(pointer, value);
        assert!(said.contains(why), "{pointer}: {said}");
    }
}

#[test]
fn the_frozen_remote_means_what_it_meant() {
    let (registry, prefix) = ("registry.example:5000".into(), "team".into());
    let added_at = time("2026-11-29T10:00:00Z");
    let remote = Remote { name: "hub".into(), registry, prefix, plain_http: true, encryption: None, added_at };
    check_frozen(Format::Remote, &remote);
    assert_eq!(remote.encode(), encode(Format::Remote, &remote), "nothing new, so nothing to be understood");
}

#[test]
fn a_remote_that_an_older_release_would_send_to_as_it_is_says_so() {
    let recipients = vec!["age1other".parse().expect("a recipient")];
    let remote = Remote {
        name: "hub".into(),
        registry: "registry.example".into(),
        prefix: String::new(),
        plain_http: false,
        encryption: Some(Encryption { identity: "/keys/hub.txt".into(), recipients }),
        added_at: time("2026-11-29T10:00:00Z"),
    };
    let value: Value = serde_json::from_slice(&remote.encode()).expect("encode writes JSON");
    assert_eq!(value["must_understand"], json!(["encrypted"]));
    let encryption = json!({"identity": "/keys/hub.txt", "recipients": ["age1other"]});
    assert_eq!(value["body"]["encryption"], encryption);
    assert_eq!(decode(Format::Remote, &remote.encode()), Ok(remote));
}

#[test]
fn the_frozen_tracking_means_what_it_meant() {
    let expected = Tracking {
        marks: vec![Mark { seq: Seq(1), made: ObjectId::of(b"made") }],
        manifest: Some(image(7)),
        done_at: Some(time("2026-11-29T10:00:00Z")),
        tried_at: Some(time("2026-11-29T11:00:00Z")),
        failures: 2,
        error: Some("registry registry.example cannot be reached".into()),
        facts: None,
        had: vec![],
    };
    check_frozen(Format::Tracking, &expected);
    let with_facts = Tracking { facts: Some(Facts::of(&queue())), had: expected.marks.clone(), ..expected };
    let value: Value = serde_json::from_slice(&encode(Format::Tracking, &with_facts)).expect("encode writes JSON");
    let facts = json!({"current": 1, "generations": [
        {"seq": 1, "pinned": true, "health": "good"},
        {"seq": 2, "quarantined": true, "health": "suspect"},
    ]});
    assert_eq!((&value["body"]["facts"], &value["body"]["had"]), (&facts, &value["body"]["marks"]));
    assert_eq!(decode(Format::Tracking, &encode(Format::Tracking, &with_facts)), Ok(with_facts));
}

#[test]
fn a_layer_that_an_older_release_would_misread_says_so() {
    let dir = LayerRecord::of_tree(layer(10), LayerKind::Delta, (4096, 3), time("2026-11-22T17:00:00Z"));
    let manifest = Some(ManifestRef { id: ObjectId::of(b"manifest"), bytes: 8 });
    let sealed = LayerRecord { form: Form::Sealed, manifest, ..dir.clone() };
    let unresolved = LayerRecord { unresolved: true, ..dir };
    let cold = LayerRecord { cold: true, ..sealed.clone() };
    let rows = [(sealed, "sealed", json!(["sealed"])), (unresolved, "unresolved", json!(["unresolved"]))];
    for (record, flag, flags) in rows.into_iter().chain([(cold, "sealed", json!(["sealed", "cold"]))]) {
        let bytes = record.encode();
        let value: Value = serde_json::from_slice(&bytes).expect("encode writes JSON");
        assert_eq!(value["must_understand"], flags);
        assert_eq!(decode(Format::Layer, &bytes), Ok(record));
        let elsewhere = String::from_utf8_lossy(&bytes).replace("perennial-layer", "perennial-image");
        let error = decode::<Value>(Format::Image, elsewhere.as_bytes()).unwrap_err();
        assert_eq!(error, DecodeError::UnknownFlag { format: "perennial-image", flag: flag.into() });
    }
}

#[test]
fn the_frozen_event_means_what_it_meant() {
    let expected = Entry {
        number: 8,
        at: time("2026-11-22T19:00:00Z"),
        by: "root(0)".into(),
        action: "rollback".into(),
        detail: "quarantined [2], released []".into(),
        from: Some(Seq(2)),
        to: Some(Seq(1)),
    };
    check_frozen(Format::Event, &expected);
}

#[test]
fn every_phase_survives_a_round_trip() {
    let running = Phase::Running { run: run(), pid: 4242, started_at: time("2026-11-22T19:00:01Z") };
    for phase in [Phase::Created, Phase::Starting { run: run() }, running, exiting(), Phase::Dormant] {
        let container = container(phase);
        let bytes = encode(Format::Container, &container);
        assert_eq!(decode(Format::Container, &bytes), Ok(container));
    }
}

#[test]
fn fields_of_a_newer_release_survive_a_rewrite() {
    let mut record: Value = serde_json::from_slice(&frozen(Format::Container, 1)).unwrap();
    record["body"]["colour"] = json!("green");
    record["body"]["queue"]["generations"][0]["replicas"] = json!(["d1", "d2"]);
    let container: Container = decode(Format::Container, &serde_json::to_vec(&record).unwrap()).unwrap();
    let rewritten: Value = serde_json::from_slice(&encode(Format::Container, &container)).unwrap();
    assert_eq!(rewritten, record);
}

#[test]
fn fields_that_v1_may_lack_have_their_default() {
    let mut record: Value = serde_json::from_slice(&frozen(Format::Container, 1)).unwrap();
    record["body"]["queue"].as_object_mut().unwrap().remove("held");
    record["body"]["phase"]["exit"].as_object_mut().unwrap().remove("clean");
    record["body"]["policy"] = json!({});
    record["body"]["spec"] = json!({});
    let container: Container = decode(Format::Container, &serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(container.queue.unwrap().held, None);
    assert_eq!(container.policy, Policy::default());
    assert_eq!(container.spec, ContainerSpec::default());
    let Phase::Exiting { exit, .. } = container.phase else { panic!("the phase was not touched") };
    assert!(!exit.clean);
}

/// What decoding says of these bytes as an event.
fn refusal(bytes: &[u8]) -> DecodeError {
    decode::<Entry>(Format::Event, bytes).expect_err("the record is not one")
}

#[test]
fn the_frozen_records_of_a_registry_mean_what_they_meant() {
    let at = time("2026-11-29T00:00:00Z");
    check_frozen(Format::Registry, &StorageRecord { created_at: at, blobs: "directory".into(), id: None });
    let upload = UploadRecord { repository: "garden/web".into(), algorithm: "sha256".into(), started_at: at };
    check_frozen(Format::RegistryUpload, &upload);
    check_frozen(Format::RegistryParts, &PartsRecord { upload: "2~garden".into() });
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (bytes, text) in [
        (
            r#"{"format":"perennial-layer","version":1,"body":{}}"#,
            "expected a perennial-event record, found \"perennial-layer\"",
        ),
        (
            r#"{"format":"perennial-event","version":2,"body":"new shape"}"#,
            "perennial-event record has version 2, this release knows up to 1: use a newer release",
        ),
        (
            r#"{"format":"perennial-event","version":1,"must_understand":["sealed"],"body":{}}"#,
            "perennial-event record needs the feature \"sealed\", which this release does not know: use a newer release",
        ),
        (
            r#"{"format":"perennial-event","version":0,"body":{}}"#,
            "perennial-event record is damaged: versions count from 1, found 0",
        ),
    ] {
        assert_eq!(refusal(bytes.as_bytes()).to_string(), text);
    }
}

#[test]
fn what_is_damaged_is_refused_without_a_panic() {
    let whole = frozen(Format::Event, 1);
    assert!(decode::<Entry>(Format::Event, &whole).is_ok());
    let end = whole.iter().rposition(|byte| *byte == b'}').unwrap();
    for length in 0..=end {
        assert!(matches!(refusal(&whole[..length]), DecodeError::Damaged { .. }), "cut at {length}");
    }
    let deep = [r#"{"format":"perennial-event","version":1,"body":"#.as_bytes(), &[b'['; 100_000]].concat();
    assert!(matches!(refusal(&deep), DecodeError::Damaged { .. }));
    let twice = r#"{"format":"perennial-event","format":"perennial-event","version":1,"body":{}}"#;
    assert!(matches!(refusal(twice.as_bytes()), DecodeError::Damaged { .. }));
    let large = vec![b' '; RECORD_BYTES_MAX + 1];
    assert_eq!(refusal(&large), DecodeError::TooLarge { format: "perennial-event", bytes: RECORD_BYTES_MAX + 1 });
}

#[test]
fn bodies_with_values_out_of_their_bounds_are_damaged() {
    for (field, value) in [
        ("id", json!("not hexadecimal!")),
        ("name", json!("../escape")),
        ("image", json!("sha512:00")),
        ("epoch", json!(-1)),
        ("created_at", json!("yesterday")),
        ("phase", json!({"state": "flying"})),
    ] {
        let mut record: Value = serde_json::from_slice(&frozen(Format::Container, 1)).unwrap();
        record["body"][field] = value;
        let refused = decode::<Container>(Format::Container, &serde_json::to_vec(&record).unwrap());
        assert!(matches!(refused, Err(DecodeError::Damaged { .. })), "{field}");
    }
}
