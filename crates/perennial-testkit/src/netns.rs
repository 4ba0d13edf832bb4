//! Two machines, as far as their networks are concerned: namespaces joined by a cable.

use crate::host::run;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The machines' addresses.
pub const ADDRESSES: [&str; 2] = ["10.199.7.1", "10.199.7.2"];

/// Two network namespaces joined by a cable, gone when dropped.
#[derive(Debug)]
pub struct Network {
    /// Their names, as `ip netns` knows them.
    pub names: [String; 2],
}

impl Network {
    /// Makes them.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn new() -> Result<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let network = Self { names: ["one", "other"].map(|name| format!("pn{}-{number}-{name}", std::process::id())) };
        for name in &network.names {
            run(Command::new("ip").args(["netns", "add", name]))?;
        }
        let [one, other] = &network.names;
        let cable = ["link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other];
        run(Command::new("ip").args(cable))?;
        for (name, address) in network.names.iter().zip(ADDRESSES) {
            run(Command::new("ip").args(["-n", name, "address", "add", &format!("{address}/24"), "dev", "eth0"]))?;
            for link in ["lo", "eth0"] {
                run(Command::new("ip").args(["-n", name, "link", "set", link, "up"]))?;
            }
        }
        Ok(network)
    }

    /// Returns a command that runs a program in one of them, `args` being its name and arguments. Unlike with `ip netns exec`
    /// the cgroups stay to be seen.
    #[must_use]
    pub fn command(name: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", PathBuf::from("/run/netns").join(name).display())).args(args);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.names {
            // The cable goes with the first.
            drop(run(Command::new("ip").args(["netns", "del", name])));
        }
    }
}
