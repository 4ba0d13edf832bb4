//! The formats of sealed layers: what is written is what is read, and nothing else is read.

mod manifest;
mod trees;
