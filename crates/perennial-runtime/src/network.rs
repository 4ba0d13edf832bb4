//! Networks of containers: named namespaces, a bridge of the host through netavark, and `resolv.conf`.
//!
//! The bridge is shared by every root of the machine, so its lease directory should be too, and should not outlive a
//! boot (below `/run`): then two roots never hand out the same address, and nothing stale is left after a crash.

use crate::mount::is_mounted;
use rustix::fs::FlockOperation;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where distributions put netavark.
const NETAVARK_PATHS: [&str; 4] = [
    "/usr/libexec/podman/netavark",
    "/usr/lib/podman/netavark",
    "/usr/local/libexec/podman/netavark",
    "/usr/bin/netavark",
];
/// Taken by everybody who changes the machine's networks, whatever the root: netavark's changes to the firewall are not
/// atomic.
const LOCK: &str = "/run/perennial-network.lock";
/// Longest name of a network interface (`IFNAMSIZ` without its NUL).
const INTERFACE_BYTES_MAX: usize = 15;

/// A bridge and the addresses on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Name of the bridge on the host.
    pub interface: String,
    /// First address of the subnet.
    pub subnet: Ipv4Addr,
    /// Bits of the subnet's prefix, 8 to 29.
    pub prefix_bits: u8,
}

impl Default for BridgeConfig {
    /// A subnet next to podman's 10.88.0.0/16, so that both can live on one machine.
    fn default() -> Self {
        Self { interface: "perennial0".to_owned(), subnet: Ipv4Addr::new(10, 87, 0, 0), prefix_bits: 16 }
    }
}

/// Where a container is on the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Its own address.
    pub address: Ipv4Addr,
    /// The host's address on the bridge.
    pub gateway: Ipv4Addr,
}

/// Why a network could not be set up or taken down.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// netavark is not installed.
    #[error("--network bridge needs netavark: install the package netavark, or use --network host or none")]
    NoNetavark,
    /// The settings of the bridge make no sense.
    #[error("bridge {interface} with subnet {subnet}/{prefix_bits} is not possible")]
    Config {
        /// Its name.
        interface: String,
        /// Its first address.
        subnet: Ipv4Addr,
        /// Its prefix.
        prefix_bits: u8,
    },
    /// All addresses are leased.
    #[error("no address is free on bridge {interface}")]
    NoAddress {
        /// The bridge.
        interface: String,
    },
    /// netavark said no.
    #[error("netavark {command} failed: {message}")]
    Netavark {
        /// What it was to do.
        command: &'static str,
        /// What it said.
        message: String,
    },
    /// A file or namespace could not be made, read or removed.
    #[error("network: {what} {path}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which file.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> NetworkError {
    let path = path.display().to_string();
    move |source| NetworkError::Io { what, path: path.clone(), source }
}

/// Makes a network namespace and keeps it at `path`, a file that need not exist.
///
/// # Errors
/// If the kernel refuses.
pub fn create_namespace(path: &Path) -> Result<(), NetworkError> {
    let fail = io_error("making the namespace", path);
    File::create(path).map_err(&fail)?;
    let target = std::path::absolute(path).map_err(&fail)?;
    let made = std::thread::scope(|scope| {
        let helper = std::thread::Builder::new().spawn_scoped(scope, || {
            #[expect(unsafe_code, reason = "rustix marks every unshare unsafe because of FILES, which is not used")]
            // SAFETY: only the network namespace of this short-lived thread changes; no descriptor table is touched.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            mount_bind("/proc/thread-self/ns/net", target.as_path()).map_err(io::Error::from)
        });
        helper?.join().map_err(|_| io::Error::other("the helping thread ended"))?
    });
    made.map_err(fail)
}

