//! The formats of sealed layers: what is written is what is read, and nothing else is read.
#![cfg(test)]

mod erofs;
mod frozen;
mod groups;
mod manifest;
mod pack;
mod trees;
