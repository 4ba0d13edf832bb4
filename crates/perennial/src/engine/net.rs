//! The network of a run: nothing for `host`, an empty namespace for `none`, an address on the bridge for `bridge`.

use super::Engine;
use crate::failure::Result;
use perennial_core::container::Run;
use perennial_core::id::RunId;
use perennial_core::spec::Network;
use perennial_runtime::bundle::NetworkPlan;
use perennial_runtime::network::{self, Bridge, BridgeConfig};
use std::path::{Path, PathBuf};

/// Leases of bridge addresses: shared by every root of the machine, gone after a boot.
const LEASES: &str = "/run/perennial/network";

impl Engine {
    fn namespace_of(&self, run: &RunId) -> PathBuf {
        self.root.run_dir(run).join("netns")
    }

    /// Connects a run to its network.
    ///
    /// # Errors
    /// Where the host cannot; nothing is left behind then.
    pub fn connect(&self, run: &Run, wanted: Network) -> Result<NetworkPlan> {
        match wanted {
            Network::Host => Ok(NetworkPlan::Host),
            Network::None => Ok(NetworkPlan::Empty),
            Network::Bridge => {
                let namespace = self.namespace_of(&run.id);
                Bridge::open(Path::new(LEASES), BridgeConfig::default())?.setup(run.id.as_str(), &namespace)?;
                Ok(NetworkPlan::Namespace(namespace))
            }
        }
    }

    /// Takes a run's network down, as far as it has one. Repeatable.
    ///
    /// # Errors
    /// Where the host cannot.
    pub fn disconnect(&self, run: &RunId) -> Result<()> {
        let namespace = self.namespace_of(run);
        if namespace.symlink_metadata().is_err() {
            return Ok(());
        }
        match Bridge::open(Path::new(LEASES), BridgeConfig::default()) {
            Ok(bridge) => bridge.teardown(run.as_str(), &namespace)?,
            Err(_) => network::remove_namespace(&namespace)?,
        }
        Ok(())
    }

    /// Writes the `resolv.conf` a run is shown, where its network has names to resolve.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn name_service(&self, run: &Run, wanted: Network) -> Result<Option<PathBuf>> {
        let on_bridge = match wanted {
            Network::None => return Ok(None),
            Network::Host => false,
            Network::Bridge => true,
        };
        let path = self.root.run_dir(&run.id).join("resolv.conf");
        network::write_resolv_conf(&path, on_bridge)?;
        Ok(Some(path))
    }
}