/// Removes the namespace kept at `path`; it goes when its last process has gone. Nothing there is no error.
///
/// # Errors
/// If the kernel refuses.
pub fn remove_namespace(path: &Path) -> Result<(), NetworkError> {
    let fail = io_error("removing the namespace", path);
    while is_mounted(path).map_err(&fail)? {
        unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map_err(|errno| fail(errno.into()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The bridge of the machine.
#[derive(Debug, Clone)]
pub struct Bridge {
    netavark: PathBuf,
    directory: PathBuf,
    config: BridgeConfig,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Leases {
    addresses: BTreeMap<String, Ipv4Addr>,
}

impl Bridge {
    /// Prepares to use the bridge; leases are kept in `directory`, which is made if need be.
    ///
    /// # Errors
    /// If netavark is not installed or the settings make no sense.
    pub fn open(directory: &Path, config: BridgeConfig) -> Result<Self, NetworkError> {
        let netavark = find_netavark().ok_or(NetworkError::NoNetavark)?;
        let name_fits = (1..=INTERFACE_BYTES_MAX).contains(&config.interface.len());
        let host_bits = 32_u32.saturating_sub(u32::from(config.prefix_bits));
        let is_first = config.subnet.to_bits().trailing_zeros() >= host_bits;
        if !name_fits || !(8..=29).contains(&config.prefix_bits) || !is_first {
            let BridgeConfig { interface, subnet, prefix_bits } = config;
            return Err(NetworkError::Config { interface, subnet, prefix_bits });
        }
        std::fs::create_dir_all(directory).map_err(io_error("making the lease directory", directory))?;
        Ok(Self { netavark, directory: directory.to_owned(), config })
    }

    /// Makes the namespace at `namespace`, leases an address to `id` and connects both with the bridge.
    ///
    /// # Errors
    /// If any of it fails; what had been made is taken down then.
    pub fn setup(&self, id: &str, namespace: &Path) -> Result<Address, NetworkError> {
        let _lock = Self::lock()?;
        let address = self.lease(id)?;
        let made = create_namespace(namespace)
            .and_then(|()| self.netavark("setup", &self.request(id, address.address), namespace));
        if let Err(error) = made {
            // The first error is the one to tell; what is left is found and taken down by the next teardown.
            self.teardown_locked(id, namespace).ok();
            return Err(error);
        }
        Ok(address)
    }

    /// Undoes [`Bridge::setup`], whatever of it has been done. A second call does nothing.
    ///
    /// # Errors
    /// If the interface, the lease or the namespace cannot be removed.
    pub fn teardown(&self, id: &str, namespace: &Path) -> Result<(), NetworkError> {
        let _lock = Self::lock()?;
        self.teardown_locked(id, namespace)
    }

    fn teardown_locked(&self, id: &str, namespace: &Path) -> Result<(), NetworkError> {
        let mut leases = self.leases()?;
        let is_kept = is_mounted(namespace).map_err(io_error("looking for the namespace", namespace))?;
        if let (Some(address), true) = (leases.addresses.get(id), is_kept) {
            match self.netavark("teardown", &self.request(id, *address), namespace) {
                // Its interface has not been made, or has gone with its last process.
                Err(NetworkError::Netavark { message, .. }) if message.contains("No such device") => {}
                other => other?,
            }
        }
        remove_namespace(namespace)?;
        if leases.addresses.remove(id).is_some() {
            self.keep(&leases)?;
        }
        Ok(())
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.config.subnet.to_bits().saturating_add(1))
    }

    fn lease(&self, id: &str) -> Result<Address, NetworkError> {
        let mut leases = self.leases()?;
        let address = match leases.addresses.get(id) {
            Some(address) => *address,
            None => {
                let free = free_address(&self.config, leases.addresses.values().copied());
                let free = free.ok_or_else(|| NetworkError::NoAddress { interface: self.config.interface.clone() })?;
                leases.addresses.insert(id.to_owned(), free);
                self.keep(&leases)?;
                free
            }
        };
        Ok(Address { address, gateway: self.gateway() })
    }

    /// Takes the lock; it goes with the file.
    fn lock() -> Result<File, NetworkError> {
        let path = Path::new(LOCK);
        let fail = io_error("locking", path);
        let file = File::create(path).map_err(&fail)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(fail(errno.into())),
            }
        }
    }

    fn lease_file(&self) -> PathBuf {
        self.directory.join(format!("{}.json", self.config.interface))
    }

    fn leases(&self) -> Result<Leases, NetworkError> {
        let path = self.lease_file();
        let fail = io_error("reading leases", &path);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| fail(io::Error::other(error.to_string()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Leases::default()),
            Err(error) => Err(fail(error)),
        }
    }

    /// Writes the leases so that a reader sees the old or the new ones. They need not survive a crash of the machine.
    fn keep(&self, leases: &Leases) -> Result<(), NetworkError> {
        let path = self.lease_file();
        let fail = io_error("writing leases", &path);
        let temporary = path.with_extension("json.new");
        let bytes = serde_json::to_vec(leases).map_err(|error| fail(io::Error::other(error.to_string())))?;
        File::create(&temporary).and_then(|mut file| file.write_all(&bytes)).map_err(&fail)?;
        std::fs::rename(&temporary, &path).map_err(fail)
    }

    fn request(&self, id: &str, address: Ipv4Addr) -> Value {
        let subnet = format!("{}/{}", self.config.subnet, self.config.prefix_bits);
        // netavark makes names of firewall chains from it, so that it must be unique; so must the identity.
        let name = self.config.interface.as_str();
        json!({
            "container_id": id,
            "container_name": id,
            "port_mappings": [],
            "networks": { name: { "static_ips": [address], "interface_name": "eth0" } },
            "network_info": { name: {
                "name": name,
                "id": network_id(&self.config),
                "driver": "bridge",
                "network_interface": self.config.interface,
                "subnets": [{ "subnet": subnet, "gateway": self.gateway() }],
                "ipv6_enabled": false,
                "internal": false,
                "dns_enabled": false,
                "ipam_options": { "driver": "host-local" },
                "options": {},
            } },
        })
    }

    fn netavark(&self, command: &'static str, request: &Value, namespace: &Path) -> Result<(), NetworkError> {
        let fail = io_error("running netavark for", namespace);
        let mut child = Command::new(&self.netavark)
            .arg("--config")
            .arg(&self.directory)
            .arg(command)
            .arg(namespace)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(&fail)?;
        if let Some(mut stdin) = child.stdin.take() {
            // Should it end without reading, its exit status says why.
            stdin.write_all(request.to_string().as_bytes()).ok();
        }
        let output = child.wait_with_output().map_err(fail)?;
        if output.status.success() {
            return Ok(());
        }
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        let error = answer.as_ref().and_then(|answer| answer.get("error")?.as_str()).map(str::to_owned);
        let message = error.unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned());
        Err(NetworkError::Netavark { command, message })
    }
}

/// Returns the identity of the network for netavark: FNV-1a of the bridge's name and subnet.
fn network_id(config: &BridgeConfig) -> String {
    let text = format!("{} {}/{}", config.interface, config.subnet, config.prefix_bits);
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}{:048}", 0)
}

