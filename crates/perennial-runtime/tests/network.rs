//! The bridge, leases, namespaces and `resolv.conf`.
#![cfg(test)]

mod common;

use common::{fixture, shell};
use perennial_runtime::mount::is_mounted;
use perennial_runtime::network::{Bridge, BridgeConfig, NetworkError, free_address, resolv_conf, write_resolv_conf};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};

fn bridge(directory: &std::path::Path, interface: &str, third: u8) -> Bridge {
    let config =
        BridgeConfig { interface: interface.to_owned(), subnet: Ipv4Addr::new(10, 213, third, 0), prefix_bits: 24 };
    Bridge::open(directory, config).unwrap()
}

#[test]
fn a_container_on_the_bridge_reaches_the_host() {
    let mut container =
        shell("ip -4 -o addr show eth0 | grep -o '10[.0-9/]*' | head -1; echo hello | nc 10.213.1.1 7213");
    let (leases, namespace) = (container.path("network"), container.path("netns"));
    let bridge = bridge(&leases, "pertest1", 1);
    let address = bridge.setup(&container.id, &namespace).unwrap();
    assert_eq!((address.address, address.gateway), (Ipv4Addr::new(10, 213, 1, 2), Ipv4Addr::new(10, 213, 1, 1)));
    let listener = TcpListener::bind((address.gateway, 7213)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(b"bye\n").ok();
        (text, peer.ip())
    });
    container.netns = Some(namespace.clone());
    let ran = container.run();
    assert!(ran.stdout.starts_with("10.213.1.2/24\n"), "{ran:?}");
    let (text, peer) = server.join().unwrap();
    assert_eq!((text.as_str(), peer.to_string().as_str()), ("hello\n", "10.213.1.2"));
    bridge.teardown(&container.id, &namespace).unwrap();
    assert!(!is_mounted(&namespace).unwrap() && !namespace.exists());
    assert!(!std::path::Path::new("/sys/class/net/pertest1").exists(), "the last one takes the bridge with it");
    bridge.teardown(&container.id, &namespace).unwrap();
}

#[test]
fn leases_are_unique_and_come_back() {
    let container = fixture(&["true"]);
    let bridge = bridge(&container.path("network"), "pertest2", 2);
    let paths = [container.path("ns-a"), container.path("ns-b"), container.path("ns-c")];
    let [a, b, c] = &paths;
    assert_eq!(bridge.setup("a", a).unwrap().address, Ipv4Addr::new(10, 213, 2, 2));
    assert_eq!(bridge.setup("b", b).unwrap().address, Ipv4Addr::new(10, 213, 2, 3));
    bridge.teardown("a", a).unwrap();
    assert_eq!(bridge.setup("c", c).unwrap().address, Ipv4Addr::new(10, 213, 2, 2));
    // A machine that lost power has leases and files, but no namespaces.
    rustix::mount::unmount(b, rustix::mount::UnmountFlags::DETACH).unwrap();
    bridge.teardown("b", b).unwrap();
    bridge.teardown("c", c).unwrap();
    assert!(paths.iter().all(|path| !path.exists()));
}

#[test]
fn addresses_are_chosen_lowest_first_until_there_are_none() {
    let config = BridgeConfig { interface: "x".to_owned(), subnet: Ipv4Addr::new(10, 0, 0, 0), prefix_bits: 29 };
    let mut taken = Vec::new();
    while let Some(address) = free_address(&config, taken.iter().copied()) {
        taken.push(address);
    }
    let expected: Vec<_> = (2..=6).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
    assert_eq!(taken, expected, "neither the gateway nor the broadcast address");
}

#[test]
fn impossible_bridges_are_refused() {
    let container = fixture(&["true"]);
    let rows = [("", 24), ("much-too-long-name", 24), ("ok", 7), ("ok", 30), ("ok", 8)];
    for (interface, prefix_bits) in rows {
        let config = BridgeConfig { interface: interface.to_owned(), subnet: Ipv4Addr::new(10, 1, 0, 0), prefix_bits };
        let error = Bridge::open(&container.path("network"), config).unwrap_err();
        assert!(matches!(error, NetworkError::Config { .. }), "{interface}/{prefix_bits}");
    }
}

#[test]
fn resolv_conf_is_the_hosts_as_far_as_it_can_be_reached() {
    let host = "search a.b\nnameserver 127.0.0.53\noptions edns0\n";
    let resolved = "nameserver 10.0.0.1\n";
    assert_eq!(resolv_conf(host, Some(resolved), false), host);
    assert_eq!(resolv_conf(host, Some(resolved), true), resolved);
    assert_eq!(resolv_conf(host, None, true), "search a.b\noptions edns0\n");
    let mixed = "nameserver ::1\nnameserver 9.9.9.9\n";
    assert_eq!(resolv_conf(mixed, Some(resolved), true), "nameserver 9.9.9.9\n");
}

#[test]
fn resolv_conf_is_shown_in_the_container() {
    let mut container = shell("cat /etc/resolv.conf; echo changed > /etc/resolv.conf");
    let file = container.path("resolv.conf");
    write_resolv_conf(&file, false).unwrap();
    container.resolv_conf = Some(file.clone());
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    assert_eq!(container.stdout(), host);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "changed\n", "the run's copy, not the host's");
    assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap(), host);
    let left = std::fs::metadata(container.path("rootfs/etc/resolv.conf")).unwrap();
    assert_eq!(left.len(), 0, "an empty file stays in the root: documented in bundle.rs");
}
