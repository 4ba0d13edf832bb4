//! What happens here while a pull is on its way: it is decided from what is here at the end (rows I1, I2, A26).

use crate::moving::{empty_linked, linked};
use crate::registry::{Proxy, Registry};
use crate::stage::{IDLE, Stage};
use anyhow::{Result, ensure};
use perennial_testkit::host::wait_until;
use std::process::Child;
use std::sync::atomic::Ordering;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);
/// Bytes after which nothing more comes: when contents come, more than the image; and when indexes do, after the parcel.
const CONTENTS: u64 = 7_000_000;
const INDEXES: u64 = 20_000;

/// Begins a pull of what is too long to come before [`release`].
fn held_pull(stage: &Stage, proxy: &Proxy, args: &[&str], held_at: u64) -> Result<Child> {
    proxy.take();
    proxy.counts.hold_at.store(held_at, Ordering::SeqCst);
    let child = stage.spawn(args)?;
    let is_held = || Ok(proxy.counts.down.load(Ordering::SeqCst) >= held_at);
    wait_until("a part of it has come", LONG, is_held)?;
    Ok(child)
}

fn release(proxy: &Proxy, mut child: Child) -> Result<Option<i32>> {
    proxy.counts.hold_at.store(0, Ordering::SeqCst);
    Ok(child.wait()?.code())
}

/// One generation on two machines, and two more at the registry.
fn behind(registry: &Registry, proxy: &Proxy) -> Result<Stage> {
    let one = linked(&registry.address())?;
    one.sh_ok("web", "echo 1 > /n")?;
    one.ok(&["push", "web"])?;
    let there = empty_linked(&proxy.address())?;
    there.ok(&["pull", "web"])?;
    one.sh_ok("web", "echo 2 > /n; dd if=/dev/urandom of=/big bs=1M count=12")?;
    one.sh_ok("web", "echo 3 > /n")?;
    one.ok(&["push", "web"])?;
    Ok(there)
}

#[test]
fn a_generation_that_was_made_here_meanwhile_is_not_mixed_with_theirs() -> Result<()> {
    for held_at in [INDEXES, CONTENTS] {
        let registry = Registry::start()?;
        let proxy = Proxy::before(registry.port)?;
        let there = behind(&registry, &proxy)?;
        let child = held_pull(&there, &proxy, &["pull", "web"], held_at)?;
        there.sh_ok("web", "echo mine > /n")?;
        let made = there.generation("web", 2)?["exited_at"].clone();
        ensure!(release(&proxy, child)? == Some(4));
        ensure!(there.seqs("web")? == [1, 2] && there.current("web")? == Some(2));
        ensure!(there.generation("web", 2)?["exited_at"] == made);
        ensure!(there.sh_ok("web", "cat /n")? == "mine\n");
        there.refused_with(&["pull", "web"], 4, &["generation 2"])?;
    }
    Ok(())
}

#[test]
fn a_run_that_began_meanwhile_buries_nothing_that_comes() -> Result<()> {
    for held_at in [INDEXES, CONTENTS] {
        let registry = Registry::start()?;
        let proxy = Proxy::before(registry.port)?;
        let there = behind(&registry, &proxy)?;
        let child = held_pull(&there, &proxy, &["pull", "web"], held_at)?;
        there.ok(&["start", "web", "--detach", "--", "sh", "-c", IDLE])?;
        ensure!(release(&proxy, child)? == Some(4));
        ensure!(there.seqs("web")? == [1], "nothing has come beneath a run");
        there.ok(&["stop", "web"])?;
        there.refused_with(&["push", "web"], 4, &["generation 2"])?;
    }
    Ok(())
}

#[test]
fn a_pin_that_was_set_here_meanwhile_stays() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let there = behind(&registry, &proxy)?;
    let child = held_pull(&there, &proxy, &["pull", "web"], CONTENTS)?;
    there.ok(&["pin", "web@1"])?;
    ensure!(release(&proxy, child)? == Some(0));
    ensure!(there.seqs("web")? == [1, 2, 3] && there.current("web")? == Some(3));
    ensure!(there.generation("web", 1)?["pinned"] == true);
    Ok(())
}

