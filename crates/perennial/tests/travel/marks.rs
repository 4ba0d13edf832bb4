//! Rollbacks, pins, quarantine and health marks reach the other machine, and one that knows nothing of them undoes none
//! (rows B27, I10, A32).

use crate::moving::{empty_linked, linked};
use crate::registry::Registry;
use crate::stage::Stage;
use anyhow::{Result, ensure};

/// Three generations at a registry and on two machines.
fn shared(registry: &Registry) -> Result<(Stage, Stage)> {
    let one = linked(&registry.address())?;
    for number in 1..=3 {
        one.sh_ok("web", &format!("echo {number} > /n"))?;
    }
    one.ok(&["push", "web"])?;
    let other = empty_linked(&registry.address())?;
    other.ok(&["pull", "web"])?;
    Ok((one, other))
}

/// `*1p 2q 3` are three generations, the first current and pinned, the second in quarantine.
fn shown(stage: &Stage) -> Result<String> {
    let current = stage.current("web")?;
    let mut words = Vec::new();
    for generation in stage.generations("web")? {
        let of = |key: &str| generation.get(key).cloned().unwrap_or_default();
        let seq = of("seq").as_u64();
        let mut word = if seq == current { "*".to_owned() } else { String::new() };
        word += &seq.unwrap_or_default().to_string();
        for (key, letter) in [("pinned", 'p'), ("quarantined", 'q')] {
            if of(key) == true {
                word.push(letter);
            }
        }
        if of("health") == "suspect" {
            word.push('s');
        }
        words.push(word);
    }
    Ok(words.join(" "))
}

fn ensure_shown(stage: &Stage, expected: &str) -> Result<()> {
    let found = shown(stage)?;
    ensure!(found == expected, "{found} is not {expected}");
    Ok(())
}

#[test]
fn a_rollback_with_a_pin_reaches_the_other_machine_which_undoes_neither_before() -> Result<()> {
    let registry = Registry::start()?;
    let (one, other) = shared(&registry)?;
    one.ok(&["rollback", "web", "--to", "1"])?;
    one.ok(&["pin", "web@1"])?;
    one.ok(&["push", "web"])?;
    // It knows nothing of that, and has nothing new.
    other.ok(&["push", "web"])?;
    let third = empty_linked(&registry.address())?;
    third.ok(&["pull", "web"])?;
    ensure_shown(&third, "*1p 2q 3q")?;
    let said = other.ok(&["pull", "web"])?.out();
    ensure!(said.contains("starts from web@1 now"), "{said}");
    ensure_shown(&other, "*1p 2q 3q")?;
    ensure!(other.sh_ok("web", "cat /n")? == "1\n");
    other.ok(&["push", "web"])?;
    one.ok(&["pull", "web"])?;
    ensure_shown(&one, "1p 2q 3q *4")?;
    // And back, by the undo of the one who was told.
    third.ok(&["unpin", "web@1"])?;
    third.ok(&["pull", "web"])?;
    ensure_shown(&third, "1 2q 3q *4")?;
    third.ok(&["push", "web"])?;
    one.ok(&["pull", "web"])?;
    ensure_shown(&one, "1 2q 3q *4")?;
    Ok(())
}

#[test]
fn a_rollback_that_was_pulled_can_be_taken_back() -> Result<()> {
    let registry = Registry::start()?;
    let (one, other) = shared(&registry)?;
    one.ok(&["rollback", "web", "--to", "1"])?;
    one.ok(&["push", "web"])?;
    other.ok(&["pull", "web"])?;
    other.ok(&["rollback", "web", "--undo"])?;
    ensure_shown(&other, "1 2 *3")?;
    other.ok(&["push", "web"])?;
    one.ok(&["pull", "web"])?;
    ensure_shown(&one, "1 2 *3")?;
    Ok(())
}

