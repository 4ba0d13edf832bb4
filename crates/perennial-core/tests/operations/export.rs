//! What an exported image says, and what it leaves out.

use perennial_core::export::{
    AttributeFate, ExportReport, FoundIn, Loss, PATHS_MAX, default_tag, exported_config, fate_of,
};
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
