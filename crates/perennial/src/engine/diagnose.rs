//! `doctor`: every invariant over what is really there. It changes nothing, apart from a trial directory in `staging/`
//! that it removes.

use super::collect::named;
use super::records::View;
use super::recover::has_content;
use super::{Engine, random};
use crate::failure::{Failure, Result};
use perennial_core::check::{Finding, Severity, StoreFacts, check};
use perennial_core::container::Container;
use perennial_core::format::{self, Format};
use perennial_core::host::{self, Ability, Cgroups, HostFacts};
use perennial_core::id::{LayerId, RunId};
use perennial_core::image::Image;
use perennial_core::layers::LayerRecord;
use perennial_core::travel::remote::{Remote, Tracking};
use perennial_runtime::cgroup::CgroupVersion;
use perennial_runtime::{mount, probe};
use perennial_store::cold::Cold;
use perennial_store::layer;
use perennial_store::objects::Objects;
use perennial_store::records::{RecordStore as _, keys};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;

/// What helps where a record is not what was written.
const RESTORE: &str = "restore records.db from a copy; the layers are not touched";

/// What the doctor found.
#[derive(Debug)]
pub struct Diagnosis {
    /// What is the matter, the worst first.
    pub findings: Vec<Finding>,
    /// What the machine has.
    pub host: probe::HostProbe,
    /// What the root's file system can do.
    pub directory: probe::DirectoryProbe,
    /// Whether layers can be used sealed, and how; layers stay directories where not.
    pub sealing: std::result::Result<mount::Handing, String>,
}

