//! The OCI bundle: a golden `config.json`, and what settings change in it.
#![cfg(test)]

use perennial_core::image::ImageConfig;
use perennial_core::process::{Capability, Process, ProcessFacts, ResolvedUser, resolve};
use perennial_core::spec::{ContainerSpec, Limits, Volume};
use perennial_runtime::bundle::{BundlePlan, HostFacts, Init, NetworkPlan, config};
use perennial_runtime::seccomp::{Arch, profile};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

fn process(spec: &ContainerSpec) -> Process {
    let facts = ProcessFacts {
        user: ResolvedUser { home: Some("/root".to_owned()), ..Default::default() },
        hostname: "attic".to_owned(),
    };
    resolve(spec, &ImageConfig { cmd: vec!["/bin/bash".to_owned()], ..Default::default() }, None, &facts).unwrap()
}

fn with(spec: &ContainerSpec, change: impl Fn(&mut BundlePlan<'_>)) -> Value {
    let process = process(spec);
    let mut plan = BundlePlan {
        process: &process,
        rootfs: Path::new("/store/runs/1/merged"),
        hostname: "attic",
        cgroups_path: "/perennial/0123456789abcdef",
        limits: &spec.limits,
        host: HostFacts { swap_accounting: true, cgroup_v2: true, recursive_read_only: true },
        network: NetworkPlan::Empty,
        volumes: &spec.volumes,
        resolv_conf: None,
        init: None,
        console_size: None,
    };
    change(&mut plan);
    config(&plan).unwrap()
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_default_container_is_the_golden_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/config-default.json");
    let mut found = serde_json::to_string_pretty(&with(&ContainerSpec::default(), |_| {})).unwrap();
    found.push('\n');
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    if golden != found {
        let new = std::env::temp_dir().join("config-default.json");
        std::io::Write::write_all(&mut std::fs::File::create(&new).unwrap(), found.as_bytes()).unwrap();
        panic!("config.json of a default container has changed: compare {} with {}", path.display(), new.display());
    }
}

#[test]
fn limits_become_resources() {
    let limits = Limits { memory_bytes: Some(64 << 20), cpus_milli: Some(1500), pids: Some(9) };
    let spec = ContainerSpec { limits, ..Default::default() };
    let resources = with(&spec, |_| {})["linux"]["resources"].clone();
    assert_eq!(resources["memory"], json!({ "limit": 64 << 20, "swap": 128 << 20 }));
    assert_eq!(resources["cpu"], json!({ "quota": 150_000, "period": 100_000 }));
    assert_eq!(resources["pids"], json!({ "limit": 9 }));
    let without = with(&spec, |plan| plan.host.swap_accounting = false);
    assert_eq!(without["linux"]["resources"]["memory"], json!({ "limit": 64 << 20 }));
    let huge = Limits { memory_bytes: Some(u64::MAX), cpus_milli: Some(u64::MAX), pids: Some(u64::MAX) };
    let config = with(&ContainerSpec { limits: huge, ..Default::default() }, |_| {});
    assert_eq!(config["linux"]["resources"]["pids"]["limit"], json!(i64::MAX));
}

#[test]
fn networks_become_namespaces() {
    let namespaces = |network: NetworkPlan| {
        let config = with(&ContainerSpec::default(), |plan| plan.network = network.clone());
        config["linux"]["namespaces"].as_array().unwrap().iter().find(|n| n["type"] == "network").cloned()
    };
    assert_eq!(namespaces(NetworkPlan::Host), None);
    assert_eq!(namespaces(NetworkPlan::Empty), Some(json!({ "type": "network" })));
    let named = NetworkPlan::Namespace("/run/ns".into());
    assert_eq!(namespaces(named), Some(json!({ "type": "network", "path": "/run/ns" })));
}

#[test]
fn init_comes_before_the_command_and_is_bound() {
    let init = Init { path: "/usr/bin/catatonit".into(), args: vec!["--".to_owned()] };
    let config = with(&ContainerSpec::default(), |_| {});
    assert_eq!(config["process"]["args"], json!(["/bin/bash"]));
    let process = process(&ContainerSpec::default());
    let spec = ContainerSpec::default();
    let plan = BundlePlan {
        process: &process,
        rootfs: Path::new("/r"),
        hostname: "attic",
        cgroups_path: "/perennial/1",
        limits: &spec.limits,
        host: HostFacts::default(),
        network: NetworkPlan::Host,
        volumes: &[],
        resolv_conf: Some(Path::new("/run/resolv.conf")),
        init: Some(&init),
        console_size: Some((24, 80)),
    };
    let config = perennial_runtime::bundle::config(&plan).unwrap();
    assert_eq!(config["process"]["args"], json!(["/dev/init", "--", "/bin/bash"]));
    assert_eq!(config["process"].get("consoleSize"), None, "no terminal, no size");
    let mounts = config["mounts"].as_array().unwrap();
    let of = |target: &str| mounts.iter().find(|mount| mount["destination"] == target).unwrap();
    assert_eq!(of("/dev/init")["options"], json!(["rbind", "rprivate", "ro"]));
    assert_eq!(of("/etc/resolv.conf")["source"], "/run/resolv.conf");
}

#[test]
fn volumes_are_mounted_parents_first() {
    let volume = |target: &str| Volume { source: "/s".to_owned(), target: target.to_owned(), read_only: false };
    let spec = ContainerSpec { volumes: ["/a/b/c", "/a", "/z", "/a/b"].map(volume).to_vec(), ..Default::default() };
    let config = with(&spec, |_| {});
    let mounts = config["mounts"].as_array().unwrap();
    let targets: Vec<_> = mounts.iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
    assert_eq!(targets[targets.len() - 4..], ["/a", "/z", "/a/b", "/a/b/c"]);
    assert!(!targets.contains(&"/etc/hosts") && !targets.contains(&"/etc/hostname"));
}

#[test]
fn read_only_volumes_are_so_with_all_that_is_mounted_below() {
    let volume = |read_only| Volume { source: "/s".to_owned(), target: "/t".to_owned(), read_only };
    for (read_only, recursive_read_only, expected) in
        [(false, true, &["rw"][..]), (true, true, &["ro", "rro"]), (true, false, &["ro"]), (false, false, &["rw"])]
    {
        let spec = ContainerSpec { volumes: vec![volume(read_only)], ..Default::default() };
        let config = with(&spec, |plan| plan.host.recursive_read_only = recursive_read_only);
        let options = config["mounts"].as_array().unwrap().last().unwrap()["options"].clone();
        assert_eq!(options, json!([&["rbind", "rprivate"], expected].concat()));
    }
}

#[test]
fn no_resource_limit_is_raised() {
    assert_eq!(with(&ContainerSpec::default(), |_| {})["process"].get("rlimits"), None);
}

#[test]
fn the_filter_names_each_call_once_for_each_condition() {
    for arch in [Arch::X86_64, Arch::Aarch64] {
        for capabilities in [Capability::default_set(), Capability::all(), Vec::new()] {
            let profile = profile(arch, &capabilities);
            let mut seen = BTreeSet::new();
            for rule in profile["syscalls"].as_array().unwrap() {
                for name in rule["names"].as_array().unwrap() {
                    let key = (name.as_str().unwrap().to_owned(), rule["args"].to_string());
                    assert!(seen.insert(key.clone()), "{arch:?}: {key:?} twice");
                }
            }
        }
    }
    let action = |capabilities: &[Capability], name: &str| {
        let profile = profile(Arch::X86_64, capabilities);
        let rules = profile["syscalls"].as_array().unwrap().clone();
        let rule = rules.into_iter().find(|rule| rule["names"].as_array().unwrap().contains(&json!(name)));
        rule.map(|rule| rule["action"].as_str().unwrap().to_owned())
    };
    let allow = Some("SCMP_ACT_ALLOW".to_owned());
    let refuse = Some("SCMP_ACT_ERRNO".to_owned());
    for (name, capability) in [("bpf", "SYS_ADMIN"), ("chroot", "SYS_CHROOT"), ("init_module", "SYS_MODULE")] {
        assert_eq!(action(&[capability.parse().unwrap()], name), allow, "{name}");
        assert_eq!(action(&[], name), refuse, "{name}");
    }
    assert_eq!(action(&Capability::all(), "kexec_load"), refuse);
    assert_eq!(action(&[], "read"), allow);
    assert_eq!(action(&[], "io_uring_setup"), None, "fails with ENOSYS");
}
