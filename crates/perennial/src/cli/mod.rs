//! How commands are typed and how their results are shown.

pub mod args;
pub mod output;
pub mod progress;
pub mod table;
