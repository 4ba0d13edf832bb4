//! What an exported image says, and what it leaves out.

use perennial_core::export::{
    AttributeFate, ExportReport, FoundIn, Loss, PATHS_MAX, begins_with, default_tag, exported_config, fate_of,
    imported_spec, settings_not_taken,
};
use perennial_core::id::Digest;
use perennial_core::image::ImageConfig;
use perennial_core::spec::{ContainerSpec, Network};

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: texts(&["/entry"]),
        cmd: texts(&["serve"]),
        env: texts(&["PATH=/bin", "A=1", "BARE"]),
        user: Some("web".into()),
        workdir: Some("/srv".into()),
        stop_signal: Some("SIGINT".into()),
        ..ImageConfig::default()
    }
}

#[test]
fn settings_of_the_container_stand_over_those_of_the_image() {
    let (same, left_out) = exported_config(&image(), &ContainerSpec::default());
    assert_eq!((same, left_out), (image(), vec![]));
    let spec = ContainerSpec {
        command: texts(&["other"]),
        env: texts(&["A=2", "B=3"]),
        user: Some("0:0".into()),
        stop_signal: Some("SIGTERM".into()),
        ..ContainerSpec::default()
    };
    let (config, _) = exported_config(&image(), &spec);
    assert_eq!(config.entrypoint, ["/entry"]);
    assert_eq!(config.cmd, ["other"]);
    assert_eq!(config.env, ["PATH=/bin", "BARE", "A=2", "B=3"]);
    assert_eq!((config.user.as_deref(), config.workdir.as_deref()), (Some("0:0"), Some("/srv")));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGTERM"));
    let (config, _) = exported_config(&ImageConfig::default(), &ContainerSpec::default());
    assert_eq!(config.env, ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let spec = ContainerSpec { entrypoint: Some(texts(&["/mine", "-x"])), ..ContainerSpec::default() };
    let (config, _) = exported_config(&image(), &spec);
    assert_eq!((config.entrypoint, config.cmd), (texts(&["/mine", "-x"]), vec![]));
}

/// What an image says of a container is what the container imported from it says of the next image.
#[test]
fn settings_survive_export_and_import() {
    let own = |change: fn(&mut ContainerSpec)| {
        let mut spec = ContainerSpec::default();
        change(&mut spec);
        spec
    };
    let specs = [
        own(|_| {}),
        own(|spec| spec.command = texts(&["other"])),
        own(|spec| spec.entrypoint = Some(texts(&["/mine"]))),
        own(|spec| (spec.entrypoint, spec.command) = (Some(texts(&["/mine"])), texts(&["serve"]))),
        own(|spec| spec.entrypoint = Some(vec![])),
        own(|spec| spec.env = texts(&["A=2", "B=3"])),
        own(|spec| (spec.user, spec.workdir) = (Some("0".into()), Some("/".into()))),
        own(|spec| spec.stop_signal = Some("SIGHUP".into())),
    ];
    for base in [image(), ImageConfig::default()] {
        for spec in &specs {
            let (exported, _) = exported_config(&base, spec);
            let again = imported_spec(&exported, &base);
            let (mut exported_again, _) = exported_config(&base, &again);
            // Only the order of the environment may differ.
            exported_again.env.sort();
            let mut sorted = exported.clone();
            sorted.env.sort();
            assert_eq!(exported_again, sorted, "{spec:?} on {base:?} became {again:?}");
            assert_eq!(settings_not_taken(&exported, &exported_again), Vec::<&str>::new());
        }
    }
    assert_eq!(imported_spec(&image(), &image()), ContainerSpec::default());
    let (other, _) = exported_config(&image(), &specs[1]);
    assert_eq!(settings_not_taken(&other, &image()), ["command"]);
    let (other, _) = exported_config(&image(), &specs[5]);
    assert_eq!(settings_not_taken(&other, &image()), ["environment"]);
}

#[test]
fn layers_are_recognised_by_those_they_begin_with() {
    let digests = |numbers: &[u8]| -> Vec<Digest> { numbers.iter().map(|n| Digest::from_sha256(&[*n; 32])).collect() };
    let table: [(&[u8], &[u8], bool); 6] = [
        (&[1, 2, 3], &[1, 2], true),
        (&[1, 2], &[1, 2], true),
        (&[1], &[1, 2], false),
        (&[2, 1, 3], &[1, 2], false),
        (&[1, 2], &[], false),
        (&[], &[1], false),
    ];
    for (layers, image, expected) in table {
        assert_eq!(begins_with(&digests(layers), &digests(image)), expected, "{layers:?} on {image:?}");
    }
}

#[test]
fn settings_without_a_place_are_named() {
    let spec = ContainerSpec {
        hostname: Some("web".into()),
        network: Network::Bridge,
        cap_drop: texts(&["ALL"]),
        tty: true,
        stop_timeout_s: Some(3),
        ..ContainerSpec::default()
    };
    let (_, left_out) = exported_config(&image(), &spec);
    assert_eq!(left_out, ["hostname", "network", "capabilities", "terminal", "stop timeout"]);
}

#[test]
fn attributes_are_kept_dropped_or_lost_by_their_names() {
    use AttributeFate::{Drop, Keep, Lose};
    let table: [(&str, AttributeFate, AttributeFate); 9] = [
        ("user.name", Keep, Keep),
        ("security.capability", Keep, Keep),
        ("system.posix_acl_access", Keep, Keep),
        ("trusted.own", Keep, Keep),
        ("trusted.overlay.origin", Drop, Lose(Loss::UnionAttribute)),
        ("trusted.overlay.protattr", Lose(Loss::InodeFlags), Lose(Loss::UnionAttribute)),
        ("trusted.overlay.overlay.opaque", Lose(Loss::UnionAttribute), Lose(Loss::UnionAttribute)),
        ("user.overlay.opaque", Lose(Loss::UnionAttribute), Lose(Loss::UnionAttribute)),
        ("user.a=b", Lose(Loss::Attribute), Lose(Loss::Attribute)),
    ];
    for (name, in_layer, in_view) in table {
        assert_eq!(fate_of(name.as_bytes(), FoundIn::Layer), in_layer, "{name} in a layer");
        assert_eq!(fate_of(name.as_bytes(), FoundIn::View), in_view, "{name} in a view");
    }
}

#[test]
fn a_report_counts_all_and_names_the_first() {
    let mut report = ExportReport::default();
    for number in 0..50 {
        report.add(Loss::Socket, format!("run/{number}").as_bytes());
    }
    let lost = &report.losses[&Loss::Socket];
    assert_eq!((lost.count, lost.paths.len()), (50, PATHS_MAX));
    assert_eq!(lost.paths[0], b"run/0");
    report.add(Loss::Socket, b"run/1");
    assert_eq!(report.losses[&Loss::Socket].count, 50, "another layer has it too");
}

#[test]
fn a_tag_is_a_name_that_images_may_have() {
    for (name, expected) in [("web", "web:3"), ("Web_1", "web_1:3"), ("a.-", "a:3")] {
        assert_eq!(default_tag(name, 3), expected);
    }
}
