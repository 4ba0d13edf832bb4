//! What an OCI image can say of a container, and what has to be left out: decided here, told by `export`.

use crate::id::Digest;
use crate::image::ImageConfig;
use crate::process::PATH_DEFAULT;
use crate::spec::{ContainerSpec, Limits, Network};
use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// Paths kept of each kind of loss; the rest is counted.
pub const PATHS_MAX: usize = 20;
/// Longest path that is exported, in bytes: engines unpack by path, so `PATH_MAX` less room for their own directories.
pub const PATH_BYTES_MAX: usize = 3840;
/// Beginning of names that mean a removal in an image's layers.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// What an image's layer cannot say of an entry, or what many readers do not take as it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// A socket; left out.
    Socket,
    /// An entry, with all below it, whose name means a removal; left out.
    WhiteoutName,
    /// An entry, with all below it, whose path is longer than [`PATH_BYTES_MAX`]; left out.
    PathTooLong,
    /// Inode flags, as `chattr` sets them; left out.
    InodeFlags,
    /// An extended attribute that would steer a union mount; left out.
    UnionAttribute,
    /// An extended attribute that cannot be written: a name with `=`, or more of them than readers take; left out.
    Attribute,
    /// An extended attribute without a value; written, but lost to most readers.
    EmptyAttribute,
    /// A time before 1970; written, but lost to most readers.
    EarlyTime,
    /// A label of SELinux; written, but other engines give their own.
    Label,
    /// Mode, owner or attributes of the root directory; written, but most engines give it their own.
    Root,
    /// Holes of a file; written as zeros.
    Holes,
}

impl Loss {
    /// Returns what happened, for people, to so many paths.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Socket => "sockets, left out",
            Self::WhiteoutName => "names that begin with .wh., left out with all below them",
            Self::PathTooLong => "paths too long for other engines, left out with all below them",
            Self::InodeFlags => "inode flags (chattr), left out",
            Self::UnionAttribute => "extended attributes that steer union mounts, left out",
            Self::Attribute => "extended attributes that an archive cannot hold, left out",
            Self::EmptyAttribute => "extended attributes without a value, written but lost to most readers",
            Self::EarlyTime => "times before 1970, written but lost to most readers",
            Self::Label => "labels of SELinux, written but replaced by most engines",
            Self::Root => "mode, owner or attributes of the root, written but replaced by most engines",
            Self::Holes => "files with holes, written as zeros",
        }
    }
}

/// Paths that something was lost of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub count: u64,
    /// The first [`PATHS_MAX`], as bytes relative to the root.
    pub paths: Vec<Vec<u8>>,
}

/// Everything an export left out or changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// By kind.
    pub losses: BTreeMap<Loss, Lost>,
    /// Settings of the container that an image has no place for.
    pub settings: Vec<&'static str>,
}

impl ExportReport {
    /// Adds a path that something is lost of; one that is listed, for another layer that has it, counts once.
    pub fn add(&mut self, loss: Loss, path: &[u8]) {
        let lost = self.losses.entry(loss).or_default();
        if lost.paths.iter().any(|listed| listed == path) {
            return;
        }
        lost.count = lost.count.saturating_add(1);
        if lost.paths.len() < PATHS_MAX {
            lost.paths.push(path.to_vec());
        }
    }
}

impl ExportReport {
    /// Returns whether names were left out that a later layer could not take away either: over what was exported, what
    /// it removed of them would still be there.
    #[must_use]
    pub fn leaves_out_names(&self) -> bool {
        [Loss::WhiteoutName, Loss::PathTooLong].iter().any(|loss| self.losses.contains_key(loss))
    }
}

/// What becomes of an extended attribute of a layer or of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttributeFate {
    /// It is written.
    Keep,
    /// It is overlayfs' own note, which means nothing elsewhere.
    Drop,
    /// It is left out or may be lost, and reported.
    Lose(Loss),
}

/// Where an attribute was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundIn {
    /// A layer, in which overlayfs' names are overlayfs'.
    Layer,
    /// A view of a container, in which they are the container's.
    View,
}

/// Decides about an extended attribute by its name.
#[must_use]
pub fn fate_of(name: &[u8], found: FoundIn) -> AttributeFate {
    const OVERLAY: &[u8] = b"trusted.overlay.";
    const ESCAPED: &[u8] = b"trusted.overlay.overlay.";
    const PROTECTED: &[u8] = b"trusted.overlay.protattr";
    let is_steering = [OVERLAY, b"user.overlay.", b"trusted.perennial."].iter().any(|prefix| name.starts_with(prefix));
    match found {
        FoundIn::Layer if name == PROTECTED => AttributeFate::Lose(Loss::InodeFlags),
        FoundIn::Layer if name.starts_with(OVERLAY) && !name.starts_with(ESCAPED) => AttributeFate::Drop,
        FoundIn::Layer | FoundIn::View if is_steering => AttributeFate::Lose(Loss::UnionAttribute),
        FoundIn::Layer | FoundIn::View if name.contains(&b'=') => AttributeFate::Lose(Loss::Attribute),
        FoundIn::Layer | FoundIn::View => AttributeFate::Keep,
    }
}

