//! Several trees as one: each rule, and random stacks against a naive overlay.
#![cfg(test)]

mod model;
mod properties;
mod rules;
