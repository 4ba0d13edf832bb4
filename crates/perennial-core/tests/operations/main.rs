//! What the core decides about whole stores: rebase, collection, use of space, the machine.

mod collect;
mod export;
mod host;
mod rebase;
mod rebuild;
mod seal;
mod usage;