#[test]
fn what_each_of_two_machines_has_marked_is_put_together() -> Result<()> {
    let registry = Registry::start()?;
    let (one, other) = shared(&registry)?;
    one.ok(&["pin", "web@1"])?;
    one.ok(&["push", "web"])?;
    other.ok(&["mark", "web@2", "suspect"])?;
    other.sh_ok("web", "echo 4 > /n")?;
    // The pin is kept, though it is not there yet, and comes.
    other.ok(&["push", "web"])?;
    ensure_shown(&other, "1 2s 3 *4")?;
    one.ok(&["pull", "web"])?;
    ensure_shown(&one, "1p 2s 3 *4")?;
    other.ok(&["pull", "web"])?;
    ensure_shown(&other, "1p 2s 3 *4")?;
    Ok(())
}

#[test]
fn two_machines_that_chose_another_current_generation_are_told_and_lose_nothing() -> Result<()> {
    let registry = Registry::start()?;
    let (one, other) = shared(&registry)?;
    one.ok(&["rollback", "web", "--to", "1"])?;
    one.ok(&["push", "web"])?;
    other.sh_ok("web", "echo 4 > /n")?;
    let one_root = one.root().display().to_string();
    for command in ["push", "pull"] {
        let said = ["generation 4 here", "generation 1", &one_root, "rollback web --to 1"];
        other.refused_with(&[command, "web"], 4, &said)?;
        ensure_shown(&other, "1 2 3 *4")?;
    }
    // Theirs, and then ours again, which goes now.
    other.ok(&["rollback", "web", "--to", "1"])?;
    other.ok(&["pull", "web"])?;
    ensure_shown(&other, "*1 2q 3q 4q")?;
    other.ok(&["rollback", "web", "--to", "4"])?;
    other.ok(&["push", "web"])?;
    one.ok(&["pull", "web"])?;
    ensure_shown(&one, "1 2 3 *4")?;
    // The same where the other one has gone on.
    one.ok(&["rollback", "web", "--to", "2"])?;
    other.sh_ok("web", "echo 5 > /n")?;
    other.ok(&["push", "web"])?;
    one.refused_with(&["pull", "web"], 4, &["generation 2 here", "rollback web --to 4"])?;
    one.ok(&["rollback", "web", "--to", "4"])?;
    one.ok(&["pull", "web"])?;
    ensure_shown(&one, "1 2 3 4 *5")?;
    Ok(())
}

#[test]
fn a_run_is_not_made_to_bury_a_rollback_from_elsewhere() -> Result<()> {
    let registry = Registry::start()?;
    let (one, other) = shared(&registry)?;
    other.ok(&["start", "web", "--detach", "--", "sh", "-c", crate::stage::IDLE])?;
    one.ok(&["rollback", "web", "--to", "1"])?;
    one.ok(&["push", "web"])?;
    other.refused_with(&["pull", "web"], 4, &["web runs here", "1, was chosen", "stop it first"])?;
    other.ok(&["stop", "web"])?;
    Ok(())
}

#[test]
fn what_was_evicted_here_does_not_come_back_by_a_pull() -> Result<()> {
    let registry = Registry::start()?;
    let (one, other) = shared(&registry)?;
    other.ok(&["evict", "web@2"])?;
    let pulled = other.ok(&["pull", "web"])?;
    ensure!(pulled.err().contains("still there: web@2\n") && pulled.err().contains("NEW-NAME"), "{}", pulled.err());
    ensure_shown(&other, "1 *3")?;
    other.ok(&["rollback", "web", "--to", "1"])?;
    other.ok(&["evict", "web@3"])?;
    other.ok(&["pull", "web"])?;
    ensure_shown(&other, "*1")?;
    // It is still where it was, and comes beside it.
    other.ok(&["push", "web"])?;
    other.ok(&["pull", "web", "all"])?;
    ensure!(other.seqs("all")? == [1, 2, 3] && other.current("all")? == Some(1));
    other.ok(&["evict", "all@2"])?;
    other.ok(&["pull", "web", "all"])?;
    ensure!(other.seqs("all")? == [1, 3]);
    // Where somebody chooses it, it comes.
    one.ok(&["pull", "web"])?;
    ensure_shown(&one, "*1 2q 3q")?;
    one.ok(&["rollback", "web", "--to", "3"])?;
    one.ok(&["push", "web"])?;
    other.ok(&["pull", "web"])?;
    ensure_shown(&other, "1 *3")?;
    ensure!(other.sh_ok("web", "cat /n")? == "3\n");
    Ok(())
}
