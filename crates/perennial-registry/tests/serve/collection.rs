//! Collection and a scrub that never rest, against pushes that send nothing twice: what a manifest needs is there as long as
//! it is.

use super::site::{IMAGE, Site, noise, options, sha256};
use perennial_core::registry::collect::Grace;
use perennial_registry::serve::{Options, Scrub};
use std::time::Duration;

const WORKERS: usize = 4;
const ROUNDS: usize = 400;

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % count
    }
}

/// A repository, a manifest in it, and the numbers of its layers.
type Kept = (String, Vec<u8>, Vec<usize>);

/// One client with manifests of its own, made of layers that all clients share.
struct Worker<'a> {
    site: &'a Site,
    layers: &'a [Vec<u8>],
    number: usize,
    dice: Dice,
    /// By tag: what is to be whole.
    kept: Vec<Option<Kept>>,
    pushed: usize,
}

impl Worker<'_> {
    /// Does what clients do: asks for the blob, and mounts or sends it where it is not there.
    fn send(&mut self, name: &str, content: &[u8]) {
        let (digest, other) = (sha256(content), if name == "r0" { "r1" } else { "r0" });
        let found = self.site.ask("HEAD", &format!("/v2/{name}/blobs/{digest}"), &[], b"").status;
        if found == 200 {
            return;
        }
        if self.dice.below(2) == 0 {
            let mount = format!("/v2/{name}/blobs/uploads/?mount={digest}&from={other}");
            if self.site.ask("POST", &mount, &[], b"").status == 201 {
                return;
            }
        }
        self.site.push(name, content);
    }

    fn push(&mut self) {
        let tag = self.dice.below(self.kept.len());
        let name = format!("r{}", tag % 2);
        let chosen: Vec<usize> = (0..2).map(|_| self.dice.below(self.layers.len())).collect();
        self.send(&name, b"{}");
        for layer in &chosen {
            self.send(&name, &self.layers[*layer]);
        }
        let layers = chosen.iter().map(|layer| sha256(&self.layers[*layer]));
        let mut manifest: serde_json::Value =
            serde_json::from_slice(&super::site::image(&sha256(b"{}"), layers)).unwrap();
        manifest["annotations"] = serde_json::json!({"by": format!("{} {tag}", self.number)});
        let manifest = manifest.to_string().into_bytes();
        let reference = format!("w{}-{tag}", self.number);
        let put =
            self.site.ask("PUT", &format!("/v2/{name}/manifests/{reference}"), &[("Content-Type", IMAGE)], &manifest);
        if put.status == 201 {
            self.pushed += 1;
            self.kept[tag] = Some((name, manifest, chosen));
            self.check(tag);
        } else {
            // The grace was over before the manifest came.
            assert_eq!(put.refusal(), (400, "MANIFEST_BLOB_UNKNOWN".to_owned()), "{}", put.text());
        }
    }

    fn check(&self, tag: usize) {
        let Some((name, manifest, layers)) = &self.kept[tag] else { return };
        let path = format!("/v2/{name}/manifests/{}", sha256(manifest));
        assert_eq!(self.site.get(&path).body, *manifest);
        for layer in layers {
            let path = format!("/v2/{name}/blobs/{}", sha256(&self.layers[*layer]));
            let got = self.site.get(&path);
            assert!(got.body == self.layers[*layer], "{path}: {} {}", got.status, got.text());
        }
    }

    /// Deletes a manifest of its own, or any blob.
    fn delete(&mut self) {
        let tag = self.dice.below(self.kept.len());
        if self.dice.below(2) == 0 {
            if let Some((name, manifest, _)) = self.kept[tag].take() {
                let path = format!("/v2/{name}/manifests/{}", sha256(&manifest));
                assert_eq!(self.site.ask("DELETE", &path, &[], b"").status, 202);
            }
            return;
        }
        let layer = &self.layers[self.dice.below(self.layers.len())];
        let path = format!("/v2/r{}/blobs/{}", self.dice.below(2), sha256(layer));
        let status = self.site.ask("DELETE", &path, &[], b"").status;
        assert!([202, 404, 409].contains(&status), "{status}");
    }

    fn work(&mut self) {
        for _ in 0..ROUNDS {
            match self.dice.below(4) {
                0 | 1 => self.push(),
                2 => self.delete(),
                _ => {
                    let tag = self.dice.below(self.kept.len());
                    self.check(tag);
                }
            }
        }
    }
}

#[test]
fn no_blob_of_a_manifest_goes_however_pushes_deletions_collections_and_the_scrub_meet() {
    let storage = tempfile::tempdir().unwrap();
    let collecting = Options {
        grace: Grace { nanos: 40_000_000 },
        collect_every: Some(Duration::from_millis(3)),
        collects_untagged: true,
        scrub: Some(Scrub { bytes_per_s: 200_000_000, every: Duration::from_millis(2) }),
        ..options(storage.path())
    };
    let site = Site::start(collecting);
    // Short ones are read at once, long ones in pieces.
    let layers: Vec<Vec<u8>> = (0..24).map(|number| noise(500 + number + 40_000 * (number % 3))).collect();
    let workers: Vec<Worker<'_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|number| {
                let dice = Dice(u64::try_from(number).unwrap());
                let (site, layers, kept) = (&site, layers.as_slice(), vec![None; 3]);
                let mut worker = Worker { site, layers, number, dice, kept, pushed: 0 };
                scope.spawn(move || {
                    worker.work();
                    worker
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for worker in &workers {
        assert!(worker.pushed > 0, "nothing was pushed");
        (0..worker.kept.len()).for_each(|tag| worker.check(tag));
    }
    let metrics = site.get("/metrics").text();
    let counted = |name: &str| {
        let value = |line: &str| line.strip_prefix(&format!("perennial_registry_{name} ")).map(str::to_owned);
        metrics.lines().find_map(value).unwrap().parse::<u64>().unwrap()
    };
    let (freed, scrubbed) = (counted("blobs_freed_total"), counted("scrubbed_bytes_total"));
    assert!(freed > 0, "nothing was collected");
    // More than all layers, some ten times.
    assert!(scrubbed > 10_000_000, "the scrub has read {scrubbed} bytes only");
    assert_eq!(counted("blobs_found_damaged_total"), 0, "nothing was damaged");
    let pushed: usize = workers.iter().map(|worker| worker.pushed).sum();
    println!("{pushed} pushes, {freed} blobs freed, {scrubbed} bytes scrubbed");
    assert_eq!(site.get("/healthz").json()["status"], serde_json::json!("ok"));
}