/// Returns what an image of a container says about running it, and the settings it has no place for.
#[must_use]
pub fn exported_config(image: &ImageConfig, spec: &ContainerSpec) -> (ImageConfig, Vec<&'static str>) {
    let mut config = image.clone();
    if let Some(entrypoint) = &spec.entrypoint {
        // As for a run: an entrypoint of the container's hides the image's arguments.
        config.entrypoint.clone_from(entrypoint);
        config.cmd.clear();
    }
    if !spec.command.is_empty() {
        config.cmd.clone_from(&spec.command);
    }
    for setting in &spec.env {
        let name = |text: &str| text.split_once('=').map_or_else(|| text.to_owned(), |(name, _)| name.to_owned());
        let own = name(setting);
        config.env.retain(|known| name(known) != own);
        config.env.push(setting.clone());
    }
    if !config.env.iter().any(|setting| setting.starts_with("PATH=")) {
        // Runs have it here without being told; not all engines give it.
        config.env.insert(0, alloc::format!("PATH={PATH_DEFAULT}"));
    }
    for (own, of_image) in [
        (&spec.user, &mut config.user),
        (&spec.workdir, &mut config.workdir),
        (&spec.stop_signal, &mut config.stop_signal),
    ] {
        if own.is_some() {
            of_image.clone_from(own);
        }
    }
    let mut left_out = settings_left_out(spec);
    if config.health.take().is_some() && spec.health.is_none() {
        left_out.push(HEALTH_CHECK);
    }
    (config, left_out)
}

/// Returns the settings of a new container on `base` that runs as an image says: what [`exported_config`] put into it.
#[must_use]
pub fn imported_spec(image: &ImageConfig, base: &ImageConfig) -> ContainerSpec {
    let is_default = |setting: &String| setting.strip_prefix("PATH=") == Some(PATH_DEFAULT);
    let is_new = |setting: &&String| !base.env.contains(setting) && !is_default(setting);
    let own = |of_image: &Option<String>, of_base: &Option<String>| of_image.clone().filter(|_| of_image != of_base);
    let entrypoint = (image.entrypoint != base.entrypoint).then(|| image.entrypoint.clone());
    // An entrypoint of the container's hides the image's arguments, so then they are its own.
    let has_own_command = entrypoint.is_some() || image.cmd != base.cmd;
    ContainerSpec {
        command: if has_own_command { image.cmd.clone() } else { Vec::new() },
        entrypoint,
        env: image.env.iter().filter(is_new).cloned().collect(),
        user: own(&image.user, &base.user),
        workdir: own(&image.workdir, &base.workdir),
        stop_signal: own(&image.stop_signal, &base.stop_signal),
        ..ContainerSpec::default()
    }
}

/// Returns what an image says otherwise about running it than a container does that gets its state.
#[must_use]
pub fn settings_not_taken(image: &ImageConfig, own: &ImageConfig) -> Vec<&'static str> {
    let sorted = |env: &[String]| {
        let mut env = env.to_vec();
        env.sort();
        env
    };
    let table = [
        ("entrypoint", image.entrypoint != own.entrypoint),
        ("command", image.cmd != own.cmd),
        ("environment", sorted(&image.env) != sorted(&own.env)),
        ("user", image.user != own.user),
        ("working directory", image.workdir != own.workdir),
        ("stop signal", image.stop_signal != own.stop_signal),
    ];
    table.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// Returns whether layers, oldest first, begin with those of an image and are not only a part of them.
#[must_use]
pub fn begins_with(layers: &[Digest], image: &[Digest]) -> bool {
    !image.is_empty() && layers.starts_with(image)
}

/// The name of the setting that tells whether a container is healthy.
const HEALTH_CHECK: &str = "health check";

fn settings_left_out(spec: &ContainerSpec) -> Vec<&'static str> {
    let capabilities = !spec.cap_add.is_empty() || !spec.cap_drop.is_empty();
    let table = [
        ("volumes", !spec.volumes.is_empty()),
        ("hostname", spec.hostname.is_some()),
        ("limits", spec.limits != Limits::default()),
        ("network", spec.network != Network::default()),
        ("capabilities", capabilities),
        ("init", spec.init),
        ("terminal", spec.tty),
        ("interactive", spec.interactive),
        (HEALTH_CHECK, spec.health.is_some()),
        ("runtime", spec.runtime.is_some()),
        ("stop timeout", spec.stop_timeout_s.is_some()),
    ];
    table.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
}

/// Returns the name an exported generation goes by where none is given: names of images have no capital letters.
#[must_use]
pub fn default_tag(container: &str, seq: u64) -> String {
    let mut tag = container.to_ascii_lowercase();
    // Such names end in a letter or a digit.
    let end = tag.trim_end_matches(['.', '-', '_']).len();
    tag.truncate(end);
    alloc::format!("{tag}:{seq}")
}
