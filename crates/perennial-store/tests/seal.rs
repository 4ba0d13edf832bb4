//! Layers sealed and compared with what they were, through the kernel and through the readers of the store.
#![cfg(test)]

mod common;

use common::seals::{SealLab, unflag};
use common::{LoopFs, assert_same, traps};

/// An image of two layers and two runs with every kind of entry.
fn trapped(fs: &LoopFs) -> SealLab {
    let mut lab = SealLab::new(&fs.path());
    lab.layer(traps::build);
    lab.session(traps::rebuild);
    lab.session(|root| {
        traps::first(root);
        unflag(root);
    });
    lab.session(|root| {
        traps::second(root);
        unflag(root);
    });
    lab
}

#[test]
fn a_sealed_stack_shows_what_its_trees_showed() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let fs = LoopFs::new(kind, 512);
        let mut lab = trapped(&fs);
        let expected = lab.list_all();
        for position in (0..lab.stack.len()).rev() {
            let sealed = lab.seal(position);
            println!("{kind}: {sealed:?}");
            assert_same(&expected, &lab.list_all(), &format!("{kind}: sealed down from {position}"));
        }
        lab.drop_trees();
        assert_same(&expected, &lab.list_all(), &format!("{kind}: without trees"));
    }
}