/// Returns where netavark is installed.
#[must_use]
pub fn find_netavark() -> Option<PathBuf> {
    NETAVARK_PATHS.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Returns the lowest address of the subnet that nobody has: after the gateway, before the broadcast address.
#[must_use]
pub fn free_address(config: &BridgeConfig, taken: impl Iterator<Item = Ipv4Addr>) -> Option<Ipv4Addr> {
    let taken: std::collections::BTreeSet<u32> = taken.map(Ipv4Addr::to_bits).collect();
    let first = config.subnet.to_bits();
    let size = 1_u32.checked_shl(32_u32.saturating_sub(u32::from(config.prefix_bits)))?;
    let last = first.checked_add(size.checked_sub(2)?)?;
    (first.checked_add(2)?..=last).find(|address| !taken.contains(address)).map(Ipv4Addr::from_bits)
}

/// Returns the `resolv.conf` for a container from the host's. On a bridge the host's loopback is out of reach: name
/// servers there are replaced by those that systemd-resolved forwards to (`resolved`, its own file).
#[must_use]
pub fn resolv_conf(host: &str, resolved: Option<&str>, on_bridge: bool) -> String {
    let is_loopback = |line: &str| {
        let server = line.split_whitespace().nth(1).unwrap_or_default();
        line.trim_start().starts_with("nameserver") && (server.starts_with("127.") || server == "::1")
    };
    let is_server = |line: &str| line.trim_start().starts_with("nameserver");
    if !on_bridge {
        return host.to_owned();
    }
    let kept: Vec<&str> = host.lines().filter(|line| !is_loopback(line)).collect();
    match (kept.iter().any(|line| is_server(line)), resolved) {
        (false, Some(resolved)) => resolved.to_owned(),
        (true | false, _) => kept.iter().flat_map(|line| [*line, "\n"]).collect(),
    }
}

/// Writes the container's `resolv.conf` to `target`, for [`crate::bundle::BundlePlan::resolv_conf`].
///
/// # Errors
/// If it cannot be written. A host without the file gives an empty one.
pub fn write_resolv_conf(target: &Path, on_bridge: bool) -> Result<(), NetworkError> {
    let read = |path: &str| match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("reading", Path::new(path))(error)),
    };
    let host = read("/etc/resolv.conf")?.unwrap_or_default();
    let resolved = read("/run/systemd/resolve/resolv.conf")?;
    let text = resolv_conf(&host, resolved.as_deref(), on_bridge);
    let written = File::create(target).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(io_error("writing", target))
}
