//! What the core decides about a container's life and its generations: one named test for each requirement row.

mod check;
mod choose;
mod life;
mod properties;
mod queue;
mod rollback;
mod world;
