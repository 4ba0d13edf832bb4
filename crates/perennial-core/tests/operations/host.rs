//! What `doctor` says about the machine and about what lies beside the records.

use perennial_core::check::{Finding, Severity};
use perennial_core::container::Container;
use perennial_core::host::{
    Cgroups, FREE_BYTES_MIN, HostFacts, SpaceFacts, check_depth, check_host, check_space, has_recursive_read_only,
    set_aside, stale_views, unsupervised,
};
use perennial_core::id::{ContainerId, Digest, RunId};
use perennial_core::spec::Network;
use perennial_core::time::Time;

fn able() -> HostFacts {
    HostFacts {
        overlay: Ok(()),
        trusted_xattrs: Ok(()),
        whiteouts: Ok(()),
        d_type: Ok(()),
        cgroups: Cgroups::V2,
        has_swap_accounting: true,
        runtimes: vec![("runc".into(), Ok(()))],
        has_netavark: true,
        has_init: true,
    }
}

fn container() -> Container {
    let id = ContainerId::from_random([7; 8]);
    let image = Digest::from_sha256(&[1; 32]);
    Container::new(id, "web".parse().expect("the fixture is valid"), (image, "box".into()), Time::from_unix_nanos(0))
}

fn shown(findings: &[Finding]) -> Vec<(Severity, &str)> {
    assert!(findings.iter().all(|finding| !finding.hint.is_empty() && !finding.object.is_empty()));
    findings.iter().map(|finding| (finding.severity, finding.message.as_str())).collect()
}

#[test]
fn an_able_machine_has_no_findings() {
    assert_eq!(shown(&check_host(&able(), &[container()])), []);
}

#[test]
fn what_nothing_can_run_without_is_an_error_in_the_words_of_whoever_refused() {
    let no = || Err("not permitted".to_owned());
    let facts = HostFacts {
        overlay: no(),
        whiteouts: no(),
        cgroups: Cgroups::None,
        runtimes: vec![("runc".into(), Ok(())), ("crun".into(), no())],
        ..able()
    };
    let expected = [
        (Severity::Error, "no overlayfs in the root: not permitted"),
        (Severity::Error, "no whiteouts in the root: not permitted"),
        (Severity::Error, "no cgroups are mounted, so nothing can run"),
        (Severity::Error, "OCI runtime \"crun\" does not work: not permitted"),
    ];
    assert_eq!(shown(&check_host(&facts, &[])), expected);
}

#[test]
fn what_only_some_containers_need_is_an_error_only_where_one_does() {
    let facts = HostFacts { has_netavark: false, has_init: false, has_swap_accounting: false, ..able() };
    let severities: Vec<_> = check_host(&facts, &[container()]).iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Note, Severity::Note, Severity::Note]);
    let mut needy = container();
    needy.spec.network = Network::Bridge;
    needy.spec.init = true;
    let findings = check_host(&facts, &[needy]);
    let expected = [
        (Severity::Error, "`--network bridge` needs netavark; needed by web"),
        (Severity::Error, "`--init` needs an init program; needed by web"),
        (Severity::Note, "`--memory` bounds memory only: the kernel does not account swap"),
    ];
    assert_eq!(shown(&findings), expected);
}

#[test]
fn a34_a_disk_that_is_nearly_full_is_a_warning() {
    let space = |total_bytes, free_bytes, total_inodes, free_inodes| {
        check_space(&SpaceFacts { total_bytes, free_bytes, total_inodes, free_inodes }).len()
    };
    let table = [
        (1 << 40, FREE_BYTES_MIN, 0, 0, 0),
        // Little of a large disk may still be much, and much of a small one little.
        (1 << 40, FREE_BYTES_MIN - 1, 0, 0, 1),
        (1 << 20, (1 << 20) / 2, 0, 0, 0),
        (1 << 20, (1 << 20) / 20, 0, 0, 1),
        (1 << 20, 1 << 20, 1000, 99, 1),
        (1 << 20, 1 << 20, 1000, 100, 0),
        (0, 0, 0, 0, 0),
    ];
    for (total, free, inodes, free_inodes, findings) in table {
        assert_eq!(space(total, free, inodes, free_inodes), findings, "{total} {free} {inodes} {free_inodes}");
    }
}

#[test]
fn what_lies_beside_the_records_is_named_with_the_way_to_get_at_it() {
    let run = RunId::from_random([9; 8]);
    let findings = set_aside(&[(run.clone(), "/r/runs/x/upper".into())]);
    let message = "holds changes that belong to no container; they are set aside in /r/runs/x/upper";
    assert_eq!(shown(&findings), [(Severity::Warning, message)]);
    assert!(findings[0].hint.contains("/r/runs/x/upper") && findings[0].object == format!("run {run}"));
    assert_eq!(stale_views(&["/mnt".into()])[0].object, "view /mnt");
    assert_eq!(unsupervised(&[&container()])[0].object, "container web");
    assert!(check_depth(&[container()]).is_empty());
}

#[test]
fn kernels_since_5_12_make_mounts_read_only_recursively() {
    for release in ["5.12", "5.12.0-rc1", "5.15.0-91-generic", "6.1.0", "6.18.44-fc", "10.0"] {
        assert!(has_recursive_read_only(release), "{release}");
    }
    for release in ["5.11.99", "5.4.0-42", "4.19.0", "5", "", "five.twelve", "-5.12", "5.99999999999"] {
        assert!(!has_recursive_read_only(release), "{release}");
    }
}