/// Three generations at a registry, of which the newest does not lie on the second, which is large.
fn with_a_branch(registry: &Registry) -> Result<()> {
    let one = linked(&registry.address())?;
    one.sh_ok("web", "echo 1 > /n")?;
    one.sh_ok("web", "dd if=/dev/urandom of=/big bs=1M count=12")?;
    one.ok(&["rollback", "web", "--to", "1"])?;
    one.sh_ok("web", "echo 3 > /n")?;
    one.ok(&["push", "web"])?;
    Ok(())
}

#[test]
fn a_container_is_started_and_goes_on_while_its_older_generations_are_on_their_way() -> Result<()> {
    for goes_on in [false, true] {
        let registry = Registry::start()?;
        let proxy = Proxy::before(registry.port)?;
        with_a_branch(&registry)?;
        let there = empty_linked(&proxy.address())?;
        let child = held_pull(&there, &proxy, &["pull", "web"], CONTENTS)?;
        wait_until("the one to start from is here", LONG, || Ok(there.run(&["inspect", "web"])?.code() == 0))?;
        ensure!(there.seqs("web")? == [3], "the others are not");
        if goes_on {
            // Once with what it leaves folded and sealed, too.
            there.sh_ok("web", "cat /n; echo 4 > /n")?;
            there.quiet()?;
        } else {
            there.ok(&["start", "web", "--detach", "--", "sh", "-c", IDLE])?;
        }
        ensure!(release(&proxy, child)? == Some(0), "{goes_on}");
        let (seqs, current) = if goes_on { (vec![1, 2, 3, 4], 4) } else { (vec![1, 2, 3], 3) };
        ensure!(there.seqs("web")? == seqs && there.current("web")? == Some(current), "{goes_on}");
        if !goes_on {
            ensure!(there.inside("web", "cat /n")? == "3\n");
            there.ok(&["stop", "web"])?;
        }
        there.ok(&["push", "web"])?;
        there.ok(&["verify", "--full"])?;
    }
    Ok(())
}

#[test]
fn an_image_that_is_removed_meanwhile_is_there_when_the_container_is() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let one = linked(&registry.address())?;
    one.sh_ok("large", "dd if=/dev/urandom of=/big bs=1M count=12; echo 1 > /n")?;
    one.ok(&["push", "large"])?;
    let there = linked(&proxy.address())?;
    let child = held_pull(&there, &proxy, &["pull", "large"], CONTENTS)?;
    there.ok(&["image", "rm", "box"])?;
    ensure!(release(&proxy, child)? == Some(0));
    ensure!(there.ok(&["run", "large", "--", "cat", "/n"])?.out() == "1\n");
    there.ok(&["gc"])?;
    there.ok(&["verify", "--full"])?;
    Ok(())
}

#[test]
fn a_container_that_is_removed_meanwhile_stays_removed() -> Result<()> {
    let registry = Registry::start()?;
    let proxy = Proxy::before(registry.port)?;
    let there = behind(&registry, &proxy)?;
    let child = held_pull(&there, &proxy, &["pull", "web"], CONTENTS)?;
    there.ok(&["rm", "web"])?;
    ensure!(release(&proxy, child)? == Some(3));
    there.refused_with(&["inspect", "web"], 3, &["web"])?;
    there.ok(&["pull", "web"])?;
    ensure!(there.seqs("web")? == [1, 2, 3]);
    Ok(())
}

/// What is here may be in packs only, and nothing of it comes once more: a start has to know.
#[test]
fn what_comes_on_top_of_packed_layers_or_a_packed_image_starts() -> Result<()> {
    let registry = Registry::start()?;
    let here = linked(&registry.address())?;
    here.sh_ok("web", "seq 1000 > /one")?;
    here.ok(&["push", "web"])?;
    let there = empty_linked(&registry.address())?;
    there.ok(&["pull", "web"])?;
    there.sh_ok("web", "seq 2000 > /two")?;
    there.ok(&["push", "web"])?;
    here.quiet()?;
    // Trees of what the push has sealed go, which it held itself.
    here.ok(&["seal"])?;
    let said = here.ok(&["pack", "web", "--hot", "0"])?.out();
    ensure!(here.generation("web", 1)?["cold"] == true, "it was not packed: {said}");
    here.ok(&["pull", "web"])?;
    here.ok(&["pull", "web", "twin"])?;
    for name in ["web", "twin"] {
        ensure!(here.current(name)? == Some(2), "{name} does not start from what came");
        ensure!(here.sh_ok(name, "cat /one /two | wc -l")? == "3000\n", "{name} lacks something");
    }
    here.ok(&["verify", "--full"])?;
    Ok(())
}