impl Diagnosis {
    /// Returns whether anything is an error.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// Records as far as they can be read.
#[derive(Debug, Default)]
struct Readable {
    containers: Vec<Container>,
    images: Vec<Image>,
    layers: Vec<LayerRecord>,
    views: Vec<View>,
    findings: Vec<Finding>,
}

impl Readable {
    fn take<T: DeserializeOwned>(&mut self, engine: &Engine, format: Format, prefix: &str) -> Result<Vec<T>> {
        let mut values = Vec::new();
        for (key, record) in engine.records.list(prefix)? {
            match format::decode(format, &record.bytes) {
                Ok(value) => values.push(value),
                Err(error) => self.findings.push(Finding {
                    severity: Severity::Error,
                    object: format!("record {key}"),
                    message: error.to_string(),
                    hint: RESTORE.to_owned(),
                }),
            }
        }
        Ok(values)
    }
}

impl Engine {
    /// Checks every invariant, the machine's abilities, space, and what lies in the root beside the records.
    ///
    /// # Errors
    /// Where the record store or the root's directories cannot be read at all.
    pub fn diagnose(&self) -> Result<Diagnosis> {
        let (mut findings, containers) = self.check_store()?;
        if !findings.is_empty() {
            // Nothing is locked while it is looked at, so what another command was just changing looks wrong once.
            let (again, _) = self.check_store()?;
            findings.retain(|finding| again.contains(finding));
        }
        findings.extend(self.records.integrity()?.into_iter().map(|message| Finding {
            severity: Severity::Error,
            object: "records.db".to_owned(),
            message,
            hint: RESTORE.to_owned(),
        }));
        findings.extend(host::check_space(&self.space()?));
        findings.extend(self.check_packs()?);
        // What cannot be read is told of above.
        findings.extend(self.check_unsent(&containers).unwrap_or_default());
        findings.extend(self.check_keys().unwrap_or_default());
        self.wake_senders().ok();
        let (host, directory) = self.probe(&containers, &mut findings)?;
        findings.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.object.cmp(&b.object)));
        Ok(Diagnosis { findings, host, directory, sealing: self.can_seal() })
    }

    /// Checks records and directories against each other.
    fn check_store(&self) -> Result<(Vec<Finding>, Vec<Container>)> {
        let mut trees: BTreeSet<LayerId> = BTreeSet::new();
        for id in layer::list(&self.root)? {
            // A record that cannot be read is told of below.
            if self.is_whole(&id).unwrap_or(true) {
                trees.insert(id);
            }
        }
        let run_dirs: BTreeSet<RunId> = named(&self.root.path().join("runs"), "")?;
        let mut found = Readable::default();
        found.containers = found.take(self, Format::Container, keys::CONTAINERS)?;
        found.images = found.take(self, Format::Image, keys::IMAGES)?;
        found.layers = found.take(self, Format::Layer, keys::LAYERS)?;
        found.views = found.take(self, Format::View, keys::VIEWS)?;
        found.take::<Remote>(self, Format::Remote, keys::REMOTES)?;
        found.take::<Tracking>(self, Format::Tracking, keys::TRACKINGS)?;
        let mut findings = std::mem::take(&mut found.findings);
        if findings.is_empty() {
            let facts = self.store_facts(&found, trees, run_dirs, &mut findings)?;
            findings.extend(check(&facts));
            findings.extend(self.check_names(&found.containers)?);
        }
        findings.extend(host::check_depth(&found.containers));
        let mut lost = Vec::new();
        for container in &found.containers {
            if let Some(run) = container.phase.run()
                && self.is_nobodys(&run.id)?
            {
                lost.push(container);
            }
        }
        findings.extend(host::unsupervised(&lost));
        Ok((findings, found.containers))
    }

    fn store_facts(
        &self,
        found: &Readable,
        layer_trees: BTreeSet<LayerId>,
        run_dirs: BTreeSet<RunId>,
        findings: &mut Vec<Finding>,
    ) -> Result<StoreFacts> {
        let live: BTreeSet<&RunId> = found.containers.iter().filter_map(|c| c.phase.run().map(|run| &run.id)).collect();
        let mut facts = StoreFacts {
            containers: found.containers.clone(),
            images: found.images.iter().map(|image| image.digest.clone()).collect(),
            layer_records: found.layers.iter().map(|layer| layer.id.clone()).collect(),
            layer_trees,
            image_layers: found.images.iter().flat_map(|image| image.layers.iter().cloned()).collect(),
            held: self.held_layers()?,
            view_layers: found.views.iter().flat_map(|view| view.layers.iter().cloned()).collect(),
            ..StoreFacts::default()
        };
        let mut set_aside = Vec::new();
        for run in run_dirs {
            let upper = self.root.run_dir(&run).join("upper");
            // One that somebody holds is being made or freed right now.
            if live.contains(&run) {
                facts.run_dirs.insert(run);
            } else if self.is_nobodys(&run)? {
                if has_content(&upper) {
                    set_aside.push((run, upper.display().to_string()));
                } else {
                    facts.run_dirs.insert(run);
                }
            }
        }
        for entry in mount::mounts_under(&self.root.path().join("runs"))? {
            let run = entry.target.parent().and_then(|parent| parent.file_name()?.to_str()?.parse::<RunId>().ok());
            let is_union = entry.fs_type == "overlay";
            if let Some(run) = run.filter(|run| is_union && (live.contains(run) || facts.run_dirs.contains(run))) {
                facts.mounts.insert(run);
            }
        }
        findings.extend(host::set_aside(&set_aside));
        let stale: Vec<String> = self.stale_views()?.into_iter().map(|(_, view)| view.target).collect();
        findings.extend(host::stale_views(&stale));
        Ok(facts)
    }

    /// Looks whether packs can be read as far as their indexes say.
    fn check_packs(&self) -> Result<Vec<Finding>> {
        let finding = |severity, object: String, message: String, hint: &str| Finding {
            severity,
            object,
            message,
            hint: hint.to_owned(),
        };
        if !self.has_packs()? {
            let lost = self.without_content()?;
            let message = format!("{lost} layers need packs, and there are none");
            let hint = "`perennial verify` names the generations that are hit; restore packs/ from a copy";
            let lost = (lost > 0).then(|| finding(Severity::Error, "packs".to_owned(), message, hint));
            return Ok(lost.into_iter().collect());
        }
        let cold = match Cold::open(&self.root) {
            Ok(cold) => cold,
            Err(error) => {
                let message = Failure::from(error).one_line();
                let hint = "nothing that is in packs can be used until they can be read; hot generations can";
                return Ok(vec![finding(Severity::Error, "packs".to_owned(), message, hint)]);
            }
        };
        let scanned = cold.scanned().into_iter().map(|pack| {
            let message = "its index is damaged: what can be found in it without is used".to_owned();
            let hint = "`perennial verify --full` says whether anything is lost";
            finding(Severity::Warning, format!("pack {pack}"), message, hint)
        });
        Ok(scanned.collect())
    }

    /// Returns how many cold layers lack contents outside of packs. One that was made of cold layers is cold too, and may
    /// have none of what was in packs.
    fn without_content(&self) -> Result<usize> {
        let objects = Objects::open(&self.root)?;
        let mut lost: usize = 0;
        for doc in self.layers()?.into_iter().filter(|doc| doc.value.cold) {
            let mut named = Vec::new();
            if self.objects_of(&self.root.layer_dir(&doc.value.id), &mut |object| named.push(object)).is_err() {
                // What it names cannot be told, and is no reason to tell nothing else.
                lost = lost.saturating_add(1);
                continue;
            }
            for object in named {
                if !objects.exists(&object)? {
                    lost = lost.saturating_add(1);
                    break;
                }
            }
        }
        Ok(lost)
    }

    /// Names lead to containers, and containers have their names.
    fn check_names(&self, containers: &[Container]) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let mut error = |object: String, message: String| {
            findings.push(Finding { severity: Severity::Error, object, message, hint: RESTORE.to_owned() });
        };
        let names = self.records.list(keys::NAMES)?;
        for (key, record) in &names {
            let id = String::from_utf8_lossy(&record.bytes);
            if !containers.iter().any(|container| container.id.as_str() == id) {
                error(format!("record {key}"), format!("names container {id}, of which there is no record"));
            }
        }
        for container in containers {
            let key = keys::name(&container.name);
            if !names.iter().any(|(name, record)| *name == key && record.bytes == container.id.as_str().as_bytes()) {
                error(format!("container {}", container.name), format!("record {key} does not lead to it"));
            }
        }
        Ok(findings)
    }

    fn probe(
        &self,
        containers: &[Container],
        findings: &mut Vec<Finding>,
    ) -> Result<(probe::HostProbe, probe::DirectoryProbe)> {
        let host = probe::host(super::exit::RUNTIME_DEFAULT);
        let trial = format!("probe-{}", RunId::from_random(random()?));
        let staging = self.keep_staging()?;
        let directory = probe::directory(&self.root.staging_dir(), &trial)?;
        drop(staging);
        let mut runtimes = vec![(super::exit::RUNTIME_DEFAULT.to_owned(), host.runtime.clone().map(drop))];
        let named: BTreeSet<&String> =
            containers.iter().filter_map(|container| container.spec.runtime.as_ref()).collect();
        for name in named {
            let works = self.runtime(Some(name)).and_then(|runtime| runtime.version());
            runtimes.push((name.clone(), works.map(drop).map_err(|error| error.to_string())));
        }
        let facts = HostFacts {
            overlay: ability(&directory.overlay),
            trusted_xattrs: ability(&directory.trusted_xattrs),
            whiteouts: ability(&directory.whiteouts),
            d_type: ability(&directory.d_type),
            cgroups: match host.cgroups {
                CgroupVersion::V2 => Cgroups::V2,
                CgroupVersion::V1 => Cgroups::V1,
                CgroupVersion::None => Cgroups::None,
            },
            has_swap_accounting: host.swap_accounting,
            runtimes,
            has_netavark: host.netavark.is_some(),
            has_init: host.init.is_some(),
        };
        findings.extend(host::check_host(&facts, containers));
        Ok((host, directory))
    }
}

/// Says whether something works in the core's words.
pub fn ability(probed: &probe::Ability) -> Ability {
    match probed {
        probe::Ability::Works => Ok(()),
        probe::Ability::Fails(why) => Err(why.clone()),
    }
}
