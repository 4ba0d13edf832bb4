//! What generations take in packs: `cold_space INPUT ROOT`.
//!
//! INPUT holds `objects/ab/cdef…` and, for each generation, `genNN`: its files as `ID SIZE PATH` ended by NUL. Each
//! generation's new objects are archived in turn, as the generations would get old; then everything is thawed.
#![expect(clippy::print_stdout, reason = "a measurement talks to the person who started it")]
#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use anyhow::Context as _;
use perennial_core::sealed::object::ObjectId;
use perennial_store::cold::{HotObjects, Packer, Request};
use perennial_store::root::{Root, Secret, Wait};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Objects of the measured generations; what is thawed is not kept.
struct Input(PathBuf);

impl HotObjects for Input {
    fn open(&self, id: &ObjectId) -> std::io::Result<File> {
        File::open(self.0.join("objects").join(id.relative_path()))
    }

    fn adopt(&self, _: &ObjectId, _: &File) -> std::io::Result<()> {
        Ok(())
    }
}

type Files = BTreeMap<Vec<u8>, ObjectId>;

fn generation(path: &Path) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for line in std::fs::read(path)?.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let mut fields = line.splitn(3, |byte| *byte == b' ');
        let id = str::from_utf8(fields.next().context("a line has an id")?)?;
        let path = fields.nth(1).context("a line has a path")?;
        files.insert(path.to_vec(), id.parse().map_err(|_| anyhow::anyhow!("{id} is no object id"))?);
    }
    Ok(files)
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let input = Input(arguments.next().context("give INPUT and ROOT")?);
    let root = Root::open_or_create(
        &arguments.next().context("give INPUT and ROOT")?,
        "2026-01-01T00:00:00Z".parse().context("a time is RFC 3339")?,
        Secret::from_random([7; 16]),
    )?;
    let mut packer = Packer::open(&root, Wait::Never)?.context("nobody else uses the root")?;
    let numbers = (1..).map(|number| input.0.join(format!("gen{number:02}"))).take_while(|path| path.exists());
    let generations: Vec<Files> = numbers.map(|path| generation(&path)).collect::<Result<_, _>>()?;
    let mut known: BTreeSet<ObjectId> = BTreeSet::new();
    let mut total = 0;
    for (number, files) in generations.iter().enumerate() {
        let other = generations.get(number + 1).or_else(|| generations.get(number.checked_sub(1)?));
        let request = |(path, object): (&Vec<u8>, &ObjectId)| Request {
            object: *object,
            path: path.clone(),
            neighbour: other.and_then(|files| files.get(path)).copied().filter(|neighbour| neighbour != object),
        };
        let requests: Vec<Request> = files.iter().filter(|(_, object)| !known.contains(*object)).map(request).collect();
        known.extend(files.values());
        let (count, start) = (requests.len(), Instant::now());
        let archived = packer.archive(&input, requests, &mut || true)?;
        total += archived.packs.iter().map(|(_, bytes)| bytes).sum::<u64>();
        anyhow::ensure!(archived.refused.is_empty(), "{:?}", archived.refused);
        println!("{} objects {count} bytes {total} seconds {:.2}", number + 1, start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    let mut objects: Vec<ObjectId> = known.into_iter().collect();
    packer.cold().sort(&mut objects);
    for object in &objects {
        packer.cold().thaw(object, &input)?;
    }
    println!("thawed {} objects, seconds {:.2}", objects.len(), start.elapsed().as_secs_f64());
    Ok(())
}
