//! The guide's page about moving a container, as it is written, on two machines with a network between them.

use crate::registry::Registry;
use crate::stage::{Stage, box_tar};
use anyhow::{Context as _, Result, ensure};
use perennial_testkit::netns::{ADDRESSES, Network};
use std::path::Path;
use std::process::Output;

/// Writes what differs from run to run as the guide does.
fn normal(text: &str, address: &str, roots: [&str; 2]) -> String {
    let mut words: Vec<String> = Vec::new();
    let text = text.replace(address, "registry.example:5000");
    for line in text.lines() {
        let mut rest: Vec<&str> = line.split(' ').collect();
        while let Some((first, others)) = rest.split_first() {
            let is_size = first.trim_start_matches('(').parse::<f64>().is_ok()
                && others.first().is_some_and(|unit| ["B", "kB", "MB"].contains(&unit.trim_end_matches([')', ','])));
            let word = match first {
                _ if is_size => format!("{}<size>", if first.starts_with('(') { "(" } else { "" }),
                word if word.starts_with("sha256:") => "<digest>".to_owned(),
                word if word.starts_with("age1") => "age1…".to_owned(),
                word if roots.iter().any(|root| word.trim_end_matches(',').ends_with(root)) => "<machine>".to_owned(),
                word if word.starts_with("20") && word.contains('T') => "<time>,".to_owned(),
                word => (*word).to_owned(),
            };
            let tail =
                if is_size { others.first().map_or("", |unit| unit.trim_start_matches(['B', 'k', 'M'])) } else { "" };
            words.push(format!("{word}{tail}"));
            rest = if is_size { others.get(1..).unwrap_or_default().to_vec() } else { others.to_vec() };
        }
        words.push("\n".to_owned());
    }
    let joined = words.join(" ").replace(" \n ", "\n").replace(" \n", "\n");
    match joined.split_once(" was sent by ") {
        Some((before, after)) => {
            let after = after.split_once(" on <machine>").map_or(after, |(_, after)| after);
            format!("{before} was sent by <who> on <machine>{after}")
        }
        None => joined,
    }
}

fn shown(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => text,
        code => format!("{text}? {}\n", code.unwrap_or(-1)),
    }
}

#[test]
fn the_guide_moves_a_container_between_two_machines_as_it_says() -> Result<()> {
    let network = Network::new()?;
    let [one_ns, other_ns] = &network.names;
    let registry = Registry::start_in(Some(one_ns))?;
    let address = format!("{}:{}", ADDRESSES[0], registry.port);
    let stages = [Stage::empty()?, Stage::empty()?];
    let roots = [stages[0].root().display().to_string(), stages[1].root().display().to_string()];
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/moving.md");
    let page = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let blocks = page.split("```text\n").skip(1).filter_map(|block| block.split("```").next());
    let program = Path::new(env!("CARGO_BIN_EXE_perennial")).parent().context("it is in a directory")?;
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", program.display());
    let mut commands = 0;
    for block in blocks {
        let mut played = String::new();
        for line in block.lines() {
            let Some((machine, command)) = line.split_once("# ").filter(|(m, _)| ["one", "other"].contains(m)) else {
                continue;
            };
            let (ns, root) = if machine == "one" { (one_ns, &roots[0]) } else { (other_ns, &roots[1]) };
            let command = command.replace("box.tar", &box_tar()?.display().to_string());
            let command = command.replace("registry.example:5000", &address);
            // Somebody has brought it there.
            let (kept, brought) = (format!("{}/keys/vault.txt", roots[0]), "/root/vault.txt");
            let command = command.replace(brought, &kept);
            let mut shell = Network::command(ns, &["sh", "-c", &command]);
            let output = shell.env("PATH", &path).env("PERENNIAL_ROOT", root).output()?;
            let key = if machine == "one" { "/var/lib/perennial/keys/vault.txt" } else { brought };
            let said = shown(&output).replace(&kept, key);
            played.push_str(&format!("{line}\n{}", normal(&said, &address, [&roots[0], &roots[1]])));
            commands += 1;
        }
        ensure!(played == block, "the guide says:\n{block}\nand this happens:\n{played}");
    }
    ensure!(commands >= 15, "only {commands} commands were found");
    Ok(())
}
